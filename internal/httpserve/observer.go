package httpserve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Level says which requests the access log shows.
type Level int

// Levels of the access log.
const (
	LogWrites Level = iota // mutating requests, and all with a status of 400 or more
	LogNone                // nothing but panics
	LogErrors              // a status of 400 or more
	LogAll
)

// ParseLevel reads none, errors, writes or all.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "", "writes":
		return LogWrites, nil
	case "none":
		return LogNone, nil
	case "errors":
		return LogErrors, nil
	case "all":
		return LogAll, nil
	}
	return 0, fmt.Errorf("unknown access log level %q: want none, errors, writes or all", s)
}

// ObserverOptions is what an Observer needs.
type ObserverOptions struct {
	Log     *slog.Logger
	Level   Level
	Metrics prometheus.Registerer // nil: none are registered
	// BodyIdle is how long a request body may bring no byte, and a client take
	// none of an answer's, before the connection is given up; 0 = 60 s. While a
	// file is sent that may be noticed after up to twice as long.
	BodyIdle time.Duration
	// BodyRate is how many bytes per second of a request body must arrive on
	// average over BodyIdle, and of a response be taken; 0 = 1024.
	BodyRate int64
}

const (
	bodyIdleDefault = 60 * time.Second
	bodyRateDefault = 1 << 10
)

// Observer names, counts and logs requests.
type Observer struct {
	log      *slog.Logger
	level    Level
	bodyIdle time.Duration
	bodyRate int64 // bytes per second
	metrics  *metrics
	other    *Route
	ids      idSource
	pool     sync.Pool // of *response

	lingerTime time.Duration
}

// NewObserver returns an Observer whose metrics are registered.
func NewObserver(o ObserverOptions) *Observer {
	if o.BodyIdle <= 0 {
		o.BodyIdle = bodyIdleDefault
	}
	if o.BodyRate <= 0 {
		o.BodyRate = bodyRateDefault
	}
	ob := &Observer{log: o.Log, level: o.Level, bodyIdle: o.BodyIdle, bodyRate: o.BodyRate, metrics: newMetrics(o.Metrics), ids: newIDSource(), lingerTime: lingerTime}
	ob.other = ob.Route("other")
	ob.pool.New = func() any { return new(response) }
	return ob
}

// Route returns the route that requests of this name are counted under. Call
// it while a face is being built, not for each request.
func (o *Observer) Route(name string) *Route { return o.metrics.route(name) }

// Mark says which route the request behind w belongs to. Without an Observer
// in front, or with a nil route, it does nothing.
func Mark(w http.ResponseWriter, route *Route) {
	if r, ok := w.(*response); ok && route != nil {
		r.route = route
	}
}

// Note leaves err for the log line of the request behind w, where all of its
// text may be read.
func Note(w http.ResponseWriter, err error) {
	if r, ok := w.(*response); ok {
		r.err = err
	}
}

// OnPanic says how the face that answers the request behind w would answer it
// if its handler panicked. err is internal. Without it the answer has the form
// of the OCI face.
func OnPanic(w http.ResponseWriter, fail func(w http.ResponseWriter, err error)) {
	if r, ok := w.(*response); ok {
		r.fail = fail
	}
}

// RequestID returns the id of the request behind w, "" without an Observer.
func RequestID(w http.ResponseWriter) string {
	if r, ok := w.(*response); ok {
		return r.id
	}
	return ""
}

// Wrap returns h under observation.
func (o *Observer) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		o.metrics.inFlight.Inc()
		rw := o.pool.Get().(*response)
		rw.reset(w, o.other)
		rw.id = o.ids.of(r)
		rw.idle, rw.rate, rw.tls = o.bodyIdle, o.bodyRate, r.TLS != nil
		w.Header()["X-Request-Id"] = []string{rw.id}
		if r.ContentLength != 0 {
			// The wrapper is not pooled with the response: net/http may still read
			// from the body after the handler has returned.
			rw.body = newBody(w, r, o.bodyIdle, o.bodyRate)
			r.Body = rw.body
		}
		defer o.finish(rw, r, start)
		h.ServeHTTP(rw, r)
	})
}

func (o *Observer) finish(rw *response, r *http.Request, start time.Time) {
	p := recover()
	aborted := false
	if p != nil {
		aborted = o.recovered(rw, r, p)
	}
	took := time.Since(start)
	status := rw.status
	if status == 0 {
		status = http.StatusOK
	}
	var received int64
	if rw.body != nil {
		received = rw.body.count()
	}
	o.metrics.observe(rw.route, r.Method, status, took, received, rw.written)
	o.metrics.inFlight.Dec()
	if o.wants(r.Method, status) || p != nil {
		o.logRequest(rw, r, status, took, received)
	}
	unread := rw.unread()
	if unread != nil && !aborted {
		rw.Flush()
	}
	rw.reset(nil, nil)
	o.pool.Put(rw)
	if unread != nil && !aborted {
		unread.linger(o.lingerTime)
	}
	if aborted {
		panic(http.ErrAbortHandler) // closes the connection, so that the client sees a broken answer
	}
}

// recovered answers a request whose handler panicked. It returns true if the
// answer is beyond repair.
func (o *Observer) recovered(rw *response, r *http.Request, p any) (aborted bool) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		if rw.err == nil {
			rw.err = http.ErrAbortHandler
		}
		return true
	}
	rw.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	if rw.status != 0 {
		return true
	}
	if rw.fail != nil {
		rw.fail(rw, rw.err)
		return false
	}
	const text = `{"errors":[{"code":"UNKNOWN","message":"internal error; the server's log has the details under this request's id"}]}`
	h := rw.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	rw.WriteHeader(http.StatusInternalServerError)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(rw, text) // a client that is gone needs no answer
	}
	return false
}

func (o *Observer) wants(method string, status int) bool {
	switch o.level {
	case LogNone:
		return false
	case LogAll:
		return true
	case LogErrors:
		return status >= 400
	}
	return status >= 400 || method != http.MethodGet && method != http.MethodHead
}

func (o *Observer) logRequest(rw *response, r *http.Request, status int, took time.Duration, received int64) {
	level := slog.LevelInfo
	if status >= 500 {
		level = slog.LevelError
	}
	ctx := context.WithoutCancel(r.Context())
	if !o.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs,
		slog.String("id", rw.id),
		slog.String("method", r.Method),
		slog.String("path", r.URL.Path),
		slog.Int("status", status),
		slog.Int64("took_us", took.Microseconds()),
		slog.String("remote", r.RemoteAddr))
	if r.URL.RawQuery != "" {
		attrs = append(attrs, slog.String("query", r.URL.RawQuery))
	}
	if received > 0 {
		attrs = append(attrs, slog.Int64("received", received))
	}
	if rw.written > 0 {
		attrs = append(attrs, slog.Int64("sent", rw.written))
	}
	if rw.err != nil {
		attrs = append(attrs, slog.String("err", rw.err.Error()))
	}
	o.log.LogAttrs(ctx, level, "request", attrs...)
}

package httpserve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Operations says what the endpoints for those who run a server answer.
type Operations struct {
	Observer *Observer
	Metrics  prometheus.Gatherer
	// Ready returns nil when requests can be answered, and a public text with
	// the reason otherwise. Its context ends before a probe gives up.
	Ready    func(ctx context.Context) (text string, err error)
	Greeting string // of the path /, for people
	Pprof    bool
	Log      *slog.Logger
}

// readyTimeout bounds the question, below the second after which probes give
// up by default.
const readyTimeout = 900 * time.Millisecond

// Handler answers /metrics, /healthz, /readyz, / and, where that is wanted,
// /debug/pprof/.
func (o Operations) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.HandlerFunc) {
		_, path, _ := strings.Cut(pattern, " ")
		route := o.Observer.Route(strings.TrimSuffix(path, "{$}"))
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			Mark(w, route)
			h(w, req)
		})
	}
	handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelError)}).ServeHTTP)
	handle("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "alive\n") })
	handle("GET /readyz", o.readyz)
	handle("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, o.Greeting) })
	if o.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	}
	return mux
}

func (o Operations) readyz(w http.ResponseWriter, req *http.Request) {
	ctx, cancel := context.WithTimeout(req.Context(), readyTimeout)
	defer cancel()
	if reason, err := o.Ready(ctx); err != nil {
		Note(w, err)
		text(w, http.StatusServiceUnavailable, reason+"\n")
		return
	}
	text(w, http.StatusOK, "ready\n")
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if _, err := io.WriteString(w, s); err != nil {
		Note(w, err)
	}
}

// Denied refuses what a web page sent: without authentication, a page that
// somebody on this machine looks at could push, delete and read. why is for the
// log, text for the client. The answer has the form of the OCI face.
func Denied(w http.ResponseWriter, why error, text string) {
	Note(w, why)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	if _, err := fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q}]}`+"\n", text); err != nil {
		Note(w, err)
	}
}

// DeniedHost is Denied for what Guard finds suspicious.
func DeniedHost(w http.ResponseWriter, req *http.Request) {
	Denied(w, fmt.Errorf("a request has the host name %q", req.Host),
		"this server listens on loopback, where only localhost, IP addresses and the names in the setting \"hosts\" are allowed: a web page could have pointed any other name here")
}

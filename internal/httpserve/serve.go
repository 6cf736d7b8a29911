package httpserve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Options says how to serve.
type Options struct {
	Handler http.Handler
	Grace   time.Duration // how long running requests may go on after the end; 0 = 30 s
	Log     *slog.Logger
	// ConnContext adds to the context of a connection's requests; nil: nothing. See http.Server.
	ConnContext func(ctx context.Context, c net.Conn) context.Context
	// MaxConns bounds the connections that are open at once. Beyond it, the one
	// that has been idle for longest is closed for a new one; where none is idle,
	// new ones wait. 0 = what the limit of open files allows, at most 4096.
	MaxConns int
}

const (
	graceDefault = 30 * time.Second
	// cutGrace is how long requests that were cut have to put things in order:
	// an upload makes durable what has arrived.
	cutGrace = 10 * time.Second

	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// Serve serves connections of ln until ctx ends. Then it stops accepting and
// lets running requests finish for the grace duration; those that are left are
// cut, and Serve waits for their handlers to return. It closes ln.
//
// The contexts of requests carry ctx's values but do not end with it; they end
// when the request is over or is cut.
func Serve(ctx context.Context, ln net.Listener, o Options) error {
	if o.Grace <= 0 {
		o.Grace = graceDefault
	}
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var running atomic.Int64
	if o.MaxConns <= 0 {
		o.MaxConns = maxConns()
	}
	limit := newConnLimit(ln, o.MaxConns)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running.Add(1)
			defer running.Add(-1)
			o.Handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       o.ConnContext,
		ConnState:         limit.note,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}

	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(limit) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}

	grace, done := context.WithTimeout(context.WithoutCancel(ctx), o.Grace)
	defer done()
	err := srv.Shutdown(grace)
	if err == nil {
		return nil
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("shut down %s: %w", ln.Addr(), err)
	}
	o.Log.Warn("cutting requests that outlived the grace period", "grace_ms", o.Grace.Milliseconds(), "requests", running.Load())
	cut()
	if err := srv.Close(); err != nil {
		return fmt.Errorf("close %s: %w", ln.Addr(), err)
	}
	return awaitZero(&running, cutGrace)
}

func awaitZero(running *atomic.Int64, limit time.Duration) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for running.Load() > 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("%d requests did not end within %s of being cut", running.Load(), limit)
		}
	}
	return nil
}

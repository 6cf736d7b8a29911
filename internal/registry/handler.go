package registry

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairway-registry/fairway/internal/httpserve"
)

// handler chooses the face by the path as the client sent it: http.ServeMux
// would clean paths and answer with redirects that OCI clients do not expect.
func (r *Registry) handler() http.Handler {
	ops := r.operations()
	origin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch path := req.URL.Path; {
		case path == "/v2" || strings.HasPrefix(path, "/v2/"):
			if err := origin.Check(req); err != nil {
				crossOrigin(w, err)
				return
			}
			r.dist.ServeHTTP(w, req)
		case strings.HasPrefix(path, "/api/"):
			r.api.ServeHTTP(w, req)
		default:
			ops.ServeHTTP(w, req)
		}
	})
}

// crossOrigin refuses what a web page of another origin sent: without
// authentication, a page that somebody on this machine looks at could push.
// Clients of the OCI API are no browsers and say nothing of an origin.
func crossOrigin(w http.ResponseWriter, err error) {
	httpserve.Note(w, err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	const body = `{"errors":[{"code":"DENIED","message":"a web page of another origin may not change anything here"}]}` + "\n"
	if _, err := io.WriteString(w, body); err != nil {
		httpserve.Note(w, err)
	}
}

// operations are the endpoints for those who run a registry.
func (r *Registry) operations() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.Handler) {
		_, path, _ := strings.Cut(pattern, " ")
		route := r.observer.Route(strings.TrimSuffix(path, "{$}"))
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			httpserve.Mark(w, route)
			h.ServeHTTP(w, req)
		})
	}
	handle("GET /metrics", promhttp.HandlerFor(r.metrics, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelError)}))
	handle("GET /healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "alive\n") }))
	handle("GET /readyz", http.HandlerFunc(r.readyz))
	handle("GET /{$}", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text(w, http.StatusOK, "This is a Fairway registry.\nImages are under /v2/, the admin API is described at /api/v1/openapi.json.\n")
	}))
	if r.cfg.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	}
	return mux
}

// readyTimeout bounds the question to the database, below the second after
// which probes give up by default.
const readyTimeout = 900 * time.Millisecond

// readyz answers 200 when requests are served and the database answers.
func (r *Registry) readyz(w http.ResponseWriter, req *http.Request) {
	if !r.ready.Load() {
		text(w, http.StatusServiceUnavailable, "shutting down\n")
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), readyTimeout)
	defer cancel()
	if err := r.store.Ping(ctx); err != nil {
		httpserve.Note(w, err)
		text(w, http.StatusServiceUnavailable, "the database does not answer\n")
		return
	}
	text(w, http.StatusOK, "ready\n")
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if _, err := io.WriteString(w, s); err != nil {
		httpserve.Note(w, err)
	}
}

package registry

import (
	"context"
	"fmt"
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
		path := req.URL.Path
		api := strings.HasPrefix(path, "/api/") // which has this rule for every client
		if !api && r.onLoopback() && fromBrowser(req) && !r.api.KnownHost(req.Host) {
			denied(w, fmt.Errorf("a browser asks under the host name %q", req.Host),
				"web pages may not use this host name; a proxy's name can be allowed with the setting \"hosts\"")
			return
		}
		switch {
		case path == "/v2" || strings.HasPrefix(path, "/v2/"):
			if err := origin.Check(req); err != nil {
				denied(w, err, "a web page of another origin may not change anything here")
				return
			}
			r.dist.ServeHTTP(w, req)
		case api:
			r.api.ServeHTTP(w, req)
		default:
			ops.ServeHTTP(w, req)
		}
	})
}

// fromBrowser reports whether a web page may have sent req. A page whose name
// was rebound to this machine after it was loaded is of the same origin as the
// registry, as the browser sees it, and neither Origin nor Sec-Fetch-Site need
// be there then; what every browser calls itself is. Clients of the OCI API are
// no browsers and may use any name for the registry.
func fromBrowser(req *http.Request) bool {
	return req.Header.Get("Origin") != "" || req.Header.Get("Sec-Fetch-Site") != "" || strings.HasPrefix(req.UserAgent(), "Mozilla/")
}

// denied refuses what a web page sent: without authentication, a page that
// somebody on this machine looks at could push, delete and read. why is for the
// log, text for the client.
func denied(w http.ResponseWriter, why error, text string) {
	httpserve.Note(w, why)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	if _, err := fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q}]}`+"\n", text); err != nil {
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

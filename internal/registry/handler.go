package registry

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/registry/distapi"
)

// handler chooses the face by the path as the client sent it: http.ServeMux
// would clean paths and answer with redirects that OCI clients do not expect.
func (r *Registry) handler() http.Handler {
	ops := httpserve.Operations{
		Observer: r.observer, Metrics: r.metrics, Ready: r.readiness, Pprof: r.cfg.Pprof, Log: r.log,
		Greeting: "This is a Fairway registry.\nImages are under /v2/, the admin API is described at /api/v1/openapi.json.\n",
	}.Handler()
	guard := r.guard()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		path := req.URL.Path
		v2 := path == "/v2" || strings.HasPrefix(path, "/v2/")
		if v2 {
			distapi.Announce(w)
		}
		api := strings.HasPrefix(path, "/api/") // which has this rule of its own
		if !api && guard.Suspicious(req) {
			httpserve.DeniedHost(w, req)
			return
		}
		switch {
		case v2:
			if r.cors.Answer(w, req) {
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

// readiness tells whether requests are served, the database answers and the
// storage is the right one.
func (r *Registry) readiness(ctx context.Context) (string, error) {
	if !r.ready.Load() {
		return "shutting down", errors.New("shutting down")
	}
	if err := r.store.Ping(ctx); err != nil {
		return "the database does not answer", err
	}
	return "the storage is not there", r.blobs.Prove(ctx)
}

package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/fairway-registry/fairway/internal/httpserve"
)

// faces says what is served where.
func (a *Agent) faces() map[net.Listener]http.Handler {
	guard := httpserve.Guard{Loopback: onLoopback(a.listener), Hosts: a.cfg.Hosts}
	ops := a.operations()
	var api http.Handler
	if guard.Loopback {
		api = a.adminAPI(guard)
	}
	faces := map[net.Listener]http.Handler{
		a.listener:        guarded(guard, a.mirror, api, ops),
		a.socket.Listener: guarded(httpserve.Guard{}, nil, a.adminAPI(httpserve.Guard{}), ops),
	}
	if a.docker != nil {
		guard.Loopback = onLoopback(a.docker)
		faces[a.docker] = guarded(guard, a.mirror.For(dockerHub), nil, http.NotFoundHandler())
	}
	return faces
}

// guarded chooses the face by the path as the client sent it. There may be no
// mirror and no api: beyond this machine nobody is to see what runs here, or
// evict it.
func guarded(guard httpserve.Guard, mirror, api, ops http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		path := req.URL.Path
		isAPI := strings.HasPrefix(path, "/api/") // which has this rule for every client
		if !(isAPI && api != nil) && guard.Suspicious(req) {
			httpserve.DeniedHost(w, req)
			return
		}
		switch {
		case mirror != nil && (path == "/v2" || strings.HasPrefix(path, "/v2/")):
			mirror.ServeHTTP(w, req)
		case isAPI && api != nil:
			api.ServeHTTP(w, req)
		case isAPI:
			httpserve.Denied(w, errors.New("the admin API is asked for where others can reach it"),
				"the admin API is served on loopback and on the agent's socket only")
		default:
			ops.ServeHTTP(w, req)
		}
	})
}

// operations are the endpoints for those who run a node.
func (a *Agent) operations() http.Handler {
	return httpserve.Operations{
		Observer: a.observer, Metrics: a.metrics, Ready: a.readiness, Pprof: a.cfg.Pprof, Log: a.log,
		Greeting: "This is a Fairway node.\nRuntimes pull through /v2/; the admin API, on loopback and on the agent's socket, is described at /api/v1/openapi.json.\n",
	}.Handler()
}

// readiness tells whether requests are served and the index answers. Runtimes
// and upstreams that are down are no reason to take the mirror away: what is
// cached can be pulled.
func (a *Agent) readiness(ctx context.Context) (string, error) {
	if !a.ready.Load() {
		return "shutting down", errors.New("shutting down")
	}
	_, err := a.index.Pins(ctx)
	return "the index does not answer", err
}

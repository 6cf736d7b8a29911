package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// faces says what is served where.
func (a *Agent) faces() map[net.Listener]http.Handler {
	guard := httpserve.Guard{Loopback: onLoopback(a.listener), Hosts: a.cfg.Hosts}
	ops := a.operations()
	elsewhere := a.adminElsewhere()
	faces := map[net.Listener]http.Handler{
		a.listener:        guarded(guard, a.mirror, elsewhere, ops),
		a.socket.Listener: guarded(httpserve.Guard{}, nil, a.adminAPI(), ops),
	}
	if a.docker != nil {
		guard.Loopback = onLoopback(a.docker)
		faces[a.docker] = guarded(guard, a.mirror.For(dockerHub), elsewhere, http.NotFoundHandler())
	}
	return faces
}

// guarded chooses the handler by the path as the client sent it. There may be no
// mirror.
func guarded(guard httpserve.Guard, mirror, api, ops http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		path := req.URL.Path
		switch {
		case guard.Suspicious(req):
			httpserve.DeniedHost(w, req)
		case mirror != nil && (path == "/v2" || strings.HasPrefix(path, "/v2/")):
			mirror.ServeHTTP(w, req)
		case path == "/api" || strings.HasPrefix(path, "/api/"):
			api.ServeHTTP(w, req)
		default:
			ops.ServeHTTP(w, req)
		}
	})
}

// adminElsewhere refuses requests of the admin API on TCP, where every user of
// this machine could see what runs here, evict it and change limits. It names the
// socket, whose mode says who may.
func (a *Agent) adminElsewhere() http.Handler {
	socket, err := filepath.Abs(a.socket.path)
	if err != nil {
		socket = a.socket.path
	}
	body, err := json.Marshal(map[string]any{"error": map[string]string{
		"code": "denied", "message": "the admin API is served on the agent's socket only; call unix://" + socket,
	}})
	if err != nil {
		body = nil // a map of texts can be encoded
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		httpserve.Note(w, errors.New("the admin API is asked for on TCP"))
		w.Header().Set(nodeapi.SocketHeader, socket)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		if _, err := w.Write(body); err != nil {
			httpserve.Note(w, err)
		}
	})
}

// operations are the endpoints for those who run a node.
func (a *Agent) operations() http.Handler {
	return httpserve.Operations{
		Observer: a.observer, Metrics: a.metrics, Ready: a.readiness, Pprof: a.cfg.Pprof, Log: a.log,
		Greeting: "This is a Fairway node.\nRuntimes pull through /v2/; the admin API is served on the agent's socket, see fairway cache and fairway node status.\n",
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

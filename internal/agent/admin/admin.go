// Package admin owns the JSON face of a node under /api/v1/: its status, the
// cache, evictions, pins, limits, events, the swarm. The nouns are nodeapi's; openapi.yaml
// describes them, and tests hold the handler to it.
//
// It decides nothing: the evictor judges, the index resolves and pins. What it
// refuses of requests, and how, is jsonface's.
package admin

import (
	"context"
	_ "embed" // the document is a file of its own
	"log/slog"
	"net/http"

	"github.com/fairway-registry/fairway/internal/agent/evict"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Options is what the face speaks for.
type Options struct {
	Index   *index.Index
	Store   *piece.Store
	Evictor *evict.Evictor
	Tracker *inuse.Tracker

	Namespace string // of references that name no registry
	Status    func(ctx context.Context) (nodeapi.Status, error)
	Pinned    func()                 // is told when pins have changed
	Events    func() []nodeapi.Event // newest first
	Runtimes  func() []nodeapi.KnownRuntime
	Forget    func(ctx context.Context, runtime string) (nodeapi.KnownRuntime, error)
	Limits    func() nodeapi.Limits
	SetLimits func(nodeapi.LimitsRequest) (nodeapi.Limits, error)
	Swarm     func() (nodeapi.Swarm, error) // NotFound: the node is in none
	Traces    func() (nodeapi.SwarmTraces, error)

	Guard    httpserve.Guard     // empty on a socket, which no web page reaches
	Observer *httpserve.Observer // nil: requests are not counted by route
	Log      *slog.Logger
}

// API is the handler of /api/.
type API struct {
	Options
	*jsonface.Face
}

//go:embed openapi.yaml
var specYAML []byte

// New returns the handler.
func New(o Options) *API {
	a := &API{Options: o}
	a.Face = jsonface.New(jsonface.Options{Routes: a.routes(), Spec: specYAML, Guard: o.Guard, Observer: o.Observer})
	return a
}

func (a *API) routes() []jsonface.Route {
	return []jsonface.Route{
		{Method: http.MethodGet, Path: "/status", Handle: a.status},
		{Method: http.MethodGet, Path: "/cache", Handle: a.list},
		{Method: http.MethodGet, Path: "/cache/explain", Handle: a.explain},
		{Method: http.MethodPost, Path: "/cache/gc", Handle: a.gc},
		{Method: http.MethodGet, Path: "/pins", Handle: a.pins},
		{Method: http.MethodPut, Path: "/pins", Handle: a.pin},
		{Method: http.MethodDelete, Path: "/pins", Handle: a.unpin},
		{Method: http.MethodGet, Path: "/events", Handle: a.events},
		{Method: http.MethodGet, Path: "/runtimes", Handle: a.runtimes},
		{Method: http.MethodDelete, Path: "/runtimes", Handle: a.forgetRuntime},
		{Method: http.MethodGet, Path: "/limits", Handle: a.limits},
		{Method: http.MethodPut, Path: "/limits", Handle: a.setLimits},
		{Method: http.MethodGet, Path: "/swarm", Handle: a.swarm},
		{Method: http.MethodGet, Path: "/swarm/traces", Handle: a.traces},
	}
}

func (a *API) status(c *jsonface.Call) (any, error) {
	s, err := a.Status(c.Context())
	s.Upstreams, s.Mirrors, s.Runtimes = jsonface.List(s.Upstreams), jsonface.List(s.Mirrors), jsonface.List(s.Runtimes)
	if s.LastEvent == nil {
		if list := a.Events(); len(list) > 0 {
			s.LastEvent = &list[0]
		}
	}
	return s, err
}

// Bounds of the list of events.
const (
	eventsStandard = 100
	eventsMax      = 1000
)

func (a *API) events(c *jsonface.Call) (any, error) {
	q := c.Query("n")
	n := q.N(eventsStandard, eventsMax)
	if q.Err != nil {
		return nil, q.Err
	}
	list := a.Events()
	return nodeapi.EventList{Events: jsonface.List(list[:min(n, len(list))])}, nil
}

func (a *API) runtimes(*jsonface.Call) (any, error) {
	return nodeapi.RuntimeList{Runtimes: jsonface.List(a.Runtimes())}, nil
}

func (a *API) forgetRuntime(c *jsonface.Call) (any, error) {
	q := c.Query("name")
	if q.Err == nil && q.Text("name") == "" {
		q.Failf("name: it is missing; want for example podman")
	}
	if q.Err != nil {
		return nil, q.Err
	}
	r, err := a.Forget(c.Context(), q.Text("name"))
	if err != nil {
		return nil, err
	}
	a.audit(c, "forget runtime", r.Name)
	return r, nil
}

func (a *API) limits(*jsonface.Call) (any, error) { return a.Limits(), nil }

func (a *API) setLimits(c *jsonface.Call) (any, error) {
	var req nodeapi.LimitsRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	if req == (nodeapi.LimitsRequest{}) {
		return nil, fault.New(fault.Invalid, "no limit is given; there are quota_bytes, high_percent, low_percent and margin_bytes, and of a swarm "+
			"upload_bytes_per_second, download_bytes_per_second, peer_upload_bytes_per_second and peer_download_bytes_per_second")
	}
	l, err := a.SetLimits(req)
	if err == nil {
		a.audit(c, "limits", "")
	}
	return l, err
}

func (a *API) swarm(*jsonface.Call) (any, error) { return a.Swarm() }

func (a *API) traces(*jsonface.Call) (any, error) { return a.Traces() }

func (a *API) gc(c *jsonface.Call) (any, error) {
	var req nodeapi.GCRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	if req.DryRun {
		return a.plan(c.Context())
	}
	// Whoever asked may leave; what was begun is finished.
	r, err := a.Evictor.Pass(context.WithoutCancel(c.Context()))
	if err != nil {
		return nil, err
	}
	a.audit(c, "gc", "")
	done := nodeapi.Evicted{
		Examined: r.Examined, Evicted: r.Evicted, FreedBytes: r.Freed, Kept: r.Kept, Failed: r.Failed, UsedBytes: r.Used, Reason: orNothing(r.Trigger),
	}
	if done.Kept == nil {
		done.Kept = map[string]int{}
	}
	return done, nil
}

func orNothing(trigger string) string {
	if trigger == "" {
		return "no watermark is passed"
	}
	return trigger
}

// audit leaves a line about what somebody had the agent do.
func (a *API) audit(c *jsonface.Call, act, subject string) {
	a.Log.Info("audit", "act", act, "subject", subject, "remote", c.RemoteAddr, "id", c.RequestID)
}

// digestOf reads the parameter digest.
func digestOf(q *jsonface.Query) (oci.Digest, error) {
	if q.Err == nil && q.Text("digest") == "" {
		q.Failf("digest: it is missing; want for example sha256:…")
	}
	if q.Err != nil {
		return "", q.Err
	}
	return oci.ParseDigest(q.Text("digest"))
}

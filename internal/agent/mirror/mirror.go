package mirror

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// Options is what a Mirror needs.
type Options struct {
	Upstreams *ociclient.Upstreams
	Default   string // the upstream of requests that name none
	Fetch     *fetch.Fetcher
	Store     *piece.Store
	Index     *index.Index

	Peers Peers // nil: none

	TagTTL   time.Duration // how long a tag's digest is not asked for again; 0 = always asked
	StaleMax time.Duration // how old a tag's digest may be while the upstream is down; 0 = never given
	GrantTTL time.Duration // how long an upstream's word that somebody may have something lasts without asking; 0 = always asked

	// Hold is how long a whole blob that is being brought is kept back until it is
	// verified; 0 = 1 s, or 5 s for one of up to 8 MiB; negative: not at all.
	Hold time.Duration

	// Shares says that other nodes may give and get what is pulled here. Then the
	// upstream is asked about each private blob before it is fetched (N10).
	Shares bool

	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil: none
	Observer *httpserve.Observer   // nil: nobody counts requests by endpoint
	Now      func() time.Time      // nil: time.Now
}

// Mirror serves /v2/. Give it every path that begins with /v2, as the client
// sent it.
type Mirror struct {
	o         Options
	rights    *rights
	tags      *lru.Cache[tagKey, resolved]
	heard     *lru.Cache[tagKey, resolved] // of peers; .at is when the upstream said so, by this node's clock
	questions singleflight.Group           // to upstreams
	outages   outages
	lists     *semaphore.Weighted // bytes of large lists
	listWait  time.Duration
	oversized oversized
	trouble   sync.Once // is told of
	metrics   *metrics
	handed    handed
	routes    [endpoints]*httpserve.Route
}

// headerSource says where an answer came from: one of these, or a holder's name.
// It goes out before the last byte has come in: swarm is a blob whose pieces come
// from peers and the upstream, as they can.
const (
	headerSource   = "Fairway-Source"
	sourceCache    = "cache"
	sourceUpstream = "upstream"
	sourceStale    = "stale"
	sourcePeer     = "peer"
	sourceSwarm    = "swarm"
)

// New returns a Mirror.
func New(o Options) *Mirror {
	if o.Now == nil {
		o.Now = time.Now
	}
	tags, err := lru.New[tagKey, resolved](tagsMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	heard, err := lru.New[tagKey, resolved](tagsMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	m := &Mirror{
		o: o, tags: tags, heard: heard, metrics: newMetrics(o.Metrics), rights: newRights(o.Index, o.Store.MarkPrivate, o.GrantTTL, o.StaleMax, o.Now),
		outages: outages{last: map[outageKey]outage{}}, lists: semaphore.NewWeighted(listBudget), listWait: listWait,
	}
	if o.Observer != nil {
		for e, name := range names {
			m.routes[e] = o.Observer.Route(name)
		}
	}
	return m
}

// ServeHTTP answers for the default upstream.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.serve(w, r, m.o.Default) }

// For is the same mirror with another default upstream: Docker asks its mirror
// for docker.io without saying so.
func (m *Mirror) For(upstream string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, upstream) })
}

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request, def string) {
	e, name, last := split(r.URL.Path)
	httpserve.Mark(w, m.routes[e])
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := m.act(w, r, e, name, last, def); err != nil {
		m.fail(w, r, err)
	}
}

// act answers a request, or returns an error and has written nothing.
func (m *Mirror) act(w http.ResponseWriter, r *http.Request, e endpoint, name, last, def string) error {
	if e == noEndpoint {
		return fault.New(fault.NotFound, "the API has no such path").WithCode(oci.CodeUnsupported)
	}
	if e == apiWrite || r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return &methodError{fault.New(fault.Invalid, "this is a node's mirror, which can only be pulled from: push to the registry itself").WithCode(oci.CodeUnsupported)}
	}
	if e == apiBase {
		return base(w, r)
	}
	a, err := m.target(r, name, def)
	if err != nil {
		return err
	}
	switch e {
	case apiManifest:
		err := m.manifest(w, r, a, last)
		return m.around(w, r, a, e, last, err)
	case apiBlob:
		err := m.blob(w, r, a, last)
		return m.around(w, r, a, e, last, err)
	case apiTags:
		return m.list(w, r, a, "tags/list")
	default:
		d, err := oci.ParseDigest(last)
		if err != nil {
			return err
		}
		return m.list(w, r, a, "referrers/"+string(d))
	}
}

// base is dist-spec v1.1 §Determining Support. It lets everybody in: which of
// the upstreams would ask for credentials shows when one is asked.
func base(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "2")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte("{}")) // a client that is gone needs no answer
	}
	return nil
}

package mirror

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// Options is what a Mirror needs.
type Options struct {
	Upstreams *ociclient.Upstreams
	Default   string // the upstream of requests that name none
	Fetch     *fetch.Fetcher
	Store     *piece.Store
	Index     *index.Index

	TagTTL   time.Duration // how long a tag's digest is not asked for again; 0 = always asked
	StaleMax time.Duration // how old a tag's digest may be while the upstream is down; 0 = never given
	GrantTTL time.Duration // how long a client's right to private content lasts without asking; 0 = always asked

	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil: none
	Observer *httpserve.Observer   // nil: nobody counts requests by endpoint
	Now      func() time.Time      // nil: time.Now
}

// Mirror serves /v2/. Give it every path that begins with /v2, as the client
// sent it.
type Mirror struct {
	o Options
}

// New returns a Mirror.
func New(o Options) *Mirror {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Mirror{o: o}
}

// ServeHTTP answers for the default upstream.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.serve(w, r, m.o.Default) }

// For is the same mirror with another default upstream: Docker asks its mirror
// for docker.io without saying so.
func (m *Mirror) For(upstream string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, upstream) })
}

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request, def string) {
	http.Error(w, "not yet", http.StatusServiceUnavailable)
}

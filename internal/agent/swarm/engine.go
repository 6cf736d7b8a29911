package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Options is what an Engine needs.
type Options struct {
	Self   Peer
	Keys   *Keys
	Roster Roster // nil: this node is alone
	Store  *piece.Store
	Index  *index.Index // of Store; it knows from which upstream content came
	Origin fetch.Origin
	// Allowed reports whether the upstream ns has let this node or one of its
	// clients pull a private blob a short while ago. nil: never.
	Allowed func(ns string, d oci.Digest) bool
	// Small is the size in bytes below which a blob is taken from one node, or the
	// upstream, as a whole; 0 = 1 MiB.
	Small  int64
	Limits Limits
	Log    *slog.Logger
	// Report is told of liars; nil: nobody.
	Report  func(Lie)
	Metrics prometheus.Registerer // nil: none
	// Serve wraps the handler that peers talk to, for the access log; nil: as it is.
	Serve func(http.Handler) http.Handler
}

// Lie is a piece that a peer handed out and that is not what the origin has.
type Lie struct {
	Peer    plan.Node
	Digest  oci.Digest
	Piece   int
	Relayed bool // the peer said that it had the piece from another and could not verify it yet
	Until   time.Time
}

const smallDefault = 1 << 20

// Engine is this node's part in the swarm. It is safe for concurrent use.
type Engine struct {
	o        Options
	log      *slog.Logger
	names    Names // nil: none
	metrics  *metrics
	client   *http.Client
	tls      *tls.Config
	start    time.Time
	buffers  sync.Pool // of *[piece.Size]byte
	gathered sync.Pool // of *[gatherRoom]byte
	up       *buckets
	down     *buckets
	wait     atomic.Int64 // Limits.Wait
	vain     vain
	giving   chan struct{} // a place for each who is given content
	bodyTime time.Duration
	alone    time.Duration // how long a download waits for peers that send nothing
	stop     context.Context
	cancel   context.CancelFunc
	work     sync.WaitGroup

	mu        sync.Mutex
	view      *members
	downloads map[oci.Digest]*download
	served    map[oci.Digest]int // requests for pieces of it at work
	uploads   *plan.Uploads
	ready     map[*plan.Ask]chan<- *plan.Ask
	bans      map[plan.Node]*ban
	copies    map[oci.Digest]int      // holders in the swarm, as leaders said last
	leaving   []oci.Digest            // evicted, of which the leaders are to be told
	telling   bool                    // somebody tells them
	unwell    map[plan.Node]time.Time // leaders that did not answer, until
	untold    map[plan.Node]bool      // leaders that were not reached with what is held here
	roused    chan struct{}           // room for one: somebody has to be told
	traces    []*Trace                // of the last downloads
	tallies   map[plan.Node]*tally    // since the start
	dirMu     sync.Mutex              // guards directory; taken after mu or alone
	directory *plan.Directory
	parked    parked // guarded by dirMu, too
}

// New returns an engine that is not running yet. Fill works from the start;
// peers are found and served once Run is called.
func New(o Options) (*Engine, error) {
	if o.Self.Node == "" || o.Self.Node == plan.Origin || o.Keys == nil || o.Store == nil || o.Index == nil || o.Origin == nil {
		return nil, errors.New("a swarm needs a node's name, keys, a store with its index and an origin")
	}
	if o.Roster == nil {
		o.Roster = NewStatic()
	}
	if o.Small <= 0 {
		o.Small = smallDefault
	}
	if o.Allowed == nil {
		o.Allowed = func(string, oci.Digest) bool { return false }
	}
	if o.Report == nil {
		o.Report = func(Lie) {}
	}
	e := &Engine{
		o: o, alone: aloneAfter, bodyTime: bodyTime, giving: make(chan struct{}, givenAtOnce), log: o.Log, metrics: newMetrics(o.Metrics), tls: o.Keys.server, start: time.Now(),
		up: newBuckets(), down: newBuckets(),
		downloads: map[oci.Digest]*download{}, served: map[oci.Digest]int{},
		uploads: plan.NewUploads(0, 0, 0), ready: map[*plan.Ask]chan<- *plan.Ask{},
		bans: map[plan.Node]*ban{}, copies: map[oci.Digest]int{}, unwell: map[plan.Node]time.Time{},
		parked: parked{}, untold: map[plan.Node]bool{}, roused: make(chan struct{}, 1),
		tallies:   map[plan.Node]*tally{},
		directory: plan.NewDirectory(plan.DirectoryLimits{}, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))),
	}
	e.buffers.New = func() any { return new([piece.Size]byte) }
	e.client = &http.Client{Transport: e.transport(o.Keys.client)}
	e.view = viewOf(o.Self, o.Roster.Members())
	e.stop, e.cancel = context.WithCancel(context.Background())
	e.SetLimits(o.Limits)
	return e, nil
}

// transport dials members by the name in their certificate, so that TLS proves
// who answers, whatever the address.
func (e *Engine) transport(conf *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: 3 * time.Second}
	return &http.Transport{
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 16, // a handshake costs as much as some pieces
		MaxIdleConns:        512,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
		ReadBufferSize:      32 << 10,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			e.mu.Lock()
			p, ok := e.view.peers[e.view.hosts[host]]
			e.mu.Unlock()
			if !ok {
				return nil, fmt.Errorf("no member of the cluster is called %s", host)
			}
			c, err := dialer.DialContext(ctx, network, p.Addr)
			if err != nil {
				return nil, err
			}
			return newGather(c, &e.gathered), nil
		},
	}
}

// Name is the source's label.
func (e *Engine) Name() string { return "swarm" }

// SetLimits changes the limits at once.
func (e *Engine) SetLimits(l Limits) {
	e.up.set(l.Upload, l.PeerUpload)
	e.down.set(l.Download, l.PeerDownload)
	e.wait.Store(int64(l.Wait))
}

// now is the time that package plan knows.
func (e *Engine) now() time.Duration { return time.Since(e.start) }

// Run serves peers on ln, follows the roster and keeps leaders informed, until
// ctx ends. It closes ln.
func (e *Engine) Run(ctx context.Context, ln net.Listener) error {
	defer e.work.Wait()
	defer e.cancel()
	h := e.Handler()
	if e.o.Serve != nil {
		h = e.o.Serve(h)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// Watches of peers last as long as their downloads; nobody waits for them.
		return httpserve.Serve(ctx, tls.NewListener(&parcels{Listener: ln}, e.tls),
			httpserve.Options{Handler: h, Grace: time.Second, Log: e.log, ConnContext: withParcel})
	})
	g.Go(func() error { e.follow(ctx); return nil })
	g.Go(func() error { e.refresh(ctx); return nil })
	g.Go(func() error { <-ctx.Done(); e.cancel(); return nil })
	return g.Wait()
}

// follow keeps the view of the roster.
func (e *Engine) follow(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		changed := e.o.Roster.Changed()
		e.observe()
		select {
		case <-changed:
		case <-tick.C:
			e.dirMu.Lock()
			e.directory.Expire(e.now())
			e.parked.expire(e.now())
			e.dirMu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// observe takes in who is there now; who is not is forgotten everywhere.
func (e *Engine) observe() {
	view := viewOf(e.o.Self, e.o.Roster.Members())
	e.mu.Lock()
	old := e.view
	e.view = view
	var active []*download
	for _, d := range e.downloads {
		active = append(active, d)
	}
	e.mu.Unlock()
	e.metrics.members.Set(float64(len(view.list)))
	if !maps.Equal(old.peers, view.peers) {
		e.rouse()
	}
	for _, n := range view.list {
		if _, before := old.peers[n]; !before {
			e.unpark(view.peers[n])
		}
	}
	for _, n := range old.list {
		if _, still := view.peers[n]; still {
			continue
		}
		e.park(old.peers[n])
		e.up.forget(n)
		e.down.forget(n)
		for _, d := range active {
			d.lostPeer(n)
		}
	}
	for _, d := range active {
		d.poke()
	}
}

func (e *Engine) seen() *members {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.view
}

func (e *Engine) active(d oci.Digest) *download {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.downloads[d]
}

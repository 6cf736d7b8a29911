package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/agent/admin"
	"github.com/fairway-registry/fairway/internal/agent/evict"
	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/containerd"
	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
	"github.com/fairway-registry/fairway/internal/agent/mirror"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/preheat"
	"github.com/fairway-registry/fairway/internal/agent/report"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/setting"
)

// Agent is an open node that listens.
type Agent struct {
	cfg     Config
	name    string
	version string
	began   time.Time
	log     *slog.Logger
	events  events
	metrics *prometheus.Registry

	listener, docker net.Listener // docker may be nil
	socket           *socket

	index     *index.Index
	store     *piece.Store
	sources   []inuse.Source     // of the runtimes that the configuration names
	detector  *endpoint.Detector // of the others; nil where it names some
	tracker   *inuse.Tracker
	evictor   *evict.Evictor
	upstreams upstreams
	swarm     *swarming // nil without a secret
	fetcher   *fetch.Fetcher
	mirror    *mirror.Mirror
	observer  *httpserve.Observer
	reporter  *report.Reporter // nil without a registry
	preheater *preheat.Preheater

	limiting sync.Mutex // held while limits change
	ready    atomic.Bool
	closers  []func() error // in the order of opening
}

// Open opens the cache, which it creates where there is none, and begins to
// listen. Requests are answered when Run does. Close it in any case. The
// runtimes need not be up.
func Open(ctx context.Context, cfg Config, log *slog.Logger, version string) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, name: cfg.Name, version: version, began: time.Now(), metrics: prometheus.NewRegistry()}
	a.log = slog.New(remembering{Handler: log.Handler(), events: &a.events, kind: "log"})
	if a.name == "" {
		host, err := os.Hostname()
		if err != nil || !nodeapi.IsName(host) {
			return nil, setting.Errorf("name", "it is not set, and the host name %q is none that a node can have: %v", host, err)
		}
		a.name = host
	}
	if err := a.open(ctx, log); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// open does so in the order in which each part needs those before it. plain is
// the log without memory, for the part that remembers its own events.
func (a *Agent) open(ctx context.Context, plain *slog.Logger) error {
	a.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	level, err := httpserve.ParseLevel(a.cfg.Log.Requests)
	if err != nil {
		return setting.Errorf("log.requests", "%v", err)
	}
	a.observer = httpserve.NewObserver(httpserve.ObserverOptions{Log: a.log, Level: level, Metrics: a.metrics})
	if a.listener, err = a.listen(ctx, "listen", a.cfg.Listen); err != nil {
		return err
	}
	if a.cfg.DockerListen != "" {
		if a.docker, err = a.listen(ctx, "docker_listen", a.cfg.DockerListen); err != nil {
			return err
		}
	}
	if err := a.openCache(ctx); err != nil {
		return err
	}
	// The data directory is this agent's from here on, and so is its socket.
	if a.socket, err = listenSocket(ctx, a.cfg.adminSocket()); err != nil {
		return err
	}
	a.closers = append(a.closers, a.socket.Close)
	if err := a.openRuntimes(ctx); err != nil {
		return err
	}
	if a.upstreams, err = openUpstreams(a.cfg, a.log, a.version); err != nil {
		return err
	}
	a.evictor, err = evict.New(evict.Options{
		Store: a.store, Index: a.index, Tracker: a.tracker, Rare: a.rare, Evicted: a.evicted,
		// To the evictor 0 is its default; to who sets it, that nothing is warm for its use alone.
		Floor: int64(a.cfg.Floor), Warm: max(1, time.Duration(a.cfg.Warm)), DeletedTTL: time.Duration(a.cfg.Deleted), Every: a.cfg.evictEvery, Log: plain, Metrics: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("make the evictor: %w", err)
	}
	if err := a.openMirror(ctx); err != nil {
		return err
	}
	return a.openReporter()
}

func (a *Agent) listen(ctx context.Context, key, address string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	a.closers = append(a.closers, func() error {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	if !onLoopback(ln) && !a.cfg.AllowAnyone {
		return nil, setting.Errorf(key, "%s is %s, which can be reached from the network", address, ln.Addr())
	}
	return ln, nil
}

// onLoopback reports whether the address that is really listened on is one of
// this machine only, whatever name it was given by.
func onLoopback(ln net.Listener) bool {
	addr, ok := ln.Addr().(*net.TCPAddr)
	return ok && addr.IP.IsLoopback()
}

func (a *Agent) openCache(ctx context.Context) error {
	if err := os.MkdirAll(a.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	total, err := fileSystem(a.cfg.Data)
	if err != nil {
		return err
	}
	limits, err := changed(piece.Limits{}, a.cfg.Limits(), total)
	if err != nil {
		return err
	}
	if limits.MinFree >= total {
		return setting.Errorf("margin", "%s is more than the disk has", a.cfg.Margin)
	}
	a.warnOfQuota(limits.Quota)
	owner := fmt.Sprintf("node %s on %s", a.name, a.listener.Addr())
	if a.index, err = index.Open(ctx, index.Options{Path: filepath.Join(a.cfg.Data, "index.db"), Log: a.log, Owner: owner}); err != nil {
		return err
	}
	a.closers = append(a.closers, a.index.Close)
	if a.store, err = piece.Open(ctx, piece.Options{Dir: a.cfg.Data, Index: a.index, Owner: owner, Limits: limits, Log: a.log, Metrics: a.metrics}); err != nil {
		return err
	}
	a.closers = append(a.closers, a.store.Close)
	return nil
}

// openRuntimes opens the runtimes that the configuration names, or else has them
// detected for as long as the agent runs.
func (a *Agent) openRuntimes(ctx context.Context) error {
	o := inuse.Options{Log: a.log, Metrics: a.metrics}
	if len(a.cfg.Runtime) == 0 {
		var err error
		a.detector, err = endpoint.NewDetector(endpoint.DetectorOptions{Root: a.cfg.root, File: filepath.Join(a.cfg.Data, "runtimes"), Log: a.log})
		if err != nil {
			return err
		}
		a.closers = append(a.closers, a.detector.Close)
		o.Finder = a.detector
	}
	for _, e := range a.cfg.Runtime {
		s, err := endpoint.Open(ctx, e, a.log)
		if err != nil {
			return setting.Errorf("runtime", "%s: %v", e, err)
		}
		a.sources = append(a.sources, s)
		a.closers = append(a.closers, s.Close)
	}
	a.tracker = inuse.NewTracker(a.sources, o)
	if len(a.tracker.Usage().Sources) == 0 {
		a.log.Warn("no runtime was found in the usual places, so nothing is evicted until one is there; name it with the setting runtime, or say that there is none with runtime none")
	}
	return nil
}

func (a *Agent) openMirror(ctx context.Context) error {
	origin := fetch.NewUpstream(fetch.UpstreamOptions{
		Upstreams: a.upstreams.clients, Log: a.log, Metrics: a.metrics,
		Gave: func(w fetch.Want, anonymous bool) { a.mirror.Gave(w, anonymous) }, // nothing is fetched before the mirror is there
	})
	if err := a.openSwarm(ctx, origin); err != nil {
		return err
	}
	a.fetcher = fetch.New(fetch.Options{
		Store: a.store, Index: a.index, Fillers: a.swarm.fillers(origin), Rest: a.swarm.rest(), Origin: origin, Near: a.swarm.passing(false), Last: a.swarm.passing(true),
		Holders: a.holders, Fetched: a.swarm.fetched(), Log: a.log, Metrics: a.metrics,
	})
	a.closers = append(a.closers, func() error { a.fetcher.Close(); return nil })
	a.mirror = mirror.New(mirror.Options{
		Upstreams: a.upstreams.clients, Default: a.upstreams.standard, Fetch: a.fetcher, Store: a.store, Index: a.index,
		TagTTL: time.Duration(a.cfg.TagTTL), StaleMax: time.Duration(a.cfg.StaleMax), GrantTTL: time.Duration(a.cfg.GrantTTL),
		Shares: a.swarm != nil, Peers: a.swarm.peers(), Log: a.log, Metrics: a.metrics, Observer: a.observer,
	})
	if a.swarm != nil {
		a.swarm.engine.SetNames(a.mirror)
	}
	return nil
}

func (a *Agent) openReporter() error {
	if a.cfg.Registry == "" {
		return nil
	}
	labels, err := a.cfg.labels()
	if err != nil {
		return err
	}
	a.reporter, err = report.Open(report.Options{
		Registry: strings.TrimSuffix(a.cfg.Registry, "/"), Node: a.name, Version: a.version, Labels: labels, Dir: a.cfg.Data,
		Usage: a.tracker.Usage, Changed: a.tracker.Changed(), Index: a.index, Cache: a.cacheUsage, Swarm: a.found(),
		TTL: time.Duration(a.cfg.LeaseTTL), Grace: time.Duration(a.cfg.LeaseGrace),
		HTTP: &http.Client{Transport: a.upstreams.transport}, Log: a.log, Metrics: a.metrics,
	})
	if err == nil {
		a.openPreheater()
	}
	return err
}

func (a *Agent) openPreheater() {
	waiting := a.upstreams.transport.Clone()
	waiting.ResponseHeaderTimeout = 0 // the registry answers when there is something to do
	a.preheater = preheat.New(preheat.Options{
		Registry: a.cfg.Registry, Node: a.reporter.Name, Fetch: a.fetcher, Store: a.store,
		Manifest: func(ctx context.Context, upstream string, repo oci.Name, ref oci.Reference) (preheat.Manifest, error) {
			got, err := a.mirror.Ahead(ctx, upstream, repo, ref)
			return preheat.Manifest(got), err
		},
		HTTP: &http.Client{Transport: waiting}, Log: a.log, Metrics: a.metrics,
	})
}

// held is the content store of a containerd as a place to serve from.
type held struct{ *containerd.ContentStore }

// Open returns a blob that containerd has.
func (h held) Open(ctx context.Context, d oci.Digest) (fetch.Content, error) {
	b, err := h.ContentStore.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// holders are the runtimes that hand out what they have.
func (a *Agent) holders() []fetch.Holder {
	sources := a.sources
	if a.detector != nil {
		sources = a.detector.Sources()
	}
	var all []fetch.Holder
	for _, s := range sources {
		if c, ok := s.(interface {
			Content() *containerd.ContentStore
		}); ok {
			all = append(all, held{c.Content()})
		}
	}
	return all
}

// Addr is the address that is listened on.
func (a *Agent) Addr() net.Addr { return a.listener.Addr() }

// Runtimes lists the endpoints of the runtimes that are asked now.
func (a *Agent) Runtimes() []string {
	if a.detector != nil {
		return a.detector.Endpoints()
	}
	return a.cfg.Runtime
}

// Run serves, watches and evicts until ctx ends and what was under way is over.
func (a *Agent) Run(ctx context.Context) error {
	// Before the first request, since a pull may have others evicted for it: the
	// map from containers to blobs must be whole by then.
	if err := a.fetcher.Relearn(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("rebuild the map of images: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	a.ready.Store(true)
	stop := context.AfterFunc(ctx, func() { a.ready.Store(false) })
	defer stop()
	for ln, h := range a.faces() {
		g.Go(func() error {
			return httpserve.Serve(ctx, ln, httpserve.Options{Handler: a.observer.Wrap(h), Grace: time.Duration(a.cfg.ShutdownGrace), Log: a.log})
		})
	}
	if a.swarm != nil {
		g.Go(func() error { return a.swarm.run(ctx) })
	}
	g.Go(func() error { a.fetcher.Verify(ctx); return nil })
	g.Go(func() error { return a.tracker.Run(ctx) })
	if a.detector != nil {
		g.Go(func() error { a.detector.Watch(ctx, a.tracker.Look); return nil })
	}
	g.Go(func() error { return a.evict(ctx) })
	if a.reporter != nil {
		g.Go(func() error {
			if err := a.reporter.Run(ctx); ctx.Err() == nil {
				return err
			}
			return nil
		})
		g.Go(func() error { return a.preheater.Run(ctx) })
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// evict begins when the runtimes have been asked for the first time. A runtime that does not answer keeps what
// it may use for as long as it does not.
func (a *Agent) evict(ctx context.Context) error {
	u, err := a.tracker.Ask(ctx)
	if err != nil {
		return nil // told to end before that
	}
	for _, s := range u.Unknown {
		a.log.Warn("a runtime does not answer; what it may use stays in the cache", "runtime", s.Name, "err", s.Error)
	}
	// What is over the quota since the last run, or since it was lowered, goes now.
	a.evictor.Kick()
	return a.evictor.Run(ctx)
}

// adminAPI makes the admin API of the socket, which no web page reaches.
func (a *Agent) adminAPI() *admin.API {
	return admin.New(admin.Options{
		Index: a.index, Store: a.store, Evictor: a.evictor, Tracker: a.tracker, Namespace: a.upstreams.standard,
		Pinned: a.pinned, Status: a.status, Events: a.latestEvents, Runtimes: a.knownRuntimes, Forget: a.forgetRuntime, Limits: a.Limits, SetLimits: a.SetLimits,
		Swarm: a.swarmStatus, Traces: a.swarm.traces,
		Observer: a.observer, Log: a.log,
	})
}

// pinned has the registry hear of pins, which count as use.
func (a *Agent) pinned() {
	if a.reporter != nil {
		a.reporter.Poke()
	}
}

// Close gives up everything, in the reverse order of opening. Call it when Run
// has returned.
func (a *Agent) Close() error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	a.closers = nil
	return errors.Join(errs...)
}

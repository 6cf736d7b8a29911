// Package registry assembles a registry out of its parts: the blob store, the
// metadata, uploads, the collector, the checker and the faces.
//
// It owns their order: what guards the data (the lock) is taken before what
// uses it, and given up after. It refuses to open data that another process has
// open, and to listen where strangers could reach it unless the configuration
// says so.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/distapi"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/nodes"
	"github.com/fairway-registry/fairway/internal/registry/preheat"
	"github.com/fairway-registry/fairway/internal/registry/upload"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Registry is an open registry that listens.
type Registry struct {
	cfg       Config
	log       *slog.Logger
	metrics   *prometheus.Registry
	listener  net.Listener
	files     *fsblob.Store
	blobs     *blob.Paired // files, as the database's own storage
	store     *meta.Store
	collector *gc.Collector
	checker   *check.Checker
	preheats  *preheat.Preheats
	observer  *httpserve.Observer
	dist      *distapi.Handler
	cors      *httpserve.CORS
	api       *adminapi.API
	ready     atomic.Bool
	closers   []func() error // in the order of opening
}

// Open opens the data, which it creates where there is none, and begins to
// listen. Requests are answered when Run does. Close it in any case.
func Open(ctx context.Context, cfg Config, log *slog.Logger, version adminapi.Version) (*Registry, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Registry{cfg: cfg, log: log, metrics: prometheus.NewRegistry()}
	if err := r.open(ctx, version); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Registry) open(ctx context.Context, version adminapi.Version) error {
	r.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := r.listen(ctx); err != nil {
		return err
	}
	if err := r.openData(ctx); err != nil {
		return err
	}
	level, err := httpserve.ParseLevel(r.cfg.Log.Requests)
	if err != nil {
		return setting.Errorf("log.requests", "%v", err)
	}
	uploads := upload.New(r.store, r.blobs, upload.Options{})
	r.collector = gc.New(r.store, r.blobs, gc.Options{
		Policy: r.cfg.Policy(), Interval: time.Duration(r.cfg.GC.Interval), Workers: r.cfg.GC.Workers, Rate: r.cfg.GC.Rate,
		Busy: uploads.Busy, Upkeep: r.files.Replenish, Log: r.log, Metrics: r.metrics,
	})
	r.closers = append(r.closers, func() error { r.collector.Close(); return nil })
	r.checker = check.New(r.store, r.blobs, check.Options{Window: time.Duration(r.cfg.GC.Window), Log: r.log, Metrics: r.metrics})
	r.observer = httpserve.NewObserver(httpserve.ObserverOptions{Log: r.log, Level: level, Metrics: r.metrics})
	if r.cors, err = httpserve.NewCORS(r.cfg.CORSOrigins); err != nil {
		return setting.Errorf("cors_origins", "%v", err)
	}
	r.dist = distapi.New(r.store, r.blobs, uploads, distapi.Options{Observer: r.observer, Spool: r.files.Temp})
	r.preheats = preheat.New(r.store, preheat.Options{Log: r.log, Metrics: r.metrics})
	r.api = adminapi.New(adminapi.Options{
		Store: r.store, Collector: r.collector, Checker: r.checker, Nodes: nodes.New(r.store, nodes.Options{Grace: time.Duration(r.cfg.GC.Node), Metrics: r.metrics}),
		Preheats: r.preheats, Observer: r.observer, Log: r.log, Version: version,
		Guard: r.guard(),
	})
	return nil
}

func (r *Registry) listen(ctx context.Context) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", r.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", r.cfg.Listen, err)
	}
	r.listener = ln
	r.closers = append(r.closers, func() error {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	if !r.onLoopback() && !r.cfg.AllowAnyone {
		return setting.Errorf("listen", "%s is %s, which can be reached from the network", r.cfg.Listen, ln.Addr())
	}
	return nil
}

// onLoopback reports whether the address that is really listened on is one of
// this machine only, whatever name it was given by.
func (r *Registry) onLoopback() bool {
	addr, ok := r.listener.Addr().(*net.TCPAddr)
	return ok && addr.IP.IsLoopback()
}

func (r *Registry) guard() httpserve.Guard {
	return httpserve.Guard{Loopback: r.onLoopback(), Hosts: r.cfg.Hosts}
}

func (r *Registry) openData(ctx context.Context) error {
	dir, err := r.cfg.storageDir()
	if err != nil {
		return err
	}
	path, err := r.cfg.databasePath()
	if err != nil {
		return err
	}
	owner := fmt.Sprintf("registry on %s, database %s, storage %s", r.listener.Addr(), path, dir)
	r.files, err = fsblob.Open(dir, fsblob.Options{Reserve: int64(r.cfg.Reserve), MinFree: int64(r.cfg.MinFree), FillLater: true, Owner: owner})
	if err != nil {
		return err
	}
	r.closers = append(r.closers, r.files.Close)
	if r.store, err = meta.Open(ctx, meta.Options{Path: path, Release: r.files.Release, Owner: owner, JumpMax: r.cfg.jumpMax().Milliseconds()}); err != nil {
		return err
	}
	if behind := r.store.ClockBehind(); behind > 0 {
		r.log.Warn("the machine's clock is further ahead of the last start than the longest period, and is not believed; "+
			"correct the machine's clock and start again, or set trust_clock for one start if the server was really down for that long",
			"last_time", meta.Time(r.store.Now()), "ahead", (time.Duration(behind) * time.Millisecond).Round(time.Second))
	}
	r.closers = append(r.closers, r.store.Close)
	if r.blobs, err = (pairing{r.store, r.files, path}).pair(ctx); err != nil {
		return err
	}
	// A full disk must not keep the collector from starting.
	if err := r.files.Replenish(); err != nil && !errors.Is(err, blob.ErrFull) {
		return err
	}
	return r.checkSpace()
}

// checkSpace refuses what the disk could never give, and warns where it cannot
// now: uploads are refused until it can.
func (r *Registry) checkSpace() error {
	sp, err := r.files.Space()
	if err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	for _, s := range []struct {
		key  string
		size unit.Size
	}{{"reserve", r.cfg.Reserve}, {"min_free", r.cfg.MinFree}} {
		if int64(s.size) >= sp.Total {
			return setting.Errorf(s.key, "%s is more than the disk has, which is %s", s.size, unit.Size(sp.Total))
		}
	}
	if sp.Reserve == 0 || sp.Free < sp.MinFree {
		r.log.Warn("the disk has too little free space for uploads, which are refused until there is more; see the settings reserve and min_free",
			"free_bytes", sp.Free, "min_free_bytes", sp.MinFree, "reserve_filled", sp.Reserve != 0)
	}
	return nil
}

// Addr is the address that is listened on.
func (r *Registry) Addr() net.Addr { return r.listener.Addr() }

// Run serves, collects and checks until ctx ends and what was under way is
// over.
func (r *Registry) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	r.ready.Store(true)
	stop := context.AfterFunc(ctx, func() { r.ready.Store(false) })
	defer stop()
	g.Go(func() error {
		return httpserve.Serve(ctx, r.listener, httpserve.Options{
			Handler: r.observer.Wrap(r.handler()), Grace: time.Duration(r.cfg.ShutdownGrace), Log: r.log,
		})
	})
	g.Go(func() error { return r.collector.Run(ctx) })
	g.Go(func() error { return r.preheats.Run(ctx) })
	g.Go(func() error { return r.checker.Run(ctx, time.Duration(r.cfg.CheckInterval)) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close gives up everything, in the reverse order of opening. Call it when Run
// has returned.
func (r *Registry) Close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i]())
	}
	r.closers = nil
	return errors.Join(errs...)
}

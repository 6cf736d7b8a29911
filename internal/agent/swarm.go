package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/mirror"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/setting"
)

// swarming is this node's part in a swarm. A nil one is that of a node which
// shares with nobody.
type swarming struct {
	engine   *swarm.Engine
	gossip   *swarm.Gossip
	listener net.Listener

	mu  sync.Mutex
	set swarm.Limits
}

// openSwarm begins to listen for other nodes, if there is a secret to know them by.
func (a *Agent) openSwarm(ctx context.Context, origin fetch.Origin) error {
	if a.cfg.Swarm.Secret == "" {
		return nil
	}
	secret, err := a.readSecret(a.cfg.Swarm.Secret)
	if err != nil {
		return err
	}
	keys, err := swarm.NewKeys(secret, a.name)
	if err != nil {
		return setting.Errorf("swarm.secret", "%s: %v", a.cfg.Swarm.Secret, err)
	}
	if plan.Node(a.name) == plan.Origin {
		return setting.Errorf("name", "%q is what a swarm calls the upstream; give the node another name", a.name)
	}
	s := &swarming{}
	if s.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.Swarm.Listen); err != nil {
		return fmt.Errorf("listen for the swarm on %s: %w", a.cfg.Swarm.Listen, err)
	}
	a.closers = append(a.closers, func() error {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	self, bind, advertise, err := a.addresses(ctx, s.listener)
	if err != nil {
		return err
	}
	s.gossip, err = swarm.NewGossip(swarm.GossipOptions{
		Self: self, Keys: keys, Bind: bind, Advertise: advertise, Join: a.joiner(s), Every: lookEvery, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, s.gossip.Close)
	s.set = a.cfg.Swarm.rates()
	s.engine, err = swarm.New(swarm.Options{
		Self: s.gossip.Self(), Keys: keys, Roster: s.gossip, Store: a.store, Index: a.index, Origin: origin, Allowed: a.allowed,
		Small: int64(a.cfg.Swarm.Small), Limits: s.set, Log: a.log, Metrics: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("open the swarm: %w", err)
	}
	a.swarm = s
	return nil
}

// readSecret reads the cluster's secret from a file that strangers cannot read.
func (a *Agent) readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, setting.Errorf("swarm.secret", "%v", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, setting.Errorf("swarm.secret", "%v", err)
	}
	switch mode := info.Mode().Perm(); {
	case mode&0o007 != 0:
		return nil, setting.Errorf("swarm.secret", "everybody on this machine may use %s (its mode is %v), so it is no secret; chmod 600 it", path, mode)
	case mode&0o070 != 0:
		// Kubernetes gives mounted secrets to a group.
		a.log.Warn("a group may use the swarm's secret", "file", path, "mode", mode.String())
	}
	const most = 64 << 10
	content, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil || len(content) > most {
		return nil, setting.Errorf("swarm.secret", "%s cannot be read, or is far too large: %v", path, err)
	}
	return content, nil
}

// allowed tells whether a private blob may be exchanged with other nodes now.
func (a *Agent) allowed(ns string, d oci.Digest) bool { return a.mirror.Allowed(ns, d) }

// rare tells whether no other node has a blob.
func (a *Agent) rare(d oci.Digest) bool { return a.swarm != nil && a.swarm.engine.Rare(d) }

// evicted has others not ask here for a blob any more.
func (a *Agent) evicted(d oci.Digest) {
	if a.swarm != nil {
		a.swarm.engine.Evicted(d)
	}
}

// fillers are the sources of blobs in the order of their cost.
func (s *swarming) fillers(origin fetch.Filler) []fetch.Filler {
	if s == nil {
		return []fetch.Filler{origin}
	}
	return []fetch.Filler{s.engine, origin}
}

// rest are the sources for when the upstream is down.
func (s *swarming) rest() []fetch.Filler {
	if s == nil {
		return nil
	}
	return []fetch.Filler{s.engine.Rest()}
}

// passing is where what the cache has no room for may come from; last: when the
// upstream gives no answer.
func (s *swarming) passing(last bool) fetch.Origin {
	if s == nil {
		return nil
	}
	return s.engine.Passing(last)
}

// peers are asked when an upstream gives no answer.
func (s *swarming) peers() mirror.Peers {
	if s == nil {
		return nil
	}
	return s.engine
}

// fetched has others find small blobs here; the engine tells of large ones.
func (s *swarming) fetched() func(oci.Digest, int64) {
	if s == nil {
		return nil
	}
	return func(d oci.Digest, size int64) {
		if size <= oci.ManifestMax {
			s.engine.KnowsContent(d)
		}
	}
}

// run takes part until ctx ends; then the other nodes hear a goodbye.
func (s *swarming) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.engine.Run(ctx, s.listener) })
	g.Go(func() error { return s.gossip.Run(ctx) })
	return g.Wait()
}

func (s Swarm) rates() swarm.Limits {
	return swarm.Limits{Upload: int64(s.Upload), Download: int64(s.Download), PeerUpload: int64(s.PeerUpload), PeerDownload: int64(s.PeerDownload)}
}

func (s *swarming) limits() *nodeapi.SwarmLimits {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &nodeapi.SwarmLimits{Upload: s.set.Upload, Download: s.set.Download, PeerUpload: s.set.PeerUpload, PeerDownload: s.set.PeerDownload}
}

// setLimits changes what is given, at once.
func (s *swarming) setLimits(r nodeapi.SwarmLimitsRequest) error {
	if r == (nodeapi.SwarmLimitsRequest{}) {
		return nil
	}
	if s == nil {
		return fault.New(fault.Invalid, "this node is in no swarm, since no swarm.secret is set")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.set
	for _, l := range []struct {
		to   *int64
		from *int64
	}{{&set.Upload, r.Upload}, {&set.Download, r.Download}, {&set.PeerUpload, r.PeerUpload}, {&set.PeerDownload, r.PeerDownload}} {
		if l.from == nil {
			continue
		}
		if *l.from < 0 {
			return fault.New(fault.Invalid, "a limit of the swarm is below zero; 0 is none")
		}
		*l.to = *l.from
	}
	s.set = set
	s.engine.SetLimits(set)
	return nil
}

// lookEvery is how often it is looked whether other nodes have to be found.
const lookEvery = 2 * time.Second

package agent

import (
	"context"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/evict"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// statusWait bounds how long a status waits for the runtimes.
const statusWait = 2 * time.Second

// status is the agent as its owner sees it.
func (a *Agent) status(ctx context.Context) (nodeapi.Status, error) {
	mirrors, err := a.cfg.Mirrors()
	if err != nil {
		return nodeapi.Status{}, err
	}
	s := nodeapi.Status{
		Node: a.name, Version: a.version, StartedAt: a.began.UTC(), Uptime: time.Since(a.began),
		Registry: ociclient.Shown(a.cfg.Registry), Listen: a.listener.Addr().String(), Upstreams: a.upstreams.clients.Names(), Mirrors: mirrors,
		Cache: a.cacheUsage(), Runtimes: a.runtimes(),
	}
	// The last pass may be long ago, and after the start there was none.
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	if p, err := a.evictor.Plan(ctx); err == nil {
		s.Cache.ActiveBytes = p.Tiers[evict.Active].Bytes
	}
	if a.reporter != nil {
		s.Report = a.reporter.Status()
	}
	s.Peers = a.swarm.peerStatus()
	return s, nil
}

// cacheUsage is what the cache holds. What of it is active is as of the last
// pass of the eviction.
func (a *Agent) cacheUsage() nodeapi.Cache {
	u := a.store.Usage()
	return nodeapi.Cache{
		UsedBytes: u.Used - u.Claimed, QuotaBytes: u.Quota, Blobs: u.Blobs, DiskFreeBytes: u.FSFree, DiskBytes: u.FSTotal,
		ActiveBytes: a.evictor.Last().Tiers[nodeapi.TierActive].Bytes,
	}
}

// runtimes tells how the runtimes answer.
func (a *Agent) runtimes() []nodeapi.Runtime {
	u, now := a.tracker.Usage(), time.Now()
	list := make([]nodeapi.Runtime, 0, len(u.Sources))
	for _, s := range u.Sources {
		list = append(list, runtimeOf(s, now))
	}
	return list
}

func runtimeOf(s inuse.SourceStatus, now time.Time) nodeapi.Runtime {
	r := nodeapi.Runtime{Name: s.Name, Answers: s.Up, Error: s.Error, Containers: s.Containers, Images: s.Images, AgeSeconds: -1}
	if !s.Answered.IsZero() {
		r.AgeSeconds = int64(max(now.Sub(s.Answered), 0).Seconds())
	}
	return r
}

// latestEvents are the evictor's and those of the log, newest first.
func (a *Agent) latestEvents() []nodeapi.Event { return a.events.latest(a.evictor.Events()) }

package agent

import (
	"context"
	"slices"
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

// knownRuntimes tells which runtimes the agent knows, and where.
func (a *Agent) knownRuntimes() []nodeapi.KnownRuntime {
	u, now := a.tracker.Usage(), time.Now()
	list := make([]nodeapi.KnownRuntime, 0, len(u.Sources))
	for _, s := range u.Sources {
		k := nodeapi.KnownRuntime{Runtime: runtimeOf(s, now), State: nodeapi.RuntimeUnasked}
		switch {
		case s.Up:
			k.State = nodeapi.RuntimeAnswers
		case s.Silent():
			k.State = nodeapi.RuntimeSilent
		}
		var seen time.Time
		k.Endpoint, seen = a.endpointOf(a.tracker.Source(s.Name))
		if !s.Answered.IsZero() {
			seen = s.Answered
		}
		if !seen.IsZero() {
			seen = seen.UTC()
			k.SeenAt = &seen
		}
		list = append(list, k)
	}
	return list
}

// endpointOf is where a source asks, and when it answered at a former start.
func (a *Agent) endpointOf(source inuse.Source) (endpoint string, seen time.Time) {
	if i := slices.Index(a.sources, source); i >= 0 {
		return a.cfg.Runtime[i], time.Time{}
	}
	if a.detector != nil && source != nil {
		return a.detector.Endpoint(source)
	}
	return "", time.Time{}
}

// forgetRuntime forgets a runtime that is gone for good, and returns what was known
// of it. Nothing is kept for it from then on, here and at the registry.
func (a *Agent) forgetRuntime(ctx context.Context, name string) (nodeapi.KnownRuntime, error) {
	forgotten := nodeapi.KnownRuntime{Runtime: nodeapi.Runtime{Name: name}}
	for _, k := range a.knownRuntimes() {
		if k.Name == name {
			forgotten = k
		}
	}
	if err := a.tracker.Forget(ctx, name); err != nil {
		return nodeapi.KnownRuntime{}, err
	}
	a.evictor.Kick()
	return forgotten, nil
}

// latestEvents are the evictor's and those of the log, newest first.
func (a *Agent) latestEvents() []nodeapi.Event { return a.events.latest(a.evictor.Events()) }

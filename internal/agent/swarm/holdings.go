package swarm

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Tuning of what leaders are told of the cache.
const (
	toldRanks    = 2 // who leads a blob, and who does when that one is gone
	refreshEvery = 20 * time.Minute
	refreshFirst = 5 * time.Second
	// After a change of the roster nodes wait for a random part of tellWithin and
	// tellEach a member, so that a newcomer hears at most some 500 of them a second
	// and changes that come together are told together.
	tellAfter  = 200 * time.Millisecond
	tellWithin = 500 * time.Millisecond
	tellEach   = 2 * time.Millisecond
	// tellRest times what the last round took is the least pause before the next.
	tellRest = 9
	// A leader that is a member but does not answer is tried again after
	// unwellFor, doubled this often.
	tellDoublings = 6
)

// rouse has those told whose ranks changed.
func (e *Engine) rouse() {
	select {
	case e.roused <- struct{}{}:
	default:
	}
}

// noteUntold has a leader told again of all that it should know. One that is
// noted already has refresh come back at its own pace.
func (e *Engine) noteUntold(n plan.Node) {
	e.mu.Lock()
	already := e.untold[n]
	e.untold[n] = true
	e.mu.Unlock()
	if !already {
		e.rouse()
	}
}

// takeUntold returns who was not reached since it was called last.
func (e *Engine) takeUntold() map[plan.Node]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	untold := e.untold
	e.untold = map[plan.Node]bool{}
	return untold
}

// refresh tells leaders what this node holds: soon after the start, soon after
// somebody joins, comes back or leaves, as far as that changes who leads, and
// all of it well before their records expire.
func (e *Engine) refresh(ctx context.Context) {
	told := &members{} // the view of which all leaders were told
	whole := time.Now().Add(refreshFirst)
	due := whole
	var rested, retry time.Time // no round before, nobody tried again before
	failures := 0
	timer := time.NewTimer(refreshFirst)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(due))
		select {
		case <-e.roused:
			due = earlier(due, later(rested, time.Now().Add(e.gathering())))
			continue
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		if !began.Before(whole) {
			told, whole = &members{}, began.Add(refreshEvery-rand.N(refreshEvery/4))
		}
		if !began.Before(retry) {
			told = told.without(e.takeUntold())
		}
		view := e.seen()
		missed, err := e.tellHoldings(ctx, view, told)
		told, due = view, whole
		if err != nil && ctx.Err() == nil {
			e.log.Warn("the swarm was not told what is in the cache", "err", err)
			told, missed = &members{}, true
		}
		rested = time.Now().Add(tellRest * time.Since(began))
		if !missed {
			failures = 0
			continue
		}
		retry = later(rested, time.Now().Add(unwellFor<<min(failures, tellDoublings)))
		due = earlier(due, retry)
		failures++
	}
}

// gathering is how long this node waits after a change.
func (e *Engine) gathering() time.Duration {
	return tellAfter + rand.N(tellWithin+tellEach*time.Duration(len(e.seen().list)))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// without returns the view as if some had never joined.
func (m *members) without(some map[plan.Node]bool) *members {
	list := slices.DeleteFunc(slices.Clone(m.list), func(n plan.Node) bool { return some[n] })
	return &members{list: list, peers: m.peers, hosts: m.hosts}
}

// untold returns who is among a key's first ranks and was not, or was another
// process, when everybody of the view told was told.
func (m *members) untold(key string, told *members) []plan.Node {
	before := plan.Rank(key, told.list, toldRanks)
	return slices.DeleteFunc(plan.Rank(key, m.list, toldRanks), func(n plan.Node) bool {
		return slices.Contains(before, n) && told.peers[n] == m.peers[n]
	})
}

// tellHoldings groups what is here by the leaders that do not know it yet. missed
// reports whether one of them was not reached.
func (e *Engine) tellHoldings(ctx context.Context, view, told *members) (missed bool, err error) {
	batches := map[plan.Node][]map[string]int{}
	add := func(key string, pieces int) {
		for _, to := range view.untold(key, told) {
			list := batches[to]
			if len(list) == 0 || len(list[len(list)-1]) == maxHolding {
				list = append(list, map[string]int{})
				batches[to] = list
			}
			list[len(list)-1][key] = pieces
		}
	}
	err = e.o.Store.Each(ctx, func(info piece.Info) error {
		switch {
		case info.State != index.Complete:
		case info.Size < e.o.Small:
			add(contentKey(info.Digest), 1)
		default:
			add(string(info.Digest), int((info.Size+piece.Size-1)/piece.Size))
		}
		return nil
	})
	if err == nil && e.names != nil {
		err = e.names.Each(ctx, func(ns string, repo oci.Name, tag oci.Tag) {
			add(question{Namespace: ns, Repo: repo, Tag: tag}.key(), 1)
		})
	}
	for to, list := range batches {
		for _, batch := range list {
			if !e.tellHolding(ctx, to, batch) {
				missed = true
				break
			}
		}
	}
	return missed, err
}

// tellHolding reports whether the leader was reached.
func (e *Engine) tellHolding(ctx context.Context, to plan.Node, batch map[string]int) bool {
	h := holding{Zone: e.o.Self.Zone, Blobs: batch}
	var reply holders
	var err error
	if to == e.o.Self.Node {
		reply, err = e.hold(to, h)
	} else {
		ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
		defer cancel()
		body, postErr := e.post(ctx, to, "/swarm/v1/holding", h)
		if postErr != nil {
			e.noteUnwell(to)
			e.noteUntold(to)
			return false
		}
		defer body.Close()
		err = decode(body, maxAnnounce, &reply)
	}
	if err != nil {
		e.log.Debug("a leader did not take in what is in the cache", "leader", to, "err", err)
		return true
	}
	for blob := range batch {
		if n, ok := reply.Holders[blob]; ok && e.leaderOf(blob) == to {
			e.noteCopies(oci.Digest(blob), n)
		}
	}
	return true
}

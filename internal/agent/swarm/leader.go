package swarm

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Tuning of the dealings with leaders.
const (
	leaderTimeout = 3 * time.Second
	begAtOnce     = 8               // members that are asked without a hint, at once
	begMost       = 32              // and in all
	unwellFor     = 5 * time.Second // a leader that did not answer is passed over
)

// leaderOf returns the first by rank of those that answered lately: everybody
// comes to the same one soon, and to the next when it is gone, however many are
// gone at once. Who can reach nobody leads itself.
func (e *Engine) leaderOf(blob string) plan.Node {
	e.mu.Lock()
	defer e.mu.Unlock()
	well := e.view.list
	if len(e.unwell) > 0 {
		now := time.Now()
		maps.DeleteFunc(e.unwell, func(_ plan.Node, until time.Time) bool { return now.After(until) })
		well = slices.DeleteFunc(slices.Clone(well), func(n plan.Node) bool {
			_, ill := e.unwell[n]
			return ill && n != e.o.Self.Node
		})
	}
	return plan.Rank(blob, well, 1)[0] // this node is always among them
}

// health returns the present view, and whether no leader of it is passed over.
func (e *Engine) health() (view *members, well bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.view, len(e.unwell) == 0
}

func (e *Engine) noteUnwell(n plan.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unwell[n] = time.Now().Add(unwellFor)
}

// followLeader notes that another node leads now. d.mu is held.
func (d *download) followLeader(now time.Duration) {
	view, well := d.e.health()
	if well && view == d.ranked {
		return // to rank thousands of members at each step would cost more than pieces do
	}
	d.ranked = nil
	if well {
		d.ranked = view
	}
	n := d.e.leaderOf(string(d.b.Digest()))
	if n != d.leader && d.leader != "" {
		d.plan.Moved(now)
	}
	d.leader = n
}

// announce tells the leader what the schedule wants it to know.
func (d *download) announce(a plan.Announce) {
	d.mu.Lock()
	to := d.leader
	d.mu.Unlock()
	reply, err := d.e.tell(d.ctx, to, a)
	now := d.e.now()
	if err != nil {
		if d.ctx.Err() == nil {
			d.e.log.Debug("a leader does not answer", "digest", a.Blob, "leader", to, "err", err)
			d.e.noteUnwell(to)
		}
		d.mu.Lock()
		d.plan.Unanswered(now, 50*time.Millisecond)
		d.mu.Unlock()
		d.poke()
		return
	}
	view := d.e.seen()
	d.mu.Lock()
	d.plan.Replied(now, reply)
	d.watchAll(view)
	askOthers := !d.asked && reply.Members <= 1 && len(view.list) > 1
	d.asked = true
	if !askOthers && !d.searching {
		d.searched = true
	}
	d.searching = d.searching || askOthers
	d.mu.Unlock()
	d.e.noteCopies(d.b.Digest(), reply.Holders)
	if askOthers {
		d.talk.Go(func() { d.askRanks(a, to, view) })
	}
	d.poke()
}

// askRanks looks for holders at the other ranks: the leader may have joined the
// cluster after they announced themselves.
func (d *download) askRanks(a plan.Announce, not plan.Node, view *members) {
	a.Want, a.Got, a.Back, a.Starved, a.Peers = 0, nil, nil, false, plan.MaxPeers
	for _, n := range plan.Rank(a.Blob, view.list, plan.Ranks) {
		if n == not {
			continue
		}
		reply, err := d.e.tell(d.ctx, n, a)
		if err != nil {
			continue // the leader itself has answered; this was a second chance
		}
		d.mu.Lock()
		for _, m := range reply.Peers {
			d.plan.AddPeer(m.Node, view.distance(d.e.o.Self, m.Node))
		}
		d.watchAll(view)
		d.mu.Unlock()
		d.poke()
	}
	d.mu.Lock()
	d.searched = true
	d.mu.Unlock()
	d.poke()
}

// askMembers watches members at random that were not asked yet, as the last
// thing to do before a download fails: who holds the blob may not have told its
// leader. Who does not have it says so and is no neighbour any more. false:
// nobody is left, or enough were asked for long enough. d.mu is held.
func (d *download) askMembers(now time.Duration) bool {
	view := d.e.seen()
	if d.begged == nil {
		d.begged, d.beggedAt = map[plan.Node]bool{d.e.o.Self.Node: true}, now
	}
	if now-d.beggedAt > patience {
		return false
	}
	asked := 0
	for _, i := range rand.Perm(len(view.list)) {
		n := view.list[i]
		if asked == begAtOnce || len(d.begged) > begMost {
			break
		}
		if !d.begged[n] && d.e.bannedUntil(n) == 0 {
			d.begged[n] = true
			d.plan.AddPeer(n, view.distance(d.e.o.Self, n))
			asked++
		}
	}
	d.watchAll(view)
	return len(d.plan.Peers()) > 0
}

// tell sends an announcement to a leader, which may be this node.
func (e *Engine) tell(ctx context.Context, to plan.Node, a plan.Announce) (plan.Reply, error) {
	if to == e.o.Self.Node {
		return e.lead(a)
	}
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	var reply plan.Reply
	body, err := e.post(ctx, to, "/swarm/v1/announce", a)
	if err != nil {
		return reply, err
	}
	defer body.Close()
	return reply, decode(body, maxAnnounce, &reply)
}

// announceDone tells a blob's first ranks that this node holds all of it.
func (e *Engine) announceDone(blob string, pieces int) {
	leader := e.leaderOf(blob)
	for _, to := range plan.Rank(blob, e.seen().list, toldRanks) {
		reply, err := e.tell(e.stop, to, plan.Announce{Blob: blob, Node: e.o.Self.Node, Zone: e.o.Self.Zone, Pieces: pieces, Done: true})
		switch {
		case err != nil:
			e.noteUnwell(to)
			e.noteUntold(to)
		case to == leader:
			e.noteCopies(oci.Digest(blob), reply.Holders)
		}
	}
}

// leavingMax bounds how many evictions wait for the leaders to be told.
const leavingMax = 1 << 16

// Evicted tells the first ranks that a blob is not here any more, whether they
// know it by its pieces or as small content. One goroutine tells them of all, one by
// one: a pass evicts thousands at once. Of what does not fit the records expire.
func (e *Engine) Evicted(d oci.Digest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.copies, d)
	if len(e.leaving) >= leavingMax {
		return
	}
	if e.leaving = append(e.leaving, d); !e.telling {
		e.telling = true
		e.work.Go(e.tellLeaving)
	}
}

// tellLeaving tells of evictions until none is left.
func (e *Engine) tellLeaving() {
	for {
		e.mu.Lock()
		all := e.leaving
		e.leaving = nil
		e.telling = len(all) > 0 && e.stop.Err() == nil
		more := e.telling
		e.mu.Unlock()
		if !more {
			return
		}
		silent := map[plan.Node]bool{}
		for _, d := range all {
			// What has come back meanwhile was announced, and is not to be denied now.
			if _, err := e.o.Store.Info(e.stop, d); errors.Is(err, fault.NotFound) {
				e.tellEvicted(d, silent)
			}
		}
	}
}

// tellEvicted tells the leaders of one blob, but none that did not answer a moment ago.
func (e *Engine) tellEvicted(d oci.Digest, silent map[plan.Node]bool) {
	for _, key := range []string{string(d), contentKey(d)} {
		// Leaving counts for all records of the key, of however many pieces.
		a := plan.Announce{Blob: key, Node: e.o.Self.Node, Pieces: 1, Leaving: true}
		for _, to := range plan.Rank(key, e.seen().list, toldRanks) {
			if silent[to] || e.stop.Err() != nil {
				continue
			}
			if _, err := e.tell(e.stop, to, a); err != nil {
				silent[to] = true
				e.log.Debug("a leader was not told of an eviction; its record expires", "digest", d, "leader", to, "err", err)
			}
		}
	}
}

func (e *Engine) noteCopies(d oci.Digest, holders int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.copies) > 100_000 {
		clear(e.copies) // it is a cache of what leaders said
	}
	e.copies[d] = holders
}

// Rare reports whether, as far as its leader said lately, no other node holds
// the blob. What is not known is not rare.
func (e *Engine) Rare(d oci.Digest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, known := e.copies[d]
	return known && n <= 1 && len(e.view.list) > 1
}

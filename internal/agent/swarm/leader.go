package swarm

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Tuning of the dealings with leaders.
const (
	leaderTimeout = 3 * time.Second
	unwellFor     = 5 * time.Second // a leader that did not answer is passed over
	refreshEvery  = 20 * time.Minute
	refreshFirst  = 5 * time.Second
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

func (e *Engine) noteUnwell(n plan.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unwell[n] = time.Now().Add(unwellFor)
}

// followLeader notes that another node leads now. d.mu is held.
func (d *download) followLeader(now time.Duration) {
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

// announceDone tells a blob's leader that this node holds all of it.
func (e *Engine) announceDone(blob string, pieces int) {
	to := e.leaderOf(blob)
	reply, err := e.tell(e.stop, to, plan.Announce{Blob: blob, Node: e.o.Self.Node, Zone: e.o.Self.Zone, Pieces: pieces, Done: true})
	if err != nil {
		e.noteUnwell(to)
		return // the next refresh tells whoever leads then
	}
	e.noteCopies(oci.Digest(blob), reply.Holders)
}

// Evicted tells the leader that a blob is not here any more.
func (e *Engine) Evicted(d oci.Digest) {
	e.mu.Lock()
	delete(e.copies, d)
	e.mu.Unlock()
	e.work.Go(func() {
		to := e.leaderOf(string(d))
		a := plan.Announce{Blob: string(d), Node: e.o.Self.Node, Pieces: 1, Leaving: true}
		if _, err := e.tell(e.stop, to, a); err != nil {
			e.log.Debug("a leader was not told of an eviction; its record expires", "digest", d, "leader", to, "err", err)
		}
	})
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

// refresh tells leaders what this node holds: soon after the start, and then
// well before their records expire.
func (e *Engine) refresh(ctx context.Context) {
	timer := time.NewTimer(refreshFirst)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if err := e.tellHoldings(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("the swarm was not told what is in the cache", "err", err)
		}
		timer.Reset(refreshEvery - rand.N(refreshEvery/4))
	}
}

// tellHoldings groups the blobs of the cache by their leaders.
func (e *Engine) tellHoldings(ctx context.Context) error {
	batches := map[plan.Node][]map[string]int{}
	add := func(key string, pieces int) {
		to := e.leaderOf(key)
		list := batches[to]
		if len(list) == 0 || len(list[len(list)-1]) == maxHolding {
			list = append(list, map[string]int{})
			batches[to] = list
		}
		list[len(list)-1][key] = pieces
	}
	err := e.o.Store.Each(ctx, func(info piece.Info) error {
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
			e.tellHolding(ctx, to, batch)
		}
	}
	return err
}

func (e *Engine) tellHolding(ctx context.Context, to plan.Node, batch map[string]int) {
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
			return
		}
		defer body.Close()
		err = decode(body, maxAnnounce, &reply)
	}
	if err != nil {
		e.log.Debug("a leader did not take in what is in the cache", "leader", to, "err", err)
		return
	}
	for blob := range batch {
		if n, ok := reply.Holders[blob]; ok {
			e.noteCopies(oci.Digest(blob), n)
		}
	}
}

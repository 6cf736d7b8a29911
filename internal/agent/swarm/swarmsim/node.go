package swarmsim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

type transferKey struct {
	to    plan.Node
	piece int
}

// node is one agent: a Download, its Uploads, and the Directory it may come to lead.
type node struct {
	s         *sim
	i         int
	name      plan.Node
	up, down  *link
	dl        *plan.Download
	uploads   *plan.Uploads
	dir       *plan.Directory
	watching  map[plan.Node]bool
	watchers  []*node
	fresh     []int // pieces that the watchers have not heard of
	flushing  bool
	stepping  bool
	dead      bool
	stall     bool
	transfers map[transferKey]*transfer
	most, led int
	follows   *node // the leader asked last
	wakeAt    time.Duration
}

func (n *node) start() {
	if n.dead {
		return
	}
	o := plan.Options{Blob: n.s.blob, Self: n.name, Pieces: n.s.Pieces, Now: n.s.now, Rand: rand.New(rand.NewPCG(n.s.Seed, uint64(n.i)))}
	if n.stall {
		o.Have = plan.FullBits(n.s.Pieces)
	}
	n.dl = plan.NewDownload(o)
	if n.stall {
		n.announce(plan.Announce{Blob: n.s.blob, Node: n.name, Pieces: n.s.Pieces, Done: true, Have: o.Have})
		return
	}
	n.step()
}

func (n *node) die() {
	n.dead = true
	n.up.down, n.down.down = true, true
	n.s.alive = slices.DeleteFunc(n.s.alive, func(x plan.Node) bool { return x == n.name })
	n.s.chief = nil
	// The neighbours' connections break at once; the gossip needs a second.
	for _, w := range n.s.nodes {
		if w.dl == nil || w.dead || !w.watching[n.name] {
			continue
		}
		n.s.after(n.s.Latency, func() { w.dl.DropPeer(n.name); w.soon() })
	}
	n.s.after(time.Second, func() {
		for _, w := range n.s.nodes {
			w.dir.Gone(n.name)
		}
	})
}

// soon runs step shortly, once for all that happens meanwhile.
func (n *node) soon() {
	if n.stepping || n.dead {
		return
	}
	n.stepping = true
	n.s.after(time.Millisecond, func() { n.stepping = false; n.step() })
}

func (n *node) step() {
	if n.dead || n.dl == nil || n.dl.Done() {
		return
	}
	now := n.s.now
	orders, late := n.dl.Next(now)
	for _, c := range late {
		n.cancel(c)
	}
	for _, o := range orders {
		n.order(o)
	}
	if l := n.s.leader(); l != n.follows {
		if n.follows != nil {
			n.dl.Moved(now)
		}
		n.follows = l
	}
	if a, ok := n.dl.Announce(now); ok {
		n.announce(a)
	}
	if wake := n.dl.Wake(now); n.wakeAt <= now || wake < n.wakeAt {
		n.wakeAt = wake
		n.s.after(wake-now, func() {
			if n.wakeAt == wake {
				n.wakeAt = 0
				n.step()
			}
		})
	}
}

func (n *node) order(o plan.Order) {
	if o.From == plan.Origin {
		n.fromOrigin(o.Pieces)
		return
	}
	p := n.s.byName[o.From]
	n.s.res.Asks++
	progress := n.dl.Progress()
	n.s.after(n.s.Latency, func() {
		for _, i := range o.Pieces {
			switch {
			case p.dead:
				n.s.after(n.s.Latency, func() { n.dl.Failed(n.s.now, i, p.name, plan.Broken); n.soon() })
			case p.stall:
			case !p.dl.Have().Has(i):
				n.s.after(n.s.Latency, func() { n.dl.Failed(n.s.now, i, p.name, plan.Missing); n.soon() })
			case !p.uploads.Push(&plan.Ask{Peer: n.name, Piece: i, At: n.s.now, Progress: progress}):
				n.s.after(n.s.Latency, func() { n.dl.Failed(n.s.now, i, p.name, plan.Busy); n.soon() })
			}
		}
		p.pump()
	})
}

// pump starts what the upload queue gives.
func (n *node) pump() {
	for a := n.uploads.Pop(); a != nil; a = n.uploads.Pop() {
		to := n.s.byName[a.Peer]
		t := &transfer{from: n.up, to: to.down, quanta: n.s.Quanta, size: n.s.PieceSize / n.s.Quanta}
		key := transferKey{a.Peer, a.Piece}
		n.transfers[key] = t
		t.done = func(ok bool) {
			delete(n.transfers, key)
			n.uploads.Done(a)
			if ok {
				load := n.uploads.Load()
				to.dl.Loaded(n.name, load)
				to.got(a.Piece, n.name)
			}
			n.pump()
		}
		n.up.start(t)
	}
}

// fromOrigin reads a run in order, piece after piece.
func (n *node) fromOrigin(run []int) {
	if n.s.origin.down {
		n.s.after(2*n.s.Latency, func() {
			for _, i := range run {
				n.dl.Failed(n.s.now, i, plan.Origin, plan.Broken)
			}
			n.dl.RunEnded()
			n.soon()
		})
		return
	}
	var next func(k int)
	next = func(k int) {
		if k == len(run) || n.dead {
			n.dl.RunEnded()
			n.soon()
			return
		}
		t := &transfer{from: n.s.origin, to: n.down, quanta: n.s.Quanta, size: n.s.PieceSize / n.s.Quanta}
		t.done = func(bool) {
			n.got(run[k], plan.Origin)
			next(k + 1)
		}
		n.s.origin.start(t)
	}
	n.s.after(2*n.s.Latency, func() { next(0) })
}

func (n *node) got(piece int, from plan.Node) {
	if n.dead {
		return
	}
	if n.dl.Have().Has(piece) {
		n.s.res.Duplicates++
	}
	fresh := !n.dl.Have().Has(piece)
	for _, c := range n.dl.Got(n.s.now, piece, from) {
		n.cancel(c)
	}
	if fresh {
		n.fresh = append(n.fresh, piece)
		n.flush()
		if piece == 0 {
			n.s.res.First[n.i] = n.s.now
		}
		if n.s.Progress != nil {
			n.s.Progress(n.s.now, n.i)
		}
	}
	if n.dl.Done() && n.s.res.Finish[n.i] == 0 {
		n.s.res.Finish[n.i] = n.s.now
		if n.s.Kill == nil || n.s.Kill(n.i) < 0 {
			n.s.left--
		}
		n.announce(plan.Announce{Blob: n.s.blob, Node: n.name, Pieces: n.s.Pieces, Done: true, Have: n.dl.Have().Clone()})
	}
	n.soon()
}

func (n *node) cancel(c plan.Cancel) {
	if c.From == plan.Origin {
		return // the run goes on; what comes is dropped
	}
	p := n.s.byName[c.From]
	n.s.after(n.s.Latency, func() {
		p.uploads.Withdraw(func(a *plan.Ask) bool { return a.Peer == n.name && a.Piece == c.Piece })
		if t := p.transfers[transferKey{n.name, c.Piece}]; t != nil {
			t.from.stop(t)
		}
	})
}

// flush tells the watchers of new pieces after they were gathered for a while.
func (n *node) flush() {
	if n.flushing {
		return
	}
	n.flushing = true
	n.s.after(plan.NoticeEvery(len(n.watchers)), func() {
		n.flushing = false
		fresh, load := n.fresh, n.uploads.Load()
		n.fresh = nil
		for _, w := range n.watchers {
			if w.dead || w.dl.Done() || n.dead {
				continue
			}
			n.s.res.Haves++
			n.s.after(n.s.Latency, func() {
				for _, i := range fresh {
					w.dl.Gained(n.name, i)
				}
				w.dl.Loaded(n.name, load)
				w.soon()
			})
		}
	})
}

// meet watches neighbours that the Download has learnt of.
func (n *node) meet() {
	names := n.dl.Peers()
	n.most = max(n.most, len(names))
	for _, name := range names {
		if n.watching[name] {
			continue
		}
		n.watching[name] = true
		p := n.s.byName[name]
		n.s.after(2*n.s.Latency, func() {
			if p.dead || p.dl == nil {
				n.dl.DropPeer(name)
				return
			}
			p.watchers = append(p.watchers, n)
			have, load := p.dl.Have().Clone(), p.uploads.Load()
			n.s.after(n.s.Latency, func() {
				n.dl.Holds(name, have)
				n.dl.Loaded(name, load)
				n.soon()
			})
			if !p.dl.Done() && !p.watching[n.name] && len(p.dl.Peers()) < plan.MaxPeers {
				p.dl.AddPeer(n.name, plan.Elsewhere)
				p.meet()
			}
		})
	}
}

// announce tells the leader, and takes its answer in.
func (n *node) announce(a plan.Announce) {
	l := n.s.leader()
	lag := n.s.Latency
	if l == n {
		lag = 0
	}
	n.s.after(lag, func() {
		if l.dead {
			n.s.after(lag, func() { n.dl.Unanswered(n.s.now, 50*time.Millisecond); n.soon() })
			return
		}
		r, err := l.dir.Announce(n.s.now, a)
		if err != nil {
			panic(err)
		}
		l.led++
		n.s.res.Announces++
		n.s.res.DirBytes += size(a) + size(r)
		n.s.after(lag, func() {
			if n.dead || a.Done {
				return
			}
			n.dl.Replied(n.s.now, r)
			n.meet()
			n.soon()
		})
	})
}

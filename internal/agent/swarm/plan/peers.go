package plan

import (
	"math/bits"
	"time"
)

// peer is one neighbour that serves pieces of the blob.
type peer struct {
	id      Node
	near    int // 0 same host, 1 same zone, 2 elsewhere
	have    Bits
	load    int // pieces in its queue, as it said last
	flight  int
	window  float64
	latency time.Duration // smoothed
	until   time.Duration // not before
	strikes int
	busy    int           // refusals in a row
	struck  time.Duration // when the last strike fell
	at      int           // index in Download.list
}

// Distances of a neighbour.
const (
	SameHost = iota
	SameZone
	Elsewhere
)

// AddPeer makes a neighbour known; one that is known already only moves nearer or farther.
func (d *Download) AddPeer(n Node, near int) {
	if n == d.self || n == Origin || d.solo {
		return
	}
	if p := d.peers[n]; p != nil {
		p.near = near
		return
	}
	p := &peer{id: n, near: near, have: NewBits(d.n), window: 2, at: len(d.list)}
	d.peers[n] = p
	d.list = append(d.list, p)
}

// DropPeer forgets a neighbour; what it was asked for becomes orderable again.
func (d *Download) DropPeer(n Node) {
	p := d.peers[n]
	if p == nil {
		return
	}
	for _, piece := range append([]int(nil), d.flying...) {
		fl := d.flights(piece)
		for k := range fl {
			if f := &fl[k]; f.on && f.p == p {
				d.drop(f)
			}
		}
		d.release(piece)
	}
	p.have.Each(func(i int) { d.avail[i]-- })
	last := d.list[len(d.list)-1]
	d.list[p.at], last.at = last, p.at
	d.list = d.list[:len(d.list)-1]
	delete(d.peers, n)
}

// Peers returns the names of the neighbours.
func (d *Download) Peers() []Node {
	names := make([]Node, len(d.list))
	for i, p := range d.list {
		names[i] = p.id
	}
	return names
}

// Holds replaces what is known of a neighbour's pieces.
func (d *Download) Holds(n Node, pieces Bits) {
	p := d.peers[n]
	if p == nil {
		return
	}
	p.have.Each(func(i int) { d.avail[i]-- })
	p.have = pieces.Clone().fit(d.n)
	p.have.Each(func(i int) { d.avail[i]++ })
}

// Gained notes that a neighbour has one more piece.
func (d *Download) Gained(n Node, piece int) {
	p := d.peers[n]
	if p == nil || piece < 0 || piece >= d.n || p.have.Has(piece) {
		return
	}
	p.have.Set(piece)
	d.avail[piece]++
}

// Loaded notes how many pieces wait in a neighbour's queue.
func (d *Download) Loaded(n Node, load int) {
	if p := d.peers[n]; p != nil {
		p.load = max(0, load)
	}
}

// Wants reports whether a neighbour lacks a piece, so that it pays to tell it.
func (d *Download) Wants(n Node, piece int) bool {
	p := d.peers[n]
	return p == nil || !p.have.Has(piece)
}

func (d *Download) lose(p *peer, piece int) {
	if p.have.Has(piece) {
		p.have.Clear(piece)
		d.avail[piece]--
	}
}

// Banned keeps a neighbour from being asked until the time given.
func (d *Download) Banned(n Node, until time.Duration) {
	if p := d.peers[n]; p != nil {
		p.until = max(p.until, until)
	}
}

// strike backs off from a neighbour that failed an order made at the time
// given; orders that were under way together count once. The leader hears of
// those that broke, that never delivered, or that fail again.
func (d *Download) strike(now, at time.Duration, p *peer, broken bool) {
	if p.strikes > 0 && at <= p.struck {
		return
	}
	if broken || p.latency == 0 || p.strikes > 0 {
		d.leader.lost = appendNode(d.leader.lost, p.id)
	}
	p.until = max(p.until, now+backoff(p.strikes))
	p.struck = now
	p.strikes++
	p.window = 1
}

func (p *peer) delivered(took time.Duration) {
	if p.latency == 0 {
		p.latency = took
	}
	p.latency += (took - p.latency) / 4
	p.strikes, p.busy = 0, 0
	switch {
	case took < latencyAim:
		p.window = min(p.window+1/p.window, peerWindow)
	case took > 2*latencyAim:
		p.window = max(p.window-0.5, 1)
	}
}

// timeout is how long a piece from p may take before it is asked for elsewhere.
func (d *Download) timeout(p *peer) time.Duration {
	usual := max(d.latency, p.latency)
	if p.latency > 0 && d.latency > 0 {
		usual = min(p.latency, 4*d.latency)
	}
	least := minTimeout
	if p.latency == 0 && d.latency > 0 {
		least /= 2 // a stranger gets less of a chance than one who has delivered, once somebody has
	}
	return min(max(least, 4*usual), maxTimeout)
}

// useful reports whether p has a piece that is missing and that nothing brings yet.
func (d *Download) useful(p *peer) bool {
	for k, w := range p.have {
		if w&^(d.have[k]|d.taken[k]) != 0 {
			return true
		}
	}
	return false
}

// rarest chooses among the pieces that p has and nothing brings yet: the first
// ones of the blob, else one with the fewest copies nearby, at random among equals.
func (d *Download) rarest(p *peer) int {
	best, copies, equals := -1, uint16(0), 0
	for k, w := range p.have {
		w &^= d.have[k] | d.taken[k]
		for w != 0 {
			i := k<<6 + bits.TrailingZeros64(w)
			w &= w - 1
			if i < headPieces {
				return i
			}
			switch c := d.avail[i]; {
			case best < 0 || c < copies:
				best, copies, equals = i, c, 1
			case c == copies:
				if equals++; d.rnd.IntN(equals) == 0 {
					best = i
				}
			}
		}
	}
	return best
}

// cost orders neighbours: pieces ahead of ours in its queue, and a toll for
// distance and for failures.
func (p *peer) cost() int { return p.load + 2*p.flight + 3*p.near + 16*p.strikes }

func appendNode(list []Node, n Node) []Node {
	for _, x := range list {
		if x == n {
			return list
		}
	}
	return append(list, n)
}

// Accuse tells the leader that a neighbour does not answer.
func (d *Download) Accuse(n Node) { d.leader.lost = appendNode(d.leader.lost, n) }

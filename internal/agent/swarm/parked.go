package swarm

import (
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// parked is what nodes held that are not members any more. A node that was taken
// for dead and is not does not know that somebody forgot it, so it would not tell
// again.
type parked map[plan.Node]parkedNode

type parkedNode struct {
	born  int64
	blobs map[string]int // digest → pieces
	until time.Duration
}

const (
	parkedFor  = 10 * time.Minute
	parkedMost = 1000 // nodes
)

func (p parked) expire(now time.Duration) {
	for n, x := range p {
		if now > x.until {
			delete(p, n)
		}
	}
}

// park forgets a node that is gone, for as long as it is.
func (e *Engine) park(p Peer) {
	e.dirMu.Lock()
	defer e.dirMu.Unlock()
	held := e.directory.Gone(p.Node)
	if len(held) > 0 && len(e.parked) < parkedMost {
		e.parked[p.Node] = parkedNode{born: p.Born, blobs: held, until: e.now() + parkedFor}
	}
}

// unpark notes that a node is back. If it has started anew it tells what it has
// itself.
func (e *Engine) unpark(p Peer) {
	e.dirMu.Lock()
	defer e.dirMu.Unlock()
	x, ok := e.parked[p.Node]
	delete(e.parked, p.Node)
	if !ok || x.born != p.Born {
		return
	}
	for blob, pieces := range x.blobs {
		a := plan.Announce{Blob: blob, Node: p.Node, Zone: p.Zone, Pieces: pieces, Done: true}
		if _, err := e.directory.Announce(e.now(), a); err != nil {
			e.log.Debug("what a node held when it was taken for dead is not what others hold", "digest", blob, "peer", p.Node, "err", err)
		}
	}
}

package swarm

import (
	"sync/atomic"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// HostOf lets tests speak to an engine as a peer.
var HostOf = func(n plan.Node) string { return hostOf(n) }

// CountGathered counts the buffers into which what is known to come is gathered.
func CountGathered(e *Engine, n *atomic.Int32) {
	e.gathered.New = func() any {
		n.Add(1)
		return new([gatherRoom]byte)
	}
}

// ContentKey lets tests know who leads small content.
var ContentKey = contentKey

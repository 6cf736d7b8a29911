package swarm

import (
	"sync/atomic"
	"time"

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

// Alone sets how long a download waits for others that bring nothing.
func (e *Engine) Alone(d time.Duration) { e.alone = d }

// Spend takes from what may be waited in vain.
func (e *Engine) Spend(d time.Duration) { e.vain.spend(time.Now(), d) }

// Spent is what was waited in vain since the start.
func (e *Engine) Spent() time.Duration {
	e.vain.mu.Lock()
	defer e.vain.mu.Unlock()
	return e.vain.spent
}

// BodyTime sets how long a peer may take to send a request.
func (e *Engine) BodyTime(d time.Duration) { e.bodyTime = d }

// Giving counts who is given content now, and GivenAtOnce is how many may be.
func (e *Engine) Giving() int { return len(e.giving) }

const GivenAtOnce = givenAtOnce

package swarm

import (
	"sync"
	"time"
)

// Bounds of what a node waits for others in vain, all pulls together: who has the secret
// may answer nothing, or nothing of use, for each blob anew.
const (
	vainMost  = 8 * time.Second        // at once
	vainBack  = 10                     // times what is waited later comes back in
	vainLeast = 100 * time.Millisecond // is always waited
)

// vain is a budget of time.
type vain struct {
	mu    sync.Mutex
	spent time.Duration
	at    time.Time
}

// left returns how long to wait, of most.
func (v *vain) left(now time.Time, most time.Duration) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.settle(now)
	return max(min(most, vainMost-v.spent), min(most, vainLeast))
}

// spend notes a wait that brought nothing.
func (v *vain) spend(now time.Time, d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.settle(now)
	v.spent = min(v.spent+d, vainMost)
}

// settle gives back what was spent long ago. v.mu is held.
func (v *vain) settle(now time.Time) {
	v.spent = max(0, v.spent-max(0, now.Sub(v.at))/vainBack)
	v.at = now
}

package sqldb

import (
	"sync/atomic"
	"time"
)

// Clock is the one clock of a database (invariant R11). For SQLite the process
// that owns the file is the database, so this clock must not be led astray by
// what happens to the machine's: it starts at the wall clock, or at the latest
// time the database has seen if that is later, and from then on advances with
// the monotonic clock only. A wall clock that is set hours forward or back
// while the server runs changes nothing; one that was set back while it was
// down makes times stand still, which keeps things longer, never shorter.
type Clock struct {
	base  atomic.Int64 // ms since the epoch at start
	start time.Time    // carries the monotonic reading
}

// NewClock returns a clock that begins now.
func NewClock() *Clock {
	c := &Clock{start: time.Now()}
	c.base.Store(c.start.UnixMilli())
	return c
}

// NotBefore moves the clock so that it does not run behind ms.
func (c *Clock) NotBefore(ms int64) {
	for {
		base := c.base.Load()
		behind := ms - (base + time.Since(c.start).Milliseconds())
		if behind <= 0 || c.base.CompareAndSwap(base, base+behind) {
			return
		}
	}
}

// Now returns milliseconds since the Unix epoch.
func (c *Clock) Now() int64 {
	return c.base.Load() + time.Since(c.start).Milliseconds()
}

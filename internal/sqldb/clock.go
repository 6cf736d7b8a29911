package sqldb

import "time"

// Clock is the one clock of a database (invariant R11). For SQLite the process
// that owns the file is the database, so this clock must not be led astray by
// what happens to the machine's: it starts at the wall clock, or at the latest
// time the database has seen if that is later, and from then on advances with
// the monotonic clock only. A wall clock that is set hours forward or back
// while the server runs changes nothing; one that was set back while it was
// down makes times stand still, which keeps things longer, never shorter. One
// that is further ahead of the latest time seen than the caller believes is not
// followed either: it would end every period at once.
type Clock struct {
	base  int64     // ms since the epoch at start
	start time.Time // carries the monotonic reading
}

// begin is where a clock begins, in ms: at the wall clock, or at the latest time
// that the database has seen (0: none) if the wall clock is before it, or after
// it by more than jumpMax (0: any jump is believed). behind is by how much the
// clock is then behind a wall clock that is not believed.
func begin(wall, seen, jumpMax int64) (at, behind int64) {
	switch {
	case seen == 0 || wall <= seen:
		return max(wall, seen), 0
	case jumpMax > 0 && wall-seen > jumpMax:
		return seen, wall - seen
	}
	return wall, 0
}

// newClock returns a clock that has just begun at the given time, in ms.
func newClock(start time.Time, at int64) *Clock { return &Clock{start: start, base: at} }

// Now returns milliseconds since the Unix epoch.
func (c *Clock) Now() int64 { return c.base + time.Since(c.start).Milliseconds() }

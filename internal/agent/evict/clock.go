package evict

import "time"

const (
	stepMS   = 60_000           // a jump that counts as one
	gapMS    = 24 * 3600 * 1000 // between the last use and the first pass of a process
	stepsMax = 64
)

// clock finds jumps of the clock that the times of blobs are by. The index's
// own does not jump while it is open; what is left are jumps while no agent ran,
// which look as if nobody had used anything for that long.
type clock struct {
	last  int64     // of the index, ms
	at    time.Time // by the other clock, with its monotonic part
	steps []Step
	fresh bool // a jump that no pass has seen
}

// look compares the two clocks. latest is when a blob was used last.
func (c *clock) look(now int64, at time.Time, latest int64) (stepped bool, steps []Step) {
	switch {
	case !c.at.IsZero():
		by := now - c.last - at.Sub(c.at).Milliseconds()
		if by > stepMS {
			c.add(Step{At: c.last, By: by})
		}
		c.fresh = c.fresh || by > stepMS || by < -stepMS
	case latest > 0 && now-latest > gapMS:
		c.add(Step{At: latest, By: now - latest})
		c.fresh = true
	}
	c.last, c.at = now, at
	return c.fresh, c.steps
}

func (c *clock) add(s Step) {
	if len(c.steps) == stepsMax {
		// To count an old jump for newer times too makes these younger, never older.
		s.By += c.steps[0].By
		c.steps = c.steps[1:]
	}
	c.steps = append(c.steps[:len(c.steps):len(c.steps)], s)
}

// seen says that a pass was over that knew of all jumps.
func (c *clock) seen() { c.fresh = false }

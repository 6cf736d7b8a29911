package swarmsim

import (
	"slices"
	"testing"
	"time"
)

// TestFirstByte_ACrowdWaitsForTheFirstPieceOnly bounds the time until the runtimes
// of a flash crowd get something. The first piece alone takes 21 ms, and from one
// uplink to seven others 147 ms.
func TestFirstByte_ACrowdWaitsForTheFirstPieceOnly(t *testing.T) {
	c := crowd(8)
	c.Up, c.Down, c.OriginUp = 12.5e6, 12.5e6, 12.5e6
	c.Pieces = 256
	first := Run(c).First
	slices.Sort(first)
	t.Log(first)
	if half, last := first[len(first)/2], first[len(first)-1]; first[0] == 0 || half > 200*time.Millisecond || last > 250*time.Millisecond {
		t.Errorf("half of the nodes have the first piece after %v, the last one after %v", half, last)
	}
}

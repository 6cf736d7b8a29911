package swarmsim

import (
	"slices"
	"testing"
	"time"
)

// TestFirstByte_TheWaitForItCostsSmallBlobsNothing bounds both for blobs of which each
// node of a crowd has a few pieces to bring. The figures of docs/p2p.md without the wait
// are 1.18, 1.35 and 1.71 times the bound; with it, whoever began alone took so many
// pieces that all waited for it: 1.37, 1.69 and 2.24.
func TestFirstByte_TheWaitForItCostsSmallBlobsNothing(t *testing.T) {
	const seeds = 6
	for _, tc := range []struct {
		pieces      int
		ratio       float64
		first, last time.Duration // when half and all of the nodes have the first piece
	}{
		{256, 1.2, 120 * time.Millisecond, 130 * time.Millisecond},
		{128, 1.4, 170 * time.Millisecond, 180 * time.Millisecond},
		{64, 1.75, 180 * time.Millisecond, 200 * time.Millisecond},
	} {
		var ratio float64
		var half, last time.Duration
		for seed := range seeds {
			c := crowd(16)
			c.Pieces, c.Seed = tc.pieces, uint64(seed+1)
			r := Run(c)
			slices.Sort(r.First)
			ratio += r.Ratio() / seeds
			half += r.First[len(r.First)/2] / seeds
			last += r.First[len(r.First)-1] / seeds
		}
		t.Logf("%d pieces: %.3f of the bound, the first piece after %v and %v", tc.pieces, ratio, half, last)
		if ratio > tc.ratio || half > tc.first || last > tc.last {
			t.Errorf("%d pieces: %.3f of the bound, the first piece after %v and %v; want %.2f, %v and %v", tc.pieces, ratio, half, last, tc.ratio, tc.first, tc.last)
		}
	}
}

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

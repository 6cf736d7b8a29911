package plan

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
)

// TestR16_ALeaderCannotGiveADownloadThousandsOfNeighbours: each of them costs a
// connection and a bitmap.
func TestR16_ALeaderCannotGiveADownloadThousandsOfNeighbours(t *testing.T) {
	d := NewDownload(Options{Blob: "b", Self: "n", Pieces: 64, Rand: rand.New(rand.NewPCG(1, 2))})
	var r Reply
	for i := range 5000 {
		r.Peers = append(r.Peers, Member{Node: Node(fmt.Sprint("peer-", i))})
	}
	for range 3 {
		d.Replied(0, r)
	}
	if n := len(d.Peers()); n != MaxPeers {
		t.Errorf("%d neighbours, want %d", n, MaxPeers)
	}
}

// TestR16_AMemberCannotClaimToHoldAllLeases, and so keep the others from reading
// anything from the origin.
func TestR16_AMemberCannotClaimToHoldAllLeases(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, rand.New(rand.NewPCG(1, 2)))
	const pieces = 1000
	greedy := Announce{Blob: "b", Node: "greedy", Pieces: pieces, Moved: true}
	for i := range pieces {
		greedy.Held = append(greedy.Held, i)
	}
	if _, err := d.Announce(0, greedy); err != nil {
		t.Fatal(err)
	}
	r, err := d.Announce(movedGrace+headAlone, Announce{Blob: "b", Node: "other", Pieces: pieces, Want: 2})
	if err != nil || len(r.Lease) == 0 {
		t.Errorf("another member gets %v (%v)", r.Lease, err)
	}
}

// TestR16_ABlobThatIsSaidToBeHugeCostsLittle: a manifest may say that a layer has
// 256 GiB. What that costs here grows with what comes.
func TestR16_ABlobThatIsSaidToBeHugeCostsLittle(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	d := NewDownload(Options{Blob: "b", Self: "n", Pieces: MaxPieces, Rand: rand.New(rand.NewPCG(1, 2))})
	d.Replied(0, Reply{Lease: []int{0, 1}})
	d.Next(0)
	runtime.ReadMemStats(&after)
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 8 {
		t.Errorf("%d MiB before the first byte", mib)
	}
	if d.Done() {
		t.Error("it is done")
	}
}

package plan

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHead_TheDirectoryLetsOneNodeReadTheFirstPieceAlone: over a link that all
// share, the first piece comes soonest so.
func TestHead_TheDirectoryLetsOneNodeReadTheFirstPieceAlone(t *testing.T) {
	ask := func(d *Directory, at time.Duration, a Announce) Reply {
		t.Helper()
		a.Blob, a.Pieces = "b", 64
		r, err := d.Announce(at, a)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	directory := func() *Directory {
		d := NewDirectory(DirectoryLimits{}, rand.New(rand.NewPCG(1, 2)))
		if r := ask(d, 0, Announce{Node: "first", Want: 2}); !slices.Contains(r.Lease, 0) {
			t.Fatalf("the first node got %v", r.Lease)
		}
		return d
	}
	d := directory()
	at := 5 * time.Millisecond
	if r := ask(d, at, Announce{Node: "second", Want: 2}); len(r.Lease) > 0 || r.Retry < 1 || r.Retry > 20 {
		t.Errorf("beside the first piece: leases %v, retry in %d ms", r.Lease, r.Retry)
	}
	if r := ask(d, at, Announce{Node: "first", Want: 2}); len(r.Lease) == 0 {
		t.Error("whoever reads the first piece gets nothing more")
	}
	ask(d, at, Announce{Node: "first", Got: []int{0}})
	if r := ask(d, at, Announce{Node: "second", Want: 2}); len(r.Lease) == 0 {
		t.Errorf("the first piece is here, and the others wait on for %d ms", r.Retry)
	}

	d = directory()
	if r := ask(d, headAlone, Announce{Node: "second", Want: 2}); len(r.Lease) == 0 {
		t.Errorf("the first piece does not come, and the others wait on for %d ms", r.Retry)
	}

	d = directory()
	ask(d, at, Announce{Node: "third", Got: []int{0}})
	if r := ask(d, at, Announce{Node: "second", Want: 2}); len(r.Lease) == 0 {
		t.Errorf("another node has the first piece, and the others wait on for %d ms", r.Retry)
	}

	d = directory()
	for i := range maxFetchers + 1 {
		ask(d, at, Announce{Node: Node(rune('a' + i))})
	}
	if r := ask(d, at, Announce{Node: "second", Want: 2}); len(r.Lease) > 0 || r.Retry < int((headAlone-at).Milliseconds()) {
		t.Errorf("one of many: leases %v, retry in %d ms", r.Lease, r.Retry)
	}
}

func TestHead_ADownloadBeginsWithOneRun(t *testing.T) {
	d := NewDownload(Options{Blob: "b", Self: "n", Pieces: 64, Rand: rand.New(rand.NewPCG(1, 2))})
	if _, ok := d.Announce(0); !ok {
		t.Fatal("nothing is announced")
	}
	d.Replied(0, Reply{Lease: []int{0, 5, 9}})
	orders, _ := d.Next(0)
	if len(orders) != 1 || !slices.Equal(orders[0].Pieces, []int{0}) {
		t.Fatalf("it begins with %v", orders)
	}
	d.Got(10*time.Millisecond, 0, Origin)
	d.RunEnded()
	if orders, _ = d.Next(10 * time.Millisecond); len(orders) != originRuns {
		t.Errorf("it goes on with %v", orders)
	}
}

func TestHead_TheFirstPieceIsSentFirst(t *testing.T) {
	u := NewUploads(1, 1, 0)
	push := func(peer Node, piece int) { u.Push(&Ask{Peer: peer, Blob: "b", Piece: piece}) }
	push("a", 0)
	u.Done(u.Pop()) // now it was sent before, which others were not
	push("a", 5)
	push("b", 6)
	push("c", 0)
	if a := u.Pop(); a == nil || a.Piece != 0 {
		t.Errorf("sent first: %+v", a)
	}
}

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
		a.Blob, a.Pieces = "b", max(64, a.Pieces)
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

	const many = headPer * (maxFetchers + 3)
	d = NewDirectory(DirectoryLimits{}, rand.New(rand.NewPCG(1, 2)))
	ask(d, 0, Announce{Node: "first", Want: 2, Pieces: many})
	for i := range maxFetchers + 1 {
		ask(d, at, Announce{Node: Node(rune('a' + i)), Pieces: many})
	}
	if r := ask(d, at, Announce{Node: "second", Want: 2, Pieces: many}); len(r.Lease) > 0 || r.Retry < int((headAlone-at).Milliseconds()) {
		t.Errorf("one of many: leases %v, retry in %d ms", r.Lease, r.Retry)
	}
}

// TestHead_NobodyWaitsWhereThereAreFewPiecesForEach keeps the wait from small blobs.
func TestHead_NobodyWaitsWhereThereAreFewPiecesForEach(t *testing.T) {
	for pieces, waits := range map[int]bool{2*headPer - 1: false, 2 * headPer: true} {
		d := NewDirectory(DirectoryLimits{}, rand.New(rand.NewPCG(1, 2)))
		for _, n := range []Node{"first", "second"} {
			r, err := d.Announce(0, Announce{Blob: "b", Node: n, Pieces: pieces, Want: 2})
			if err != nil {
				t.Fatal(err)
			}
			if got := len(r.Lease) == 0; got != (waits && n == "second") {
				t.Errorf("%d pieces: %s waits: %v", pieces, n, got)
			}
		}
	}
}

// TestHead_WhoBeginsAloneAsksForNoMoreThanItHasBrought: its pace ends when the others
// begin.
func TestHead_WhoBeginsAloneAsksForNoMoreThanItHasBrought(t *testing.T) {
	d := NewDownload(Options{Blob: "b", Self: "n", Pieces: 256, Rand: rand.New(rand.NewPCG(1, 2))})
	d.Announce(0)
	d.Replied(0, Reply{Lease: []int{0}})
	for i := range 64 {
		now := time.Duration(i+1) * time.Millisecond // so much faster than any share of a link
		d.Next(now - time.Millisecond)
		d.Got(now, i, Origin)
		d.RunEnded()
		if got, most := d.want(now), max(2, i+1); got > most {
			t.Fatalf("after %d pieces it asks for %d", i+1, got)
		}
		if i < 63 {
			d.Replied(now, Reply{Lease: []int{i + 1}})
		}
	}
	if d.want(64*time.Millisecond) != originRuns*originRun {
		t.Errorf("it asks for %d after so many", d.want(64*time.Millisecond))
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

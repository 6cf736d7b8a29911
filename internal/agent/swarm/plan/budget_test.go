package plan

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

func announced(t *testing.T, d *Directory, now time.Duration, a Announce) Reply {
	t.Helper()
	r, err := d.Announce(now, a)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, e := range d.entries {
		sum += e.size()
	}
	if sum != d.bytes {
		t.Fatalf("the entries take %d bytes, and %d are charged", sum, d.bytes)
	}
	return r
}

// TestR16_MadeUpBlobsDoNotFillTheMemory, nor push out what others have announced.
func TestR16_MadeUpBlobsDoNotFillTheMemory(t *testing.T) {
	d := NewDirectory(DirectoryLimits{Blobs: 2000}, seeded(1))
	announced(t, d, 1, Announce{Blob: "last copy", Node: "honest", Pieces: 1000, Done: true})
	if r := announced(t, d, 1, Announce{Blob: "leased", Node: "honest", Pieces: 1000, Want: 2}); len(r.Lease) == 0 {
		t.Fatal("no lease")
	}
	for _, n := range []Node{"honest", "another"} {
		announced(t, d, 1, Announce{Blob: "common", Node: n, Pieces: 1000, Done: true})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 60 {
		announced(t, d, time.Duration(2+i), Announce{Blob: fmt.Sprint("made up ", i), Node: "liar", Pieces: MaxPieces, Done: true, Want: 16})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if mib := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20; d.bytes > 64<<20 || mib > 80 {
		t.Errorf("%d bytes are charged, %d MiB are used", d.bytes, mib)
	}
	for _, blob := range []string{"last copy", "leased", "common", "made up 59"} {
		if !d.Known(blob) {
			t.Errorf("%q is forgotten", blob)
		}
	}
	// However small they are.
	for i := range d.lim.Blobs + 100 {
		if _, err := d.Announce(time.Second, Announce{Blob: fmt.Sprint("small ", i), Node: "liar", Pieces: 1, Done: true}); err != nil {
			t.Fatal(err)
		}
	}
	if blobs, _ := d.Len(); blobs > d.lim.Blobs || !d.Known("common") {
		t.Errorf("%d blobs; the common one is known: %v", blobs, d.Known("common"))
	}
}

// TestR16_WhatCostsNothingIsForgottenFirst: then the last copies, then what is being fetched.
func TestR16_WhatCostsNothingIsForgottenFirst(t *testing.T) {
	d := NewDirectory(DirectoryLimits{Blobs: 4}, seeded(1))
	announced(t, d, 1, Announce{Blob: "leased", Node: "n", Pieces: 10, Want: 1})
	announced(t, d, 2, Announce{Blob: "last copy", Node: "n", Pieces: 10, Done: true})
	for at, blob := range []string{"older", "newer"} {
		announced(t, d, time.Duration(3+at), Announce{Blob: blob, Node: "n", Pieces: 10, Done: true})
		announced(t, d, time.Duration(3+at), Announce{Blob: blob, Node: "m", Pieces: 10, Done: true})
	}
	for at, gone := range []string{"older", "newer", "last copy", "leased"} {
		if !d.Known(gone) {
			t.Errorf("%q is forgotten too early", gone)
		}
		// Another one is leased, so that it is the dearest and the newest.
		announced(t, d, time.Duration(10+at), Announce{Blob: fmt.Sprint("new ", at), Node: "n", Pieces: 10, Want: 1})
		if d.Known(gone) {
			t.Errorf("%q is still there", gone)
		}
	}
}

func TestR16_AHugeBlobHasFewRecordedMembers(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	for i := range 300 {
		if _, err := d.Announce(1, Announce{Blob: "huge", Node: Node(fmt.Sprint("n", i)), Pieces: MaxPieces, Zone: "z"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, members := d.Len(); members < leastKnown || d.bytes > d.lim.Bytes/3 {
		t.Errorf("%d members in %d bytes", members, d.bytes)
	}
}

// TestR16_OneMembersLeasesAreBounded, whether they are asked for or brought along.
func TestR16_OneMembersLeasesAreBounded(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	for i := range 100 {
		a := Announce{Blob: "b", Node: "greedy", Pieces: 10_000, Want: 16, Moved: true}
		for k := range 64 {
			a.Held = append(a.Held, 64*i+k)
		}
		announced(t, d, time.Minute+time.Duration(i), a)
		announced(t, d, 2*time.Minute+time.Duration(i), Announce{Blob: "b", Node: "greedy", Pieces: 10_000, Want: 16})
	}
	if n := len(d.entries[slot{"b", 10_000}].leases); n > maxHeld {
		t.Errorf("one member has %d leases", n)
	}
}

func TestR16_TheNameOfAZoneIsBounded(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	announced(t, d, 1, Announce{Blob: "b", Node: "n", Pieces: 1, Done: true, Zone: strings.Repeat("z", 1<<20)})
	for _, m := range d.entries[slot{"b", 1}].list {
		if len(m.Zone) > zoneMax {
			t.Errorf("a zone of %d bytes is kept", len(m.Zone))
		}
	}
}

// TestR16_WhatIsGoneIsNotCharged when members leave, expire or are evicted from.
func TestR16_WhatIsGoneIsNotCharged(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	for _, n := range []Node{"a", "b", "c"} {
		announced(t, d, 1, Announce{Blob: "b", Node: n, Pieces: 1000, Done: true})
	}
	d.Gone("a")
	announced(t, d, 3, Announce{Blob: "other", Node: "c", Pieces: 1, Done: true})
	announced(t, d, 2, Announce{Blob: "b", Node: "b", Pieces: 1, Leaving: true})
	announced(t, d, 3, Announce{Blob: "other", Node: "c", Pieces: 1, Done: true})
	d.Expire(100 * time.Hour)
	if d.bytes != 0 || len(d.owed) != 0 {
		t.Errorf("%d bytes are charged, to %v", d.bytes, d.owed)
	}
}

func TestR16_WhatIsAnnouncedNowIsKept(t *testing.T) {
	d := NewDirectory(DirectoryLimits{Blobs: 1}, seeded(1))
	announced(t, d, 1, Announce{Blob: "before", Node: "n", Pieces: 10, Done: true})
	announced(t, d, 2, Announce{Blob: "now", Node: "n", Pieces: 10}) // which would cost nothing to forget
	if !d.Known("now") || d.Known("before") {
		t.Errorf("known: now %v, before %v", d.Known("now"), d.Known("before"))
	}
}

// TestR16_NeighboursThatAreAskedForAreBounded, however many somebody asks for.
func TestR16_NeighboursThatAreAskedForAreBounded(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	for i := range 200 {
		if _, err := d.Announce(0, Announce{Blob: "b", Node: Node(fmt.Sprint(i)), Pieces: 1, Done: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, whole := range []bool{true, false} {
		r, err := d.Announce(0, Announce{Blob: "b", Node: "asker", Pieces: 1, Peers: 1 << 30, Whole: whole})
		if err != nil || len(r.Peers) != 64 {
			t.Errorf("whole %v: %d neighbours, %v", whole, len(r.Peers), err)
		}
	}
}

// TestN9_HoldersThatAreNamedHaveItAll, can be trusted, and are others than the asker.
func TestN9_HoldersThatAreNamedHaveItAll(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	tell := func(a Announce) Reply {
		t.Helper()
		a.Blob, a.Pieces = "b", 2
		r, err := d.Announce(0, a)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	tell(Announce{Node: "whole", Done: true})
	tell(Announce{Node: "liar", Done: true})
	tell(Announce{Node: "part", Got: []int{0}})
	tell(Announce{Node: "asker", Done: true}) // it had it, and says so while it asks
	for _, n := range []Node{"x", "y"} {
		tell(Announce{Node: n, Lost: []Node{"liar"}})
	}
	if r := tell(Announce{Node: "asker", Peers: 8, Whole: true}); len(r.Peers) != 1 || r.Peers[0].Node != "whole" {
		t.Errorf("named: %v", r.Peers)
	}
}

// TestR16_WhatIsForgottenLeavesNothing also of the names of blobs.
func TestR16_WhatIsForgottenLeavesNothing(t *testing.T) {
	d := NewDirectory(DirectoryLimits{}, seeded(1))
	for i := range 10 {
		for pieces := 1; pieces < 4; pieces++ {
			if _, err := d.Announce(0, Announce{Blob: fmt.Sprint(i), Node: "n", Pieces: pieces}); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.Expire(24 * time.Hour)
	if len(d.entries) > 0 || len(d.sizes) > 0 || len(d.owed) > 0 || d.bytes != 0 {
		t.Errorf("left: %d entries, %d names, %d members, %d bytes", len(d.entries), len(d.sizes), len(d.owed), d.bytes)
	}
}

// TestR16_RoomIsMadeForSome at once, so that not each announcement has to look for it,
// and some members of a blob are recorded however little room there is.
func TestR16_RoomIsMadeForSome(t *testing.T) {
	const room = 64 << 10
	d := NewDirectory(DirectoryLimits{Bytes: room}, seeded(1))
	most, before := 0, 0
	for i := range 200 {
		if _, err := d.Announce(0, Announce{Blob: fmt.Sprint(i), Node: "n", Pieces: 64}); err != nil {
			t.Fatal(err)
		}
		if d.bytes <= before && d.bytes > room-room/8 {
			t.Fatalf("%d bytes are left of %d, of which %d may be", d.bytes, before, room)
		}
		before = d.bytes
		most = max(most, before)
	}
	if most > room || most < room/2 {
		t.Errorf("%d bytes were taken, of which %d may be: this shows nothing", most, room)
	}
	d = NewDirectory(DirectoryLimits{Bytes: 1}, seeded(1))
	for i := range 2 * leastKnown {
		if _, err := d.Announce(0, Announce{Blob: "b", Node: Node(fmt.Sprint(i)), Pieces: 64}); err != nil {
			t.Fatal(err)
		}
	}
	if _, members := d.Len(); members != leastKnown {
		t.Errorf("%d members are recorded", members)
	}
}

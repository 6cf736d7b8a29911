package plan

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n)) }

func newDownload(pieces int, have ...int) *Download {
	h := NewBits(pieces)
	for _, i := range have {
		h.Set(i)
	}
	return NewDownload(Options{Blob: "b", Self: "self", Pieces: pieces, Have: h, Rand: seeded(1)})
}

func TestBits_SurviveEveryRendering(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		b := NewBits(n)
		for _, i := range rapid.SliceOf(rapid.IntRange(0, n-1)).Draw(t, "set") {
			b.Set(i)
		}
		if got := BitsOf(b.Bytes(n), n); !slices.Equal(got, b) {
			t.Fatalf("bytes: %v became %v", b, got)
		}
		text, err := b.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Bits
		if err := back.UnmarshalText(text); err != nil || !slices.Equal(back.fit(n), b) {
			t.Fatalf("text: %v became %v, %v", b, back, err)
		}
		if full := FullBits(n); full.Count() != n {
			t.Fatalf("%d of %d pieces are all", full.Count(), n)
		}
	})
}

func TestRank_AMemberThatLeavesMovesOnlyItsOwnBlobs(t *testing.T) {
	var members []Node
	for i := range 50 {
		members = append(members, Node(fmt.Sprintf("node-%d", i)))
	}
	led := map[Node]int{}
	for k := range 2000 {
		key := fmt.Sprintf("sha256:%d", k)
		before := Rank(key, members, Ranks)
		led[before[0]]++
		without := slices.DeleteFunc(slices.Clone(members), func(n Node) bool { return n == "node-7" })
		after := Rank(key, without, Ranks)
		switch {
		case before[0] == "node-7" && after[0] != before[1]:
			t.Fatalf("%s: the second rank %s does not succeed, %s does", key, before[1], after[0])
		case before[0] != "node-7" && after[0] != before[0]:
			t.Fatalf("%s moved from %s to %s although node-7 left", key, before[0], after[0])
		}
	}
	for n, k := range led {
		if k > 80 || k < 15 {
			t.Errorf("%s leads %d of 2000 blobs; 40 would be fair", n, k)
		}
	}
}

func TestNext_AsksForTheRarestOfTheLessLoaded(t *testing.T) {
	d := newDownload(64, 0, 1)
	for _, n := range []Node{"a", "b", "c"} {
		d.AddPeer(n, Elsewhere)
	}
	common := FullBits(64)
	common.Clear(40)
	d.Holds("a", FullBits(64))
	d.Holds("b", common)
	d.Holds("c", common)
	d.Loaded("b", 100)
	d.Loaded("c", 100)
	orders, _ := d.Next(0)
	if len(orders) == 0 || !slices.ContainsFunc(orders, func(o Order) bool { return o.From == "a" && slices.Contains(o.Pieces, 40) }) {
		t.Errorf("the piece that only a has was not among the first: %v", orders)
	}
}

func TestNext_TheFirstPiecesComeFirst(t *testing.T) {
	d := newDownload(64)
	d.AddPeer("a", Elsewhere)
	d.Holds("a", FullBits(64))
	orders, _ := d.Next(0)
	if len(orders) != 1 || !slices.Equal(orders[0].Pieces, []int{0, 1}) {
		t.Errorf("the runtime waits for its first byte, and was asked for: %v", orders)
	}
}

func TestNext_ASlowPeerIsGivenUpAndItsPieceAskedElsewhere(t *testing.T) {
	d := newDownload(1)
	d.AddPeer("slow", Elsewhere)
	d.Holds("slow", FullBits(1))
	if orders, _ := d.Next(0); len(orders) != 1 {
		t.Fatalf("%v", orders)
	}
	d.AddPeer("other", Elsewhere)
	d.Holds("other", FullBits(1))
	orders, late := d.Next(minTimeout)
	if len(late) != 1 || late[0].From != "slow" {
		t.Errorf("given up: %v", late)
	}
	if len(orders) != 1 || orders[0].From != "other" {
		t.Errorf("asked instead: %v", orders)
	}
}

// TestNext_AStrangersTimeIsThatOfTheOthers has a peer that has not delivered yet
// given up by what the link turns out to bring, not by a guess.
func TestNext_AStrangersTimeIsThatOfTheOthers(t *testing.T) {
	for name, tc := range map[string]struct{ other, due time.Duration }{
		"nobody has delivered": {0, minTimeout},
		"the other was fast":   {100 * time.Millisecond, minTimeout / 2},
		"the other was slow":   {900 * time.Millisecond, 4 * 900 * time.Millisecond},
		"the other was so-so":  {400 * time.Millisecond, 4 * 400 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDownload(2)
			for i, n := range []Node{"stranger", "other"} {
				d.AddPeer(n, Elsewhere)
				have := NewBits(2)
				have.Set(i)
				d.Holds(n, have)
			}
			d.Next(0)
			if tc.other > 0 {
				d.Got(tc.other, 1, "other")
			}
			if _, late := d.Next(tc.due - 1); len(late) > 0 {
				t.Errorf("given up before its time: %v", late)
			}
			if _, late := d.Next(tc.due); !slices.Contains(late, Cancel{"stranger", 0}) {
				t.Errorf("not given up in time: %v", late)
			}
		})
	}
}

func TestNext_EndgameAsksASecondSourceAndTheFirstToComeWins(t *testing.T) {
	d := newDownload(3, 0, 1)
	d.AddPeer("a", Elsewhere)
	d.Holds("a", FullBits(3))
	d.Next(0)
	d.AddPeer("b", Elsewhere)
	d.Holds("b", FullBits(3))
	orders, late := d.Next(200 * time.Millisecond)
	if len(late) != 0 || len(orders) != 1 || orders[0].From != "b" {
		t.Fatalf("endgame: %v, given up %v", orders, late)
	}
	if vain := d.Got(201*time.Millisecond, 2, "b"); len(vain) != 1 || vain[0] != (Cancel{"a", 2}) {
		t.Errorf("in vain: %v", vain)
	}
	if p, o := d.InFlight(); !d.Done() || p != 0 || o != 0 {
		t.Errorf("done %v with %d and %d in flight", d.Done(), p, o)
	}
}

// TestDownload_CountsStayTrue throws events at a Download in any order and
// compares its books with what they must be.
func TestDownload_CountsStayTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 20
		d := newDownload(n)
		now := time.Duration(0)
		names := []Node{"a", "b", "c", Origin}
		piece := rapid.IntRange(0, n-1)
		t.Repeat(map[string]func(*rapid.T){
			"peer": func(t *rapid.T) { d.AddPeer(rapid.SampledFrom(names).Draw(t, "n"), Elsewhere) },
			"drop": func(t *rapid.T) { d.DropPeer(rapid.SampledFrom(names).Draw(t, "n")) },
			"gain": func(t *rapid.T) { d.Gained(rapid.SampledFrom(names).Draw(t, "n"), piece.Draw(t, "i")) },
			"holds": func(t *rapid.T) {
				d.Holds(rapid.SampledFrom(names).Draw(t, "n"), Bits{rapid.Uint64().Draw(t, "b")})
			},
			"next": func(t *rapid.T) {
				now += time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond
				orders, _ := d.Next(now)
				for _, o := range orders {
					for _, i := range o.Pieces {
						if d.have.Has(i) {
							t.Fatalf("piece %d is here and was ordered of %s", i, o.From)
						}
					}
				}
			},
			"got": func(t *rapid.T) {
				d.Got(now, piece.Draw(t, "i"), rapid.SampledFrom(names).Draw(t, "n"))
			},
			"failed": func(t *rapid.T) {
				d.Failed(now, piece.Draw(t, "i"), rapid.SampledFrom(names).Draw(t, "n"), Reason(rapid.IntRange(0, 2).Draw(t, "why")))
			},
			"lost":  func(t *rapid.T) { d.Lost(Bits{rapid.Uint64().Draw(t, "b")}) },
			"moved": func(*rapid.T) { d.Moved(now) },
			"announce": func(t *rapid.T) {
				if _, ok := d.Announce(now); ok {
					if rapid.Bool().Draw(t, "answered") {
						d.Replied(now, Reply{Lease: rapid.SliceOfN(rapid.IntRange(-1, n), 0, 4).Draw(t, "lease"), Members: 3})
					} else {
						d.Unanswered(now, time.Millisecond)
					}
				}
			},
			"": func(t *rapid.T) { audit(t, d) },
		})
	})
}

func audit(t *rapid.T, d *Download) {
	peers, origin := 0, 0
	avail := make([]uint16, d.n)
	byPeer := map[*peer]int{}
	for i := range d.n {
		flying := false
		for _, f := range d.flights(i) {
			if f.on {
				flying = true
				if f.p == nil {
					origin++
				} else {
					peers++
					byPeer[f.p]++
				}
			}
		}
		if flying != slices.Contains(d.flying, i) {
			t.Fatalf("piece %d flies: %v, listed %v", i, flying, d.flying)
		}
		if want := flying || d.leased.Has(i) || d.have.Has(i); want != d.taken.Has(i) {
			t.Fatalf("piece %d taken %v; flies %v, leased %v, here %v", i, d.taken.Has(i), flying, d.leased.Has(i), d.have.Has(i))
		}
	}
	for _, p := range d.list {
		p.have.Each(func(i int) { avail[i]++ })
		if p.flight != byPeer[p] {
			t.Fatalf("%s has %d in flight, and says %d", p.id, byPeer[p], p.flight)
		}
	}
	if peers != d.inPeers || origin != d.origin.inflight || d.left != d.n-d.have.Count() || !slices.Equal(avail, d.avail) {
		t.Fatalf("books: %d/%d from peers, %d/%d from the origin, %d missing of %d", peers, d.inPeers, origin, d.origin.inflight, d.left, d.n)
	}
}

func announce(t *testing.T, d *Directory, now time.Duration, a Announce) Reply {
	t.Helper()
	a.Blob, a.Pieces = "b", max(a.Pieces, 10)
	r, err := d.Announce(now, a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newDirectory() *Directory { return NewDirectory(DirectoryLimits{}, seeded(2)) }

func TestN9_APieceIsLeasedOnceWhileItsHolderLives(t *testing.T) {
	d := newDirectory()
	seen := map[int]Node{}
	for k := range 40 {
		n := Node(fmt.Sprintf("n%d", k%4))
		for _, i := range announce(t, d, time.Duration(k)*time.Millisecond, Announce{Node: n, Want: 3}).Lease {
			if other, twice := seen[i]; twice {
				t.Fatalf("piece %d leased to %s and %s", i, other, n)
			}
			seen[i] = n
		}
	}
	if len(seen) != 10 {
		t.Errorf("%d of 10 pieces were leased", len(seen))
	}
}

func TestLease_GoesOnToAnotherWhenItsHolder(t *testing.T) {
	for name, change := range map[string]func(d *Directory) time.Duration{
		"leaves the cluster": func(d *Directory) time.Duration { d.Gone("a"); return time.Second },
		"hands it back": func(d *Directory) time.Duration {
			announce(t, d, 1, Announce{Node: "a", Back: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}})
			return 2
		},
		"is silent": func(*Directory) time.Duration { return overdueMin + quietFor },
		"expires":   func(d *Directory) time.Duration { d.Expire(time.Hour); return time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory()
			got := 0
			for range 10 {
				got += len(announce(t, d, 0, Announce{Node: "a", Want: 10}).Lease)
			}
			if got != 10 {
				t.Fatalf("a holds %d leases", got)
			}
			if d.Known("b") && len(announce(t, d, 0, Announce{Node: "b", Want: 4}).Lease) != 0 {
				t.Fatal("leased twice")
			}
			now := change(d)
			if r := announce(t, d, now, Announce{Node: "b", Want: 4}); len(r.Lease) == 0 {
				t.Errorf("nothing for b: %+v", r)
			}
		})
	}
}

// TestLease_OfADownloadThatBeginsAnewIsFreeAgain has the only member killed with
// leases, and back at once under its name.
func TestLease_OfADownloadThatBeginsAnewIsFreeAgain(t *testing.T) {
	d := newDirectory()
	begin := func(now time.Duration, have ...int) *Download {
		x := newDownload(10, have...)
		a, ok := x.Announce(now)
		if !ok {
			t.Fatal("a download that begins says nothing")
		}
		x.Replied(now, announce(t, d, now, a))
		return x
	}
	if n := begin(0).leased.Count(); n == 0 {
		t.Fatal("the first process was leased nothing")
	}
	var got []int
	for now, x := time.Second, begin(time.Second); now < 3*time.Second; now += 100 * time.Millisecond {
		orders, _ := x.Next(now)
		for _, o := range orders {
			for _, i := range o.Pieces {
				x.Got(now, i, Origin)
				got = append(got, i)
			}
			x.RunEnded()
		}
		if a, ok := x.Announce(now); ok {
			x.Replied(now, announce(t, d, now, a))
		}
	}
	if len(got) != 10 {
		t.Errorf("after two seconds the second process has brought %v of 10 pieces", got)
	}
}

func TestLease_ALiarWhoClaimsEverythingIsSeenThrough(t *testing.T) {
	d := newDirectory()
	announce(t, d, 0, Announce{Node: "liar", Have: FullBits(10), Done: true})
	if r := announce(t, d, 0, Announce{Node: "a", Want: 4}); len(r.Lease) != 0 {
		t.Fatalf("leased what somebody holds: %v", r.Lease)
	}
	if r := announce(t, d, time.Second, Announce{Node: "a", Want: 4, Lost: []Node{"liar"}, Starved: true}); len(r.Lease) == 0 {
		t.Error("one who starves is not believed")
	}
}

func TestLease_OneComplaintOfABusyNodeIsNotEnough(t *testing.T) {
	d := newDirectory()
	for _, n := range []Node{"a", "b", "c", "d", "e"} {
		announce(t, d, 0, Announce{Node: n})
	}
	announce(t, d, 0, Announce{Node: "holder", Have: FullBits(10), Done: true})
	if r := announce(t, d, 1, Announce{Node: "a", Want: 4, Lost: []Node{"holder"}}); len(r.Lease) != 0 {
		t.Errorf("one complaint cost the origin %d pieces", len(r.Lease))
	}
	if r := announce(t, d, 2, Announce{Node: "b", Want: 4, Lost: []Node{"holder"}}); len(r.Lease) == 0 {
		t.Error("two of six are not enough")
	}
}

func TestLease_StarvedInTheEndGetsWhatOthersHave(t *testing.T) {
	d := newDirectory()
	announce(t, d, 0, Announce{Node: "holder", Have: FullBits(10), Done: true})
	for k := range starvedLong + 1 {
		if r := announce(t, d, time.Duration(k)*time.Second, Announce{Node: "a", Want: 2, Starved: true}); len(r.Lease) > 0 {
			return
		}
	}
	t.Error("never")
}

// TestLease_ReliefEndsWithTheFirstLeaseThatComesBack is about two sides that
// each were right: the node handed back what a neighbour has, and asked again.
func TestLease_ReliefEndsWithTheFirstLeaseThatComesBack(t *testing.T) {
	d := newDirectory()
	announce(t, d, 0, Announce{Node: "holder", Have: FullBits(10), Done: true})
	var lease []int
	for now := time.Duration(0); len(lease) == 0; now += time.Second {
		lease = announce(t, d, now, Announce{Node: "a", Want: 2, Starved: true}).Lease
	}
	if r := announce(t, d, starvedLong*time.Second, Announce{Node: "a", Want: 2, Back: lease}); len(r.Lease) > 0 || r.Retry == 0 {
		t.Errorf("handed back %v, and got %v, to ask again after %d ms", lease, r.Lease, r.Retry)
	}
}

func TestMoved_ANewLeaderLearnsOfLeasesBeforeItGivesSome(t *testing.T) {
	d := newDirectory()
	if r := announce(t, d, 0, Announce{Node: "a", Want: 4, Moved: true, Have: NewBits(10)}); len(r.Lease) != 0 || r.Retry == 0 {
		t.Fatalf("leased at once: %+v", r)
	}
	announce(t, d, 1, Announce{Node: "b", Moved: true, Have: NewBits(10), Held: []int{0, 1, 2, 3, 4}})
	r := announce(t, d, movedGrace+1, Announce{Node: "a", Want: 9})
	if len(r.Lease) == 0 || slices.Min(r.Lease) < 5 {
		t.Errorf("leased what b fetches: %v", r.Lease)
	}
}

func TestDirectory_IsBounded(t *testing.T) {
	d := NewDirectory(DirectoryLimits{Blobs: 10, Members: 20}, seeded(3))
	for k := range 100 {
		for m := range 50 {
			if _, err := d.Announce(time.Duration(k), Announce{Blob: fmt.Sprint(k), Node: Node(fmt.Sprint(m)), Pieces: 5, Done: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if blobs, members := d.Len(); blobs != 10 || members != 200 {
		t.Errorf("%d blobs, %d members", blobs, members)
	}
}

func TestN9_MoreMembersThanAreRecordedHaveNothingFetchedTwice(t *testing.T) {
	const pieces = 64
	d := NewDirectory(DirectoryLimits{Members: 20}, seeded(3))
	fetched := make([]int, pieces)
	got := map[int][]int{} // by node
	for round := range 10 {
		for i := range 200 {
			now := time.Duration(round)*announceEvery + time.Duration(i)*time.Millisecond
			r := announce(t, d, now, Announce{Blob: "b", Node: Node(fmt.Sprint("node-", i)), Pieces: pieces, Want: 4, Got: got[i]})
			got[i] = append(got[i], r.Lease...)
			for _, k := range r.Lease {
				fetched[k]++
			}
		}
	}
	for k, n := range fetched {
		if n != 1 {
			t.Errorf("piece %d was leased %d times", k, n)
		}
	}
}

func TestN9_WhoComesWithLeasesIsRecordedHoweverManyThereAre(t *testing.T) {
	d := NewDirectory(DirectoryLimits{Members: 20}, seeded(3))
	for i := range 200 {
		announce(t, d, 0, Announce{Node: Node(fmt.Sprint("node-", i)), Moved: true, Have: NewBits(10)})
	}
	for k := range 9 {
		announce(t, d, 1, Announce{Node: Node(fmt.Sprint("fetcher-", k)), Moved: true, Have: NewBits(10), Held: []int{k}})
		announce(t, d, 2, Announce{Node: Node(fmt.Sprint("fetcher-", k)), Got: []int{k}})
	}
	announce(t, d, movedGrace, Announce{Node: "fetcher-0"})
	if r := announce(t, d, movedGrace+time.Hour, Announce{Node: "fetcher-0", Want: 10}); !slices.Equal(r.Lease, []int{9}) {
		t.Errorf("leased %v; all but 9 is fetched", r.Lease)
	}
}

func TestDirectory_RefusesWhatContradictsItself(t *testing.T) {
	d := newDirectory()
	announce(t, d, 0, Announce{Node: "a"})
	for _, a := range []Announce{
		{}, {Blob: "c", Node: "x"}, {Blob: "c", Node: Origin, Pieces: 1}, {Blob: "c", Node: "x", Pieces: MaxPieces + 1},
	} {
		if _, err := d.Announce(0, a); err == nil {
			t.Errorf("%+v was taken", a)
		}
	}
}

func TestUploads_NewPiecesFirstThenWhoHasLeast(t *testing.T) {
	u := NewUploads(1, 2, 0)
	for _, a := range []*Ask{
		{Peer: "a", Piece: 1, Low: true}, {Peer: "a", Piece: 1, Progress: 9}, {Peer: "b", Piece: 1, Progress: 5}, {Peer: "c", Piece: 2, Progress: 30},
	} {
		u.Push(a)
	}
	var got []string
	for range 4 {
		a := u.Pop()
		got = append(got, fmt.Sprintf("%s %d %v", a.Peer, a.Piece, a.Low))
		u.Done(a)
	}
	if want := []string{"b 1 false", "c 2 false", "a 1 false", "a 1 true"}; !slices.Equal(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
}

func TestUploads_OnePeerDoesNotTakeAllSlotsNorTheQueueGrowForever(t *testing.T) {
	u := NewUploads(4, 2, 10)
	for i := range 10 {
		if !u.Push(&Ask{Peer: "greedy", Piece: i}) {
			t.Fatal("refused early")
		}
	}
	if u.Push(&Ask{Peer: "x"}) {
		t.Error("the queue has no bound")
	}
	popped := 0
	for u.Pop() != nil {
		popped++
	}
	if popped != 2 {
		t.Errorf("one peer has %d slots, not its two", popped)
	}
	if u.Load() != 10 {
		t.Errorf("load %d", u.Load())
	}
	u.Withdraw(func(a *Ask) bool { return a.Piece > 3 })
	if u.Load() > 6 {
		t.Errorf("load %d after the withdrawal", u.Load())
	}
}

func FuzzAnnounce(f *testing.F) {
	f.Add([]byte(`{"blob":"b","node":"n","pieces":10,"have":"AQ","want":3,"peers":5,"starved":true}`))
	f.Add([]byte(`{"blob":"b","node":"m","pieces":10,"got":[-1,0,99],"back":[0,5],"lost":["n","m"],"moved":true,"held":[7,70]}`))
	f.Add([]byte(`{"blob":"b","node":"m","pieces":10,"done":true,"leaving":true}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		var a Announce
		if json.Unmarshal(p, &a) != nil || a.Pieces > 10_000 {
			return
		}
		d := newDirectory()
		for k, n := range []Node{"n", "m", a.Node} {
			_, _ = d.Announce(time.Duration(k), Announce{Blob: a.Blob, Node: n, Pieces: a.Pieces, Want: 2})
			_, _ = d.Announce(time.Duration(k), a)
		}
		for blob, e := range d.entries {
			for i := range e.pieces {
				_, leased := e.leases[i]
				if e.free.Has(i) == (leased || e.copies[i] > 0) {
					t.Fatalf("%s: piece %d free %v, leased %v, %d copies", blob.blob, i, e.free.Has(i), leased, e.copies[i])
				}
			}
		}
	})
}

// TestR16_NodesThatBelieveAnotherSizeDisturbNobody: how many pieces a blob has is
// what a manifest claims. Whoever announced a wrong number first kept all others
// out, so that each fetched all of the blob from the origin.
func TestR16_NodesThatBelieveAnotherSizeDisturbNobody(t *testing.T) {
	d := newDirectory()
	say := func(n Node, pieces int) Reply {
		t.Helper()
		r, err := d.Announce(0, Announce{Blob: "b", Node: n, Pieces: pieces, Want: 4})
		if err != nil {
			t.Fatalf("%s with %d pieces: %v", n, pieces, err)
		}
		return r
	}
	say("misled", 44)
	leased := map[int]bool{}
	for _, n := range []Node{"x", "y"} {
		for _, i := range say(n, 8).Lease {
			if i >= 8 || leased[i] {
				t.Errorf("%s was leased piece %d", n, i)
			}
			leased[i] = true
		}
	}
	if len(leased) == 0 {
		t.Error("nothing was leased")
	}
}

func TestDirectory_WhoLeavesIsForgottenWhateverItBelieved(t *testing.T) {
	d := newDirectory()
	for _, pieces := range []int{44, 8} {
		if _, err := d.Announce(0, Announce{Blob: "b", Node: "x", Pieces: pieces, Done: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Announce(0, Announce{Blob: "b", Node: "x", Pieces: 1, Leaving: true}); err != nil {
		t.Fatal(err)
	}
	if blobs, members := d.Len(); members != 0 {
		t.Errorf("%d members of %d records are left", members, blobs)
	}
	d.Expire(time.Hour)
	if d.Known("b") {
		t.Error("records without members stay")
	}
}

package swarm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// bareEngine is an engine that only keeps accounts: it has no store and no network.
func bareEngine() *Engine {
	return &Engine{
		log: slog.New(slog.DiscardHandler), metrics: newMetrics(nil), start: time.Now(),
		bans: map[plan.Node]*ban{}, downloads: map[oci.Digest]*download{},
	}
}

// bareDownload is a download of n pieces whose neighbours all have everything.
func bareDownload(e *Engine, n int, neighbours ...plan.Node) *download {
	d := &download{e: e, ctx: context.Background(), kick: make(chan struct{}, 1), orders: map[plan.Node][]*order{}}
	d.plan = plan.NewDownload(plan.Options{Blob: "blob", Self: "self", Pieces: n, Now: e.now(), Rand: rand.New(rand.NewPCG(1, 2))})
	for _, p := range neighbours {
		d.plan.AddPeer(p, plan.Elsewhere)
		d.plan.Holds(p, plan.FullBits(n))
	}
	e.downloads[oci.Digest("blob")] = d
	return d
}

func TestN7_ABanGrowsWithEachLieUpToADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := bareEngine()
		term := func() time.Duration { return time.Until(e.banish("liar", false)) }
		for want := banLiar; want < banMax; want *= 2 {
			if got := term(); got != want {
				t.Fatalf("banned for %v, want %v", got, want)
			}
			// Another piece of the same lie is not another lie.
			time.Sleep(time.Second)
			if got := term(); got != want-time.Second {
				t.Fatalf("the same lie once more: banned for another %v, want %v", got, want-time.Second)
			}
			time.Sleep(want)
		}
		for range 70 { // also where the doubled term no longer fits into an integer
			if got := term(); got != banMax {
				t.Fatalf("banned for %v, want %v", got, banMax)
			}
			time.Sleep(banMax + time.Second)
		}
		time.Sleep(banForget - time.Second) // exactly so long after the end of the last one
		if got := term(); got != banMax {
			t.Errorf("a lie that is not forgotten yet: banned for %v, want %v", got, banMax)
		}
		time.Sleep(banMax + banForget + time.Second)
		if got := term(); got != banLiar {
			t.Errorf("after a day without a lie: banned for %v, want %v", got, banLiar)
		}
	})
}

func TestN7_AVictimThatPassedOnALieIsBannedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := bareEngine()
		if got := time.Until(e.banish("relay", true)); got != banRelay {
			t.Errorf("banned for %v, want %v", got, banRelay)
		}
	})
}

func TestN7_ABanEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := bareEngine()
		time.Sleep(time.Minute)
		if e.bannedUntil("liar") != 0 {
			t.Error("banned before it lied")
		}
		until := e.banish("liar", false)
		if got := e.start.Add(e.bannedUntil("liar")); !got.Equal(until) {
			t.Errorf("banned until %v, want %v", got, until)
		}
		if e.bannedUntil("other") != 0 {
			t.Error("another peer is banned too")
		}
		time.Sleep(banLiar + time.Nanosecond)
		if e.bannedUntil("liar") != 0 {
			t.Error("still banned after its term")
		}
	})
}

// TestN7_ABanReachesTheDownloadsUnderWay shows that a liar found by one download
// is not asked by another, that what it was asked for is cancelled, and that the
// leader hears of it.
func TestN7_ABanReachesTheDownloadsUnderWay(t *testing.T) {
	e := bareEngine()
	d := bareDownload(e, 64, "liar", "honest")
	orders, _ := d.plan.Next(e.now())
	var liars, others []*order
	for _, p := range orders {
		o := d.order(p)
		if p.From == "liar" {
			liars = append(liars, o)
		} else {
			others = append(others, o)
		}
	}
	if len(liars) == 0 || len(others) == 0 {
		t.Fatalf("%d and %d orders; this shows nothing", len(liars), len(others))
	}
	e.banish("liar", false)
	for _, o := range liars {
		if o.ctx.Err() == nil {
			t.Error("an order of the liar goes on")
		}
	}
	for _, o := range others {
		if o.ctx.Err() != nil {
			t.Error("an order of an honest peer was cancelled")
		}
	}
	for i := range 64 { // everything that was ordered comes from elsewhere, or is free again
		for _, o := range liars {
			if o.open[i] {
				d.plan.Failed(e.now(), i, "liar", plan.Missing)
			}
		}
		if i < 32 {
			d.plan.Got(e.now(), i, "honest")
		}
	}
	d.plan.Holds("liar", plan.FullBits(64))
	for range 8 {
		orders, _ = d.plan.Next(e.now())
		if slices.ContainsFunc(orders, func(o plan.Order) bool { return o.From == "liar" }) {
			t.Fatal("the liar is asked again")
		}
	}
	if a, ok := d.plan.Announce(e.now()); !ok || !slices.Contains(a.Lost, "liar") {
		t.Errorf("the leader is told of %v (%v)", a.Lost, ok)
	}
}

// TestN7_TheDeedThatWasStoredCounts is about a piece that several sent, one of them
// twice: whoever sent the one that was stored is held to account for it, with the
// first that he sent.
func TestN7_TheDeedThatWasStoredCounts(t *testing.T) {
	for _, first := range []plan.Node{"liar", "honest", plan.Origin} {
		x := newTrust()
		if x.fromPeer(0) {
			t.Error("what nobody has sent is a peer's")
		}
		for _, who := range []plan.Node{first, "honest", "liar", plan.Origin} {
			switch {
			case who != "liar":
				x.note(0, []byte("right"), who, true)
			default:
				x.note(0, []byte("wrong"), who, false)
			}
		}
		x.note(0, []byte("right"), "liar", true)
		if !x.fromPeer(0) {
			t.Error("a piece that a peer has sent is not a peer's")
		}
		suspects := x.turn(map[string][]int{"peer:liar": {0}, "upstream": {1}, "peer:unknown": {2}})
		if !slices.Equal(suspects["liar"], []int{0}) || len(suspects) != 1 {
			t.Errorf("suspects: %v", suspects)
		}
		if who, lied := x.compare(0, []byte("right")); !lied || who.from != "liar" || who.relayed {
			t.Errorf("compared: %+v, lied %v", who, lied)
		}
	}
}

// TestN7_OneMismatchIsOneRound: several orders hear of the same one, each in its own
// time, and the download begins again once.
func TestN7_OneMismatchIsOneRound(t *testing.T) {
	e := bareEngine()
	d := bareDownload(e, 64, "liar")
	wrong := &piece.MismatchError{Digest: "blob"}
	o := d.order(plan.Order{From: "liar", Pieces: []int{0}})
	d.work.Go(func() {
		<-o.ctx.Done()
		d.fail(wrong) // as got does
	})
	d.fail(wrong)
	wake := time.NewTimer(0)
	defer wake.Stop()
	if done, err := d.step(wake); !done || !errors.Is(err, wrong) {
		t.Fatalf("done %v, %v", done, err)
	}
	if d.failure != nil {
		t.Errorf("the next round ends at once: %v", d.failure)
	}
}

// TestN8_ADownloadIsGivenUpWhenNobodyIsLeftToAsk: at once if nobody may have it, and
// otherwise when those who may have brought nothing for a while.
func TestN8_ADownloadIsGivenUpWhenNobodyIsLeftToAsk(t *testing.T) {
	verdict := &ociclient.StatusError{Status: http.StatusNotFound}
	for name, tc := range map[string]struct {
		refusal    error
		searched   bool
		neighbours []plan.Node
		members    []Peer
		after      time.Duration
	}{
		"nobody is left":                  {errLeft, true, nil, nil, 0},
		"leaders are being asked":         {errLeft, false, nil, nil, patience},
		"a neighbour may get it":          {errLeft, true, []plan.Node{"a"}, nil, patience},
		"the origin has decided":          {verdict, true, []plan.Node{"a"}, nil, patience / 5},
		"a member was not asked yet":      {errLeft, true, nil, []Peer{{Node: "b"}}, patience},
		"it was, and the origin decided":  {verdict, true, nil, []Peer{{Node: "b"}}, patience / 5},
		"the origin was not asked at all": {nil, true, nil, nil, -1},
	} {
		t.Run(name, func(t *testing.T) {
			e := bareEngine()
			e.view = viewOf(Peer{Node: "self"}, tc.members)
			d := bareDownload(e, 64, tc.neighbours...)
			for _, n := range tc.neighbours {
				d.plan.Holds(n, plan.NewBits(64))
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // nobody is really watched
			d.ctx, d.searched, d.refusal = ctx, tc.searched, tc.refusal
			began := e.now()
			d.plan.Announce(began)
			d.plan.Replied(began, plan.Reply{Members: 1, Lease: []int{0}})
			d.plan.Next(began)
			d.plan.Failed(began, 0, plan.Origin, plan.Broken)
			d.plan.RunEnded()
			if _, stuck := d.plan.Stuck(began); !stuck {
				t.Fatal("the download is not stuck: this shows nothing")
			}
			for _, at := range []time.Duration{0, patience/5 - time.Second, patience/5 + time.Second, patience - time.Second, patience + time.Second} {
				err := d.hopeless(began + at)
				if want := tc.after >= 0 && at >= tc.after; want != (err != nil) {
					t.Errorf("after %v: %v", at, err)
				}
			}
		})
	}
}

// stored is a download of a blob of n pieces in a store of its own.
func stored(t *testing.T, n int) (d *download, content []byte) {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	ix, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ix.Close() })
	store, err := piece.Open(t.Context(), piece.Options{Dir: dir, Index: ix, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	content = make([]byte, n*piece.Size)
	b, err := store.Create(t.Context(), oci.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(content))), int64(len(content)), piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	e := bareEngine()
	e.tallies = map[plan.Node]*tally{}
	d = bareDownload(e, n, "peer")
	d.b, d.round, d.trust, d.log, d.trace = b, b.Round(), newTrust(), sharing{changed: make(chan struct{})}, newTrace("blob", b.Size(), 0)
	return d, content
}

// TestN7_WhatIsVerifiedIsNotMarked also while the download has not ended yet: whoever
// passes it on is not to be taken for a victim.
func TestN7_WhatIsVerifiedIsNotMarked(t *testing.T) {
	d, content := stored(t, 2)
	d.got(0, content[:piece.Size], "honest", false)
	if !d.relayed(0) {
		t.Error("what a peer gave, and cannot be verified yet, is not marked")
	}
	d.got(1, content[:piece.Size], plan.Origin, false)
	if d.relayed(0) || !d.b.Complete() {
		t.Errorf("complete: %v, marked: %v", d.b.Complete(), d.relayed(0))
	}
}

// TestN7_APieceOfTheLastRoundIsNotTaken: its sender may be whom the next one goes
// without, and nobody is held to account for it.
func TestN7_APieceOfTheLastRoundIsNotTaken(t *testing.T) {
	d, content := stored(t, 3)
	b := d.b
	lie := make([]byte, piece.Size)
	lie[0] = 1
	for i := range 3 {
		d.got(i, lie, "liar", false)
	}
	var wrong *piece.MismatchError
	if !errors.As(d.failure, &wrong) {
		t.Fatalf("the download: %v", d.failure)
	}
	if d.got(1, lie, "liar", false) || b.Has(1) { // the same, asked for twice
		t.Error("a piece that came late was taken")
	}
	suspects := d.trust.turn(wrong.From)
	d.round = b.Round()
	if len(suspects["liar"]) != 3 {
		t.Errorf("suspects: %v", suspects)
	}
	if !d.got(1, content[:piece.Size], "honest", false) || !b.Has(1) {
		t.Error("a piece of the next round was not taken")
	}
}

// TestN7_OnlyDeedsOfPeersAreCompared keeps the origin, and whoever sent what the
// origin has, from being blamed.
func TestN7_OnlyDeedsOfPeersAreCompared(t *testing.T) {
	x := newTrust()
	x.note(0, []byte("old"), plan.Origin, false)
	x.note(1, []byte("right"), "honest", false)
	x.note(2, []byte("wrong"), "liar", true)
	if x.fromPeer(0) || !x.fromPeer(1) {
		t.Error("a piece of the origin is a peer's, or the other way round")
	}
	stored := map[string][]int{"upstream": {0}, "peer:honest": {1}, "peer:liar": {2}}
	if _, lied := x.compare(2, []byte("right")); lied {
		t.Error("judged before the whole was found wrong")
	}
	if suspects := x.turn(stored); len(suspects) != 2 {
		t.Errorf("suspects: %v", suspects)
	}
	for i, want := range []bool{false, false, true, false} {
		if who, lied := x.compare(i, []byte("right")); lied != want || lied && (who.from != "liar" || !who.relayed) {
			t.Errorf("piece %d: %+v, lied %v, want %v", i, who, lied, want)
		}
	}
	if x.fromPeer(2) {
		t.Error("in the new round piece 2 comes from a peer already")
	}
}

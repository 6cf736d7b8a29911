package swarm

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
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
		time.Sleep(banForget)
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

// TestN7_TheFirstDeedCounts is about a piece that two peers sent: the one that
// came first was stored, so its sender is held to account for it.
func TestN7_TheFirstDeedCounts(t *testing.T) {
	x := newTrust()
	x.note(0, []byte("wrong"), "liar", false)
	x.note(0, []byte("right"), "honest", true)
	if got := x.source(0); got != "liar" {
		t.Errorf("the source is %s", got)
	}
	if suspects := x.turn(); !slices.Equal(suspects["liar"], []int{0}) || len(suspects) != 1 {
		t.Errorf("suspects: %v", suspects)
	}
	if who, lied := x.compare(0, []byte("right")); !lied || who.from != "liar" || who.relayed {
		t.Errorf("compared: %+v, lied %v", who, lied)
	}
}

// TestN7_OnlyDeedsOfPeersAreCompared keeps the origin, and whoever sent what the
// origin has, from being blamed.
func TestN7_OnlyDeedsOfPeersAreCompared(t *testing.T) {
	x := newTrust()
	x.note(0, []byte("old"), plan.Origin, false)
	x.note(1, []byte("right"), "honest", false)
	x.note(2, []byte("wrong"), "liar", true)
	if _, lied := x.compare(2, []byte("right")); lied {
		t.Error("judged before the whole was found wrong")
	}
	if suspects := x.turn(); len(suspects) != 2 {
		t.Errorf("suspects: %v", suspects)
	}
	for i, want := range []bool{false, false, true, false} {
		if who, lied := x.compare(i, []byte("right")); lied != want || lied && (who.from != "liar" || !who.relayed) {
			t.Errorf("piece %d: %+v, lied %v, want %v", i, who, lied, want)
		}
	}
	if got := x.source(2); got != plan.Origin {
		t.Errorf("in the new round piece 2 comes from %s already", got)
	}
}

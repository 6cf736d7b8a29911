package plan

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// beside plays a download of n pieces whose origin brings one each gap, beside members
// who claim to have everything, and of whom one brings a piece each drip (0: never). say
// answers an announcement; nil: the leader does not. It returns how long that took.
func beside(t *testing.T, n int, gap, drip, patience time.Duration, say func(now time.Duration) *Reply) (time.Duration, *Download) {
	t.Helper()
	const hostile = 40
	d := NewDownload(Options{Blob: "b", Self: "me", Pieces: n, Have: NewBits(n), Rand: rand.New(rand.NewPCG(1, 2)), Patience: patience})
	claim := func() {
		for k := range hostile {
			m := Node(fmt.Sprintf("evil-%d", k))
			d.AddPeer(m, Elsewhere)
			d.Holds(m, FullBits(n))
		}
	}
	var coming []int // from the origin, in order
	var at, dripped time.Duration
	for now := time.Duration(0); now < 10*time.Minute; now += 5 * time.Millisecond {
		claim()
		if drip > 0 && now-dripped >= drip {
			for _, i := range d.flying {
				if f := d.flights(i)[0]; f.on && f.p != nil {
					dripped = now
					d.Got(now, i, f.p.id)
					break
				}
			}
		}
		orders, _ := d.Next(now)
		for _, o := range orders {
			if o.From == Origin {
				if len(coming) == 0 {
					at = now
				}
				coming = append(coming, o.Pieces...)
			}
		}
		if _, due := d.Announce(now); due {
			if r := say(now); r != nil {
				d.Replied(now, *r)
			} else {
				d.Unanswered(now, 50*time.Millisecond)
			}
		}
		for len(coming) > 0 && now-at >= gap {
			d.Got(now, coming[0], Origin)
			if coming, at = coming[1:], at+gap; len(coming) == 0 {
				d.RunEnded()
			}
		}
		if d.Done() {
			return now, d
		}
	}
	t.Fatalf("%d of %d pieces are missing after ten minutes", d.Missing(), n)
	return 0, nil
}

// TestN8_WhoLeadsAndHoldsNothingCostsSeconds whether the leader is silent, or keeps this
// node waiting and names others that do.
func TestN8_WhoLeadsAndHoldsNothingCostsSeconds(t *testing.T) {
	const n, gap = 256, 10 * time.Millisecond
	nothing := func(time.Duration) *Reply {
		return &Reply{Next: 3_600_000, Retry: 3_600_000, Members: 1000, Holders: 999}
	}
	silent := func(time.Duration) *Reply { return nil }
	for name, c := range map[string]struct {
		say      func(time.Duration) *Reply
		drip     time.Duration
		patience time.Duration
		most     time.Duration
	}{
		"silent":                     {silent, 0, 0, starvedAlone + 2*n*gap},
		"nothing to lease":           {nothing, 0, 0, starvedAlone + 2*n*gap},
		"a piece now and then":       {nothing, 3 * time.Second, 0, dripping + 2*n*gap},
		"when others had their time": {nothing, 0, 500 * time.Millisecond, 500*time.Millisecond + 2*n*gap},
	} {
		t.Run(name, func(t *testing.T) {
			took, d := beside(t, n, gap, c.drip, c.patience, c.say)
			if took > c.most {
				t.Errorf("it took %v, want at most %v", took, c.most)
			}
			if w := d.Waited(); c.drip == 0 && w < starvedAlone/8 || w > took {
				t.Errorf("it waited in vain for %v of %v", w, took)
			}
			if w := d.Waited(); w != 0 {
				t.Errorf("it waited in vain for %v more", w)
			}
		})
	}
}

// TestN9_WhoIsHelpedTakesLittleAlone so that a crowd with a slow origin stays one.
func TestN9_WhoIsHelpedTakesLittleAlone(t *testing.T) {
	d := NewDownload(Options{Blob: "b", Self: "me", Pieces: 64, Have: NewBits(64), Rand: rand.New(rand.NewPCG(1, 2))})
	now := starvedAlone
	d.goAlone(now)
	if d.leased.Count() != aloneFirst {
		t.Fatalf("%d pieces were taken", d.leased.Count())
	}
	alone := d.leased.Clone()
	alone.Each(func(i int) { d.Got(now, i, Origin) })
	// One comes from a peer, and one by a lease of the leader.
	for i, from := 0, []Node{"peer", Origin}; len(from) > 0; i++ {
		if !d.have.Has(i) {
			d.Got(now, i, from[0])
			from = from[1:]
		}
	}
	d.goAlone(now)
	if d.leased.Count() != 0 || d.alone.took != 0 {
		t.Errorf("%d more pieces were taken although others bring as many", d.leased.Count())
	}
	if due := d.alone.due(); due != now+starvedAlone {
		t.Errorf("the next ones are due at %v", due)
	}
}

// TestWake_IsInTimeToGoOnAlone although the leader was asked and has not answered.
func TestWake_IsInTimeToGoOnAlone(t *testing.T) {
	const patience = 100 * time.Millisecond
	d := NewDownload(Options{Blob: "b", Self: "me", Pieces: 64, Have: NewBits(64), Rand: rand.New(rand.NewPCG(1, 2)), Patience: patience})
	if _, due := d.Announce(0); !due {
		t.Fatal("the leader is not asked")
	}
	if at := d.Wake(0); at > patience {
		t.Errorf("it wakes at %v", at)
	}
}

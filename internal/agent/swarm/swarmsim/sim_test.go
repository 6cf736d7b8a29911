package swarmsim

import (
	"testing"
	"time"
)

// crowd is the scenario of the benchmark: 256 MiB, 50 MB/s on every link.
func crowd(n int) Config {
	const rate = 50e6
	return Config{Nodes: n, Pieces: 1024, PieceSize: 256 << 10, Up: rate, Down: rate, OriginUp: rate, Latency: 200 * time.Microsecond, Seed: 1}
}

func one(i int, yes, no float64) func(int) float64 {
	return func(k int) float64 {
		if k == i {
			return yes
		}
		return no
	}
}

func stagger(gap time.Duration) func(int) time.Duration {
	return func(i int) time.Duration { return time.Duration(i) * gap }
}

func TestN9_OneCopyLeavesTheOriginAndTimeStaysNearTheBound(t *testing.T) {
	slow := crowd(8)
	slow.Speed = one(3, 0.1, 1)
	for _, tc := range []struct {
		name          string
		c             Config
		ratio, egress float64
	}{
		{"one node", crowd(1), 1.02, 1.001},
		{"two", crowd(2), 1.03, 1.001},
		{"flash crowd of 8", crowd(8), 1.1, 1.02},
		{"flash crowd of 16", crowd(16), 1.1, 1.02},
		{"flash crowd of 32", crowd(32), 1.2, 1.02},
		{"300 ms apart", with(crowd(8), func(c *Config) { c.Arrive = stagger(300 * time.Millisecond) }), 1.1, 1.02},
		{"over 10 s", with(crowd(8), func(c *Config) { c.Arrive = stagger(1400 * time.Millisecond) }), 1.1, 1.02},
		{"16 nodes 300 ms apart", with(crowd(16), func(c *Config) { c.Arrive = stagger(300 * time.Millisecond) }), 1.25, 1.02},
		{"two waves", with(crowd(16), func(c *Config) {
			c.Arrive = func(i int) time.Duration { return time.Duration(i/8) * 4 * time.Second }
		}), 1.25, 1.02},
		{"first byte far away", with(crowd(8), func(c *Config) { c.Latency = 20 * time.Millisecond }), 1.25, 1.02},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := Run(tc.c)
			t.Logf("ratio %.3f egress %.4f", r.Ratio(), r.Egress)
			if r.Complete != tc.c.Nodes {
				t.Fatalf("%d of %d nodes complete", r.Complete, tc.c.Nodes)
			}
			if r.Ratio() > tc.ratio || r.Egress > tc.egress {
				t.Errorf("time %.3f of the bound, %.3f copies; want at most %.3f and %.3f", r.Ratio(), r.Egress, tc.ratio, tc.egress)
			}
		})
	}
}

func with(c Config, change func(*Config)) Config {
	change(&c)
	return c
}

func TestSlowNode_SlowsNobodyElse(t *testing.T) {
	c := crowd(8)
	c.Speed = one(3, 0.1, 1)
	r := Run(c)
	bound := Run(crowd(8)).Bound
	for i, f := range r.Finish {
		if i != 3 && f > bound*11/10 {
			t.Errorf("node %d took %v beside a slow one; the bound without it is %v", i, f, bound)
		}
	}
	if r.Ratio() > 1.05 || r.Egress > 1.02 {
		t.Errorf("the slow node itself: time %.3f of its bound, %.3f copies", r.Ratio(), r.Egress)
	}
}

func TestStallingPeer_CostsATimeout(t *testing.T) {
	c := crowd(8)
	c.Stall = func(i int) bool { return i == 3 }
	r := Run(c)
	if r.Complete < 7 || r.Took > r.Bound+2*time.Second || r.Egress > 1.02 {
		t.Errorf("%d complete, time %.3f of the bound, %.3f copies", r.Complete, r.Ratio(), r.Egress)
	}
}

func TestKill_SurvivorsFinish(t *testing.T) {
	for name, dies := range map[string]func(i int) bool{
		"one":  func(i int) bool { return i == 3 },
		"half": func(i int) bool { return i%2 == 0 },
	} {
		for _, at := range []time.Duration{100 * time.Millisecond, 1600 * time.Millisecond, 4 * time.Second} {
			c := crowd(8)
			c.Kill = func(i int) time.Duration {
				if dies(i) {
					return at
				}
				return -1
			}
			r := Run(c)
			for i, f := range r.Finish {
				if !dies(i) && f == 0 {
					t.Errorf("%s killed at %v: node %d did not finish", name, at, i)
				}
			}
			if r.Ratio() > 1.3 || r.Egress > 1.35 {
				t.Errorf("%s killed at %v: time %.3f of the bound, %.3f copies", name, at, r.Ratio(), r.Egress)
			}
		}
	}
}

func TestLeaderKilled_AnotherTakesOver(t *testing.T) {
	c := crowd(8)
	for i := range c.Nodes {
		c.Kill = func(k int) time.Duration {
			if k == i {
				return time.Second
			}
			return -1
		}
		if r := Run(c); r.Complete < 7 || r.Ratio() > 1.3 || r.Egress > 1.1 {
			t.Errorf("node %d killed: %d complete, time %.3f of the bound, %.3f copies", i, r.Complete, r.Ratio(), r.Egress)
		}
	}
}

func TestN8_OriginGoneWithEveryPieceSomewhere(t *testing.T) {
	c := crowd(8)
	c.Arrive = func(i int) time.Duration {
		if i == 7 {
			return 7 * time.Second
		}
		return 0
	}
	c.OriginDown = 6 * time.Second
	if r := Run(c); r.Complete != 8 {
		t.Errorf("%d of 8 nodes complete without the origin", r.Complete)
	}
}

func TestRun_SameSeedSameRun(t *testing.T) {
	c := crowd(8)
	a, b := Run(c), Run(c)
	if a.Took != b.Took || a.Announces != b.Announces || a.Asks != b.Asks {
		t.Errorf("two runs of one seed: %v and %v, %d and %d asks", a.Took, b.Took, a.Asks, b.Asks)
	}
}

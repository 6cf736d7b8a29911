package evict

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// The trace is what a node's cache sees in some weeks: pulls of images whose
// popularity follows Zipf's law, which share base layers and are released anew
// now and then, and each night a batch that pulls what nobody else wants, which
// is what spoils a cache that goes by recency alone. It depends on the seed only.

// upstream is what a request to it costs.
type upstream struct {
	latencyMS  float64
	bytesPerMS float64
}

type traceBlob struct {
	size int64
	cost float64 // ms to get
}

type pull struct {
	at    int64 // ms
	blobs []int32
}

type trace struct {
	blobs []traceBlob
	pulls []pull
	bytes int64 // of all blobs
}

const (
	traceRepos   = 400
	tracePulls   = 400 // a day
	traceBatch   = 120 // images of a nightly batch
	traceDay     = 24 * 3600 * 1000
	releasePart  = 0.06 // of the pulls come after a new release
	zipfExponent = 0.9
)

type traceRepo struct {
	up     upstream
	shared []int32 // of its base
	own    []int32 // changes seldom
	top    []int32 // changes with each release: manifest, config, application
}

type generator struct {
	*rand.Rand
	trace
	ups   []upstream
	bases [][]int32
}

// logNormal draws a size with a median and a spread, within 1 KB and 2 GB.
func (g *generator) logNormal(median, sigma float64) int64 {
	return int64(min(max(median*math.Exp(sigma*g.NormFloat64()), 1<<10), 2<<30))
}

func (g *generator) blob(up upstream, size int64) int32 {
	g.blobs = append(g.blobs, traceBlob{size: size, cost: up.latencyMS + float64(size)/up.bytesPerMS})
	g.bytes += size
	return int32(len(g.blobs) - 1)
}

// release gives a repository a new top: manifest, config and one or two layers.
func (g *generator) release(r *traceRepo) {
	r.top = []int32{g.blob(r.up, 1<<10+g.Int64N(4<<10)), g.blob(r.up, 2<<10+g.Int64N(8<<10))}
	for range 1 + g.IntN(2) {
		r.top = append(r.top, g.blob(r.up, g.logNormal(4<<20, 2)))
	}
}

func (g *generator) repo() traceRepo {
	b := g.IntN(len(g.bases))
	r := traceRepo{up: g.ups[b%len(g.ups)], shared: g.bases[b]}
	for range g.IntN(4) {
		r.own = append(r.own, g.blob(r.up, g.logNormal(8<<20, 2)))
	}
	g.release(&r)
	return r
}

func (r *traceRepo) all() []int32 {
	return slices.Concat(r.top[:2], r.shared, r.own, r.top[2:])
}

func newTrace(seed uint64, days int64) *trace {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1))}
	// A registry nearby, a cloud's, and one far away that throttles.
	g.ups = []upstream{{5, 200_000}, {60, 40_000}, {400, 8_000}}
	for i := range 30 {
		var base []int32
		for range 1 + g.IntN(3) {
			base = append(base, g.blob(g.ups[i%3], g.logNormal(25<<20, 1)))
		}
		g.bases = append(g.bases, base)
	}
	var repos []traceRepo
	var weight []float64
	sum := 0.0
	for i := range traceRepos {
		repos = append(repos, g.repo())
		sum += math.Pow(float64(i+1), -zipfExponent)
		weight = append(weight, sum)
	}
	for day := range days {
		for range tracePulls {
			r := &repos[min(sortSearch(weight, g.Float64()*sum), len(repos)-1)]
			if g.Float64() < releasePart {
				g.release(r)
			}
			g.pulls = append(g.pulls, pull{at: day*traceDay + g.Int64N(traceDay), blobs: r.all()})
		}
		for n := range int64(traceBatch) {
			r := g.repo() // of no further interest
			g.pulls = append(g.pulls, pull{at: day*traceDay + 2*3600*1000 + n*20_000, blobs: r.all()})
		}
	}
	slices.SortStableFunc(g.pulls, func(a, b pull) int { return cmp.Compare(a.at, b.at) })
	return &g.trace
}

func sortSearch(sums []float64, x float64) int {
	i, _ := slices.BinarySearch(sums, x)
	return i
}

// cached is a blob in the simulated cache.
type cached struct {
	traceBlob
	created, used int64
	uses          float64
	h             float64 // of GDSF
}

// policy tells what keeping a blob is worth at a time. touch runs at each use.
type policy struct {
	name  string
	touch func(c *cached, inflation float64)
	value func(c *cached, now int64) float64
}

func policies() []policy {
	return []policy{
		{name: "LRU", value: func(c *cached, _ int64) float64 { return float64(c.used) }},
		{name: "LFU", value: func(c *cached, now int64) float64 {
			return c.uses * math.Exp2(-float64(now-c.used)/traceDay)
		}},
		{name: "GDSF", touch: func(c *cached, inflation float64) { c.h = inflation + c.uses*c.cost/float64(c.size) },
			value: func(c *cached, _ int64) float64 { return c.h }},
		{name: "hyperbolic", value: func(c *cached, now int64) float64 {
			return c.uses * c.cost / float64(c.size) / (float64(now-c.created)/60_000 + 1)
		}},
		{name: "Fairway", value: func(c *cached, now int64) float64 {
			return value(&Facts{Size: c.size, Uses: int64(c.uses), FetchMS: int64(c.cost)}, now-c.used)
		}},
	}
}

// score is what a policy made of a trace.
type score struct {
	hits, requests       int64
	hitBytes, askedBytes int64
	cost, costAll        float64 // ms spent on getting again, and without a cache
}

func (s score) byteHits() float64 { return 100 * float64(s.hitBytes) / float64(s.askedBytes) }
func (s score) hitPart() float64  { return 100 * float64(s.hits) / float64(s.requests) }
func (s score) costPart() float64 { return 100 * s.cost / s.costAll }

func (s score) String() string {
	return fmt.Sprintf("%.1f %.1f %.1f", s.byteHits(), s.hitPart(), s.costPart())
}

// replay runs a trace through a cache of some bytes with watermarks of 90 % and 80 %.
func replay(t *trace, p policy, quota int64) score {
	var s score
	var used int64
	var inflation float64
	in := map[int32]*cached{}
	evict := func(now int64) {
		ids := make([]int32, 0, len(in))
		value := make(map[int32]float64, len(in))
		for id, c := range in {
			ids, value[id] = append(ids, id), p.value(c, now)
		}
		slices.SortFunc(ids, func(a, b int32) int { return cmp.Or(cmp.Compare(value[a], value[b]), cmp.Compare(a, b)) })
		for _, id := range ids {
			if used <= quota*8/10 {
				break
			}
			used -= in[id].size
			inflation = max(inflation, in[id].h)
			delete(in, id)
		}
	}
	for n, q := range t.pulls {
		warm := n >= len(t.pulls)/4
		for _, id := range q.blobs {
			b := t.blobs[id]
			c, ok := in[id]
			if warm {
				s.requests, s.askedBytes, s.costAll = s.requests+1, s.askedBytes+b.size, s.costAll+b.cost
				if ok {
					s.hits, s.hitBytes = s.hits+1, s.hitBytes+b.size
				} else {
					s.cost += b.cost
				}
			}
			if !ok {
				if b.size > quota/5 {
					continue
				}
				c = &cached{traceBlob: b, created: q.at}
				in[id] = c
				used += b.size
			}
			c.used, c.uses = q.at, c.uses+1
			if p.touch != nil {
				p.touch(c, inflation)
			}
			if used >= quota*9/10 {
				evict(q.at)
			}
		}
	}
	return s
}

func traceQuotas() []int64 { return []int64{6 << 30, 15 << 30, 40 << 30} }

// BenchmarkPolicies makes the table of docs/eviction.md: means over four traces.
func BenchmarkPolicies(b *testing.B) {
	const seeds = 4
	var traces []*trace
	for seed := range uint64(seeds) {
		traces = append(traces, newTrace(seed+10, 14))
	}
	for _, quota := range traceQuotas() {
		for _, p := range policies() {
			b.Run(fmt.Sprintf("%dGiB/%s", quota>>30, p.name), func(b *testing.B) {
				for b.Loop() {
					var byteHits, hits, cost float64
					for _, tr := range traces {
						s := replay(tr, p, quota)
						byteHits, hits, cost = byteHits+s.byteHits(), hits+s.hitPart(), cost+s.costPart()
					}
					b.ReportMetric(byteHits/seeds, "%byte-hits")
					b.ReportMetric(hits/seeds, "%hits")
					b.ReportMetric(cost/seeds, "%cost")
				}
			})
		}
	}
}

func TestPolicy_BetterThanLRUInEveryRespectOnATraceOfPulls(t *testing.T) {
	tr := newTrace(10, 10)
	for _, quota := range traceQuotas()[:2] {
		all := policies()
		lru, ours := replay(tr, all[0], quota), replay(tr, all[len(all)-1], quota)
		if ours.byteHits() <= lru.byteHits() || ours.hitPart() <= lru.hitPart() || ours.costPart() >= lru.costPart() {
			t.Errorf("%s: byte hits, hits and cost in %% are %v, those of LRU %v", size(quota), ours, lru)
		}
	}
}

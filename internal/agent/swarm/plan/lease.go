package plan

import (
	"maps"
	"math"
	"slices"
	"time"
)

// grant leases up to want pieces that nobody has or fetches to m. Where none
// are left, pieces whose fetcher is overdue are leased once more.
func (e *entry) grant(now time.Duration, m *member, want int, r *Reply) {
	if now < e.quiet {
		r.Retry = int((e.quiet - now).Milliseconds())
		return
	}
	if e.members[m.Node] != m {
		r.Retry = r.Next // nobody would hear that it came
		return
	}
	if wait := e.headStart(now, m); wait > 0 {
		r.Retry = int(wait.Milliseconds()) + 1
		return
	}
	fetchers := e.fetchers(now, m)
	if fetchers > maxFetchers && m.leases == 0 {
		r.Retry = r.Next
		return
	}
	left := e.free.Count()
	if wait, slow := e.tooSlow(now, m, left, fetchers); slow {
		r.Retry = int(wait.Milliseconds())
		return
	}
	n := min(want, maxLease, max(1, left/(2*fetchers)))
	if m.starved >= starvedLong {
		m.relief = now + reliefFor
	}
	if now < m.relief {
		n = min(want, maxLease)
	}
	n = min(n, maxHeld-m.leases)
	for k := 0; k < len(e.free) && n > 0; k++ {
		if e.free[k] == 0 {
			continue
		}
		word := Bits{e.free[k]}
		word.Each(func(b int) {
			if i := k<<6 + b; n > 0 && !m.have.Has(i) {
				e.lease(now, m, i, r)
				n--
			}
		})
	}
	if len(r.Lease) > 0 {
		return
	}
	for _, i := range slices.Sorted(maps.Keys(e.leases)) {
		l := e.leases[i]
		age := now - l.at
		if l.m != m && n > 0 && age > max(overdueMin, 4*e.turn) && (age > overdueMax || now-l.m.seen > quietFor) {
			e.unlease(i)
			e.lease(now, m, i, r)
			n--
		}
	}
	if len(r.Lease) == 0 && now < m.relief {
		e.relieve(now, m, n, r)
	}
	if len(r.Lease) == 0 {
		r.Retry = max(250, len(e.list)/2)
	}
}

// headStart is how long m is kept waiting for the sake of the first piece, for
// which every runtime waits: over a link that all share it comes soonest if nobody
// else reads from the origin meanwhile. Few members may ask again before that. Where
// there are few pieces for each, nobody waits: the links of those who do stay empty.
func (e *entry) headStart(now time.Duration, m *member) time.Duration {
	l, leased := e.leases[0]
	if !leased || l.m == m || e.copies[0] > 0 || e.pieces < headPer*min(len(e.list), maxFetchers) {
		return 0
	}
	wait := l.at + headAlone - now
	if len(e.list) <= maxFetchers {
		wait = min(wait, headAgain)
	}
	return wait
}

func (e *entry) lease(now time.Duration, m *member, i int, r *Reply) {
	e.lend(now, m, i)
	r.Lease = append(r.Lease, i)
}

func (e *entry) lend(now time.Duration, m *member, i int) {
	e.free.Clear(i)
	e.leases[i] = lease{m, now}
	m.leases++
	m.granted = now
}

// relieve leases pieces that others have to one who cannot get them there, for
// whatever reason.
func (e *entry) relieve(now time.Duration, m *member, n int, r *Reply) {
	for i := 0; i < e.pieces && n > 0; i++ {
		if _, leased := e.leases[i]; !leased && !m.have.Has(i) {
			e.lease(now, m, i, r)
			n--
		}
	}
}

// fetchers counts the members that read from the origin, m included.
func (e *entry) fetchers(now time.Duration, m *member) int {
	n := 1
	for _, x := range e.list {
		if x != m && (x.leases > 0 || x.granted > 0 && now-x.granted < time.Second) && !x.done {
			n++
		}
	}
	return n
}

// tooSlow reports whether m brings so much less than its share that the others
// do better without it, and for how long to keep it waiting: what it brings, it
// also has to hand on. It gets a piece now and then, to show whether it has
// become faster, but not near the end.
func (e *entry) tooSlow(now time.Duration, m *member, left, fetchers int) (time.Duration, bool) {
	if fetchers < 3 || m.came.since == 0 || now-m.came.since < time.Second {
		return 0, false
	}
	all := e.came.rate(now)
	if 3*m.came.rate(now)*float64(fetchers) >= all {
		return 0, false
	}
	rest := time.Duration(float64(left) / all * float64(time.Second))
	if now-m.granted > 2*announceEvery && rest > 4*m.turn {
		return 0, false
	}
	return announceEvery, true
}

// meter counts events a second, those of the last second or two.
type meter struct {
	n     float64
	at    time.Duration
	since time.Duration // the first event
}

func (c *meter) rate(now time.Duration) float64 {
	c.n *= math.Exp(-(now - c.at).Seconds())
	c.at = now
	return c.n
}

func (c *meter) count(now time.Duration) {
	if c.since == 0 {
		c.since = now
	}
	c.rate(now)
	c.n++
}

package plan

import "time"

// A pull works as long as any source has the bytes, also if whoever leads the blob gives
// no leases and whoever claims to hold it brings nothing, for whatever reason.
const (
	// starvedAlone without a piece, or less than drip pieces in dripping: go to the origin
	// without a lease.
	starvedAlone = 4 * time.Second
	dripping     = 8 * time.Second
	drip         = 3
	aloneFirst   = 2           // pieces that are taken so at first
	aloneAgain   = time.Second // after there was none to take
)

// alone is how a download gets on by itself. It takes a few pieces, and twice as many
// each time that they come before others bring as many.
type alone struct {
	patience time.Duration
	took     int // pieces of the last step; 0: it waits for others
	out      int // of these, on their way
	others   int // pieces that others brought since
	next     time.Duration
	recent   [drip]time.Duration // when the last pieces came, the latest in front
	waited   time.Duration       // in vain, and not asked for yet
}

// came notes a piece, and whether the origin brought it.
func (a *alone) came(now time.Duration, origin bool) {
	copy(a.recent[1:], a.recent[:])
	a.recent[0] = now
	if origin && a.out > 0 {
		a.out--
		return
	}
	a.others++
}

// due is when to go on alone.
func (a *alone) due() time.Duration {
	return max(min(a.recent[0]+a.patience, a.recent[drip-1]+dripping), a.next)
}

// goAlone takes leases that nobody gave, if it is time.
func (d *Download) goAlone(now time.Duration) {
	a := &d.alone
	if d.solo || now < d.origin.retry || d.origin.inflight > 0 || d.leased.Count() > 0 {
		return
	}
	n := aloneFirst
	switch {
	case a.took > 0 && a.others < a.took:
		n = min(2*a.took, d.ahead())
	case now < a.due():
		a.took = 0
		return
	default:
		a.waited += now - a.recent[0]
	}
	a.took, a.others = d.takeAlone(n), 0
	a.out = a.took
	if a.took == 0 {
		a.next = now + aloneAgain
	}
}

// takeAlone leases up to n pieces that follow each other from a random one on.
func (d *Download) takeAlone(n int) (took int) {
	skip := d.rnd.IntN(max(1, d.left))
	for pass := 0; pass < 2 && took < n; pass++ {
		for i := 0; i < d.n && took < n; i++ {
			if d.have.Has(i) || d.leased.Has(i) || d.flights(i)[0].on && d.flights(i)[1].on {
				continue
			}
			if pass == 0 && skip > 0 {
				skip--
				continue
			}
			d.leased.Set(i)
			d.taken.Set(i)
			took++
		}
	}
	return took
}

// Waited returns for how long the download waited in vain since it was asked last.
func (d *Download) Waited() time.Duration {
	w := d.alone.waited
	d.alone.waited = 0
	return w
}

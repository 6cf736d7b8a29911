package plan

import "time"

// Next returns what to ask of whom now, and which flights to give up because
// their source is too slow. Flights that are given up need no Failed.
func (d *Download) Next(now time.Duration) (orders []Order, late []Cancel) {
	if d.left == 0 {
		return nil, nil
	}
	late = d.overdue(now)
	orders = d.fromOrigin(now, orders)
	orders = d.fromPeers(now, orders)
	return orders, late
}

// overdue gives up flights past their time and backs off from their sources.
func (d *Download) overdue(now time.Duration) (late []Cancel) {
	for k := 0; k < len(d.flying); k++ {
		piece := d.flying[k]
		fl := d.flights(piece)
		for c := range fl {
			f := &fl[c]
			if !f.on || now < d.dueOf(f) {
				continue
			}
			late = append(late, Cancel{nameOf(f.p), piece})
			if f.p == nil {
				d.originFailed(now)
				d.leader.back = append(d.leader.back, piece)
			} else {
				d.strike(now, f.at, f.p, false)
			}
			d.drop(f)
		}
		if !fl[0].on && !fl[1].on {
			delete(d.fly, piece)
			if !d.leased.Has(piece) {
				d.taken.Clear(piece)
			}
			d.flying[k] = d.flying[len(d.flying)-1]
			d.flying = d.flying[:len(d.flying)-1]
			k--
		}
	}
	return late
}

// dueOf returns when a flight is given up. One from the origin is not, as long
// as the origin delivers anything: it sends a run in order.
func (d *Download) dueOf(f *flight) time.Duration {
	if f.p == nil {
		return max(f.due, d.origin.last+max(originStall, 8*d.origin.gap))
	}
	if f.p.latency == 0 {
		return f.at + d.timeout(f.p) // by what others have shown since it was asked
	}
	return f.due
}

// fromOrigin orders runs of leased pieces.
func (d *Download) fromOrigin(now time.Duration, orders []Order) []Order {
	d.goAlone(now)
	d.spare(now)
	if d.solo && d.leased.Count() == 0 && now >= d.origin.retry {
		for i, n := 0, d.ahead(); i < d.n && n > 0; i++ {
			if !d.taken.Has(i) {
				d.leased.Set(i)
				d.taken.Set(i)
				n--
			}
		}
	}
	runs := originRuns
	if d.origin.gap == 0 {
		runs = 1 // a second one would bring the first piece in twice the time
	}
	for d.origin.runs < runs && now >= d.origin.retry {
		run := d.run()
		if len(run) == 0 {
			break
		}
		if d.origin.inflight == 0 {
			d.origin.last = now
		}
		for _, i := range run {
			d.leased.Clear(i)
			d.launch(i, nil, now, now+originStall)
		}
		d.origin.runs++
		orders = append(orders, Order{Origin, run})
	}
	return orders
}

// spare hands back leases of pieces that a good neighbour turns out to have.
func (d *Download) spare(now time.Duration) {
	if d.alone.took > 0 {
		return // nobody has turned out to be good
	}
	d.leased.Each(func(i int) {
		if d.avail[i] == 0 {
			return
		}
		for _, p := range d.list {
			if p.strikes == 0 && p.busy == 0 && now >= p.until && p.have.Has(i) {
				d.leased.Clear(i)
				d.release(i)
				d.leader.back = append(d.leader.back, i)
				return
			}
		}
	})
}

// run returns the first leased pieces that follow each other.
func (d *Download) run() (run []int) {
	limit := max(1, min(originRun, d.ahead()/2))
	d.leased.Each(func(i int) {
		if len(run) < limit && (len(run) == 0 || run[len(run)-1] == i-1) {
			run = append(run, i)
		}
	})
	return run
}

// fromPeers fills the windows: while there is room, the less loaded of two
// random neighbours is asked for the rarest piece that it has.
func (d *Download) fromPeers(now time.Duration, orders []Order) []Order {
	first := len(orders)
	var ready []*peer
	for _, p := range d.list {
		if now >= p.until && p.flight < int(p.window) && d.useful(p) {
			ready = append(ready, p)
		}
	}
	for len(ready) > 0 && d.inPeers < int(d.window) {
		k := d.rnd.IntN(len(ready))
		if other := d.rnd.IntN(len(ready)); ready[other].cost() < ready[k].cost() {
			k = other
		}
		p := ready[k]
		i := d.rarest(p)
		if i >= 0 {
			d.launch(i, p, now, now+d.timeout(p))
			orders = add(orders, first, p.id, i)
		}
		if i < 0 || p.flight >= int(p.window) || !d.useful(p) {
			ready[k] = ready[len(ready)-1]
			ready = ready[:len(ready)-1]
		}
	}
	if d.inPeers < int(d.window) && !d.low {
		orders = d.endgame(now, orders, first)
	}
	return orders
}

// endgame asks a second source for pieces that take unusually long, when there
// is nothing else to ask for.
func (d *Download) endgame(now time.Duration, orders []Order, first int) []Order {
	if d.anythingFree(now) {
		return orders
	}
	patience := max(2*d.latency, 50*time.Millisecond)
	for _, i := range d.flying {
		if d.inPeers >= int(d.window) {
			break
		}
		fl := d.flights(i)
		a, b := &fl[0], &fl[1]
		if a.on == b.on {
			continue // both flying
		}
		if b.on {
			a = b
		}
		if now-a.at < patience {
			continue
		}
		if p := d.second(now, i, a.p); p != nil {
			d.launch(i, p, now, now+d.timeout(p))
			orders = add(orders, first, p.id, i)
		}
	}
	return orders
}

// anythingFree reports whether some neighbour that may be asked has a piece that
// nothing brings.
func (d *Download) anythingFree(now time.Duration) bool {
	for _, p := range d.list {
		if now >= p.until && d.useful(p) {
			return true
		}
	}
	return false
}

// second returns the least loaded neighbour that has the piece, is not the one
// it is already asked of, and has room.
func (d *Download) second(now time.Duration, piece int, not *peer) (best *peer) {
	for _, p := range d.list {
		if p != not && now >= p.until && p.flight < int(p.window) && p.have.Has(piece) &&
			(best == nil || p.cost() < best.cost()) {
			best = p
		}
	}
	return best
}

func (d *Download) launch(piece int, p *peer, now, due time.Duration) {
	k := 0
	if d.fly[piece] == nil {
		d.fly[piece] = &[2]flight{}
	}
	fl := d.fly[piece]
	switch a, b := &fl[0], &fl[1]; {
	case a.on && b.on: // a lease beside two peers: the one that was asked last makes room
		d.drop(b)
		k = 1
	case a.on:
		k = 1
	case !b.on:
		d.flying = append(d.flying, piece)
	}
	fl[k] = flight{p: p, at: now, due: due, on: true}
	d.taken.Set(piece)
	if p == nil {
		d.origin.inflight++
		return
	}
	p.flight++
	d.inPeers++
}

// flies reports whether a piece is on its way from p.
func (d *Download) flies(piece int, p *peer) bool {
	for _, f := range d.flights(piece) {
		if f.on && f.p == p {
			return true
		}
	}
	return false
}

// add appends a piece to the order for n among orders[first:].
func add(orders []Order, first int, n Node, piece int) []Order {
	for k := first; k < len(orders); k++ {
		if orders[k].From == n {
			orders[k].Pieces = append(orders[k].Pieces, piece)
			return orders
		}
	}
	return append(orders, Order{n, []int{piece}})
}

// Wake returns when Next or Announce may have something new to say although nothing happened.
func (d *Download) Wake(now time.Duration) time.Duration {
	wake := now + time.Second
	for _, i := range d.flying {
		fl := d.flights(i)
		for k := range fl {
			if f := &fl[k]; f.on {
				wake = min(wake, d.dueOf(f))
			}
		}
	}
	if len(d.flying) > 0 && d.latency > 0 {
		wake = min(wake, now+max(50*time.Millisecond, d.latency))
	}
	for _, p := range d.list {
		if p.until > now {
			wake = min(wake, p.until)
		}
	}
	if d.origin.retry > now {
		wake = min(wake, d.origin.retry)
	}
	if due := d.alone.due(); !d.solo && due > now {
		wake = min(wake, due)
	}
	if !d.leader.asked {
		wake = min(wake, max(d.leader.next, now+10*time.Millisecond))
		for _, at := range []time.Duration{d.leader.lease, d.leader.starved} {
			if at > now {
				wake = min(wake, at)
			}
		}
	}
	return max(wake, now+time.Millisecond)
}

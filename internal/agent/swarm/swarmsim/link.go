package swarmsim

import "time"

// link serves quanta one after the other at its rate. As an uplink it takes them
// from its transfers in turn, as a downlink in the order of their arrival.
type link struct {
	s       *sim
	rate    float64 // bytes a second
	down    bool
	active  []*transfer
	turn    int
	sending bool
	free    time.Duration // as a downlink: when what has arrived is received
	bytes   int64
}

// ahead is how many quanta of one transfer may be on their way: a slow receiver
// stops its own transfer, not the sender's link.
const ahead = 4

type transfer struct {
	from, to *link
	quanta   int // to send
	size     int // bytes of a quantum
	flying   int
	done     func(ok bool)
	over     bool
}

func (l *link) start(t *transfer) {
	l.active = append(l.active, t)
	l.serve()
}

// stop ends a transfer early.
func (l *link) stop(t *transfer) {
	if t.over {
		return
	}
	t.over = true
	l.remove(t)
	t.done(false)
}

func (l *link) remove(t *transfer) {
	for k, x := range l.active {
		if x == t {
			l.active = append(l.active[:k], l.active[k+1:]...)
			if l.turn > k {
				l.turn--
			}
			return
		}
	}
}

func (l *link) serve() {
	if l.sending || l.down {
		return
	}
	for range l.active {
		if l.turn >= len(l.active) {
			l.turn = 0
		}
		t := l.active[l.turn]
		l.turn++
		if t.flying >= ahead {
			continue
		}
		l.send(t)
		return
	}
}

func (l *link) send(t *transfer) {
	t.quanta--
	t.flying++
	l.sending = true
	if t.quanta == 0 {
		l.remove(t)
	}
	took := time.Duration(float64(t.size) / l.rate * float64(time.Second))
	s := l.s
	s.after(took, func() {
		l.sending = false
		l.bytes += int64(t.size)
		// Cut-through: the receiver takes a quantum while it is being sent.
		arrive := s.now + s.Latency
		recv := time.Duration(float64(t.size) / t.to.rate * float64(time.Second))
		t.to.free = max(t.to.free+recv, arrive)
		s.after(t.to.free-s.now, func() {
			t.flying--
			if t.over || l.down || t.to.down {
				return
			}
			if t.quanta == 0 && t.flying == 0 {
				t.over = true
				t.done(true)
			}
			l.serve()
		})
		l.serve()
	})
}

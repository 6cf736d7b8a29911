package plan

import "time"

// Announce is what a node tells the leader of a blob, and what it asks for.
type Announce struct {
	Blob    string `json:"blob"`
	Node    Node   `json:"node"`
	Zone    string `json:"zone,omitempty"`
	Pieces  int    `json:"pieces"`
	Have    Bits   `json:"have,omitzero"`     // everything that is here; nil: as before, and Got
	Got     []int  `json:"got,omitempty"`     // pieces that came since the last answer
	Back    []int  `json:"back,omitempty"`    // leases handed back
	Want    int    `json:"want,omitempty"`    // leases asked for
	Peers   int    `json:"peers,omitempty"`   // neighbours asked for
	Whole   bool   `json:"whole,omitempty"`   // only such that hold everything
	Lost    []Node `json:"lost,omitempty"`    // members that do not deliver
	Starved bool   `json:"starved,omitempty"` // nothing to do for want of pieces
	Done    bool   `json:"done,omitempty"`    // holds everything, wants nothing
	Leaving bool   `json:"leaving,omitempty"` // holds nothing any more
	New     bool   `json:"new,omitempty"`     // just begun: of leases that it had it knows nothing
	Moved   bool   `json:"moved,omitempty"`   // another member led until now
	Held    []int  `json:"held,omitempty"`    // with Moved: leases that it gave
}

// Member is a node that wants or holds a blob.
type Member struct {
	Node Node   `json:"node"`
	Zone string `json:"zone,omitempty"`
}

// Reply is the leader's answer. Times are in milliseconds from its receipt.
type Reply struct {
	Lease   []int    `json:"lease,omitempty"`   // pieces to fetch from the origin
	Peers   []Member `json:"peers,omitempty"`   // neighbours
	Next    int      `json:"next,omitempty"`    // announce again after
	Retry   int      `json:"retry,omitempty"`   // ask for leases again after
	Members int      `json:"members,omitempty"` // nodes that want or hold the blob
	Holders int      `json:"holders,omitempty"` // of these, nodes that hold all of it
	Leader  Node     `json:"leader,omitempty"`  // ask this member instead
}

// Neighbours wanted: below few, more are asked for.
const (
	wantPeers = 24
	fewPeers  = 12
	// MaxPeers is how many neighbours a download keeps when others choose it.
	MaxPeers = 2 * wantPeers
)

// leader is what a Download knows of its dealings with the leader.
type leader struct {
	asked   bool
	next    time.Duration // full announcement due
	lease   time.Duration // leases may be asked for again
	starved time.Duration // may complain again
	got     Bits          // pieces that the leader knows to be here
	sent    Bits          // as got will be once the announcement under way is answered
	back    []int
	lost    []Node
	members int
	holders int
	moved   bool
	heard   bool // it has answered once
	// Of the announcement under way, to tell again if it is not answered.
	sentBack []int
	sentLost []Node
}

// ahead returns how many leased pieces the node can fetch in a short while, by the
// pace so far. They are no more than it has brought: whoever began while the others
// waited would else take a large part of a small blob at a pace that ends with the
// wait, and all wait for it at the end.
func (d *Download) ahead() int {
	if d.origin.gap <= 0 {
		return 2
	}
	return max(2, min(int(originAhead/d.origin.gap), originRuns*originRun, d.origin.brought))
}

// want returns how many leases to ask for.
func (d *Download) want(now time.Duration) int {
	if now < d.origin.retry {
		return 0
	}
	aim := d.ahead()
	out := d.leased.Count() + d.origin.inflight
	if out > aim/2 {
		return 0
	}
	return min(aim-out, d.left)
}

// starving reports whether there is nothing to do although pieces are missing.
func (d *Download) starving(now time.Duration) bool {
	return d.left > 0 && len(d.flying) == 0 && d.leased.Count() == 0 && !d.anythingFree(now)
}

// Announce returns what to tell the leader now, if anything. Until Replied or
// Unanswered is called it has nothing more to say.
func (d *Download) Announce(now time.Duration) (Announce, bool) {
	l := &d.leader
	if l.asked || d.left == 0 || d.solo {
		return Announce{}, false
	}
	want := 0
	if now >= l.lease {
		want = d.want(now)
	}
	full := now >= l.next
	starved := now >= l.starved && now >= l.lease && d.starving(now)
	if want == 0 && !full && !starved {
		return Announce{}, false
	}
	a := Announce{Blob: d.blob, Node: d.self, Zone: d.zone, Pieces: d.n, Want: want, Back: l.back, Lost: l.lost, Starved: starved, New: !l.heard}
	if len(d.list) < fewPeers && (full || starved) && (l.members == 0 || l.members > len(d.list)+1) {
		a.Peers = wantPeers
	}
	if l.moved {
		full, a.Moved = true, true
		a.Held = d.held()
	}
	l.sent = d.have.Clone()
	if full || l.got == nil {
		a.Have = l.sent
	} else {
		for k, w := range d.have {
			fresh := Bits{w &^ l.got[k]}
			fresh.Each(func(i int) { a.Got = append(a.Got, k<<6+i) })
		}
	}
	l.asked, l.sentBack, l.sentLost, l.back, l.lost = true, l.back, l.lost, nil, nil
	return a, true
}

// Replied takes the leader's answer in.
func (d *Download) Replied(now time.Duration, r Reply) {
	l := &d.leader
	l.asked, l.got, l.sentBack, l.sentLost = false, l.sent, nil, nil
	l.members, l.holders, l.moved, l.heard = r.Members, r.Holders, false, true
	ms := func(n int) time.Duration { return time.Duration(max(0, min(n, 3_600_000))) * time.Millisecond }
	if now >= l.next {
		l.next = now + max(ms(r.Next), 100*time.Millisecond)
	}
	l.lease = now + ms(r.Retry)
	l.starved = now + max(starvedAsk, ms(r.Retry))
	for _, i := range r.Lease {
		// The leader leases what is on its way from a peer only if it knows of no
		// good holder: then both sources may race.
		if i >= 0 && i < d.n && !d.have.Has(i) && !d.flies(i, nil) {
			d.leased.Set(i)
			d.taken.Set(i)
		}
	}
	for _, m := range r.Peers {
		if len(d.list) >= MaxPeers {
			break // whatever the leader says: each neighbour costs a connection and a bitmap
		}
		d.AddPeer(m.Node, d.distance(m))
	}
}

func (d *Download) distance(m Member) int {
	if d.zone != "" && m.Zone == d.zone {
		return SameZone
	}
	return Elsewhere
}

// Unanswered notes that the leader could not be reached. What it was told goes
// to the next one, with everything that is here.
func (d *Download) Unanswered(now time.Duration, again time.Duration) {
	l := &d.leader
	l.asked, l.got = false, nil
	l.back, l.lost = append(l.back, l.sentBack...), append(l.lost, l.sentLost...)
	l.next = now + again
	l.lease = max(l.lease, now+again)
	l.moved = l.members > 0
}

// Moved notes that another member leads now. It hears of everything that is
// here and of the leases that the one before gave.
func (d *Download) Moved(now time.Duration) {
	d.leader.got, d.leader.next = nil, now
	d.leader.moved = d.leader.members > 0
}

// held returns the leases that are not settled.
func (d *Download) held() (pieces []int) {
	d.leased.Each(func(i int) { pieces = append(pieces, i) })
	for _, i := range d.flying {
		if d.flies(i, nil) {
			pieces = append(pieces, i)
		}
	}
	return pieces
}

// Members returns how many nodes want or hold the blob, and how many hold all
// of it, as the leader said last.
func (d *Download) Members() (all, holders int) { return d.leader.members, d.leader.holders }

// Stuck reports whether the origin fails and no neighbour has anything to ask
// for, and since when nothing has come.
func (d *Download) Stuck(now time.Duration) (since time.Duration, stuck bool) {
	return d.progress, d.origin.strikes > 0 && d.leader.members > 0 && d.starving(now)
}

// NoticeEvery is how long a node gathers new pieces before it tells its
// neighbours: the more of them, the longer, so that its notices a second do not
// grow with them.
func NoticeEvery(neighbours int) time.Duration {
	return 20 * time.Millisecond * time.Duration(max(1, neighbours/12))
}

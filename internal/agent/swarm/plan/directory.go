package plan

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
)

// Tuning of the Directory.
const (
	maxFetchers   = 24           // nodes that read one blob from the origin at once
	maxLease      = 16           // pieces of one grant
	maxHeld       = 4 * maxLease // leases of one member
	headAlone     = 50 * time.Millisecond
	headAgain     = 10 * time.Millisecond
	headPer       = 10 // pieces for each who reads from the origin; with fewer, the wait costs more than it brings
	suspectFor    = 30 * time.Second
	movedGrace    = 500 * time.Millisecond
	starvedLong   = 3 // announcements without a new piece
	reliefFor     = 5 * time.Second
	announceEvery = time.Second
	announceEach  = 2 * time.Millisecond // per member: a leader hears at most 500 a second
	overdueMin    = 2 * time.Second
	overdueMax    = 10 * time.Second // even if its holder is alive
	quietFor      = 3 * time.Second  // without a word from a holder: it is not
)

// DirectoryLimits bound what a Directory keeps.
type DirectoryLimits struct {
	Blobs   int // entries
	Members int // recorded for one blob; beyond it a random one makes room
	Bytes   int // of memory, about; 0 = 64 MiB
	TTL     time.Duration
}

// Directory keeps, for the blobs that this node leads, who wants and holds them
// and who fetches which piece from the origin. It is not safe for concurrent use.
type Directory struct {
	lim     DirectoryLimits
	rnd     *rand.Rand
	entries map[slot]*entry
	sizes   map[string][]int // blob → of how many pieces there are records
	bytes   int              // of all entries
	owed    map[Node]int     // of these, by who announced the blob first
}

// slot is where the records of a blob are. Of how many pieces a blob is made
// follows from its size, which is a claim: nodes that believe another one have
// records of their own.
type slot struct {
	blob   string
	pieces int
}

type entry struct {
	pieces  int
	by      Node // who announced it first
	bytes   int  // as it was charged last
	members map[Node]*member
	list    []*member
	copies  []uint16 // by piece: recorded members that have it
	free    Bits     // neither held nor leased
	leases  map[int]lease
	turn    time.Duration // of a leased piece, smoothed
	came    meter         // leased pieces
	seen    int           // members ever recorded or turned away, for the sampling
	used    time.Duration
	quiet   time.Duration // no leases before: members still come over from another leader
}

type lease struct {
	m  *member
	at time.Duration
}

type member struct {
	Member
	have    Bits
	counted bool // have is in entry.copies
	count   int
	done    bool
	at      int
	seen    time.Duration
	until   time.Duration // forgotten after
	suspect time.Duration // not trusted before
	starved int           // announcements since its last piece that it has nothing to do
	relief  time.Duration // until then it may fetch what others have
	// Who complained of it, and when.
	accusers map[Node]time.Duration
	leases   int
	granted  time.Duration // last grant
	turn     time.Duration
	came     meter
}

// NewDirectory returns an empty directory.
func NewDirectory(lim DirectoryLimits, rnd *rand.Rand) *Directory {
	if lim.Blobs <= 0 {
		lim.Blobs = 20_000
	}
	if lim.Members <= 0 {
		lim.Members = 4096
	}
	if lim.Bytes <= 0 {
		lim.Bytes = 64 << 20
	}
	if lim.TTL <= 0 {
		lim.TTL = time.Hour
	}
	return &Directory{lim: lim, rnd: rnd, entries: map[slot]*entry{}, sizes: map[string][]int{}, owed: map[Node]int{}}
}

// Known reports whether somebody announced the blob here lately.
func (d *Directory) Known(blob string) bool { return len(d.sizes[blob]) > 0 }

// Len returns how many blobs and members of blobs are recorded.
func (d *Directory) Len() (blobs, members int) {
	for _, e := range d.entries {
		members += len(e.list)
	}
	return len(d.entries), members
}

// Announce records what a node says and answers it. Invalid: the announcement
// contradicts itself.
func (d *Directory) Announce(now time.Duration, a Announce) (Reply, error) {
	if a.Blob == "" || a.Node == "" || a.Node == Origin || a.Pieces <= 0 || a.Pieces > MaxPieces {
		return Reply{}, fault.New(fault.Invalid, "announcement without blob, node or pieces")
	}
	if a.Leaving { // it does not say which
		for _, pieces := range d.sizes[a.Blob] {
			e := d.entries[slot{a.Blob, pieces}]
			e.used = now
			e.remove(e.members[a.Node])
			d.charge(e)
		}
		return Reply{}, nil
	}
	at := slot{a.Blob, a.Pieces}
	e := d.entries[at]
	if e == nil {
		e = &entry{pieces: a.Pieces, by: a.Node, members: map[Node]*member{}, copies: make([]uint16, a.Pieces), free: FullBits(a.Pieces), leases: map[int]lease{}}
		d.entries[at] = e
		d.sizes[a.Blob] = append(d.sizes[a.Blob], a.Pieces)
		if a.Moved {
			e.quiet = now + movedGrace
		}
	}
	e.used = now
	if len(a.Zone) > zoneMax {
		a.Zone = "" // the random neighbours do without it
	}
	m := d.member(now, e, a)
	e.told(now, m, a)
	next := max(announceEvery, time.Duration(len(e.list))*announceEach)
	if a.Done {
		m.until = now + d.lim.TTL
		next = d.lim.TTL / 3
	} else {
		m.until = now + 3*next + 5*time.Second
	}
	r := Reply{Next: int(next.Milliseconds()), Members: len(e.list), Holders: e.holders()}
	if a.Want > 0 || a.Starved {
		e.grant(now, m, max(1, a.Want), &r)
	}
	switch {
	case a.Peers > 0 && a.Whole:
		r.Peers = d.whole(now, e, m, min(a.Peers, 64))
	case a.Peers > 0:
		r.Peers = d.sample(now, e, m, min(a.Peers, 64))
	}
	d.charge(e)
	d.shrink(at)
	return r, nil
}

// member returns the record of the announcing node. When the blob has more
// members than may be recorded, each has about the same chance to be among them, but
// for who comes with leases of another leader; who is not gets neighbours and no leases.
func (d *Directory) member(now time.Duration, e *entry, a Announce) *member {
	m := e.members[a.Node]
	if m == nil {
		m = &member{Member: Member{a.Node, a.Zone}, have: NewBits(e.pieces)}
		e.seen++
		if most := d.most(e); len(e.list) >= most {
			var x *member
			if len(a.Held) > 0 || d.rnd.IntN(e.seen) < most {
				x = d.dispensable(e)
			}
			if x == nil {
				m.seen = now
				return m
			}
			e.remove(x)
		}
		m.at, m.counted = len(e.list), true
		e.members[a.Node] = m
		e.list = append(e.list, m)
	}
	m.seen = now
	if a.Starved {
		m.starved++
	}
	return m
}

// dispensable returns a random member whose record can go without anything being
// fetched again for it: nothing is leased to it, and it is not the only one to
// have some piece. nil: a few tries found none.
func (d *Directory) dispensable(e *entry) *member {
	for range 8 {
		if x := e.list[d.rnd.IntN(len(e.list))]; x.leases == 0 && !e.needs(x) {
			return x
		}
	}
	return nil
}

// needs reports whether some piece is recorded of m only.
func (e *entry) needs(m *member) (only bool) {
	if m.counted {
		m.have.Each(func(i int) { only = only || e.copies[i] == 1 })
	}
	return only
}

// told takes in what a member has, has fetched, hands back, and misses.
func (e *entry) told(now time.Duration, m *member, a Announce) {
	for _, i := range a.Got {
		if i >= 0 && i < e.pieces {
			e.settle(now, m, i)
			e.gain(m, i)
		}
	}
	if a.Have != nil {
		have := a.Have.fit(e.pieces)
		have.Each(func(i int) {
			e.settle(now, m, i)
			e.gain(m, i)
		})
		m.have.Clone().Each(func(i int) {
			if !have.Has(i) {
				e.lose(m, i)
			}
		})
	}
	if a.Done {
		FullBits(e.pieces).Each(func(i int) { e.gain(m, i) })
	}
	m.done = m.count == e.pieces
	if a.New {
		e.reclaim(m) // of a process that was killed, or of a pull that was given up
	}
	if a.Moved {
		for _, i := range a.Held {
			if i >= 0 && i < e.pieces && e.free.Has(i) && m.leases < maxHeld {
				e.lend(now, m, i)
			}
		}
	}
	if len(a.Back) > 0 {
		m.relief, m.starved = 0, 0 // a neighbour has them after all, or the origin does not bring them
	}
	for _, i := range a.Back {
		if l, ok := e.leases[i]; ok && l.m == m {
			e.unlease(i)
		}
	}
	e.accuse(now, m, a)
	if !m.counted && e.members[m.Node] == m && now >= m.suspect {
		m.counted = true
		m.have.Each(func(i int) { e.copies[i]++; e.free.Clear(i) })
	}
}

// accuse takes in whom a member complains of. One who is busy may miss a
// deadline, so it takes several to be believed, or one who has nothing left to
// do. What only a suspect has is fetched once more.
func (e *entry) accuse(now time.Duration, m *member, a Announce) {
	for _, n := range a.Lost {
		x := e.members[n]
		if x == nil || x == m {
			continue
		}
		if x.accusers == nil {
			x.accusers = map[Node]time.Duration{}
		}
		x.accusers[m.Node] = now
	}
	for _, x := range e.list {
		if len(x.accusers) == 0 {
			continue
		}
		by := 0
		for n, at := range x.accusers {
			if now-at > suspectFor {
				delete(x.accusers, n)
				continue
			}
			by++
		}
		_, mine := x.accusers[m.Node]
		if by >= max(2, len(e.list)/3) || mine && a.Starved {
			x.suspect = now + suspectFor
			clear(x.accusers)
			e.uncount(x)
			e.reclaim(x)
		}
	}
}

// settle ends the lease of a piece that its holder reports to have.
func (e *entry) settle(now time.Duration, m *member, i int) {
	l, ok := e.leases[i]
	if !ok || l.m != m {
		return
	}
	took := now - l.at
	smooth(&e.turn, took)
	smooth(&m.turn, took)
	e.came.count(now)
	m.came.count(now)
	m.leases--
	delete(e.leases, i)
}

func smooth(avg *time.Duration, x time.Duration) {
	if *avg == 0 {
		*avg = x
	}
	*avg += (x - *avg) / 8
}

func (e *entry) gain(m *member, i int) {
	if m.have.Has(i) {
		return
	}
	m.have.Set(i)
	m.count++
	m.starved = 0
	if m.counted {
		e.copies[i]++
		e.free.Clear(i)
	}
}

func (e *entry) lose(m *member, i int) {
	m.have.Clear(i)
	m.count--
	if m.counted {
		e.drop(i)
	}
}

func (e *entry) drop(i int) {
	if e.copies[i]--; e.copies[i] == 0 {
		if _, leased := e.leases[i]; !leased {
			e.free.Set(i)
		}
	}
}

func (e *entry) uncount(m *member) {
	if m.counted {
		m.counted = false
		m.have.Each(e.drop)
	}
}

func (e *entry) unlease(i int) {
	l := e.leases[i]
	l.m.leases--
	delete(e.leases, i)
	if e.copies[i] == 0 {
		e.free.Set(i)
	}
}

// reclaim takes all leases of a member back.
func (e *entry) reclaim(m *member) {
	if m.leases == 0 {
		return
	}
	for i, l := range e.leases {
		if l.m == m {
			e.unlease(i)
		}
	}
}

func (e *entry) remove(m *member) {
	if m == nil || e.members[m.Node] != m {
		return
	}
	e.uncount(m)
	e.reclaim(m)
	last := e.list[len(e.list)-1]
	e.list[m.at], last.at = last, m.at
	e.list = e.list[:len(e.list)-1]
	delete(e.members, m.Node)
}

func (e *entry) holders() (n int) {
	for _, m := range e.list {
		if m.done {
			n++
		}
	}
	return n
}

// Gone forgets a node that left the cluster, in all blobs, and returns those
// that it held all of, with their pieces.
func (d *Directory) Gone(n Node) map[string]int {
	held := map[string]int{}
	for at, e := range d.entries {
		if m := e.members[n]; m != nil && m.done {
			held[at.blob] = e.pieces
		}
		e.remove(e.members[n])
		d.charge(e)
	}
	return held
}

// Expire forgets members that were silent for too long, and blobs without members.
func (d *Directory) Expire(now time.Duration) {
	for at, e := range d.entries {
		for k := len(e.list) - 1; k >= 0; k-- {
			if m := e.list[k]; now > m.until {
				e.remove(m)
			}
		}
		d.charge(e)
		if len(e.list) == 0 {
			d.forget(at)
		}
	}
}

func (d *Directory) forget(at slot) {
	e := d.entries[at]
	d.bytes -= e.bytes
	if d.owed[e.by] -= e.bytes; d.owed[e.by] <= 0 {
		delete(d.owed, e.by)
	}
	delete(d.entries, at)
	d.sizes[at.blob] = slices.DeleteFunc(d.sizes[at.blob], func(n int) bool { return n == at.pieces })
	if len(d.sizes[at.blob]) == 0 {
		delete(d.sizes, at.blob)
	}
}

// whole returns up to n members other than m that hold everything, from a random
// place on. The holders may be few among many that wait for them.
func (d *Directory) whole(now time.Duration, e *entry, m *member, n int) (out []Member) {
	start := d.rnd.IntN(max(1, len(e.list)))
	for k := 0; k < len(e.list) && len(out) < n; k++ {
		if x := e.list[(start+k)%len(e.list)]; x.Node != m.Node && x.done && now >= x.suspect {
			out = append(out, x.Member)
		}
	}
	return out
}

// sample returns up to n random members other than m: half of them from its
// zone where there are as many.
func (d *Directory) sample(now time.Duration, e *entry, m *member, n int) (out []Member) {
	taken := map[Node]bool{m.Node: true}
	pick := func(limit int, ok func(*member) bool) {
		start := d.rnd.IntN(max(1, len(e.list)))
		tries := min(len(e.list), 8*n)
		for k := 0; k < tries && len(out) < limit; k++ {
			x := e.list[(start+k)%len(e.list)]
			if len(e.list) > 8*n {
				x = e.list[d.rnd.IntN(len(e.list))]
			}
			if !taken[x.Node] && now >= x.suspect && ok(x) {
				taken[x.Node] = true
				out = append(out, x.Member)
			}
		}
	}
	if m.Zone != "" {
		pick(n/2, func(x *member) bool { return x.Zone == m.Zone })
	}
	pick(n, func(*member) bool { return true })
	return out
}

package plan

import (
	"math/rand/v2"
	"time"
)

// Origin is the name under which orders go to the registry or upstream.
const Origin Node = "origin"

// Tuning of a Download. The figures come from the simulation (docs/p2p.md).
const (
	latencyAim  = 120 * time.Millisecond // windows grow while a piece takes less than this
	peerWindow  = 8                      // pieces in flight from one peer, at most
	totalWindow = 48                     // pieces in flight from all peers, at most
	startWindow = 12
	floorWindow = 4
	originRuns  = 2  // runs of leased pieces read from the origin at once
	originRun   = 16 // pieces of one run, at most
	originAhead = 300 * time.Millisecond
	originStall = 5 * time.Second // without one piece from the origin: it has failed
	minTimeout  = 2 * time.Second
	maxTimeout  = 20 * time.Second
	minBackoff  = time.Second
	maxBackoff  = 30 * time.Second
	busyMin     = 20 * time.Millisecond // a peer that refuses is left alone, longer each time in a row
	busyMax     = 2 * time.Second
	starvedAsk  = 250 * time.Millisecond
	headPieces  = 2 // come first: the runtime waits for the first byte
)

// Options say what to download.
type Options struct {
	Blob   string
	Self   Node
	Zone   string
	Pieces int
	Have   Bits // what is here already; copied
	Rand   *rand.Rand
	Now    time.Duration
	// Background keeps the window small: a preheat gives way to everybody else.
	Background bool
	// Patience is how long to wait for others that bring nothing; 0 = 4 s.
	Patience time.Duration
}

// Order asks From for pieces. Those of Origin are one ascending run.
type Order struct {
	From   Node
	Pieces []int
}

// Cancel withdraws one piece from an order.
type Cancel struct {
	From  Node
	Piece int
}

// flight is one piece on its way from one source; p == nil is the origin.
type flight struct {
	p       *peer
	at, due time.Duration
	on      bool
}

// Download is the schedule of one blob on one node. It is not safe for
// concurrent use; its owner serialises the calls.
type Download struct {
	blob   string
	self   Node
	zone   string
	n      int
	rnd    *rand.Rand
	low    bool
	have   Bits
	left   int
	taken  Bits // in flight or leased
	leased Bits // granted by the leader, not ordered yet

	fly    map[int]*[2]flight // by piece, of those that fly: the order, and its duplicate
	flying []int              // pieces with at least one flight
	none   [2]flight

	peers    map[Node]*peer
	list     []*peer
	avail    []uint16 // by piece: neighbours that have it
	inPeers  int      // flights from peers
	window   float64
	latency  time.Duration // of a piece from a peer, smoothed
	progress time.Duration // when the last piece came

	origin origin
	leader leader
	alone  alone
	solo   bool
}

// origin is what the Download knows of its own reads from the origin.
type origin struct {
	runs     int
	inflight int
	gap      time.Duration // between pieces, smoothed
	last     time.Duration // when the last piece came or a run began
	retry    time.Duration // not before
	strikes  int
	brought  int // pieces
}

// NewDownload returns the schedule of a blob that nobody was asked for yet.
func NewDownload(o Options) *Download {
	d := &Download{
		blob: o.Blob, self: o.Self, zone: o.Zone, n: o.Pieces, rnd: o.Rand, low: o.Background,
		have: o.Have.Clone().fit(o.Pieces), taken: NewBits(o.Pieces), leased: NewBits(o.Pieces),
		fly: map[int]*[2]flight{}, peers: map[Node]*peer{}, avail: make([]uint16, o.Pieces), window: startWindow, progress: o.Now,
	}
	if d.low {
		d.window = floorWindow
	}
	d.left = d.n - d.have.Count()
	d.leader.got = d.have.Clone()
	d.leader.next = o.Now
	d.alone.patience = o.Patience
	if o.Patience <= 0 {
		d.alone.patience = starvedAlone
	}
	for k := range d.alone.recent {
		d.alone.recent[k] = o.Now
	}
	return d
}

// Done reports whether every piece is here.
func (d *Download) Done() bool { return d.left == 0 }

// Have returns the pieces that are here; the caller does not change it.
func (d *Download) Have() Bits { return d.have }

// Progress returns how much of the blob is here, in 32nds.
func (d *Download) Progress() int { return 32 * (d.n - d.left) / d.n }

// Missing returns how many pieces are not here yet.
func (d *Download) Missing() int { return d.left }

// InFlight returns how many pieces are on their way from peers and from the origin.
func (d *Download) InFlight() (peers, origin int) { return d.inPeers, d.origin.inflight }

// Got notes that a piece has come and returns the flights that are now in vain.
// A piece that is here already changes nothing but the account of its source.
func (d *Download) Got(now time.Duration, piece int, from Node) (vain []Cancel) {
	if piece < 0 || piece >= d.n {
		return nil
	}
	d.land(now, piece, from)
	if d.have.Has(piece) {
		return nil
	}
	d.have.Set(piece)
	d.left--
	d.progress = now
	d.alone.came(now, from == Origin)
	d.leased.Clear(piece)
	fl := d.flights(piece)
	for k := range fl {
		if f := &fl[k]; f.on {
			vain = append(vain, Cancel{nameOf(f.p), piece})
			d.drop(f)
		}
	}
	d.taken.Set(piece)
	d.forget(piece)
	return vain
}

// Lost notes that pieces which were here are not any more (the blob as a whole was found wrong).
func (d *Download) Lost(pieces Bits) {
	pieces.fit(d.n).Each(func(i int) {
		if d.have.Has(i) {
			d.have.Clear(i)
			d.taken.Clear(i)
			if d.leader.got != nil {
				d.leader.got.Clear(i)
			}
			d.left++
		}
	})
}

// land ends the flight of a piece from a source that delivered.
func (d *Download) land(now time.Duration, piece int, from Node) {
	fl := d.flights(piece)
	for k := range fl {
		f := &fl[k]
		if !f.on || nameOf(f.p) != from {
			continue
		}
		took := now - f.at
		if f.p == nil {
			d.origin.delivered(now)
		} else {
			f.p.delivered(took)
			d.adapt(took)
		}
		d.drop(f)
		return
	}
	if p := d.peers[from]; p != nil {
		p.strikes = 0 // late, but it does deliver
	}
}

func (d *Download) adapt(took time.Duration) {
	if d.latency == 0 {
		d.latency = took
	}
	d.latency += (took - d.latency) / 8
	ceiling := float64(totalWindow)
	if d.low {
		ceiling = floorWindow
	}
	switch {
	case took < latencyAim:
		d.window = min(d.window+1/d.window, ceiling)
	case took > 2*latencyAim:
		d.window = max(d.window-1/d.window, floorWindow)
	}
}

func (o *origin) delivered(now time.Duration) {
	gap := now - o.last
	if o.gap == 0 {
		o.gap = gap
	}
	o.gap += (gap - o.gap) / 4
	o.last, o.strikes = now, 0
	o.brought++
}

func (d *Download) drop(f *flight) {
	f.on = false
	if f.p == nil {
		d.origin.inflight--
		if d.origin.inflight == 0 {
			d.origin.runs = 0
		}
		return
	}
	f.p.flight--
	d.inPeers--
}

// flights returns the flights of a piece. They are kept for pieces that fly only:
// how many pieces a blob has is a claim, until they are here.
func (d *Download) flights(piece int) *[2]flight {
	if fl := d.fly[piece]; fl != nil {
		return fl
	}
	return &d.none
}

// forget takes a piece without flights off the list of those that fly.
func (d *Download) forget(piece int) {
	delete(d.fly, piece)
	for k, i := range d.flying {
		if i == piece {
			d.flying[k] = d.flying[len(d.flying)-1]
			d.flying = d.flying[:len(d.flying)-1]
			return
		}
	}
}

// Reason says why a source did not deliver.
type Reason int

const (
	Busy    Reason = iota // it refused for now: its queue is full
	Missing               // it no longer has the piece
	Broken                // the connection failed, or it sent nonsense
)

// Failed notes that a source will not deliver a piece that was ordered of it.
func (d *Download) Failed(now time.Duration, piece int, from Node, why Reason) {
	if piece < 0 || piece >= d.n {
		return
	}
	found, at := false, time.Duration(0)
	fl := d.flights(piece)
	for k := range fl {
		if f := &fl[k]; f.on && nameOf(f.p) == from {
			d.drop(f)
			found, at = true, f.at
		}
	}
	if !found {
		return
	}
	d.release(piece)
	if from == Origin {
		d.originFailed(now)
		d.leader.back = append(d.leader.back, piece)
		return
	}
	p := d.peers[from]
	if p == nil {
		return
	}
	switch why {
	case Busy:
		// The pieces of one refused request count once.
		if now >= p.until {
			pause := min(busyMin<<min(p.busy, 10), busyMax)
			p.until = now + pause + time.Duration(d.rnd.Int64N(int64(pause)))
			p.window = max(1, p.window-1)
			p.busy++
		}
	case Missing:
		d.lose(p, piece)
	case Broken:
		d.strike(now, at, p, true)
	}
}

// originFailed backs off once for all pieces of a run that broke together.
func (d *Download) originFailed(now time.Duration) {
	if now < d.origin.retry {
		return
	}
	d.origin.retry = now + backoff(d.origin.strikes)
	d.origin.strikes++
	d.leased.Each(func(i int) {
		d.leader.back = append(d.leader.back, i)
		d.leased.Clear(i)
		d.release(i)
	})
}

// release makes a piece that nothing brings any more orderable again, unless it
// is leased, and will be fetched from the origin.
func (d *Download) release(piece int) {
	if fl := d.flights(piece); fl[0].on || fl[1].on || d.have.Has(piece) {
		return
	}
	if !d.leased.Has(piece) {
		d.taken.Clear(piece)
	}
	d.forget(piece)
}

// RunEnded notes that one read from the origin is over, so that another may begin.
func (d *Download) RunEnded() { d.origin.runs = max(0, d.origin.runs-1) }

func backoff(strikes int) time.Duration {
	return min(minBackoff<<min(strikes, 10), maxBackoff)
}

func nameOf(p *peer) Node {
	if p == nil {
		return Origin
	}
	return p.id
}

// Solo makes the origin the only source from now on: nobody else is trusted.
func (d *Download) Solo() {
	d.solo = true
	for _, n := range d.Peers() {
		d.DropPeer(n)
	}
}

package plan

import "time"

// Ask is one piece that a peer asked for.
type Ask struct {
	Peer  Node
	Blob  string
	Piece int
	At    time.Duration
	Low   bool // a preheat: after everything else
	// Progress is how much of the blob the peer has, in 32nds. Who has least is
	// served first, so that all complete together.
	Progress int

	sent *[]uint16
}

// Uploads is the queue of what a node sends. It is not safe for concurrent use.
type Uploads struct {
	slots   int // pieces sent at once
	perPeer int // of these, to one peer
	room    int // asks that may wait
	queue   []*Ask
	active  map[Node]int
	running int
	sent    map[string]*[]uint16 // by blob and piece: how often it was sent
}

// Limits of Uploads.
const (
	DefaultSlots   = 16
	DefaultPerPeer = 2
	DefaultRoom    = 256
)

// NewUploads returns an empty queue; zero takes the default.
func NewUploads(slots, perPeer, room int) *Uploads {
	if slots <= 0 {
		slots = DefaultSlots
	}
	if perPeer <= 0 {
		perPeer = DefaultPerPeer
	}
	if room <= 0 {
		room = DefaultRoom
	}
	return &Uploads{slots: slots, perPeer: perPeer, room: room, active: map[Node]int{}, sent: map[string]*[]uint16{}}
}

// Load returns how many pieces wait or are being sent.
func (u *Uploads) Load() int { return len(u.queue) + u.running }

// Push queues an ask; false: the queue is full, the peer should ask elsewhere.
func (u *Uploads) Push(a *Ask) bool {
	if len(u.queue) >= u.room || a.Piece < 0 || a.Piece >= MaxPieces {
		return false
	}
	counts := u.sent[a.Blob]
	if counts == nil {
		counts = new([]uint16)
		u.sent[a.Blob] = counts
	}
	if a.Piece >= len(*counts) {
		*counts = append(*counts, make([]uint16, a.Piece+1-len(*counts))...)
	}
	a.sent = counts
	u.queue = append(u.queue, a)
	return true
}

// Pop takes the ask to send next off the queue, nil if none may be sent now: the
// first piece, for which a runtime waits; a piece that was never sent, so that it soon has a second holder; the peer that
// has least; the peer that is being sent least; the oldest among equals.
func (u *Uploads) Pop() *Ask {
	if u.running >= u.slots {
		return nil
	}
	best := -1
	for k, a := range u.queue {
		if u.active[a.Peer] < u.perPeer && (best < 0 || u.before(a, u.queue[best])) {
			best = k
		}
	}
	if best < 0 {
		return nil
	}
	a := u.queue[best]
	u.queue = append(u.queue[:best], u.queue[best+1:]...)
	u.running++
	u.active[a.Peer]++
	(*a.sent)[a.Piece]++
	return a
}

func (u *Uploads) before(a, b *Ask) bool {
	if a.Low != b.Low {
		return b.Low
	}
	if x, y := a.Piece == 0, b.Piece == 0; x != y {
		return x
	}
	if x, y := (*a.sent)[a.Piece] == 0, (*b.sent)[b.Piece] == 0; x != y {
		return x
	}
	if a.Progress != b.Progress {
		return a.Progress < b.Progress
	}
	return u.active[a.Peer] < u.active[b.Peer]
}

// Done notes that an ask which Pop gave is over.
func (u *Uploads) Done(a *Ask) {
	u.running--
	if u.active[a.Peer]--; u.active[a.Peer] <= 0 {
		delete(u.active, a.Peer)
	}
}

// Withdraw takes asks that f chooses off the queue.
func (u *Uploads) Withdraw(f func(a *Ask) bool) {
	kept := u.queue[:0]
	for _, a := range u.queue {
		if !f(a) {
			kept = append(kept, a)
		}
	}
	clear(u.queue[len(kept):])
	u.queue = kept
}

// Forget drops the account of a blob that nobody asks for any more.
func (u *Uploads) Forget(blob string) { delete(u.sent, blob) }

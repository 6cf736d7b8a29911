package swarm

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// How long a liar is not asked. One who passed on what it could not verify is
// most likely a victim, who will find out itself.
const (
	banLiar    = 10 * time.Minute
	banRelay   = 10 * time.Second
	banMax     = 24 * time.Hour
	banForget  = 24 * time.Hour
	checkEach  = 4 // pieces of a suspect that are compared with the origin's
	maxRounds  = 3
	maxSuspect = 32
)

// trust remembers who gave which piece, and what it was, until the whole is
// verified. The sums are keyed with a secret of this process, so that nobody can
// make a wrong piece that has the sum of the right one.
type trust struct {
	seed maphash.Seed

	mu  sync.Mutex
	by  map[int][]deed // by piece; the first of each who sent it
	old map[int]deed   // of the round before, which did not match: what was stored
}

type deed struct {
	from    plan.Node
	relayed bool
	sum     uint64
}

func newTrust() trust {
	return trust{seed: maphash.MakeSeed(), by: map[int][]deed{}}
}

func (t *trust) note(i int, p []byte, from plan.Node, relayed bool) {
	sum := maphash.Bytes(t.seed, p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.ContainsFunc(t.by[i], func(x deed) bool { return x.from == from }) {
		t.by[i] = append(t.by[i], deed{from, relayed, sum})
	}
}

// fromPeer reports whether piece i may be a peer's; what was here before counts as
// the origin's.
func (t *trust) fromPeer(i int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.by[i], func(x deed) bool { return x.from != plan.Origin })
}

// turn begins a new round and returns the deeds of peers in the last one. Of several
// who sent a piece, the one whose piece was stored is held to account for it: stored
// says so, by the names of sources.
func (t *trust) turn(stored map[string][]int) map[plan.Node][]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	suspects := map[plan.Node][]int{}
	t.old = map[int]deed{}
	for name, pieces := range stored {
		for _, i := range pieces {
			for _, x := range t.by[i] {
				if x.from != plan.Origin && nameOf(x.from) == name {
					t.old[i] = x
					suspects[x.from] = append(suspects[x.from], i)
				}
			}
		}
	}
	t.by = map[int][]deed{}
	return suspects
}

// compare holds what the origin sent against what a peer said in the last round.
func (t *trust) compare(i int, p []byte) (deed, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, ok := t.old[i]
	return x, ok && x.sum != maphash.Bytes(t.seed, p)
}

// convict is called when the whole did not match its digest, and the store has
// dropped it. It compares some pieces of each peer with the origin's. If that
// finds the liar, the download begins again without it; if not, or if it fails
// again, everything is taken from the origin, and compared on the way.
func (d *download) convict(wrong *piece.MismatchError) error {
	d.rounds++
	d.e.metrics.mismatches.Inc()
	suspects := d.trust.turn(wrong.From)
	d.round = d.b.Round()
	d.e.log.Warn("a blob from the swarm does not match its digest", "digest", d.b.Digest(), "peers", len(suspects), "round", d.rounds)
	if len(suspects) == 0 || d.rounds >= maxRounds {
		return wrong
	}
	if !d.resume() {
		return fmt.Errorf("begin %s again: %w", d.b.Digest(), wrong)
	}
	found := false
	if d.rounds == 1 {
		var err error
		if found, err = d.check(suspects); err != nil {
			return err
		}
	}
	if !found {
		d.mu.Lock()
		d.plan.Solo()
		d.mu.Unlock()
	}
	return d.ctx.Err()
}

// check fetches some pieces of each suspect from the origin. They are not in vain:
// the store gets them. An error says that nobody lied: the blob has another size
// than the one that it was begun with.
func (d *download) check(suspects map[plan.Node][]int) (found bool, err error) {
	n := 0
	for _, pieces := range suspects {
		if n++; n > maxSuspect {
			break
		}
		rand.Shuffle(len(pieces), func(i, k int) { pieces[i], pieces[k] = pieces[k], pieces[i] })
		for _, i := range pieces[:min(checkEach, len(pieces))] {
			lied, err := d.examine(i)
			if _, sized := fetch.SizeOf(err); sized {
				return false, err
			}
			if err != nil {
				d.e.log.Debug("a piece could not be compared", "digest", d.b.Digest(), "piece", i, "err", err)
			}
			if lied {
				found = true
				break
			}
		}
	}
	return found, nil
}

// examine reports whether a piece of the last round differs from the origin's.
func (d *download) examine(i int) (lied bool, err error) {
	from := int64(i) * piece.Size
	body, err := d.e.o.Origin.Range(d.ctx, d.w, from, from+int64(d.b.PieceLen(i)))
	if err != nil {
		return false, err
	}
	defer body.Close()
	buf := d.e.buffers.Get().(*[piece.Size]byte)
	defer d.e.buffers.Put(buf)
	p := buf[:d.b.PieceLen(i)]
	if err := d.e.read(d.ctx, body, p, ""); err != nil {
		return false, err
	}
	_, lied = d.trust.compare(i, p)
	d.got(i, p, plan.Origin, false)
	return lied, nil
}

// judge bans whoever gave another piece than the origin.
func (d *download) judge(i int, p []byte) {
	who, lied := d.trust.compare(i, p)
	if !lied {
		return
	}
	until := d.e.banish(who.from, who.relayed)
	lie := Lie{Peer: who.from, Digest: d.b.Digest(), Piece: i, Relayed: who.relayed, Until: until}
	d.e.log.Warn("a peer gave a wrong piece", "peer", lie.Peer, "digest", lie.Digest, "piece", i, "relayed", lie.Relayed, "banned_until", until)
	d.e.o.Report(lie)
}

// ban is what is held against a peer.
type ban struct {
	until time.Time
	times int
}

// banish keeps all downloads from asking a peer for a while, longer each time.
func (e *Engine) banish(n plan.Node, relayed bool) time.Time {
	e.mu.Lock()
	b := e.bans[n]
	now := time.Now()
	if b == nil || now.Sub(b.until) > banForget {
		b = &ban{}
		e.bans[n] = b
	}
	if now.Before(b.until) {
		e.mu.Unlock()
		return b.until // another of the same lies
	}
	term := banLiar
	if relayed {
		term = banRelay
	}
	b.until = now.Add(min(term<<min(b.times, 16), banMax))
	b.times++
	until := b.until
	active := make([]*download, 0, len(e.downloads))
	for _, d := range e.downloads {
		active = append(active, d)
	}
	e.mu.Unlock()
	e.metrics.bans.Inc()
	for _, d := range active {
		d.mu.Lock()
		d.plan.Banned(n, until.Sub(e.start))
		d.plan.Accuse(n)
		for _, o := range slices.Clone(d.orders[n]) {
			o.cancel()
		}
		d.mu.Unlock()
	}
	return until
}

// bannedUntil returns, in package plan's time, until when a peer is not asked; 0: it is.
func (e *Engine) bannedUntil(n plan.Node) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.bans[n]
	if b == nil || time.Now().After(b.until) {
		return 0
	}
	return b.until.Sub(e.start)
}

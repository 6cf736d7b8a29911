package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// sourceOrigin and sourcePeer name sources to the store.
const (
	sourceOrigin = "upstream"
	sourcePeer   = "peer:"
)

// errLeft says that the swarm does not take part in a download.
var errLeft error = fault.New(fault.NotFound, "the swarm leaves this blob to the upstream")

// download is one blob that is being brought here.
type download struct {
	e      *Engine
	w      fetch.Want
	b      *piece.Blob
	ctx    context.Context
	cancel context.CancelFunc
	kick   chan struct{}  // room for one: something happened
	work   sync.WaitGroup // orders
	talk   sync.WaitGroup // watches and announcements

	mu        sync.Mutex
	plan      *plan.Download
	orders    map[plan.Node][]*order
	watched   map[plan.Node]context.CancelFunc
	leader    plan.Node
	ranked    *members           // by whom the leader was chosen; nil: choose anew at the next step
	asked     bool               // other ranks were asked for neighbours
	searching bool               // and are being waited for
	searched  bool               // nobody is left to ask
	begged    map[plan.Node]bool // members that were asked without a hint
	beggedAt  time.Duration
	failure   error
	doubted   bool  // the upstream was asked for the size, because a peer disagrees
	rounds    int   // how often the content was found wrong
	round     int   // of the store (piece.Blob.Round); changes while no order is at work
	refusal   error // of the origin, the last one
	log       sharing
	trust     trust
	trace     *Trace
}

// sharing is what watchers follow.
type sharing struct {
	gained     []int
	generation int // raised when pieces were dropped
	over       bool
	changed    chan struct{}
}

// Fill brings the missing pieces of b from the origin and from peers, and what is too
// small for that from a peer that has it.
func (e *Engine) Fill(ctx context.Context, w fetch.Want, b *piece.Blob) error {
	if b.Size() < e.o.Small {
		return e.fillSmall(ctx, w, b)
	}
	if b.Pieces() > plan.MaxPieces {
		return errLeft
	}
	if (w.Private || b.Private()) && !e.o.Allowed(w.Namespace, b.Digest()) {
		e.metrics.refused.Inc()
		return errLeft
	}
	d, err := e.begin(ctx, w, b)
	if err != nil {
		return err
	}
	defer e.end(d)
	for {
		err := d.run()
		var wrong *piece.MismatchError
		if !errors.As(err, &wrong) {
			return err
		}
		if err := d.convict(wrong); err != nil {
			return err
		}
	}
}

func (e *Engine) begin(ctx context.Context, w fetch.Want, b *piece.Blob) (*download, error) {
	w.Size = b.Size()
	d := &download{
		e: e, w: w, b: b, kick: make(chan struct{}, 1),
		orders: map[plan.Node][]*order{}, watched: map[plan.Node]context.CancelFunc{},
		log: sharing{changed: make(chan struct{})}, trust: newTrust(),
		trace: newTrace(w.Digest, b.Size(), e.now()),
	}
	d.round = b.Round()
	d.ctx, d.cancel = context.WithCancel(ctx)
	context.AfterFunc(e.stop, d.cancel)
	d.plan = plan.NewDownload(plan.Options{
		Blob: string(b.Digest()), Self: e.o.Self.Node, Zone: e.o.Self.Zone, Pieces: b.Pieces(),
		Have: plan.BitsOf(b.Bitmap(), b.Pieces()), Now: e.now(), Background: w.Background,
		Patience: e.vain.left(time.Now(), e.alone),
		Rand:     rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.downloads[b.Digest()] != nil {
		d.cancel()
		return nil, fault.New(fault.Busy, "the blob is being fetched already")
	}
	e.downloads[b.Digest()] = d
	e.metrics.downloads.Inc()
	return d, nil
}

// end tells the leader how it went, and lets go of everything.
func (e *Engine) end(d *download) {
	d.mu.Lock()
	d.cancel() // under the lock: who would begin to talk looks at ctx there
	d.mu.Unlock()
	d.work.Wait()
	d.talk.Wait()
	d.mu.Lock()
	d.log.over = true
	close(d.log.changed)
	d.log.changed = make(chan struct{})
	for _, stop := range d.watched {
		stop()
	}
	d.mu.Unlock()
	e.mu.Lock()
	delete(e.downloads, d.b.Digest())
	if e.served[d.b.Digest()] == 0 {
		e.uploads.Forget(string(d.b.Digest()))
	}
	e.keepTrace(d.trace)
	e.mu.Unlock()
	e.metrics.downloads.Dec()
	if d.b.Complete() {
		e.report(d)
		e.work.Go(func() { e.announceDone(d.b.Digest().String(), d.b.Pieces()) })
	}
}

// run drives the schedule until the blob is complete, ctx ends, or the cache
// cannot take more.
func (d *download) run() error {
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		if done, err := d.step(wake); done {
			return err
		}
		select {
		case <-d.kick:
		case <-wake.C:
		case <-d.ctx.Done():
			d.cancelOrders()
			d.work.Wait()
			return d.ctx.Err()
		}
	}
}

// step carries out what the schedule says now.
func (d *download) step(wake *time.Timer) (done bool, err error) {
	now := d.e.now()
	d.mu.Lock()
	if d.failure != nil || d.plan.Done() {
		d.mu.Unlock()
		d.cancelOrders()
		d.work.Wait()
		// Now, since several orders may fail for one reason, each in its own time.
		d.mu.Lock()
		err := d.failure
		d.failure = nil
		d.mu.Unlock()
		if err == nil && !d.b.Complete() {
			// Pieces were found corrupt while the whole was hashed.
			if d.resume() {
				return false, nil
			}
			err = fmt.Errorf("%s is not complete although nothing is missing", d.b.Digest())
		}
		return true, err
	}
	if err := d.hopeless(now); err != nil {
		d.mu.Unlock()
		d.cancelOrders()
		d.work.Wait()
		return true, err
	}
	d.followLeader(now)
	orders, late := d.plan.Next(now)
	announce, due := d.plan.Announce(now)
	if waited := d.plan.Waited(); waited > 0 {
		d.e.vain.spend(time.Now(), waited)
	}
	for _, c := range late {
		d.giveUp(c)
	}
	started := make([]*order, 0, len(orders))
	for _, o := range orders {
		started = append(started, d.order(o))
	}
	wake.Reset(d.plan.Wake(now) - now)
	d.mu.Unlock()
	for _, o := range started {
		d.work.Go(o.run)
	}
	if due {
		d.talk.Go(func() { d.announce(announce) })
	}
	return false, nil
}

// aloneAfter is how long a download waits for others that bring nothing.
const aloneAfter = 4 * time.Second

// patience is how long a download waits for peers when the origin fails.
const patience = 10 * time.Second

// hopeless returns the origin's error when nobody else has what is missing: at
// once if there is no neighbour and no member left to ask, after a while if one
// may bring it, which is sooner if the origin will not change its mind. d.mu is held.
func (d *download) hopeless(now time.Duration) error {
	since, stuck := d.plan.Stuck(now)
	if !stuck || d.refusal == nil {
		return nil
	}
	if d.searched && len(d.plan.Peers()) == 0 && !d.askMembers(now) {
		return d.refusal
	}
	since = max(since, d.beggedAt)
	wait := patience
	var status *ociclient.StatusError
	if errors.As(d.refusal, &status) && status.Outcome().Verdict() {
		wait = patience / 5
	}
	if now-since > wait {
		return d.refusal
	}
	return nil
}

// resume schedules what is missing again.
func (d *download) resume() bool {
	have := plan.BitsOf(d.b.Bitmap(), d.b.Pieces())
	if have.Count() == d.b.Pieces() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	lost := plan.FullBits(d.b.Pieces())
	have.Each(lost.Clear)
	d.plan.Lost(lost)
	d.reset()
	d.poke()
	return true
}

// reset tells watchers to forget what they know. d.mu is held.
func (d *download) reset() {
	d.log.generation++
	d.log.gained = nil
	close(d.log.changed)
	d.log.changed = make(chan struct{})
}

// poke makes the loop look again.
func (d *download) poke() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// fail ends run with an error.
func (d *download) fail(err error) {
	d.mu.Lock()
	if d.failure == nil {
		d.failure = err
	}
	d.mu.Unlock()
	d.poke()
}

// nameOf is what the store calls a source.
func nameOf(from plan.Node) string {
	if from == plan.Origin {
		return sourceOrigin
	}
	return sourcePeer + string(from)
}

// got stores a piece that has come whole. false: nothing more can be stored.
func (d *download) got(i int, p []byte, from plan.Node, relayed bool) bool {
	if from == plan.Origin {
		d.judge(i, p)
	}
	d.trust.note(i, p, from, relayed)
	name := nameOf(from)
	if err := d.b.WritePieceOf(d.ctx, d.round, i, p, name); err != nil {
		if d.ctx.Err() == nil {
			d.fail(err)
		}
		return false
	}
	now := d.e.now()
	d.mu.Lock()
	fresh := !d.plan.Have().Has(i)
	for _, c := range d.plan.Got(now, i, from) {
		d.giveUp(c)
	}
	if fresh {
		d.log.gained = append(d.log.gained, i)
		close(d.log.changed)
		d.log.changed = make(chan struct{})
		d.trace.add(now, i, len(p), from)
	}
	d.mu.Unlock()
	d.e.metrics.received(from, len(p), fresh)
	d.e.tallyReceived(from, len(p))
	d.poke()
	return true
}

// snapshot returns what a new watcher is told first.
func (d *download) snapshot() (bitmap []byte, seen, generation int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plan.Have().Bytes(d.b.Pieces()), len(d.log.gained), d.log.generation
}

// since returns what was gained since a snapshot, and a channel that is closed at the next change.
func (d *download) since(seen, generation int) (fresh []int, next int, reset, over bool, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if generation != d.log.generation {
		return nil, 0, true, d.log.over, d.log.changed
	}
	fresh = append(fresh, d.log.gained[seen:]...)
	return fresh, len(d.log.gained), false, d.log.over, d.log.changed
}

// relayed reports whether piece i came from a peer and could not be verified yet.
func (d *download) relayed(i int) bool {
	return !d.b.Complete() && d.trust.fromPeer(i)
}

// lostPeer forgets a neighbour that left the cluster.
func (d *download) lostPeer(n plan.Node) {
	d.mu.Lock()
	d.drop(n)
	d.mu.Unlock()
	d.poke()
}

// drop ends a neighbour's watch and frees what it was asked for. d.mu is held.
func (d *download) drop(n plan.Node) {
	d.plan.DropPeer(n)
	if stop := d.watched[n]; stop != nil {
		stop()
		delete(d.watched, n)
	}
	for _, o := range d.orders[n] {
		o.cancel()
	}
}

func (d *download) cancelOrders() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, list := range d.orders {
		for _, o := range list {
			o.cancel()
		}
	}
}

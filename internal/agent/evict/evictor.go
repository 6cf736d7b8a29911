package evict

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Options of an Evictor. Quota, watermarks and margin are the store's, and may
// change there while it runs.
type Options struct {
	Store   *piece.Store
	Index   *index.Index
	Tracker *inuse.Tracker
	// NoRuntimes says that there is no runtime on this node, so that no answer of
	// one has to be awaited. Without it a tracker without sources keeps everything.
	NoRuntimes bool

	// Rare reports whether no other node has a blob; nil: that is not known.
	Rare func(d oci.Digest) bool
	// Evicted is told of each blob that was removed; nil: nobody.
	Evicted func(d oci.Digest)

	Floor      int64         // see Limits
	Warm       time.Duration // 0: DefaultWarm
	DeletedTTL time.Duration // 0: images deleted upstream go under pressure only
	Abandoned  time.Duration // 0: DefaultAbandoned

	Every   time.Duration         // between two looks at the watermarks; 10 s if 0
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
	// Now must be the tracker's; nil: time.Now. Only differences are taken from
	// it, with the monotonic clock where it has one. Times of blobs are by the
	// index's clock, which does not jump while the process lives.
	Now func() time.Time
}

const (
	everyDefault = 10 * time.Second
	// sweepEvery is between two passes that nothing but time asks for: they find
	// what has expired.
	sweepEvery = 5 * time.Minute
	// roomWait is how long an admission waits for room, and roomMax bounds the
	// pass that makes it, which goes on without it.
	roomWait = time.Second
	roomMax  = 10 * time.Second
	// futileFor is for how long an admission hears of the last one's failure.
	futileFor = time.Second
	// silentFor is for how long, where the failure was that a runtime does not
	// answer: to ask it again would have each pull wait for it.
	silentFor = 10 * time.Second
)

// Evictor judges and evicts. All methods may be called at once; passes run one
// at a time.
type Evictor struct {
	o       Options
	metrics *metrics
	events  events
	turn    chan struct{} // holds a value while nobody has a pass
	kick    chan struct{}
	// patience is roomWait, but for tests on a busy machine.
	patience time.Duration

	// Of who has the turn.
	clock clock
	over  bool // an episode of being over quota has been told of
	// gone is what was evicted lately, and when, so that nobody takes it for what
	// a pull has yet to bring.
	gone map[oci.Digest]int64

	failed atomic.Pointer[failure]

	mu   sync.Mutex
	last Result
}

// failure is an admission that found no room.
type failure struct {
	need  int64
	at    time.Time
	usage *inuse.Usage
	// silent says that a runtime did not answer, so that nothing may go.
	silent bool
}

// New returns an Evictor and makes it the one that the store asks for room.
// Invalid for limits that cannot be used.
func New(o Options) (*Evictor, error) {
	if o.Warm == 0 {
		o.Warm = DefaultWarm
	}
	if o.Abandoned == 0 {
		o.Abandoned = DefaultAbandoned
	}
	if o.Every <= 0 {
		o.Every = everyDefault
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rare == nil {
		o.Rare = func(oci.Digest) bool { return false }
	}
	if o.Evicted == nil {
		o.Evicted = func(oci.Digest) {}
	}
	e := &Evictor{o: o, patience: roomWait, turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), gone: map[oci.Digest]int64{}}
	e.turn <- struct{}{}
	if err := e.limits().Validate(); err != nil {
		return nil, err
	}
	e.metrics = newMetrics(o.Metrics)
	e.events.now = o.Now
	o.Store.SetRoom(room{e.MakeRoom, e.CouldMakeRoom})
	o.Store.SetSpareRoom(room{e.MakeSpareRoom, e.CouldMakeSpareRoom})
	return e, nil
}

// room is a piece.Room.
type room struct {
	make, could func(ctx context.Context, bytes int64) bool
}

func (r room) Make(ctx context.Context, bytes int64) bool  { return r.make(ctx, bytes) }
func (r room) Could(ctx context.Context, bytes int64) bool { return r.could(ctx, bytes) }

func (e *Evictor) limits() Limits {
	l := e.o.Store.Limits()
	return Limits{Quota: l.Quota, High: l.High, Low: l.Low, MinFree: l.MinFree, Floor: e.o.Floor,
		Warm: e.o.Warm, DeletedTTL: e.o.DeletedTTL, Abandoned: e.o.Abandoned}
}

func (e *Evictor) usage() Usage {
	u := e.o.Store.Usage()
	return Usage{Used: u.Used, Claimed: u.Claimed, FSFree: u.FSFree, FSTotal: u.FSTotal}
}

// Run evicts whenever a watermark is passed, and what has expired now and then,
// until ctx is done.
func (e *Evictor) Run(ctx context.Context) error {
	tick := time.NewTicker(e.o.Every)
	defer tick.Stop()
	changed := e.o.Tracker.Changed()
	var swept, stuck time.Time
	var aged <-chan time.Time
	for {
		known := true // nothing is new since the last pass but that time went by
		select {
		case <-ctx.Done():
			return nil
		case <-aged:
			known = false
		case <-changed:
			known = false
		case <-e.kick:
			known = false
		case <-tick.C:
		}
		now := e.o.Now()
		sweep := now.Sub(swept) >= sweepEvery
		if !sweep && (known && now.Sub(stuck) < sweepEvery || e.limits().excessOf(e.usage(), 0).target() == 0) {
			continue
		}
		r, err := e.look(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			e.o.Log.Warn("a pass of the eviction failed", "error", err)
			continue
		}
		swept, stuck, aged = now, time.Time{}, nil
		switch {
		case r.Short > 0 && r.Kept[Fresh] > 0:
			// What was used a moment ago may go in another one.
			aged = time.After(2 * skewMS * time.Millisecond)
		case r.Evicted == 0 && r.Short > 0:
			// To look again at what cannot go is of use only when something changes.
			stuck = now
		}
	}
}

// Kick has Run look at once, such as after a limit was changed.
func (e *Evictor) Kick() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Pass evicts what has to go now.
func (e *Evictor) Pass(ctx context.Context) (Result, error) {
	if err := e.take(ctx); err != nil {
		return Result{}, err
	}
	defer e.give()
	return e.pass(ctx, 0, false)
}

// look is Pass for Run, which nothing waits for but the turn: a runtime that does
// not answer is not waited for, since nothing may go before it does, which will be
// a change.
func (e *Evictor) look(ctx context.Context) (Result, error) {
	if err := e.take(ctx); err != nil {
		return Result{}, err
	}
	defer e.give()
	if !e.silent() {
		return e.pass(ctx, 0, false)
	}
	g, err := e.gatherSoon(ctx)
	if err != nil {
		return Result{}, err
	}
	return e.passOver(ctx, g, false)
}

func (e *Evictor) take(ctx context.Context) error {
	select {
	case <-e.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *Evictor) give() { e.turn <- struct{}{} }

// MakeRoom evicts because bytes have arrived for which so many are lacking, and
// reports whether to try again makes sense. As any pass it goes on to the low
// watermark, so that what arrives next needs none. Nothing goes if that would not
// be enough.
func (e *Evictor) MakeRoom(ctx context.Context, lack int64) bool {
	return e.soon(ctx, lack, e.makeRoom)
}

// CouldMakeRoom reports whether MakeRoom could free so many bytes. Nothing goes
// for them: none has arrived yet (N12).
func (e *Evictor) CouldMakeRoom(ctx context.Context, lack int64) bool {
	return e.soon(ctx, lack, e.couldMakeRoom)
}

// soon has do find room, and does not wait for it for long.
//
// Whoever asks is a client that waits for its first byte, and can be served
// without the cache. So where a runtime is known not to answer, by which nothing
// may go, the answer is no at once; and it is no as well when the pass takes
// long, which then goes on for those who come later.
func (e *Evictor) soon(ctx context.Context, lack int64, do func(ctx context.Context, need int64) bool) bool {
	need := lack + e.headroom() // the size of what is to be admitted
	if e.futile(need) || e.silent() {
		return false
	}
	waiting, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	if e.take(waiting) != nil {
		return false
	}
	switch {
	case e.headroom() >= need:
		e.give()
		return true // another one's pass has made room meanwhile
	case e.futile(need):
		e.give()
		return false
	}
	made := make(chan bool, 1)
	go func() {
		defer e.give()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roomMax)
		defer cancel()
		made <- do(ctx, need)
	}()
	select {
	case ok := <-made:
		return ok
	case <-waiting.Done():
		return false
	}
}

// silent reports that a runtime has been asked and does not answer. The tracker
// goes on asking it.
func (e *Evictor) silent() bool {
	return slices.ContainsFunc(e.o.Tracker.Usage().Unknown, inuse.SourceStatus.Silent)
}

// makeRoom is for who has the turn.
func (e *Evictor) makeRoom(ctx context.Context, need int64) bool {
	usage, silent := e.o.Tracker.Usage(), false
	// A second pass is for what was chosen in the first and won back by a user.
	for range 2 {
		r, err := e.pass(ctx, need, false)
		if err != nil {
			e.o.Log.Warn("no room could be made in the cache", "bytes", need, "error", err)
		}
		if e.headroom() >= need {
			return true
		}
		silent = r.Kept[Unknown] > 0 || ctx.Err() != nil
		if err != nil || r.Raced == 0 {
			break
		}
	}
	e.failed.Store(&failure{need: need, at: e.o.Now(), usage: usage, silent: silent})
	return false
}

// couldMakeRoom is for who has the turn.
func (e *Evictor) couldMakeRoom(ctx context.Context, need int64) bool {
	usage := e.o.Tracker.Usage()
	g, err := e.gather(ctx, need)
	if err == nil {
		if l := e.limits(); l.Validate() == nil && !Judge(g.facts, g.situation, l).Refused {
			return true
		}
		// A refusal is reported as that of any pass.
		_, err = e.passOver(ctx, g, false)
	}
	if err != nil {
		e.o.Log.Warn("whether there is room in the cache is not known", "bytes", need, "error", err)
	}
	silent := ctx.Err() != nil || g != nil && g.situation.Unknown != ""
	e.failed.Store(&failure{need: need, at: e.o.Now(), usage: usage, silent: silent})
	return false
}

// CouldMakeSpareRoom is to MakeSpareRoom what CouldMakeRoom is to MakeRoom.
func (e *Evictor) CouldMakeSpareRoom(ctx context.Context, need int64) bool {
	ctx, cancel := context.WithTimeout(ctx, roomMax)
	defer cancel()
	if e.take(ctx) != nil {
		return false
	}
	defer e.give()
	g, err := e.gather(ctx, need)
	l := e.limits()
	if err == nil {
		err = l.Validate()
	}
	if err != nil {
		e.o.Log.Warn("whether there is room for what nobody waits for is not known", "bytes", need, "error", err)
		return false
	}
	g.situation.ColdOnly = true
	return !Judge(g.facts, g.situation, l.spare(g.situation.Usage.FSTotal)).Refused
}

// MakeSpareRoom is for need bytes that have arrived and that nobody waits for:
// cold data alone goes, no more than is needed, and only if the cache is then below its
// high watermarks, so that nothing goes for them later either.
func (e *Evictor) MakeSpareRoom(ctx context.Context, need int64) bool {
	ctx, cancel := context.WithTimeout(ctx, roomMax)
	defer cancel()
	if e.take(ctx) != nil {
		return false
	}
	defer e.give()
	r, err := e.pass(ctx, need, true)
	if err != nil {
		e.o.Log.Warn("no room could be made of cold data", "bytes", need, "error", err)
	}
	return r.Freed > 0
}

// headroom is how large an admission the store would take now; it may be
// negative.
func (e *Evictor) headroom() int64 {
	l, u := e.o.Store.Limits(), e.o.Store.Usage()
	room := int64(math.MaxInt64) / 2
	if l.Quota > 0 {
		room = l.Quota - u.Used
	}
	if u.FSTotal > 0 {
		room = min(room, u.FSFree-l.MinFree)
	}
	return room
}

// futile reports that the same was tried in vain just now.
func (e *Evictor) futile(need int64) bool {
	f := e.failed.Load()
	if f != nil && f.silent && len(e.o.Tracker.Usage().Unknown) > 0 && e.o.Now().Sub(f.at) < silentFor {
		return true
	}
	return f != nil && need >= f.need && f.usage.Same(e.o.Tracker.Usage()) && e.o.Now().Sub(f.at) < futileFor
}

// Plan is what a pass would do now.
type Plan struct {
	Judgement
	At    int64 // ms
	Usage Usage
	Quota int64
	// Answered is when the oldest of the runtimes' answers that it goes by was asked
	// for; zero if one has never answered.
	Answered time.Time
	Unknown  []string // runtimes that do not answer, and why
}

// Plan judges as a pass does, and changes nothing.
func (e *Evictor) Plan(ctx context.Context) (Plan, error) {
	if err := e.take(ctx); err != nil {
		return Plan{}, err
	}
	defer e.give()
	g, err := e.gatherSoon(ctx)
	if err != nil {
		return Plan{}, err
	}
	l := e.limits()
	p := Plan{Judgement: Judge(g.facts, g.situation, l), At: g.situation.Now, Usage: g.situation.Usage, Quota: l.Quota, Answered: g.usage.At}
	if g.situation.Runtimes {
		for _, s := range g.usage.Unknown {
			p.Unknown = append(p.Unknown, unknownText(s))
		}
	}
	return p, nil
}

// Explain says why a blob stays or would go now. NotFound if the cache has it not.
func (e *Evictor) Explain(ctx context.Context, d oci.Digest) (Verdict, error) {
	p, err := e.Plan(ctx)
	if err != nil {
		return Verdict{}, err
	}
	for _, v := range p.Verdicts {
		if v.Digest == d {
			return v, nil
		}
	}
	return Verdict{}, fault.New(fault.NotFound, "the cache has no %s", d)
}

// Last is what the last pass did.
func (e *Evictor) Last() Result {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// Events returns what happened, newest first.
func (e *Evictor) Events() []nodeapi.Event { return e.events.list() }

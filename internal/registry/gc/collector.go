package gc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/robfig/cron/v3"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// What starts a run.
const (
	TriggerManual   = "manual"
	TriggerInterval = "interval"
	TriggerSchedule = "schedule"
)

// Options of a Collector.
type Options struct {
	Policy   meta.Policy                // the server's own
	Interval time.Duration              // of the background worker; 0 = off
	Workers  int                        // that delete bytes at once; 0 = 4
	Rate     float64                    // items a second at most; 0 = no limit
	Busy     func(uploadID string) bool // reports an upload with a request in progress in this process; may be nil
	Upkeep   func() error               // called at each interval and after each run, such as to fill up the disk reserve; may be nil
	Log      *slog.Logger
	Metrics  prometheus.Registerer // may be nil
}

// Collector runs collections. All methods may be called at once.
type Collector struct {
	store   *meta.Store
	blobs   blob.Store
	opts    Options
	metrics *metrics

	life context.Context // ends with Close; runs belong to it and not to who started them
	end  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	active  map[int64]*activeRun
	ended   map[int64]meta.Run // runs that are over of which no row says so yet: the database takes no writes
	purging map[string]bool    // keys whose objects a run is deleting
	// contended says that clients are writing.
	contended func() bool
	nextAt    time.Time
	runs      sync.WaitGroup
}

type activeRun struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a collector. Close ends its runs.
func New(s *meta.Store, b blob.Store, o Options) *Collector {
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.Busy == nil {
		o.Busy = func(string) bool { return false }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Collector{store: s, blobs: b, opts: o, active: map[int64]*activeRun{}, ended: map[int64]meta.Run{}, purging: map[string]bool{}, contended: s.Contended}
	c.metrics = newMetrics(o.Metrics, s)
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// Close stops all runs and waits for them. What they have not reached, the
// next run takes at once.
func (c *Collector) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.runs.Wait()
}

// Policy is the server's own policy.
func (c *Collector) Policy() meta.Policy { return c.opts.Policy }

// Run is the background worker: a run at each interval in which something is
// due, and the cron schedules. It returns when ctx ends, after Close.
func (c *Collector) Run(ctx context.Context) error {
	defer c.Close()
	// Also where no run is due for long, or no interval is set: until this is done, what
	// a crash has left keeps things, and refuses their deletion.
	if err := c.store.FinishKin(ctx); err != nil && ctx.Err() == nil {
		c.opts.Log.Error("what a crash has left was not finished", "error", err)
	}
	var tick <-chan time.Time
	if c.opts.Interval > 0 {
		t := time.NewTicker(c.opts.Interval)
		defer t.Stop()
		tick = t.C
		c.setNext(time.Now().Add(c.opts.Interval))
	}
	minute := time.NewTicker(scheduleCheck)
	defer minute.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
			c.setNext(time.Now().Add(c.opts.Interval))
			if err := c.interval(ctx); err != nil && ctx.Err() == nil {
				c.opts.Log.Error("background collection", "error", err)
			}
		case now := <-minute.C:
			if err := c.Schedules(ctx, last, now); err != nil && ctx.Err() == nil {
				c.opts.Log.Error("scheduled collection", "error", err)
			}
			last = now
		}
	}
}

// scheduleCheck is how often cron schedules are looked at; their grain is a minute.
const scheduleCheck = 5 * time.Second

func (c *Collector) setNext(t time.Time) {
	c.mu.Lock()
	c.nextAt = t
	c.mu.Unlock()
}

// interval does one turn of the background worker.
func (c *Collector) interval(ctx context.Context) error {
	c.upkeep()
	c.mu.Lock()
	busy := len(c.active) > 0
	c.mu.Unlock()
	if busy {
		return nil
	}
	// What a crash has left of these is not due by itself, and keeps things until it
	// is done. What fails is no reason not to collect the rest.
	return errors.Join(c.store.FinishKin(ctx), c.forgetLeases(ctx, 0), c.runIfDue(ctx))
}

// runIfDue has a run if it finds anything to do.
func (c *Collector) runIfDue(ctx context.Context) error {
	due, err := c.anythingDue(ctx)
	if err != nil || !due {
		return err
	}
	run, err := c.Start(ctx, c.opts.Policy, TriggerInterval, "collector")
	if err != nil {
		return err
	}
	_, err = c.Wait(ctx, run.ID)
	if errors.Is(err, fault.NotFound) {
		return nil // it found nothing to do and left no trace
	}
	return err
}

// forgetLeases forgets all leases that are over. Their digests are remembered
// for the longest window that is set anywhere: that of this run, of the server
// or of a schedule. A run with a shorter one must not shorten theirs (R3).
func (c *Collector) forgetLeases(ctx context.Context, window int64) error {
	window = max(window, time.Duration(c.opts.Policy.Window).Milliseconds())
	scheds, err := c.store.Schedules(ctx)
	if err != nil {
		return err
	}
	for _, s := range scheds {
		window = max(window, time.Duration(s.Policy.Window).Milliseconds())
	}
	for {
		before := c.store.Upkeep()
		more, err := c.store.ForgetLeases(ctx, window)
		if err != nil || !more {
			return err
		}
		if err := c.rest(ctx, c.store.Upkeep()-before); err != nil {
			return err
		}
	}
}

func (c *Collector) upkeep() {
	if c.opts.Upkeep == nil {
		return
	}
	if err := c.opts.Upkeep(); err != nil {
		c.opts.Log.Warn("upkeep of the storage", "error", err)
	}
}

func (c *Collector) anythingDue(ctx context.Context) (bool, error) {
	if due, err := c.store.PurgesDue(ctx); err != nil || due {
		return due, err
	}
	scope, err := c.store.RepoScope(ctx, "")
	if err != nil {
		return false, err
	}
	n, err := c.store.CountDue(ctx, cutoffs(LimitsOf(c.opts.Policy, c.store.Now())), scope, 1)
	return n > 0, err
}

func cutoffs(l Limits) meta.Cutoffs {
	co := meta.Cutoffs{Now: l.Now, Window: l.cutoff(l.Window), Trash: l.cutoff(l.Trash), Uploads: l.cutoff(l.Uploads)}
	if l.Stranded != 0 {
		co.Stranded = l.Now - l.stranded()
	}
	if l.Untagged != 0 {
		co.Untagged = l.Now - l.untagged()
	}
	return co
}

// Schedules starts the runs whose cron time lies between two looks at the
// clock on the wall, which is what people mean by a cron time.
func (c *Collector) Schedules(ctx context.Context, last, now time.Time) error {
	scheds, err := c.store.Schedules(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range scheds {
		if err := c.scheduled(ctx, s, last, now); err != nil { // no reason for the others not to run
			errs = append(errs, fmt.Errorf("schedule %d: %w", s.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Collector) scheduled(ctx context.Context, s meta.Schedule, last, now time.Time) error {
	spec, err := ParseCron(s.Cron)
	if err != nil {
		return err
	}
	if spec.Next(last).After(now) {
		return nil
	}
	if _, err := c.Start(ctx, s.Policy, TriggerSchedule, fmt.Sprintf("schedule %d", s.ID)); err != nil {
		return err
	}
	return c.store.MarkScheduled(ctx, s.ID)
}

// ParseCron reads five cron fields (minute, hour, day of month, month, day of
// week) or a word such as @daily. The error is Invalid, also for a schedule
// that never comes or comes more than once a minute.
func ParseCron(s string) (cron.Schedule, error) {
	refuse := func(why string) (cron.Schedule, error) {
		return nil, fault.New(fault.Invalid, "invalid cron schedule %.64q: %s", s, why)
	}
	const form = "want five fields (minute, hour, day of month, month, day of week) such as \"0 3 * * *\", or @hourly, @daily, @weekly, @monthly, @every 6h"
	zone := strings.HasPrefix(s, "TZ=") || strings.HasPrefix(s, "CRON_TZ=")
	if strings.ContainsFunc(s, unicode.IsControl) || strings.TrimSpace(s) != s || zone && !strings.Contains(s, " ") {
		return refuse(form)
	}
	spec, err := cron.ParseStandard(s)
	if err != nil {
		return refuse(form)
	}
	if delay, ok := spec.(cron.ConstantDelaySchedule); ok {
		if delay.Delay < time.Minute {
			return refuse("want @every 1m or more")
		}
		return every(delay.Delay), nil
	}
	if spec.Next(time.Unix(0, 0)).IsZero() {
		return refuse("that day never comes")
	}
	return spec, nil
}

// every is a schedule whose times are multiples of it since the year 1, in UTC.
// They depend on no time of a start, which nothing keeps.
type every time.Duration

func (e every) Next(t time.Time) time.Time {
	return t.Truncate(time.Duration(e)).Add(time.Duration(e))
}

// Start begins a run and returns at once. Errors: NotFound or Invalid for a
// repository pattern, Busy when the server is shutting down or its storage is
// not there.
func (c *Collector) Start(ctx context.Context, p meta.Policy, trigger, actor string) (meta.Run, error) {
	if err := checkPolicy(p); err != nil {
		return meta.Run{}, err
	}
	scope, err := c.store.RepoScope(ctx, p.Repository)
	if err != nil {
		return meta.Run{}, err
	}
	if err := blob.Prove(ctx, c.blobs); err != nil {
		return meta.Run{}, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return meta.Run{}, fault.New(fault.Busy, "the server is shutting down")
	}
	c.runs.Add(1)
	c.mu.Unlock()
	run, err := c.store.StartRun(ctx, trigger, actor, p)
	if err != nil {
		c.runs.Done()
		return meta.Run{}, err
	}
	life, cancel := context.WithCancel(c.life)
	a := &activeRun{cancel: cancel, done: make(chan struct{})}
	c.mu.Lock()
	c.active[run.ID] = a
	c.mu.Unlock()
	r := &runner{Collector: c, run: run, actor: runActor(trigger, actor), scope: scope, limits: LimitsOf(p, c.store.Now()), limiter: c.limiter()}
	go func() {
		defer c.runs.Done()
		defer close(a.done)
		defer cancel()
		c.finish(r, r.execute(life))
		c.upkeep() // the run may have used the reserve, and made room for it
		c.mu.Lock()
		delete(c.active, run.ID)
		c.mu.Unlock()
	}()
	return run, nil
}

// runActor is who the deletion log names: a person for what a person started.
func runActor(trigger, actor string) string {
	if trigger == TriggerManual {
		return actor
	}
	return "collector"
}

func checkPolicy(p meta.Policy) error {
	for _, d := range []struct {
		name string
		d    meta.Duration
	}{{"window", p.Window}, {"trash", p.Trash}, {"untagged", p.Untagged}, {"stranded", p.Stranded}, {"uploads", p.Uploads}} {
		if d.d < 0 {
			return fault.New(fault.Invalid, "%s must not be negative, is %s", d.name, time.Duration(d.d))
		}
	}
	return nil
}

// finish records how a run ended. The run's own context may be over, so it
// uses one that is not.
func (c *Collector) finish(r *runner, err error) {
	ctx := context.Background()
	state, problem := meta.RunDone, ""
	switch {
	case errors.Is(err, context.Canceled):
		state = meta.RunStopped
	case err != nil:
		state, problem = meta.RunFailed, fault.Public(err).Public
		c.opts.Log.Error("collection failed", "run", r.run.ID, "error", err)
	}
	run, getErr := c.store.Run(ctx, r.run.ID)
	idle := getErr == nil && state == meta.RunDone && run.Trigger == TriggerInterval &&
		run.Collected+run.Trashed+run.Unlinked+run.Purged+run.Failed == 0
	record := func() error {
		if idle {
			return c.store.ForgetRun(ctx, r.run.ID)
		}
		return c.store.FinishRun(ctx, r.run.ID, state, problem)
	}
	if err = errors.Join(getErr, record()); err != nil {
		c.opts.Log.Error("record the end of a collection", "run", r.run.ID, "error", err)
		at := meta.Time(c.store.Now())
		c.recordLater(meta.Run{ID: r.run.ID, State: state, Error: problem, FinishedAt: &at}, record)
	}
	c.metrics.finished(run, state, c.store.Now())
	if !idle {
		c.opts.Log.Info("collection over", "run", r.run.ID, "state", state, "trigger", run.Trigger, "examined", run.Examined,
			"collected", run.Collected, "trashed", run.Trashed, "freed_bytes", run.FreedBytes, "failed", run.Failed)
	}
}

// recordAgain is how often the end of a run is recorded until that succeeds.
const recordAgain = time.Second

// recordLater calls record until it succeeds or the collector ends, and has end
// known meanwhile: whoever waits for the run would wait for ever. The row of a
// run that is never recorded is closed at the next start.
func (c *Collector) recordLater(end meta.Run, record func() error) {
	c.mu.Lock()
	c.ended[end.ID] = end
	c.mu.Unlock()
	c.runs.Add(1)
	go func() {
		defer c.runs.Done()
		tick := time.NewTicker(recordAgain)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if record() != nil {
					continue
				}
				c.mu.Lock()
				delete(c.ended, end.ID)
				c.mu.Unlock()
				return
			case <-c.life.Done():
				return
			}
		}
	}()
}

// known returns a run as it is, whatever its row says yet.
func (c *Collector) known(run meta.Run) meta.Run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if end, ok := c.ended[run.ID]; ok && run.State == meta.RunRunning {
		run.State, run.Error, run.FinishedAt = end.State, end.Error, end.FinishedAt
	}
	return run
}

// Get returns a run with its counts so far.
func (c *Collector) Get(ctx context.Context, id int64) (meta.Run, error) {
	run, err := c.store.Run(ctx, id)
	return c.known(run), err
}

// Wait returns a run when it is over.
func (c *Collector) Wait(ctx context.Context, id int64) (meta.Run, error) {
	c.mu.Lock()
	a := c.active[id]
	c.mu.Unlock()
	if a != nil {
		select {
		case <-a.done:
		case <-ctx.Done():
			return meta.Run{}, ctx.Err()
		}
	}
	return c.Get(ctx, id)
}

// Stop ends a run after the batch it is at, waits for that and returns it.
// What it has counted stays; what it has not reached, the next run takes.
func (c *Collector) Stop(ctx context.Context, id int64) (meta.Run, error) {
	c.mu.Lock()
	a := c.active[id]
	c.mu.Unlock()
	if a != nil {
		a.cancel()
	}
	return c.Wait(ctx, id)
}

// History lists runs, newest first, with ids below before (0: from the end).
func (c *Collector) History(ctx context.Context, before int64, n int) ([]meta.Run, error) {
	runs, err := c.store.Runs(ctx, before, n)
	for i := range runs {
		runs[i] = c.known(runs[i])
	}
	return runs, err
}

// Events lists a run's log, oldest first.
func (c *Collector) Events(ctx context.Context, id int64) ([]meta.RunEvent, error) {
	if _, err := c.store.Run(ctx, id); err != nil {
		return nil, err
	}
	return c.store.RunEvents(ctx, id, 10_000)
}

// Status is what is going on.
type Status struct {
	Running []meta.Run  `json:"running"`
	Last    *meta.Run   `json:"last,omitempty"`    // the newest run that is over
	NextAt  *time.Time  `json:"next_at,omitempty"` // of the background worker
	Policy  meta.Policy `json:"policy"`
	// ClockBehindMS is by how much the registry's clock is behind the machine's,
	// because that one had jumped ahead at the start and is not believed.
	ClockBehindMS int64      `json:"clock_behind_ms,omitempty"`
	Queue         meta.Stats `json:"queue"`
}

// Status reads what is going on.
func (c *Collector) Status(ctx context.Context) (Status, error) {
	st := Status{Running: []meta.Run{}, Policy: c.opts.Policy, ClockBehindMS: c.store.ClockBehind()}
	c.mu.Lock()
	if !c.nextAt.IsZero() {
		at := c.nextAt.UTC()
		st.NextAt = &at
	}
	c.mu.Unlock()
	var err error
	if st.Running, st.Last, err = c.store.LatestRuns(ctx); err != nil {
		return Status{}, err
	}
	for i := 0; i < len(st.Running); {
		if run := c.known(st.Running[i]); run.State != meta.RunRunning {
			if st.Last == nil || st.Last.ID < run.ID {
				st.Last = &run
			}
			st.Running = slices.Delete(st.Running, i, i+1)
			continue
		}
		i++
	}
	st.Queue, err = c.store.Stats(ctx)
	return st, err
}

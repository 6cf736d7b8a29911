package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Options tunes a Checker. The zero value is the default.
type Options struct {
	Window           time.Duration // of the collection; the default grace, raised to an hour
	ObjectsPerSecond float64       // limit of a check by request; 0 = 5,000
	BytesPerSecond   float64       // of bytes hashed; 0 = 200 MiB
	Log              *slog.Logger
	Metrics          prometheus.Registerer
}

const (
	minGrace         = time.Hour
	objectsPerSecond = 5000
	bytesPerSecond   = 200 << 20

	// A check in the background is to be felt by nobody.
	backgroundObjectsPerSecond = 500

	retryAfter = time.Minute // between attempts of a background check that failed
)

// Checker runs checks, one at a time.
type Checker struct {
	store   *meta.Store
	blobs   blob.Store
	opts    Options
	log     *slog.Logger
	metrics metrics

	starting sync.Mutex // held while a check is started; taken before mu

	mu        sync.Mutex
	current   *run
	closed    bool
	recovered bool // checks that the last process left running are marked
}

// New makes a Checker. It does nothing by itself before Start or Run.
func New(s *meta.Store, b blob.Store, o Options) *Checker {
	o.Window = max(o.Window, minGrace)
	if o.ObjectsPerSecond == 0 {
		o.ObjectsPerSecond = objectsPerSecond
	}
	if o.BytesPerSecond == 0 {
		o.BytesPerSecond = bytesPerSecond
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Checker{store: s, blobs: b, opts: o, log: o.Log, metrics: newMetrics(o.Metrics)}
}

// Run goes on with a check that the end of the last process interrupted, and
// from then on checks in the background each time the interval has passed
// since the last time (0 = never): slowly, and repairing nothing but orphans
// and what the collector missed. When ctx ends, so do all checks, to be resumed
// by the next Run, and Run returns. It is called once.
func (c *Checker) Run(ctx context.Context, interval time.Duration) error {
	defer c.shutdown()
	for {
		wait, err := c.tick(ctx, interval)
		if err != nil && ctx.Err() == nil {
			c.log.Error("check in the background", "err", err)
			wait = retryAfter
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// tick starts what is due and returns how long there is nothing to do.
func (c *Checker) tick(ctx context.Context, interval time.Duration) (time.Duration, error) {
	const never = 24 * time.Hour
	if err := c.recover(ctx); err != nil {
		return 0, err
	}
	rows, err := c.store.Checks(ctx, 0, historyScan)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		if row.State != StateInterrupted {
			continue
		}
		if _, err := c.begin(ctx, row, nil); err != nil && !errors.Is(err, fault.Busy) {
			return 0, err
		}
		return retryAfter, nil
	}
	if interval <= 0 {
		c.log.Debug("checks in the background are off")
		return never, nil
	}
	due, err := c.due(ctx, rows, interval)
	if err != nil {
		return 0, err
	}
	if wait := time.Duration(due-c.store.Now()) * time.Millisecond; wait > 0 {
		c.log.Debug("no check in the background is due", "next_in", wait)
		return min(never, wait), nil
	}
	_, err = c.fresh(ctx, Request{ObjectsPerSecond: min(c.opts.ObjectsPerSecond, backgroundObjectsPerSecond)}, TriggerBackground)
	if err != nil && !errors.Is(err, fault.Busy) {
		return 0, err
	}
	return retryAfter, nil
}

// historyScan is how many past checks are looked through for one to go on
// with or to count from.
const historyScan = 100

// due is when the next check in the background begins: an interval after the
// last one began or, where there was none, after the database was made.
func (c *Checker) due(ctx context.Context, rows []meta.CheckRow, interval time.Duration) (ms int64, err error) {
	for _, row := range rows {
		rep, err := c.read(row)
		if err != nil {
			return 0, err
		}
		if rep.Trigger == TriggerBackground {
			return row.StartedAt + interval.Milliseconds(), nil
		}
	}
	extent, err := c.store.CheckExtent(ctx)
	return extent.CreatedAt + interval.Milliseconds(), err
}

// recover marks what a process that ended without ado left running, and what ended
// here while the database took no writes.
func (c *Checker) recover(ctx context.Context) error {
	if c.isRecovered() {
		return nil
	}
	c.starting.Lock() // the row of one that is being started is not one of these
	defer c.starting.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recovered {
		return nil
	}
	rows, err := c.store.Checks(ctx, 0, historyScan)
	if err != nil {
		return err
	}
	for _, old := range rows {
		if old.State != StateRunning || c.current != nil && c.current.id == old.ID {
			continue
		}
		rep, err := c.read(old)
		if err != nil {
			return err
		}
		rep.State = StateInterrupted
		if err := c.save(ctx, rep, old.Cursor); err != nil {
			return err
		}
	}
	c.recovered = true
	return nil
}

func (c *Checker) isRecovered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recovered
}

func (c *Checker) save(ctx context.Context, rep Report, cursor string) error {
	return c.store.SaveCheck(ctx, meta.CheckActs{}, func(meta.CheckDone) (meta.CheckRow, error) { return row(rep, cursor) })
}

// Start begins a check and returns its first report. ctx bounds the start
// only. A check in the background makes way; one by request does not:
// fault.Busy, with its id in the text.
func (c *Checker) Start(ctx context.Context, r Request) (Report, error) {
	if err := c.recover(ctx); err != nil {
		return Report{}, err
	}
	if r.Resume {
		rows, err := c.store.Checks(ctx, 0, historyScan)
		if err != nil {
			return Report{}, err
		}
		for _, row := range rows {
			if rep, err := c.read(row); err != nil || rep.Trigger != TriggerManual || rep.State == StateDone {
				continue
			}
			return c.begin(ctx, row, &r)
		}
	}
	return c.fresh(ctx, r, TriggerManual)
}

// fresh starts a check from the beginning.
func (c *Checker) fresh(ctx context.Context, r Request, trigger string) (Report, error) {
	if r.Grace == 0 {
		r.Grace = meta.Duration(c.opts.Window)
	}
	c.limits(&r)
	r.Resume = false
	rep := Report{Trigger: trigger, Request: r, State: StateRunning, Phase: PhaseStorage,
		Orphans: Orphans{Keys: []string{}}, Lost: []Lost{}, Database: []string{}, Failures: []string{}}
	return c.launch(ctx, rep, "", func() (Report, error) {
		first, err := row(rep, "")
		if err != nil {
			return rep, err
		}
		first, err = c.store.CreateCheck(ctx, first)
		rep.ID, rep.StartedAt, rep.UpdatedAt = first.ID, meta.Time(first.StartedAt), meta.Time(first.UpdatedAt)
		return rep, err
	})
}

func (c *Checker) limits(r *Request) {
	if r.ObjectsPerSecond == 0 {
		r.ObjectsPerSecond = c.opts.ObjectsPerSecond
	}
	if r.BytesPerSecond == 0 {
		r.BytesPerSecond = c.opts.BytesPerSecond
	}
}

// begin goes on with an old check, at the rates of r if that is not nil.
func (c *Checker) begin(ctx context.Context, old meta.CheckRow, r *Request) (Report, error) {
	rep, err := c.read(old)
	if err != nil {
		return Report{}, err
	}
	if r != nil {
		rep.Request.ObjectsPerSecond, rep.Request.BytesPerSecond = r.ObjectsPerSecond, r.BytesPerSecond
		c.limits(&rep.Request)
	}
	rep.State, rep.Error, rep.FinishedAt = StateRunning, "", nil
	return c.launch(ctx, rep, old.Cursor, func() (Report, error) { return rep, c.save(ctx, rep, old.Cursor) })
}

// launch makes the check the current one, with the report that record returns.
func (c *Checker) launch(ctx context.Context, rep Report, cursor string, record func() (Report, error)) (Report, error) {
	c.starting.Lock()
	defer c.starting.Unlock()
	if err := c.makeWay(ctx, rep); err != nil {
		return Report{}, err
	}
	rep, err := record()
	if err != nil {
		return Report{}, err
	}
	work, cancel := context.WithCancelCause(context.Background())
	r := &run{c: c, id: rep.ID, cancel: cancel, done: make(chan struct{}), report: rep, cursor: cursor, buf: make([]byte, readSize),
		objects: limiter(rep.Request.ObjectsPerSecond, 1, objectPage), bytes: limiter(rep.Request.BytesPerSecond, readSize, readSize)}
	c.mu.Lock()
	c.current = r
	closed := c.closed
	c.mu.Unlock()
	if closed { // between makeWay and here
		cancel(errShutdown)
	}
	go r.run(work)
	return rep, nil
}

// limiter allows a burst of what comes in a second, within bounds.
func limiter(perSecond float64, least, most int) *rate.Limiter {
	burst := min(max(least, int(min(perSecond, 1e9))), most)
	if perSecond < 0 {
		return rate.NewLimiter(rate.Inf, most)
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

// makeWay ends the current check if the new one may take its place.
func (c *Checker) makeWay(ctx context.Context, next Report) error {
	c.mu.Lock()
	r, closed := c.current, c.closed
	c.mu.Unlock()
	if closed {
		return fault.New(fault.Busy, "the server is about to end")
	}
	if r == nil {
		return nil
	}
	if now := r.snapshot(); now.Trigger != TriggerBackground || next.Trigger == TriggerBackground {
		return fault.New(fault.Busy, "check %d is running; wait for it or stop it first", now.ID)
	}
	r.cancel(errMadeWay)
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shutdown ends what runs and lets nothing new begin.
func (c *Checker) shutdown() {
	c.mu.Lock()
	c.closed = true
	r := c.current
	c.mu.Unlock()
	if r != nil {
		r.cancel(errShutdown)
		<-r.done
	}
}

// run carries the check out and records how it ended.
func (r *run) run(ctx context.Context) {
	defer close(r.done)
	defer r.cancel(nil)
	err := r.all(ctx)
	rep := r.snapshot()
	switch cause := context.Cause(ctx); {
	case err == nil:
		rep.State, rep.Progress = StateDone, 1
	case errors.Is(cause, errShutdown), errors.Is(cause, errMadeWay):
		rep.State = StateInterrupted
	case errors.Is(cause, errStopped):
		rep.State = StateStopped
	default:
		rep.State, rep.Error = StateFailed, plain(err)
		r.c.log.Error("check failed", "check", rep.ID, "err", err)
	}
	now := meta.Time(r.c.store.Now())
	rep.UpdatedAt = now
	if rep.State != StateInterrupted {
		rep.FinishedAt = &now
	}
	err = r.c.save(context.Background(), rep, r.cursor)
	if err != nil {
		r.c.log.Error("check: record the end", "check", rep.ID, "err", err)
	}
	r.c.metrics.ended(rep)
	r.c.log.Info("check ended", "check", rep.ID, "state", rep.State, "objects", rep.Objects, "blobs", rep.Blobs,
		"orphans", rep.Orphans.Count, "lost", rep.LostCount, "repaired", rep.Repaired, "failed", rep.Failed)
	r.mu.Lock()
	r.report = rep
	r.mu.Unlock()
	r.c.mu.Lock()
	r.c.current = nil
	// A row that still says running is one of an interrupted check, as after a crash.
	r.c.recovered = r.c.recovered && err == nil
	r.c.mu.Unlock()
}

// read is the report in a row.
func (c *Checker) read(row meta.CheckRow) (Report, error) {
	var rep Report
	if err := json.Unmarshal([]byte(row.Report), &rep); err != nil {
		return Report{}, fmt.Errorf("read check %d: %w", row.ID, err)
	}
	rep.ID, rep.StartedAt, rep.UpdatedAt = row.ID, meta.Time(row.StartedAt), meta.Time(row.UpdatedAt)
	return rep, nil
}

// live returns the check of that id if it runs in this process.
func (c *Checker) live(id int64) *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.current; r != nil && r.id == id {
		return r
	}
	return nil
}

// Get returns a check's report, live while it runs. fault.NotFound for no such check.
func (c *Checker) Get(ctx context.Context, id int64) (Report, error) {
	if err := c.recover(ctx); err != nil {
		return Report{}, err
	}
	if r := c.live(id); r != nil {
		return r.snapshot(), nil
	}
	row, err := c.store.Check(ctx, id)
	if err != nil {
		return Report{}, err
	}
	return c.read(row)
}

// Wait is Get once the check no longer runs.
func (c *Checker) Wait(ctx context.Context, id int64) (Report, error) {
	if r := c.live(id); r != nil {
		select {
		case <-r.done:
			return r.snapshot(), nil
		case <-ctx.Done():
			return r.snapshot(), ctx.Err()
		}
	}
	return c.Get(ctx, id)
}

// Stop ends a running check and returns its report when it has stopped. It
// leaves a check that is over as it is.
func (c *Checker) Stop(ctx context.Context, id int64) (Report, error) {
	if r := c.live(id); r != nil {
		r.cancel(errStopped)
	}
	return c.Wait(ctx, id)
}

// History lists checks, newest first, whose id is below before (0 = all), n at most.
func (c *Checker) History(ctx context.Context, before int64, n int) ([]Report, error) {
	if err := c.recover(ctx); err != nil {
		return nil, err
	}
	rows, err := c.store.Checks(ctx, before, n)
	if err != nil {
		return nil, err
	}
	reps := make([]Report, 0, len(rows))
	for _, row := range rows {
		rep, err := c.read(row)
		if err != nil {
			return nil, err
		}
		if r := c.live(rep.ID); r != nil {
			rep = r.snapshot()
		}
		reps = append(reps, rep)
	}
	return reps, nil
}

package inuse

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/fault"
)

// ErrNoEvents is what Source.Watch returns where the runtime has no events.
var ErrNoEvents = errors.New("the runtime sends no events")

// Options of a Tracker.
type Options struct {
	Every      time.Duration // between two full readings without events; 30 s if 0
	AskTimeout time.Duration // for one reading of one source; 5 s if 0
	// Confirm is how long after a reading that lacks something another one may
	// confirm the loss; 500 ms if 0. A half answer may last longer than two
	// readings that follow at once, as those before and after a claim do.
	Confirm time.Duration
	// Finder adds the runtimes that appear while the tracker runs; nil: there are none but those given.
	Finder  Finder
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
	Now     func() time.Time      // time.Now if nil
}

// Finder looks for runtimes. Its sources are tracked until somebody has them
// forgotten: a runtime that disappears again is one that cannot be asked (N13).
type Finder interface {
	// Find returns the sources that have appeared since it was called last. It is
	// called before each question, so it must be quick and never wait for a runtime.
	Find() []Source
	// Answered is called when a source has answered for the first time.
	Answered(s Source)
	// Forget forgets a runtime for good. An error, Conflict if it may be there still,
	// says that nothing was forgotten.
	Forget(s Source) error
}

// Tracker merges what all sources say.
type Tracker struct {
	o     Options
	usage atomic.Pointer[Usage]

	looking sync.Mutex // held while the finder is asked; before mu

	mu          sync.Mutex     // held while usage is made; before a tracked's mu
	sources     []*tracked     // replaced, never changed in place
	start       func(*tracked) // begins to watch a source; nil while Run does not run
	subscribers []chan struct{}
}

// NewTracker makes a tracker of sources, whose Close is the caller's. It knows
// nothing until Run or Ask. Sources of the same name get a number each.
func NewTracker(sources []Source, o Options) *Tracker {
	if o.Every <= 0 {
		o.Every = 30 * time.Second
	}
	if o.Confirm <= 0 {
		o.Confirm = confirmAfter / 2
	}
	if o.AskTimeout <= 0 {
		o.AskTimeout = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &Tracker{o: o}
	t.add(sources)
	t.usage.Store(t.merge())
	t.Look()
	if o.Metrics != nil {
		o.Metrics.MustRegister(&collector{tracker: t})
	}
	return t
}

// add appends sources, each under a name of its own. The caller holds mu, or is
// the constructor.
func (t *Tracker) add(sources []Source) {
	for _, s := range sources {
		name := s.Name()
		for n := 2; t.named(name) != nil; n++ {
			name = s.Name() + "-" + strconv.Itoa(n)
		}
		added := newTracked(t, s, name)
		t.sources = append(t.sources[:len(t.sources):len(t.sources)], added)
		if t.start != nil {
			t.start(added)
		}
	}
}

// named returns the source with a name, nil if there is none. The caller holds mu.
func (t *Tracker) named(name string) *tracked {
	for _, s := range t.sources {
		if s.name == name {
			return s
		}
	}
	return nil
}

// Source returns the source that has a name among those of the tracker; nil if there
// is none.
func (t *Tracker) Source(name string) Source {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.named(name); s != nil {
		return s.source
	}
	return nil
}

// Forget ends the belief in a runtime that is gone for good, and closes its source.
// The runtime is asked first: it is a Conflict if it answers, or if the finder cannot
// be sure that it is gone; NotFound if there is none of that name. What it was believed
// to use is no longer in use.
func (t *Tracker) Forget(ctx context.Context, name string) error {
	u, err := t.Ask(ctx)
	if err != nil {
		return err
	}
	for _, st := range u.Sources {
		if st.Name == name && st.Up {
			return fault.New(fault.Conflict, "%s answers, so what it runs is in use; only a runtime that is gone can be forgotten", name)
		}
	}
	// Whoever looks meanwhile would find it under another name.
	t.looking.Lock()
	defer t.looking.Unlock()
	t.mu.Lock()
	s := t.named(name)
	t.mu.Unlock()
	switch {
	case s == nil:
		return fault.New(fault.NotFound, "there is no runtime %q here", name)
	case t.o.Finder == nil:
		return fault.New(fault.Conflict, "%s is named by the setting runtime; remove it there, and start the agent again", name)
	}
	if err := t.o.Finder.Forget(s.source); err != nil {
		return err
	}
	t.mu.Lock()
	t.sources = slices.DeleteFunc(slices.Clone(t.sources), func(other *tracked) bool { return other == s })
	t.mu.Unlock()
	s.end()
	t.update()
	return s.source.Close()
}

// Look asks the finder for runtimes that have appeared. One that has is unknown
// until it has answered, before Look returns. Call it when something may have
// changed where runtimes have their sockets; Ask does so by itself.
func (t *Tracker) Look() {
	if t.o.Finder == nil {
		return
	}
	t.looking.Lock()
	defer t.looking.Unlock()
	found := t.o.Finder.Find()
	if len(found) == 0 {
		return
	}
	t.mu.Lock()
	t.add(found)
	t.mu.Unlock()
	t.update()
}

// all returns the sources that are tracked now.
func (t *Tracker) all() []*tracked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sources
}

// Run keeps the belief current until ctx is done.
func (t *Tracker) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	start := func(s *tracked) {
		ctx := s.until(ctx)
		g.Go(func() error { s.keepWatching(ctx); return nil })
		g.Go(func() error { s.keepReading(ctx); return nil })
	}
	t.mu.Lock()
	t.start = start
	for _, s := range t.sources {
		start(s)
	}
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.start = nil // nothing is added to a group that is waited for
	t.mu.Unlock()
	return g.Wait()
}

// Usage returns the present belief. It never waits.
func (t *Tracker) Usage() *Usage { return t.usage.Load() }

// Ask asks every source now, also those that have appeared since the last
// question, and returns the belief that contains the answers. Each of them was
// asked for after the call; a source that did not answer within AskTimeout is in
// Unknown. The error is ctx's only.
func (t *Tracker) Ask(ctx context.Context) (*Usage, error) {
	t.Look()
	bounded, cancel := context.WithTimeout(ctx, t.o.AskTimeout)
	defer cancel()
	called := t.o.Now()
	sources := t.all()
	late := make([]bool, len(sources))
	var wg sync.WaitGroup
	for i, s := range sources {
		r := s.ask()
		wg.Go(func() {
			select {
			case <-r.done:
			case <-bounded.Done():
				late[i] = true
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.Look() // what has appeared meanwhile is unknown in the answer
	u := *t.usage.Load()
	for i, s := range sources {
		// A source that is not up is in Unknown already, and so is one that has
		// appeared meanwhile. One that was forgotten meanwhile is not there.
		at := slices.IndexFunc(u.Sources, func(st SourceStatus) bool { return st.Name == s.name })
		if at < 0 {
			continue
		}
		if st := u.Sources[at]; late[i] && st.Up && st.known() {
			st.Up = false
			st.Error = "it has not answered within " + t.o.AskTimeout.String() + " of " + called.UTC().Format(time.RFC3339)
			u.Unknown = append(u.Unknown[:len(u.Unknown):len(u.Unknown)], st)
		}
	}
	return &u, nil
}

// Changed returns a channel that gets a value after the belief has changed.
// Changes that nobody has taken yet are one value. Each call makes a channel
// of its own.
func (t *Tracker) Changed() <-chan struct{} {
	c := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subscribers = append(t.subscribers, c)
	return c
}

// update publishes what the sources believe, and tells of it if it is new.
func (t *Tracker) update() {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, now := t.usage.Load(), t.merge()
	now.Seq = before.Seq + 1
	t.usage.Store(now)
	if before.Same(now) {
		return
	}
	for _, c := range t.subscribers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

const noRuntime = "no container runtime is configured, and none was found"

// merge makes a usage of what the sources believe. The caller holds mu, or is
// the constructor.
func (t *Tracker) merge() *Usage {
	u := &Usage{}
	for _, s := range t.sources {
		s.mu.Lock()
		st := s.status
		u.Sources = append(u.Sources, st)
		u.Containers = append(u.Containers, s.containers...)
		u.Images = append(u.Images, s.images...)
		u.Busy = append(u.Busy, s.busy...)
		u.PullsUnseen = u.PullsUnseen || s.pullsUnseen
		s.mu.Unlock()
		if !st.Up || !st.known() {
			u.Unknown = append(u.Unknown, st)
		}
	}
	if len(t.sources) == 0 {
		u.Unknown = []SourceStatus{{Error: noRuntime}}
	}
	u.At = oldest(u.Sources)
	trace(u.Containers)
	return u
}

// oldest is when the oldest answer was asked for, zero if one is missing.
func oldest(all []SourceStatus) time.Time {
	var at time.Time
	for i, st := range all {
		if st.Answered.IsZero() {
			return time.Time{}
		}
		if i == 0 || st.Answered.Before(at) {
			at = st.Answered
		}
	}
	return at
}

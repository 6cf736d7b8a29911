package inuse

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
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

// Finder looks for runtimes. Its sources are tracked for good: a runtime that
// disappears again is one that cannot be asked (N13).
type Finder interface {
	// Find returns the sources that have appeared since it was called last. It is
	// called before each question, so it must be quick and never wait for a runtime.
	Find() []Source
	// Answered is called when a source has answered for the first time.
	Answered(s Source)
}

// Tracker merges what all sources say.
type Tracker struct {
	o     Options
	usage atomic.Pointer[Usage]

	looking sync.Mutex // held while the finder is asked; before mu

	mu          sync.Mutex // held while usage is made; before a tracked's mu
	sources     []*tracked // appended to, never removed from
	names       map[string]int
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
	t := &Tracker{o: o, names: map[string]int{}}
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
		if t.names[name]++; t.names[name] > 1 {
			name += "-" + strconv.Itoa(t.names[name])
		}
		added := newTracked(t, s, name)
		t.sources = append(t.sources[:len(t.sources):len(t.sources)], added)
		if t.start != nil {
			t.start(added)
		}
	}
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
	for i := range sources {
		// A source that is not up is in Unknown already, and so is one that has
		// appeared meanwhile.
		if st := u.Sources[i]; late[i] && st.Up && st.known() {
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

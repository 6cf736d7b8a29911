package inuse

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

const (
	// confirmAfter is how long after a reading that lacks something the next
	// one is made: long enough for a runtime that was in the middle of
	// something, short enough for data that waits to go.
	confirmAfter = time.Second
	// settle is how long events may pour in before a reading is made.
	settle = 100 * time.Millisecond
	// restFactor times the duration of a reading is the rest before events
	// cause another one, so that a storm of them costs a tenth of a core at most.
	restFactor = 10
	// Waits between two attempts to reach a runtime that is away.
	retryMin, retryMax = 500 * time.Millisecond, 10 * time.Second
)

// reading is one full reading, being made or to be made next.
type reading struct {
	done chan struct{}
}

// tracked is a source and what is believed of it.
type tracked struct {
	tracker *Tracker
	source  Source
	name    string
	kick    chan struct{} // buffered: an event came
	ended   chan struct{} // closed when it was forgotten

	reads    sync.Mutex // of the next two; never held while the source is asked
	current  *reading
	awaited  *reading      // begins when current is done; whoever asks meanwhile shares it
	lastTook time.Duration // of the last reading

	mu         sync.Mutex // of what follows
	status     SourceStatus
	belief     belief
	readings   int  // that were answered since the start
	doubt      bool // the last reading lacked something
	containers []Container
	images     []Image
	busy       []oci.Digest

	pullsUnseen bool // by what it said last
}

func newTracked(t *Tracker, s Source, name string) *tracked {
	return &tracked{
		tracker: t, source: s, name: name, kick: make(chan struct{}, 1), ended: make(chan struct{}), belief: belief{apart: t.o.Confirm},
		status: SourceStatus{Name: name, Error: notAsked, Since: t.o.Now()},
	}
}

// end stops watching it. It is called once.
func (s *tracked) end() { close(s.ended) }

// until returns a context that is done with ctx, or when the source is forgotten.
func (s *tracked) until(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
	}()
	return ctx
}

// known reports whether it has ever answered.
func (st SourceStatus) known() bool { return !st.Answered.IsZero() }

const notAsked = "it has not been asked yet"

// Silent says that it was asked and did not answer.
func (st SourceStatus) Silent() bool { return !st.Up && st.Name != "" && st.Error != notAsked }

// ask returns a reading that begins after the call. It may be shared with
// others, but it is never one that has begun already.
func (s *tracked) ask() *reading {
	s.reads.Lock()
	defer s.reads.Unlock()
	if s.current == nil {
		s.current = &reading{done: make(chan struct{})}
		go s.read(s.current)
		return s.current
	}
	if s.awaited == nil {
		s.awaited = &reading{done: make(chan struct{})}
	}
	return s.awaited
}

// read makes one reading, and then the one that was asked for meanwhile.
func (s *tracked) read(r *reading) {
	for r != nil {
		took := s.readOnce()
		s.reads.Lock()
		close(r.done)
		s.lastTook = took
		r, s.current, s.awaited = s.awaited, s.awaited, nil
		s.reads.Unlock()
	}
}

// readOnce asks the source. Readings are bound to no caller, since they are
// shared; their time is.
func (s *tracked) readOnce() (took time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), s.tracker.o.AskTimeout)
	defer cancel()
	began, asked := time.Now(), s.tracker.o.Now()
	snapshot, err := s.source.Snapshot(ctx)
	var second *Snapshot
	if err == nil && s.first() {
		// Nothing is known that the first answer could be compared with, and it
		// may be half of the truth as any other: it counts with a second one.
		var again Snapshot
		again, err = s.source.Snapshot(ctx)
		second = &again
	}
	if err != nil {
		s.failed(err)
	} else {
		s.answered(began, asked, snapshot, second)
	}
	s.tracker.update()
	return time.Since(began)
}

func (s *tracked) first() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readings == 0
}

func (s *tracked) failed(err error) {
	s.mu.Lock()
	wasUp, known := s.status.Up, s.readings > 0
	tellFirst := !wasUp && !known && s.status.Error == notAsked
	s.status.Error = err.Error()
	s.belief.interrupted()
	if wasUp {
		s.status.Up, s.status.Since = false, s.tracker.o.Now()
	}
	s.mu.Unlock()
	if wasUp || tellFirst {
		s.tracker.o.Log.Warn("a container runtime cannot be asked: what it may use stays", "runtime", s.name, "err", err)
	}
}

func (s *tracked) answered(began, asked time.Time, snapshot Snapshot, second *Snapshot) {
	s.mu.Lock()
	s.doubt = s.belief.apply(s.named(snapshot), began)
	if second != nil {
		s.doubt = s.belief.apply(s.named(*second), began)
	}
	s.containers = sortedValues(s.belief.containers)
	s.images = sortedValues(s.belief.images)
	s.busy = sortedValues(s.belief.busy)
	s.pullsUnseen = snapshot.PullsUnseen
	s.readings++
	wasUp, first := s.status.Up, s.readings == 1
	if !wasUp {
		s.status.Up, s.status.Since = true, s.tracker.o.Now()
	}
	s.status.Answered, s.status.Error = asked, ""
	s.status.Containers, s.status.Images = 0, len(s.images)
	for _, c := range s.containers {
		if !c.Sandbox {
			s.status.Containers++
		}
	}
	st := s.status
	s.mu.Unlock()
	if first && s.tracker.o.Finder != nil {
		s.tracker.o.Finder.Answered(s.source)
	}
	if !wasUp {
		s.tracker.o.Log.Info("a container runtime answers", "runtime", s.name, "containers", st.Containers, "images", st.Images)
	}
}

// named writes the source's unique name into a copy of what it said.
func (s *tracked) named(snapshot Snapshot) Snapshot {
	snapshot.Containers = slices.Clone(snapshot.Containers)
	snapshot.Images = slices.Clone(snapshot.Images)
	for i := range snapshot.Containers {
		snapshot.Containers[i].Runtime = s.name
	}
	for i := range snapshot.Images {
		snapshot.Images[i].Runtime = s.name
	}
	return snapshot
}

// keepWatching has events cause readings, until ctx is done.
func (s *tracked) keepWatching(ctx context.Context) {
	retry := retryMin
	for {
		began := time.Now()
		err := s.source.Watch(ctx, s.changed)
		if ctx.Err() != nil {
			return
		}
		wait := retry
		switch {
		case errors.Is(err, ErrNoEvents):
			// Another version may be started there some day.
			wait = s.tracker.o.Every
		case time.Since(began) > retryMax:
			retry, wait = retryMin, retryMin
			s.changed()
		default:
			retry = min(2*retry, retryMax)
			s.changed() // to learn whether it is away
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (s *tracked) changed() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// keepReading reads at the start, after events, to confirm losses, and every
// so often, until ctx is done.
func (s *tracked) keepReading(ctx context.Context) {
	for {
		r := s.ask()
		select {
		case <-r.done:
		case <-ctx.Done():
			return
		}
		s.reads.Lock()
		rest := s.lastTook * restFactor
		s.reads.Unlock()
		next := time.NewTimer(s.nextFull())
		select {
		case <-ctx.Done():
		case <-next.C:
		case <-s.kick:
			sleep(ctx, min(max(settle, rest), s.tracker.o.Every))
			select { // what came meanwhile is in the same reading
			case <-s.kick:
			default:
			}
		}
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *tracked) nextFull() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.doubt:
		return min(confirmAfter, s.tracker.o.Every)
	case !s.status.Up:
		return min(retryMax, s.tracker.o.Every)
	}
	return s.tracker.o.Every
}

// sleep reports whether d has passed before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

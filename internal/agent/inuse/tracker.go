package inuse

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrNoEvents is what Source.Watch returns where the runtime has no events.
var ErrNoEvents = errors.New("the runtime sends no events")

// Options of a Tracker.
type Options struct {
	Every      time.Duration // between two full readings without events; 30 s if 0
	AskTimeout time.Duration // for one reading of one source; 5 s if 0
	Log        *slog.Logger
	Metrics    prometheus.Registerer // nil: none
	Now        func() time.Time      // time.Now if nil
}

// Tracker merges what all sources say.
type Tracker struct{}

// NewTracker makes a tracker of sources, whose Close is the caller's. It knows
// nothing until Run or Ask.
func NewTracker(sources []Source, o Options) *Tracker { return &Tracker{} }

// Run keeps the belief current until ctx is done.
func (t *Tracker) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Usage returns the present belief. It never waits.
func (t *Tracker) Usage() *Usage { return &Usage{} }

// Ask asks every source now and returns the belief that contains the answers.
// Each of them was asked for after the call; a source that did not answer
// within the time is in Unknown. The error is ctx's only.
func (t *Tracker) Ask(ctx context.Context) (*Usage, error) { return &Usage{}, nil }

// Changed returns a channel that gets a value after the belief has changed.
// Changes that nobody has taken yet are one value. Each call makes a channel
// of its own.
func (t *Tracker) Changed() <-chan struct{} { return make(chan struct{}) }

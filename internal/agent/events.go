package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// eventsMax is how many events are remembered.
const eventsMax = 200

// events remembers what the agent's owner should know of: the warnings and
// errors of its log. Those about single requests are not among them.
type events struct {
	mu   sync.Mutex
	list []nodeapi.Event // oldest first
}

func (e *events) add(ev nodeapi.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) == eventsMax {
		e.list = slices.Delete(e.list, 0, 1)
	}
	e.list = append(e.list, ev)
}

// latest returns the events, newest first, merged with others of that order.
func (e *events) latest(others []nodeapi.Event) []nodeapi.Event {
	e.mu.Lock()
	all := slices.Clone(e.list)
	e.mu.Unlock()
	slices.Reverse(all)
	all = append(all, others...)
	slices.SortStableFunc(all, func(a, b nodeapi.Event) int { return b.At.Compare(a.At) })
	return all
}

// remembering is a slog.Handler that passes records on, and remembers some.
type remembering struct {
	slog.Handler
	events *events
	kind   string // of records that do not say
}

// Handle remembers warnings and errors.
func (h remembering) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && r.Message != "request" {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" || a.Key == "error" {
				text += ": " + a.Value.String()
			}
			return true
		})
		level := "warn"
		if r.Level >= slog.LevelError {
			level = "error"
		}
		h.events.add(nodeapi.Event{At: r.Time.UTC(), Level: level, Kind: h.kind, Text: text})
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// Enabled has warnings made even where they are not logged.
func (h remembering) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || h.Handler.Enabled(ctx, level)
}

// WithAttrs is of slog.Handler.
func (h remembering) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// WithGroup is of slog.Handler.
func (h remembering) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

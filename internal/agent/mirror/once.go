package mirror

import (
	"context"
	"sync"
	"time"
)

// questionMax bounds a question to an upstream that several requests wait for.
const questionMax = 60 * time.Second

// once shares one run of fn among all who ask under the same key at the same
// time. It does not end with the one who asked first.
func once[T any](ctx context.Context, m *Mirror, key string, fn func(context.Context) (T, error)) (T, error) {
	answers := m.questions.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), questionMax)
		defer cancel()
		return fn(ctx)
	})
	var zero T
	select {
	case answer := <-answers:
		if answer.Shared {
			m.metrics.joined.Inc()
		}
		got, ok := answer.Val.(T)
		if !ok {
			return zero, answer.Err
		}
		return got, answer.Err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// outages remembers which upstreams gave no answer a moment ago, so that not
// every request has to wait for the same silence.
type outages struct {
	mu   sync.Mutex
	last map[string]outage
}

// outage is trusted from its end on, for a while.
type outage struct {
	at    time.Time
	trust time.Duration
}

// outageTrust is how long an upstream counts as down after it gave no answer,
// for requests that can do without it; at least as long as they waited for it,
// twice: one that accepts and then hangs takes a timeout of whoever asks it.
const outageTrust = 5 * time.Second

// note notes at the time at that an upstream was silent for so long.
func (o *outages) note(ns string, at time.Time, silent time.Duration) {
	o.mu.Lock()
	o.last[ns] = outage{at, max(outageTrust, 2*silent)}
	o.mu.Unlock()
}

func (o *outages) over(ns string) {
	o.mu.Lock()
	delete(o.last, ns)
	o.mu.Unlock()
}

func (o *outages) now(ns string, at time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	last, ok := o.last[ns]
	return ok && at.Sub(last.at).Abs() < last.trust
}

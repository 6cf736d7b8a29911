package mirror

import (
	"context"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/ociclient"
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
// One that limits somebody's rate is silent to nobody else.
type outages struct {
	mu   sync.Mutex
	last map[outageKey]outage
}

type outageKey struct {
	ns  string
	who principal // of a limit; "*": everybody
}

const everybody principal = "*"

// outage is trusted from its end on, for a while.
type outage struct {
	at    time.Time
	trust time.Duration
}

// outageTrust is how long an upstream counts as down after it gave no answer,
// for requests that can do without it; at least as long as they waited for it,
// twice: one that accepts and then hangs takes a timeout of whoever asks it.
const outageTrust = 5 * time.Second

// outagesMax bounds how many are remembered.
const outagesMax = 4096

// note notes at the time at that an upstream decided nothing, after so long.
func (o *outages) note(a access, outcome ociclient.Outcome, at time.Time, took time.Duration) {
	key := outageKey{a.ns, everybody}
	switch {
	case outcome == ociclient.RateLimited:
		key.who = a.who
	case outcome == ociclient.Failed && took < time.Second:
		return // it is no wait that another request would be spared
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.last) >= outagesMax {
		clear(o.last)
	}
	o.last[key] = outage{at, max(outageTrust, 2*took)}
}

func (o *outages) over(a access) {
	o.mu.Lock()
	delete(o.last, outageKey{a.ns, everybody})
	delete(o.last, outageKey{a.ns, a.who})
	o.mu.Unlock()
}

func (o *outages) now(a access, at time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, who := range []principal{everybody, a.who} {
		if last, ok := o.last[outageKey{a.ns, who}]; ok && at.Sub(last.at).Abs() < last.trust {
			return true
		}
	}
	return false
}

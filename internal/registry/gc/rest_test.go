package gc_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// span is a piece of work of a collection.
type span struct {
	n          int
	began, end time.Time
}

// spans are the pieces of a run, in their order.
type spans struct {
	mu  sync.Mutex
	all []span
}

func (s *spans) add(x span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, x)
}

// restful says that there were some pieces, each followed by a rest of at least twice its
// length, or of 200 ms after a long one.
func (s *spans) restful() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.all {
		if x.n > 256 || i > 0 && x.began.Sub(s.all[i-1].end) < min(2*s.all[i-1].end.Sub(s.all[i-1].began), 200*time.Millisecond) {
			return false
		}
	}
	return len(s.all) > 1
}

// busy takes time without giving it back, as work does.
func busy(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
	}
}

// besideClients collects garbage as beside clients that write.
func (h *house) besideClients(s *spans) {
	h.Helper()
	const n = 400
	for i := range n {
		h.push("a", fmt.Sprint(i))
	}
	gc.BesideClients(h.gc)
	run := h.collect(policy(0, 0, 0))
	h.wants(run.Purged == n, "the run: %+v", run.Counts)
	if !s.restful() {
		h.Errorf("a collection does not rest beside clients: %+v", s.all)
	}
}

// TestR5_ACollectionRestsAfterItsWorkOnTheDatabase: what it has worked counts, not
// what it has waited.
func TestR5_ACollectionRestsAfterItsWorkOnTheDatabase(t *testing.T) {
	var s spans
	var x span
	h := newHouse(t)
	h.trace = func(query string, args []any) {
		switch {
		case strings.HasPrefix(query, "DELETE FROM links AS l"):
			if x.n == 0 {
				x.began = time.Now()
			}
			n := strings.Count(args[0].(string), "],[") + 1
			if n > 8 {
				t.Errorf("beside clients, a transaction does not look for clients during %d acts", n)
			}
			x.n += n
			busy(time.Millisecond)
		case query == "RELEASE op" && !x.began.IsZero():
			x.end = time.Now()
			s.add(x)
			x = span{}
		}
	}
	h.reopen()
	h.besideClients(&s)
}

func TestR5_ACollectionRestsAfterItsDeletes(t *testing.T) {
	var s spans
	var x span
	h := newHouse(t)
	h.opts.Workers = 1
	h.trace = func(query string, _ []any) {
		if strings.HasPrefix(query, "DELETE FROM purges") { // when the deletes are done
			s.add(x)
			x = span{}
		}
	}
	h.reopen()
	h.withStore(&deletes{h.files, func(context.Context, string) error {
		if x.n++; x.n == 1 {
			x.began = time.Now()
		}
		busy(200 * time.Microsecond)
		x.end = time.Now()
		return nil
	}})
	h.besideClients(&s)
}

// TestAStopEndsThePurgeOfARun: what is not deleted yet is for the next run.
func TestAStopEndsThePurgeOfARun(t *testing.T) {
	h := newHouse(t)
	h.opts.Workers = 1
	const n = 400
	for i := range n {
		h.push("a", fmt.Sprint(i))
	}
	begun := make(chan struct{})
	var once sync.Once
	h.withStore(&deletes{h.files, func(ctx context.Context, _ string) error {
		once.Do(func() { close(begun); <-ctx.Done() })
		return nil
	}})
	run, err := h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "tester")
	h.must(err)
	<-begun
	run, err = h.gc.Stop(h.ctx(), run.ID)
	h.must(err)
	st, err := h.gc.Status(h.ctx())
	h.must(err)
	h.wants(run.State == meta.RunStopped && run.Purged > 0 && run.Purged < n/2 && run.Failed == 0, "the run: %s, %+v", run.State, run.Counts)
	h.wants(st.Queue.Purges == n-run.Purged, "%d purges are left after %d", st.Queue.Purges, run.Purged)
}

// TestR5_ACollectorHearsThatClientsWrite, until they have not for a while.
func TestR5_ACollectorHearsThatClientsWrite(t *testing.T) {
	h := newHouse(t)
	await := func(what string, ok func() bool) {
		for end := time.Now().Add(time.Minute); !ok(); {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	await("a collector does not hear of clients", func() bool {
		h.push("a", "layer")
		return gc.IsBesideClients(h.gc)
	})
	await("a collector takes it that clients write for ever", func() bool { return !gc.IsBesideClients(h.gc) })
}

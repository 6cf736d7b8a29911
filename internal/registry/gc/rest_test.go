package gc_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
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

// restful says that there were some small pieces, each followed by a rest of at
// least twice its length.
func (s *spans) restful() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.all {
		if x.n > 64 || i > 0 && x.began.Sub(s.all[i-1].end) < 2*s.all[i-1].end.Sub(s.all[i-1].began) {
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

// besideClients collects garbage while clients write, again where these were held up
// for so long that the run could take them for gone.
func (h *house) besideClients(s *spans) {
	h.Helper()
	h.push("clients", "{}")
	raw := manifest("")
	m, err := oci.ParseManifest("", raw)
	h.must(err)
	p := meta.Push{Repo: "clients", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: m, Content: raw}
	for range 10 {
		for i := range 100 {
			h.push("a", fmt.Sprint(i))
		}
		s.all = nil
		ctx, stop := context.WithCancel(h.ctx())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := h.store.PutManifest(h.ctx(), p); err != nil {
						h.Error(err)
					}
				}
			})
		}
		run := h.collect(policy(0, 0, 0))
		stop()
		wg.Wait()
		h.wants(run.Purged == 100, "the run: %+v", run.Counts)
		if s.restful() {
			return
		}
	}
	h.Errorf("a collection does not rest beside clients: %+v", s.all)
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
			x = span{n: strings.Count(args[0].(string), "],["), began: time.Now()}
			busy(10 * time.Millisecond)
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

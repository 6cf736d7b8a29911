package gc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// deletes is a store whose Delete the test may watch or refuse.
type deletes struct {
	blob.Store
	before func(ctx context.Context, key string) error
}

func (d *deletes) Delete(ctx context.Context, key string) (int64, error) {
	if err := d.before(ctx, key); err != nil {
		return 0, err
	}
	return d.Store.Delete(ctx, key)
}

// A loss of power takes back commits that did not wait for the disk. Those of a
// collection do not, so that there must be one that does between the commit that
// forgets a blob and the delete of its bytes.
func TestR7_BytesGoOnlyWhenTheirRowsAreGoneForGood(t *testing.T) {
	var mu sync.Mutex
	queued, atRisk, commits, syncs := false, false, 0, 0
	h := newHouse(t)
	h.trace = func(query string, _ []any) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.HasPrefix(query, "INSERT INTO purges"):
			queued = true
		case query == "COMMIT":
			commits++
			queued, atRisk = false, atRisk || queued
		}
	}
	h.fsync = func(f *os.File) error {
		mu.Lock()
		defer mu.Unlock()
		err := f.Sync()
		syncs++
		atRisk = atRisk && err != nil
		return err
	}
	h.reopen()
	for i := range 300 {
		h.push("a", fmt.Sprint(i))
	}
	deleted := 0
	h.withStore(&deletes{h.files, func(context.Context, string) error {
		mu.Lock()
		defer mu.Unlock()
		if deleted++; atRisk {
			return errors.New("its row may come back")
		}
		return nil
	}})
	mu.Lock()
	commits, syncs = 0, 0
	mu.Unlock()
	run := h.collectAll()
	h.wants(run.Collected == 300 && run.Purged == 300 && run.Failed == 0 && deleted == 300, "run: %+v, %d deletes", run.Counts, deleted)
	mu.Lock()
	defer mu.Unlock()
	h.wants(syncs < commits, "%d commits of a collection wait for %d syncs", commits, syncs)
}

func TestR9_OneFailingObjectDoesNotStopTheOthersAndIsTriedAgain(t *testing.T) {
	h := newHouse(t)
	for _, c := range []string{"one", "two", "six"} {
		h.push("a", c)
	}
	bad, err := h.store.Blob(h.ctx(), "a", digest.FromString("two"))
	h.must(err)
	broken := true
	h.withStore(&deletes{h.files, func(_ context.Context, key string) error {
		if broken && key == bad.Key {
			return errors.New("the disk says no")
		}
		return nil
	}})
	run := h.collectAll()
	h.wants(run.Collected == 3 && run.Purged == 2 && run.FreedBytes == 6 && run.Failed == 1, "run with a failing object: %+v", run.Counts)
	es, err := h.gc.Events(h.ctx(), run.ID)
	h.must(err)
	h.wants(len(es) == 1 && es[0].Level == "error", "the run's log: %+v", es)
	st, err := h.gc.Status(h.ctx())
	h.must(err)
	h.wants(st.Queue.PurgesStuck == 1, "the failing object is not shown: %+v", st.Queue)

	broken = false
	run = h.collectAll()
	h.wants(run.Purged == 0, "it was tried again before its backoff was over")
	h.pass(2 * time.Second)
	run = h.collectAll()
	h.wants(run.Purged == 1 && run.FreedBytes == 3, "it was not tried again: %+v", run.Counts)
	h.wants(len(h.objects()) == 0, "bytes are left: %v", h.objects())
}

func TestR5_NothingIsLockedWhileBytesAreDeleted(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	inside, release := make(chan struct{}), make(chan struct{})
	h.withStore(&deletes{h.files, func(context.Context, string) error { close(inside); <-release; return nil }})
	run, err := h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "tester")
	h.must(err)
	<-inside
	h.image("b", []string{"pushed meanwhile"}, "v1") // would hang if a lock or transaction were held
	h.wants(h.hasBlob("b", "pushed meanwhile"), "a push during a collection is lost")
	close(release)
	_, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
}

func TestStopKeepsCountsAndTheNextRunTakesTheRestAtOnce(t *testing.T) {
	h := newHouse(t)
	const n = 1000
	for i := range n {
		h.push("a", fmt.Sprint("garbage ", i))
	}
	h.opts.Rate = 300 // so that the run is still at it when it is stopped
	h.withStore(h.files)
	run, err := h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "tester")
	h.must(err)
	for run.Examined == 0 {
		run, err = h.gc.Get(h.ctx(), run.ID)
		h.must(err)
	}
	run, err = h.gc.Stop(h.ctx(), run.ID)
	h.must(err)
	h.wants(run.State == meta.RunStopped && run.Examined > 0 && run.Unlinked < n && run.FinishedAt != nil, "the stopped run: %+v", run)

	h.opts.Rate = 0
	h.withStore(h.files)
	rest := h.collectAll()
	h.wants(run.Unlinked+rest.Unlinked == n && rest.Collected+run.Collected == n && rest.Purged == n, "stopped: %+v, rest: %+v", run.Counts, rest.Counts)
}

func TestRateLimitHoldsARunBack(t *testing.T) {
	h := newHouse(t)
	for i := range 256 {
		h.push("a", fmt.Sprint("garbage ", i))
	}
	h.opts.Rate = 512
	h.withStore(h.files)
	began := time.Now()
	h.collectAll() // 512 items at 512 a second, 128 of them for free
	h.wants(time.Since(began) > 700*time.Millisecond, "512 items took %s at 512 a second", time.Since(began))
}

func TestHistoryAndLogSurviveARestart(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	run := h.collectAll()
	h.reopen()
	got, err := h.gc.Get(h.ctx(), run.ID)
	h.must(err)
	h.wants(got.State == meta.RunDone && got.Collected == 1 && got.FreedBytes == 7, "after a restart: %+v", got)
	ds, err := h.store.Deletions(h.ctx(), "", run.ID, 0, 10)
	h.must(err)
	h.wants(len(ds) == 2, "the deletion log has %d records, want link and blob", len(ds))
	_, err = h.gc.Get(h.ctx(), 4711)
	h.wants(errors.Is(err, fault.NotFound), "an unknown run: %v", err)
}

func TestR7_RunCutOffByACrashIsMarkedInterrupted(t *testing.T) {
	h := newHouse(t)
	run, err := h.store.StartRun(h.ctx(), gc.TriggerManual, "tester", meta.Policy{})
	h.must(err)
	h.reopen()
	got, err := h.gc.Get(h.ctx(), run.ID)
	h.must(err)
	h.wants(got.State == meta.RunInterrupted && got.FinishedAt != nil, "the run after a crash: %+v", got)
}

// The worker in the background, with a ticker of its own: what is waited for is
// the outcome.
func TestBackgroundWorkerCollectsAtItsInterval(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	h.pass(window + time.Second)
	h.opts.Interval = 10 * time.Millisecond
	var upkeep atomic.Int64
	h.opts.Upkeep = func() error { upkeep.Add(1); return nil }
	h.withStore(h.files)
	ctx, cancel := context.WithCancel(h.ctx())
	done := make(chan error, 1)
	go func() { done <- h.gc.Run(ctx) }()
	waitFor(t, func() bool { return len(h.objects()) == 0 })
	waitFor(t, func() bool { return upkeep.Load() > 3 })
	cancel()
	h.must(<-done)
	runs, err := h.gc.History(h.ctx(), 0, 100)
	h.must(err)
	h.wants(len(runs) == 1 && runs[0].Trigger == gc.TriggerInterval && runs[0].State == meta.RunDone, "runs that found nothing are in the history: %+v", runs)
	_, err = h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "tester")
	h.wants(errors.Is(err, fault.Busy), "a run after the end: %v", err)
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen in 20 s")
		}
		time.Sleep(time.Millisecond) // a poll, not a wait
	}
}

func TestCronSchedules(t *testing.T) {
	for _, s := range []string{"0 3 * * *", "*/5 * * * 1-5", "@daily", "@every 90s", "@every 1m", "0 0 29 2 *", "TZ=UTC 0 3 * * *"} {
		if _, err := gc.ParseCron(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{
		"", "61 * * * *", "@sometimes", "* * *", "a b c d e", "TZ=UTC", "TZ=Nowhere/Land 0 3 * * *",
		"0 3 * * *\n", "\n0 3 * * *", "0 3\t* * *", "0 3 * *\x1b *", " @daily",
		"@every 59s", "@every 1s", "@every -1h", "@every x", "0 0 30 2 *", "0 0 31 4 *",
	} {
		_, err := gc.ParseCron(s)
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, want it refused", s, err)
			continue
		}
		for _, internal := range []string{"strconv", "parse", "time:", "unknown"} {
			if text := fault.Public(err).Public; strings.Contains(text, internal) {
				t.Errorf("%q: %q has internal text %q", s, text, internal)
			}
		}
	}
	spec, err := gc.ParseCron("30 3 * * *")
	if err != nil {
		t.Fatal(err)
	}
	next := spec.Next(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	if !next.Equal(time.Date(2026, 3, 2, 3, 30, 0, 0, time.UTC)) {
		t.Errorf("next is %s", next)
	}
}

func TestCronSchedules_EveryComesOnceInItsTimeWhateverTheLooksAreApart(t *testing.T) {
	spec, err := gc.ParseCron("@every 6h")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 3, 1, 0, 0, 30, 0, time.UTC)
	n := 0
	for last := start; last.Before(start.Add(24 * time.Hour)); last = last.Add(time.Minute) {
		if !spec.Next(last).After(last.Add(time.Minute)) {
			n++
		}
	}
	if n != 4 {
		t.Errorf("it came %d times in a day, want 4", n)
	}
}

func TestScheduledRunComesInItsTime(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	sc, err := h.store.AddSchedule(h.ctx(), "30 3 * * *", policy(0, 0, 0))
	h.must(err)
	at := func(hour, minute int) time.Time { return time.Date(2026, 3, 1, hour, minute, 0, 0, time.UTC) }
	h.must(h.gc.Schedules(h.ctx(), at(3, 0), at(3, 29)))
	runs, err := h.gc.History(h.ctx(), 0, 10)
	h.must(err)
	h.wants(len(runs) == 0, "a run before its time")
	h.must(h.gc.Schedules(h.ctx(), at(3, 29), at(3, 31)))
	waitFor(t, func() bool { return len(h.objects()) == 0 })
	ss, err := h.store.Schedules(h.ctx())
	h.must(err)
	h.wants(len(ss) == 1 && ss[0].ID == sc.ID && ss[0].LastRun != nil, "the schedule after its run: %+v", ss)
}

func TestNegativeDurationsAreRefused(t *testing.T) {
	h := newHouse(t)
	_, err := h.gc.Start(h.ctx(), policy(-time.Second, 0, 0), gc.TriggerManual, "tester")
	h.wants(errors.Is(err, fault.Invalid), "a negative window: %v", err)
	_, _, err = h.gc.DryRun(h.ctx(), policy(0, -time.Second, 0), 1, nil)
	h.wants(errors.Is(err, fault.Invalid), "a negative trash time: %v", err)
}

func TestMetricsTellWhatARunDid(t *testing.T) {
	h := newHouse(t)
	reg := prometheus.NewPedanticRegistry()
	h.opts.Metrics = reg
	h.withStore(h.files)
	h.push("a", "garbage")
	h.push("b", "garbage too")
	h.collectAll()
	want := map[string]float64{"fairway_gc_collected_total": 2, "fairway_gc_freed_bytes_total": 18, "fairway_gc_review_queue_length": 0, "fairway_repositories": 0}
	got, err := reg.Gather()
	h.must(err)
	for _, f := range got {
		if v, ok := want[f.GetName()]; ok {
			m := f.GetMetric()[0]
			h.wants(m.GetCounter().GetValue()+m.GetGauge().GetValue() == v, "%s is %v, want %v", f.GetName(), m, v)
			delete(want, f.GetName())
		}
	}
	h.wants(len(want) == 0, "no such metrics: %v", want)
	problems, err := testutil.GatherAndLint(reg)
	h.must(err)
	h.wants(len(problems) == 0, "names: %+v", problems)
}

package gc_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// predicted compares a dry run with the run right after it.
func (h *house) predicted(p meta.Policy) meta.Run {
	h.Helper()
	want, items, err := h.gc.DryRun(h.ctx(), p, 1000, nil)
	h.must(err)
	got := h.collect(p)
	counts := want.Counts
	counts.Total = got.Total
	h.wants(reflect.DeepEqual(counts, got.Counts), "predicted %+v, did %+v", want.Counts, got.Counts)
	ds, err := h.store.Deletions(h.ctx(), "", got.ID, 0, 1000)
	h.must(err)
	h.wants(reflect.DeepEqual(acts(items), acts(ds)), "predicted %v, did %v", acts(items), acts(ds))
	return got
}

// The store fails each delete, and each takes long enough for the backoffs of
// those before it to end while the run goes on.
func TestR9_ObjectThatFailsIsTriedOnceInARun(t *testing.T) {
	const n = 300
	h := newHouse(t)
	for i := range n {
		h.push("a", fmt.Sprint("garbage ", i))
	}
	var mu sync.Mutex
	tries := map[string]int{}
	h.withStore(&deletes{h.files, func(_ context.Context, key string) error {
		h.pass(2 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		tries[key]++
		return errors.New("the disk says no")
	}})
	run := h.collectAll()
	h.wants(run.Failed == n && len(tries) == n, "%d objects fail, the run counts %d failures of %d objects", n, run.Failed, len(tries))
	for key, k := range tries {
		h.wants(k == 1, "object %s was tried %d times in a run", key, k)
	}
	es, err := h.gc.Events(h.ctx(), run.ID)
	h.must(err)
	h.wants(len(es) == n, "the run's log has %d lines, want one for each object", len(es))
}

func TestRunLogIsBounded(t *testing.T) {
	h := newHouse(t)
	run, err := h.store.StartRun(h.ctx(), gc.TriggerManual, "tester", meta.Policy{})
	h.must(err)
	outcomes := make([]meta.Purged, 1100)
	for i := range outcomes {
		outcomes[i] = meta.Purged{Key: fmt.Sprint("k", i), Problem: "the disk says no"}
	}
	c, err := h.store.FinishPurges(h.ctx(), run.ID, outcomes)
	h.must(err)
	es, err := h.gc.Events(h.ctx(), run.ID)
	h.must(err)
	h.wants(c.Failed == 1100 && len(es) == 1001, "%d failures, %d lines", c.Failed, len(es))
	last := es[len(es)-1]
	h.wants(es[0].Level == "error" && last.Level == "warn" && strings.Contains(last.Text, "more"), "the last line: %+v", last)
}

// What the run itself sends to the trash and a living index keeps there is
// judged once.
func TestR10_WithoutATrashTimeEachItemInTheTrashIsJudgedOnce(t *testing.T) {
	h := newHouse(t)
	c := h.image("a", []string{"layer"})
	mid := h.index("a", "", c)
	h.index("a", "top", mid)
	h.delete("a", mid) // top keeps it in the trash
	run := h.predicted(policy(0, 0, 0))
	h.wants(run.Trashed == 1 && run.Kept[gc.KeptIndex] == 2 && run.Examined == 3, "the orphan goes to the trash, and both stay there: %+v", run.Counts)
	// What can go does, in the same run.
	d := h.image("a", []string{"other"})
	h.delete("a", h.index("a", "", d))
	run = h.predicted(policy(0, 0, 0))
	h.wants(run.Collected >= 3 && !h.hasBlob("a", "other"), "what was trashed did not go on at once: %+v", run.Counts)
}

// unreadable is a store whose objects cannot be opened.
type unreadable struct {
	blob.Store
	on bool
}

func (u *unreadable) Open(ctx context.Context, key string) (blob.Reader, error) {
	if u.on {
		return nil, errors.New("input/output error")
	}
	return u.Store.Open(ctx, key)
}

func TestR9_DryRunGoesOnWhereAnObjectCannotBeRead(t *testing.T) {
	h := newHouse(t)
	u, err := h.store.CreateUpload(h.ctx(), "a", "sha256") // of which no byte came
	h.must(err)
	h.must(h.store.CancelUpload(h.ctx(), "a", u.ID, "tester"))
	up, err := h.store.CreateUpload(h.ctx(), "b", "sha256")
	h.must(err)
	w, err := h.files.Append(h.ctx(), up.Key, 0)
	h.must(err)
	_, err = w.Write([]byte("12345"))
	h.must(err)
	h.must(w.Commit())
	_, err = h.store.AdvanceUpload(h.ctx(), up, 5, nil)
	h.must(err)
	h.push("c", "1234567")
	h.pass(window + time.Second)
	h.withStore(&unreadable{h.files, true})
	want, _, err := h.gc.DryRun(h.ctx(), h.gc.Policy(), 100, nil)
	h.must(err)
	h.wants(want.Collected == 2 && want.FreedBytes == 12 && want.Failed == 0, "the dry run predicts %+v", want.Counts)
	got := h.collect(h.gc.Policy())
	h.wants(got.FreedBytes == want.FreedBytes && got.Collected == want.Collected, "the run did %+v", got.Counts)
}

func (h *house) exec(query string, args ...any) {
	h.Helper()
	_, err := h.raw().Exec(query, args...)
	h.must(err)
}

func (h *house) count(query string, args ...any) (n int64) {
	h.Helper()
	h.must(h.raw().QueryRow(query, args...).Scan(&n))
	return n
}

const manyRuns = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO runs (trigger, state, actor, policy, trashed, started_at, finished_at) SELECT 'manual', 'done', 'tester', '{}', ?, 1, 2 FROM n"

func TestHistoryKeepsTheRunsThatMattered(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	mattered := h.collectAll()
	// A background run that finds nothing is forgotten, but has taken an id.
	h.exec("UPDATE sqlite_sequence SET seq = seq + 50000 WHERE name = 'runs'")
	h.collectAll()
	_, err := h.gc.Get(h.ctx(), mattered.ID)
	h.wants(err == nil, "ids that were given back push out a run: %v", err)

	// Runs on demand that did nothing stay, but not at the cost of the others.
	h.exec(manyRuns, 20_000, 0)
	run := h.collectAll()
	_, err = h.gc.Get(h.ctx(), mattered.ID)
	h.wants(err == nil, "idle runs push out the one that mattered: %v", err)
	idle := h.count("SELECT count(*) FROM runs WHERE trashed + collected = 0")
	h.wants(idle >= 1000 && idle <= 1001, "the history holds %d idle runs", idle)

	h.exec(manyRuns, 12_000, 1)
	last := h.collectAll()
	n := h.count("SELECT count(*) FROM runs")
	h.wants(n == 10_000, "the history holds %d runs", n)
	for _, id := range []int64{mattered.ID, run.ID} {
		_, err = h.gc.Get(h.ctx(), id)
		h.wants(err != nil, "run %d is still there after %d others", id, last.ID-id)
	}
}

func TestStatusShowsARunHoweverManyAreOverSince(t *testing.T) {
	h := newHouse(t)
	st, err := h.gc.Status(h.ctx())
	h.must(err)
	h.wants(len(st.Running) == 0 && st.Last == nil, "before any run: %+v", st)
	running, err := h.store.StartRun(h.ctx(), gc.TriggerManual, "tester", meta.Policy{})
	h.must(err)
	h.exec(manyRuns, 50, 0)
	over := h.collectAll()
	st, err = h.gc.Status(h.ctx())
	h.must(err)
	h.wants(len(st.Running) == 1 && st.Running[0].ID == running.ID && st.Running[0].State == meta.RunRunning, "running: %+v", st.Running)
	h.wants(st.Last != nil && st.Last.ID == over.ID, "last: %+v", st.Last)
	h.must(h.store.FinishRun(h.ctx(), running.ID, meta.RunDone, ""))
}

func TestR8_AllExpiredLeasesAreForgottenInOneRun(t *testing.T) {
	h := newHouse(t)
	ds := make([]oci.Digest, 2500)
	for i := range ds {
		ds[i] = digest.FromString(fmt.Sprint(i))
	}
	h.leaseFor(time.Second, ds...)
	h.pass(8 * 24 * time.Hour)
	h.collect(h.gc.Policy())
	n := h.count("SELECT count(*) FROM lease_digests")
	h.wants(n == 0, "%d digests of an expired lease are left", n)
	for i := range 250 {
		_, err := h.store.PutLease(h.ctx(), fmt.Sprint("holder ", i), nil, 1000)
		h.must(err)
	}
	h.pass(time.Minute)
	h.collect(h.gc.Policy())
	n = h.count("SELECT (SELECT count(*) FROM leases) + (SELECT count(*) FROM lease_digests)")
	h.wants(n == 0, "%d rows of expired leases are left", n)
}

func TestR3_RunWithAShortWindowForgetsNoLeaseThatALongerOneCounts(t *testing.T) {
	const month = 30 * 24 * time.Hour
	for name, set := range map[string]func(h *house){
		"server": func(h *house) { h.opts.Policy.Window = meta.Duration(month); h.withStore(h.files) },
		"schedule": func(h *house) {
			_, err := h.store.AddSchedule(h.ctx(), "0 3 * * *", policy(month, trash, 0))
			h.must(err)
		},
		"run": func(*house) {},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			set(h)
			d := h.push("a", "x")
			h.leaseFor(time.Second, d)
			h.pass(20 * 24 * time.Hour)
			p := policy(time.Minute, trash, 0)
			if name == "run" {
				p.Window = meta.Duration(month)
			}
			p.Repository = "b/*" // the short run has nothing to do with a
			h.collect(p)
			p = policy(month, trash, 0)
			h.exec("UPDATE links SET touched_at = 0") // the lease alone keeps it
			h.exec("UPDATE reviews SET event_at = 0")
			h.collect(p)
			h.wants(h.hasBlob("a", "x"), "the blob went within the window after its lease")
		})
	}
}

// A registry in which nothing is due forgets leases too.
func TestR8_BackgroundForgetsExpiredLeasesWithoutARun(t *testing.T) {
	h := newHouse(t)
	h.leaseFor(time.Second, digest.FromString("x"))
	h.pass(8 * 24 * time.Hour)
	h.opts.Interval = time.Millisecond
	h.withStore(h.files)
	ctx, cancel := context.WithCancel(h.ctx())
	done := make(chan error, 1)
	go func() { done <- h.gc.Run(ctx) }()
	db := h.raw()
	waitFor(t, func() bool {
		var n int
		h.must(db.QueryRow("SELECT (SELECT count(*) FROM leases) + (SELECT count(*) FROM lease_digests)").Scan(&n))
		return n == 0
	})
	cancel()
	h.must(<-done)
}

// TestR7_BackgroundSettlesWhatACrashHasLeft: nothing else is due.
func TestR7_BackgroundSettlesWhatACrashHasLeft(t *testing.T) {
	h := newHouse(t)
	index := h.index("a", "i", h.image("a", []string{"layer"}))
	h.delete("a", index)
	h.exec("INSERT INTO kin (manifest_id, run_id, referrers, after) SELECT id, 0, 0, '' FROM manifests WHERE digest = ?", string(index))
	h.opts.Interval = time.Millisecond
	h.reopen()
	ctx, cancel := context.WithCancel(h.ctx())
	done := make(chan error, 1)
	go func() { done <- h.gc.Run(ctx) }()
	waitFor(t, func() bool { return h.count("SELECT count(*) FROM kin") == 0 })
	cancel()
	h.must(<-done)
}

// TestR7_AStartGoesOnWithWhatACrashHasLeft: also where no interval is set. Until
// then a blob that only a broken push names could not be deleted.
func TestR7_AStartGoesOnWithWhatACrashHasLeft(t *testing.T) {
	h := newHouse(t)
	h.image("a", []string{"layer"})
	h.exec("UPDATE manifests SET trashed_at = 1, loose_at = NULL")
	h.exec("INSERT INTO staged (manifest_id) SELECT id FROM manifests")
	h.opts.Interval = 0
	h.reopen()
	ctx, cancel := context.WithCancel(h.ctx())
	done := make(chan error, 1)
	go func() { done <- h.gc.Run(ctx) }()
	waitFor(t, func() bool { return h.count("SELECT count(*) FROM staged") == 0 })
	cancel()
	h.must(<-done)
}

package gc_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// sql runs statements in the database file, beside the store.
func (h *house) sql(statements ...string) {
	h.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(h.dir, "fairway.db")+"?_pragma=busy_timeout(10000)")
	h.must(err)
	for _, s := range statements {
		_, err := db.Exec(s)
		h.must(err)
	}
	h.must(db.Close())
}

// family pushes a subject and n referrers, and returns the last that is settled.
func (h *house) family(repo oci.Name, n int) (subject, last oci.Digest) {
	h.Helper()
	subject = h.image(repo, []string{"layer of " + string(repo)}, "v1")
	for i := range n {
		raw := manifest(subject, fmt.Sprint("sbom ", i, " of ", repo))
		h.push(repo, fmt.Sprint("sbom ", i, " of ", repo))
		h.must(h.put(repo, raw))
		last = max(last, digest.FromBytes(raw))
	}
	return subject, last
}

// TestR9_KinThatCannotBeSettledStopNothingElse: two subjects with more referrers
// than one transaction settles are deleted, and one referrer cannot be written.
func TestR9_KinThatCannotBeSettledStopNothingElse(t *testing.T) {
	h := newHouse(t)
	reg := prometheus.NewPedanticRegistry()
	h.opts.Metrics = reg
	h.withStore(h.files)
	const n = 210
	bad, last := h.family("bad", n)
	good, goodLast := h.family("good", n)
	h.sql(fmt.Sprintf(`CREATE TRIGGER broken BEFORE UPDATE ON manifests WHEN old.digest = '%s' BEGIN SELECT raise(ABORT, 'broken'); END`, last))
	h.delete("bad", bad) // is carried out, whatever becomes of its referrers
	h.delete("good", good)
	h.wants(!h.hasManifest("bad", bad), "a manifest that was deleted is served")

	// Pushes to that repository wait until none of it can become an orphan; others go on,
	// also where there is something left to settle.
	h.sql(fmt.Sprintf("INSERT INTO kin (manifest_id, repo_id, run_id, referrers, after) SELECT id, repo_id, 0, 0, '' FROM manifests WHERE digest = '%s'", good))
	h.must(h.put("good", h.indexOf(), "v2"))
	h.wants(h.put("bad", h.indexOf(), "v2") != nil, "a push is answered though what it names may yet become an orphan")
	h.must(h.put("elsewhere", h.indexOf(), "v1"))
	h.push("elsewhere", "garbage")

	h.pass(48 * time.Hour)
	run := h.collect(policy(window, trash, 0))
	h.wants(run.State == meta.RunDone && run.Failed == 1, "the run: %s, %+v", run.State, run.Counts)
	es, err := h.gc.Events(h.ctx(), run.ID)
	h.must(err)
	h.wants(len(es) == 1 && es[0].Level == "error" && strings.Contains(es[0].Text, "children and referrers"), "the run's log: %+v", es)
	h.wants(!h.hasBlob("elsewhere", "garbage") && run.Purged > 0, "garbage stays behind kin that cannot be settled: %+v", run.Counts)
	h.wants(!h.hasManifest("good", goodLast), "referrers of the other subject stay: %+v", run.Counts)
	h.must(testutil.GatherAndCompare(reg, strings.NewReader("# HELP fairway_gc_failures_total Items that failed and were left for a later run.\n"+
		"# TYPE fairway_gc_failures_total counter\nfairway_gc_failures_total 1\n"), "fairway_gc_failures_total"))
	h.opts.Metrics = nil // one registry takes one collector

	// So it is if not even that can be written down, but then it is told.
	h.push("elsewhere", "garbage")
	h.pass(48 * time.Hour)
	h.sql("CREATE TRIGGER mute BEFORE INSERT ON run_events BEGIN SELECT raise(ABORT, 'mute'); END")
	run, err = h.gc.Start(h.ctx(), policy(window, trash, 0), gc.TriggerManual, "test")
	h.must(err)
	run, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
	h.wants(run.State == meta.RunFailed && run.Purged > 0 && !h.hasBlob("elsewhere", "garbage"), "the run: %s, %+v", run.State, run.Counts)
	h.sql("DROP TRIGGER mute")

	// So it is in the background.
	h.push("elsewhere", "more garbage")
	h.pass(48 * time.Hour)
	h.opts.Interval = time.Millisecond
	h.withStore(h.files)
	ctx, stop := context.WithCancel(h.ctx())
	over := make(chan error)
	go func() { over <- h.gc.Run(ctx) }()
	waitFor(t, func() bool { return !h.hasBlob("elsewhere", "more garbage") })
	stop()
	h.must(<-over)
	h.opts.Interval = 0
	h.withStore(h.files)

	h.sql("DROP TRIGGER broken")
	h.collect(policy(window, trash, 0))
	h.pass(48 * time.Hour)
	h.collect(policy(window, trash, 0))
	h.wants(!h.hasManifest("bad", last), "what failed is not tried again")
}

// TestR9_AQueueThatCannotBeReadStopsNothingElse: a run whose look at one queue
// fails goes on with the others and deletes bytes, and says that it has failed.
func TestR9_AQueueThatCannotBeReadStopsNothingElse(t *testing.T) {
	h := newHouse(t)
	var looks atomic.Int64
	h.trace = func(query string, _ []any) {
		if strings.Contains(query, "m.orphan_reason") && strings.Contains(query, "q.event_at, q.version") {
			looks.Add(1)
		}
	}
	h.reopen()
	h.push("a", "garbage")
	_, err := h.store.CreateUpload(h.ctx(), "a", "sha256")
	h.must(err)
	h.pass(48 * time.Hour)
	h.sql("ALTER TABLE uploads RENAME COLUMN touched_at TO elsewhere")
	run, err := h.gc.Start(h.ctx(), policy(window, trash, 0), gc.TriggerManual, "test")
	h.must(err)
	run, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
	h.wants(run.State == meta.RunFailed, "the run: %+v", run)
	h.wants(run.Purged == 1 && !h.hasBlob("a", "garbage"), "garbage stays behind a queue that cannot be read: %+v", run.Counts)
	h.sql("ALTER TABLE uploads RENAME COLUMN elsewhere TO touched_at")

	// One that is read in each pass is tried once.
	h.push("a", "garbage")
	h.pass(48 * time.Hour)
	h.sql("ALTER TABLE manifests RENAME COLUMN orphan_reason TO elsewhere")
	looks.Store(0)
	run, err = h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "test")
	h.must(err)
	run, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
	h.wants(run.State == meta.RunFailed && run.Purged > 0 && !h.hasBlob("a", "garbage") && looks.Load() == 1, "the run: %s, %+v, after %d looks", run.State, run.Counts, looks.Load())
	h.sql("ALTER TABLE manifests RENAME COLUMN elsewhere TO orphan_reason")
}

// A run whose end cannot be recorded would be waited for without end.
func TestR7_ARunIsOverAlsoWhereNoRowCanSaySo(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	h.pass(48 * time.Hour)
	h.sql("CREATE TRIGGER full BEFORE UPDATE OF state ON runs BEGIN SELECT raise(ABORT, 'full'); END")
	run := h.collect(policy(window, trash, 0))
	h.wants(run.State == meta.RunDone && run.FinishedAt != nil && run.Purged > 0, "the run: %+v", run)
	over := func(what string, r meta.Run) {
		h.Helper()
		h.wants(r.ID == run.ID && r.State == meta.RunDone && r.FinishedAt != nil && r.FinishedAt.Equal(*run.FinishedAt), "%s: %+v", what, r)
	}
	got, err := h.gc.Get(h.ctx(), run.ID)
	h.must(err)
	over("get", got)
	all, err := h.gc.History(h.ctx(), 0, 10)
	h.must(err)
	over("history", all[0])
	st, err := h.gc.Status(h.ctx())
	h.must(err)
	h.wants(len(st.Running) == 0 && st.Last != nil, "status: %+v", st)
	over("status", *st.Last)

	h.sql("DROP TRIGGER full")
	recorded := func() bool {
		r, err := h.store.Run(h.ctx(), run.ID)
		h.must(err)
		return r.State == meta.RunDone
	}
	for until := time.Now().Add(time.Minute); !recorded(); time.Sleep(10 * time.Millisecond) {
		h.wants(time.Now().Before(until), "the end of the run is never recorded")
	}
}

package gc_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// raw is a connection of its own to the database, for what no API would do.
func (h *house) raw() *sql.DB {
	h.Helper()
	db, err := sql.Open("sqlite", filepath.Join(h.dir, "fairway.db"))
	h.must(err)
	h.Cleanup(func() { h.must(db.Close()) })
	return db
}

// BuildKit pushes a cache as an index whose entries are layers.
func TestR1_BlobsThatAnIndexNamesStay(t *testing.T) {
	h := newHouse(t)
	d := h.push("a", "layer")
	i := h.index("a", "cache", d)
	h.collectAll()
	h.wants(h.hasBlob("a", "layer"), "a layer went that a tagged index names")
	h.delete("a", i)
	h.collectAll()
	h.wants(!h.hasBlob("a", "layer") && len(h.objects()) == 0, "it stays without the index")
}

func TestR1_ChildOfADeletedChildOfALivingIndexStaysInTheTrash(t *testing.T) {
	h := newHouse(t)
	c := h.image("a", []string{"layer"})
	mid := h.index("a", "", c)
	top := h.index("a", "top", mid)
	h.delete("a", mid)
	for range 5 {
		h.pass(trash)
		want, _, err := h.gc.DryRun(h.ctx(), h.gc.Policy(), 0, nil)
		h.must(err)
		got := h.collect(h.gc.Policy())
		h.wants(want.Collected == got.Collected && want.Trashed == got.Trashed, "predicted %+v, did %+v", want.Counts, got.Counts)
	}
	_, err := h.store.Restore(h.ctx(), "a", mid, "tester")
	h.must(err)
	for _, d := range []oci.Digest{top, mid, c} {
		h.wants(h.hasManifest("a", d), "%s is not there: the index cannot be made whole", d)
	}
	h.wants(h.hasBlob("a", "layer"), "the layer of a restored child is gone")
	h.delete("a", top)
	h.collectAll()
	h.wants(len(h.objects()) == 0, "bytes are left when the index is gone: %v", h.objects())
}

func TestRestoreOfOneOfTwoIndexesBringsTheSharedChildBack(t *testing.T) {
	h := newHouse(t)
	shared, own := h.image("a", []string{"shared"}), h.image("a", []string{"own"})
	one, two := h.index("a", "one", shared), h.index("a", "two", shared, own)
	h.delete("a", one)
	h.delete("a", two)
	h.pass(window + time.Minute)
	h.collect(h.gc.Policy())
	got, err := h.store.Restore(h.ctx(), "a", one, "tester") // the child went because of the other
	h.must(err)
	h.wants(h.hasManifest("a", shared) && !h.hasManifest("a", own) && len(got.Along) == 1, "restored along %v", got.Along)
}

func TestTagOnlyPutsOffTheEndOfAnOrphan(t *testing.T) {
	h := newHouse(t)
	c := h.image("a", []string{"layer"}, "own")
	i := h.index("a", "index", c)
	h.delete("a", i)
	h.pass(100 * time.Hour)
	h.collect(h.gc.Policy())
	h.wants(h.hasManifest("a", c), "a tagged manifest went with its index")
	h.must(h.store.DeleteTag(h.ctx(), "a", "own", "tester"))
	h.pass(window - time.Minute)
	h.collect(h.gc.Policy())
	h.wants(h.hasManifest("a", c), "it went within the window after its tag")
	h.pass(window + time.Minute)
	h.collect(h.gc.Policy())
	h.wants(!h.hasManifest("a", c), "it stays though its index and its tag were deleted")
}

func TestTagPutAfterTheIndexWentMakesTheManifestStayForItsOwnSake(t *testing.T) {
	h := newHouse(t)
	c := h.image("a", []string{"layer"})
	h.delete("a", h.index("a", "index", c))
	h.must(h.put("a", manifest("", "layer"), "own"))
	h.must(h.store.DeleteTag(h.ctx(), "a", "own", "tester"))
	h.pass(100 * time.Hour)
	h.collect(h.gc.Policy())
	h.wants(h.hasManifest("a", c), "an untagged manifest went that was pushed for its own sake")
}

func TestR9_ItemThatAlwaysFailsDoesNotKeepARunGoing(t *testing.T) {
	h := newHouse(t)
	h.delete("a", h.image("a", []string{"layer"}, "v1"))
	_, err := h.raw().Exec("CREATE TRIGGER broken BEFORE DELETE ON blobs WHEN old.size = 2 BEGIN SELECT RAISE(ABORT, 'broken'); END")
	h.must(err)
	run := h.collectAll()
	h.wants(run.Failed == 1 && run.Collected == 2 && run.Purged == 1, "run with an item that fails: %+v", run.Counts)
	_, err = h.raw().Exec("DROP TRIGGER broken")
	h.must(err)
	run = h.collectAll()
	h.wants(run.Failed == 0 && run.Collected == 1 && len(h.objects()) == 0, "the run after it was mended: %+v", run.Counts)
}

func TestR16_PushMendsAMistakenTypeUnderEachTag(t *testing.T) {
	h := newHouse(t)
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[]}`)
	m, err := oci.ParseManifest("", raw)
	h.must(err)
	put := func(tag oci.Tag) {
		t.Helper()
		_, err = h.store.PutManifest(h.ctx(), meta.Push{Repo: "a", Tags: []oci.Tag{tag}, Digest: digest.FromBytes(raw), Manifest: m, Content: raw})
		h.must(err)
	}
	get := func() string {
		t.Helper()
		m, err := h.store.Manifest(h.ctx(), "a", oci.Reference{Tag: "one"})
		h.must(err)
		return m.MediaType
	}
	put("one")
	_, err = h.raw().Exec("UPDATE manifests SET media_type = 'application/x-www-form-urlencoded'") // as an earlier version did
	h.must(err)
	h.wants(get() == "application/x-www-form-urlencoded", "media type %s", get())
	put("two")
	h.wants(get() == oci.MediaTypeIndex, "media type %s after it was pushed again", get())
}

func TestLeaseThatIsTakenBackLetsGo(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, end := range map[string]func(h *house){
		"deleted":   func(h *house) { h.must(h.store.DeleteLease(h.ctx(), "node")) },
		"shortened": func(h *house) { h.leaseFor(time.Second, digest.FromString("x")) },
		"dropped":   func(h *house) { h.leaseFor(year, digest.FromString("something else")) },
		"emptied":   func(h *house) { h.leaseFor(year) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			d := h.push("a", "x")
			h.leaseFor(year, d)
			h.pass(window + time.Minute)
			run := h.collect(h.gc.Policy())
			h.wants(run.Kept[gc.KeptLease] == 1, "run under the lease: %+v", run.Counts)
			end(h)
			h.pass(window + time.Minute)
			h.collect(h.gc.Policy())
			h.wants(!h.hasBlob("a", "x"), "the blob stays a window after its lease")
		})
	}
}

func (h *house) leaseFor(d time.Duration, ds ...oci.Digest) {
	h.Helper()
	_, err := h.store.PutLease(h.ctx(), "node", ds, d.Milliseconds())
	h.must(err)
}

func TestLeaseDeletedBetweenJudgementAndItsAnswerPutsNothingOff(t *testing.T) {
	h := newHouse(t)
	d := h.push("a", "x")
	h.leaseFor(365*24*time.Hour, d)
	h.pass(window + time.Minute)
	f := h.linkOf("a", "x")
	fs, err := h.store.Links(h.ctx(), everything(t, h.store))
	h.must(err)
	h.must(h.store.DeleteLease(h.ctx(), "node"))
	h.claim(meta.Work{Postponed: []meta.Postponed{{Settled: meta.Settled{Kind: "link", Target: f.ID, Version: fs[0].Review.Version}, EventAt: f.Lease.ExpiresAt, Holder: "node"}}})
	h.pass(window + time.Minute)
	h.collect(h.gc.Policy())
	h.wants(!h.hasBlob("a", "x"), "the blob stays though its lease was deleted")
}

func TestExpiredLeasesAreForgotten(t *testing.T) {
	h := newHouse(t)
	h.leaseFor(time.Second, h.push("a", "x"))
	h.pass(8 * 24 * time.Hour)
	h.collect(h.gc.Policy())
	var n int
	h.must(h.raw().QueryRow("SELECT (SELECT count(*) FROM leases) + (SELECT count(*) FROM lease_digests)").Scan(&n))
	h.wants(n == 0, "%d rows of an expired lease are left", n)
}

func TestScheduleThatFailsDoesNotStopTheOthers(t *testing.T) {
	h := newHouse(t)
	bad := h.gc.Policy()
	bad.Repository = "gone"
	for _, p := range []meta.Policy{bad, h.gc.Policy()} {
		_, err := h.store.AddSchedule(h.ctx(), "0 3 * * *", p)
		h.must(err)
	}
	at := time.Date(2026, 1, 1, 2, 59, 58, 0, time.Local)
	err := h.gc.Schedules(h.ctx(), at, at.Add(5*time.Second))
	h.wants(err != nil, "the failure of a schedule is not told")
	runs, err := h.gc.History(h.ctx(), 0, 10)
	h.must(err)
	h.wants(len(runs) == 1, "%d runs were started, want that of the good schedule", len(runs))
}

func TestR9_BytesFreedWhileARunIsStoppedAreCounted(t *testing.T) {
	h := newHouse(t)
	h.push("a", "12345")
	inside, release := make(chan struct{}), make(chan struct{})
	h.withStore(&deletes{h.files, func(context.Context, string) error { close(inside); <-release; return nil }})
	run, err := h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "tester")
	h.must(err)
	<-inside
	hurry, cancel := context.WithCancel(h.ctx())
	cancel()
	_, err = h.gc.Stop(hurry, run.ID) // it is told to stop, and not waited for
	h.wants(errors.Is(err, context.Canceled), "stop without waiting: %v", err)
	close(release)
	run, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
	h.wants(run.FreedBytes == 5, "freed 5 bytes, counted %d", run.FreedBytes)
}

func TestR3_EndOfALeaseBeginsTheWindow(t *testing.T) {
	for name, end := range map[string]func(h *house){
		"deleted": func(h *house) { h.must(h.store.DeleteLease(h.ctx(), "node")) },
		"expired": func(h *house) { h.pass(time.Second) },
		"dropped": func(h *house) { h.leaseFor(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			d := h.image("a", []string{"layer"}, "v1")
			h.push("a", "loose")
			h.leaseFor(30*24*time.Hour, d, digest.FromString("loose"))
			h.delete("a", d)
			h.pass(30*24*time.Hour - time.Second) // no run has seen the lease
			end(h)
			h.pass(window - time.Minute)
			want, _, err := h.gc.DryRun(h.ctx(), h.gc.Policy(), 0, nil)
			h.must(err)
			run := h.collect(h.gc.Policy())
			h.wants(run.Collected == 0 && want.Collected == 0, "collected within the window after the lease: %+v", run.Counts)
			_, err = h.store.Restore(h.ctx(), "a", d, "tester")
			h.must(err)
			h.delete("a", d)
			h.pass(trash + window)
			h.collect(h.gc.Policy())
			h.wants(len(h.objects()) == 0, "it stays long after the lease: %v", h.objects())
		})
	}
}

func TestR1_BlobThatComesAfterTheManifestThatNamesItIsBound(t *testing.T) {
	h := newHouse(t)
	layer := digest.FromString("layer")
	i := h.index("a", "cache", layer)
	h.push("a", "layer")
	foreign := render(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeImage, "config": descriptor("c", h.push("a", "{}"), 2),
		"layers": []any{descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", digest.FromString("foreign"), 7)}})
	h.must(h.put("a", foreign, "foreign"))
	h.push("a", "foreign")
	h.collectAll()
	h.wants(h.hasBlob("a", "layer") && h.hasBlob("a", "foreign"), "a blob went that a tagged manifest names")
	h.delete("a", i)
	h.collectAll()
	h.wants(!h.hasBlob("a", "layer") && h.hasBlob("a", "foreign"), "the wrong blob is left")
}

func TestR1_BlobThatAManifestOfUnknownTypeMentionsStays(t *testing.T) {
	h := newHouse(t)
	d := h.push("a", "deep")
	raw := render(map[string]any{"schemaVersion": 2, "stages": []any{map[string]any{"files": []any{d}}}})
	m, err := oci.ParseManifest("application/vnd.example.build+json", raw)
	h.must(err)
	_, err = h.store.PutManifest(h.ctx(), meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: m, Content: raw})
	h.must(err)
	h.collectAll()
	h.wants(h.hasBlob("a", "deep"), "a blob went that a tagged manifest mentions")
	h.delete("a", digest.FromBytes(raw))
	h.collectAll()
	h.wants(len(h.objects()) == 0, "it stays without the manifest: %v", h.objects())
}

func TestR10_ReferrerOfADeletedChildStaysWithItForTheIndex(t *testing.T) {
	h := newHouse(t)
	c := h.image("a", []string{"layer"})
	signature := manifest(c)
	h.must(h.put("a", signature))
	h.index("a", "top", c)
	h.delete("a", c)
	for range 3 {
		h.pass(2 * trash)
		want, _, err := h.gc.DryRun(h.ctx(), h.gc.Policy(), 0, nil)
		h.must(err)
		got := h.collect(h.gc.Policy())
		h.wants(want.Collected == got.Collected && want.Trashed == got.Trashed, "predicted %+v, did %+v", want.Counts, got.Counts)
	}
	_, err := h.store.Restore(h.ctx(), "a", c, "tester")
	h.must(err)
	h.wants(h.hasManifest("a", c) && h.hasManifest("a", digest.FromBytes(signature)), "the signature of a restored child is gone")
}

func TestR10_ChildInTheTrashBeginsItsTimeAnewWhenItsIndexGoesThere(t *testing.T) {
	h := newHouse(t)
	c := h.image("a", []string{"layer"})
	i := h.index("a", "top", c)
	h.delete("a", c)
	h.pass(100 * trash)
	h.delete("a", i)
	h.pass(trash - time.Minute)
	h.collect(h.gc.Policy())
	_, err := h.store.Restore(h.ctx(), "a", c, "tester")
	h.must(err)
	h.wants(h.hasBlob("a", "layer"), "the child is not whole")
}

func TestBackgroundRunThatOnlyKeepsThingsIsNoError(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.leaseFor(365*24*time.Hour, d)
	h.delete("a", d)
	h.pass(2 * trash)
	var log bytes.Buffer
	h.opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	h.opts.Interval = time.Millisecond
	var turns atomic.Int64
	h.opts.Upkeep = func() error { turns.Add(1); return nil }
	h.withStore(h.files)
	ctx, cancel := context.WithCancel(h.ctx())
	done := make(chan error, 1)
	go func() { done <- h.gc.Run(ctx) }()
	waitFor(t, func() bool { return turns.Load() > 5 })
	cancel()
	h.must(<-done)
	h.wants(!strings.Contains(log.String(), "ERROR"), "the log has\n%s", log.String())
}

// What the run itself sends to the trash begins the time anew of what is there
// below it: an old child, and an old referrer that nothing kept.
func TestDryRunKnowsWhoseTimeInTheTrashBeginsAnew(t *testing.T) {
	for _, p := range []meta.Policy{policy(time.Second, time.Hour, time.Second), policy(0, time.Hour, time.Second), policy(0, 0, time.Second)} {
		h := newHouse(t)
		c := h.image("a", []string{"layer"})
		i := h.index("a", "", c)
		signature := manifest(i, "signed")
		h.push("a", "signed")
		h.must(h.put("a", signature))
		h.delete("a", c)
		h.delete("a", digest.FromBytes(signature))
		h.pass(2 * time.Hour)
		want, items, err := h.gc.DryRun(h.ctx(), p, 100, nil)
		h.must(err)
		got := h.collect(p)
		h.wants(got.Trashed == 1, "the index was to be trashed: %+v", got.Counts)
		want.Total, got.Total = 0, 0
		h.wants(reflect.DeepEqual(want.Counts, got.Counts), "with %+v: predicted %+v, did %+v", p, want.Counts, got.Counts)
		ds, err := h.store.Deletions(h.ctx(), "", got.ID, 0, 100)
		h.must(err)
		h.wants(reflect.DeepEqual(acts(items), acts(ds)), "with %+v: predicted %v, did %v", p, acts(items), acts(ds))
	}
}

package check_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/check"
)

// says runs the checker until its first line of log, and returns that.
func says(t *testing.T, w *world, o check.Options, interval time.Duration) string {
	t.Helper()
	log := make(lines, 100)
	o.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- check.New(w.meta, w.blobs, o).Run(ctx, interval) }()
	line := <-log
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	return line
}

func TestBackground_AnIntervalOfZeroIsNever(t *testing.T) {
	w := openWorld(t, t.TempDir(), 1000*time.Hour)
	if line := says(t, w, check.Options{}, 0); !strings.Contains(line, "off") {
		t.Error(line)
	}
	if reps, err := check.New(w.meta, w.blobs, check.Options{}).History(t.Context(), 0, 10); err != nil || len(reps) != 0 {
		t.Errorf("%d checks, %v", len(reps), err)
	}
}

// TestBackground_ACheckByRequestDoesNotPutItOff: it may have been one that repairs nothing.
func TestBackground_ACheckByRequestDoesNotPutItOff(t *testing.T) {
	w := openWorld(t, t.TempDir(), 23*time.Hour)
	w.check(check.Request{})
	if line := says(t, w, check.Options{}, 24*time.Hour); !strings.Contains(line, "next_in=59m") {
		t.Error(line)
	}
}

func TestRates_AreTheServersUnlessTheRequestSaysOthers(t *testing.T) {
	for _, tt := range []struct {
		options                check.Options
		request                check.Request
		objects, bytes, behind float64
	}{
		{check.Options{}, check.Request{}, 5000, 200 << 20, 500},
		{check.Options{ObjectsPerSecond: 700, BytesPerSecond: 1 << 20}, check.Request{}, 700, 1 << 20, 500},
		{check.Options{ObjectsPerSecond: 300, BytesPerSecond: 1 << 20}, check.Request{ObjectsPerSecond: 900, BytesPerSecond: 3 << 20}, 900, 3 << 20, 300},
	} {
		w := openWorld(t, t.TempDir(), 25*time.Hour)
		c := check.New(w.meta, w.blobs, tt.options)
		if rep := finish(t, c, tt.request); rep.Request.ObjectsPerSecond != tt.objects || rep.Request.BytesPerSecond != tt.bytes {
			t.Errorf("%+v: %+v", tt, rep.Request)
		}
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- c.Run(ctx, 24*time.Hour) }()
		eventually(t, "a check in the background", func() bool { return lastBackground(t, c).ID > 0 })
		if rep := lastBackground(t, c); rep.Request.ObjectsPerSecond != tt.behind || rep.Request.BytesPerSecond != tt.options.BytesPerSecond && tt.options.BytesPerSecond > 0 {
			t.Errorf("%+v: in the background %+v", tt, rep.Request)
		}
		cancel()
		if err := <-over; err != nil {
			t.Fatal(err)
		}
	}
}

func lastBackground(t *testing.T, c *check.Checker) (last check.Report) {
	t.Helper()
	reps, err := c.History(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, rep := range reps {
		if rep.Trigger == check.TriggerBackground && rep.ID > last.ID {
			last = rep
		}
	}
	return last
}

// TestResume_IsForWhoAsks: and it takes up no check in the background, which goes on by
// itself.
func TestResume_IsForWhoAsks(t *testing.T) {
	w := openWorld(t, t.TempDir(), 25*time.Hour)
	for i := range 3 {
		w.upload("app", blobtest.Bytes(i, 100))
	}
	g := gate(w.blobs)
	c := check.New(w.meta, g, check.Options{})
	stop := func(r check.Request) check.Report {
		t.Helper()
		rep, err := c.Start(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		<-g.at
		if rep, err = c.Stop(t.Context(), rep.ID); err != nil || rep.State != check.StateStopped {
			t.Fatal(text(rep), err)
		}
		return rep
	}
	first := stop(check.Request{Deep: true})
	second := stop(check.Request{})
	if second.ID == first.ID || second.Request.Deep {
		t.Errorf("a new one: %s", text(second))
	}
	g.free.Store(true)
	if again := finish(t, c, check.Request{Resume: true}); again.ID != second.ID {
		t.Errorf("the newest: %s, want %d", text(again), second.ID)
	}
	w.exec("UPDATE checks SET state = 'interrupted', report = replace(report, '\"trigger\":\"manual\"', '\"trigger\":\"background\"')")
	if fresh := finish(t, c, check.Request{Resume: true}); fresh.ID <= second.ID {
		t.Errorf("one in the background was taken up: %s", text(fresh))
	}
}

// TestBackground_WhatWasStoppedIsNotTakenUp: by nobody but who asks for it.
func TestBackground_WhatWasStoppedIsNotTakenUp(t *testing.T) {
	for _, state := range []string{check.StateStopped, check.StateFailed, check.StateDone} {
		w := newWorld(t)
		w.check(check.Request{})
		w.exec("UPDATE checks SET state = ?, report = replace(report, '\"state\":\"done\"', '\"state\":\"' || ? || '\"')", state, state)
		if line := says(t, w, check.Options{}, 24*time.Hour); !strings.Contains(line, "no check in the background is due") {
			t.Errorf("%s: %s", state, line)
		}
	}
}

// TestR9_ACheckOfAnUnknownPhaseIsNoSuccess: another version wrote it, and nothing is
// known of what it has looked at.
func TestR9_ACheckOfAnUnknownPhaseIsNoSuccess(t *testing.T) {
	w := newWorld(t)
	w.check(check.Request{})
	w.exec("UPDATE checks SET state = 'stopped', report = replace(replace(report, '\"state\":\"done\"', '\"state\":\"stopped\"'), '\"phase\":\"database\"', '\"phase\":\"other\"')")
	c := check.New(w.meta, w.blobs, check.Options{})
	rep, err := c.Start(t.Context(), check.Request{Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	if rep, err = c.Wait(t.Context(), rep.ID); err != nil || rep.State != check.StateFailed || rep.Clean() {
		t.Errorf("%s %v", text(rep), err)
	}
}

// TestStart_OfManyAtOnceOneBegins: each would otherwise read the whole storage.
func TestStart_OfManyAtOnceOneBegins(t *testing.T) {
	w := newWorld(t)
	w.upload("app", blobtest.Bytes(1, 100))
	g := gate(w.blobs)
	c := check.New(w.meta, g, check.Options{})
	if _, err := c.History(t.Context(), 0, 1); err != nil { // what a former process left is marked
		t.Fatal(err)
	}
	var begun, busy atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	const n = 64
	for range n {
		all.Go(func() {
			<-start
			switch _, err := c.Start(t.Context(), check.Request{}); {
			case err == nil:
				begun.Add(1)
			case errors.Is(err, fault.Busy):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	close(start)
	all.Wait()
	if begun.Load() != 1 || busy.Load() != n-1 {
		t.Errorf("%d began, %d were refused", begun.Load(), busy.Load())
	}
	if _, err := c.Stop(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// missed makes three reviews that the collector should have been told of.
func missed(w *world) {
	w.t.Helper()
	w.upload("app", []byte("no manifest"))
	w.image("app", w.upload("app", []byte("layer")), "v1")
	w.exec("DELETE FROM reviews")
	w.exec("INSERT INTO blobs (digest, size, key, touched_at, created_at) VALUES ('sha256:" + strings.Repeat("0", 64) + "', 4, 'blobs/00/00', 0, 0)")
	blobtest.Put(w.t, w.blobs, "blobs/00/00", []byte("1234"))
	w.exec("DELETE FROM tags")
}

// TestR8_BackgroundRepairsWhatHarmsNobody: reviews that were missed are made up for, and
// bytes that are back are served.
func TestR8_BackgroundRepairsWhatHarmsNobody(t *testing.T) {
	w := openWorld(t, t.TempDir(), 25*time.Hour)
	missed(w)
	b := w.upload("back", []byte("back"))
	w.exec("UPDATE blobs SET lost_at = 1 WHERE id = (SELECT max(id) FROM blobs)")
	rep := background(t, check.New(w.meta, w.blobs, check.Options{}), 24*time.Hour)
	if rep.Missed != 3 || rep.Repaired != 4 || rep.LostCount != 0 {
		t.Fatal(text(rep))
	}
	if _, err := w.meta.ConfirmBlob(t.Context(), "back", b.Digest); err != nil {
		t.Error(err)
	}
}

// TestR7_ReviewsAreLookedForFromWhereACheckWas: of this kind, and of all that follow.
func TestR7_ReviewsAreLookedForFromWhereACheckWas(t *testing.T) {
	for cursor, want := range map[string]int64{"": 3, "link 0": 3, "link 1000": 2, "blob 0": 2, "blob 1000": 1, "manifest 0": 1, "manifest 1000": 0} {
		w := newWorld(t)
		w.check(check.Request{})
		missed(w)
		w.exec("UPDATE checks SET state = 'stopped', cursor = ?, report = replace(replace(report, '\"state\":\"done\"', '\"state\":\"stopped\"'), '\"phase\":\"database\"', '\"phase\":\"reviews\"')", cursor)
		if rep := w.check(check.Request{Resume: true}); rep.Missed != want {
			t.Errorf("from %q on %d were found, want %d", cursor, rep.Missed, want)
		}
	}
}

func TestRepair_WhatIsMarkedLostIsNotMarkedAgain(t *testing.T) {
	w := newWorld(t)
	damage(t, w, w.upload("app", []byte("layer")), "missing")
	for n := range int64(2) {
		if rep := w.check(check.Request{Repair: true}); rep.LostCount != 1 || !rep.Lost[0].Repaired || rep.Repaired != 1-n {
			t.Error(text(rep))
		}
	}
}

// TestR16_ADigestThatIsNoneIsReported: as what cannot be examined, and not as lost.
func TestR16_ADigestThatIsNoneIsReported(t *testing.T) {
	w := newWorld(t)
	w.image("app", w.upload("app", []byte("layer")), "v1")
	w.exec("UPDATE blobs SET digest = 'md5:0123456789abcdef'")
	w.exec("UPDATE manifests SET digest = 'md5:0123456789abcdef'")
	if rep := w.check(check.Request{Deep: true, Repair: true}); rep.Failed != 1 || rep.LostCount != 0 || len(rep.Database) != 1 {
		t.Error(text(rep))
	}
}

// TestDeep_ALargeManifestIsHashedAtARate: one that is larger than what comes at once.
func TestDeep_ALargeManifestIsHashedAtARate(t *testing.T) {
	w := newWorld(t)
	w.put("app", indexType, map[string]any{"manifests": []any{}, "annotations": map[string]string{"long": strings.Repeat("x", 700_000)}})
	if rep := w.check(check.Request{Deep: true, BytesPerSecond: 10 << 20}); !rep.Clean() || rep.Manifests != 1 {
		t.Error(text(rep)[:500])
	}
}

// TestR16_AReportNamesSoMany: and counts all.
func TestR16_AReportNamesSoMany(t *testing.T) {
	w := newWorld(t)
	w.upload("app", []byte("layer"))
	w.exec(`WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 1100)
		INSERT INTO blobs (digest, size, key, touched_at, created_at) SELECT 'sha256:' || printf('%064d', n), 1, 'blobs/00/' || n, 0, 0 FROM i`)
	rep := w.check(check.Request{})
	if rep.LostCount != 1100 || len(rep.Lost) != 1000 {
		t.Errorf("%d lost, of which %d are named", rep.LostCount, len(rep.Lost))
	}
	f := blobtest.NewFaulty(w.blobs)
	f.Plan(blobtest.Always(blobtest.OpOpen, blobtest.Fail))
	if rep = w.checkOver(f, check.Request{}); rep.Failed != 1101 || len(rep.Failures) != 100 || rep.LostCount != 0 {
		t.Errorf("%d failed, of which %d are named; %d lost", rep.Failed, len(rep.Failures), rep.LostCount)
	}
	w.exec(`PRAGMA foreign_keys=OFF; WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 300)
		INSERT INTO links (repo_id, blob_id, touched_at) SELECT 1000 + n, 100000 + n, 0 FROM i`)
	if rep = w.check(check.Request{}); len(rep.Database) != 100 {
		t.Errorf("%d problems of the database are named", len(rep.Database))
	}
	w = newWorld(t)
	w.upload("app", []byte("layer"))
	w.exec(`WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 150)
		INSERT INTO manifests (repo_id, digest, media_type, artifact_type, size, pushed_at, touched_at, content)
		SELECT (SELECT id FROM repositories), 'sha256:' || printf('%064d', n), 'x', '', 2, 0, 0, '{}' FROM i`)
	if rep = w.check(check.Request{Deep: true}); len(rep.Database) != 100 || rep.Manifests != 150 {
		t.Errorf("%d manifests were read, and %d problems are named", rep.Manifests, len(rep.Database))
	}
}

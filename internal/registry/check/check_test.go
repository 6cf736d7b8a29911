package check_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

const none = meta.Duration(-1) // no grace

func TestSoundStoreIsClean(t *testing.T) {
	w := newWorld(t)
	w.index("app", w.image("app", w.upload("app", []byte("layer")), "v1"), "multi")
	w.upload("app", []byte("not in a manifest"))
	rep := w.check(check.Request{Deep: true, Repair: true, Grace: none})
	if !rep.Clean() || rep.Objects != 2 || rep.Blobs != 2 || rep.Manifests != 2 || rep.Repaired != 0 || rep.Progress != 1 {
		t.Fatal(text(rep))
	}
	if len(w.mustPurge()) != 0 {
		t.Fatal("a sound store was repaired")
	}
}

func TestR8_OrphanIsReportedAndWithRepairPurged(t *testing.T) {
	w := newWorld(t)
	kept := w.upload("app", []byte("layer"))
	w.age(kept.Key, 48*time.Hour)
	key := w.plant(1, 1234, 3*time.Hour)

	rep := w.check(check.Request{})
	if rep.Orphans.Count != 1 || rep.Orphans.Bytes != 1234 || !slices.Equal(rep.Orphans.Keys, []string{key}) || rep.Repaired != 0 || rep.Clean() {
		t.Fatal(text(rep))
	}
	if keys := w.mustPurge(); len(keys) != 0 {
		t.Fatalf("a check without repair had %q purged", keys)
	}

	rep = w.check(check.Request{Repair: true})
	if rep.Orphans.Count != 1 || rep.Repaired != 1 {
		t.Fatal(text(rep))
	}
	log, err := w.meta.Deletions(t.Context(), key, 0, 0, 10)
	if err != nil || len(log) != 1 || log[0].Bytes != 1234 || log[0].Actor != "check" || !strings.Contains(log[0].Reason, "orphan") {
		t.Fatalf("deletion log: %+v, %v", log, err)
	}
	if again := w.check(check.Request{Repair: true}); again.Orphans.Count != 0 || again.Repaired != 0 {
		t.Fatalf("an orphan that is in the purge queue is counted again: %s", text(again))
	}
	if keys := w.mustPurge(); !slices.Equal(keys, []string{key}) {
		t.Fatalf("purged %q, want %q", keys, key)
	}
	if keys := blobtest.Keys(t, w.blobs, ""); !slices.Equal(keys, []string{kept.Key}) {
		t.Fatalf("left: %q", keys)
	}
}

func TestYoungOrphanIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	key := w.plant(1, 10, 30*time.Minute)
	for _, r := range []check.Request{{Repair: true}, {Repair: true, Grace: meta.Duration(31 * time.Minute)}} {
		if rep := w.check(r); rep.Orphans.Count != 0 || rep.Orphans.Young != 1 || rep.Repaired != 0 {
			t.Fatal(text(rep))
		}
	}
	if rep := w.check(check.Request{Repair: true, Grace: meta.Duration(29 * time.Minute)}); rep.Orphans.Count != 1 || rep.Repaired != 1 {
		t.Fatal(text(rep))
	}
	if keys := w.mustPurge(); !slices.Equal(keys, []string{key}) {
		t.Fatalf("purged %q", keys)
	}
}

func TestGraceIsTheWindowButAnHourAtLeast(t *testing.T) {
	w := newWorld(t)
	for window, want := range map[time.Duration]time.Duration{0: time.Hour, time.Second: time.Hour, 5 * time.Hour: 5 * time.Hour} {
		c := check.New(w.meta, w.blobs, check.Options{Window: window})
		if rep := finish(t, c, check.Request{}); time.Duration(rep.Request.Grace) != want {
			t.Errorf("window %s: grace %s, want %s", window, time.Duration(rep.Request.Grace), want)
		}
	}
}

func TestUnfinishedUploadIsNoOrphan(t *testing.T) {
	w := newWorld(t)
	u, err := w.meta.CreateUpload(t.Context(), "app", "sha256")
	if err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, w.blobs, u.Key, []byte("half"))
	w.age(u.Key, 48*time.Hour)
	if rep := w.check(check.Request{Repair: true, Grace: none}); rep.Orphans.Count != 0 || !rep.Clean() {
		t.Fatal(text(rep))
	}
	if err := w.meta.CancelUpload(t.Context(), "app", u.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if rep := w.check(check.Request{Repair: true, Grace: none}); rep.Orphans.Count != 0 || !rep.Clean() {
		t.Fatalf("what waits for purge is no orphan: %s", text(rep))
	}
}

// hooked calls the store's owner back at some operations.
type hooked struct {
	blob.Store
	open func(key string)
	walk func(fn func(blob.Info) error) error // before the real walk
}

func (h *hooked) Open(ctx context.Context, key string) (blob.Reader, error) {
	if h.open != nil {
		h.open(key)
	}
	return h.Store.Open(ctx, key)
}

func (h *hooked) Walk(ctx context.Context, after string, fn func(blob.Info) error) error {
	if h.walk != nil {
		if err := h.walk(fn); err != nil {
			return err
		}
	}
	return h.Store.Walk(ctx, after, fn)
}

func TestR4_ObjectWhoseRowAppearsWhileTheCheckLooksIsKept(t *testing.T) {
	for name, insert := range map[string]string{
		"upload": "INSERT INTO uploads (id, repo_id, key, algorithm, created_at, touched_at) SELECT 'u', id, ?, 'sha256', 0, 0 FROM repositories",
		"blob":   "INSERT INTO blobs (digest, size, key, touched_at, created_at) VALUES ('sha256:1', 10, ?, 0, 0)",
		"purge":  "INSERT INTO purges (key, digest, size, reason, actor, queued_at, due_at) VALUES (?, '', 10, 'cancelled', 'test', 0, 9e15)",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.upload("app", []byte("layer"))
			late, orphan := w.plant(1, 10, 3*time.Hour), w.plant(2, 10, 3*time.Hour)
			// The check opens an object after it has found that no row names it and
			// before it hands it to the purge queue.
			inserted := false
			h := &hooked{Store: w.blobs, open: func(key string) {
				if key == late && !inserted {
					inserted = true
					w.exec(insert, late)
				}
			}}
			rep := w.checkOver(h, check.Request{Repair: true})
			if !inserted {
				t.Fatal("the row was not inserted: the test tests nothing")
			}
			if rep.Orphans.Count != 1 || !slices.Equal(rep.Orphans.Keys, []string{orphan}) || rep.Repaired < 1 {
				t.Fatal(text(rep))
			}
			if keys := w.mustPurge(); !slices.Equal(keys, []string{orphan}) {
				t.Fatalf("purged %q, want only %q", keys, orphan)
			}
		})
	}
}

func TestObjectPurgedSinceTheWalkIsNoOrphan(t *testing.T) {
	w := newWorld(t)
	h := &hooked{Store: w.blobs, walk: func(fn func(blob.Info) error) error {
		return fn(blob.Info{Key: "blobs/00/00", Size: 1, Modified: 1})
	}}
	if rep := w.checkOver(h, check.Request{Repair: true}); rep.Orphans.Count != 0 || rep.Objects != 1 || !rep.Clean() {
		t.Fatal(text(rep))
	}
}

func TestBlobCollectedWhileTheCheckLooksIsNotLost(t *testing.T) {
	w := newWorld(t)
	b := w.upload("app", []byte("layer"))
	h := &hooked{Store: w.blobs, open: func(key string) {
		if key == b.Key {
			w.exec("DELETE FROM links")
			w.exec("DELETE FROM blobs")
			if _, err := w.blobs.Delete(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
	}}
	if rep := w.checkOver(h, check.Request{Repair: true}); rep.LostCount != 0 || rep.Blobs != 1 || rep.Repaired != 0 {
		t.Fatal(text(rep))
	}
}

// damage is what can happen to bytes behind the registry's back.
func damage(t *testing.T, w *world, b meta.Blob, how string) {
	t.Helper()
	var err error
	switch how {
	case "missing":
		err = os.Remove(w.path(b.Key))
	case "cut":
		err = os.Truncate(w.path(b.Key), b.Size-1)
	case "longer":
		err = os.Truncate(w.path(b.Key), b.Size+1)
	case "flipped":
		var content []byte
		if content, err = os.ReadFile(w.path(b.Key)); err == nil {
			content[len(content)/2] ^= 1
			err = os.WriteFile(w.path(b.Key), content, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLostBlobIsReportedWithAllThatIsAffected(t *testing.T) {
	for how, problem := range map[string]string{"missing": check.ProblemMissing, "cut": check.ProblemSize, "longer": check.ProblemSize, "flipped": check.ProblemCorrupt} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			b := w.upload("app", blobtest.Bytes(1, 700_000))
			w.upload("app", []byte("sound"))
			image := w.image("app", b, "v1", "latest")
			index := w.index("app", image, "multi")
			if _, err := w.meta.MountBlob(t.Context(), "other", "app", b.Digest); err != nil {
				t.Fatal(err)
			}
			damage(t, w, b, how)

			rep := w.check(check.Request{Deep: how == "flipped"})
			if rep.LostCount != 1 || len(rep.Lost) != 1 || rep.Repaired != 0 || rep.Failed != 0 {
				t.Fatal(text(rep))
			}
			l := rep.Lost[0]
			if l.Digest != b.Digest || l.Size != b.Size || l.Key != b.Key || l.Problem != problem || l.Repaired || l.AffectedCount != 3 {
				t.Fatal(text(rep))
			}
			want := map[oci.Digest][]string{image: {"latest", "v1"}, index: {"multi"}, "": {}}
			for _, a := range l.Affected {
				repo := oci.Name("app")
				if a.Digest == "" {
					repo = "other"
				}
				if tags, ok := want[a.Digest]; !ok || !slices.Equal(a.Tags, tags) || a.Repo != repo {
					t.Errorf("affected: %+v", a)
				}
				delete(want, a.Digest)
			}
			if len(want) != 0 {
				t.Errorf("not named: %v in %+v", want, l.Affected)
			}
			if _, err := w.meta.ConfirmBlob(t.Context(), "app", b.Digest); err != nil {
				t.Fatalf("a check without repair changed what is served: %v", err)
			}
		})
	}
}

func TestFlippedBitIsNotSeenWithoutDeep(t *testing.T) {
	w := newWorld(t)
	b := w.upload("app", blobtest.Bytes(1, 1000))
	damage(t, w, b, "flipped")
	if rep := w.check(check.Request{}); !rep.Clean() || rep.BytesHashed != 0 {
		t.Fatal(text(rep))
	}
	if rep := w.check(check.Request{Deep: true}); rep.LostCount != 1 || rep.BytesHashed != 1000 {
		t.Fatal(text(rep))
	}
}

func TestRepair_LostBlobAnswers404UntilItIsPushedAgain(t *testing.T) {
	for _, how := range []string{"missing", "cut", "longer", "flipped"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			content := blobtest.Bytes(1, 5000)
			b := w.upload("app", content)
			w.image("app", b, "v1")
			if _, err := w.meta.Blob(t.Context(), "app", b.Digest); err != nil { // into the cache
				t.Fatal(err)
			}
			damage(t, w, b, how)
			rep := w.check(check.Request{Repair: true, Deep: true})
			if rep.LostCount != 1 || !rep.Lost[0].Repaired || rep.Repaired != 1 {
				t.Fatal(text(rep))
			}
			for name, ask := range map[string]func(context.Context, oci.Name, oci.Digest) (meta.Blob, error){"HEAD": w.meta.ConfirmBlob, "GET": w.meta.Blob} {
				if _, err := ask(t.Context(), "app", b.Digest); !errors.Is(err, fault.NotFound) {
					t.Fatalf("%s of a lost blob: %v", name, err)
				}
			}
			again := w.check(check.Request{Repair: true})
			if again.LostCount != 1 || again.Repaired != 0 || !again.Lost[0].Repaired {
				t.Fatalf("second check: %s", text(again))
			}

			fresh := w.upload("app", content)
			if fresh.Key == b.Key {
				t.Fatal("the new bytes lie under the old key")
			}
			w.mustPurge()
			if got, err := w.meta.ConfirmBlob(t.Context(), "app", b.Digest); err != nil || got.Key != fresh.Key {
				t.Fatalf("after the push: %+v, %v", got, err)
			}
			if rep := w.check(check.Request{Deep: true}); !rep.Clean() {
				t.Fatal(text(rep))
			}
		})
	}
}

func TestRepair_BlobWhoseBytesAreBackIsServedAgain(t *testing.T) {
	w := newWorld(t)
	content := blobtest.Bytes(1, 5000)
	b := w.upload("app", content)
	damage(t, w, b, "missing")
	w.check(check.Request{Repair: true})

	wrong := slices.Clone(content)
	wrong[7] ^= 1
	blobtest.Put(t, w.blobs, b.Key, wrong)
	rep := w.check(check.Request{Repair: true}) // not Deep: a lost one is read all the same
	if rep.LostCount != 1 || rep.Lost[0].Problem != check.ProblemCorrupt || rep.Repaired != 0 {
		t.Fatalf("wrong bytes in place of lost ones: %s", text(rep))
	}
	if err := os.WriteFile(w.path(b.Key), content, 0o600); err != nil {
		t.Fatal(err)
	}
	if rep := w.check(check.Request{}); rep.Repaired != 0 {
		t.Fatalf("a check without repair: %s", text(rep))
	}
	if _, err := w.meta.Blob(t.Context(), "app", b.Digest); !errors.Is(err, fault.NotFound) {
		t.Fatalf("a check without repair had it served: %v", err)
	}
	if rep := w.check(check.Request{Repair: true}); rep.LostCount != 0 || rep.Repaired != 1 {
		t.Fatal(text(rep))
	}
	if got, err := w.meta.ConfirmBlob(t.Context(), "app", b.Digest); err != nil || got.Key != b.Key {
		t.Fatalf("after the check: %+v, %v", got, err)
	}
}

func TestR14_WhatCannotBeReadIsFailedAndNotLost(t *testing.T) {
	for name, plan := range map[string]func(blobtest.Op) blobtest.Fate{
		"open": blobtest.Always(blobtest.OpOpen, blobtest.Fail),
		"read": blobtest.Always(blobtest.OpRead, blobtest.Fail),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			first, second := w.upload("app", []byte("one")), w.upload("app", []byte("two"))
			f := blobtest.NewFaulty(w.blobs)
			f.Plan(plan)
			rep := w.checkOver(f, check.Request{Repair: true, Deep: true})
			if rep.Failed != 2 || len(rep.Failures) != 2 || rep.LostCount != 0 || rep.Repaired != 0 || rep.Clean() {
				t.Fatal(text(rep))
			}
			if !strings.Contains(rep.Failures[0], string(first.Digest)) {
				t.Errorf("%q does not name %s", rep.Failures[0], first.Digest)
			}
			for _, b := range []meta.Blob{first, second} {
				if _, err := w.meta.ConfirmBlob(t.Context(), "app", b.Digest); err != nil {
					t.Errorf("a blob that could not be read is not served: %v", err)
				}
			}
		})
	}
}

func TestR14_OrphanThatCannotBeOpenedIsFailedAndStays(t *testing.T) {
	w := newWorld(t)
	w.plant(1, 10, 3*time.Hour)
	f := blobtest.NewFaulty(w.blobs)
	f.Plan(blobtest.Always(blobtest.OpOpen, blobtest.Fail))
	if rep := w.checkOver(f, check.Request{Repair: true}); rep.Failed != 1 || rep.Orphans.Count != 0 || rep.Repaired != 0 {
		t.Fatal(text(rep))
	}
}

func TestR9_StorageThatCannotBeListedDoesNotKeepRowsUnchecked(t *testing.T) {
	w := newWorld(t)
	b := w.upload("app", []byte("layer"))
	damage(t, w, b, "missing")
	f := blobtest.NewFaulty(w.blobs)
	f.Plan(blobtest.Always(blobtest.OpWalk, blobtest.Fail))
	if rep := w.checkOver(f, check.Request{}); rep.Failed != 1 || rep.LostCount != 1 {
		t.Fatal(text(rep))
	}
}

func TestR8_MissedReviewsAreMadeUpFor(t *testing.T) {
	w := newWorld(t)
	w.upload("app", []byte("no manifest"))
	loose := w.image("app", w.upload("app", []byte("layer")), "v1")
	w.exec("DELETE FROM reviews")
	w.exec("INSERT INTO blobs (digest, size, key, touched_at, created_at) VALUES ('sha256:" + strings.Repeat("0", 64) + "', 4, 'blobs/00/00', 0, 0)")
	blobtest.Put(t, w.blobs, "blobs/00/00", []byte("1234"))
	w.exec("DELETE FROM tags") // without telling the manifest that nothing keeps it

	if rep := w.check(check.Request{}); rep.Missed != 3 || rep.Repaired != 0 || rep.Clean() {
		t.Fatal(text(rep))
	}
	rep := w.check(check.Request{Repair: true})
	if rep.Missed != 3 || rep.Repaired != 3 {
		t.Fatal(text(rep))
	}
	if st, err := w.meta.Stats(t.Context()); err != nil || st.Reviews != 2 {
		t.Fatalf("%+v, %v: want a review of the link and one of the blob", st, err)
	}
	if rep := w.check(check.Request{Repair: true}); rep.Missed != 0 || !rep.Clean() {
		t.Fatalf("after the repair (%s is loose): %s", loose, text(rep))
	}
}

func TestDatabaseThatContradictsItselfIsReported(t *testing.T) {
	w := newWorld(t)
	w.image("app", w.upload("app", []byte("layer")), "v1")
	w.exec("PRAGMA foreign_keys=OFF; DELETE FROM links")
	rep := w.check(check.Request{})
	if len(rep.Database) != 1 || !strings.Contains(rep.Database[0], "manifest_blobs") || rep.Clean() {
		t.Fatal(text(rep))
	}
}

func TestDeep_ManifestContentIsHashed(t *testing.T) {
	w := newWorld(t)
	d := w.image("app", w.upload("app", []byte("layer")), "v1")
	w.exec("UPDATE manifests SET content = CAST('{}' AS BLOB)")
	if rep := w.check(check.Request{}); !rep.Clean() {
		t.Fatal(text(rep))
	}
	rep := w.check(check.Request{Deep: true})
	if len(rep.Database) != 1 || !strings.Contains(rep.Database[0], "app@"+string(d)) {
		t.Fatal(text(rep))
	}
}

func TestDeep_Sha512(t *testing.T) {
	w := newWorld(t)
	content := blobtest.Bytes(1, 3000)
	u, err := w.meta.CreateUpload(t.Context(), "app", "sha512")
	if err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, w.blobs, u.Key, content)
	b, err := w.meta.FinishUpload(t.Context(), u, digest.SHA512.FromBytes(content), 3000)
	if err != nil {
		t.Fatal(err)
	}
	if rep := w.check(check.Request{Deep: true}); !rep.Clean() || rep.BytesHashed != 3000 {
		t.Fatal(text(rep))
	}
	damage(t, w, b, "flipped")
	if rep := w.check(check.Request{Deep: true}); rep.LostCount != 1 || rep.Lost[0].Problem != check.ProblemCorrupt {
		t.Fatal(text(rep))
	}
}

func TestReportNamesTheFirstAndCountsAll(t *testing.T) {
	w := newWorld(t)
	const n = 600
	for i := range n {
		w.plant(i, 1, 3*time.Hour)
	}
	rep := w.check(check.Request{Repair: true})
	if rep.Orphans.Count != n || rep.Orphans.Bytes != n || len(rep.Orphans.Keys) != 100 || rep.Repaired != n || rep.Objects != n {
		t.Fatal(text(rep))
	}
	if !slices.Equal(rep.Orphans.Keys, blobtest.Keys(t, w.blobs, "")[:100]) {
		t.Fatal("the keys named are not the first ones")
	}
}

func TestBytesPerSecondIsKept(t *testing.T) {
	w := newWorld(t)
	w.upload("app", blobtest.Bytes(1, 1<<20))
	start := time.Now()
	rep := w.check(check.Request{Deep: true, BytesPerSecond: 1 << 20})
	// A quarter is the burst that is allowed at the start.
	if took := time.Since(start); !rep.Clean() || took < 700*time.Millisecond {
		t.Fatalf("1 MiB at 1 MiB/s took %s: %s", took, text(rep))
	}
}

func TestObjectsPerSecondIsKept(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		w.upload("app", blobtest.Bytes(i, 10))
	}
	start := time.Now()
	w.check(check.Request{ObjectsPerSecond: 30}) // 20 objects and 20 rows, less what is allowed at the start
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Fatalf("40 things at 30/s took %s", took)
	}
}

func TestR6_CheckBesideUploadsAndPurgesTakesNothingAlive(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	uploaded := map[oci.Digest]string{}
	for i := range 3 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				content := fmt.Appendf(nil, "blob %d of writer %d", n/2, i) // each twice: the second is a duplicate
				b, err := w.tryUpload(context.WithoutCancel(ctx), "app", content)
				if err != nil {
					t.Errorf("upload: %v", err)
					return
				}
				mu.Lock()
				uploaded[b.Digest] = string(content)
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := w.purge(context.WithoutCancel(ctx)); err != nil {
				t.Errorf("purge: %v", err)
				return
			}
		}
	})
	c := check.New(w.meta, w.blobs, check.Options{})
	var planted int64
	for i := range 15 {
		w.plant(1000+i, 10, 3*time.Hour)
		planted++
		rep := finish(t, c, check.Request{Repair: true, Deep: true, Grace: none, ObjectsPerSecond: -1, BytesPerSecond: -1})
		if planted -= rep.Orphans.Count; planted != 0 || rep.LostCount != 0 || rep.Failed != 0 || rep.Missed != 0 {
			t.Fatalf("round %d: %s", i, text(rep))
		}
	}
	stop()
	wg.Wait()
	if len(uploaded) < 20 {
		t.Fatalf("only %d uploads took part", len(uploaded))
	}
	for d, want := range uploaded {
		b, err := w.meta.ConfirmBlob(t.Context(), "app", d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := blobtest.Get(w.blobs, b.Key); err != nil || string(got) != want {
			t.Fatalf("%s: %q, %v", d, got, err)
		}
	}
	w.mustPurge()
	if keys := blobtest.Keys(t, w.blobs, ""); len(keys) != len(uploaded) {
		t.Fatalf("%d objects for %d blobs", len(keys), len(uploaded))
	}
}

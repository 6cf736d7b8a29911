package registry

import (
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// pushBlob uploads a blob over the API.
func pushBlob(t *testing.T, r *Registry, content string) (oci.Digest, int) {
	t.Helper()
	d := digest.FromString(content)
	req := httptest.NewRequest(http.MethodPost, "/v2/app/blobs/uploads/?digest="+d.String(), strings.NewReader(content))
	req.Host = "localhost"
	w := httptest.NewRecorder()
	r.observer.Wrap(r.handler()).ServeHTTP(w, req)
	return d, w.Code
}

func mustPush(t *testing.T, r *Registry, content string) oci.Digest {
	t.Helper()
	d, status := pushBlob(t, r, content)
	if status != http.StatusCreated {
		t.Fatalf("push: status %d", status)
	}
	return d
}

func identityOf(t *testing.T, r *Registry) meta.Identity {
	t.Helper()
	id, err := r.store.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustClose(t *testing.T, r *Registry) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// unpair makes a pair as a version without identities left it.
func unpair(t *testing.T, cfg Config) {
	t.Helper()
	path, err := cfg.databasePath()
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), "UPDATE identity SET paired_at = NULL")
	if err := errors.Join(err, db.Close(), os.Remove(filepath.Join(cfg.Data, "blobs", "identity"))); err != nil {
		t.Fatal(err)
	}
}

// wantMismatch fails unless cfg is refused with all of words, and nothing was
// made in its storage.
func wantMismatch(t *testing.T, cfg Config, words ...string) {
	t.Helper()
	storage := strings.TrimPrefix(cfg.Storage, "file:")
	if storage == "" {
		storage = cfg.Data
	}
	before := objectsIn(t, storage)
	_, err := open(t, cfg)
	if !errors.Is(err, ErrMismatch) {
		t.Fatalf("error %v, want ErrMismatch", err)
	}
	for _, w := range append(words, "fairway.db", storage, "--storage") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if after := objectsIn(t, storage); strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("the storage was changed: %q, then %q", before, after)
	}
}

// objectsIn lists what belongs to a storage.
func objectsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, pattern := range []string{"blobs/identity", "blobs/??/*", "reserve"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	return names
}

func TestR15_ANewPairIsMarkedOnBothSides(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	id := identityOf(t, r)
	if found, err := r.files.Identity(t.Context(), ""); found != id.ID || !id.Paired || err != nil {
		t.Errorf("the storage has %q, %v; the database has %+v", found, err, id)
	}
	d := mustPush(t, r, "x")
	mustClose(t, r)
	r = mustOpen(t, cfg)
	if w := ask(r, "/v2/app/blobs/"+d.String()); w.Code != http.StatusOK || identityOf(t, r) != id {
		t.Errorf("after a restart: status %d, identity %+v, want %+v", w.Code, identityOf(t, r), id)
	}
	if other := identityOf(t, mustOpen(t, testConfig(t))); other.ID == id.ID {
		t.Error("two databases have one identity")
	}
}

func TestR15_AnOlderPairIsAdoptedIfTheyKnowEachOther(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	d := mustPush(t, r, "x")
	mustClose(t, r)
	unpair(t, cfg)
	r = mustOpen(t, cfg)
	if id := identityOf(t, r); !id.Paired {
		t.Error("it is not marked")
	}
	if w := ask(r, "/v2/app/blobs/"+d.String()); w.Code != http.StatusOK {
		t.Errorf("status %d", w.Code)
	}
}

func TestR15_AnOlderPairWithNothingButAnUploadIsAdopted(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	u, err := r.store.CreateUpload(t.Context(), "app", "sha256")
	if err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, r.files, u.Key, []byte("x"))
	mustClose(t, r)
	unpair(t, cfg)
	mustOpen(t, cfg)
}

// TestR15_AnOlderPairWithAnObjectThatNobodyNamesIsAdopted: a check removes such an
// object. One object that the database names proves that the two belong together.
func TestR15_AnOlderPairWithAnObjectThatNobodyNamesIsAdopted(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	u, err := r.store.CreateUpload(t.Context(), "app", "sha256")
	if err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, r.files, u.Key, []byte("x"))
	blobtest.Put(t, r.files, blobtest.Key(1), []byte("orphan"))
	mustClose(t, r)
	unpair(t, cfg)
	mustOpen(t, cfg)
}

// TestR15_ABlobThatCannotBeOpenedIsNotTakenForMissing: the storage may be the right one,
// so the message is that of the disk.
func TestR15_ABlobThatCannotBeOpenedIsNotTakenForMissing(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	mustPush(t, r, "x")
	mustClose(t, r)
	unpair(t, cfg)
	found, err := filepath.Glob(filepath.Join(cfg.Data, "blobs", "??", "*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("objects %q, %v", found, err)
	}
	if err := errors.Join(os.Rename(found[0], found[0]+".away"), os.Symlink(found[0], found[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, cfg); err == nil || errors.Is(err, ErrMismatch) || !errors.Is(err, syscall.ELOOP) {
		t.Errorf("error %v, want the one of the disk", err)
	}
	if err := errors.Join(os.Remove(found[0]), os.Rename(found[0]+".away", found[0])); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, cfg)
}

func TestR15_AnOlderDatabaseRefusesAStorageWithoutItsBlobs(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	mustPush(t, r, "x")
	id := identityOf(t, r).ID
	mustClose(t, r)
	unpair(t, cfg)
	cfg.Storage = "file:" + filepath.Join(t.TempDir(), "empty")
	wantMismatch(t, cfg, id, "none of 2 blobs", "--repair")
	cfg.Storage = ""
	mustOpen(t, cfg) // the refusal has changed nothing
}

func TestR15_ANewDatabaseRefusesObjectsThatItDoesNotKnow(t *testing.T) {
	cfg := testConfig(t)
	mustPush(t, mustOpen(t, cfg), "x") // makes the directory
	lost := testConfig(t)
	r := mustOpen(t, lost)
	d := mustPush(t, r, "y")
	mustClose(t, r)
	unpair(t, lost)
	for _, name := range []string{"fairway.db", "fairway.db-wal", "fairway.db-shm"} {
		if err := os.Remove(filepath.Join(lost.Data, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	wantMismatch(t, lost, "knows none of 1")
	if b, _ := filepath.Glob(filepath.Join(lost.Data, "blobs", "??", "*")); len(b) != 1 {
		t.Errorf("the bytes of %s are gone", d)
	}
}

func TestR15_TheStorageOfAnotherDatabaseIsRefused(t *testing.T) {
	a, b := testConfig(t), testConfig(t)
	ra, rb := mustOpen(t, a), mustOpen(t, b)
	mustPush(t, ra, "a")
	mustPush(t, rb, "b")
	ida, idb := identityOf(t, ra).ID, identityOf(t, rb).ID
	mustClose(t, ra)
	mustClose(t, rb)
	crossed := a
	crossed.Storage = "file:" + b.Data
	wantMismatch(t, crossed, ida, idb)
	fresh := testConfig(t)
	fresh.Storage = "file:" + b.Data
	wantMismatch(t, fresh, idb)
	mustOpen(t, b)
}

func TestR15_AnEmptyStorageIsRefusedUntilItIsMarkedByHand(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	id := identityOf(t, r).ID
	mustClose(t, r)
	away := filepath.Join(cfg.Data, "away")
	if err := os.Rename(filepath.Join(cfg.Data, "blobs"), away); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(cfg.Data, "reserve")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	wantMismatch(t, cfg, id, "not mounted", "blobs/identity")
	// What the message says to do works.
	if err := os.WriteFile(filepath.Join(cfg.Data, "blobs", "identity"), []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, cfg)
}

func TestR15_AMarkThatCannotBeReadIsRefused(t *testing.T) {
	cfg := testConfig(t)
	mustClose(t, mustOpen(t, cfg))
	if err := os.WriteFile(filepath.Join(cfg.Data, "blobs", "identity"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, cfg); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "blobs/identity") {
		t.Errorf("error %v", err)
	}
}

func TestR15_ACrashBetweenTheTwoMarksIsGoneOnWith(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	mustPush(t, r, "x")
	id := identityOf(t, r).ID
	mustClose(t, r)
	unpair(t, cfg)
	// The storage was marked, and the process died before the database said so.
	if err := os.WriteFile(filepath.Join(cfg.Data, "blobs", "identity"), []byte(id+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := identityOf(t, mustOpen(t, cfg)); got.ID != id || !got.Paired {
		t.Errorf("identity %+v", got)
	}
}

// disappear takes the storage away, as a lazy unmount does, and puts another in
// its place, "" for none.
func disappear(t *testing.T, cfg Config, other string) (comeBack func()) {
	t.Helper()
	objects := filepath.Join(cfg.Data, "blobs")
	if err := os.Rename(objects, objects+".away"); err != nil {
		t.Fatal(err)
	}
	var err error
	if other == "" {
		err = os.Mkdir(objects, 0o700)
	} else {
		err = os.Symlink(other, objects)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(objects), os.Rename(objects+".away", objects)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestR15_AStorageThatDisappearsStopsDeletesAtOnce(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		t.Run(map[bool]string{false: "unmounted", true: "another's in its place"}[foreign], func(t *testing.T) {
			cfg := testConfig(t)
			cfg.GC.Window, cfg.GC.Trash = 0, 0
			r := mustOpen(t, cfg)
			r.ready.Store(true)
			kept := mustPush(t, r, "kept")
			gone, err := r.store.CreateUpload(t.Context(), "app", "sha256")
			if err != nil {
				t.Fatal(err)
			}
			blobtest.Put(t, r.files, gone.Key, []byte("gone"))
			if err := r.store.CancelUpload(t.Context(), "app", gone.ID, "test"); err != nil {
				t.Fatal(err)
			}
			other, theirs := "", []string{}
			if foreign {
				o := testConfig(t)
				ro := mustOpen(t, o)
				mustPush(t, ro, "theirs")
				old := time.Now().Add(-48 * time.Hour)
				other, theirs = filepath.Join(o.Data, "blobs"), objectsIn(t, o.Data)
				for _, path := range theirs {
					if err := os.Chtimes(path, old, old); err != nil {
						t.Fatal(err)
					}
				}
			}
			comeBack := disappear(t, cfg, other)

			if w := ask(r, "/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "storage") {
				t.Errorf("readyz: status %d, %q", w.Code, w.Body)
			}
			if w := ask(r, "/v2/app/blobs/"+kept.String()); w.Code != http.StatusServiceUnavailable {
				t.Errorf("GET: status %d, want 503", w.Code)
			}
			if _, status := pushBlob(t, r, "new"); status != http.StatusServiceUnavailable {
				t.Errorf("push: status %d, want 503", status)
			}
			if _, status := pushBlob(t, r, "kept"); status != http.StatusServiceUnavailable {
				t.Errorf("push of what seems to be missing: status %d, want 503", status)
			}
			if _, err := r.collector.Start(t.Context(), r.cfg.Policy(), gc.TriggerManual, "test"); !errors.Is(err, blob.ErrUnproven) || !errors.Is(err, fault.Busy) {
				t.Errorf("a collection: %v, want ErrUnproven", err)
			}
			rep, err := r.checker.Start(t.Context(), check.Request{Repair: true, Grace: -1})
			if err == nil {
				rep, err = r.checker.Wait(t.Context(), rep.ID)
			}
			if err != nil || rep.State != check.StateFailed || rep.Orphans.Count != 0 || rep.LostCount != 0 || rep.Repaired != 0 {
				t.Errorf("a check: %+v, %v", rep, err)
			}
			for _, path := range theirs {
				if _, err := os.Stat(path); err != nil {
					t.Error(err)
				}
			}

			comeBack()
			if w := ask(r, "/v2/app/blobs/"+kept.String()); w.Code != http.StatusOK {
				t.Errorf("GET when it is back: status %d", w.Code)
			}
			w := ask(r, "/readyz")
			if body, _ := io.ReadAll(w.Body); w.Code != http.StatusOK {
				t.Errorf("readyz when it is back: status %d, %s", w.Code, body)
			}
			run, err := r.collector.Start(t.Context(), meta.Policy{Window: meta.Duration(time.Hour)}, gc.TriggerManual, "test")
			if err == nil {
				run, err = r.collector.Wait(t.Context(), run.ID)
			}
			if err != nil || run.State != meta.RunDone || run.FreedBytes < int64(len("gone")) {
				t.Errorf("a collection when it is back: %+v, %v; want the purge that waited", run, err)
			}
			if _, err := r.files.Open(t.Context(), gone.Key); !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("the purged object: %v", err)
			}
		})
	}
}

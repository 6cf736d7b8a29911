package check_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

const mib = 1 << 20

// smallWorld is a world on a disk of its own.
func smallWorld(t *testing.T, size, reserve, minFree int64) *world {
	t.Helper()
	w := &world{t: t, dir: blobtest.SmallDisk(t, size)}
	var err error
	if w.blobs, err = fsblob.Open(w.dir, fsblob.Options{Reserve: reserve, MinFree: minFree}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.blobs.Close() })
	if w.meta, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(w.dir, "fairway.db"), Release: w.blobs.Release}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.meta.Close() })
	return w
}

// fill takes all that is left of the disk and returns the file that holds it.
func (w *world) fill() string {
	w.t.Helper()
	path := filepath.Join(w.dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		w.t.Fatal(err)
	}
	for part := make([]byte, 4096); err == nil; {
		_, err = f.Write(part)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) wantWhole(acked map[oci.Digest][]byte) {
	w.t.Helper()
	for d, want := range acked {
		b, err := w.meta.Blob(w.t.Context(), "app", d)
		if err != nil {
			w.t.Fatal(err)
		}
		if got, err := blobtest.Get(w.blobs, b.Key); err != nil || !bytes.Equal(got, want) {
			w.t.Fatalf("%s: %d of %d bytes, %v", d, len(got), len(want), err)
		}
	}
}

func TestR7_DiskFull_UploadsFailReadsGoOnAndTheCollectorMakesRoom(t *testing.T) {
	w := smallWorld(t, 40*mib, 4*mib, 4*mib)
	const orphans = 20
	for i := range orphans {
		w.plant(i, 256<<10, 3*time.Hour)
	}
	acked := map[oci.Digest][]byte{}
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		content := blobtest.Bytes(i, 1*mib)
		var b meta.Blob
		if b, err = w.tryUpload(t.Context(), "app", content); err == nil {
			acked[b.Digest] = content
		}
	}
	if !errors.Is(err, blob.ErrFull) || len(acked) < 20 {
		t.Fatalf("after %d uploads: %v", len(acked), err)
	}
	w.wantWhole(acked)
	// Room was left for the database: it takes writes as before.
	u, err := w.meta.CreateUpload(t.Context(), "app", "sha256")
	if err != nil {
		t.Fatalf("the database on a disk that is full for uploads: %v", err)
	}
	if err := w.meta.CancelUpload(t.Context(), "app", u.ID, "test"); err != nil {
		t.Fatal(err)
	}

	// Something else takes the rest, until the database cannot write either.
	filler := w.fill()
	for i := 0; i < 5000 && err == nil; i++ {
		_, err = w.meta.CreateUpload(t.Context(), oci.Name(fmt.Sprintf("repository/%d", i)), "sha256")
	}
	if !sqldb.IsFull(err) {
		t.Fatalf("the database still writes to a disk without a free byte: %v", err)
	}
	w.wantWhole(acked)

	// What makes room may use the reserve.
	rep := w.check(check.Request{Repair: true, Grace: none})
	if rep.Orphans.Count != orphans || rep.Repaired != orphans || rep.LostCount != 0 || rep.Failed != 0 {
		t.Fatal(text(rep))
	}
	if sp, err := w.blobs.Space(); err != nil || sp.Reserve != 0 {
		t.Fatalf("the reserve was not needed: the test tests nothing: %+v, %v", sp, err)
	}
	if _, err := w.tryUpload(t.Context(), "app", []byte("x")); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("upload while the reserve is in use: %v", err)
	}
	if keys := w.mustPurge(); len(keys) < orphans {
		t.Fatalf("purged %d objects", len(keys))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := w.blobs.Replenish(); err != nil {
		t.Fatal(err)
	}
	content := blobtest.Bytes(1000, 1*mib)
	acked[w.upload("app", content).Digest] = content
	w.wantWhole(acked)
	if rep := w.check(check.Request{Deep: true}); rep.LostCount != 0 || rep.Orphans.Count != 0 || rep.Failed != 0 || len(rep.Database) != 0 {
		t.Fatal(text(rep))
	}
}

func TestR7_DiskFull_ServerStartsAndCollectsOnADiskWithoutAFreeByte(t *testing.T) {
	w := smallWorld(t, 24*mib, 4*mib, 1*mib)
	content := blobtest.Bytes(1, 2*mib)
	b := w.upload("app", content)
	key := w.plant(2, 2*mib, 3*time.Hour)
	if err := errors.Join(w.meta.Close(), w.blobs.Close()); err != nil {
		t.Fatal(err)
	}
	w.fill()
	var err error
	if w.blobs, err = fsblob.Open(w.dir, fsblob.Options{Reserve: 4 * mib, MinFree: 1 * mib}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.blobs.Close() })
	w.meta, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(w.dir, "fairway.db"), Release: w.blobs.Release})
	if err != nil {
		t.Fatalf("open the database on a full disk: %v", err)
	}
	t.Cleanup(func() { _ = w.meta.Close() })
	w.wantWhole(map[oci.Digest][]byte{b.Digest: content})
	if rep := w.check(check.Request{Repair: true}); rep.Repaired != 1 {
		t.Fatal(text(rep))
	}
	if keys := w.mustPurge(); len(keys) != 1 || keys[0] != key {
		t.Fatalf("purged %q", keys)
	}
}

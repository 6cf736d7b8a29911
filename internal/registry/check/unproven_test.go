package check_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/check"
)

// swap puts the objects of another storage in the place of w's.
func (w *world) swap() {
	w.t.Helper()
	objects := filepath.Join(w.dir, "blobs")
	if err := errors.Join(os.Rename(objects, objects+".away"), os.Mkdir(objects, 0o700)); err != nil {
		w.t.Fatal(err)
	}
	w.plant(7, 100, 3*time.Hour)
}

// failed runs a check that must fail and returns its report.
func (w *world) failed(blobs blob.Store) check.Report {
	w.t.Helper()
	c := check.New(w.meta, blobs, check.Options{})
	rep, err := c.Start(w.t.Context(), check.Request{Repair: true, Grace: none})
	if err == nil {
		rep, err = c.Wait(w.t.Context(), rep.ID)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if rep.State != check.StateFailed || rep.Orphans.Count != 0 || rep.LostCount != 0 || rep.Repaired != 0 || rep.Failed != 0 {
		w.t.Errorf("a check of a storage that is not there: %s", text(rep))
	}
	if keys, err := w.purge(w.t.Context()); len(keys) != 0 || err != nil {
		w.t.Errorf("in the purge queue: %q, %v", keys, err)
	}
	return rep
}

func TestR15_ACheckWhoseStorageDisappearsFindsNothing(t *testing.T) {
	for name, hook := range map[string]func(w *world, h *hooked){
		"while objects are listed": func(w *world, h *hooked) {
			h.walk = func(func(blob.Info) error) error { h.walk = nil; w.swap(); return nil }
		},
		"before blobs are looked at": func(w *world, h *hooked) {
			h.open = func(string) { h.open = nil; w.swap() }
		},
		"and another copy of it is in its place": func(w *world, h *hooked) {
			h.open = func(key string) {
				h.open = nil
				w.swap()
				blobtest.Put(w.t, w.blobs, key, []byte("other bytes"))
			}
		},
		"when the listing is over": func(w *world, h *hooked) {
			h.walk = func(func(blob.Info) error) error {
				h.walk = nil
				w.swap()
				return os.RemoveAll(filepath.Join(w.dir, "blobs", blobtest.Key(7)[6:8]))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.image("app", w.upload("app", []byte("layer")), "v1")
			id, err := w.blobs.Identity(t.Context(), blobtest.Identity(1))
			if err != nil {
				t.Fatal(err)
			}
			h := &hooked{Store: w.blobs}
			hook(w, h)
			w.failed(blob.Pair(h, id))
		})
	}
}

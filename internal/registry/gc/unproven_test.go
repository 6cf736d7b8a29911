package gc_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func TestR15_APurgeWhoseStorageDisappearsForgetsNothing(t *testing.T) {
	h := newHouse(t)
	for _, c := range []string{"one", "two", "six"} {
		h.push("a", c)
	}
	id, err := h.files.Identity(h.ctx(), blobtest.Identity(1))
	h.must(err)
	objects := filepath.Join(h.dir, "blobs")
	away := false
	h.opts.Workers = 1
	h.withStore(blob.Pair(&deletes{h.files, func(context.Context, string) error {
		if away {
			return nil
		}
		away = true // as the first object is about to be deleted
		return errors.Join(os.Rename(objects, objects+".away"), os.Mkdir(objects, 0o700))
	}}, id))
	p := h.opts.Policy
	p.Window, p.Trash = 0, 0
	run, err := h.gc.Start(h.ctx(), p, gc.TriggerManual, "test")
	h.must(err)
	run, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
	h.wants(run.State == meta.RunFailed && strings.Contains(run.Error, "storage"), "the run: %+v", run)
	h.wants(run.Purged == 0 && run.Failed == 0 && run.FreedBytes == 0, "what the run counted: %+v", run.Counts)
	st, err := h.gc.Status(h.ctx())
	h.must(err)
	h.wants(st.Queue.Purges == 3 && st.Queue.PurgesStuck == 0, "the queue: %+v; want it as it was", st.Queue)
	_, err = h.gc.Start(h.ctx(), p, gc.TriggerManual, "test")
	h.wants(errors.Is(err, blob.ErrUnproven), "another run: %v", err)

	h.must(errors.Join(os.RemoveAll(objects), os.Rename(objects+".away", objects)))
	run = h.collectAll()
	h.wants(run.Purged == 3 && run.FreedBytes == 9, "when the storage is back: %+v", run.Counts)
}

func TestR7_ARunEndsWithUpkeep(t *testing.T) {
	h := newHouse(t)
	calls := make(chan struct{}, 1)
	h.opts.Upkeep = func() error { calls <- struct{}{}; return errors.New("only logged") }
	h.withStore(h.files)
	h.push("a", "x")
	h.collectAll() // with no background loop
	select {
	case <-calls:
	default:
		t.Error("a run that is over has not filled up the reserve")
	}
}

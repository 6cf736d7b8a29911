package index_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
)

// TestR7_AnIndexIsRebuiltOnceItsRowsAreOnTheDisk: a loss of power before that may take them,
// and the files that they are of must be taken back then.
func TestR7_AnIndexIsRebuiltOnceItsRowsAreOnTheDisk(t *testing.T) {
	full := false
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db"), Sync: func(f *os.File) error {
		if full {
			return &os.PathError{Op: "sync", Path: f.Name(), Err: syscall.ENOSPC}
		}
		return f.Sync()
	}})
	must(t, err)
	defer func() { must(t, x.Close()) }()
	put(t, x, "a")
	full = true
	if err := x.Adopted(t.Context()); err != nil || !x.Anew() {
		t.Errorf("with rows that are not on the disk: %v, still to be rebuilt %v", err, x.Anew())
	}
	full = false
	if err := x.Adopted(t.Context()); err != nil || x.Anew() {
		t.Errorf("%v, still to be rebuilt %v", err, x.Anew())
	}
	put(t, x, "b")
	full = true
	if err := x.Adopted(t.Context()); err != nil {
		t.Errorf("with nothing to rebuild: %v", err)
	}
	full = false
}

package index_test

import (
	"path/filepath"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// TestR7_AnIndexIsRebuiltOnceItsRowsAreOnTheDisk: a loss of power before that may take them,
// and the files that they are of must be taken back then.
func TestR7_AnIndexIsRebuiltOnceItsRowsAreOnTheDisk(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db"), Driver: disk.Driver()})
	must(t, err)
	defer func() { must(t, x.Close()) }()
	put(t, x, "a")
	disk.Fill()
	if err := x.Adopted(t.Context()); err != nil || !x.Anew() {
		t.Errorf("with rows that are not on the disk: %v, still to be rebuilt %v", err, x.Anew())
	}
	disk.Empty()
	if err := x.Adopted(t.Context()); err != nil || x.Anew() {
		t.Errorf("%v, still to be rebuilt %v", err, x.Anew())
	}
	disk.Fill()
	if err := x.Adopted(t.Context()); err != nil {
		t.Errorf("with nothing to rebuild: %v", err)
	}
	disk.Empty()
}

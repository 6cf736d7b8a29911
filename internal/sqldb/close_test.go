package sqldb_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// TestClose_MovesTheWALIntoTheDatabase tells whether all connections are
// closed: the last one to close does that.
func TestClose_MovesTheWALIntoTheDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Path: path})
	if err := db.Write(context.Background(), insert(1, "x")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Fatalf("there is no WAL while it is open: %v", err)
	}
	count(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); !os.IsNotExist(err) {
		t.Errorf("the WAL is still there after Close: %v", err)
	}
}

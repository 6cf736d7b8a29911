package sqldb_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
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

// A file that is something else is left as it is, however short it is.
func TestR15_AFileThatIsNotADatabaseIsNotWritten(t *testing.T) {
	for _, content := range []string{"x", "a list of things that somebody needs\n", strings.Repeat("y", 10000)} {
		path := filepath.Join(t.TempDir(), "notes")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if db, err := sqldb.Open(context.Background(), sqldb.Options{Path: path, Migrations: migrations()}); err == nil {
			t.Errorf("a file of %d bytes was opened as a database", len(content))
			_ = db.Close()
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("a file of %d bytes has %d bytes now, %v", len(content), len(got), err)
		}
	}
}

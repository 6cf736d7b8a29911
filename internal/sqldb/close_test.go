package sqldb_test

import (
	"bytes"
	"context"
	"encoding/binary"
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
		if err := os.WriteFile(path+"-journal", []byte("of those"), 0o600); err != nil {
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

// The first commit of a database is a page that a loss of power may leave half written,
// beside the journal by which SQLite takes it back.
func TestR7_ADatabaseThatWasBeingMadeAtALossOfPowerOpens(t *testing.T) {
	for name, page := range map[string][]byte{"zeros": make([]byte, 4096), "half": bytes.Repeat([]byte{0xa5}, 4096)} {
		path := filepath.Join(t.TempDir(), "fairway.db")
		if err := os.WriteFile(path, page, 0o600); err != nil {
			t.Fatal(err)
		}
		// SQLite's file format, §3 The Rollback Journal: no pages, of a database that had none.
		journal := make([]byte, 512)
		copy(journal, "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
		binary.BigEndian.PutUint32(journal[12:], 1)    // nonce
		binary.BigEndian.PutUint32(journal[20:], 512)  // bytes of a sector
		binary.BigEndian.PutUint32(journal[24:], 4096) // bytes of a page
		if err := os.WriteFile(path+"-journal", journal, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := sqldb.Open(context.Background(), sqldb.Options{Path: path, Migrations: migrations()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

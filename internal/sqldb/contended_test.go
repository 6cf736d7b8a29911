package sqldb_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// TestR5_MaintenanceIsNoClientOfItsOwn: a collection that took its own writes for those
// of clients would rest for nobody.
func TestR5_MaintenanceIsNoClientOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, sqldb.Options{})
		type write = func(context.Context, func(*sqldb.Tx) error) error
		a := 0
		run := func(name string, w write, want bool) {
			t.Helper()
			time.Sleep(time.Second) // of synctest
			if db.Contended() {
				t.Fatalf("a second after the last write of a client, before %s, clients are writing", name)
			}
			a++
			if err := w(t.Context(), insert(a, "x")); err != nil {
				t.Fatal(err)
			}
			if got := db.Contended(); got != want {
				t.Errorf("after %s clients are writing: %v, want %v", name, got, want)
			}
		}
		run("Maintain", db.Maintain, false)
		run("MaintainNote", db.MaintainNote, false)
		run("Sync", func(ctx context.Context, _ func(*sqldb.Tx) error) error { return db.Sync(ctx) }, false)
		run("Write", db.Write, true)
		run("Note", db.Note, true)
		run("Relieve", db.Relieve, true)
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestR5_ACheckpointWaitsForNobody: while it waited for a reader, writes would wait for
// it. What it cannot move now it moves later.
func TestR5_ACheckpointWaitsForNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	size := func() int64 {
		t.Helper()
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	db := open(t, sqldb.Options{Path: path})
	checkpoint := func() {
		t.Helper()
		// Busy is also who meets the database's own checkpoint; that ends, a reader does not.
		for deadline := time.Now().Add(5 * time.Second); ; {
			busy, err := db.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !busy {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("a checkpoint waits")
			}
		}
	}
	err := db.Snapshot(t.Context(), func(tx *sqldb.Tx) error {
		var n int
		if err := tx.Row("SELECT count(*) FROM t").Scan(&n); err != nil {
			return err
		}
		if err := db.Write(t.Context(), insert(1, strings.Repeat("x", 8<<20))); err != nil {
			return err
		}
		checkpoint()
		if n := size(); n > 1<<20 {
			t.Errorf("the database has %d bytes although a reader needs what was there before", n)
		}
		return db.Write(t.Context(), insert(2, "x"))
	})
	if err != nil {
		t.Fatal(err)
	}
	checkpoint()
	if err := db.Write(t.Context(), insert(3, "x")); err != nil {
		t.Fatal(err)
	}
	checkpoint()
	if log, moved := db.WALPages(), db.WALMoved(); log == moved {
		t.Errorf("a log of %d pages, of which %d were moved before, is moved: each portion costs two syncs", log, moved)
	}
	if n := size(); n < 8<<20 {
		t.Errorf("the database has %d bytes although nobody keeps a checkpoint from moving 8 MiB", n)
	}
}

// TestR5_TheLogBeginsAgainBesideAWriterThatIsAlwaysBusy: SQLite alone begins it again only
// when a transaction finds all of it moved, which it never does here. It would grow until the
// commit of a client moves it.
func TestR5_TheLogBeginsAgainBesideAWriterThatIsAlwaysBusy(t *testing.T) {
	db := open(t, sqldb.Options{})
	most := 0
	const pages = 1500 // of a write
	for i := range 4 * sqldb.RestartPages / pages {
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			for busy := true; busy; { // the database's own is under way
				var err error
				if busy, err = db.Checkpoint(t.Context()); err != nil {
					return err
				}
			}
			return insert(i, strings.Repeat("x", pages*4096))(tx)
		})
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, db.WALPages())
	}
	if most < sqldb.RestartPages || most > 2*sqldb.RestartPages {
		t.Errorf("the log has grown to %d pages, want about %d", most, sqldb.RestartPages)
	}
}

// TestR5_TheLogIsMovedBesideTheWriter when it has become long, not when it is full.
func TestR5_TheLogIsMovedBesideTheWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Path: path})
	if err := db.Write(t.Context(), insert(1, strings.Repeat("x", 8<<20))); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > 8<<20 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the database has %d bytes a minute after a write of 8 MiB", fi.Size())
		}
	}
}

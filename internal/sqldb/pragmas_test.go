package sqldb_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// TestSnapshot_APanicLeavesNoConnectionInThePast: each of them sees what comes later.
func TestSnapshot_APanicLeavesNoConnectionInThePast(t *testing.T) {
	db := open(t, sqldb.Options{})
	const reads = 16 // more than there are connections
	for range reads {
		func() {
			defer func() { _ = recover() }()
			_ = db.Snapshot(t.Context(), func(tx *sqldb.Tx) error {
				var n int
				if err := tx.Row("SELECT count(*) FROM t").Scan(&n); err != nil {
					t.Error(err)
				}
				panic("in the middle")
			})
		}()
	}
	if err := db.Write(t.Context(), insert(1, "x")); err != nil {
		t.Fatal(err)
	}
	for range reads {
		if n := count(t, db); n != 1 {
			t.Fatalf("a connection sees %d rows, want 1", n)
		}
	}
}

// TestR17_NobodyWaitsForAConnectionForEver: whoever leaves is let go, and so is
// everybody when the database is closed.
func TestR17_NobodyWaitsForAConnectionForEver(t *testing.T) {
	db := open(t, sqldb.Options{})
	const readers = 4
	release := make(chan struct{})
	var held, done sync.WaitGroup
	held.Add(readers)
	for range readers {
		done.Go(func() {
			if err := db.Snapshot(context.Background(), func(*sqldb.Tx) error { held.Done(); <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	held.Wait()
	wait := func(ctx context.Context, want error, end func()) {
		t.Helper()
		got := make(chan error, 1)
		go func() { got <- db.Read(ctx, func(*sqldb.Tx) error { return nil }) }()
		end()
		select {
		case err := <-got:
			if !errors.Is(err, want) {
				t.Errorf("a read without a connection: %v, want %v", err, want)
			}
		case <-time.After(time.Minute):
			t.Errorf("a read waits for a connection, want %v", want)
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	wait(ctx, context.Canceled, leave)
	wait(context.Background(), sqldb.ErrClosed, func() {
		done.Go(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	close(release)
	done.Wait()
}

// TestR15_AnOpenThatFailsLeavesNoLock: the right program may have the file next.
func TestR15_AnOpenThatFailsLeavesNoLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	newer := migrations("CREATE TABLE u (a INTEGER);")
	if err := open(t, sqldb.Options{Path: path, Migrations: newer}).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Open(t.Context(), sqldb.Options{Path: path, Migrations: migrations()}); err == nil {
		t.Fatal("an older program has opened it")
	}
	open(t, sqldb.Options{Path: path, Migrations: newer})
}

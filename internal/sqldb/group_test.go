package sqldb_test

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/sqldb"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// block has a write under way until release, so that what comes meanwhile waits.
func block(t *testing.T, db *sqldb.DB) (release func()) {
	t.Helper()
	inside, end, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- db.Write(context.Background(), func(*sqldb.Tx) error { close(inside); <-end; return nil })
	}()
	<-inside
	return func() {
		t.Helper()
		close(end)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// await returns when so many writes wait for their turn.
func await(t *testing.T, db *sqldb.DB, clients, maintenance int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		if c, m := db.Waiting(); c == clients && m == maintenance {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%d writes of clients and %d of maintenance wait, want %d and %d", c, m, clients, maintenance)
		}
	}
}

// TestR2_NobodyHearsOfSuccessFromACommitThatFailed: a group whose commit fails is
// tried write by write, and each write has its own outcome.
func TestR2_NobodyHearsOfSuccessFromACommitThatFailed(t *testing.T) {
	for name, writes := range map[string]int{"one write": 1, "a group": 20} {
		t.Run(name, func(t *testing.T) {
			disk := sqldbtest.NewDisk(t)
			db := open(t, sqldb.Options{Driver: disk.Driver()})
			if err := db.Write(t.Context(), insert(1000, "before")); err != nil { // with it goes the clock's first reading
				t.Fatal(err)
			}
			release := block(t, db)
			disk.Fill()
			told, hooks := make([]error, writes), make([]bool, writes)
			var wg sync.WaitGroup
			for i := range writes {
				wg.Go(func() {
					told[i] = db.Write(context.Background(), func(tx *sqldb.Tx) error {
						if i%2 == 1 { // changes nothing, which is possible on a full disk
							_, err := tx.Exec("UPDATE t SET b = 'y' WHERE a = -1")
							return err
						}
						tx.OnCommit(func() { hooks[i] = true })
						return insert(i, "x")(tx)
					})
				})
			}
			await(t, db, writes, 0)
			release()
			wg.Wait()
			for i, err := range told {
				if full := i%2 == 0; full != sqldb.IsFull(err) || !full && err != nil || hooks[i] {
					t.Errorf("write %d of a commit that failed: %v, hook ran: %v", i, err, hooks[i])
				}
			}
			disk.Empty()
			if err := db.Write(t.Context(), insert(1001, "after")); err != nil {
				t.Errorf("a write after a commit that failed: %v", err)
			}
			if n := count(t, db); n != 2 {
				t.Errorf("%d rows, want those before and after", n)
			}
		})
	}
}

// TestR5_ClientsGoBeforeMaintenanceInBoundedCommits: a commit has clients' writes, GroupMax
// at most, or one of maintenance, which has its turn after MaintainEvery commits of clients
// or when none of them waits.
func TestR5_ClientsGoBeforeMaintenanceInBoundedCommits(t *testing.T) {
	type commit struct{ clients, maintenance int }
	var commits []commit // of the writer alone
	db := open(t, sqldb.Options{Trace: func(query string, _ []any) {
		if query == "BEGIN IMMEDIATE" {
			commits = append(commits, commit{})
		}
	}})
	ctx := t.Context()
	for name, maintain := range map[string]func(context.Context, func(*sqldb.Tx) error) error{"Maintain": db.Maintain, "MaintainNote": db.MaintainNote} {
		for client, write := range map[string]func(context.Context, func(*sqldb.Tx) error) error{"Write": db.Write, "Note": db.Note, "Relieve": db.Relieve} {
			release := block(t, db)
			const clients, maintenance = (sqldb.MaintainEvery + 1) * sqldb.GroupMax, 4
			var wg sync.WaitGroup
			for range maintenance {
				wg.Go(func() {
					if err := maintain(ctx, func(*sqldb.Tx) error { commits[len(commits)-1].maintenance++; return nil }); err != nil {
						t.Error(err)
					}
				})
			}
			for range clients {
				wg.Go(func() {
					err := write(ctx, func(*sqldb.Tx) error { commits[len(commits)-1].clients++; return nil })
					if err != nil {
						t.Error(err)
					}
				})
			}
			await(t, db, clients, maintenance)
			commits = commits[len(commits)-1:]
			release()
			wg.Wait()
			left, since, early := clients, 0, 0
			for i, c := range commits {
				left -= c.clients
				if c.clients > sqldb.GroupMax || c.maintenance > 1 || c.clients > 0 && c.maintenance > 0 {
					t.Errorf("%s beside %s: commit %d has %d writes of clients and %d of maintenance", name, client, i, c.clients, c.maintenance)
				}
				if c.clients > 0 || i == 0 {
					since++
				} else if left > 0 {
					if early++; since < sqldb.MaintainEvery {
						t.Errorf("%s beside %s: maintenance has its turn after %d commits of clients, of which %d wait", name, client, since, left)
					}
					since = 0
				}
			}
			if early != 1 {
				t.Errorf("%s beside %s: maintenance has its turn %d times while clients wait, want 1", name, client, early)
			}
		}
	}
}

// TestWrite_AContextEndsTheWaitInTheQueue: whoever has left is not waited for, and
// nothing is written.
func TestWrite_AContextEndsTheWaitInTheQueue(t *testing.T) {
	db := open(t, sqldb.Options{})
	release := block(t, db)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- db.Write(ctx, insert(1, "never")) }()
	await(t, db, 1, 0)
	leave()
	select {
	case err := <-left:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("a write that was given up in the queue: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("a write waits for its turn although its caller has left")
	}
	release()
	if err := db.Write(t.Context(), insert(2, "after")); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want that of the write nobody gave up", n)
	}
}

// TestR2_CloseWaitsForAWriteThatHasBegun: its caller hears what became of it, however
// long it takes.
func TestR2_CloseWaitsForAWriteThatHasBegun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	synctest.Test(t, func(t *testing.T) {
		db := open(t, sqldb.Options{Path: path})
		begun, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- db.Write(context.Background(), func(tx *sqldb.Tx) error {
				close(begun)
				time.Sleep(time.Hour) // of synctest
				return insert(1, "x")(tx)
			})
		}()
		<-begun
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("a write that had begun: %v", err)
		}
	})
	if n := count(t, open(t, sqldb.Options{Path: path})); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// TestClose_RefusesWhatComesAtOnce: nobody waits for a writer that has ended.
func TestClose_RefusesWhatComesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, sqldb.Options{})
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for range 32 {
			if err := db.Write(context.Background(), insert(1, "late")); !errors.Is(err, sqldb.ErrClosed) {
				t.Errorf("a write after Close: %v", err)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("writes after Close wait for %v", took)
		}
	})
}

// TestR11_AnIdleDatabaseSavesItsClock: a start after a kill must not find the time
// of the last write, which may be days ago.
func TestR11_AnIdleDatabaseSavesItsClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, sqldb.Options{})
		time.Sleep(time.Hour) // of synctest
		synctest.Wait()
		if behind := db.Now() - seen(t, db); behind > time.Minute.Milliseconds() {
			t.Errorf("the latest time seen is %d ms ago", behind)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

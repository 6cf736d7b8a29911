package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/fairway-registry/fairway/internal/sqldb"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// fsyncs stands between a database and the fsync of its log.
type fsyncs struct {
	mu     sync.Mutex
	names  []string
	err    error
	inside chan struct{} // if not nil, each fsync sends to it and then waits for release
	end    chan struct{}
}

func (f *fsyncs) sync(file *os.File) error {
	f.mu.Lock()
	f.names = append(f.names, filepath.Base(file.Name()))
	err, inside, end := f.err, f.inside, f.end
	f.mu.Unlock()
	if inside != nil {
		inside <- struct{}{}
		<-end
	}
	if err != nil {
		return err
	}
	return file.Sync()
}

func (f *fsyncs) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// take returns and forgets the names of the files synced.
func (f *fsyncs) take() (names []string) {
	f.set(func() { names, f.names = f.names, nil })
	return names
}

// hold has fsyncs wait from now on. The function ends that.
func (f *fsyncs) hold() (release func()) {
	f.set(func() { f.inside, f.end = make(chan struct{}), make(chan struct{}) })
	return func() {
		f.set(func() { close(f.end); f.inside = nil })
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestR7_AWriteReturnsAfterASyncOfItsCommit, during which other writes are served: those
// that need not be durable return, the others share the next sync.
func TestR7_AWriteReturnsAfterASyncOfItsCommit(t *testing.T) {
	var f fsyncs
	db := open(t, sqldb.Options{Sync: f.sync})
	mustDo(t, db.Write(t.Context(), insert(0, "with the first commit")))
	f.take()
	for name, write := range map[string]func(context.Context, func(*sqldb.Tx) error) error{"Write": db.Write, "Relieve": db.Relieve, "Maintain": db.Maintain} {
		t.Run(name, func(t *testing.T) {
			before := count(t, db)
			release := f.hold()
			done := make(chan error, 3)
			go func() { done <- write(context.Background(), insert(before+1, "x")) }()
			<-f.inside
			go func() { done <- write(context.Background(), insert(before+2, "x")) }()
			go func() { done <- write(context.Background(), insert(before+3, "x")) }()
			for count(t, db) != before+3 { // the test's own deadline ends this
				time.Sleep(time.Millisecond)
			}
			mustDo(t, db.Note(t.Context(), insert(before+4, "x")))
			mustDo(t, db.MaintainNote(t.Context(), insert(before+5, "x")))
			select {
			case err := <-done:
				t.Fatalf("%s returns before its commit is on the disk: %v", name, err)
			default:
			}
			release()
			for range 3 {
				mustDo(t, <-done)
			}
			if names := f.take(); !slices.Equal(names, []string{"t.db-wal", "t.db-wal"}) {
				t.Errorf("three writes, two of them during the sync of the first, cost the fsyncs %q", names)
			}
			mustDo(t, db.Sync(t.Context()))
			f.take()
		})
	}
}

// TestR7_SyncWaitsForTheDiskOnceAfterNotes: it has nothing to do where all is durable.
func TestR7_SyncWaitsForTheDiskOnceAfterNotes(t *testing.T) {
	var f fsyncs
	db := open(t, sqldb.Options{Sync: f.sync})
	ctx := t.Context()
	syncs := func(want []string, why string, err error) {
		t.Helper()
		mustDo(t, err)
		if got := f.take(); !slices.Equal(got, want) {
			t.Errorf("%s: fsyncs of %q, want %q", why, got, want)
		}
	}
	// The name of the log must be there too, and what a killed process has left in it.
	mustDo(t, db.Durable(ctx, db.Seen()))
	if got := f.take(); len(got) != 2 || got[1] != "t.db-wal" || strings.HasPrefix(got[0], "t.db") {
		t.Errorf("the first sync is of %q, want the directory and the log", got)
	}
	syncs(nil, "a second sync", db.Sync(ctx))
	syncs(nil, "a note", db.MaintainNote(ctx, insert(1, "a")))
	syncs([]string{"t.db-wal"}, "a sync after a note", db.Sync(ctx))
	syncs(nil, "another sync", db.Sync(ctx))
	syncs([]string{"t.db-wal"}, "a write", db.Write(ctx, insert(2, "b")))
	syncs(nil, "a sync after a write", db.Sync(ctx))
	failed := db.Write(ctx, func(*sqldb.Tx) error { return errors.New("not found") })
	if got := f.take(); failed == nil || got != nil {
		t.Errorf("a write that fails: %v, fsyncs of %q", failed, got)
	}
}

// TestR7_AfterASyncThatFailedTheLogIsNotTrusted: the kernel may take for written what it
// could not write. The writes that waited fail, and later ones succeed when the log has been
// moved into the database.
func TestR7_AfterASyncThatFailedTheLogIsNotTrusted(t *testing.T) {
	var f fsyncs
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Path: path, Sync: f.sync})
	mustDo(t, db.Write(t.Context(), insert(1, "before")))
	broken := errors.New("the disk is broken")
	f.set(func() { f.err = broken })
	if err := db.Write(t.Context(), insert(2, strings.Repeat("x", 1<<16))); !errors.Is(err, broken) {
		t.Fatalf("a write whose sync fails: %v", err)
	}
	if err := db.MaintainNote(t.Context(), insert(3, "a note")); err != nil {
		t.Errorf("a note after a sync that failed: %v", err)
	}
	f.set(func() { f.err = nil })
	f.take()
	size := func() int64 {
		fi, err := os.Stat(path)
		mustDo(t, err)
		return fi.Size()
	}
	before := size()
	mustDo(t, db.Sync(t.Context()))
	if size() < before+1<<16 {
		t.Errorf("after a sync that failed the log is not moved into the database, which has %d bytes, %d before", size(), before)
	}
	if got := f.take(); !slices.Equal(got, []string{"t.db-wal"}) {
		t.Errorf("that the log was cut off is on the disk after the fsyncs %q", got)
	}
	mustDo(t, db.Write(t.Context(), insert(4, "after")))
	if got := f.take(); !slices.Equal(got, []string{"t.db-wal"}) {
		t.Errorf("when all is moved, a write costs the fsyncs %q", got)
	}
}

// TestR7_WhileTheLogCannotBeMovedNothingIsPromised: a reader of an old state keeps it there.
func TestR7_WhileTheLogCannotBeMovedNothingIsPromised(t *testing.T) {
	var f fsyncs
	db := open(t, sqldb.Options{Sync: f.sync, Path: filepath.Join(t.TempDir(), "t.db")})
	mustDo(t, db.Write(t.Context(), insert(1, "before")))
	sqldb.Impatient(db)
	err := db.Snapshot(t.Context(), func(tx *sqldb.Tx) error {
		var n int
		mustDo(t, tx.Row("SELECT count(*) FROM t").Scan(&n))
		f.set(func() { f.err = errors.New("the disk is broken") })
		if err := db.Write(t.Context(), insert(2, "x")); err == nil {
			t.Error("a write whose sync fails succeeds")
		}
		f.set(func() { f.err = nil })
		if err := db.Write(t.Context(), insert(3, "x")); err == nil {
			t.Error("a write succeeds though the log has a hole and was not moved")
		}
		return nil
	})
	mustDo(t, err)
	mustDo(t, db.Write(t.Context(), insert(4, "x")))
}

// TestR7_ALogWithAHoleIsCutOff: after a crash SQLite reads no further than the hole, so
// later commits must not come after it, though all of the log was moved. A reader of the
// latest state keeps SQLite from beginning it again.
func TestR7_ALogWithAHoleIsCutOff(t *testing.T) {
	var f fsyncs
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Sync: f.sync, Path: path})
	mustDo(t, db.Write(t.Context(), insert(1, "before")))
	sqldb.Impatient(db)
	f.set(func() { f.err = errors.New("the disk is broken") })
	if err := db.Write(t.Context(), insert(2, "x")); err == nil {
		t.Error("a write whose sync fails succeeds")
	}
	f.set(func() { f.err = nil })
	mustDo(t, db.Snapshot(t.Context(), func(tx *sqldb.Tx) error {
		var n int
		mustDo(t, tx.Row("SELECT count(*) FROM t").Scan(&n))
		if err := db.Sync(t.Context()); err == nil {
			t.Error("a commit is called durable, but the log still has the hole and cannot be begun again")
		}
		return nil
	}))
	f.set(func() { f.err = errors.New("the disk is broken") })
	if err := db.Sync(t.Context()); err == nil {
		t.Error("a commit is called durable, but not the cut of the log")
	}
	f.set(func() { f.err = nil })
	mustDo(t, db.Sync(t.Context()))
	if fi, err := os.Stat(path + "-wal"); err != nil || fi.Size() != 0 {
		t.Errorf("the log has %d bytes, %v", fi.Size(), err)
	}
}

// TestR7_NoCheckpointReadsALogWithAHole: after a crash the beginning of the log would hide
// what was moved from behind the hole.
func TestR7_NoCheckpointReadsALogWithAHole(t *testing.T) {
	var f fsyncs
	db := open(t, sqldb.Options{Sync: f.sync})
	mustDo(t, db.Write(t.Context(), insert(1, "before")))
	f.set(func() { f.err = errors.New("the disk is broken") })
	if err := db.Write(t.Context(), insert(2, "x")); err == nil {
		t.Error("a write whose sync fails succeeds")
	}
	f.set(func() { f.err = nil })
	mustDo(t, db.Note(t.Context(), insert(3, strings.Repeat("x", 6<<20))))
	_, err := db.Checkpoint(t.Context())
	mustDo(t, err)
	mustDo(t, db.RestartWAL(t.Context()))
	mustDo(t, db.RestartWAL(t.Context()))
	if log, moved := db.WALPages(), db.WALMoved(); log < 1024 || moved != 0 {
		t.Errorf("%d of %d pages were moved out of a log that may have a hole", moved, log)
	}
	mustDo(t, db.Sync(t.Context()))
	if log := db.WALPages(); log != 0 {
		t.Errorf("a sync leaves %d pages in the log", log)
	}
}

// TestR7_AfterACheckpointThatFailedTheLogIsNotTrusted: it may have been its sync of the log.
func TestR7_AfterACheckpointThatFailedTheLogIsNotTrusted(t *testing.T) {
	db := open(t, sqldb.Options{})
	// A reader of the first state keeps the log as it is.
	mustDo(t, db.Write(t.Context(), insert(1, "before")))
	mustDo(t, db.Snapshot(t.Context(), func(tx *sqldb.Tx) error {
		var n int
		mustDo(t, tx.Row("SELECT count(*) FROM t").Scan(&n))
		mustDo(t, db.Write(t.Context(), insert(2, strings.Repeat("x", 6<<20))))
		if err := db.CheckpointFails(t.Context()); err == nil {
			t.Error("a checkpoint without a connection succeeds")
		}
		return nil
	}))
	mustDo(t, db.Write(t.Context(), insert(3, "x")))
	if log := db.WALPages(); log != 0 {
		t.Errorf("a write after a checkpoint that failed leaves %d pages in the log", log)
	}
}

type coded int

func (c coded) Error() string { return fmt.Sprint("code ", int(c)) }
func (c coded) Code() int     { return int(c) }

// TestR7_ACheckpointWithoutRoomLeavesTheLogTrusted: it has synced the log before it wrote.
// Where a quota is used up, a collection still needs the log to free anything.
func TestR7_ACheckpointWithoutRoomLeavesTheLogTrusted(t *testing.T) {
	for _, tc := range []struct {
		err  error
		sync bool
	}{
		{coded(sqlite3.SQLITE_IOERR_FSYNC), true},
		{coded(sqlite3.SQLITE_IOERR), true},
		{coded(sqlite3.SQLITE_IOERR_READ), true},
		{errors.New("something else"), true},
		{coded(sqlite3.SQLITE_IOERR_WRITE), false},
		{coded(sqlite3.SQLITE_FULL), false},
		{coded(sqlite3.SQLITE_BUSY), false},
		{syscall.ENOSPC, false},
	} {
		if got := sqldb.MayBeOfSync(fmt.Errorf("checkpoint: %w", tc.err)); got != tc.sync {
			t.Errorf("a checkpoint that fails with %v may have failed at a sync: %v", tc.err, got)
		}
	}
}

// TestR7_AWriteThatIsCommittedIsNotRunAgain, though its sync finds the disk full: it would
// count twice.
func TestR7_AWriteThatIsCommittedIsNotRunAgain(t *testing.T) {
	var f fsyncs
	db := open(t, sqldb.Options{Sync: f.sync, Release: func() bool {
		f.set(func() { f.err = nil })
		return true
	}})
	mustDo(t, db.Write(t.Context(), insert(1, "x")))
	for name, write := range map[string]func(context.Context, func(*sqldb.Tx) error) error{"Relieve": db.Relieve, "Maintain": db.Maintain} {
		f.set(func() { f.err = syscall.ENOSPC })
		runs := 0
		mustDo(t, write(t.Context(), func(tx *sqldb.Tx) error {
			runs++
			_, err := tx.Exec("UPDATE t SET a = a + 1")
			return err
		}))
		if runs != 1 {
			t.Errorf("%s: a write whose sync finds the disk full was run %d times", name, runs)
		}
		if log := db.WALPages(); log != 0 {
			t.Errorf("%s returns though the log was not moved: it has %d pages", name, log)
		}
	}
}

// TestR7_AWriteThatFoundTheDiskFullItselfIsRunAgain, though the transaction around it was
// committed.
func TestR7_AWriteThatFoundTheDiskFullItselfIsRunAgain(t *testing.T) {
	db := open(t, sqldb.Options{Release: func() bool { return true }})
	runs := 0
	mustDo(t, db.Relieve(t.Context(), func(tx *sqldb.Tx) error {
		if runs++; runs == 1 {
			return syscall.ENOSPC
		}
		return insert(1, "x")(tx)
	}))
	if n := count(t, db); n != 1 {
		t.Errorf("after a success that took %d runs there are %d rows, want 1", runs, n)
	}
}

// TestR2_WhatAReaderSeesMayHaveToBecomeDurable: Seen and Durable tell when.
func TestR2_WhatAReaderSeesMayHaveToBecomeDurable(t *testing.T) {
	var f fsyncs
	db := open(t, sqldb.Options{Sync: f.sync})
	mustDo(t, db.Write(t.Context(), insert(1, "x")))
	f.take()
	mustDo(t, db.Note(t.Context(), insert(2, "nobody was promised this")))
	mustDo(t, db.Durable(t.Context(), db.Seen()))
	if got := f.take(); got != nil {
		t.Errorf("a promise after a note waits for the fsyncs %q", got)
	}
	release := f.hold()
	done := make(chan error, 2)
	go func() { done <- db.Write(context.Background(), insert(3, "x")) }()
	<-f.inside
	if n := count(t, db); n != 3 {
		t.Fatalf("%d rows can be seen during a sync, want 3", n)
	}
	seen := db.Seen()
	gone, leave := context.WithCancel(t.Context())
	leave()
	if err := db.Durable(gone, seen); !errors.Is(err, context.Canceled) {
		t.Errorf("what is seen before it is durable, for a client that has left: %v", err)
	}
	go func() { done <- db.Durable(context.Background(), seen) }()
	select {
	case err := <-done:
		t.Errorf("what is seen during a sync is called durable: %v", err)
	default:
	}
	release()
	for range cap(done) {
		mustDo(t, <-done)
	}
}

// TestR2_ACommitThatIsUnderWayIsWaitedFor: a reader may have seen it already.
func TestR2_ACommitThatIsUnderWayIsWaitedFor(t *testing.T) {
	db := open(t, sqldb.Options{})
	mustDo(t, db.Write(t.Context(), insert(1, "x")))
	next := db.Seen() + 1
	done := make(chan error, 1)
	go func() { done <- db.Durable(context.Background(), next) }()
	for db.WaitForDisk() == 0 && len(done) == 0 { // the test's own deadline ends this
		time.Sleep(time.Millisecond)
	}
	mustDo(t, db.Sync(t.Context()))
	if len(done) != 0 {
		t.Fatal("a commit that is not over is called durable")
	}
	mustDo(t, db.Write(t.Context(), insert(2, "x")))
	mustDo(t, <-done)
}

// TestR2_ACommitThatFailsLetsGoWhoWaitsForIt: it was announced before it was made.
func TestR2_ACommitThatFailsLetsGoWhoWaitsForIt(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	db := open(t, sqldb.Options{Driver: disk.Driver()})
	mustDo(t, db.Write(t.Context(), insert(1, "x")))
	next := db.Seen() + 1
	done := make(chan error, 1)
	go func() { done <- db.Durable(context.Background(), next) }()
	for db.WaitForDisk() == 0 { // the test's own deadline ends this
		time.Sleep(time.Millisecond)
	}
	disk.Fill()
	if err := db.Write(t.Context(), insert(2, "x")); !sqldb.IsFull(err) {
		t.Fatalf("a write on a full disk: %v", err)
	}
	mustDo(t, <-done)
}

// TestR7_AFullDiskIsKnownWhereverItShows: also at a sync.
func TestR7_AFullDiskIsKnownWhereverItShows(t *testing.T) {
	var f fsyncs
	released := 0
	db := open(t, sqldb.Options{Sync: f.sync, Release: func() bool {
		released++
		f.set(func() { f.err = nil })
		return true
	}})
	mustDo(t, db.Write(t.Context(), insert(1, "x")))
	for i, full := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		f.set(func() { f.err = &os.PathError{Op: "sync", Path: "t.db-wal", Err: full} })
		if err := db.Write(t.Context(), insert(2+10*i, "x")); !sqldb.IsFull(err) {
			t.Errorf("%v at the sync of a write is not known as a full disk: %v", full, err)
		}
		f.set(func() { f.err = nil })
		mustDo(t, db.Sync(t.Context())) // moves the log
		f.set(func() { f.err = full })
		if err := db.Relieve(t.Context(), func(tx *sqldb.Tx) error { _, err := tx.Exec("DELETE FROM t"); return err }); err != nil || released != i+1 {
			t.Errorf("a deletion whose sync finds the disk full: %v, the reserve was released %d times", err, released)
		}
	}
}

// TestR7_SQLiteSyncsWhatItMoves asks it: without that, the log is begun again before its
// pages are on the disk.
func TestR7_SQLiteSyncsWhatItMoves(t *testing.T) {
	db := open(t, sqldb.Options{})
	mustDo(t, db.Write(t.Context(), func(tx *sqldb.Tx) error {
		var mode string
		var pace, keys int
		err := errors.Join(tx.Row("PRAGMA journal_mode").Scan(&mode), tx.Row("PRAGMA synchronous").Scan(&pace), tx.Row("PRAGMA foreign_keys").Scan(&keys))
		if mode != "wal" || pace < 1 || keys != 1 {
			t.Errorf("journal_mode is %s, synchronous %d, foreign_keys %d", mode, pace, keys)
		}
		return err
	}))
}

// TestR7_CloseLeavesNoWriteWithoutAnAnswer, whatever is being synced then.
func TestR7_CloseLeavesNoWriteWithoutAnAnswer(t *testing.T) {
	var f fsyncs
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Path: path, Sync: f.sync})
	mustDo(t, db.Write(t.Context(), insert(0, "x")))
	release := f.hold()
	const n = 10
	done := make(chan error, n+1)
	for i := range n {
		go func() { done <- db.Write(context.Background(), insert(i+1, fmt.Sprint(i))) }()
	}
	<-f.inside
	go func() { done <- db.Close() }()
	release()
	kept := 1
	for range n + 1 {
		if err := <-done; err == nil {
			kept++
		} else if !errors.Is(err, sqldb.ErrClosed) {
			t.Error(err)
		}
	}
	if err := db.Durable(t.Context(), db.Seen()+1); !errors.Is(err, sqldb.ErrClosed) {
		t.Errorf("a wait for the disk after Close: %v", err)
	}
	if got := count(t, open(t, sqldb.Options{Path: path})); got != kept-1 { // Close is one of them
		t.Errorf("%d rows, but success was told %d times", got, kept-1)
	}
}

// TestR2_ADatabaseThatWasDeletedPromisesNothing: pushes were acknowledged that the next
// start did not find. What was promised before can still be read.
func TestR2_ADatabaseThatWasDeletedPromisesNothing(t *testing.T) {
	for _, suffix := range []string{"", "-wal"} {
		t.Run("file"+suffix, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "t.db")
			db := open(t, sqldb.Options{Path: path})
			mustDo(t, db.Write(t.Context(), insert(0, "promised")))
			if err := os.Remove(path + ".lock"); err != nil { // which is of no account
				t.Fatal(err)
			}
			mustDo(t, db.Write(t.Context(), insert(1, "promised")))
			if err := os.Remove(path + suffix); err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				if err := db.Write(t.Context(), insert(2+i, "lost")); err == nil {
					t.Error("a write to a file without a name is promised")
				}
			}
			if err := db.Durable(t.Context(), db.Seen()); err == nil {
				t.Error("what a reader sees of it is promised")
			}
			if n := count(t, db); n < 2 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

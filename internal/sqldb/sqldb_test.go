package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

func migrations(more ...string) fs.FS {
	m := fstest.MapFS{"00001_init.sql": {Data: []byte("-- +goose Up\nCREATE TABLE clock (seen INTEGER NOT NULL);\nINSERT INTO clock VALUES (0);\nCREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT);\n")}}
	for i, sql := range more {
		m[fmt.Sprintf("%05d_more.sql", i+2)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + sql + "\n")}
	}
	return m
}

func open(t *testing.T, o sqldb.Options) *sqldb.DB {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "t.db")
	}
	if o.Migrations == nil {
		o.Migrations = migrations()
	}
	db, err := sqldb.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func insert(a int, b string) func(*sqldb.Tx) error {
	return func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t (a, b) VALUES (?, ?)", a, b)
		return err
	}
}

func count(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	if err := db.Read(context.Background(), func(tx *sqldb.Tx) error { return tx.Row("SELECT count(*) FROM t").Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWrite_FailsAloneInAGroup(t *testing.T) {
	db := open(t, sqldb.Options{})
	ctx := context.Background()
	refused := errors.New("refused")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := db.Write(ctx, func(tx *sqldb.Tx) error {
				if err := insert(i, "x")(tx); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return refused
				case 2:
					panic("in the middle")
				case 3:
					return insert(i, "twice")(tx) // breaks the primary key
				}
				return nil
			})
			if (err == nil) != (i%4 == 0) || i%4 == 1 && !errors.Is(err, refused) {
				t.Errorf("write %d: %v", i, err)
			}
		}()
	}
	wg.Wait()
	if n := count(t, db); n != 50 {
		t.Errorf("%d rows, want the 50 of the writes that succeeded", n)
	}
}

func TestWrite_OnCommitRunsBeforeSuccessIsToldAndNeverForAFailure(t *testing.T) {
	db := open(t, sqldb.Options{})
	ran := false
	err := db.Write(context.Background(), func(tx *sqldb.Tx) error {
		tx.OnCommit(func() { ran = true })
		return insert(1, "x")(tx)
	})
	if err != nil || !ran {
		t.Errorf("success told with err %v, hook ran: %v", err, ran)
	}
	ran = false
	err = db.Write(context.Background(), func(tx *sqldb.Tx) error {
		tx.OnCommit(func() { ran = true })
		return insert(1, "again")(tx)
	})
	if err == nil || ran {
		t.Errorf("failure with err %v, hook ran: %v", err, ran)
	}
}

func TestWrite_ContextEndsTheWaitOnlyBeforeItBegins(t *testing.T) {
	db := open(t, sqldb.Options{})
	inside, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	ctx1, cancel1 := context.WithCancel(context.Background())
	go func() {
		first <- db.Write(ctx1, func(tx *sqldb.Tx) error { close(inside); <-release; return insert(1, "x")(tx) })
	}()
	<-inside
	ctx2, cancel2 := context.WithCancel(context.Background())
	cancel2()
	if err := db.Write(ctx2, insert(2, "never")); !errors.Is(err, context.Canceled) {
		t.Errorf("a write that was given up: %v", err)
	}
	cancel1() // too late: it runs, and its outcome is told
	close(release)
	if err := <-first; err != nil {
		t.Errorf("a write that had begun: %v", err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestRead_CannotWriteAndSnapshotSeesOneState(t *testing.T) {
	db := open(t, sqldb.Options{})
	ctx := context.Background()
	if err := db.Read(ctx, insert(1, "x")); err == nil {
		t.Error("a reading connection wrote")
	}
	err := db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		var before, after int
		if err := tx.Row("SELECT count(*) FROM t").Scan(&before); err != nil {
			return err
		}
		if err := db.Write(ctx, insert(1, "x")); err != nil { // no reader is in its way
			return err
		}
		if err := tx.Row("SELECT count(*) FROM t").Scan(&after); err != nil {
			return err
		}
		if before != after {
			t.Errorf("a snapshot saw %d rows, then %d", before, after)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMaintain_GoesOnUnderConstantLoad(t *testing.T) {
	db := open(t, sqldb.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for k := i; ctx.Err() == nil; k += 8 {
				_ = db.Write(ctx, insert(k, "load")) // ends with the context
			}
		}()
	}
	for i := range 50 {
		if err := db.Maintain(context.Background(), insert(-1-i, "maintenance")); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}

func TestRelieve_UsesTheReserveOfAFullDisk(t *testing.T) {
	var db *sqldb.DB
	released := 0
	limit := func(pages int) {
		t.Helper()
		if err := db.Maintain(context.Background(), func(tx *sqldb.Tx) error {
			var n int
			return tx.Row(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(&n)
		}); err != nil {
			t.Fatal(err)
		}
	}
	db = open(t, sqldb.Options{Release: func() bool { released++; limit(1 << 20); return true }})
	limit(1) // as many as there are: the next page finds the disk full
	big := strings.Repeat("x", 1<<16)
	if err := db.Write(context.Background(), insert(1, big)); !sqldb.IsFull(err) || released != 0 {
		t.Fatalf("a write on a full disk: %v, released %d times", err, released)
	}
	if err := db.Relieve(context.Background(), insert(2, big)); err != nil || released != 1 {
		t.Errorf("a deletion on a full disk: %v, released %d times", err, released)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want that of the deletion", n)
	}
}

func TestR7_ADeletionUsesTheReserveThatAnotherHasReleased(t *testing.T) {
	var db *sqldb.DB
	limit := func(pages int) {
		if err := db.Maintain(context.Background(), func(tx *sqldb.Tx) error {
			var n int
			return tx.Row(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(&n)
		}); err != nil {
			t.Error(err)
		}
	}
	// Of two that found the disk full, the second finds the reserve gone.
	db = open(t, sqldb.Options{Release: func() bool { limit(1 << 20); return false }})
	limit(1)
	if err := db.Relieve(context.Background(), insert(1, strings.Repeat("x", 1<<16))); err != nil {
		t.Errorf("a deletion after the reserve was released by another: %v", err)
	}
}

func TestClose_CommitsWhatWaitsAndRefusesWhatComes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Path: path})
	var wg sync.WaitGroup
	told := make([]error, 100)
	for i := range told {
		wg.Add(1)
		go func() { defer wg.Done(); told[i] = db.Write(context.Background(), insert(i, "x")) }()
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := db.Write(context.Background(), insert(1000, "late")); !errors.Is(err, sqldb.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
	n := 0
	for _, err := range told {
		if err == nil {
			n++
		}
	}
	if got := count(t, open(t, sqldb.Options{Path: path})); got != n {
		t.Errorf("%d rows, but success was told %d times", got, n)
	}
}

func TestOpen_RefusesADatabaseOfANewerProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db := open(t, sqldb.Options{Path: path, Migrations: migrations("CREATE TABLE u (a INTEGER);")})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := sqldb.Open(context.Background(), sqldb.Options{Path: path, Migrations: migrations()})
	if err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("open with an older program: %v", err)
	}
}

func TestR11_ClockIsNotLedAstray(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	wall := time.Now().UnixMilli()
	db := open(t, sqldb.Options{Path: path})
	if d := db.Now() - wall; d < 0 || d > time.Minute.Milliseconds() {
		t.Errorf("a new clock is %d ms off", d)
	}
	// The database has seen a time hours ahead: the machine's clock was set back
	// while the server was down.
	const ahead = 5 * 3600 * 1000
	if err := db.Write(context.Background(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE clock SET seen = ?", wall+ahead)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, sqldb.Options{Path: path})
	if db.Now() < wall+ahead {
		t.Errorf("the clock went back by %d ms", wall+ahead-db.Now())
	}
	before := db.Now()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db = open(t, sqldb.Options{Path: path}); db.Now() < before {
		t.Errorf("the clock went back over a restart by %d ms", before-db.Now())
	}
}

// shift changes the latest time that a closed database has seen.
func shift(t *testing.T, path string, d time.Duration) {
	t.Helper()
	db := open(t, sqldb.Options{Path: path, Now: func() int64 { return 1 }})
	if err := db.Write(context.Background(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE clock SET seen = seen + ?", d.Milliseconds())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestR14_JumpOfTheClockOverAStartIsNotBelieved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	const day = 24 * time.Hour
	start := func(jumpMax time.Duration) (now, behind int64) {
		t.Helper()
		db := open(t, sqldb.Options{Path: path, JumpMax: jumpMax.Milliseconds()})
		now, behind = db.Now(), db.Behind()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return now, behind
	}
	near := func(got, want int64, what string) {
		t.Helper()
		if d := got - want; d < 0 || d > time.Hour.Milliseconds() { // no test takes an hour
			t.Errorf("%s: the clock is %d ms off", what, d)
		}
	}
	first, behind := start(7 * day)
	if behind != 0 {
		t.Errorf("a new database is %d ms behind", behind)
	}
	shift(t, path, -6*day)
	now, behind := start(7 * day)
	near(now, first, "six days later")
	if behind != 0 {
		t.Errorf("%d ms behind after six days", behind)
	}
	shift(t, path, -1000*day)
	for range 2 { // and it stays that way over restarts
		now, behind = start(7 * day)
		near(now, first-(1000*day).Milliseconds(), "1000 days ahead")
		near(behind, (1000*day - 30*time.Minute).Milliseconds(), "how far behind it is")
	}
	// A clock that is set right is followed again, and so is one that is to be.
	now, behind = start(2000 * day)
	near(now, first, "within the limit again")
	if behind != 0 {
		t.Errorf("%d ms behind a clock that is believed", behind)
	}
	shift(t, path, -1000*day)
	if now, behind = start(0); behind != 0 {
		t.Errorf("%d ms behind a clock that is to be believed", behind)
	}
	near(now, first, "any jump is to be believed")
}

func BenchmarkWrite_Parallel16(b *testing.B) {
	db, err := sqldb.Open(context.Background(), sqldb.Options{Path: filepath.Join(b.TempDir(), "t.db"), Migrations: migrations()})
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := db.Write(context.Background(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec("INSERT INTO t (b) VALUES ('x')")
				return err
			}); err != nil {
				b.Error(err)
			}
		}
	})
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}

func TestR15_ADatabaseHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "t.db")
	first := open(t, sqldb.Options{Path: path, Owner: "the first"})
	if err := first.Write(t.Context(), insert(1, "a")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link} {
		_, err := sqldb.Open(t.Context(), sqldb.Options{Path: p, Migrations: migrations(), Owner: "the second"})
		if !errors.Is(err, disk.ErrInUse) || !strings.Contains(err.Error(), "the first") {
			t.Fatalf("%s: error %v, want ErrInUse that names the first", p, err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// The log is found beside the real file: through the link nothing is lost.
	second := open(t, sqldb.Options{Path: link, Owner: "the second"})
	if n := count(t, second); n != 1 {
		t.Errorf("%d rows through the link, want 1", n)
	}
}

// TestR11_TheClockIsSavedWithTheFirstCommit reads what a start after a kill
// would find: the ticker that saves the clock has not fired yet.
func TestR11_TheClockIsSavedWithTheFirstCommit(t *testing.T) {
	for name, first := range map[string]func(*sqldb.DB) error{
		"a write": func(db *sqldb.DB) error { return db.Write(t.Context(), insert(1, "a")) },
		"a note that a sync makes durable": func(db *sqldb.DB) error {
			return errors.Join(db.MaintainNote(t.Context(), insert(1, "a")), db.Sync(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := time.Now().UnixMilli()
			db := open(t, sqldb.Options{})
			if err := first(db); err != nil {
				t.Fatal(err)
			}
			if seen := seen(t, db); seen < before {
				t.Errorf("a start after a kill finds %d as the latest time seen, want at least %d", seen, before)
			}
		})
	}
}

func seen(t *testing.T, db *sqldb.DB) (ms int64) {
	t.Helper()
	if err := db.Read(t.Context(), func(tx *sqldb.Tx) error { return tx.Row("SELECT seen FROM clock").Scan(&ms) }); err != nil {
		t.Fatal(err)
	}
	return ms
}

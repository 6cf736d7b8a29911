package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/sqldb"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// smallDisk is a file system of size bytes that ends with the test.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatalf("mount a small disk on %s: %v (run the tests as root, or under `unshare --user --map-root-user --mount`)", dir, err)
	}
	t.Cleanup(func() {
		// Lazily: what a failed test left open must not keep the mount.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// killed leaves the files of a database as a server that was killed does: with
// a write-ahead log of walBytes or more, of which only the beginning is in use.
func killed(t *testing.T, to string, walBytes int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "t.db")
	if err := open(t, sqldb.Options{Path: path}).Close(); err != nil {
		t.Fatal(err)
	}
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=wal_autocheckpoint(0)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }() // it was copied before
	pool.SetMaxOpenConns(1)
	for _, q := range []string{
		fmt.Sprintf("INSERT INTO t VALUES (1, zeroblob(%d))", walBytes),
		"UPDATE t SET b = ''",
		"PRAGMA wal_checkpoint(RESTART)",
		"INSERT INTO t VALUES (2, 'x')",
	} {
		if _, err := pool.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	for _, suffix := range []string{"", "-wal"} {
		p, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(to+suffix, p, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// fill takes all room that is left in a directory.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for part := make([]byte, 4096); err == nil; {
		_, err = f.Write(part)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A server must start to free any room.
func TestR7_AnOpenOnAFullDiskUsesTheReserve(t *testing.T) {
	dir := smallDisk(t, 16<<20)
	path, reserve := filepath.Join(dir, "t.db"), filepath.Join(dir, "reserve")
	if err := os.WriteFile(reserve, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	o := sqldb.Options{Path: path, Migrations: migrations()}
	if db, err := sqldb.Open(t.Context(), o); err == nil {
		t.Error("a full disk has room for a database")
		_ = db.Close()
	}
	o.Release = func() bool { return false }
	if db, err := sqldb.Open(t.Context(), o); err == nil {
		t.Error("a full disk without a reserve has room for a database")
		_ = db.Close()
	}
	released := 0
	o.Release = func() bool { released++; return os.Remove(reserve) == nil }
	db := open(t, o)
	if err := db.Write(t.Context(), insert(1, "x")); err != nil || released != 1 {
		t.Errorf("a write after the start: %v, released %d times", err, released)
	}
}

// A log that a killed server has left takes no room when it is written again,
// so what finds the disk full is its index in shared memory. SQLite calls that
// an I/O error.
func TestR7_ALogWhoseIndexFindsNoRoomUsesTheReserve(t *testing.T) {
	dir := smallDisk(t, 96<<20)
	path, reserve := filepath.Join(dir, "t.db"), filepath.Join(dir, "reserve")
	killed(t, path, 24<<20)
	if err := os.WriteFile(reserve, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	released := 0
	db := open(t, sqldb.Options{Path: path, Release: func() bool { released++; return os.Remove(reserve) == nil }})
	fill(t, dir)
	big := strings.Repeat("x", 18<<20) // more pages than the first part of the index has
	if err := db.Write(context.Background(), insert(10, big)); !sqldb.IsFull(err) || released != 0 {
		t.Fatalf("a write on a full disk: %v, released %d times", err, released)
	}
	if err := db.Relieve(context.Background(), insert(11, big)); err != nil || released != 1 {
		t.Errorf("a deletion on a full disk: %v, released %d times", err, released)
	}
	if n := count(t, db); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}

// TestR7_AnOpenThatFailsLeavesNoFileOpen: to close the log's index later would take the locks
// of the next opening off it.
func TestR7_AnOpenThatFailsLeavesNoFileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	disk := sqldbtest.NewDisk(t)
	disk.Break(func(query string) error {
		if query != "SELECT seen FROM clock" {
			return nil
		}
		return os.Remove(path + "-wal")
	})
	if _, err := sqldb.Open(t.Context(), sqldb.Options{Path: path, Migrations: migrations(), Driver: disk.Driver()}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a database whose log has gone is opened: %v", err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	mustDo(t, err)
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, path) {
			t.Errorf("%s is still open", to)
		}
	}
}

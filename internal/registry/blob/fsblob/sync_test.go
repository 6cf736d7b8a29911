package fsblob

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
)

// openSync opens a store whose fsyncs go through fsync.
func openSync(t testing.TB, fsync func(*os.File) error) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), Options{Reserve: -1, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	s.syncFile = fsync
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var errIO = errors.New("input/output error")

// recorder counts fsyncs by kind and fails the ones it is told to.
type recorder struct {
	files, dirs, root atomic.Int64 // dirs are shards, root is their directory
	failFile, failDir atomic.Bool
}

func (r *recorder) fsync(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		if filepath.Base(f.Name()) == "blobs" {
			r.root.Add(1)
		} else {
			r.dirs.Add(1)
		}
		if r.failDir.Load() {
			return errIO
		}
		return f.Sync()
	}
	r.files.Add(1)
	if r.failFile.Load() {
		return errIO
	}
	return f.Sync()
}

func TestCommitSyncsTheFileAndOnceItsName(t *testing.T) {
	var r recorder
	s := openSync(t, r.fsync)
	for i, want := range []struct{ files, dirs, root int64 }{{1, 1, 1}, {2, 1, 1}, {3, 1, 1}} {
		if err := blobtest.Append(s, "blobs/ab/x", int64(i), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if r.files.Load() != want.files || r.dirs.Load() != want.dirs || r.root.Load() != want.root {
			t.Fatalf("after commit %d: %d fsyncs of the file, %d of its directory, %d of the one above; want %+v",
				i+1, r.files.Load(), r.dirs.Load(), r.root.Load(), want)
		}
	}
	if err := blobtest.Append(s, "blobs/ab/y", 0, nil); err != nil {
		t.Fatal(err)
	}
	if r.dirs.Load() != 2 {
		t.Fatalf("a new name in a directory that was synced before: %d fsyncs of it, want 2", r.dirs.Load())
	}
	if r.root.Load() != 1 {
		t.Fatalf("no new shard: %d fsyncs of their directory, want 1", r.root.Load())
	}
	if err := blobtest.Append(s, "blobs/cd/x", 0, nil); err != nil {
		t.Fatal(err)
	}
	if r.dirs.Load() != 3 || r.root.Load() != 2 {
		t.Fatalf("a new shard: %d fsyncs of shards, want 3; %d of their directory, want 2", r.dirs.Load(), r.root.Load())
	}
}

func TestCommitSyncsAShardThatADeadWriterCreated(t *testing.T) {
	var r recorder
	s := openSync(t, r.fsync)
	for _, shard := range []string{"ab", "cd"} { // as an earlier process did
		if err := os.Mkdir(filepath.Join(s.dir, "blobs", shard), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.failDir.Store(true)
	if err := blobtest.Append(s, "blobs/ab/x", 0, nil); !errors.Is(err, errIO) {
		t.Fatalf("the fsync failed: %v", err)
	}
	r.failDir.Store(false)
	for i, key := range []string{"blobs/ab/x", "blobs/ab/y", "blobs/cd/x"} {
		if err := blobtest.Append(s, key, 0, nil); err != nil {
			t.Fatal(err)
		}
		if r.root.Load() != 1 {
			t.Fatalf("after commit %d: %d fsyncs of the directory of shards, whose names may not be on disk; want 1", i+1, r.root.Load())
		}
	}
}

func TestCommitSyncsAShardThatAnotherWriterIsMaking(t *testing.T) {
	var r recorder
	s := openSync(t, r.fsync)
	if err := blobtest.Append(s, "blobs/ab/x", 0, nil); err != nil {
		t.Fatal(err)
	}
	made, found := make(chan struct{}), make(chan error, 1)
	go func() {
		<-made
		_, err := os.Stat(filepath.Join(s.dir, "blobs/cd")) // it is there, but not counted
		if err == nil {
			err = blobtest.Append(s, "blobs/cd/x", 0, nil)
		}
		found <- err
	}()
	err := s.root.create(func() error {
		err := os.Mkdir(filepath.Join(s.dir, "blobs/cd"), 0o700)
		close(made)
		for err == nil { // until the other has its file
			if _, serr := os.Stat(filepath.Join(s.dir, "blobs/cd/x")); serr == nil {
				return nil
			}
			select {
			case err = <-found:
				return errors.Join(errors.New("the other wrote nothing"), err)
			default:
				runtime.Gosched()
			}
		}
		return err
	})
	if err := errors.Join(err, <-found); err != nil {
		t.Fatal(err)
	}
	if r.root.Load() != 2 {
		t.Fatalf("%d fsyncs of the directory of shards, want 2: one covers the shard that another writer made", r.root.Load())
	}
}

func TestOpenSyncsTheRootUntilAShardShowsThatItDid(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for i, want := range []int64{2, 2, 0} { // the directory and its parent
		var r recorder
		s := &Store{dir: dir, syncFile: r.fsync}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.prepare(); err != nil {
			t.Fatal(err)
		}
		if r.dirs.Load() != want {
			t.Errorf("open %d: %d fsyncs of directories, want %d", i+1, r.dirs.Load(), want)
		}
		if i == 1 {
			if err := blobtest.Append(s, "blobs/ab/x", 0, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCommitSyncsANameThatADeadWriterCreated(t *testing.T) {
	var r recorder
	s := openSync(t, r.fsync)
	path := filepath.Join(s.dir, "blobs/ab/x")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil { // as an earlier process did
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("0123"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := blobtest.Append(s, "blobs/ab/x", 4, nil); err != nil {
		t.Fatal(err)
	}
	if r.dirs.Load() != 1 {
		t.Fatalf("%d fsyncs of a directory whose names may not be on disk", r.dirs.Load())
	}
}

func TestCommitFailsWhenAnFsyncFails(t *testing.T) {
	var r recorder
	s := openSync(t, r.fsync)
	r.failFile.Store(true)
	if err := blobtest.Append(s, "blobs/ab/x", 0, []byte("x")); !errors.Is(err, errIO) {
		t.Fatalf("the file's fsync failed: %v", err)
	}
	r.failFile.Store(false)
	r.failDir.Store(true)
	for range 2 { // the failure of one must not count as done for the next
		if err := blobtest.Append(s, "blobs/ab/x", 0, []byte("x")); !errors.Is(err, errIO) {
			t.Fatalf("the directory's fsync failed: %v", err)
		}
	}
	if err := blobtest.Append(s, "blobs/ab/x", 1, nil); !errors.Is(err, errIO) {
		t.Fatalf("the directory's fsync failed, going on: %v", err)
	}
	r.failDir.Store(false)
	if err := blobtest.Append(s, "blobs/ab/x", 1, nil); err != nil {
		t.Fatal(err)
	}
}

func TestCommitAfterAFailedFsyncCannotSucceedLater(t *testing.T) {
	var r recorder
	s := openSync(t, r.fsync)
	r.failFile.Store(true)
	a, err := s.Append(t.Context(), "blobs/ab/x", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(); !errors.Is(err, errIO) {
		t.Fatal(err)
	}
	// The kernel has dropped the pages it could not write: a second fsync would
	// succeed and mean nothing.
	r.failFile.Store(false)
	if err := a.Commit(); err == nil {
		t.Fatal("commit after a failed commit succeeded")
	}
}

// TestR7_AFailedDirectorySyncIsNotTakenForDone: a name counts as durable once an fsync
// that covers it has succeeded.
func TestR7_AFailedDirectorySyncIsNotTakenForDone(t *testing.T) {
	var sh names
	name := sh.count(true)
	for _, want := range []error{errIO, errIO, nil} {
		called := false
		err := sh.sync(name, func() error { called = true; return want })
		if !called || !errors.Is(err, want) {
			t.Fatalf("fsync called: %v, error %v, want %v", called, err, want)
		}
	}
	if err := sh.sync(name, func() error { return errIO }); err != nil {
		t.Errorf("a name that is durable: %v", err)
	}
}

// TestDiskFull_AnExceededQuotaIsAFullDisk: uploads stop, and deletions may use the reserve.
func TestDiskFull_AnExceededQuotaIsAFullDisk(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		s := openSync(t, func(f *os.File) error { return &os.PathError{Op: "sync", Path: f.Name(), Err: errno} })
		if err := blobtest.Append(s, "blobs/ab/x", 0, []byte("x")); !errors.Is(err, blob.ErrFull) || !errors.Is(err, errno) {
			t.Errorf("commit with %v: %v", errno, err)
		}
	}
}

func TestDirectorySyncsAreShared(t *testing.T) {
	var sh names
	const writers = 32
	started, release := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int64
	fsync := func() error {
		if syncs.Add(1) == 1 {
			close(started)
			<-release
		}
		return nil
	}
	var wg, counted sync.WaitGroup
	first := sh.count(true)
	wg.Go(func() { _ = sh.sync(first, fsync) })
	<-started
	counted.Add(writers)
	for range writers {
		wg.Go(func() {
			name := sh.count(true)
			counted.Done()
			if err := sh.sync(name, fsync); err != nil {
				t.Error(err)
			}
		})
	}
	counted.Wait() // all names are there while the first fsync runs, which may not cover them
	close(release)
	wg.Wait()
	if n := syncs.Load(); n != 2 {
		t.Fatalf("%d fsyncs for one name and then %d at once, want 2", n, writers)
	}
}

package fsblob_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// fillDisk takes all but about left bytes of the disk that dir is on.
func fillDisk(t *testing.T, s *fsblob.Store, left int64) (path string) {
	t.Helper()
	sp, err := s.Space()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(s.Dir(), "filler")
	if err := os.WriteFile(path, make([]byte, max(0, sp.Free-left)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDiskFull_UploadsStopWhileTheDatabaseStillHasRoom(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 32*mib), fsblob.Options{Reserve: 1 * mib, MinFree: 2 * mib})
	blobtest.Put(t, s, blobtest.Key(0), blobtest.Bytes(0, 100))

	a, err := s.Append(t.Context(), blobtest.Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	part := blobtest.Bytes(1, 64*kib)
	written := 0
	for written < 64*mib && err == nil {
		var n int
		n, err = a.Write(part)
		written += n
	}
	if !errors.Is(err, blob.ErrFull) {
		t.Fatalf("write of %d bytes to a disk of 32 MiB: %v", written, err)
	}
	if _, err := a.Write(part); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("write after a failed write: %v", err)
	}
	if err := a.Commit(); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("commit after a failed write: %v", err)
	}
	if sp, err := s.Space(); err != nil || sp.Reserve != 1*mib || sp.Free < 2*mib || written < 20*mib {
		t.Fatalf("after %d bytes: %+v, %v", written, sp, err)
	}
	if got, err := blobtest.Get(s, blobtest.Key(0)); err != nil || !bytes.Equal(got, blobtest.Bytes(0, 100)) {
		t.Fatalf("read on a full disk: %v", err)
	}
	if freed, err := s.Delete(t.Context(), blobtest.Key(1)); err != nil || freed != int64(written) {
		t.Fatalf("delete on a full disk: freed %d of %d, %v", freed, written, err)
	}
	blobtest.Put(t, s, blobtest.Key(2), part)
}

func TestDiskFull_AppendIsRefusedBelowMinFreeAndCutsAllTheSame(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 16*mib), fsblob.Options{Reserve: 1 * mib, MinFree: 2 * mib})
	blobtest.Put(t, s, blobtest.Key(1), blobtest.Bytes(1, 5*mib))
	filler := fillDisk(t, s, 1*mib)
	if _, err := s.Append(t.Context(), blobtest.Key(2), 0); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("append with 1 MiB free, 2 MiB to be kept: %v", err)
	}
	if _, err := blobtest.Get(s, blobtest.Key(2)); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("a refused append left something: %v", err)
	}
	free, _ := s.Space()
	if _, err := s.Append(t.Context(), blobtest.Key(1), 4*mib); err == nil {
		// A mebibyte came free by the cut, which may be enough to go on.
		t.Log("append went on after the cut")
	} else if !errors.Is(err, blob.ErrFull) {
		t.Fatal(err)
	}
	after, _ := s.Space()
	if got := after.Free - free.Free; got < 1*mib {
		t.Fatalf("cutting a mebibyte off gave %d bytes back", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, s, blobtest.Key(2), nil)
}

// TestR17_AnAppendThatGoesOnIsRefusedBeforeItsBytes, as one that begins is.
func TestR17_AnAppendThatGoesOnIsRefusedBeforeItsBytes(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 16*mib), fsblob.Options{Reserve: 1 * mib, MinFree: 2 * mib})
	blobtest.Put(t, s, blobtest.Key(1), blobtest.Bytes(1, 100))
	fillDisk(t, s, 1*mib)
	for _, offset := range []int64{50, 0} {
		if _, err := s.Append(t.Context(), blobtest.Key(1), offset); !errors.Is(err, blob.ErrFull) {
			t.Errorf("append at %d with 1 MiB free, 2 MiB to be kept: %v", offset, err)
		}
	}
}

func TestDiskFull_AWriteThatTheDiskRefusesIsErrFull(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 4*mib), fsblob.Options{Reserve: -1, MinFree: -1})
	err := blobtest.Append(s, blobtest.Key(1), 0, blobtest.Bytes(1, 6*mib))
	if !errors.Is(err, blob.ErrFull) {
		t.Fatalf("6 MiB on a disk of 4 MiB: %v", err)
	}
}

func TestDiskFull_AnAppenderThatFailedStaysFailed(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 4*mib), fsblob.Options{Reserve: -1, MinFree: -1})
	a, err := s.Append(t.Context(), blobtest.Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(make([]byte, 100)); err != nil { // there is room for more, at the last look
		t.Fatal(err)
	}
	filler := fillDisk(t, s, 0)
	n, err := a.Write(make([]byte, 100*kib))
	if !errors.Is(err, blob.ErrFull) || !errors.Is(err, syscall.ENOSPC) || n >= 100*kib {
		t.Fatalf("wrote %d bytes to a full disk: %v", n, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	// Bytes are missing in the middle by now.
	if _, err := a.Write(make([]byte, 10)); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("write after a failed write: %v", err)
	}
	if err := a.Commit(); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("commit after a failed write: %v", err)
	}
	if err := blobtest.Append(s, blobtest.Key(1), 0, []byte("anew")); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFull_AppendToNothingIsStillErrNotFound(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 16*mib), fsblob.Options{Reserve: 1 * mib, MinFree: 2 * mib})
	fillDisk(t, s, 1*mib)
	if _, err := s.Append(t.Context(), blobtest.Key(1), 5); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("append at 5 of nothing on a full disk: %v", err)
	}
}

func TestDiskFull_ManyWritersTogetherLeaveTheDatabaseItsRoom(t *testing.T) {
	const writers = 16
	s := open(t, blobtest.SmallDisk(t, 96*mib), fsblob.Options{Reserve: 1 * mib, MinFree: 32 * mib})
	large := make([]byte, 64*mib) // more than there is room for, should one writer get it all
	var wg sync.WaitGroup
	for i := range writers {
		a, err := s.Append(t.Context(), blobtest.Key(i), 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := a.Write(large); !errors.Is(err, blob.ErrFull) {
				t.Errorf("writer %d: %v", i, err)
			}
			_ = a.Close() // nothing of it counts
		})
	}
	wg.Wait()
	if sp, err := s.Space(); err != nil || sp.Free < (32-writers)*mib {
		t.Fatalf("%+v, %v", sp, err)
	}
}

func TestReserve_IsRealDiskAndComesBack(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 16*mib), fsblob.Options{Reserve: 4 * mib, MinFree: 1 * mib})
	before, err := s.Space()
	if err != nil || before.Reserve != 4*mib || before.Free > 12*mib {
		t.Fatalf("after open: %+v, %v", before, err)
	}
	filler := fillDisk(t, s, 0)
	if !s.Release() {
		t.Fatal("nothing was released")
	}
	if sp, _ := s.Space(); sp.Free < 4*mib || sp.Reserve != 0 {
		t.Fatalf("after release: %+v", sp)
	}
	if s.Release() {
		t.Fatal("the reserve was released twice")
	}
	if err := s.Replenish(); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("replenish without room for what must stay free: %v", err)
	}
	if _, err := s.Append(t.Context(), blobtest.Key(1), 0); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("append while the reserve is in use: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Replenish(); err != nil {
		t.Fatal(err)
	}
	if sp, _ := s.Space(); sp.Reserve != 4*mib || sp.Free != before.Free {
		t.Fatalf("after replenish: %+v, before all: %+v", sp, before)
	}
	blobtest.Put(t, s, blobtest.Key(1), []byte("x"))
	if err := s.Replenish(); err != nil {
		t.Fatalf("replenish with nothing to do: %v", err)
	}
}

func TestR7_AnUploadPutsTheReserveBack(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 16*mib), fsblob.Options{Reserve: 4 * mib, MinFree: 1 * mib})
	under, err := s.Append(t.Context(), blobtest.Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	filler := fillDisk(t, s, 0)
	if !s.Release() {
		t.Fatal("nothing was released")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	// No background loop and no restart comes to help: the next upload, and one
	// that was under way, find the room.
	if _, err := under.Write(blobtest.Bytes(1, 2*mib)); err != nil {
		t.Fatalf("an upload under way, with room for the reserve and for itself: %v", err)
	}
	if err := under.Commit(); err != nil {
		t.Fatal(err)
	}
	if sp, err := s.Space(); err != nil || sp.Reserve != 4*mib {
		t.Fatalf("after an upload: %+v, %v; want the reserve back", sp, err)
	}
	if !s.Release() {
		t.Fatal("nothing was released")
	}
	blobtest.Put(t, s, blobtest.Key(2), []byte("x"))
	if sp, err := s.Space(); err != nil || sp.Reserve != 4*mib {
		t.Fatalf("after a new upload: %+v, %v; want the reserve back", sp, err)
	}
}

func TestReserve_ServerStartsOnAFullDisk(t *testing.T) {
	dir := blobtest.SmallDisk(t, 16*mib)
	o := fsblob.Options{Reserve: 4 * mib, MinFree: 1 * mib}
	s := open(t, dir, o)
	blobtest.Put(t, s, blobtest.Key(1), blobtest.Bytes(1, 6*mib))
	if !s.Release() {
		t.Fatal("nothing was released")
	}
	fillDisk(t, s, 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, o)
	if _, err := s.Append(t.Context(), blobtest.Key(2), 0); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("append on a full disk: %v", err)
	}
	if _, err := blobtest.Get(s, blobtest.Key(1)); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Delete(t.Context(), blobtest.Key(1)); freed != 6*mib || err != nil {
		t.Fatalf("delete: freed %d, %v", freed, err)
	}
	if err := s.Replenish(); err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, s, blobtest.Key(2), []byte("x"))
}

func TestReserve_HalfMadeOrSparseIsMadeAnew(t *testing.T) {
	for _, size := range []int64{0, 100, 1 * mib, 3 * mib} {
		dir := blobtest.SmallDisk(t, 16*mib)
		f, err := os.Create(filepath.Join(dir, "reserve"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil { // sparse: no disk behind it
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, fsblob.Options{Reserve: 1 * mib})
		fi, err := os.Stat(filepath.Join(dir, "reserve"))
		if err != nil {
			t.Fatal(err)
		}
		if blocks := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != 1*mib || blocks < 1*mib {
			t.Errorf("a reserve of %d bytes found at start became %d bytes on %d bytes of disk", size, fi.Size(), blocks)
		}
		blobtest.Put(t, s, blobtest.Key(1), nil)
	}
}

// TestReserve_FollowsItsSetting: a reserve of another size is made anew.
func TestReserve_FollowsItsSetting(t *testing.T) {
	dir := blobtest.SmallDisk(t, 16*mib)
	for _, size := range []int64{2 * mib, 1 * mib, 3 * mib} {
		s := open(t, dir, fsblob.Options{Reserve: size})
		if fi, err := os.Stat(filepath.Join(dir, "reserve")); err != nil || fi.Size() != size {
			t.Errorf("the reserve: %v, %v; want %d bytes", fi, err, size)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReserve_DefaultFitsASmallDisk(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 8*mib), fsblob.Options{})
	sp, err := s.Space()
	if err != nil || sp.Reserve != 8*mib/16 || sp.MinFree != 8*mib/50 {
		t.Fatalf("%+v, %v", sp, err)
	}
	blobtest.Put(t, s, blobtest.Key(1), blobtest.Bytes(1, 5*mib))
}

func TestReserve_ErrorsSayWhatIsMissing(t *testing.T) {
	s := open(t, blobtest.SmallDisk(t, 16*mib), fsblob.Options{Reserve: 4 * mib, MinFree: 1 * mib})
	fillDisk(t, s, 100*kib)
	_, err := s.Append(t.Context(), blobtest.Key(1), 0)
	if want := fmt.Sprintf("%d to be kept", 1*mib); err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
		t.Fatalf("%v does not say %q", err, want)
	}
}

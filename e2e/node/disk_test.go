package node

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of a size, and unmounts it with the test.
func smallDisk(t testing.TB, sizeBytes int) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "d-")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("fairway-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", sizeBytes)); err != nil {
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestN5_DiskReallyFull: the cache lives on a small disk that another program
// fills. Pulls go on, what runs stays, and when there is room again the cache
// is a cache again.
func TestN5_DiskReallyFull(t *testing.T) {
	u, c := startUpstream(t), startContainerd(t, "2")
	disk := smallDisk(t, 64*mib)
	a := startAgentIn(t, u, disk, "--runtime", "containerd://"+c.sock, "--quota", "1GiB", "--margin", "4MiB")
	c.mirror(u.host, a.host)
	s := &scene{u, c, a}
	im, ref := u.runnable("lib/busybox:1", 6)
	c.pull(ref)
	c.run(ref)
	a.settled()
	s.flood(func() { a.keeps("the disk is small", im.all()...) })
	if free := freeBytes(t, disk); free < 3*mib {
		t.Errorf("%d bytes are free, the margin is 4 MiB", free)
	}

	// Another program takes everything there is.
	other := filepath.Join(disk, "other")
	fillDisk(t, other)
	for range 3 {
		last, ref := u.filler(10)
		c.pull(ref)
		c.removeImage(ref)
		a.serves(u.repoOf(last), last.layers[0].Digest)
		a.keeps("another program fills the disk", im.all()...)
	}
	a.serves("lib/busybox", im.layers[1].Digest)
	a.restart()
	a.keeps("restarted on a full disk", im.all()...)

	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cache takes something in again", func() (bool, string) {
		last, _ := u.filler(5)
		a.serves(u.repoOf(last), last.layers[0].Digest)
		return len(a.missing(last.layers[0].Digest)) == 0, fmt.Sprint(freeBytes(t, disk), " bytes free")
	})
	a.keeps("the disk has room", im.all()...)
}

func freeBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fillDisk writes until there is no byte left.
func fillDisk(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for size := mib; size >= 1; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// TestN7_CorruptAndTruncatedPieces: what rots on the disk is noticed, fetched
// again, and never served.
func TestN7_CorruptAndTruncatedPieces(t *testing.T) {
	u := startUpstream(t)
	a := startAgent(t, u, "--runtime", "none", "--quota", "200MiB")
	for name, spoil := range map[string]func(path string, size int64) error{
		"a flipped bit at the start":   func(p string, _ int64) error { return flip(p, 100) },
		"a flipped bit in the middle":  func(p string, n int64) error { return flip(p, n/2) },
		"a flipped bit in the end":     func(p string, n int64) error { return flip(p, n-1) },
		"truncated by half":            func(p string, n int64) error { return os.Truncate(p, n/2) },
		"truncated to nothing":         func(p string, _ int64) error { return os.Truncate(p, 0) },
		"a hole":                       func(p string, n int64) error { return hole(p, n) },
		"longer than it should be":     func(p string, n int64) error { return os.Truncate(p, n+5) },
		"gone":                         func(p string, _ int64) error { return os.Remove(p) },
		"without its file of pieces":   func(p string, _ int64) error { return os.Remove(p + ".pieces") },
		"with a torn file of pieces":   func(p string, _ int64) error { return os.Truncate(p+".pieces", 11) },
		"with a flipped bit of pieces": func(p string, _ int64) error { return flip(p+".pieces", 20) },
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/running %v", name, running), func(t *testing.T) {
				a.t = t
				im, _ := u.filler(2)
				l := im.layers[0]
				a.serves(u.repoOf(im), l.Digest)
				a.serves(u.repoOf(im), l.Digest) // now it has been read and checked, too
				a.arrives("fetched", l.Digest)
				if !running {
					a.stop()
				}
				if err := spoil(a.file(l.Digest), l.Size); err != nil {
					t.Fatal(err)
				}
				if !running {
					a.start()
				}
				// The first one may be cut off in the middle, but never be wrong.
				for range 3 {
					resp, got, err := a.get("/v2/" + u.repoOf(im) + "/blobs/" + l.Digest.String())
					if err == nil && resp.StatusCode == 200 && got != l.Digest {
						t.Fatalf("it served %s as %s", got, l.Digest)
					}
				}
				a.serves(u.repoOf(im), l.Digest)
			})
		}
	}
	a.t = t
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	return err
}

// hole punches the middle out of a file.
func hole(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	const keepSize, punchHole = 1, 2
	return syscall.Fallocate(int(f.Fd()), keepSize|punchHole, size/4, size/2)
}

// TestN5_QuotaLoweredAtRunTime: there is suddenly less room, and what runs stays
// although the rest has to go.
func TestN5_QuotaLoweredAtRunTime(t *testing.T) {
	s := newScene(t, "2", "--quota", "100MiB")
	im, ref := s.u.runnable("lib/busybox:1", 6)
	s.c.pull(ref)
	s.c.run(ref)
	s.a.settled()
	s.flood(nil)
	if n := s.a.disk(); n < 60*mib {
		t.Errorf("the cache has %d bytes, it should have all", n)
	}
	s.a.limits("--quota", "20MiB")
	eventually(t, "the cache shrinks", func() (bool, string) {
		n := s.a.disk()
		return n <= 20*mib, fmt.Sprint(n)
	})
	s.a.keeps("less room", im.all()...)
}

package fsblob_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
)

// holdEnv makes the test binary a process that opens the directory named by
// it, says so, and writes to an object until it is killed.
const holdEnv = "FSBLOB_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdEnv); dir != "" {
		if err := hold(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func hold(dir string) error {
	s, err := fsblob.Open(dir, fsblob.Options{Reserve: 1 << 20})
	if err != nil {
		return err
	}
	if err := blobtest.Append(s, blobtest.Key(1), 0, blobtest.Bytes(1, 100_000)); err != nil {
		return err
	}
	a, err := s.Append(context.Background(), blobtest.Key(1), 100_000)
	if err != nil {
		return err
	}
	if _, err := a.Write(blobtest.Bytes(2, 50_000)); err != nil {
		return err
	}
	fmt.Println("holding")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent kills this process or dies itself
	return nil
}

// holder starts a process that has the directory open.
func holder(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "holding\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd
}

func open(t testing.TB, dir string, o fsblob.Options) *fsblob.Store {
	t.Helper()
	s, err := fsblob.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store {
		return open(t, t.TempDir(), fsblob.Options{Reserve: 1 << 20})
	})
}

func TestOpenMakesTheDirectoryForItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := open(t, dir, fsblob.Options{Reserve: 1 << 20})
	if shards, err := filepath.Glob(filepath.Join(dir, "blobs", "??")); err != nil || len(shards) != 0 {
		t.Errorf("%d shards at the first start, which each cost time, want none before they are needed; %v", len(shards), err)
	}
	blobtest.Put(t, s, "blobs/7f/x", []byte("x"))
	for _, d := range []string{dir, filepath.Join(dir, "blobs"), filepath.Join(dir, "blobs", "7f")} {
		if fi, err := os.Stat(d); err != nil || fi.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", d, fi, err)
		}
	}
}

func TestManyWritersMakeOneShardTogether(t *testing.T) {
	const writers = 16
	dir := t.TempDir()
	s := open(t, dir, fsblob.Options{Reserve: 1 << 20})
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if err := blobtest.Append(s, fmt.Sprintf("blobs/ab/%d", i), 0, []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if keys := blobtest.Keys(t, s, ""); len(keys) != writers {
		t.Fatalf("%d objects of %d: %q", len(keys), writers, keys)
	}
}

func TestOpenCompletesAnInterruptedFirstOpen(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "00"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, fsblob.Options{Reserve: 1 << 20})
	blobtest.Put(t, s, "blobs/ff/x", []byte("x"))
}

func TestSecondProcessIsToldWhoHoldsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	first := holder(t, dir)
	_, err := fsblob.Open(dir, fsblob.Options{})
	if !errors.Is(err, disk.ErrInUse) {
		t.Fatalf("open of a directory in use: %v", err)
	}
	for _, part := range []string{dir, "process " + strconv.Itoa(first.Process.Pid), "--data"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestSecondOpenInOneProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, fsblob.Options{Reserve: 1 << 20})
	if _, err := fsblob.Open(dir, fsblob.Options{}); !errors.Is(err, disk.ErrInUse) {
		t.Fatalf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, fsblob.Options{Reserve: 1 << 20})
}

func TestR7_KillLeavesNoLockAndNoCommittedByteIsMissing(t *testing.T) {
	dir := t.TempDir()
	first := holder(t, dir)
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	s := open(t, dir, fsblob.Options{Reserve: 1 << 20})
	if err := blobtest.Append(s, blobtest.Key(1), 100_000, []byte("the end")); err != nil {
		t.Fatal(err)
	}
	got, err := blobtest.Get(s, blobtest.Key(1))
	if want := string(blobtest.Bytes(1, 100_000)) + "the end"; err != nil || string(got) != want {
		t.Fatalf("%d bytes after the kill, want %d, %v", len(got), len(want), err)
	}
}

func TestOpenSaysWhatIsWrongWithTheDirectory(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	blobsFile := filepath.Join(root, "blobsfile")
	shardFile := filepath.Join(root, "shardfile")
	for dir, in := range map[string]string{blobsFile: "blobs", shardFile: "blobs/ab"} {
		path := filepath.Join(dir, in)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), blobsFile, shardFile} {
		_, err := fsblob.Open(dir, fsblob.Options{Reserve: -1})
		if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "there is a file where a directory is needed") {
			t.Errorf("open of %s: %v", dir, err)
		}
	}
}

func TestOpenSaysWhoseTheDirectoryIs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root, to become somebody who may not write")
	}
	const nobody = 65534
	root := t.TempDir()
	bin := filepath.Join(t.TempDir(), "hold")
	exe, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(bin), root} {
		for d := path; d != "/" && d != "/tmp"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, foreign := range map[string]string{"all": ".", "unreadable": "blobs", "unwritable": "blobs", "locked": "blobs"} {
		dir := filepath.Join(root, name)
		path := filepath.Join(dir, foreign)
		mode := os.FileMode(0o700)
		if name == "unwritable" || name == "locked" {
			mode = 0o755
		}
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, nobody, nobody), os.MkdirAll(path, 0o700), os.Chmod(path, mode), os.Chown(path, 0, 0)); err != nil {
			t.Fatal(err)
		}
		if name == "locked" { // by a former process: it is not the lock that cannot be made
			lock := filepath.Join(path, "lock")
			if err := errors.Join(os.WriteFile(lock, nil, 0o600), os.Chown(lock, nobody, nobody)); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(bin)
		cmd.Env = append(os.Environ(), holdEnv+"="+dir)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("%s: ran as nobody: %v, %s", name, err, out)
		}
		for _, part := range []string{path, "not writable", "uid 0", "uid 65534"} {
			if !strings.Contains(string(out), part) {
				t.Errorf("%s: %q does not say %q", name, out, part)
			}
		}
		if shards, err := filepath.Glob(filepath.Join(dir, "blobs", "??")); name != "all" && (err != nil || len(shards) > 0) {
			t.Errorf("%s: the refusal came after Open: %v, %v", name, shards, err)
		}
	}
}

func TestWalkPassesOverWhatIsNoObject(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, fsblob.Options{Reserve: 1 << 20})
	blobtest.Put(t, s, "blobs/ab/object", []byte("x"))
	if err := os.Mkdir(filepath.Join(dir, "blobs/ab/directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("object", filepath.Join(dir, "blobs/ab/link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"blobs/ab/.hidden", "blobs/ab/white space", "blobs/stray"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if keys := blobtest.Keys(t, s, ""); !slices.Equal(keys, []string{"blobs/ab/object"}) {
		t.Fatalf("keys %q", keys)
	}
	if _, err := s.Open(t.Context(), "blobs/ab/directory"); err == nil {
		t.Error("a directory was opened as an object")
	}
	if _, err := s.Delete(t.Context(), "blobs/ab/directory"); err == nil || errors.Is(err, blob.ErrNotFound) {
		t.Errorf("delete of a directory: %v", err)
	}
}

func TestReaderIsBackedByAFile(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: 1 << 20})
	blobtest.Put(t, s, blobtest.Key(1), []byte("x"))
	r, err := s.Open(t.Context(), blobtest.Key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	f, ok := r.(interface{ File() *os.File })
	if !ok || f.File() == nil {
		t.Fatal("the reader shows no file: there is no sendfile without")
	}
}

func FuzzKeyStaysInsideTheStore(f *testing.F) {
	for _, key := range []string{"blobs/ab/x", "blobs/ab/../../lock", "blobs/ab/..", "/etc/passwd", "blobs/ab/x/../../../y", "blobs//x", "blobs/ab/\x00", "blobs/0f/0f-1_2.z"} {
		f.Add(key)
	}
	dir := f.TempDir()
	s := open(f, dir, fsblob.Options{Reserve: -1, MinFree: -1})
	f.Fuzz(func(t *testing.T, key string) {
		if err := blobtest.Append(s, key, 0, []byte("x")); err != nil {
			return
		}
		path := filepath.Join(dir, key)
		if filepath.Dir(filepath.Dir(path)) != filepath.Join(dir, "blobs") {
			t.Fatalf("%q leads to %s", key, path)
		}
		if keys := blobtest.Keys(t, s, ""); !slices.Equal(keys, []string{key}) {
			t.Fatalf("%q was written, %q is there", key, keys)
		}
		if _, err := s.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	})
}

func TestR15_TheLockOfFormerVersionsIsHeldToo(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
	f, err := os.Open(filepath.Join(s.Dir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatalf("DIR/lock, which is all that an older version looks at: %v", err)
	}
}

// TestR15_ObjectsThatTwoDirectoriesShareHaveOneOwner: a link leads from both to the
// same objects.
func TestR15_ObjectsThatTwoDirectoriesShareHaveOneOwner(t *testing.T) {
	first := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(first.Dir(), "blobs"), filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	if _, err := fsblob.Open(dir, fsblob.Options{Reserve: -1}); !errors.Is(err, disk.ErrInUse) {
		t.Fatalf("open of a directory with the objects of another one: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, fsblob.Options{Reserve: -1})
}

// TestR9_AWalkPassesOverWhatIsDeletedMeanwhile: that is no failure of the walk.
func TestR9_AWalkPassesOverWhatIsDeletedMeanwhile(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
	for _, key := range []string{"blobs/ab/1", "blobs/ab/2", "blobs/ab/3", "blobs/cd/4"} {
		blobtest.Put(t, s, key, []byte("x"))
	}
	var seen []string
	err := s.Walk(t.Context(), "", func(i blob.Info) error {
		if seen = append(seen, i.Key); len(seen) > 1 {
			return nil
		}
		_, err := s.Delete(t.Context(), "blobs/ab/2") // its name has been read
		return err
	})
	if want := []string{"blobs/ab/1", "blobs/ab/3", "blobs/cd/4"}; err != nil || !slices.Equal(seen, want) {
		t.Errorf("seen %q, %v; want %q", seen, err, want)
	}
}

func TestR16_AKeyHasABound(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
	longest := "blobs/ab/" + strings.Repeat("x", 128)
	blobtest.Put(t, s, longest, nil)
	if err := blobtest.Append(s, longest+"x", 0, nil); err == nil {
		t.Error("a key with an id of 129 characters was taken")
	}
}

// TestR16_WhatIsNoKeyIsNoPath: nothing outside of the store is read, written or removed.
func TestR16_WhatIsNoKeyIsNoPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "store")
	s := open(t, dir, fsblob.Options{Reserve: -1})
	outside := filepath.Join(filepath.Dir(filepath.Dir(dir)), "ab", "1")
	if err := errors.Join(os.MkdirAll(filepath.Dir(outside), 0o700), os.WriteFile(outside, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, s, "blobs/ab/1", nil)
	for _, key := range []string{"", "1", "blobs", "blobs/ab", "blobs/ab/", "../../ab/1", "blobt/ab/1", "blobs/ab.1", "blobs/ab-1/1", "blobs/ag/1", "blobs/ga/1", "blobs/AB/1",
		"blobs/ab/.1", "blobs/ab/..", "blobs/ab/../ab/1", "blobs/ab/1/1", "blobs/ab/1 ", "blobs/ab/\x00", "/blobs/ab/1"} {
		if r, err := s.Open(t.Context(), key); err == nil || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("open %q: %v, %v", key, r, err)
		}
		if _, err := s.Delete(t.Context(), key); err == nil || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("delete %q: %v", key, err)
		}
		if a, err := s.Append(t.Context(), key, 0); err == nil || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("append to %q: %v, %v", key, a, err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// TestReserve_IsFilledByTheFirstUploadWhereOpenLeftIt: until then it is not whole.
func TestReserve_IsFilledByTheFirstUploadWhereOpenLeftIt(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: 1 << 20, FillLater: true})
	if sp, err := s.Space(); err != nil || sp.Reserve != 0 {
		t.Errorf("after open: %+v, %v; want no reserve", sp, err)
	}
	blobtest.Put(t, s, blobtest.Key(1), []byte("x"))
	if sp, err := s.Space(); err != nil || sp.Reserve != 1<<20 {
		t.Errorf("after an upload: %+v, %v; want the reserve", sp, err)
	}
	if fi, err := os.Stat(filepath.Join(s.Dir(), "reserve")); err != nil || fi.Size() != 1<<20 {
		t.Errorf("the reserve: %v, %v", fi, err)
	}
}

// TestR7_ATemporaryFileHasNoName: a crash leaves nothing of it, and it takes no space
// that uploads are refused.
func TestR7_ATemporaryFileHasNoName(t *testing.T) {
	dir := t.TempDir()
	s, err := fsblob.Open(dir, fsblob.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Temp()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("manifest"); err != nil {
		t.Error(err)
	}
	after, err := os.ReadDir(dir)
	if err != nil || len(after) != len(before) {
		t.Errorf("the directory has %d entries, before %d, %v", len(after), len(before), err)
	}
	if err := errors.Join(f.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err = fsblob.Open(dir, fsblob.Options{MinFree: 1 << 60}); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Temp(); !errors.Is(err, blob.ErrFull) {
		t.Errorf("on a full disk: %v, %v", f, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

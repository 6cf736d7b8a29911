package disk_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/disk"
)

func claim(owner string) disk.Claim {
	return disk.Claim{What: "the thing", Owner: owner, Remedy: "use another one"}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}

// wantInUse fails unless err refuses the claim and names the owner.
func wantInUse(t *testing.T, err error, owner string) {
	t.Helper()
	if !errors.Is(err, disk.ErrInUse) {
		t.Fatalf("error %v, want ErrInUse", err)
	}
	for _, want := range []string{fmt.Sprint("process ", os.Getpid()), owner, "use another one"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
}

func TestR15_AFileIsLockedWhateverPathLeadsToIt(t *testing.T) {
	for _, c := range []struct {
		name  string
		alias func(t *testing.T, dir string) (path string)
	}{
		{"the same path", func(_ *testing.T, dir string) string { return filepath.Join(dir, "a", "db") }},
		{"a path with dots", func(_ *testing.T, dir string) string { return dir + "/a/../a/./db" }},
		{"a symbolic link to the file", func(t *testing.T, dir string) string {
			symlink(t, filepath.Join(dir, "a", "db"), filepath.Join(dir, "link"))
			return filepath.Join(dir, "link")
		}},
		{"a relative symbolic link to the file", func(t *testing.T, dir string) string {
			symlink(t, "a/db", filepath.Join(dir, "link"))
			return filepath.Join(dir, "link")
		}},
		{"a symbolic link to its directory", func(t *testing.T, dir string) string {
			symlink(t, filepath.Join(dir, "a"), filepath.Join(dir, "link"))
			return filepath.Join(dir, "link", "db")
		}},
		{"a hard link in another directory", func(t *testing.T, dir string) string {
			if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(filepath.Join(dir, "a", "db"), filepath.Join(dir, "b", "other")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "b", "other")
		}},
		{"a bind mount of the file", func(t *testing.T, dir string) string {
			other := filepath.Join(dir, "b", "db")
			write(t, other)
			if err := unix.Mount(filepath.Join(dir, "a", "db"), other, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(other, unix.MNT_DETACH) })
			return other
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a", "db")
			write(t, path)
			alias := c.alias(t, dir)
			first, realPath, err := disk.LockFile(path, claim("the first"))
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := filepath.EvalSymlinks(path); realPath != want {
				t.Errorf("real path %s, want %s", realPath, want)
			}
			_, _, err = disk.LockFile(alias, claim("the second"))
			if !errors.Is(err, disk.ErrInUse) {
				t.Fatalf("error %v, want ErrInUse", err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			second, _, err := disk.LockFile(alias, claim("the second"))
			if err != nil {
				t.Fatalf("after the first was closed: %v", err)
			}
			if err := second.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestR15_AMissingFileIsLockedThroughADanglingLink(t *testing.T) {
	dir := t.TempDir()
	symlink(t, "db", filepath.Join(dir, "link"))
	l, _, err := disk.LockFile(filepath.Join(dir, "link"), claim("the first"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, _, err = disk.LockFile(filepath.Join(dir, "db"), claim("the second"))
	wantInUse(t, err, "the first")
	symlink(t, "loop", filepath.Join(dir, "loop"))
	if _, _, err := disk.LockFile(filepath.Join(dir, "loop"), claim("")); err == nil {
		t.Error("a link to itself was locked")
	}
}

func TestR15_ADirectoryIsLockedWhateverPathLeadsToIt(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	symlink(t, data, filepath.Join(dir, "link"))
	l, err := disk.LockDir(data, claim("the first"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, err = disk.LockDir(filepath.Join(dir, "link"), claim("the second"))
	wantInUse(t, err, "the first")
}

// The lock file beside another name, and one that replaces a removed one, say
// nothing of the owner. They must not say that the process that is refused is it.
func TestR15_ARefusalNeverNamesTheProcessThatIsRefused(t *testing.T) {
	dir := t.TempDir()
	refused := func(t *testing.T, err error) {
		t.Helper()
		if wantInUse(t, err, ""); strings.Contains(err.Error(), "the second") {
			t.Errorf("%q names the second", err)
		}
	}

	t.Run("a file under another name", func(t *testing.T) {
		path, other := filepath.Join(dir, "a", "db"), filepath.Join(dir, "b", "db")
		write(t, path)
		write(t, other)
		if err := errors.Join(os.Remove(other), os.Link(path, other)); err != nil {
			t.Fatal(err)
		}
		l, _, err := disk.LockFile(path, claim("the first"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		// As SQLite locks its database.
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 1 << 30, Len: 1}); err != nil {
			t.Fatal(err)
		}
		_, _, err = disk.LockFile(other, claim("the second"))
		refused(t, err)
	})

	t.Run("a directory whose lock file was removed", func(t *testing.T) {
		l, err := disk.LockDir(dir, claim("the first"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
			t.Fatal(err)
		}
		_, err = disk.LockDir(dir, claim("the second"))
		refused(t, err)
	})
}

func TestR15_ALockOutlivesItsFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	d, err := disk.LockDir(dir, claim("the first"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	f, _, err := disk.LockFile(path, claim("the first"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, name := range []string{"lock", "db.lock"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := disk.LockDir(dir, claim("the second")); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("directory: error %v, want ErrInUse", err)
	}
	if _, _, err := disk.LockFile(path, claim("the second")); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("file: error %v, want ErrInUse", err)
	}
}

func TestReplace_LeavesTheOldFileWhereItFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"old", "new"} {
		if err := disk.Replace(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != content {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := disk.Replace(filepath.Join(dir, "d"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".*")); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

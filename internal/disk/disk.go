// Package disk owns what Fairway needs from files beyond reading and writing
// them: locks that let one process own a file or a directory, and files that
// are replaced as a whole.
//
// A lock holds for the file itself, not for the path it was given by: a
// symbolic link, a hard link, a bind mount or another way to write the path
// leads to the same lock. The kernel drops it when the process ends, however it
// ends. It does not need what it writes into lock files; that only names the
// owner to whoever is refused.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse is the error of a lock that another process holds.
var ErrInUse = errors.New("in use")

// Claim says who wants to own what. Its texts are for messages.
type Claim struct {
	What   string // is claimed, such as "the database"
	Owner  string // what the owner is, such as "a registry on 127.0.0.1:5000"; may be empty
	Remedy string // what else can be done than to stop the owner
}

// Lock is a file or a directory that this process owns until Close.
type Lock struct {
	held []*os.File
}

// Close gives the lock up.
func (l *Lock) Close() error {
	var err error
	for _, f := range l.held {
		err = errors.Join(err, f.Close())
	}
	l.held = nil
	return err
}

// Deleted reports whether the file or directory that is owned has no name any more:
// what is written to it is gone when this process ends. That of the lock file says nothing.
func (l *Lock) Deleted() bool { return len(l.held) > 1 && Nameless(l.held[len(l.held)-1]) }

// Nameless reports whether no name leads to f any more.
func Nameless(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink == 0
}

// LockDir makes this process the owner of dir, which must exist. It writes the
// file "lock" there. Both that file and the directory are locked: the lock
// outlives the removal of the file.
func LockDir(dir string, c Claim) (*Lock, error) {
	l, err := lockFile(filepath.Join(dir, "lock"), dir, c)
	if err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err == nil {
		l.held = append(l.held, d)
		err = flock(d)
	}
	// Not every file system locks directories. The file is locked in any case.
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(inUse(holderOf(d), dir, c), l.Close())
	}
	l.describe(c.Owner)
	return l, nil
}

// LockFile makes this process the owner of the file at path, which it creates
// if it is missing, and returns the file's real path. It writes the file
// REAL.lock beside it.
//
// A process must not lock one file twice: closing any descriptor of a file
// drops the POSIX locks that the process holds on it, SQLite's among them.
func LockFile(path string, c Claim) (l *Lock, realPath string, err error) {
	if realPath, err = RealPath(path); err != nil {
		return nil, "", err
	}
	if l, err = lockFile(realPath+".lock", realPath, c); err != nil {
		return nil, "", err
	}
	f, err := os.OpenFile(realPath, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("lock %s: %w", c.What, err), l.Close())
	}
	l.held = append(l.held, f)
	// Another name of the same file has another lock file.
	if err := lockInode(f); errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, "", errors.Join(inUse(holderOf(f), realPath, c), l.Close())
	}
	l.describe(c.Owner)
	return l, realPath, nil
}

// lockFile locks the lock file at path. It does not write to it yet.
func lockFile(path, what string, c Claim) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", c.What, err)
	}
	if err := flock(f); err != nil {
		defer func() { _ = f.Close() }() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			b, _ := os.ReadFile(path)
			return nil, inUse(string(b), what, c)
		}
		return nil, fmt.Errorf("lock %s: flock %s: %w; it must be on a file system that has flock", c.What, path, err)
	}
	return &Lock{held: []*os.File{f}}, nil
}

// describe writes into the lock file who holds the lock. Only a process that has
// all of the lock does so: one that is refused must not put its own name there. A full
// disk must not keep the owner from starting: only the text of a refusal depends
// on it.
func (l *Lock) describe(owner string) {
	f := l.held[0]
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(describe(owner)), 0)
	}
}

// describe is what a lock file says of its owner.
func describe(owner string) string {
	s := fmt.Sprint(os.Getpid())
	if host, err := os.Hostname(); err == nil {
		s += " on " + host
	}
	if owner != "" {
		s += " (" + strings.ReplaceAll(owner, "\n", " ") + ")"
	}
	return s + "\n"
}

// inUse is the refusal. The text holder is what describe wrote, or a process id.
func inUse(holder, what string, c Claim) error {
	if holder = strings.TrimSpace(holder); holder != "" {
		holder = "process " + holder
	} else {
		holder = "another process"
	}
	return fmt.Errorf("%s is %w: %s is held by %s; stop that process, or %s", c.What, ErrInUse, what, holder, c.Remedy)
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// linksMax is how many symbolic links RealPath follows, as the kernel does.
const linksMax = 40

// RealPath is path, absolute and without symbolic links. The file need not
// exist, but its directory must; a link to a missing file is followed too.
func RealPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for range linksMax {
		real, err := filepath.EvalSymlinks(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return real, err
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, filepath.Base(path))
		target, err := os.Readlink(path)
		if err != nil {
			return path, nil //nolint:nilerr // it is no link, but a file to be made
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", fmt.Errorf("%s: %w", path, unix.ELOOP)
}

// Replace writes content to path as a whole: after a crash or a loss of power
// at any moment the file has its old content or all of the new one. When it
// returns without an error, the new content is on disk.
func Replace(path string, content []byte, mode fs.FileMode) error {
	return replace(path, content, mode, (*os.File).Sync)
}

func replace(path string, content []byte, mode fs.FileMode, sync func(*os.File) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), sync(f), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", path, err), os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := errors.Join(sync(d), d.Close()); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

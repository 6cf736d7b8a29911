package fsblob

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDir takes the lock that makes this process the only one on dir. The
// kernel drops it when the process ends, however it ends, so the file stays
// and says nothing by being there.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, dirError(dir, err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		defer func() { _ = f.Close() }() // nothing was written
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w; the data directory must be on a file system that has flock", path, err)
		}
		return nil, inUse(dir, path)
	}
	if err := f.Truncate(0); err == nil {
		// A disk that is too full for the pid must still start: only the text of
		// the message above depends on it.
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}

// ErrInUse says that another process has the data directory.
var ErrInUse = errors.New("the data directory is in use")

func inUse(dir, path string) error {
	holder := "another process"
	if b, err := os.ReadFile(path); err == nil {
		if pid := strings.TrimSpace(string(b)); pid != "" {
			holder = "process " + pid
		}
	}
	return fmt.Errorf("%w: %s is held by %s; stop that process, or use another directory (--data)", ErrInUse, dir, holder)
}

// writable returns an error if this process may make nothing in dir.
func writable(dir string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &os.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}

// dirError explains why a data directory cannot be used.
func dirError(dir string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		who := ""
		var st unix.Stat_t
		var at *os.PathError
		if errors.As(err, &at) && unix.Stat(at.Path, &st) == nil || unix.Stat(dir, &st) == nil {
			who = fmt.Sprintf(" (it belongs to uid %d, this process runs as uid %d)", st.Uid, os.Geteuid())
		}
		return fmt.Errorf("data directory %s is not writable%s: give it to the user that runs the server, or use another one (--data): %w", dir, who, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("data directory %s is on a file system that is mounted read-only: %w", dir, err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, os.ErrExist):
		return fmt.Errorf("data directory %s: there is a file where a directory is needed: %w", dir, err)
	}
	return fmt.Errorf("data directory %s: %w", dir, err)
}

package index

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process has the directory.
var ErrInUse = errors.New("the node's data directory is in use")

// LockDir makes the caller the only one on dir until it closes the file. The
// kernel drops the lock when the process ends, however it ends.
func LockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the node's data directory: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("%w: %s is held by %s; stop that agent, or use another directory (--data)", ErrInUse, dir, holder(path))
	case err != nil:
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("lock %s: %w; the data directory must be on a file system that has flock", path, err)
	}
	if err := f.Truncate(0); err == nil {
		// Only the text of the message above depends on it.
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}

func holder(path string) string {
	b, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return "process " + pid
	}
	return "another process"
}

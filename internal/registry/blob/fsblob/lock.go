package fsblob

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/disk"
)

// lockDir makes this process the only one on the data directory and on the
// directory of the objects in it, which a link may share with another one.
func (s *Store) lockDir(owner string) error {
	for _, dir := range []string{s.dir, s.objects()} {
		l, err := disk.LockDir(dir, disk.Claim{What: "the data directory", Owner: owner, Remedy: "use another directory (--data, --storage)"})
		if err != nil {
			return dirError(dir, err)
		}
		s.locks = append(s.locks, l)
	}
	return nil
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
	case errors.Is(err, disk.ErrInUse):
		return err
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

package disk

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// lockInode locks a byte far behind the end of f. It excludes another process
// that has the file under another name, and does not meet the locks that SQLite
// takes on other bytes.
func lockInode(f *os.File) error {
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: math.MaxInt64 - 1, Len: 1})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

package disk

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

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

// holderOf returns the id of a process that has a lock on f, or "" if that is
// not known. It serves where the lock file says nothing, because f has
// another name there or the lock file was removed. The lock of lockInode has no process id,
// but SQLite's on the same file have.
func holderOf(f *os.File) string {
	var st unix.Stat_t
	if f == nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF
		w := strings.Fields(line)
		if len(w) < 6 || w[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			return w[4]
		}
	}
	return ""
}

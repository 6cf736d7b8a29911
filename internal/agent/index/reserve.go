package index

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// reserve is a file that holds disk space back, so that rows can be deleted on
// a disk that is full: deleting takes a few pages of the write-ahead log first.
type reserve struct {
	path string
	mu   sync.Mutex
}

const reserveMax = 2 << 20 // bytes

func newReserve(path string) *reserve { return &reserve{path: path} }

// release gives the space to the database. It returns true if that freed any.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return os.Remove(r.path) == nil
}

// replenish makes the file whole again where there is room for it several times
// over. It has nobody to tell of a failure: the next call looks again.
func (r *reserve) replenish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := os.Lstat(r.path); err == nil {
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &st); err != nil {
		return
	}
	size := min(reserveMax, int64(st.Blocks)*st.Bsize/32)
	if int64(st.Bavail)*st.Bsize < 4*size {
		return
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return
	}
	// A file system without fallocate has no reserve here; deletion then depends
	// on the margin that the cache keeps free.
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close()); err != nil {
		_ = os.Remove(r.path) // the next start tries again
	}
}

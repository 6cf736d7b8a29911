package blobtest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallDisk returns a directory that is a disk of its own (a tmpfs) of the
// given size in bytes. It needs the right to mount and fails the test without,
// because a full disk that was never tried is not known to work.
func SmallDisk(t testing.TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatalf("mount a small disk on %s: %v (run the tests as root, or under `unshare --user --map-root-user --mount`)", dir, err)
	}
	t.Cleanup(func() {
		// Lazily: what a failed test left open must not keep the mount.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

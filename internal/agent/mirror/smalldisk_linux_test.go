package mirror_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// TestN6_FullDiskFailsNoPull: another program has filled the disk, so that not
// even a row can be written. What is cached is served, and the rest streams.
func TestN6_FullDiskFailsNoPull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m,mode=0700"); err != nil {
		t.Fatalf("mount a small disk on %s: %v (run the tests as root, or under `unshare --user --map-root-user --mount`)", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	u := newUpstream(t)
	cached := u.push("app", "v1", "a", 2*piece.Size)
	n := start(t, nodeOptions{dir: dir, upstreams: []*upstream{u}})
	n.pull("", "app", "v1", cached)
	f, err := os.Create(filepath.Join(dir, "filler"))
	for buf := make([]byte, 1<<20); err == nil; {
		if _, err = f.Write(buf); err != nil && len(buf) > 1 {
			buf, err = buf[:len(buf)/2], nil
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	_ = f.Close() // it is full
	n.clock.advance(tagTTL * 2)
	for k := range 40 { // the log of the database has a little room left at first
		tag := "v" + strconv.Itoa(k)
		n.pull("", "new", tag, u.push("new", tag, tag, 3*piece.Size/2))
	}
	n.pull("", "app", "v1", cached)
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
}

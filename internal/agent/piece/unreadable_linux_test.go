package piece_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// unreadable has every read of a blob's checksums fail with EIO until the returned
// function is called: what is mounted there is this process's memory, of which nothing
// is at the address 0.
func unreadable(t *testing.T, c *cache, d oci.Digest) (readable func()) {
	t.Helper()
	path := c.Path(d) + ".pieces"
	if err := unix.Mount("/proc/self/mem", path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount on %s: %v (run the tests as root, or under `unshare --user --map-root-user --mount`)", path, err)
	}
	mounted := true
	readable = func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(readable)
	if _, err := os.ReadFile(path); !errors.Is(err, unix.EIO) {
		t.Fatalf("a read of %s fails with %v, want EIO", path, err)
	}
	return readable
}

// TestR7_ChecksumsThatCannotBeReadLoseNothing: a disk that fails to read a complete
// and a partial blob's checksums, at the start and when they are opened, says nothing
// about the blobs.
func TestR7_ChecksumsThatCannotBeReadLoseNothing(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	whole, complete := content(1, 3*piece.Size)
	put(t, c, whole, complete)
	all, partial := content(2, 10*piece.Size)
	b := create(t, c, partial, len(all))
	write(t, b, all, 0, 1, 2, 3, 4, 5)
	b.Close()
	before, infos := c.Usage(), []piece.Info{info(t, c, complete), info(t, c, partial)}
	c.close(t)
	readable := []func(){unreadable(t, c, complete), unreadable(t, c, partial)}

	c = openAt(t, dir, piece.Options{})
	if u := c.Usage(); u.Blobs != 2 || u.Used < before.Used-3*4096 || u.Used > before.Used {
		t.Errorf("after the start %+v, want about what was used before: %+v", u, before)
	}
	for i, d := range []oci.Digest{complete, partial} {
		if _, err := c.Open(t.Context(), d); !errors.Is(err, fault.NotFound) {
			t.Errorf("opening blob %d: %v, want that it comes from elsewhere", i, err)
		}
		if _, err := c.Create(t.Context(), d, infos[i].Size, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
			t.Errorf("creating blob %d: %v, want it passed on without the cache", i, err)
		}
		if now := info(t, c, d); now.State != infos[i].State || now.Size != infos[i].Size {
			t.Errorf("the row of blob %d was %+v and is %+v", i, infos[i], now)
		}
	}
	for _, f := range readable {
		f()
	}
	if got, err := get(c, complete, 0, -1); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes of the complete blob, %v", len(got), err)
	}
	b = create(t, c, partial, len(all))
	if n := b.Lacks(); n != 4 {
		t.Errorf("%d pieces of the partial blob are missing, want 4", n)
	}
	write(t, b, all, 6, 7, 8, 9)
	b.Close()
	checkWhole(t, c, 2)
	c.close(t)
}

// TestR7_AnIndexIsRebuiltBesideChecksumsThatCannotBeRead: the start succeeds, nothing
// is removed, and a later start takes back what was left out.
func TestR7_AnIndexIsRebuiltBesideChecksumsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	var all [][]byte
	var digests []oci.Digest
	for i := range 2 {
		b, d := content(uint64(i), 3*piece.Size)
		put(t, c, b, d)
		all, digests = append(all, b), append(digests, d)
	}
	c.close(t)
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	readable := unreadable(t, c, digests[0])
	for range 2 { // also at a second start that cannot read them
		c = openAt(t, dir, piece.Options{})
		if u := c.Usage(); u.Blobs != 1 || info(t, c, digests[1]).State == index.Claimed {
			t.Errorf("%+v, want the blob that can be read", u)
		}
		if _, err := os.Stat(c.Path(digests[0])); err != nil {
			t.Errorf("the bytes whose checksums cannot be read: %v", err)
		}
		c.close(t)
	}
	readable()
	c = openAt(t, dir, piece.Options{})
	for i, d := range digests {
		if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all[i]) {
			t.Errorf("blob %d: %d bytes, %v", i, len(got), err)
		}
	}
	c.close(t)
}

package piece_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// smallDisk mounts a file system of its own with so many bytes.
func smallDisk(t testing.TB, size int64) string {
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

// fillDisk takes all of the disk but left bytes.
func fillDisk(t testing.TB, dir string, left int64) (path string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "filler")
	if err := os.WriteFile(path, make([]byte, max(0, int64(st.Bavail)*st.Bsize-left)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDiskFull_InMidFill: the disk is full because another program filled it
// after the blob was admitted.
func TestDiskFull_InMidFill(t *testing.T) {
	dir := smallDisk(t, 32*mib)
	c := openAt(t, dir, piece.Options{})
	defer c.close(t)
	kept, dk := content(1, 3*piece.Size)
	put(t, c, kept, dk)
	all, d := content(2, 20*piece.Size)
	b := create(t, c, d, len(all))
	write(t, b, all, 0, 5)
	reader := b.NewReader(t.Context(), 0, -1)
	before := c.Usage()
	filler := fillDisk(t, dir, 2*piece.Size+10_000)
	var err error
	wrote := 2
	for i := 1; i < b.Pieces() && err == nil; i++ {
		if err = b.WritePiece(t.Context(), i, part(all, i), "test"); err == nil {
			wrote++
		}
	}
	if !errors.Is(err, fault.Full) || wrote > 6 {
		t.Fatalf("%d pieces were written to a full disk, then %v", wrote, err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(reader); !errors.Is(err, fault.Full) || !bytes.Equal(got.Bytes(), all[:got.Len()]) {
		t.Errorf("the reader got %d bytes and %v", got.Len(), err)
	}
	if _, err := c.Create(t.Context(), d, int64(len(all)), piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("create while its readers are still there: %v", err)
	}
	_ = reader.Close()
	b.Close()
	if u := c.Usage(); u.Used != piece.Cost(int64(len(kept))) || u.Blobs != 1 || c.Pending() != 0 || u.FSFree < 3*piece.Size {
		t.Errorf("before %+v, after %+v, pending %d", before, u, c.Pending())
	}
	if got, err := get(c, dk, 0, -1); err != nil || !bytes.Equal(got, kept) {
		t.Errorf("the other blob: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b = create(t, c, d, len(all))
	defer b.Close()
	write(t, b, all, b.Missing()...)
	if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) {
		t.Errorf("once there is room again: %v", err)
	}
}

// TestDiskFull_RemovalMakesRoomWhenNothingIsLeft: not a byte is left, for the
// database either.
func TestDiskFull_RemovalMakesRoomWhenNothingIsLeft(t *testing.T) {
	dir := smallDisk(t, 32*mib)
	c := openAt(t, dir, piece.Options{})
	var all [][]byte
	for i := range 200 { // some rows, so that removing them takes pages of their own
		p, d := content(uint64(i), 2*piece.Size/(1+i%50))
		put(t, c, p, d)
		all = append(all, p)
	}
	fillDisk(t, dir, 0)
	x, dx := content(1000, 100)
	if err := c.Put(t.Context(), dx, x, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("a put on a full disk: %v", err)
	}
	for i, p := range all[:150] {
		_, d := content(uint64(i), len(p))
		if freed, err := c.Remove(t.Context(), claim(t, c, d)); err != nil || freed == 0 {
			t.Fatalf("removal %d on a full disk: freed %d, %v", i, freed, err)
		}
	}
	put(t, c, x, dx)
	c.close(t)
	c = openAt(t, dir, piece.Options{})
	defer c.close(t)
	checkWhole(t, c, 51)
}

// TestDiskFull_AStartOnAFullDisk must succeed, or nothing would ever be freed.
func TestDiskFull_AStartOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, 32*mib)
	c := openAt(t, dir, piece.Options{})
	all, d := content(1, 3*piece.Size)
	put(t, c, all, d)
	c.close(t)
	fillDisk(t, dir, 0)
	c = openAt(t, dir, piece.Options{})
	defer c.close(t)
	if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.Remove(t.Context(), claim(t, c, d)); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// checkWhole holds accounts, rows and files against each other.
func checkWhole(t testing.TB, c *cache, blobs int) {
	t.Helper()
	list, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var used, claimed int64
	for _, i := range list {
		used += piece.CostOf(i.Size, i.Present)
		if i.State == index.Claimed {
			claimed += piece.CostOf(i.Size, i.Present)
		}
	}
	u := c.Usage()
	if u.Used != used || u.Claimed != claimed || u.Blobs != int64(len(list)) || c.Pending() != 0 || c.Promised() != 0 {
		t.Errorf("%+v, pending %d, promised %d; the rows say used %d, claimed %d, blobs %d", u, c.Pending(), c.Promised(), used, claimed, len(list))
	}
	if blobs >= 0 && len(list) != blobs {
		t.Errorf("%d blobs, want %d", len(list), blobs)
	}
	files, err := filepath.Glob(filepath.Join(c.dir, "blobs", "sha*", "*", "*"))
	if err != nil || len(files) != 2*len(list) {
		t.Errorf("%d files for %d blobs, %v", len(files), len(list), err)
	}
}

// TestDiskFull_ABlobCanBeRemovedThoughNothingCanBeWritten: another program has
// taken all of the disk, and what was held back for this as well.
func TestDiskFull_ABlobCanBeRemovedThoughNothingCanBeWritten(t *testing.T) {
	dir := smallDisk(t, 24*mib)
	c := openAt(t, dir, piece.Options{})
	defer c.close(t)
	var all []oci.Digest
	for n := range 3 {
		b, d := content(uint64(n), 5*piece.Size)
		put(t, c, b, d)
		all = append(all, d)
	}
	if err := c.index.Pin(t.Context(), "kept", all[2:]); err != nil {
		t.Fatal(err)
	}
	info(t, c, all[0]) // their uses are written
	fillUp(t, c, dir, all[0])
	first, second := claim(t, c, all[0]), claim(t, c, all[1])
	if _, err := c.Claim(t.Context(), all[2], info(t, c, all[2]).Version); !errors.Is(err, fault.Conflict) {
		t.Errorf("a pinned blob: %v", err)
	}
	won, err := c.Open(t.Context(), all[1])
	if err != nil {
		t.Fatal(err)
	}
	won.Close()
	if freed, err := c.Remove(t.Context(), second); !errors.Is(err, fault.Conflict) {
		t.Errorf("a blob that was opened since was removed: %d, %v", freed, err)
	}
	if freed, err := c.Remove(t.Context(), first); err != nil || freed < 5*piece.Size {
		t.Errorf("%d bytes came free, %v", freed, err)
	}
	if _, err := c.Open(t.Context(), all[0]); !errors.Is(err, fault.NotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if u := c.Usage(); u.Claimed != 0 || u.Blobs != 2 || u.Used != 2*piece.Cost(5*piece.Size) {
		t.Errorf("%+v", u)
	}
}

// TestN2_AUseThatCannotBeNotedIsAReference: on a full disk uses and claims stay in
// memory, where each has to keep a claim away.
func TestN2_AUseThatCannotBeNotedIsAReference(t *testing.T) {
	dir := smallDisk(t, 24*mib)
	c := openAt(t, dir, piece.Options{})
	defer c.close(t)
	var all []oci.Digest
	for n := range 2 {
		b, d := content(uint64(n), 5*piece.Size)
		put(t, c, b, d)
		all = append(all, d)
	}
	used, claimed := info(t, c, all[0]), info(t, c, all[1])
	fillUp(t, c, dir, all[0])
	b, err := c.Open(t.Context(), all[0])
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	_, err = c.Claim(t.Context(), all[0], used.Version)
	refused(t, "a claim on what was used since it was judged", err)
	cl, err := c.Claim(t.Context(), all[1], claimed.Version)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Claim(t.Context(), all[1], claimed.Version)
	refused(t, "a second claim", err)
	if u := c.Usage(); u.Claimed != piece.Cost(5*piece.Size) {
		t.Errorf("%+v", u)
	}
	if _, err := c.Remove(t.Context(), cl); err != nil {
		t.Error(err)
	}
	if u := c.Usage(); u.Claimed != 0 || u.Used != piece.Cost(5*piece.Size) {
		t.Errorf("%+v", u)
	}
}

// fillUp leaves not a byte, for the database either.
func fillUp(t *testing.T, c *cache, dir string, d oci.Digest) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "index.db.reserve")); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, dir, 0)
	var err error
	for n := 0; err == nil && n < 5000; n++ { // what is left of the log
		err = c.index.PutName(t.Context(), "ns", "repo", oci.Tag(fmt.Sprint("t", n)), d, 1)
	}
	if !errors.Is(err, fault.Full) {
		t.Fatalf("the disk is not full: %v", err)
	}
}

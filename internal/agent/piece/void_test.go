package piece_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// onDisk is a cache on a disk that can be filled, with blobs of two pieces.
func onDisk(t *testing.T, disk *sqldbtest.Disk, dir string, blobs int) (*cache, []oci.Digest) {
	t.Helper()
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db"), Driver: disk.Driver()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := piece.Open(t.Context(), piece.Options{Dir: dir, Index: x})
	if err != nil {
		t.Fatal(errors.Join(err, x.Close()))
	}
	c := &cache{Store: s, index: x, dir: dir}
	var all []oci.Digest
	for i := range blobs {
		b, d := content(uint64(i), 2*piece.Size)
		put(t, c, b, d)
		info(t, c, d) // its uses are written
		all = append(all, d)
	}
	return c, all
}

var twoPieces = piece.Cost(2 * piece.Size)

// TestR7_AClaimWhoseEndCannotBeNotedIsOver: the blob is as it was, for whoever lists it,
// opens it or claims it again, and so is its row once there is room.
func TestR7_AClaimWhoseEndCannotBeNotedIsOver(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 4)
	defer c.close(t)
	listed, opened, used, claimed := all[0], all[1], all[2], all[3]
	var claims []piece.Claim
	for _, d := range all {
		claims = append(claims, claim(t, c, d))
	}
	disk.Fill()
	for i, cl := range claims {
		if all[i] == opened {
			continue
		}
		for range 2 { // the second time it is over already
			if err := c.Unclaim(t.Context(), cl); err != nil {
				t.Fatalf("a claim cannot be given up on a full disk: %v", err)
			}
		}
	}
	if i, u := info(t, c, listed), c.Usage(); i.State != index.Complete || u.Claimed != twoPieces {
		t.Errorf("%+v, %+v", i, u)
	}
	for i, d := range []oci.Digest{opened, used} {
		b, err := c.Open(t.Context(), d)
		if err != nil {
			t.Fatalf("a claimed blob cannot be opened on a full disk: %v", err)
		}
		if !b.Complete() {
			t.Errorf("blob %d is not complete", i)
		}
		b.Close()
	}
	if u := c.Usage(); u.Claimed != 0 {
		t.Errorf("%+v", u)
	}
	again := claim(t, c, claimed)
	_, err := c.Claim(t.Context(), claimed, again.Version)
	refused(t, "a second claim", err)
	if u := c.Usage(); u.Claimed != twoPieces {
		t.Errorf("%+v", u)
	}
	if err := c.Unclaim(t.Context(), again); err != nil {
		t.Error(err)
	}
	disk.Empty()
	for _, d := range all {
		if i := info(t, c, d); i.State != index.Complete {
			t.Errorf("%+v", i)
		}
		if b, err := c.index.Blob(t.Context(), d); err != nil || b.State != index.Complete {
			t.Errorf("the row with room: %+v, %v", b, err)
		}
	}
	if i := info(t, c, used); i.Uses == 0 {
		t.Errorf("the use is lost: %+v", i)
	}
	checkWhole(t, c, 4)
	for _, d := range all {
		if _, err := c.Remove(t.Context(), claim(t, c, d)); err != nil {
			t.Error(err)
		}
	}
	checkWhole(t, c, 0)
}

// TestR7_AClaimThatIsOverRemovesNothing: neither the one that was given up nor one that
// somebody has won back from.
func TestR7_AClaimThatIsOverRemovesNothing(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 2)
	defer c.close(t)
	given, won := claim(t, c, all[0]), claim(t, c, all[1])
	disk.Fill()
	if err := c.Unclaim(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	later := index.Blob{Digest: all[0], Version: given.Version + 1, State: index.Claimed, Was: index.Complete}
	if b := c.Real(later); b.State != index.Claimed {
		t.Errorf("a later claim counts as over: %+v", b)
	}
	b, err := c.Open(t.Context(), all[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Unclaim(t.Context(), won); err != nil { // while it is open
		t.Error(err)
	}
	b.Close()
	for i, cl := range []piece.Claim{given, won, given, won} {
		_, err := c.Remove(t.Context(), cl)
		refused(t, "a removal by a claim that is over", err)
		if i >= 1 { // with room it is refused as well, before the rows are looked at
			disk.Empty()
		}
	}
	for i := range all {
		want, _ := content(uint64(i), 2*piece.Size)
		if got, err := get(c, all[i], 0, -1); err != nil || !bytes.Equal(got, want) {
			t.Errorf("blob %d: %d bytes, %v", i, len(got), err)
		}
	}
	info(t, c, all[0])
	checkWhole(t, c, 2)

	other := claim(t, c, all[1])
	if err := c.Unclaim(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := c.UnclaimFull(t.Context(), other); err != nil { // it was given up a moment ago
		t.Fatal(err)
	}
	checkWhole(t, c, 2)
}

// TestN2_ASecondClaimOnAFullDiskIsRefused, also where others could not be noted beside it.
func TestN2_ASecondClaimOnAFullDiskIsRefused(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 2)
	defer c.close(t)
	first := claim(t, c, all[0])
	disk.Fill()
	claims, errs := c.ClaimAll(t.Context(), []piece.Judged{piece.Judged(first), {Digest: all[1], Version: info(t, c, all[1]).Version}})
	refused(t, "a second claim", errs[0])
	if errs[1] != nil {
		t.Error(errs[1])
	}
	if err := c.Unclaim(t.Context(), claims[1]); err != nil {
		t.Error(err)
	}
	disk.Empty()
	checkWhole(t, c, 2)
}

func removeAll(t *testing.T, c *cache, claims []piece.Claim, still func() bool) []piece.Removed {
	t.Helper()
	all, err := c.RemoveAll(t.Context(), claims, still)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestR7_ABlobThatIsCompletedUnderAClaimThatIsOverIsComplete: what it became is in its row.
func TestR7_ABlobThatIsCompletedUnderAClaimThatIsOverIsComplete(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, _ := onDisk(t, disk, t.TempDir(), 0)
	defer c.close(t)
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, len(all))
	write(t, b, all, 0)
	b.Close()
	claim(t, c, d)
	disk.Fill()
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	disk.Empty()
	write(t, b, all, 1)
	b.Close()
	if i := info(t, c, d); i.State != index.Complete {
		t.Errorf("%+v", i)
	}
	checkWhole(t, c, 1)
}

// TestR7_AFullDiskDoesNotStopARemovalThatWasClaimed: the bytes go first, unless the blob
// is pinned, or the runtimes have reported something newer.
func TestR7_AFullDiskDoesNotStopARemovalThatWasClaimed(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 3)
	defer c.close(t)
	var claims []piece.Claim
	for _, d := range all {
		claims = append(claims, claim(t, c, d))
	}
	if err := c.index.Pin(t.Context(), "kept", all[2:]); err != nil {
		t.Fatal(err)
	}
	disk.Fill()
	disk.WhenFull(func() {
		if _, err := os.Stat(c.Path(all[0])); errors.Is(err, fs.ErrNotExist) {
			disk.Empty() // its bytes have made room
		}
	})
	here := func() bool {
		_, err := os.Stat(c.Path(all[0]))
		return err == nil
	}
	removed := removeAll(t, c, claims, here)
	if removed[0].Err != nil || removed[0].Freed < 2*piece.Size || !errors.Is(removed[1].Err, piece.ErrOutdated) {
		t.Errorf("%+v", removed)
	}
	refused(t, "a removal of what is pinned", removed[2].Err)
	if err := errors.Join(c.Unclaim(t.Context(), claims[1]), c.Unclaim(t.Context(), claims[2])); err != nil {
		t.Error(err)
	}
	checkWhole(t, c, 2)
}

// TestR7_AStartOnAFullDiskEndsClaims that a former process has left.
func TestR7_AStartOnAFullDiskEndsClaims(t *testing.T) {
	disk, dir := sqldbtest.NewDisk(t), t.TempDir()
	c, all := onDisk(t, disk, dir, 3)
	for _, d := range all[:2] {
		claim(t, c, d)
	}
	if err := os.Remove(c.Path(all[2])); err != nil {
		t.Fatal(err)
	}
	c.close(t)
	disk.Fill()
	c, _ = onDisk(t, disk, dir, 0)
	defer c.close(t)
	if i, u := info(t, c, all[0]), c.Usage(); i.State != index.Complete || u.Claimed != 0 || u.Used != 3*twoPieces {
		t.Errorf("%+v, %+v", i, u)
	}
	cl := claim(t, c, all[0])
	disk.Empty()
	if _, err := c.Remove(t.Context(), cl); err != nil {
		t.Error(err)
	}
	if _, err := c.Open(t.Context(), all[2]); err == nil {
		t.Error("a blob without files was opened")
	}
	info(t, c, all[1])
	checkWhole(t, c, 1)
}

// TestR7_AUseIsNotedAfterTheEndOfTheClaimItEnded: it raises the version by which that end
// is noted, also where the blob is opened while ends of others are being written.
func TestR7_AUseIsNotedAfterTheEndOfTheClaimItEnded(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 2)
	defer c.close(t)
	opened := false
	c.SetStep(func(at string) {
		if at != "claims ended" || opened {
			return
		}
		opened = true
		disk.Fill()
		defer disk.Empty()
		b, err := c.Open(t.Context(), all[1])
		if err != nil {
			t.Error(err)
			return
		}
		b.Close()
	})
	given := claim(t, c, all[0])
	claim(t, c, all[1])
	disk.Fill()
	if err := c.Unclaim(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	disk.Empty()
	for range 2 { // the first time the blob is opened meanwhile
		info(t, c, all[0])
	}
	if i, u := info(t, c, all[1]), c.Usage(); !opened || i.State != index.Complete || i.Uses < 2 || u.Claimed != 0 {
		t.Errorf("%v, %+v, %+v", opened, i, u)
	}
	if b, err := c.index.Blob(t.Context(), all[1]); err != nil || b.State != index.Complete {
		t.Errorf("the claim stands in the row: %+v, %v", b, err)
	}
	checkWhole(t, c, 2)
}

// TestR9_WhatIsGoneIsToldOf, also where the runtimes report something newer before the rest
// of the same removal has gone.
func TestR9_WhatIsGoneIsToldOf(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 2)
	defer c.close(t)
	noted, given := claim(t, c, all[0]), claim(t, c, all[1])
	disk.Fill()
	if err := c.Unclaim(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	unnoted := claim(t, c, all[1])
	gone := func() bool {
		_, err := os.Stat(c.Path(all[1]))
		return errors.Is(err, fs.ErrNotExist)
	}
	disk.WhenFull(func() {
		if gone() {
			disk.Empty() // its bytes have made room
		}
	})
	removed := removeAll(t, c, []piece.Claim{noted, unnoted}, func() bool { return !gone() })
	if removed[1].Err != nil || removed[1].Freed < 2*piece.Size || !errors.Is(removed[0].Err, piece.ErrOutdated) {
		t.Errorf("%+v", removed)
	}
	if err := c.Unclaim(t.Context(), noted); err != nil {
		t.Error(err)
	}
	checkWhole(t, c, 1)
}

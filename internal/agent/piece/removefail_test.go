package piece_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// TestN4_AnIndexThatFailsClaimsAndRemovesNothing: an error is neither a claim nor a
// removal, and says of each blob what it is.
func TestN4_AnIndexThatFailsClaimsAndRemovesNothing(t *testing.T) {
	t.Run("with uses that are not written", func(t *testing.T) { testIndexFails(t, true) })
	t.Run("with none", func(t *testing.T) { testIndexFails(t, false) })
}

func testIndexFails(t *testing.T, uses bool) {
	c := openAt(t, t.TempDir(), piece.Options{})
	var all []piece.Judged
	for i := range 3 {
		b, d := content(uint64(i), 1000+i)
		put(t, c, b, d)
		all = append(all, piece.Judged{Digest: d, Version: info(t, c, d).Version})
	}
	claimed := claim(t, c, all[0].Digest)
	opened, err := c.Open(t.Context(), all[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	info(t, c, all[1].Digest) // its use is written
	if uses {
		if _, err := get(c, all[2].Digest, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.index.Close(); err != nil {
		t.Fatal(err)
	}
	before := c.Usage()
	claims, errs := c.ClaimAll(t.Context(), all)
	for i, err := range errs {
		if err == nil || claims[i] != (piece.Claim{}) || errors.Is(err, fault.Conflict) != (i == 1 && !uses) {
			t.Errorf("blob %d, of which the second is in use: %+v, %v", i, claims[i], err)
		}
	}
	if freed, err := c.Remove(t.Context(), claimed); err == nil || freed != 0 {
		t.Errorf("a removal frees %d bytes: %v", freed, err)
	}
	if err := c.Unclaim(t.Context(), claimed); err == nil {
		t.Error("a claim was given up")
	}
	if u := c.Usage(); u.Used != before.Used || u.Claimed != before.Claimed || u.Blobs != before.Blobs {
		t.Errorf("%+v became %+v", before, u)
	}
	if _, err := os.Stat(c.Path(claimed.Digest)); err != nil {
		t.Errorf("bytes are gone whose row may be there: %v", err)
	}
	opened.Close()
	_ = c.Store.Close()
}

// obstruct puts a folder that is not empty where the bytes of a blob are.
func obstruct(t *testing.T, c *cache, d oci.Digest) {
	t.Helper()
	if err := errors.Join(os.Remove(c.Path(d)), os.Mkdir(c.Path(d), 0o700), os.WriteFile(filepath.Join(c.Path(d), "x"), nil, 0o600),
		os.WriteFile(c.Path(d)+".pieces", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestN5_BytesThatCannotBeRemovedAreNotFreed, and count as used.
func TestN5_BytesThatCannotBeRemovedAreNotFreed(t *testing.T) {
	for _, full := range []bool{false, true} {
		disk := sqldbtest.NewDisk(t)
		c, all := onDisk(t, disk, t.TempDir(), 2)
		noted := claim(t, c, all[0])
		claims := []piece.Claim{noted}
		if full {
			disk.Fill()
			unnoted, err := c.Claim(t.Context(), all[1], info(t, c, all[1]).Version)
			if err != nil {
				t.Fatal(err)
			}
			claims = append(claims, unnoted)
		}
		for _, cl := range claims {
			obstruct(t, c, cl.Digest)
		}
		// Each obstacle is met with room for the rest: the row must not go without the bytes.
		for i, cl := range claims {
			if full {
				disk.Fill()
			}
			disk.WhenFull(func() {
				if _, err := os.Stat(c.Path(cl.Digest) + ".pieces"); err != nil {
					disk.Empty()
				}
			})
			r := removeAll(t, c, []piece.Claim{cl}, func() bool { return true })[0]
			if r.Err == nil || r.Freed != 0 || errors.Is(r.Err, fault.Conflict) {
				t.Errorf("full %v, claim %d: %+v", full, i, r)
			}
		}
		if u := c.Usage(); u.Used != 2*twoPieces {
			t.Errorf("full %v: %+v", full, u)
		}
		if full {
			disk.Empty()
			for _, cl := range claims { // the rows are as before
				if i := info(t, c, cl.Digest); i.Size == 0 {
					t.Errorf("the row of %s is gone", cl.Digest)
				}
			}
		}
		_ = c.Store.Close()
		_ = c.index.Close()
	}
}

// TestN2_AFullDiskDoesNotLowerTheBarForAClaim: what cannot be noted is judged as what can.
func TestN2_AFullDiskDoesNotLowerTheBarForAClaim(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 3)
	defer c.close(t)
	if err := c.index.Pin(t.Context(), "kept", all[:1]); err != nil {
		t.Fatal(err)
	}
	var judged []piece.Judged
	for _, d := range all {
		judged = append(judged, piece.Judged{Digest: d, Version: info(t, c, d).Version})
	}
	judged[1].Version--
	disk.Fill()
	claims, errs := c.ClaimAll(t.Context(), judged)
	refused(t, "a pinned blob", errs[0])
	refused(t, "a blob of another version", errs[1])
	if errs[2] != nil || c.Usage().Claimed != twoPieces {
		t.Errorf("a blob that may go: %v, %+v", errs[2], c.Usage())
	}
	other := claims[2]
	other.Version++
	if _, err := c.Remove(t.Context(), other); err == nil {
		t.Error("a claim of another version removes a blob that is claimed")
	}
	if err := c.Unclaim(t.Context(), other); err != nil || c.Usage().Claimed != twoPieces {
		t.Errorf("a claim of another version was given up: %v, %+v", err, c.Usage())
	}
	// Its bytes are gone and count as that (R9).
	if r := removeAll(t, c, claims[2:], func() bool { return true })[0]; r.Err == nil || r.Freed < 2*piece.Size || c.Usage().Used != 2*twoPieces || c.Usage().Claimed != 0 {
		t.Errorf("a row that cannot go: %+v, %+v", r, c.Usage())
	}
	disk.Empty()
	again, _ := content(2, 2*piece.Size)
	put(t, c, again, all[2])
	checkWhole(t, c, 3)
}

// TestN2_WhatIsPinnedSinceItsClaimKeepsItsBytesOnAFullDisk, whatever becomes of its row.
func TestN2_WhatIsPinnedSinceItsClaimKeepsItsBytesOnAFullDisk(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 2)
	defer c.close(t)
	claims := []piece.Claim{claim(t, c, all[0])}
	disk.Fill()
	unnoted, err := c.Claim(t.Context(), all[1], info(t, c, all[1]).Version)
	if err != nil {
		t.Fatal(err)
	}
	claims = append(claims, unnoted)
	disk.Empty()
	if err := c.index.Pin(t.Context(), "kept", all); err != nil {
		t.Fatal(err)
	}
	disk.Fill()
	for i, r := range removeAll(t, c, claims, func() bool { return true }) {
		refused(t, "a removal of what is pinned", r.Err)
		if _, err := os.Stat(c.Path(all[i])); err != nil {
			t.Errorf("blob %d: %v", i, err)
		}
	}
	disk.Empty()
	for _, cl := range claims {
		if err := c.Unclaim(t.Context(), cl); err != nil {
			t.Error(err)
		}
	}
	checkWhole(t, c, 2)
}

// TestR7_AfterARemovalOnAFullDiskTheAccountsAreEven, and the same blob may come again.
func TestR7_AfterARemovalOnAFullDiskTheAccountsAreEven(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 2)
	defer c.close(t)
	noted := claim(t, c, all[0])
	disk.Fill()
	unnoted, err := c.Claim(t.Context(), all[1], info(t, c, all[1]).Version)
	if err != nil {
		t.Fatal(err)
	}
	disk.WhenFull(func() {
		for _, d := range all {
			if _, err := os.Stat(c.Path(d)); err != nil {
				disk.Empty() // bytes have made room
				return
			}
		}
	})
	for _, cl := range []piece.Claim{unnoted, noted} {
		if r := removeAll(t, c, []piece.Claim{cl}, func() bool { return true })[0]; r.Err != nil || r.Freed < 2*piece.Size {
			t.Errorf("%+v", r)
		}
		disk.Fill()
	}
	disk.Empty()
	if u := c.Usage(); u.Used != 0 || u.Claimed != 0 || u.Blobs != 0 || c.InMemory() != 0 {
		t.Errorf("%+v, %d in memory", u, c.InMemory())
	}
	for i, d := range all {
		b, _ := content(uint64(i), 2*piece.Size)
		put(t, c, b, d)
		if err := c.Unclaim(t.Context(), claim(t, c, d)); err != nil { // no claim of before is left
			t.Error(err)
		}
	}
	checkWhole(t, c, 2)
}

// TestN4_AClosedCacheClaimsNothing.
func TestN4_AClosedCacheClaimsNothing(t *testing.T) {
	c := openAt(t, t.TempDir(), piece.Options{})
	b, d := content(1, 1000)
	put(t, c, b, d)
	version := info(t, c, d).Version
	if err := c.Store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Claim(t.Context(), d, version); !errors.Is(err, piece.ErrClosed) {
		t.Errorf("claim: %v", err)
	}
	if err := c.index.Close(); err != nil {
		t.Error(err)
	}
}

// TestR9_WhatCameFreeIsReportedThoughTheRestStays: of a claim that is in its row, whose
// row cannot go, and of files of which one cannot be removed.
func TestR9_WhatCameFreeIsReportedThoughTheRestStays(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	c, all := onDisk(t, disk, t.TempDir(), 3)
	defer c.close(t)
	noted := claim(t, c, all[0])
	disk.Fill()
	if r := removeAll(t, c, []piece.Claim{noted}, func() bool { return true })[0]; r.Err == nil || r.Freed < 2*piece.Size {
		t.Errorf("a row that cannot go: %+v", r)
	}
	if u := c.Usage(); u.Used != 2*twoPieces || u.Claimed != 0 {
		t.Errorf("its bytes are gone: %+v", u)
	}
	if err := c.Unclaim(t.Context(), noted); err != nil {
		t.Error(err)
	}
	disk.Empty()
	if _, err := c.Open(t.Context(), all[0]); !errors.Is(err, fault.NotFound) {
		t.Errorf("opening it: %v", err)
	}
	if u := c.Usage(); u.Used != 2*twoPieces || u.Claimed != 0 || u.Blobs != 2 {
		t.Errorf("its row is gone, too: %+v", u)
	}
	for i, full := range []bool{false, true} {
		cl := claim(t, c, all[1+i])
		side := c.Path(cl.Digest) + ".pieces"
		if err := errors.Join(os.Remove(side), os.MkdirAll(filepath.Join(side, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if full {
			disk.Fill()
		}
		if r := removeAll(t, c, []piece.Claim{cl}, func() bool { return true })[0]; r.Err == nil || r.Freed < 2*piece.Size {
			t.Errorf("full %v, a file that stays: %+v", full, r)
		}
		disk.Empty()
		if err := os.RemoveAll(side); err != nil {
			t.Fatal(err)
		}
	}
}

// TestR7_AClaimIsGivenUpOnAFullDiskThoughAnotherTriesTheSame: who has the blob's place
// when the claim is given up need not win it back.
func TestR7_AClaimIsGivenUpOnAFullDiskThoughAnotherTriesTheSame(t *testing.T) {
	c := openAt(t, t.TempDir(), piece.Options{})
	defer c.close(t)
	b, d := content(1, 2*piece.Size)
	put(t, c, b, d)
	cl := claim(t, c, d)
	waits, done := make(chan struct{}, 1), make(chan error, 1)
	c.SetStep(func(at string) {
		if at == "unclaim waits" {
			waits <- struct{}{}
		}
	})
	_, err := c.RemoveAll(t.Context(), []piece.Claim{cl}, func() bool { // the place is occupied
		go func() { done <- c.UnclaimFull(context.Background(), cl) }()
		select {
		case <-waits:
		case err := <-done:
			done <- err
		}
		return false
	})
	if !errors.Is(err, piece.ErrOutdated) {
		t.Errorf("the removal: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if u := c.Usage(); u.Claimed != 0 {
		t.Errorf("the claim stands: %+v", u)
	}
	if i := info(t, c, d); i.State != index.Complete {
		t.Errorf("the blob is %s", i.State)
	}
	checkWhole(t, c, 1)
}

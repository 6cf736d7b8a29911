package piece_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

func claim(t testing.TB, c *cache, d oci.Digest) piece.Claim {
	t.Helper()
	cl, err := c.Claim(context.Background(), d, info(t, c, d).Version)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func refused(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, fault.Conflict) {
		t.Errorf("%s: %v, want a conflict", what, err)
	}
}

func TestRemove_GivesBackWhatTheBlobTook(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	put(t, c, all, d)
	cl := claim(t, c, d)
	if u := c.Usage(); u.Claimed != piece.Cost(int64(len(all))) || u.Used != u.Claimed {
		t.Errorf("claimed: %+v", u)
	}
	freed, err := c.Remove(t.Context(), cl)
	if err != nil || freed < int64(len(all)) {
		t.Fatalf("freed %d, %v", freed, err)
	}
	if u := c.Usage(); u.Used != 0 || u.Claimed != 0 || u.Blobs != 0 {
		t.Errorf("removed: %+v", u)
	}
	if _, err := os.Stat(c.Path(d)); !os.IsNotExist(err) {
		t.Errorf("its bytes are still there: %v", err)
	}
	if _, err := c.Open(t.Context(), d); !errors.Is(err, fault.NotFound) {
		t.Errorf("open: %v", err)
	}
	_, err = c.Remove(t.Context(), cl)
	refused(t, "a second removal", err)
	put(t, c, all, d)
	_, err = c.Remove(t.Context(), cl)
	refused(t, "the removal of what came after", err)
}

func TestN2_WhatIsOpenIsNotClaimed(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, len(all))
	refuse := func(what string) {
		t.Helper()
		_, err := c.Claim(t.Context(), d, info(t, c, d).Version)
		refused(t, what, err)
	}
	write(t, b, all, 0)
	refuse("a blob being fetched")
	write(t, b, all, 1)
	refuse("a blob whose download is done")
	r := b.NewReader(t.Context(), 0, -1)
	b.Close()
	refuse("a blob with a reader")
	_ = r.Close()
	_ = r.Close()
	if _, err := c.Remove(t.Context(), claim(t, c, d)); err != nil {
		t.Errorf("a blob that nobody has open: %v", err)
	}
}

func TestN2_UseAfterTheJudgementIsAReference(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 100)
	put(t, c, all, d)
	judged := info(t, c, d).Version
	if _, err := get(c, d, 0, -1); err != nil {
		t.Fatal(err)
	}
	_, err := c.Claim(t.Context(), d, judged)
	refused(t, "a claim on a blob read since", err)
}

func TestN4_WhoOpensAClaimedBlobWinsItBack(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	put(t, c, all, d)
	cl := claim(t, c, d)
	_, err := c.Claim(t.Context(), d, cl.Version)
	refused(t, "a second claim", err)
	b, err := c.Open(t.Context(), d)
	if err != nil || !b.Complete() {
		t.Fatal(err)
	}
	_, err = c.Remove(t.Context(), cl)
	refused(t, "a removal under a reader", err)
	b.Close()
	_, err = c.Remove(t.Context(), cl)
	refused(t, "a removal after a reader", err)
	if u := c.Usage(); u.Claimed != 0 || u.Used == 0 {
		t.Errorf("%+v", u)
	}
	if err := c.Unclaim(t.Context(), cl); err != nil {
		t.Errorf("giving up a claim that was lost: %v", err)
	}
	if i := info(t, c, d); i.State != index.Complete {
		t.Errorf("%+v", i)
	}
}

func TestN4_UnclaimedIsAsBefore(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, len(all))
	write(t, b, all, 1)
	b.Close()
	if err := c.Unclaim(t.Context(), claim(t, c, d)); err != nil {
		t.Fatal(err)
	}
	if i, u := info(t, c, d), c.Usage(); i.State != index.Partial || i.Present != piece.Size || u.Claimed != 0 {
		t.Errorf("%+v, %+v", i, u)
	}
	claim(t, c, d) // and the process ends
	c.close(t)
	c = openAt(t, dir, piece.Options{})
	defer c.close(t)
	if i, u := info(t, c, d), c.Usage(); i.State != index.Partial || u.Claimed != 0 || u.Used != piece.CostOf(i.Size, piece.Size) {
		t.Errorf("after a restart: %+v, %+v", i, u)
	}
}

// TestN2_PinnedIsNotClaimed names a tree by each of the ways to its top.
func TestN2_PinnedIsNotClaimed(t *testing.T) {
	c := open(t, piece.Options{})
	ds := map[string]oci.Digest{}
	for i, name := range []string{"index", "manifest", "config", "layer", "other"} {
		all, d := content(uint64(i), 100+i)
		put(t, c, all, d)
		ds[name] = d
	}
	_, chain := content(99, 1)
	ctx := t.Context()
	err := errors.Join(
		c.index.PutEdges(ctx, ds["index"], []index.Edge{{Child: ds["manifest"], Role: index.RoleManifest}}),
		c.index.PutEdges(ctx, ds["manifest"], []index.Edge{{Child: ds["config"], Role: index.RoleConfig}, {Child: ds["layer"], Role: index.RoleLayer}}),
		c.index.SetChain(ctx, ds["config"], chain))
	if err != nil {
		t.Fatal(err)
	}
	for name, root := range map[string]oci.Digest{"index": ds["index"], "manifest": ds["manifest"], "config": ds["config"], "chain": chain} {
		if err := c.index.Pin(ctx, "r", []oci.Digest{root}); err != nil {
			t.Fatal(err)
		}
		for what, d := range ds {
			cl, err := c.Claim(ctx, d, info(t, c, d).Version)
			if what != "other" {
				refused(t, what+" pinned by its "+name, err)
			} else if err = errors.Join(err, c.Unclaim(ctx, cl)); err != nil {
				t.Errorf("what is not pinned: %v", err)
			}
		}
		if err := c.index.Unpin(ctx, "r"); err != nil {
			t.Fatal(err)
		}
	}
	cl := claim(t, c, ds["layer"])
	if err := c.index.Pin(ctx, "r", []oci.Digest{ds["index"]}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Remove(ctx, cl)
	refused(t, "a removal after a pin", err)
}

// TestN4_ReadersAndTheEvictorAtOnce: whoever gets a handle reads all of it, and
// the accounts come out even.
func TestN4_ReadersAndTheEvictorAtOnce(t *testing.T) {
	c := open(t, piece.Options{})
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	const blobs = 4
	for i := range blobs {
		all, d := content(uint64(i), piece.Size+100*i+1)
		for range 2 {
			wg.Go(func() {
				for range 40 {
					if err := c.Put(t.Context(), d, all, piece.Meta{}); err != nil {
						t.Errorf("put: %v", err)
					}
					if got, err := get(c, d, 0, -1); err == nil && !bytes.Equal(got, all) || err != nil && !errors.Is(err, fault.NotFound) {
						t.Errorf("read %d of %d bytes: %v", len(got), len(all), err)
					}
				}
			})
		}
	}
	var evictor sync.WaitGroup
	removed := 0
	evictor.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			list, err := c.List(t.Context())
			if err != nil {
				t.Error(err)
			}
			for k, i := range list {
				cl, err := c.Claim(t.Context(), i.Digest, i.Version)
				if err == nil && (n+k)%3 == 0 {
					err = c.Unclaim(t.Context(), cl)
				} else if err == nil {
					if _, err = c.Remove(t.Context(), cl); err == nil {
						removed++
					}
				}
				if err != nil && !errors.Is(err, fault.Conflict) {
					t.Errorf("evict: %v", err)
				}
			}
		}
	})
	wg.Wait()
	cancel()
	evictor.Wait()
	t.Log("removed", removed)
	if u := c.Usage(); u.Claimed != 0 || c.Pending() != 0 {
		t.Errorf("%+v, pending %d", u, c.Pending())
	}
	list, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var used int64
	for _, i := range list {
		used += i.Cost
	}
	if u := c.Usage(); u.Used != used || u.Blobs != int64(len(list)) {
		t.Errorf("%+v, the rows say %d", u, used)
	}
}

// TestN4_EachOfManyIsClaimedAndRemovedForItself: a batch gives up what is in use,
// and nothing else.
func TestN4_EachOfManyIsClaimedAndRemovedForItself(t *testing.T) {
	c := open(t, piece.Options{})
	var all []piece.Judged
	put10 := func() {
		all = nil
		for i := range 10 {
			b, d := content(uint64(i), 1000+i)
			put(t, c, b, d)
			all = append(all, piece.Judged{Digest: d, Version: info(t, c, d).Version})
		}
	}
	put10()
	if err := c.index.Pin(t.Context(), "kept", []oci.Digest{all[1].Digest}); err != nil {
		t.Fatal(err)
	}
	opened, err := c.Open(t.Context(), all[2].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := get(c, all[3].Digest, 0, -1); err != nil { // used since
		t.Fatal(err)
	}
	all[4].Version += 7
	twice := claim(t, c, all[5].Digest)
	claims, errs := c.ClaimAll(t.Context(), all)
	for i := range all {
		if stays := i >= 1 && i <= 5; stays != errors.Is(errs[i], fault.Conflict) || !stays && errs[i] != nil {
			t.Errorf("blob %d: %v", i, errs[i])
		}
	}
	won, err := c.Open(t.Context(), all[6].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.index.Pin(t.Context(), "later", []oci.Digest{all[7].Digest}); err != nil {
		t.Fatal(err)
	}
	going := []piece.Claim{claims[0], claims[6], claims[7], claims[8], claims[9], twice}
	if _, err := c.RemoveAll(t.Context(), going, func() bool { return false }); !errors.Is(err, piece.ErrOutdated) {
		t.Errorf("a removal that is outdated: %v", err)
	}
	for _, b := range all {
		if i := info(t, c, b.Digest); i.Size == 0 {
			t.Errorf("%+v", i)
		}
	}
	removed, err := c.RemoveAll(t.Context(), going, func() bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range removed {
		if stays := i == 1 || i == 2; stays != errors.Is(r.Err, fault.Conflict) || !stays && (r.Err != nil || r.Freed < 1000) {
			t.Errorf("claim %d: %+v", i, r)
		}
	}
	won.Close()
	opened.Close()
	if err := c.Unclaim(t.Context(), claims[7]); err != nil {
		t.Fatal(err)
	}
	checkWhole(t, c, 6)
}

package piece_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// TestR16_AClaimedSizeIsBounded: with the sizes of forged manifests the accounts
// overflowed.
func TestR16_AClaimedSizeIsBounded(t *testing.T) {
	for _, quota := range []int64{0, 10 * mib, math.MaxInt64} {
		c := open(t, piece.Options{Limits: piece.Limits{Quota: quota}, Free: func() (int64, int64, error) { return math.MaxInt64 - 1, math.MaxInt64, nil }})
		for i, size := range []int64{math.MaxInt64, math.MaxInt64 - 300000, piece.SizeMax + 1} {
			_, d := content(uint64(i), 1)
			if _, err := c.Create(t.Context(), d, size, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
				t.Errorf("a blob of %d bytes, quota %d: %v", size, quota, err)
			}
			if err := c.Fits(t.Context(), []int64{size, size}); !errors.Is(err, piece.ErrNoRoom) {
				t.Errorf("two blobs of %d bytes ahead, quota %d: %v", size, quota, err)
			}
		}
		if err := c.Fits(t.Context(), []int64{-5}); !errors.Is(err, piece.ErrNoRoom) {
			t.Errorf("a blob of −5 bytes: %v", err)
		}
		if u := c.Usage(); u.Used != 0 || u.Blobs != 0 || c.Promised() != 0 {
			t.Errorf("%+v, promised %d", u, c.Promised())
		}
	}
}

// TestN12_AClaimTakesNothing: what counts is what has arrived.
func TestN12_AClaimTakesNothing(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{Limits: piece.Limits{Quota: 100 * mib}, Free: func() (int64, int64, error) { return 200 * mib, 400 * mib, nil }})
	defer c.close(t)
	nothing := func(when string) {
		t.Helper()
		list, err := c.List(t.Context())
		u := c.Usage()
		files, globErr := filepath.Glob(filepath.Join(dir, "blobs", "sha*", "*", "*"))
		if errors.Join(err, globErr) != nil || len(list)+len(files) != 0 || u.Used != 0 || u.Blobs != 0 || u.FSFree != 200*mib {
			t.Errorf("%s: %d rows, %d files, %+v, %v", when, len(list), len(files), u, err)
		}
	}
	all, d := content(1, 3*piece.Size)
	b := create(t, c, d, 90*mib)
	second, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	nothing("after an admission")
	if _, here := content(2, 1); c.Promised() < 90*mib {
		t.Errorf("%d bytes are promised", c.Promised())
	} else if _, err := c.Create(t.Context(), here, 20*mib, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("two were admitted to the same room: %v", err)
	}
	b.Close()
	nothing("with a reader that is left")
	second.Close()
	nothing("after an end without a byte")
	if n := c.InMemory(); n != 0 || c.Promised() != 0 {
		t.Errorf("%d blobs are in memory, %d bytes promised", n, c.Promised())
	}
	if _, err := c.Open(t.Context(), d); !errors.Is(err, fault.NotFound) {
		t.Errorf("a blob of which nothing came: %v", err)
	}
	b = create(t, c, d, len(all))
	write(t, b, all, 1)
	if u := c.Usage(); u.Used != piece.CostOf(int64(len(all)), piece.Size) || u.Blobs != 1 {
		t.Errorf("with one piece: %+v", u)
	}
	b.Close()
	if i := info(t, c, d); i.Cost != piece.CostOf(int64(len(all)), piece.Size) || c.Promised() != 0 {
		t.Errorf("%+v, promised %d", i, c.Promised())
	}
}

// counting makes room by raising the quota, and says how much it was asked for.
type counting struct {
	c     *cache
	could bool
	made  int64
	calls int
}

func (r *counting) Could(context.Context, int64) bool { return r.could }

func (r *counting) Make(_ context.Context, bytes int64) bool {
	r.calls++
	r.made += bytes
	l := r.c.Limits()
	l.Quota += bytes
	r.c.SetLimits(l)
	return true
}

// TestN12_RoomIsMadeForWhatArrives, and never for more than twice as much.
func TestN12_RoomIsMadeForWhatArrives(t *testing.T) {
	const pieces = 64
	all, d := content(1, pieces*piece.Size)
	c := open(t, piece.Options{Limits: piece.Limits{Quota: piece.Cost(pieces * piece.Size)}})
	full, df := content(2, pieces*piece.Size)
	put(t, c, full, df)
	room := &counting{c: c, could: true}
	c.SetRoom(room)
	b := create(t, c, d, len(all))
	defer b.Close()
	if room.calls != 0 {
		t.Fatalf("room for %d bytes was made for a claim", room.made)
	}
	for i := range pieces {
		write(t, b, all, i)
		if arrived := piece.CostOf(int64(len(all)), int64(i+1)*piece.Size); room.made > 2*arrived {
			t.Fatalf("room for %d bytes was made when %d had arrived", room.made, arrived)
		}
	}
	if room.calls > 10 {
		t.Errorf("room was made %d times for %d pieces", room.calls, pieces)
	}
	if u := c.Usage(); u.Used != 2*piece.Cost(int64(len(all))) {
		t.Errorf("%+v", u)
	}
}

// TestN6_WhatCannotFitAsAWholeIsNotBegun: for a part of it nothing need go.
func TestN6_WhatCannotFitAsAWholeIsNotBegun(t *testing.T) {
	c := open(t, piece.Options{Limits: piece.Limits{Quota: 2 * mib}})
	room := &counting{c: c}
	c.SetRoom(room)
	full, df := content(2, mib)
	put(t, c, full, df)
	_, d := content(1, 1)
	if _, err := c.Create(t.Context(), d, 3*mib/2, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) || room.calls != 0 {
		t.Errorf("%v, room was made %d times", err, room.calls)
	}
}

// TestR16_ASupersededSizeGivesWay: one of two sizes was wrong.
func TestR16_ASupersededSizeGivesWay(t *testing.T) {
	synctest.Test(t, supersede)
}

func supersede(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, 40*piece.Size)
	write(t, b, append(all, make([]byte, 38*piece.Size)...), 0)
	why := errors.New("it has another size")
	b.Supersede(why)
	if err := b.Wait(t.Context(), 3); !errors.Is(err, why) || !b.Superseded() {
		t.Errorf("who waits hears %v", err)
	}
	if err := b.WritePiece(t.Context(), 1, part(all, 1), "test"); !errors.Is(err, why) {
		t.Errorf("who writes hears %v", err)
	}
	made := make(chan *piece.Blob)
	go func() {
		b, err := c.Create(context.Background(), d, int64(len(all)), piece.Meta{})
		if err != nil {
			t.Error(err)
		}
		made <- b
	}()
	synctest.Wait() // it waits for the handle that is left
	b.Close()
	b = <-made
	defer b.Close()
	write(t, b, all, 0, 1)
	if !b.Complete() {
		t.Error("it is not complete")
	}
	b.Supersede(why)
	if b.Superseded() {
		t.Error("what matched its digest was superseded")
	}
	if u := c.Usage(); u.Used != piece.Cost(int64(len(all))) || u.Blobs != 1 {
		t.Errorf("%+v", u)
	}
}

// TestR16_StartsWithAnyContent: an agent whose disk has what an earlier version
// was made to write, or what somebody left there, must start and go on.
func TestR16_StartsWithAnyContent(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	kept, dk := content(1, 1000)
	put(t, c, kept, dk)
	var ds []oci.Digest
	for i := range 8 {
		all, d := content(uint64(10+i), 3*piece.Size)
		b := create(t, c, d, len(all))
		write(t, b, all, 0)
		b.Close()
		ds = append(ds, d)
	}
	c.close(t)

	db, err := sql.Open("sqlite", filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatal(err)
		}
	}
	for i, size := range []any{int64(math.MaxInt64 - 300000), -1, int64(1 << 43), "many"} {
		exec("UPDATE blobs SET size = ? WHERE digest = ?", size, string(ds[i]))
	}
	exec("UPDATE blobs SET used_at = 'yesterday' WHERE digest = ?", string(ds[4]))
	exec("UPDATE blobs SET digest = 'nonsense' WHERE digest = ?", string(ds[5]))
	exec("INSERT INTO edges (parent, child, role, size, media_type) VALUES (?, ?, 'layer', ?, 'x'), (?, ?, 'layer', 'large', 'x')",
		string(dk), string(ds[0]), int64(math.MaxInt64), string(dk), string(ds[1]))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	path := func(d oci.Digest) string { return filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded()) }
	_, pipe := content(100, 1)
	_, tree := content(101, 1)
	err = errors.Join(
		os.Truncate(path(ds[6])+".pieces", 1<<40), // sparse
		os.Remove(path(ds[7])), unix.Mkfifo(path(ds[7]), 0o600),
		os.MkdirAll(filepath.Dir(path(pipe)), 0o700), unix.Mkfifo(path(pipe)+".pieces", 0o600),
		os.MkdirAll(filepath.Join(path(tree), "deep"), 0o700),
		os.WriteFile(filepath.Join(dir, "blobs", "sha512"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}

	for range 2 {
		c = openAt(t, dir, piece.Options{Limits: piece.Limits{Quota: 64 * mib}})
		if u := c.Usage(); u.Used < 0 || u.Used > 16*mib {
			t.Errorf("%+v", u)
		}
		if got, err := get(c, dk, 0, -1); err != nil || len(got) != len(kept) {
			t.Errorf("what is right: %d bytes, %v", len(got), err)
		}
		edges, err := c.index.Children(t.Context(), dk)
		if err != nil || len(edges) != 2 {
			t.Errorf("%+v, %v", edges, err)
		}
		for _, e := range edges {
			if e.Size != -1 {
				t.Errorf("a size out of bounds is handed on: %d", e.Size)
			}
		}
		if _, err := c.Info(t.Context(), ds[2]); !errors.Is(err, fault.NotFound) {
			t.Errorf("a blob that is larger than any may be: %v", err)
		}
		if list, err := c.List(t.Context()); err != nil || len(list) == 0 {
			t.Errorf("%d blobs, %v", len(list), err)
		}
		c.close(t)
	}
	c = openAt(t, dir, piece.Options{Limits: piece.Limits{Quota: 64 * mib}})
	defer c.close(t)
	for i := range ds {
		all, d := content(uint64(10+i), 3*piece.Size)
		b := create(t, c, d, len(all))
		write(t, b, all, b.Missing()...)
		b.Close()
		if in := info(t, c, d); in.State != index.Complete {
			t.Errorf("blob %d: %+v", i, in)
		}
	}
	for _, seed := range []uint64{100, 101} {
		all, d := content(seed, 1)
		put(t, c, all, d)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "*.moved-*")); len(left) == 0 {
		t.Error("nothing was moved aside")
	}
}

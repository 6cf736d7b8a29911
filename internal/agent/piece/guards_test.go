package piece_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
)

// TestR16_WhatNobodyHasOpenGivesWayToAnotherSize: what is left of a download with another
// size is in memory for a while after it was left. One that somebody has open stays.
func TestR16_WhatNobodyHasOpenGivesWayToAnotherSize(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	wrong := make([]byte, 3*piece.Size)
	b := create(t, c, d, len(wrong))
	write(t, b, wrong, 0)
	if _, err := c.Create(t.Context(), d, int64(len(all)), piece.Meta{}); !errors.Is(err, fault.Conflict) {
		t.Errorf("another size while it is open: %v", err)
	}
	write(t, b, wrong, 1)
	if !b.Has(0) || !b.Has(1) {
		t.Error("what had come is gone")
	}
	b.Close()
	b = create(t, c, d, len(all))
	if b.Size() != int64(len(all)) || b.Has(0) {
		t.Errorf("%d bytes; the piece of another size is here: %v", b.Size(), b.Has(0))
	}
	write(t, b, all, 0, 1)
	if !b.Complete() {
		t.Error("it is not complete")
	}
	b.Close()
}

// TestR16_TheDigestHasDecidedAfterARestartToo: a size that somebody states does not
// replace a blob that matched its digest.
func TestR16_TheDigestHasDecidedAfterARestartToo(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	all, d := content(1, 2*piece.Size)
	put(t, c, all, d)
	c.close(t)
	c = openAt(t, dir, piece.Options{})
	defer c.close(t)
	b := create(t, c, d, 7)
	if !b.Complete() || b.Size() != int64(len(all)) {
		t.Errorf("complete %v, %d bytes", b.Complete(), b.Size())
	}
	b.Close()
}

func TestR16_ABlobOfNoSizeIsNotBegun(t *testing.T) {
	c := open(t, piece.Options{})
	_, d := content(1, 5)
	if b, err := c.Create(t.Context(), d, -1, piece.Meta{}); err == nil {
		t.Errorf("a blob of %d bytes", b.Size())
		b.Close()
	}
	if u := c.Usage(); u.Used != 0 || u.Blobs != 0 {
		t.Errorf("%+v", u)
	}
}

// TestN11_WhatEverybodyHasStaysEverybodys: a download that brings the same as private content
// takes it from nobody.
func TestN11_WhatEverybodyHasStaysEverybodys(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 1000)
	put(t, c, all, d)
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := c.Put(t.Context(), d, all, piece.Meta{Private: true}); err != nil || b.Private() {
		t.Errorf("%v; private: %v", err, b.Private())
	}
	if i := info(t, c, d); i.Private {
		t.Error("its row is private")
	}
}

// bounded makes room for so many bytes at a time, and notes what it was asked for.
type bounded struct {
	c     *cache
	most  int64
	asked []int64
}

func (r *bounded) Could(context.Context, int64) bool { return true }

func (r *bounded) Make(_ context.Context, bytes int64) bool {
	r.asked = append(r.asked, bytes)
	if bytes > r.most {
		return false
	}
	l := r.c.Limits()
	l.Quota += bytes
	r.c.SetLimits(l)
	return true
}

// TestN8_RoomForOnePieceIsEnoughForIt: more is asked for at first, so that not each piece
// asks for its own, and never more than is to come.
func TestN8_RoomForOnePieceIsEnoughForIt(t *testing.T) {
	const pieces = 8
	all, d := content(1, pieces*piece.Size)
	c := open(t, piece.Options{Limits: piece.Limits{Quota: piece.Cost(pieces * piece.Size)}})
	full, df := content(2, pieces*piece.Size)
	put(t, c, full, df)
	room := &bounded{c: c, most: piece.Cost(piece.Size)}
	c.SetRoom(room)
	b := create(t, c, d, len(all))
	defer b.Close()
	for i := range pieces {
		room.asked = nil
		write(t, b, all, i)
		left := piece.CostOf(int64(len(all)), int64(len(all))) - piece.CostOf(int64(len(all)), int64(i)*piece.Size)
		for _, n := range room.asked {
			if n > left {
				t.Errorf("room for %d bytes is asked for when %d are to come", n, left)
			}
		}
	}
	if !b.Complete() {
		t.Error("it is not complete")
	}
}

// TestN6_WhatIsLargerThanTheDiskIsNotBegun: whatever goes, and whatever the judge says.
func TestN6_WhatIsLargerThanTheDiskIsNotBegun(t *testing.T) {
	c := open(t, piece.Options{Limits: piece.Limits{MinFree: 2 * mib}, Free: func() (int64, int64, error) { return 9 * mib, 10 * mib, nil }})
	asked := 0
	c.SetRoom(room{func(context.Context, int64) bool { asked++; return true }})
	_, d := content(1, 1)
	if _, err := c.Create(t.Context(), d, 9*mib, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) || asked > 0 {
		t.Errorf("%v, room was made %d times", err, asked)
	}
}

// TestSpare_KeepsTheMarginOfTheDisk: if that is more than the watermark leaves free.
func TestSpare_KeepsTheMarginOfTheDisk(t *testing.T) {
	c := open(t, piece.Options{Limits: piece.Limits{High: 0.9, Low: 0.8, MinFree: 40 * mib}, Free: func() (int64, int64, error) { return 50 * mib, 100 * mib, nil }})
	if err := c.Fits(t.Context(), []int64{9 * mib}); err != nil {
		t.Error(err)
	}
	if err := c.Fits(t.Context(), []int64{11 * mib}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("into the margin: %v", err)
	}
	if err := c.Fits(t.Context(), []int64{piece.SizeMax, piece.SizeMax, -1}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("what no blob can have: %v", err)
	}
}

// TestBlob_IsMadeOnceByManyWriters: the second waits until the first has made its files.
func TestBlob_IsMadeOnceByManyWriters(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, len(all))
	defer b.Close()
	var second sync.WaitGroup
	var made atomic.Int64
	c.SetStep(func(step string) {
		if step != "row put" || made.Add(1) > 1 {
			return
		}
		done := make(chan struct{})
		second.Go(func() {
			defer close(done)
			if err := b.WritePiece(context.Background(), 1, part(all, 1), "second"); err != nil {
				t.Error(err)
			}
		})
		select {
		case <-done:
			t.Error("the second writer did not wait")
		case <-time.After(100 * time.Millisecond): // it waits, or is slow, which is as well
		}
	})
	write(t, b, all, 0)
	second.Wait()
	if u := c.Usage(); made.Load() != 1 || u.Blobs != 1 || !b.Complete() || c.Pending() != 0 {
		t.Errorf("made %d times, %+v, complete %v, pending %d", made.Load(), u, b.Complete(), c.Pending())
	}
}

// TestR7_ABlobThatCannotBeMadeLeavesNothing: no row, no file and no bytes in the accounts.
func TestR7_ABlobThatCannotBeMadeLeavesNothing(t *testing.T) {
	for name, block := range map[string]func(path string) string{
		"data":      func(path string) string { return path },
		"checksums": func(path string) string { return path + ".pieces" },
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, piece.Options{})
			all, d := content(1, 2*piece.Size)
			in := filepath.Join(block(c.Path(d)), "in", "the", "way")
			if err := os.MkdirAll(in, 0o700); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			c.SetStep(func(step string) {
				if step == "row put" {
					cancel() // the reader that waits leaves
				}
			})
			if err := c.Put(ctx, d, all, piece.Meta{}); err == nil {
				t.Fatal("it was made")
			}
			c.SetStep(func(string) {})
			if _, err := c.index.Blob(t.Context(), d); !errors.Is(err, fault.NotFound) {
				t.Errorf("its row: %v", err)
			}
			there, err := os.ReadDir(filepath.Dir(c.Path(d)))
			if err != nil || len(there) != 1 {
				t.Errorf("%d files, %v", len(there), err)
			}
			if u := c.Usage(); u.Used != 0 || u.Blobs != 0 || c.Pending() != 0 || c.Promised() != 0 {
				t.Errorf("%+v, pending %d, promised %d", u, c.Pending(), c.Promised())
			}
			if err := os.RemoveAll(block(c.Path(d))); err != nil {
				t.Fatal(err)
			}
			put(t, c, all, d)
		})
	}
}

// TestR16_BlobsThatNobodyHasOpenAreBounded: by their number, and by that of their pieces.
func TestR16_BlobsThatNobodyHasOpenAreBounded(t *testing.T) {
	c := open(t, piece.Options{Free: func() (int64, int64, error) { return 1 << 50, 1 << 51, nil }})
	for n := range 150 {
		all, d := content(uint64(n), 10)
		put(t, c, all, d)
	}
	if n := c.InMemory(); n > 128 {
		t.Errorf("%d small blobs are in memory", n)
	}
	p := make([]byte, piece.Size)
	for n := range 3 {
		_, d := content(uint64(1000+n), 10)
		b := create(t, c, d, 40<<30)
		write(t, b, p, 0)
		b.Close()
	}
	if n := c.InMemory(); n > 1 {
		t.Errorf("%d blobs of 40 GiB are in memory", n)
	}
}

// TestR16_AStartBesideWhatCannotBe: a size that no blob has, and files in a directory that
// is not theirs.
func TestR16_AStartBesideWhatCannotBe(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	all, d := content(1, 1000)
	huge, dh := content(2, 1000)
	put(t, c, all, d)
	put(t, c, huge, dh)
	good, bad := c.Path(d), c.Path(dh)
	c.close(t)
	for _, name := range []string{"", ".pieces"} {
		for _, shard := range []string{"00", "ff"} { // before and after its own
			astray := filepath.Join(filepath.Dir(filepath.Dir(good)), shard, filepath.Base(good)+name)
			if err := os.MkdirAll(filepath.Dir(astray), 0o700); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(good + name)
			if err = errors.Join(err, os.WriteFile(astray, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	f, err := os.OpenFile(bad+".pieces", os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(piece.Header(piece.SizeMax+1), 0)
		err = errors.Join(err, f.Close(), os.Remove(filepath.Join(dir, "index.db")))
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // what was taken back is so until somebody has looked at it
		c = openAt(t, dir, piece.Options{})
		if back := c.TakenBack(); len(back) != 1 || back[0] != d {
			t.Errorf("taken back: %v", back)
		}
		if u := c.Usage(); u.Blobs != 1 || u.Used < 0 || u.Used > mib {
			t.Errorf("%+v", u)
		}
		if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		c.close(t)
	}
}

func TestReader_OfAClosedHandleReadsNothing(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 1000)
	put(t, c, all, d)
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	r := b.NewReader(t.Context(), 0, -1)
	if n, err := r.Read(make([]byte, 10)); n > 0 || !errors.Is(err, piece.ErrClosed) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Remove(t.Context(), claim(t, c, d)); err != nil {
		t.Errorf("it counts as open: %v", err)
	}
}

// TestR7_ABlobIsOnDiskBeforeItsRowSaysSo: but for a small one, which costs little to get again.
func TestR7_ABlobIsOnDiskBeforeItsRowSaysSo(t *testing.T) {
	c := open(t, piece.Options{})
	for size, want := range map[int][]string{piece.Size: {"completed"}, piece.Size + 1: {"synced", "completed"}} {
		var steps []string
		c.SetStep(func(step string) {
			if step == "synced" || step == "completed" {
				steps = append(steps, step)
			}
		})
		all, d := content(uint64(size), size)
		put(t, c, all, d)
		if !slices.Equal(steps, want) {
			t.Errorf("%d bytes: %v, want %v", size, steps, want)
		}
	}
}

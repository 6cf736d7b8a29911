package piece_test

import (
	"errors"
	"testing"

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

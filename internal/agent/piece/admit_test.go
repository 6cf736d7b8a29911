package piece_test

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
)

// metric reads a metric without labels.
func metric(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// room makes room by a function, and says that it could before it is asked to.
type room struct {
	make func(ctx context.Context, bytes int64) bool
}

func (r room) Could(context.Context, int64) bool          { return true }
func (r room) Make(ctx context.Context, bytes int64) bool { return r.make(ctx, bytes) }

func TestN6_WhatDoesNotFitIsRefusedAndNothingIsRemoved(t *testing.T) {
	reg := prometheus.NewRegistry()
	quota := piece.Cost(3*piece.Size) + piece.Cost(piece.Size)
	c := open(t, piece.Options{Limits: piece.Limits{Quota: quota}, Metrics: reg})
	a, da := content(1, 3*piece.Size)
	b := create(t, c, da, len(a)) // promised in full, though nothing is written
	defer b.Close()
	x, dx := content(2, 2*piece.Size)
	_, err := c.Create(t.Context(), dx, int64(len(x)), piece.Meta{})
	if !errors.Is(err, piece.ErrNoRoom) || !errors.Is(err, fault.Full) {
		t.Fatalf("past the quota: %v", err)
	}
	if _, err := c.Info(t.Context(), dx); !errors.Is(err, fault.NotFound) {
		t.Errorf("a blob that was refused has a row: %v", err)
	}
	fits, df := content(3, piece.Size)
	put(t, c, fits, df)
	if u := c.Usage(); u.Used != piece.Cost(piece.Size) || u.Blobs != 1 {
		t.Errorf("%+v", u)
	}
	write(t, b, a, 0, 1, 2)
	if u := c.Usage(); u.Used != quota || u.Blobs != 2 || c.Promised() != 0 {
		t.Errorf("%+v, promised %d", u, c.Promised())
	}
	for name, want := range map[string]float64{"admissions_refused_total": 1, "bytes": float64(quota), "quota_bytes": float64(quota), "blobs": 2, "corrupt_pieces_total": 0} {
		if got := metric(t, reg, "fairway_node_cache_"+name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestCreate_AsksForRoomAndTriesAgain(t *testing.T) {
	quota := piece.Cost(2 * piece.Size)
	c := open(t, piece.Options{Limits: piece.Limits{Quota: quota}})
	a, da := content(1, 2*piece.Size)
	put(t, c, a, da)
	var asked []int64
	c.SetRoom(room{func(ctx context.Context, need int64) bool {
		asked = append(asked, need)
		_, err := c.Remove(ctx, claim(t, c, da))
		return err == nil
	}})
	x, dx := content(2, piece.Size)
	put(t, c, x, dx)
	if len(asked) != 1 || asked[0] != piece.Cost(piece.Size) {
		t.Errorf("asked for %v", asked)
	}
	_, huge := content(3, 1)
	if _, err := c.Create(t.Context(), huge, quota, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) || len(asked) != 1 {
		t.Errorf("what would not fit into an empty cache: %v, asked for %v", err, asked)
	}
	c.SetRoom(room{func(context.Context, int64) bool { asked = append(asked, 0); return true }})
	y, dy := content(4, 2*piece.Size-1)
	if err := c.Put(t.Context(), dy, y, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) || len(asked) > 5 {
		t.Errorf("room that is promised and never there: %v, asked %d times", err, len(asked))
	}
	if u := c.Usage(); u.Used != piece.Cost(piece.Size) || u.Blobs != 1 || c.Pending() != 0 || c.Promised() != 0 {
		t.Errorf("%+v, pending %d, promised %d", u, c.Pending(), c.Promised())
	}
	c.SetLimits(piece.Limits{Quota: 10 * quota})
	put(t, c, a, da)
}

func TestCreate_KeepsTheMarginOfTheDisk(t *testing.T) {
	free := int64(10 * mib)
	c := open(t, piece.Options{Limits: piece.Limits{MinFree: 4 * mib}, Free: func() (int64, int64, error) { return free, 100 * mib, nil }})
	_, d1 := content(1, 1)
	_, d2 := content(2, 1)
	b := create(t, c, d1, 4*mib)
	defer b.Close()
	// 10 are free, 4 of them are promised to the first and 4 to nobody.
	if _, err := c.Create(t.Context(), d2, 3*mib, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("into the margin: %v", err)
	}
	if u := c.Usage(); u.FSFree != 10*mib || u.FSTotal != 100*mib {
		t.Errorf("%+v", u)
	}
	b2 := create(t, c, d2, mib)
	b2.Close()
}

func TestCreate_AnotherSize(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, 5) // somebody said that it is small
	if _, err := c.Create(t.Context(), d, int64(len(all)), piece.Meta{}); !errors.Is(err, fault.Conflict) {
		t.Errorf("another size while it is fetched: %v", err)
	}
	b.Close()
	b = create(t, c, d, len(all))
	write(t, b, all, 0, 1)
	b.Close()
	b = create(t, c, d, 7) // the digest has decided
	if !b.Complete() || b.Size() != int64(len(all)) {
		t.Errorf("complete %v, %d bytes", b.Complete(), b.Size())
	}
	b.Close()
	if u := c.Usage(); u.Used != piece.Cost(int64(len(all))) || u.Blobs != 1 || c.Pending() != 0 {
		t.Errorf("%+v, pending %d", u, c.Pending())
	}
}

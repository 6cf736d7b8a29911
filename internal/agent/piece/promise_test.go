package piece_test

import (
	"context"
	"errors"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
)

// leavingRoom could always be made, but its asker leaves meanwhile.
type leavingRoom struct{ leave context.CancelFunc }

func (r *leavingRoom) Make(context.Context, int64) bool  { return false }
func (r *leavingRoom) Could(context.Context, int64) bool { r.leave(); return true }

func TestN12_ThePromiseToSomebodyWhoLeftIsReleased(t *testing.T) {
	c := openAt(t, t.TempDir(), piece.Options{Limits: piece.Limits{Quota: 40 * piece.Size}})
	defer c.close(t)
	b, d := content(1, 20*piece.Size)
	put(t, c, b, d)
	for n := range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		c.SetRoom(&leavingRoom{cancel})
		_, d := content(uint64(10+n), 30*piece.Size)
		_, err := c.Create(ctx, d, 30*piece.Size, piece.Meta{})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	c.SetRoom(nil)
	_, d2 := content(99, 4*piece.Size)
	x, err := c.Create(t.Context(), d2, 4*piece.Size, piece.Meta{})
	if err != nil {
		t.Fatalf("half of the quota is free: %v (full: %v)", err, errors.Is(err, fault.Full))
	}
	x.Close()
}

func TestR12_PrivateContentIsNotPutIntoAPublicEntry(t *testing.T) {
	c := openAt(t, t.TempDir(), piece.Options{})
	defer c.close(t)
	p, d := content(1, 1000)
	pub, err := c.Create(t.Context(), d, 1000, piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put(t.Context(), d, p, piece.Meta{Private: true}); !errors.Is(err, fault.Conflict) || pub.Complete() {
		t.Errorf("beside a handle that waits for public content: %v", err)
	}
	pub.Close()
	if err := c.Put(t.Context(), d, p, piece.Meta{Private: true}); err != nil {
		t.Fatal(err)
	}
	row, err := c.index.Blob(t.Context(), d)
	if err != nil || !row.Private {
		t.Errorf("private content has the row %+v, %v", row, err)
	}
}

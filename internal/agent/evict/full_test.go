package evict

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// overfull is a cache of images on a disk that can be filled, with far more than
// its quota in it. All uses are in the index.
func overfull(t *testing.T) (h *house, disk *sqldbtest.Disk, all []image) {
	t.Helper()
	disk = sqldbtest.NewDisk(t)
	c := quota(mib)
	c.disk = disk
	h = open(t, c)
	l := h.store.Limits()
	h.store.SetLimits(piece.Limits{Quota: 1 << 40, High: 0.9, Low: 0.8})
	for n := range 8 {
		h.later(90 * time.Minute)
		all = append(all, h.pull(fmt.Sprint(n), nil, 200_000))
	}
	h.later(3 * time.Hour)
	h.evicts() // claims nothing, and has the uses written
	h.store.SetLimits(l)
	return h, disk, all
}

// TestN4_NewsOfTheRuntimesOnAFullDiskHaveTheRestJudgedAgain: on a full disk claims stay
// in memory, and each blob is removed by itself. What the runtimes report meanwhile
// has the rest judged again, and the pass ends.
func TestN4_NewsOfTheRuntimesOnAFullDiskHaveTheRestJudgedAgain(t *testing.T) {
	h, disk, all := overfull(t)
	late := all[2] // it goes in the same part as the first
	var victims int64
	h.whenClaimed(func() { victims = h.store.Usage().Claimed })
	disk.WhenFull(func() {
		if h.store.Usage().Claimed >= victims {
			return // nothing has gone yet
		}
		h.run(late, "abc", inuse.Running)
		if _, err := h.tracker.Ask(context.Background()); err != nil {
			t.Error(err)
		}
		disk.Empty() // the bytes of the first have made room
	})
	disk.Fill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := h.Pass(ctx)
	if err != nil {
		t.Fatalf("the pass does not end: %+v, %v", r, err)
	}
	h.stays(late, "started while others were removed")
	if victims == 0 || r.Evicted < 2 || r.Failed != 0 || h.store.Usage().Claimed != 0 {
		t.Errorf("%d bytes were claimed, %+v, %+v", victims, r, h.store.Usage())
	}
}

package evict

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// spare admits a layer that nobody waits for.
func (h *house) spare(n int) bool {
	h.t.Helper()
	content := h.bytes(n)
	err := h.store.Put(h.t.Context(), digest.FromBytes(content), content, piece.Meta{Spare: true})
	if err != nil && !errors.Is(err, piece.ErrNoRoom) {
		h.t.Fatal(err)
	}
	return err == nil
}

// TestSpare_ColdMakesWayAndNothingElse fills a cache of 20 MiB, which may be
// filled to 18 before anything is evicted.
func TestSpare_ColdMakesWayAndNothingElse(t *testing.T) {
	h := open(t, choice{limits: piece.Limits{Quota: 20 * mib}})
	cold := h.pull("cold", nil, 4*mib, 4*mib)
	h.later(2 * time.Hour)
	warm := h.pull("warm", nil, 6*mib)
	h.later(10 * time.Minute)
	if !h.spare(3 * mib) {
		t.Fatal("there was room for it below the watermark")
	}
	h.stays(cold, "while there is room")
	if err := h.store.Fits(t.Context(), []int64{mib, 12 * mib}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("more than what is cold could give: %v", err)
	}
	h.stays(cold, "for what would not fit all the same")
	if err := h.store.Fits(t.Context(), []int64{4 * mib}); err != nil {
		t.Error(err)
	}
	h.stays(cold, "for a claim, of which nothing has arrived")
	if !h.spare(4 * mib) {
		t.Error("what fits was not admitted")
	}
	if n := h.whole(cold); n != len(cold.all())-1 {
		t.Errorf("%d of %d cold blobs are left: one was enough", n, len(cold.all()))
	}
	h.later(10 * time.Minute)
	if h.spare(6 * mib) {
		t.Error("it was admitted above the watermark, or in the place of what is warm")
	}
	h.stays(warm, "for what nobody needs")
	if r := h.evicts(); r.Evicted > 0 {
		t.Errorf("a pass after it evicted %+v", r)
	}
	if n := h.told(EventFull); n > 0 || h.metric("fairway_node_over_quota") > 0 {
		t.Error("an alarm because of what nobody needs")
	}
	// Who waits gets the place of what is warm.
	if _, ok := h.put(h.bytes(9*mib), ""); !ok {
		t.Error("a pull found no room")
	}
}

// TestSpare_KeepsBelowTheWatermarkOfTheDisk has others fill it.
func TestSpare_KeepsBelowTheWatermarkOfTheDisk(t *testing.T) {
	h := open(t, choice{limits: piece.Limits{Quota: 100 * mib}})
	h.disk.total.Store(100 * mib)
	h.disk.others.Store(85 * mib)
	if !h.spare(4 * mib) {
		t.Error("there was room for it")
	}
	if h.spare(2 * mib) {
		t.Error("it fills the disk beyond the watermark")
	}
	if _, ok := h.put(h.bytes(2*mib), ""); !ok {
		t.Error("a pull found no room")
	}
}

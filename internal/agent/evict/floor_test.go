package evict

import (
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// TestN5_NoVictimGoesBelowTheFloorForTheDisk: what goes by the piece must not
// overshoot it, and an admission that the floor is in the way of takes nothing.
func TestN5_NoVictimGoesBelowTheFloorForTheDisk(t *testing.T) {
	const now = 10 * 24 * 3600_000
	facts := make([]Facts, 10)
	for i := range facts {
		facts[i] = Facts{Digest: blobName(i), Size: mib, CreatedAt: 1, UsedAt: 1}
	}
	l := Limits{High: 0.9, Low: 0.8, Floor: 5*mib + mib/2, Warm: time.Hour}
	s := Situation{Now: now, Usage: Usage{Used: 10 * mib, FSFree: 0, FSTotal: 100 * mib}}
	if j := Judge(facts, s, l); len(j.Victims) != 4 {
		t.Errorf("%d of 10 blobs of 1 MiB go, with a floor of 5.5 MiB", len(j.Victims))
	}
	l.MinFree = 2 * mib
	s.Need = 6 * mib
	if j := Judge(facts, s, l); !j.Refused {
		t.Errorf("room for 6 MiB is promised, though the floor leaves 4: %+v", j)
	}
	s.Usage.FSFree = 50 * mib
	l.Quota, s.Need = 11*mib, 10*mib
	if j := Judge(facts, s, l); j.Refused || len(j.Victims) != 9 {
		t.Errorf("the quota is not bound by the floor: refused %v, %d victims", j.Refused, len(j.Victims))
	}
}

// TestN4_AnExpiredImageThatReturnedStays: it came back upstream between the
// judgement and the removal, and is as cold as before.
func TestN4_AnExpiredImageThatReturnedStays(t *testing.T) {
	c := quota(40 * mib)
	c.options.DeletedTTL = time.Hour
	h := open(t, c)
	back, gone := h.pull("back", nil, 200_000), h.pull("gone", nil, 200_000)
	h.later(2 * time.Second)
	if err := h.index.SetDeleted(t.Context(), []oci.Digest{back.manifest, gone.manifest}, h.index.Now()); err != nil {
		t.Fatal(err)
	}
	h.later(5 * time.Hour) // cold, and expired
	h.whenClaimed(func() {
		if err := h.index.SetDeleted(t.Context(), []oci.Digest{back.manifest}, 0); err != nil {
			t.Error(err)
		}
	})
	r := h.evicts()
	h.stays(back, "there again")
	if r.Evicted != 3 || r.Raced != 3 {
		t.Errorf("%+v", r)
	}
}

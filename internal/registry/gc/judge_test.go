package gc_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// The oracles below say in other words than the judges what may go. They know
// no order of cases: something goes only if nothing at all speaks for it.

func anyLimits(t *rapid.T) gc.Limits {
	d := rapid.SampledFrom([]int64{0, 1, 10, 100})
	l := gc.Limits{Now: rapid.Int64Range(100, 400).Draw(t, "now"), Window: d.Draw(t, "window"), Trash: d.Draw(t, "trash"), Untagged: d.Draw(t, "untagged"), Uploads: d.Draw(t, "uploads")}
	return l
}

func anyCount(t *rapid.T, name string) int64 {
	return rapid.SampledFrom([]int64{0, 0, 0, 1, 2}).Draw(t, name)
}

func anyTime(t *rapid.T, name string) int64 { return rapid.Int64Range(1, 400).Draw(t, name) }

func maybeTime(t *rapid.T, name string) int64 {
	if rapid.Bool().Draw(t, name+"?") {
		return 0
	}
	return anyTime(t, name)
}

func anyLease(t *rapid.T) meta.LeaseHold {
	if rapid.IntRange(0, 3).Draw(t, "leased") > 0 {
		return meta.LeaseHold{}
	}
	return meta.LeaseHold{Holder: "node", ExpiresAt: anyTime(t, "expires") + rapid.SampledFrom([]int64{0, 400}).Draw(t, "later")}
}

// leases says that a lease holds, or did when the window began.
func leases(h meta.LeaseHold, l gc.Limits) bool {
	return h.Holder != "" && l.Now-h.ExpiresAt < l.Window || h.ExpiresAt > l.Now
}

// over reports that d has passed since then; a d of 0 protects nothing.
func over(now, then, d int64) bool { return d == 0 || now-then >= d }

func check(t *rapid.T, v gc.Verdict, want bool, again int64, now int64) {
	if v.Go != want {
		t.Fatalf("verdict %+v, want go = %v", v, want)
	}
	if v.Reason == "" || !v.Go && v.Kept == "" {
		t.Fatalf("verdict without a reason: %+v", v)
	}
	if !v.Go && v.Again != 0 && again != 0 && v.Again <= now {
		t.Fatalf("kept until %d, which is not after now %d", v.Again, now)
	}
}

func TestR1_JudgeManifestAgainstAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.ManifestFacts{Tags: anyCount(t, "tags"), Parents: anyCount(t, "parents"), Subjects: anyCount(t, "subjects"),
			TouchedAt: anyTime(t, "touched"), LooseAt: anyTime(t, "loose"), OrphanedAt: maybeTime(t, "orphaned"), Lease: anyLease(t)}
		held := f.Tags+f.Parents+f.Subjects > 0 || leases(f.Lease, l)
		orphanGoes := f.OrphanedAt != 0 && over(l.Now, f.OrphanedAt, l.Window) && over(l.Now, f.LooseAt, l.Window) && over(l.Now, f.TouchedAt, l.Window)
		untaggedGoes := f.OrphanedAt == 0 && l.Untagged > 0 && over(l.Now, f.LooseAt, l.Untagged) && over(l.Now, f.TouchedAt, l.Untagged) &&
			over(l.Now, f.LooseAt, l.Window) && over(l.Now, f.TouchedAt, l.Window)
		v := gc.JudgeManifest(f, l)
		check(t, v, !held && (orphanGoes || untaggedGoes), v.Again, l.Now)
	})
}

func TestR10_JudgeTrashAgainstAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.TrashFacts{TrashedAt: anyTime(t, "trashed"), Indexed: rapid.Bool().Draw(t, "indexed"), Lease: anyLease(t)}
		v := gc.JudgeTrash(f, l)
		check(t, v, !f.Indexed && !leases(f.Lease, l) && over(l.Now, f.TrashedAt, l.Trash), v.Again, l.Now)
	})
}

func TestR3_JudgeLinkAgainstAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.LinkFacts{Living: anyCount(t, "living"), Trashed: anyCount(t, "trashed"), TouchedAt: anyTime(t, "touched"), Lease: anyLease(t)}
		v := gc.JudgeLink(f, l)
		check(t, v, f.Living+f.Trashed == 0 && !leases(f.Lease, l) && over(l.Now, f.TouchedAt, l.Window), v.Again, l.Now)
	})
}

func TestR3_JudgeBlobAgainstAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.BlobFacts{Links: anyCount(t, "links"), TouchedAt: anyTime(t, "touched"), Lease: anyLease(t)}
		v := gc.JudgeBlob(f, l)
		check(t, v, f.Links == 0 && !leases(f.Lease, l) && over(l.Now, f.TouchedAt, l.Window), v.Again, l.Now)
	})
}

func TestJudgeUploadAgainstAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.UploadFacts{TouchedAt: anyTime(t, "touched")}
		busy := rapid.Bool().Draw(t, "busy")
		v := gc.JudgeUpload(f, busy, l)
		check(t, v, !busy && over(l.Now, f.TouchedAt, l.Uploads), v.Again, l.Now)
	})
}

func TestLimitsOf_UploadsFollowTheWindow(t *testing.T) {
	l := gc.LimitsOf(policy(2*time.Hour, 0, 0), 1)
	if l.Uploads != 2*time.Hour.Milliseconds() {
		t.Errorf("uploads are abandoned after %d ms, want the window", l.Uploads)
	}
	p := policy(2*time.Hour, 0, 0)
	p.Uploads = meta.Duration(time.Minute)
	if l = gc.LimitsOf(p, 1); l.Uploads != time.Minute.Milliseconds() {
		t.Errorf("uploads are abandoned after %d ms, want a minute", l.Uploads)
	}
}

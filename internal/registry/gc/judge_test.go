package gc_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// The oracles below say in other words than the judges what may go. They know
// no order of cases: something goes only if no reason speaks for it, and what is
// kept is kept for one of the reasons that do.

// property tries as many cases as it takes to meet the rare ones: those where one
// reason alone speaks for something.
func property(t *testing.T, check func(*rapid.T)) {
	for range 20 {
		rapid.Check(t, check)
	}
}

func anyLimits(t *rapid.T) gc.Limits {
	d := rapid.SampledFrom([]int64{0, 1, 10, 100, 1000}) // 1000: more than the clock shows
	return gc.Limits{Now: rapid.Int64Range(100, 400).Draw(t, "now"), Window: d.Draw(t, "window"), Trash: d.Draw(t, "trash"),
		Untagged: d.Draw(t, "untagged"), Uploads: d.Draw(t, "uploads"), Stranded: d.Draw(t, "stranded")}
}

func anyCount(t *rapid.T, name string) int64 {
	return rapid.SampledFrom([]int64{0, 0, 0, 0, 0, 1, 2}).Draw(t, name)
}

// anyTime is a time in the past, often at the end of one of the durations.
func anyTime(t *rapid.T, l gc.Limits, name string) int64 {
	ago := rapid.SampledFrom([]int64{0, l.Window, l.Trash, l.Untagged, l.Uploads, l.Stranded, 50}).Draw(t, name)
	return max(1, l.Now-ago+rapid.Int64Range(-1, 1).Draw(t, name+" beside"))
}

func maybeTime(t *rapid.T, l gc.Limits, name string) int64 {
	if rapid.Bool().Draw(t, name+"?") {
		return 0
	}
	return anyTime(t, l, name)
}

func anyLease(t *rapid.T, l gc.Limits) meta.LeaseHold {
	if rapid.IntRange(0, 3).Draw(t, "leased") > 0 {
		return meta.LeaseHold{}
	}
	h := meta.LeaseHold{Holder: rapid.SampledFrom([]string{"node:n1", "tester"}).Draw(t, "holder"), ExpiresAt: anyTime(t, l, "expires")}
	if rapid.Bool().Draw(t, "later") {
		h.ExpiresAt += 400
	}
	return h
}

// over reports that d has passed since then; a d of 0 protects nothing.
func over(now, then, d int64) bool { return d == 0 || now-then >= d }

// speaks are the reasons that speak for something.
type speaks map[string]bool

// lease adds what a lease says: while it holds, and for a window after its end.
func (s speaks) lease(h meta.LeaseHold, l gc.Limits) {
	if h.Holder == "" {
		return
	}
	s[gc.KeptLease] = h.ExpiresAt > l.Now
	if h.ExpiresAt <= l.Now && l.Now-h.ExpiresAt < l.Window {
		s[gc.KeptWindow] = true
	}
}

// within adds a reason unless d has passed since all of the times.
func (s speaks) within(why string, l gc.Limits, d int64, times ...int64) {
	for _, at := range times {
		if !over(l.Now, at, d) {
			s[why] = true
		}
	}
}

func (s speaks) check(t *rapid.T, judge func(gc.Limits) gc.Verdict, l gc.Limits) {
	v := judge(l)
	goes := true
	for _, yes := range s {
		goes = goes && !yes
	}
	if v.Go != goes || v.Reason == "" || v.Go && (v.Kept != "" || v.Again != 0) || !v.Go && !s[v.Kept] {
		t.Fatalf("verdict %+v, want go = %v, for one of the reasons %v", v, goes, s)
	}
	// Again is the first moment at which the verdict may change by itself.
	at := func(now int64) gc.Verdict {
		later := l
		later.Now = now
		return judge(later)
	}
	switch {
	case v.Go:
	case v.Again == 0:
		if at(l.Now + 10000).Go {
			t.Fatalf("verdict %+v does not say that it goes later", v)
		}
	case v.Again <= l.Now:
		t.Fatalf("verdict %+v at %d is to be renewed in the past", v, l.Now)
	default:
		if at(v.Again - 1).Go {
			t.Fatalf("verdict %+v, but it goes before that", v)
		}
		if w := at(v.Again); !w.Go && (w.Again == v.Again || v.Kept == gc.KeptGrace || v.Kept == gc.KeptTrash) {
			t.Fatalf("verdict %+v, and at that time it is still %+v", v, w)
		}
	}
}

func TestR1_JudgeManifestAgainstAnOracle(t *testing.T) {
	property(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.ManifestFacts{Tags: anyCount(t, "tags"), Parents: anyCount(t, "parents"), Subjects: anyCount(t, "subjects"),
			TouchedAt: anyTime(t, l, "touched"), LooseAt: anyTime(t, l, "loose"), OrphanedAt: maybeTime(t, l, "orphaned"), Lease: anyLease(t, l)}
		s := speaks{gc.KeptTag: f.Tags > 0, gc.KeptIndex: f.Parents > 0, gc.KeptSubject: f.Subjects > 0}
		s.lease(f.Lease, l)
		switch {
		case f.OrphanedAt != 0:
			s.within(gc.KeptWindow, l, l.Window, f.OrphanedAt, f.LooseAt, f.TouchedAt)
		case l.Untagged == 0:
			s[gc.KeptPolicy] = true
		default:
			s.within(gc.KeptGrace, l, l.Untagged, f.LooseAt, f.TouchedAt)
			s.within(gc.KeptWindow, l, l.Window, f.LooseAt, f.TouchedAt)
		}
		s.check(t, func(l gc.Limits) gc.Verdict { return gc.JudgeManifest(f, l) }, l)
	})
}

func TestR3_JudgeStrandedAgainstAnOracle(t *testing.T) {
	property(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.StrandedFacts{Since: anyTime(t, l, "since"), InTrash: rapid.IntRange(0, 3).Draw(t, "in the trash") == 0, OtherTags: anyCount(t, "other tags"),
			ManifestFacts: meta.ManifestFacts{Tags: 1 + anyCount(t, "tags"), Parents: anyCount(t, "parents"), Subjects: anyCount(t, "subjects"),
				TouchedAt: anyTime(t, l, "touched"), Lease: anyLease(t, l)}}
		s := speaks{gc.KeptTrash: f.InTrash, gc.KeptTag: f.OtherTags > 0, gc.KeptIndex: f.Parents > 0, gc.KeptSubject: f.Subjects > 0, gc.KeptStranded: l.Stranded == 0}
		s.lease(f.Lease, l)
		if l.Stranded != 0 {
			s.within(gc.KeptGrace, l, l.Stranded, f.Since, f.TouchedAt)
			s.within(gc.KeptWindow, l, l.Window, f.Since, f.TouchedAt)
		}
		s.check(t, func(l gc.Limits) gc.Verdict { return gc.JudgeStranded(f, l) }, l)
	})
}

func TestR10_JudgeTrashAgainstAnOracle(t *testing.T) {
	property(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.TrashFacts{TrashedAt: anyTime(t, l, "trashed"), Indexed: rapid.Bool().Draw(t, "indexed"), Lease: anyLease(t, l)}
		s := speaks{gc.KeptIndex: f.Indexed}
		s.lease(f.Lease, l)
		s.within(gc.KeptTrash, l, l.Trash, f.TrashedAt)
		s.check(t, func(l gc.Limits) gc.Verdict { return gc.JudgeTrash(f, l) }, l)
		if v := gc.JudgeTrash(f, l); s[gc.KeptLease] && !f.Indexed && v.Kept != gc.KeptLease {
			t.Fatalf("verdict %+v does not name the lease", v)
		} else if later := (gc.Limits{Now: v.Again, Window: l.Window, Trash: l.Trash}); !v.Go && !f.Indexed && !gc.JudgeTrash(f, later).Go {
			t.Fatalf("verdict %+v, but it does not go then", v)
		}
	})
}

func TestR3_JudgeLinkAgainstAnOracle(t *testing.T) {
	property(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.LinkFacts{Living: anyCount(t, "living"), Trashed: anyCount(t, "trashed"), TouchedAt: anyTime(t, l, "touched"), Lease: anyLease(t, l)}
		s := speaks{gc.KeptReferenced: f.Living > 0, gc.KeptTrash: f.Trashed > 0}
		s.lease(f.Lease, l)
		s.within(gc.KeptWindow, l, l.Window, f.TouchedAt)
		s.check(t, func(l gc.Limits) gc.Verdict { return gc.JudgeLink(f, l) }, l)
	})
}

func TestR3_JudgeBlobAgainstAnOracle(t *testing.T) {
	property(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.BlobFacts{Links: anyCount(t, "links"), TouchedAt: anyTime(t, l, "touched"), Lease: anyLease(t, l)}
		s := speaks{gc.KeptLinked: f.Links > 0}
		s.lease(f.Lease, l)
		s.within(gc.KeptWindow, l, l.Window, f.TouchedAt)
		s.check(t, func(l gc.Limits) gc.Verdict { return gc.JudgeBlob(f, l) }, l)
	})
}

func TestJudgeUploadAgainstAnOracle(t *testing.T) {
	property(t, func(t *rapid.T) {
		l := anyLimits(t)
		f := meta.UploadFacts{TouchedAt: anyTime(t, l, "touched")}
		busy := rapid.Bool().Draw(t, "busy")
		s := speaks{gc.KeptBusy: busy}
		s.within(gc.KeptWindow, l, l.Uploads, f.TouchedAt)
		s.check(t, func(l gc.Limits) gc.Verdict { return gc.JudgeUpload(f, busy, l) }, l)
	})
}

// Reasons are for people: they name the node, the holder and the number.
func TestR10_ReasonsNameWhatKeepsIt(t *testing.T) {
	l := gc.Limits{Now: 1000, Window: 100, Trash: 100, Untagged: 10}
	onNode, byHolder := meta.LeaseHold{Holder: "node:n1", ExpiresAt: 2000}, meta.LeaseHold{Holder: "tester", ExpiresAt: 2000}
	ended := func(h meta.LeaseHold) meta.LeaseHold { h.ExpiresAt = 1000; return h }
	for _, tt := range []struct {
		got            gc.Verdict
		reason, holder string
	}{
		{gc.JudgeManifest(meta.ManifestFacts{Tags: 1}, l), "1 tag names it", ""},
		{gc.JudgeManifest(meta.ManifestFacts{Tags: 2}, l), "2 tags name it", ""},
		{gc.JudgeBlob(meta.BlobFacts{Links: 3}, l), "3 repositories have it", ""},
		{gc.JudgeBlob(meta.BlobFacts{Lease: onNode}, l), "it or what is above it is in use on node n1", onNode.Holder},
		{gc.JudgeBlob(meta.BlobFacts{Lease: byHolder}, l), "tester holds a lease on it or on what is above it", "tester"},
		{gc.JudgeBlob(meta.BlobFacts{Lease: ended(onNode)}, l), "it or what is above it was in use on node n1 within the window", ""},
		{gc.JudgeBlob(meta.BlobFacts{Lease: ended(byHolder)}, l), "the lease of tester on it or on what is above it ended within the window", ""},
		{gc.JudgeTrash(meta.TrashFacts{TrashedAt: 999, Lease: byHolder}, l), "tester holds a lease on it or on what is above it", "tester"},
		{gc.JudgeManifest(meta.ManifestFacts{TouchedAt: 1, LooseAt: 1}, l), "no tag, index or subject has kept it for 100ms", ""},
	} {
		if tt.got.Reason != tt.reason || tt.got.Holder != tt.holder {
			t.Errorf("reason %q, holder %q, want %q, %q", tt.got.Reason, tt.got.Holder, tt.reason, tt.holder)
		}
	}
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

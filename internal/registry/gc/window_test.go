package gc_test

import (
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// A client pushes the children of an index by digest, is told that they are
// there, and pushes the index last. No duration but the window says how long it
// may take.
func TestR3_NoDurationShortensTheWindowOfAConfirmedManifest(t *testing.T) {
	short := []time.Duration{0, time.Second, 10 * time.Minute}
	for _, trashTime := range short {
		for _, untagged := range short {
			h := newHouse(t)
			p := policy(window, trashTime, untagged)
			p.Uploads = meta.Duration(time.Second)
			c := h.image("a", []string{"layer"})
			h.pass(window - time.Minute)
			h.collect(p)
			h.wants(h.hasManifest("a", c), "trash %s, untagged %s: the child went within the window after its push", trashTime, untagged) // confirms it
			h.pass(window - time.Minute)
			h.collect(p)
			i := h.index("a", "v1", c)
			h.wants(h.hasManifest("a", c) && h.hasManifest("a", i) && h.hasBlob("a", "layer"), "trash %s, untagged %s: the index was accepted and its child is gone", trashTime, untagged)
		}
	}
}

func TestR3_UntaggedManifestGoesAWindowAfterItsLastTag(t *testing.T) {
	h := newHouse(t)
	p := policy(window, trash, time.Minute)
	d := h.image("a", []string{"layer"}, "v1")
	h.pass(window)
	h.must(h.store.DeleteTag(h.ctx(), "a", "v1", "tester"))
	h.opts.Policy = p
	h.withStore(h.files)
	goes := meta.Time(h.clock.Load() + window.Milliseconds())
	explain := func() {
		t.Helper()
		x, err := h.gc.Explain(h.ctx(), "a@"+string(d))
		h.must(err)
		h.wants(x.Verdict == gc.VerdictWaiting && x.GoesAt != nil && x.GoesAt.Equal(goes), "explain within the window: %s, goes at %v, want %s: %s", x.Verdict, x.GoesAt, goes, x.Summary)
	}
	explain()
	h.pass(window - time.Minute)
	run := h.collect(p)
	h.wants(run.Trashed == 0, "it went within the window after its last tag: %+v", run.Counts)
	explain()
	h.pass(time.Minute)
	run = h.collect(p)
	h.wants(run.Trashed == 1, "it stays after the window: %+v", run.Counts)
}

// A push of a manifest that is there writes less, but not less than this needs.
func TestR3_ATagOnAnUntaggedManifestEndsItsTimeWithout(t *testing.T) {
	h := newHouse(t)
	p := policy(window, trash, 3*window)
	d := h.image("a", []string{"layer"})
	h.pass(10 * window)
	h.image("a", []string{"layer"}, "v1")
	h.pass(2 * window)
	h.must(h.store.DeleteTag(h.ctx(), "a", "v1", "tester"))
	h.pass(2 * window)
	run := h.collect(p)
	h.wants(run.Trashed == 0 && h.hasManifest("a", d), "its time without a tag does not count from its last tag: %+v", run.Counts)
	h.pass(3*window + time.Minute) // the look was a confirmation
	run = h.collect(p)
	h.wants(run.Trashed == 1, "it stays for ever: %+v", run.Counts)
}

// A referrer keeps no subject, but its push relies on the subject.
func TestR3_ReferrerConfirmsItsSubject(t *testing.T) {
	h := newHouse(t)
	p := policy(window, trash, time.Minute)
	d := h.image("a", []string{"layer"})
	h.pass(window - time.Minute)
	h.must(h.put("a", manifest(d)))
	h.pass(window - time.Minute)
	h.collect(p)
	h.wants(h.hasManifest("a", d), "the subject of a referrer went within the window after the referrer's push")
	h.pass(window + time.Minute)
	run := h.collect(p)
	h.wants(run.Trashed >= 1 && !h.hasManifest("a", d), "the referrer keeps its subject: %+v", run.Counts)
}

// Here the judge goes by no window at all, and the store refuses for the one
// reason that the policy has one.
func TestR3_StoreAppliesTheWindowOfThePolicyWhateverWasJudged(t *testing.T) {
	h := newHouse(t)
	const second = time.Second
	withPolicy := func(w meta.Work) meta.Work {
		w.Policy = policy(window, trash, second)
		return w
	}
	trashing := func(d oci.Digest) meta.Work {
		f := h.manifestOf("a", d)
		return withPolicy(meta.Work{Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}}})
	}
	confirmed := h.image("a", []string{"confirmed"})
	untagged, orphan := h.image("a", []string{"untagged"}, "v1"), h.image("a", []string{"orphan"}, "own")
	i := h.index("a", "index", orphan)
	h.pass(window + second)
	h.wants(h.hasManifest("a", confirmed), "it went without a collection")
	h.refused("a manifest that a client was just told of", trashing(confirmed))
	h.must(h.store.DeleteTag(h.ctx(), "a", "v1", "tester"))
	h.refused("a manifest that lost its tag", trashing(untagged))
	h.must(h.store.DeleteTag(h.ctx(), "a", "own", "tester"))
	h.delete("a", i)
	h.refused("a manifest whose index was deleted", trashing(orphan))
	t1 := h.trashOf("a", i)
	h.refused("a manifest in the trash", withPolicy(meta.Work{Remove: []meta.Claim{{ID: t1.ID, Version: t1.Version, Before: meta.NoLimit}}}))

	h.push("a", "fresh")
	l := h.linkOf("a", "fresh")
	unlink := meta.Work{Unlink: []meta.Claim{{ID: l.ID, Version: l.Version, Before: meta.NoLimit}}}
	h.refused("a link", withPolicy(unlink))
	h.claim(unlink)
	b := h.blobOf("fresh")
	h.refused("a blob", withPolicy(meta.Work{Collect: []meta.Claim{{ID: b.ID, Version: b.Version, Before: meta.NoLimit}}}))

	h.pass(trash + second)
	c := h.claim(trashing(untagged))
	h.wants(c.Trashed == 1, "what may go does not: %+v", c)
	b = h.blobOf("fresh")
	t1 = h.trashOf("a", i)
	c = h.claim(withPolicy(meta.Work{Collect: []meta.Claim{{ID: b.ID, Version: b.Version, Before: meta.NoLimit}}, Remove: []meta.Claim{{ID: t1.ID, Version: t1.Version, Before: meta.NoLimit}}}))
	h.wants(c.Collected == 2, "what may go does not: %+v", c)
}

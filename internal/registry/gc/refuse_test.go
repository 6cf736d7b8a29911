package gc_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// A judge that is wrong must not matter: here each claim names the present
// version of something that must stay, and the store refuses it for one
// condition alone.

func (h *house) linkOf(repo oci.Name, content string) meta.LinkFacts {
	h.Helper()
	ls, _, err := h.store.FindLinks(h.ctx(), repo, digest.FromString(content), 1)
	h.must(err)
	fs, err := h.store.Links(h.ctx(), meta.Due{IDs: []int64{ls[0].ID}})
	h.must(err)
	return fs[0]
}

func (h *house) blobOf(content string) meta.BlobFacts {
	h.Helper()
	_, id, err := h.store.FindLinks(h.ctx(), "", digest.FromString(content), 1)
	h.must(err)
	fs, err := h.store.Blobs(h.ctx(), meta.Due{IDs: []int64{id}})
	h.must(err)
	return fs[0]
}

func (h *house) manifestOf(repo oci.Name, d oci.Digest) meta.ManifestFacts {
	h.Helper()
	ms, err := h.store.FindManifests(h.ctx(), repo, d, 1)
	h.must(err)
	fs, err := h.store.Orphans(h.ctx(), meta.Due{IDs: []int64{ms[0].ID}})
	h.must(err)
	return fs[0]
}

func (h *house) trashOf(repo oci.Name, d oci.Digest) meta.TrashFacts {
	h.Helper()
	ms, err := h.store.FindManifests(h.ctx(), repo, d, 1)
	h.must(err)
	fs, err := h.store.Trashed(h.ctx(), meta.Due{IDs: []int64{ms[0].ID}})
	h.must(err)
	return fs[0]
}

func (h *house) lease(d oci.Digest) {
	h.Helper()
	_, err := h.store.PutLease(h.ctx(), "node", []oci.Digest{d}, time.Hour.Milliseconds())
	h.must(err)
}

func (h *house) refused(what string, w meta.Work) {
	h.Helper()
	c := h.claim(w)
	h.wants(c.Unlinked+c.Collected+c.Trashed == 0 && c.Kept["raced"] == 1, "%s: the claim was not refused: %+v", what, c)
}

func TestR4_StoreRefusesToUnlinkWhatMustStay(t *testing.T) {
	claim := func(f meta.LinkFacts, before int64) meta.Work {
		return meta.Work{Unlink: []meta.Claim{{ID: f.ID, Version: f.Version, Before: before}}}
	}
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.refused("needed by a living manifest", claim(h.linkOf("a", "layer"), meta.NoLimit))
	h.delete("a", d)
	h.refused("wanted by the trash", claim(h.linkOf("a", "layer"), meta.NoLimit))
	h.push("a", "fresh")
	h.refused("within the window", claim(h.linkOf("a", "fresh"), h.clock.Load()-1))
	h.lease(digest.FromString("fresh"))
	h.refused("leased", claim(h.linkOf("a", "fresh"), meta.NoLimit))
	h.must(h.store.DeleteLease(h.ctx(), "node"))
	f := h.linkOf("a", "fresh")
	f.Version--
	h.refused("of an older version", claim(f, meta.NoLimit))
	f = h.linkOf("a", "fresh")
	c := h.claim(claim(f, f.TouchedAt))
	h.wants(c.Unlinked == 1, "and what may go does not: %+v", c)
}

func TestR4_StoreRefusesToForgetABlobThatMustStay(t *testing.T) {
	claim := func(f meta.BlobFacts, before int64) meta.Work {
		return meta.Work{Collect: []meta.Claim{{ID: f.ID, Version: f.Version, Before: before}}}
	}
	h := newHouse(t)
	h.push("a", "layer")
	h.refused("that a repository has", claim(h.blobOf("layer"), meta.NoLimit))
	l := h.linkOf("a", "layer")
	h.claim(meta.Work{Unlink: []meta.Claim{{ID: l.ID, Version: l.Version, Before: meta.NoLimit}}})
	h.refused("within the window", claim(h.blobOf("layer"), h.clock.Load()-1))
	h.lease(digest.FromString("layer"))
	h.refused("leased", claim(h.blobOf("layer"), meta.NoLimit))
	h.must(h.store.DeleteLease(h.ctx(), "node"))
	f := h.blobOf("layer")
	f.Version--
	h.refused("of an older version", claim(f, meta.NoLimit))
	f = h.blobOf("layer")
	c := h.claim(claim(f, f.TouchedAt))
	h.wants(c.Collected == 1, "and what may go does not: %+v", c)
}

func TestR4_StoreRefusesToTrashAManifestThatMustStay(t *testing.T) {
	claim := func(f meta.ManifestFacts, before int64) meta.Work {
		return meta.Work{Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: before}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}}}
	}
	h := newHouse(t)
	tagged := h.image("a", []string{"layer"}, "v1")
	h.refused("tagged", claim(h.manifestOf("a", tagged), meta.NoLimit))
	child := h.image("a", []string{"child"})
	h.index("a", "multi", child)
	h.refused("child of a living index", claim(h.manifestOf("a", child), meta.NoLimit))
	referrer := manifest(tagged)
	h.must(h.put("a", referrer))
	h.refused("referrer of a living subject", claim(h.manifestOf("a", digest.FromBytes(referrer)), meta.NoLimit))
	loose := h.image("a", []string{"loose"})
	h.refused("within the grace", claim(h.manifestOf("a", loose), h.clock.Load()-1))
	above := h.index("a", "gone", loose)
	h.delete("a", above)
	h.lease(above)
	h.refused("below a lease", claim(h.manifestOf("a", loose), meta.NoLimit))
	h.must(h.store.DeleteLease(h.ctx(), "node"))
	f := h.manifestOf("a", loose)
	f.Version--
	h.refused("of an older version", claim(f, meta.NoLimit))
	f = h.manifestOf("a", loose)
	h.refused("just touched", claim(f, max(f.TouchedAt, f.LooseAt)-1))
	c := h.claim(claim(f, max(f.TouchedAt, f.LooseAt)))
	h.wants(c.Trashed == 1, "and what may go does not: %+v", c)
}

func TestR4_StoreRefusesToEmptyTheTrashOfWhatMustStay(t *testing.T) {
	claim := func(f meta.TrashFacts, before int64) meta.Work {
		return meta.Work{Remove: []meta.Claim{{ID: f.ID, Version: f.Version, Before: before}}}
	}
	h := newHouse(t)
	child := h.image("a", []string{"child"})
	h.index("a", "multi", child)
	h.delete("a", child)
	h.refused("child of a living index", claim(h.trashOf("a", child), meta.NoLimit))
	d := h.image("a", []string{"layer"}, "v1")
	h.delete("a", d)
	h.refused("within its time", claim(h.trashOf("a", d), h.clock.Load()-1))
	h.lease(d)
	h.refused("leased", claim(h.trashOf("a", d), meta.NoLimit))
	h.must(h.store.DeleteLease(h.ctx(), "node"))
	f := h.trashOf("a", d)
	f.Version--
	h.refused("of an older version", claim(f, meta.NoLimit))
	f = h.trashOf("a", d)
	c := h.claim(claim(f, f.TrashedAt))
	h.wants(c.Collected == 1, "and what may go does not: %+v", c)
}

func TestStoreRefusesToEndAnUploadInUse(t *testing.T) {
	h := newHouse(t)
	u, err := h.store.CreateUpload(h.ctx(), "a", "sha256")
	h.must(err)
	c := h.claim(meta.Work{Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version, Before: h.clock.Load() - 1}}})
	h.wants(c.Kept["raced"] == 1, "within the window: %+v", c)
	c = h.claim(meta.Work{Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version + 1, Before: meta.NoLimit}}})
	h.wants(c.Kept["raced"] == 1, "of another version: %+v", c)
	c = h.claim(meta.Work{Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version, Before: h.clock.Load()}}})
	h.wants(c.Collected == 1, "and what may go does not: %+v", c)
}

// Whatever the queue says, an object that a blob or an upload names is not
// among those to be deleted.
func TestR6_PurgeQueueNeverYieldsALivingKey(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	b, err := h.store.Blob(h.ctx(), "a", digest.FromString("layer"))
	h.must(err)
	raw, err := sql.Open("sqlite", filepath.Join(h.dir, "fairway.db"))
	h.must(err)
	_, err = raw.Exec("INSERT INTO purges (key, digest, size, reason, actor, queued_at, due_at) VALUES (?, '', 5, 'by mistake', 'test', 0, 0)", b.Key)
	h.must(err)
	h.must(raw.Close())
	run := h.collect(h.gc.Policy())
	h.wants(run.Purged == 0 && h.hasBlob("a", "layer"), "a living object was purged: %+v", run.Counts)
}

// The strictest limit of a batch is that of all.
func TestR4_StoreAppliesTheStrictestLimitOfABatch(t *testing.T) {
	for _, limits := range [][2]int64{{0, meta.NoLimit}, {meta.NoLimit, 0}} {
		h := newHouse(t)
		h.push("a", "1")
		h.push("a", "2")
		var claims []meta.Claim
		for i, content := range []string{"1", "2"} {
			f := h.linkOf("a", content)
			claims = append(claims, meta.Claim{ID: f.ID, Version: f.Version, Before: limits[i]})
		}
		c := h.claim(meta.Work{Unlink: claims})
		h.wants(c.Unlinked == 0 && c.Kept["raced"] == 2, "limits %v: %+v", limits, c)
	}
}

// Where a manifest has more children than one transaction settles, the claim goes
// on until all are settled, whatever else is claimed with it.
func TestR7_AClaimSettlesAllKinOfWhatItTrashes(t *testing.T) {
	for _, first := range []string{"many", "few"} {
		h := newHouse(t)
		var children []oci.Digest
		for i := range 450 {
			children = append(children, h.index("a", "", digest.FromString(fmt.Sprint(i))))
		}
		many, few := h.index("a", "", children...), h.index("a", "", digest.FromString("few"))
		order := []oci.Digest{many, few}
		if first == "few" {
			slices.Reverse(order)
		}
		var w meta.Work
		for _, d := range order {
			f := h.manifestOf("a", d)
			w.Trash = append(w.Trash, meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest})
		}
		c := h.claim(w)
		h.wants(c.Trashed == 2 && h.count("SELECT count(*) FROM kin") == 0, "%s first: %+v, %d kin are left", first, c, h.count("SELECT count(*) FROM kin"))
	}
}

// Each claim counts a lease while it holds and for a window after its end, to the
// millisecond.
func TestR4_StoreCountsALeaseForAWindowAfterItsEnd(t *testing.T) {
	p := strandedPolicy(window, 0)
	p.Stranded = 1
	claim := func(id, version int64) meta.Claim { return meta.Claim{ID: id, Version: version, Before: meta.NoLimit} }
	loose := digest.FromBytes(manifest("", "layer"))
	for name, tt := range map[string]struct {
		leased oci.Digest
		make   func(h *house)
		claim  func(h *house) meta.Work
	}{
		"a loose manifest": {loose, func(h *house) { h.image("a", []string{"layer"}) }, func(h *house) meta.Work {
			f := h.manifestOf("a", loose)
			return meta.Work{Trash: []meta.TrashClaim{{Claim: claim(f.ID, f.Version), Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}}}
		}},
		"a stranded manifest": {loose, func(h *house) {
			h.image("a", []string{"layer"}, "t")
			h.exec("INSERT INTO stranded (repo_id, tag, manifest_id, subject, since) SELECT repo_id, name, manifest_id, 'sha256:x', 1 FROM tags")
		}, func(h *house) meta.Work {
			f := h.manifestOf("a", loose)
			return meta.Work{Trash: []meta.TrashClaim{{Claim: claim(f.ID, f.Version), Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest, Stranded: true}}}
		}},
		"a manifest in the trash": {loose, func(h *house) { h.delete("a", h.image("a", []string{"layer"})) }, func(h *house) meta.Work {
			f := h.trashOf("a", loose)
			return meta.Work{Remove: []meta.Claim{claim(f.ID, f.Version)}}
		}},
		"a link": {digest.FromString("layer"), func(h *house) { h.push("a", "layer") }, func(h *house) meta.Work {
			f := h.linkOf("a", "layer")
			return meta.Work{Unlink: []meta.Claim{claim(f.ID, f.Version)}}
		}},
		"a blob": {digest.FromString("layer"), func(h *house) {
			h.push("a", "layer")
			f := h.linkOf("a", "layer")
			h.claim(meta.Work{Unlink: []meta.Claim{claim(f.ID, f.Version)}})
		}, func(h *house) meta.Work {
			f := h.blobOf("layer")
			return meta.Work{Collect: []meta.Claim{claim(f.ID, f.Version)}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			tt.make(h)
			h.pass(2 * window)
			h.leaseFor(time.Minute, tt.leased)
			work := func() meta.Work { w := tt.claim(h); w.Policy = p; return w }
			h.refused("while the lease holds", work())
			h.pass(time.Minute)
			h.refused("at its end", work())
			h.pass(window - time.Millisecond)
			h.refused("just within the window", work())
			h.pass(time.Millisecond)
			c := h.claim(work())
			h.wants(c.Trashed+c.Collected+c.Unlinked == 1, "a window after the end it does not go: %+v", c)
		})
	}
}

// TestR1_AStrandedManifestThatAnIndexOnItsWayInNamesIsSpared: the index may be served
// with the next statement.
func TestR1_AStrandedManifestThatAnIndexOnItsWayInNamesIsSpared(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "t")
	index := h.index("a", "", d)
	h.exec("INSERT INTO stranded (repo_id, tag, manifest_id, subject, since) SELECT repo_id, name, manifest_id, 'sha256:x', 1 FROM tags")
	h.exec("UPDATE manifests SET trashed_at = 1, loose_at = NULL WHERE digest = ?", string(index))
	h.exec("INSERT INTO staged (manifest_id) SELECT id FROM manifests WHERE digest = ?", string(index))
	p := policy(0, 0, 0)
	p.Stranded = 1
	h.pass(window)
	claim := func() meta.Work {
		f := h.manifestOf("a", d)
		return meta.Work{Policy: p, Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit},
			Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest, Stranded: true}}}
	}
	h.refused("a child of an index on its way in", claim())
	h.must(h.store.FinishKin(h.ctx())) // the index never came
	c := h.claim(claim())
	h.wants(c.Trashed == 1, "it stays when the index is gone: %+v", c)
}

// TestR10_ADryRunSparesChildrenOfAnIndexOnItsWayIn: it predicts what the claims of a run
// do, for those that are served and for those in the trash.
func TestR10_ADryRunSparesChildrenOfAnIndexOnItsWayIn(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		h := newHouse(t)
		d := h.image("a", []string{"layer"})
		index := h.index("a", "", d)
		h.exec("UPDATE manifests SET trashed_at = 1, loose_at = NULL WHERE digest = ?", string(index))
		h.exec("INSERT INTO staged (manifest_id) SELECT id FROM manifests WHERE digest = ?", string(index))
		h.exec("UPDATE manifests SET loose_at = 1 WHERE digest = ?", string(d))
		if deleted {
			h.delete("a", d)
		}
		h.pass(10 * trash)
		p := policy(window, trash, window)
		run, _, err := h.gc.DryRun(h.ctx(), p, 100, nil)
		h.must(err)
		h.wants(run.Trashed+run.Collected == 0 && run.Kept[gc.KeptRaced] == 1, "deleted %v: a dry run beside the push: %+v", deleted, run.Counts)
		w := meta.Work{Policy: p}
		if deleted {
			f := h.trashOf("a", d)
			w.Remove = []meta.Claim{{ID: f.ID, Version: f.Version, Before: meta.NoLimit}}
		} else {
			f := h.manifestOf("a", d)
			w.Trash = []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}}
		}
		c := h.claim(w)
		h.wants(c.Trashed+c.Collected == 0 && c.Kept[gc.KeptRaced] == 1, "deleted %v: a claim beside the push: %+v", deleted, c)
		h.must(h.store.FinishKin(h.ctx())) // the index never came
		run, _, err = h.gc.DryRun(h.ctx(), p, 100, nil)
		h.must(err)
		h.wants(run.Trashed+run.Collected > 0 && run.Kept[gc.KeptRaced] == 0, "deleted %v: a dry run after the push broke off: %+v", deleted, run.Counts)
	}
}

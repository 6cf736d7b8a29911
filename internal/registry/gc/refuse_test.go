package gc_test

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
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
	c := h.claim(claim(h.linkOf("a", "fresh"), meta.NoLimit))
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
	c := h.claim(claim(h.blobOf("layer"), meta.NoLimit))
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
	c := h.claim(claim(h.manifestOf("a", loose), meta.NoLimit))
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
	c := h.claim(claim(h.trashOf("a", d), meta.NoLimit))
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
	c = h.claim(meta.Work{Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version, Before: meta.NoLimit}}})
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

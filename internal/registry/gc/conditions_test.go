package gc_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Claims share the conditions that say what keeps a manifest. A condition that is
// too wide keeps garbage for ever, and no test of what must stay notices that. Here
// what is around a manifest almost keeps it.

func (h *house) trashWork(repo oci.Name, d oci.Digest) meta.Work {
	h.Helper()
	f := h.manifestOf(repo, d)
	return meta.Work{Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}}}
}

func (h *house) removeWork(repo oci.Name, d oci.Digest) meta.Work {
	h.Helper()
	f := h.trashOf(repo, d)
	return meta.Work{Remove: []meta.Claim{{ID: f.ID, Version: f.Version, Before: meta.NoLimit}}}
}

func (h *house) unlinkWork(repo oci.Name, contents ...string) (w meta.Work) {
	h.Helper()
	for _, c := range contents {
		f := h.linkOf(repo, c)
		w.Unlink = append(w.Unlink, meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit})
	}
	return w
}

// referrer pushes a manifest with that subject.
func (h *house) referrer(repo oci.Name, subject oci.Digest, layer string) oci.Digest {
	h.Helper()
	h.push(repo, "{}")
	h.push(repo, layer)
	raw := manifest(subject, layer)
	h.must(h.put(repo, raw))
	return digest.FromBytes(raw)
}

func TestR4_WhatDoesNotHoldAManifestDoesNotKeepIt(t *testing.T) {
	absent := digest.FromString("absent")
	for name, make := range map[string]func(h *house) oci.Digest{
		"an index of another repository": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			h.index("b", "v1", d)
			return d
		},
		"an index of others": func(h *house) oci.Digest {
			h.index("a", "v1", h.image("a", []string{"2"}))
			return h.image("a", []string{"1"})
		},
		"a subject that is not there": func(h *house) oci.Digest { return h.referrer("a", absent, "1") },
		"a subject that is not there, beside others": func(h *house) oci.Digest {
			h.image("a", []string{"2"}, "v1")
			return h.referrer("a", absent, "1")
		},
		"a subject in another repository": func(h *house) oci.Digest { return h.referrer("a", h.image("b", []string{"2"}, "v1"), "1") },
		"a subject in the trash": func(h *house) oci.Digest {
			s := h.image("a", []string{"2"}, "v1")
			d := h.referrer("a", s, "1")
			h.delete("a", s)
			return d
		},
		"an index in the trash": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			h.delete("a", h.index("a", "v1", d))
			return d
		},
		"a lease on another manifest": func(h *house) oci.Digest {
			h.lease(h.image("a", []string{"2"}))
			return h.image("a", []string{"1"})
		},
		"a lease on an index of another repository": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			h.lease(h.index("b", "v1", d))
			return d
		},
		"a lease on an index of others": func(h *house) oci.Digest {
			h.lease(h.index("a", "v1", h.image("a", []string{"2"})))
			return h.image("a", []string{"1"})
		},
		"a lease on another index than its own": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			h.delete("a", h.index("a", "v1", d))
			h.lease(h.index("a", "v2", h.image("a", []string{"2"})))
			return d
		},
		"a lease on the subject of another": func(h *house) oci.Digest {
			s := h.image("a", []string{"2"})
			h.referrer("a", s, "3")
			h.lease(s)
			return h.image("a", []string{"1"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			d := make(h)
			c := h.claim(h.trashWork("a", d))
			h.wants(c.Trashed == 1, "%s keeps it: %+v", name, c)
		})
	}
}

func TestR4_WhatDoesNotWantAManifestBackDoesNotKeepItInTheTrash(t *testing.T) {
	for name, make := range map[string]func(h *house) oci.Digest{
		"an index of another repository": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			h.index("b", "v1", d)
			h.delete("a", d)
			return d
		},
		"an index of others": func(h *house) oci.Digest {
			h.index("a", "v1", h.image("a", []string{"2"}))
			d := h.image("a", []string{"1"})
			h.delete("a", d)
			return d
		},
		"an index that is in the trash itself": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			i := h.index("a", "v1", d)
			h.image("a", []string{"beside"}, "v2")
			h.delete("a", i)
			h.delete("a", d)
			return d
		},
		"another index in the trash, which one that lives names": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			own, other := h.index("a", "v1", d), h.index("a", "v2", digest.FromString("other"))
			h.index("a", "top", other)
			for _, gone := range []oci.Digest{other, own, d} {
				h.delete("a", gone)
			}
			return d
		},
		"an index in the trash of another repository, which one that lives here names": func(h *house) oci.Digest {
			d := h.image("a", []string{"1"})
			i := h.index("b", "v1", d)
			h.index("a", "top", i)
			h.delete("b", i)
			h.delete("a", d)
			return d
		},
		"the subject of another": func(h *house) oci.Digest {
			d, s := h.image("a", []string{"1"}), h.image("a", []string{"2"})
			r := h.referrer("a", s, "3")
			h.index("a", "top", s)
			for _, gone := range []oci.Digest{r, s, d} {
				h.delete("a", gone)
			}
			return d
		},
		"a subject in the trash of another repository": func(h *house) oci.Digest {
			s := h.image("b", []string{"2"})
			d := h.referrer("a", s, "1")
			h.index("a", "top", s)
			h.delete("b", s)
			h.delete("a", d)
			return d
		},
		"a subject that lives": func(h *house) oci.Digest {
			s := h.image("a", []string{"2"})
			d := h.referrer("a", s, "1")
			h.index("a", "top", s)
			h.delete("a", d)
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			d := make(h)
			c := h.claim(h.removeWork("a", d))
			h.wants(c.Collected == 1, "%s keeps it: %+v", name, c)
		})
	}
}

func TestR4_ALeaseOnAnotherBlobKeepsNothing(t *testing.T) {
	h := newHouse(t)
	h.push("a", "1")
	h.push("a", "2")
	h.lease(digest.FromString("2"))
	c := h.claim(h.unlinkWork("a", "1"))
	h.wants(c.Unlinked == 1, "the link of another blob: %+v", c)
	b := h.blobOf("1")
	c = h.claim(meta.Work{Collect: []meta.Claim{{ID: b.ID, Version: b.Version, Before: meta.NoLimit}}})
	h.wants(c.Collected == 1, "another blob: %+v", c)
}

// Two repositories lose a blob in one batch: the later confirmation counts for it.
func TestR3_TheLastConfirmationOfSeveralLinksIsHandedOn(t *testing.T) {
	for _, latest := range []oci.Name{"a", "b"} {
		h := newHouse(t)
		for _, repo := range []oci.Name{"a", "b"} {
			h.push(repo, "1")
		}
		h.push("c", "2")
		h.pass(time.Hour)
		last := h.clock.Load()
		h.exec("UPDATE blobs SET touched_at = 1") // what the links say, not what the upload said
		h.exec("UPDATE links SET touched_at = ? WHERE repo_id = (SELECT id FROM repositories WHERE name = ?)", last, string(latest))
		h.exec("DELETE FROM reviews")
		w := meta.Work{Unlink: append(h.unlinkWork("a", "1").Unlink, h.unlinkWork("b", "1").Unlink...)}
		c := h.claim(w)
		b := h.blobOf("1")
		h.wants(c.Unlinked == 2 && b.TouchedAt == last, "%s was last: the blob was touched at %d, want %d: %+v", latest, b.TouchedAt, last, c)
		h.wants(c.Total == 1 && h.count("SELECT count(*) FROM reviews WHERE kind = 'blob'") == 1 && h.count("SELECT target FROM reviews WHERE kind = 'blob'") == b.ID,
			"%s was last: it is not up for review, or others are: %+v", latest, c)
	}
}

func TestR8_OnlyWhatNothingNeedsAnyMoreComesUpForReview(t *testing.T) {
	h := newHouse(t)
	h.push("a", "1")
	h.push("b", "1")
	h.push("b", "settled")
	h.claim(h.unlinkWork("b", "settled"))
	h.exec("DELETE FROM reviews") // as if the one of a blob without a repository had been answered
	c := h.claim(h.unlinkWork("a", "1"))
	h.wants(c.Total == 0 && h.count("SELECT count(*) FROM reviews") == 0, "a blob that another repository has is up for review: %+v", c)
	d := h.image("c", []string{"2"})
	h.delete("c", d)
	h.exec("DELETE FROM reviews")
	c = h.claim(h.removeWork("c", d))
	h.wants(c.Collected == 1 && c.Total == 2 && h.count("SELECT count(*) FROM reviews WHERE kind = 'link'") == 2, "the config and the layer are not up for review: %+v", c)
}

func TestR4_ALostClaimLeavesOtherReviewsToTheirRuns(t *testing.T) {
	h := newHouse(t)
	h.push("a", "1")
	id := h.linkOf("a", "1").ID
	h.exec("DELETE FROM reviews")
	for _, kind := range []string{"manifest", "link", "blob"} {
		for _, target := range []int64{id, id + 1} {
			h.exec("INSERT INTO reviews (kind, target, repo_id, event_at, event, run_id) VALUES (?, ?, 1, 1, 'test', 7)", kind, target)
		}
	}
	c := h.claim(meta.Work{Unlink: []meta.Claim{{ID: id, Version: 1 << 40, Before: meta.NoLimit}}})
	h.wants(c.Kept["raced"] == 1, "%+v", c)
	free := h.text("SELECT kind || target AS x FROM reviews WHERE run_id IS NULL")
	h.wants(free == fmt.Sprint("link", id), "left to a later run: %s", free)
}

func TestR10_WhatAClientDeletedIsLoggedOnce(t *testing.T) {
	h := newHouse(t)
	d := h.push("a", "1")
	h.push("a", "2")
	h.must(h.store.DeleteBlob(h.ctx(), "a", d, "tester"))
	f := h.count("SELECT id FROM links WHERE hidden = 1")
	version := h.count("SELECT version FROM links WHERE id = ?", f)
	before := h.count("SELECT count(*) FROM deletions")
	c := h.claim(meta.Work{Unlink: []meta.Claim{{ID: f, Version: version, Before: meta.NoLimit}}})
	h.wants(c.Unlinked == 1 && h.count("SELECT count(*) FROM deletions") == before, "%+v, %d deletions after %d", c, h.count("SELECT count(*) FROM deletions"), before)
}

func TestR10_TheBytesOfAnAbandonedUploadAreLogged(t *testing.T) {
	h := newHouse(t)
	u, err := h.store.CreateUpload(h.ctx(), "a", "sha256")
	h.must(err)
	h.exec("UPDATE uploads SET size = 5")
	h.claim(meta.Work{Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version, Before: meta.NoLimit}}})
	h.wants(h.count("SELECT bytes FROM deletions WHERE kind = 'upload'") == 5, "the log says %d bytes", h.count("SELECT bytes FROM deletions WHERE kind = 'upload'"))
}

// A review waits for the end of a lease only if that lease is still there, and ends
// no earlier than was seen.
func TestR8_AReviewWaitsForTheLeaseThatWasSeen(t *testing.T) {
	const hour = int64(time.Hour / time.Millisecond)
	for name, tt := range map[string]struct {
		holder string
		later  int64 // than the lease ends, in ms
		waits  bool
	}{
		"the lease that was seen":  {"node", 0, true},
		"one that ends earlier":    {"node", 1, false},
		"one that ends later":      {"node", -1, true},
		"the lease of another":     {"other", 0, false},
		"no lease is the reason":   {"", 0, true},
		"no lease, and much later": {"", 100 * hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.lease(h.push("a", "1"))
			ends := h.count("SELECT expires_at FROM lease_digests")
			id := h.linkOf("a", "1").ID
			version := h.count("SELECT version FROM reviews WHERE kind = 'link' AND target = ?", id)
			at := ends + int64(meta.ConfirmAhead) + tt.later
			h.claim(meta.Work{Postponed: []meta.Postponed{{Settled: meta.Settled{Kind: "link", Target: id, Version: version}, EventAt: at, Holder: tt.holder}}})
			waits := h.count("SELECT event_at FROM reviews WHERE kind = 'link' AND target = ?", id) == at
			h.wants(waits == tt.waits, "it waits %v, want %v", waits, tt.waits)
		})
	}
}

func TestR12_ARepositoryThatIsForgottenIsNotListedFromMemory(t *testing.T) {
	h := newHouse(t)
	h.push("a", "1")
	_, _, err := h.store.Tags(h.ctx(), "a", "", -1)
	h.must(err)
	h.claim(h.unlinkWork("a", "1"))
	_, _, err = h.store.Tags(h.ctx(), "a", "", -1)
	h.wants(errors.Is(err, fault.NotFound), "the tags of a repository that is not there: %v", err)
}

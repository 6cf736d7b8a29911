package gc_test

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Each test here fails without one guard of the metadata store.

// unknown renders a manifest of a type that nobody knows, which mentions digests
// somewhere.
func (h *house) unknown(subject oci.Digest, mentions ...oci.Digest) (raw []byte, m oci.Manifest) {
	h.Helper()
	doc := map[string]any{"schemaVersion": 2, "stages": []any{map[string]any{"files": mentions}}}
	if subject != "" {
		doc["subject"] = descriptor(oci.MediaTypeImage, subject, 1)
	}
	raw = render(doc)
	m, err := oci.ParseManifest("application/vnd.example.build+json", raw)
	h.must(err)
	return raw, m
}

func (h *house) putUnknown(repo oci.Name, tag oci.Tag, subject oci.Digest, mentions ...oci.Digest) oci.Digest {
	h.Helper()
	raw, m := h.unknown(subject, mentions...)
	p := meta.Push{Repo: repo, Digest: digest.FromBytes(raw), Manifest: m, Content: raw}
	if tag != "" {
		p.Tags = []oci.Tag{tag}
	}
	_, err := h.store.PutManifest(h.ctx(), p)
	h.must(err)
	return p.Digest
}

func TestR1_WhatAManifestOfUnknownTypeMentionsStaysWhicheverCameFirst(t *testing.T) {
	for _, first := range []string{"mentioned", "mentioning"} {
		t.Run(first+" first", func(t *testing.T) {
			h := newHouse(t)
			p := policy(0, 0, time.Second)
			var d oci.Digest
			image := digest.FromBytes(manifest("", "layer"))
			mention := func() { d = h.putUnknown("a", "v1", "", digest.FromString("deep"), image) }
			if first == "mentioning" {
				mention()
			}
			h.push("a", "deep")
			h.image("a", []string{"layer"})
			if first == "mentioned" {
				mention()
			}
			h.pass(trash)
			h.collect(p)
			h.wants(h.hasBlob("a", "deep"), "a blob went that a tagged manifest mentions")
			h.wants(h.hasManifest("a", image) && h.hasBlob("a", "layer"), "a manifest went that a tagged manifest mentions")
			h.delete("a", d)
			h.pass(trash)
			h.collect(p)
			h.wants(len(h.objects()) == 0, "it stays without the manifest: %v", h.objects())
		})
	}
}

func TestR1_BlobThatIsASubjectStaysWhicheverCameFirst(t *testing.T) {
	h := newHouse(t)
	h.push("a", "{}")
	raw := manifest(digest.FromString("deep"))
	h.must(h.put("a", raw, "v1"))
	h.push("a", "deep")
	h.collectAll()
	h.wants(h.hasBlob("a", "deep"), "a blob went that a tagged manifest has as its subject")
	h.delete("a", digest.FromBytes(raw))
	h.collectAll()
	h.wants(len(h.objects()) == 0, "it stays without the manifest: %v", h.objects())
}

// A subject keeps its referrers. If they kept it, neither would ever go.
func TestNoLeak_ReferrerOfUnknownTypeDoesNotKeepItsSubject(t *testing.T) {
	h := newHouse(t)
	p := policy(0, 0, time.Second)
	d := h.image("a", []string{"layer"})
	h.putUnknown("a", "", d)
	h.pass(trash)
	for range 3 {
		h.collect(p)
	}
	h.wants(len(h.objects()) == 0, "an untagged image with a referrer stays: %v", h.objects())
}

// While a manifest needs a blob, HEAD need not be written down. The cache must
// not say so when the manifest is in the trash.
func TestR3_HeadOfABlobWhoseManifestWentToTheTrashIsAConfirmation(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	head := func() {
		t.Helper()
		_, err := h.store.ConfirmBlob(h.ctx(), "a", digest.FromString("layer"))
		h.must(err)
	}
	head()
	h.delete("a", d)
	h.pass(window - time.Minute)
	head()
	h.pass(2 * time.Minute)
	h.collect(policy(window, 0, 0))
	h.wants(h.hasBlob("a", "layer"), "the blob went within the window after a HEAD")
}

func TestR2_ManifestWhoseBlobIsLostIsRefused(t *testing.T) {
	h := newHouse(t)
	h.push("a", "{}")
	h.push("a", "layer")
	h.exec("UPDATE blobs SET lost_at = 1 WHERE digest = ?", string(digest.FromString("layer")))
	err := h.put("a", manifest("", "layer"), "v1")
	h.wants(errors.Is(err, fault.Invalid), "a manifest whose blob has lost its bytes: %v", err)
	h.push("a", "layer") // brings them back
	h.must(h.put("a", manifest("", "layer"), "v1"))
}

func TestR3_ConfirmationOfALinkIsHandedOnToItsBlob(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	h.pass(window + time.Minute)
	_, err := h.store.ConfirmBlob(h.ctx(), "a", digest.FromString("layer"))
	h.must(err)
	l := h.linkOf("a", "layer")
	c := h.claim(meta.Work{Unlink: []meta.Claim{{ID: l.ID, Version: l.Version, Before: meta.NoLimit}}})
	h.wants(c.Unlinked == 1, "%+v", c)
	h.pass(window - time.Minute)
	h.collect(h.gc.Policy())
	h.wants(len(h.objects()) == 1, "the blob went within the window after the HEAD of its link")
	h.pass(2 * time.Minute)
	h.collect(h.gc.Policy())
	h.wants(len(h.objects()) == 0, "the blob stays after the window")
}

// An event between judgement and its answer renews the review. An answer to the
// old one must not close or postpone it: nobody would ever look again.
func TestR4_AnswerToAReviewThatWasRenewedChangesNothing(t *testing.T) {
	for name, answer := range map[string]func(meta.Settled) meta.Work{
		"settled": func(s meta.Settled) meta.Work { return meta.Work{Settled: []meta.Settled{s}} },
		"postponed": func(s meta.Settled) meta.Work {
			return meta.Work{Postponed: []meta.Postponed{{Settled: s, EventAt: 1 << 60}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			d := h.push("a", "layer")
			fs, err := h.store.Links(h.ctx(), everything(t, h.store))
			h.must(err)
			h.must(h.store.DeleteBlob(h.ctx(), "a", d, "tester"))
			h.claim(answer(meta.Settled{Kind: "link", Target: fs[0].ID, Version: fs[0].Review.Version}))
			h.pass(window + time.Minute)
			h.collect(h.gc.Policy())
			h.wants(len(h.objects()) == 0, "a deleted blob stays for ever")
		})
	}
}

// Here the row changes between the look-up, which the cache answers, and the
// write of the confirmation.
func TestR12_WhatWasDeletedSinceTheLookUpIsNotConfirmed(t *testing.T) {
	h := newHouse(t)
	d := h.push("a", "layer")
	_, err := h.store.Blob(h.ctx(), "a", d)
	h.must(err)
	h.exec("UPDATE links SET hidden = 1")
	_, err = h.store.ConfirmBlob(h.ctx(), "a", d)
	h.wants(errors.Is(err, fault.NotFound), "a hidden blob was confirmed: %v", err)

	i := h.image("b", []string{"layer"})
	for range 2 { // the second time it is cached
		h.wants(h.hasManifest("b", i), "it is not there")
	}
	h.pass(time.Minute)
	h.exec("UPDATE manifests SET trashed_at = 1")
	h.wants(!h.hasManifest("b", i), "a trashed manifest was confirmed")
}

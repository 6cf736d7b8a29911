package gc_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func TestR10_RestoreBringsBackChildrenWhoeverDeletedThem(t *testing.T) {
	for name, remove := range map[string]func(h *house, top, mid, leaf oci.Digest){
		"client, from the bottom up": func(h *house, top, mid, leaf oci.Digest) { h.delete("a", leaf); h.delete("a", mid); h.delete("a", top) },
		"client, from the top down":  func(h *house, top, mid, leaf oci.Digest) { h.delete("a", top); h.delete("a", mid); h.delete("a", leaf) },
		"client and collector": func(h *house, top, mid, leaf oci.Digest) {
			h.delete("a", leaf)
			h.delete("a", top)
			h.pass(window + time.Second)
			h.collect(h.gc.Policy())
			h.wants(!h.hasManifest("a", mid), "the collector left the orphan")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			leaf := h.image("a", []string{"layer"}, "leaf")
			mid := h.index("a", "", leaf)
			top := h.index("a", "top", mid)
			signature := manifest(top)
			h.must(h.put("a", signature))
			h.delete("a", digest.FromBytes(signature)) // on purpose: nobody misses it
			remove(h, top, mid, leaf)
			got, err := h.store.Restore(h.ctx(), "a", top, "tester")
			h.must(err)
			for _, d := range []oci.Digest{top, mid, leaf} {
				h.wants(h.hasManifest("a", d), "%s was not restored: %+v", d, got)
			}
			slices.Sort(got.Tags)
			h.wants(h.hasBlob("a", "layer") && slices.Equal(got.Tags, []string{"leaf", "top"}) && len(got.Along) == 2 && len(got.NotRestored) == 0, "restored %+v", got)
			h.wants(!h.hasManifest("a", digest.FromBytes(signature)), "a referrer that a client deleted came back")
		})
	}
}

func TestR10_RestoreReportsWhatItCannotBringBack(t *testing.T) {
	h := newHouse(t)
	fine, lost, removed := h.image("a", []string{"fine"}), h.image("a", []string{"lost"}), h.image("a", []string{"removed"})
	never := digest.FromString("never pushed")
	i := h.index("a", "v1", fine, lost, removed, never)
	for _, d := range []oci.Digest{i, fine, lost, removed} {
		h.delete("a", d)
	}
	f := h.trashOf("a", removed)
	c := h.claim(meta.Work{Remove: []meta.Claim{{ID: f.ID, Version: f.Version, Before: meta.NoLimit}}})
	h.wants(c.Collected == 1, "%+v", c)
	h.exec("UPDATE blobs SET lost_at = 1 WHERE digest = ?", string(digest.FromString("lost")))

	got, err := h.store.Restore(h.ctx(), "a", i, "tester")
	h.must(err)
	h.wants(h.hasManifest("a", i) && h.hasManifest("a", fine) && slices.Equal(got.Along, []oci.Digest{fine}), "restored %+v", got)
	why := map[oci.Digest]string{}
	for _, n := range got.NotRestored {
		why[n.Digest] = n.Reason
	}
	h.wants(len(got.NotRestored) == 2 && strings.Contains(why[lost], "missing") && strings.Contains(why[removed], "for good"), "not restored: %+v", got.NotRestored)
	h.wants(!h.hasManifest("a", lost), "a manifest without its bytes is served")
	_, err = h.store.Restore(h.ctx(), "a", lost, "tester")
	h.wants(err != nil, "a manifest without its bytes was restored")
}

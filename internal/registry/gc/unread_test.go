package gc_test

import (
	"fmt"
	"testing"

	"github.com/fairway-registry/fairway/internal/oci"
)

// upgrade opens the database as that of a version which did not note what manifests of
// unknown types mention, after these changes.
func (h *house) upgrade(statements ...string) {
	h.Helper()
	h.sql(append(statements, "DROP TABLE unread", "DELETE FROM goose_db_version WHERE version_id >= 11")...)
	h.reopen()
}

// TestR1_WhatAnEarlierVersionDidNotNoteIsKeptAfterAnUpgrade: manifests and blobs that a
// manifest of an unknown type mentions, and what one needs that was stored with a type
// which its content contradicts.
func TestR1_WhatAnEarlierVersionDidNotNoteIsKeptAfterAnUpgrade(t *testing.T) {
	h := newHouse(t)
	blobs := []oci.Digest{h.push("a", "mentioned"), h.push("b", "in the trash")}
	image := h.image("a", []string{"layer"})
	unknown := h.putUnknown("a", "v1", "", blobs[0], image)
	trashed := h.putUnknown("b", "", "", blobs[1], h.image("b", []string{"of the trash"}))
	h.delete("b", trashed)
	h.sql("UPDATE manifests SET orphaned_at = NULL, orphan_reason = NULL", "DELETE FROM reviews WHERE kind = 'manifest'") // nobody knew
	mistyped := h.image("c", []string{"of a mistyped one"}, "v1")
	children := h.index("d", "v1", h.image("d", []string{"below"}))
	forget := []string{"UPDATE manifests SET media_type = 'application/x-www-form-urlencoded' WHERE digest IN ('" + string(mistyped) + "', '" + string(children) + "')"}
	for _, d := range []oci.Digest{unknown, trashed, mistyped, children} {
		for _, table := range []string{"manifest_blobs", "manifest_children"} {
			forget = append(forget, fmt.Sprintf("DELETE FROM %s WHERE manifest_id = (SELECT id FROM manifests WHERE digest = '%s')", table, d))
		}
	}
	forget = append(forget, "UPDATE manifests SET loose_at = touched_at WHERE trashed_at IS NULL AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.manifest_id = manifests.id)",
		"INSERT INTO reviews (kind, target, repo_id, event_at, event) SELECT 'link', id, repo_id, touched_at, 'uploaded' FROM links WHERE NOT EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.link_id = links.id)")
	h.upgrade(forget...)
	h.wants(h.count("SELECT count(*) FROM manifests m JOIN manifest_children c ON c.child_digest = m.digest JOIN manifests p ON p.id = c.manifest_id WHERE m.loose_at IS NOT NULL AND p.trashed_at IS NULL") == 0, "what keeps a manifest is not noted with it")
	h.wants(h.count("SELECT count(*) FROM manifests WHERE orphaned_at IS NOT NULL") == 0, "what is in the trash makes orphans")
	h.wants(h.count("SELECT count(*) FROM manifest_blobs e JOIN manifests m ON m.id = e.manifest_id WHERE e.living <> (m.trashed_at IS NULL)") == 0, "what needs a blob is in the trash, or not, and noted otherwise")
	h.pass(window)
	h.collect(policy(0, 2*window, 1))
	h.wants(h.hasManifest("a", image) && h.hasBlob("a", "layer"), "a manifest that is mentioned is gone")
	h.wants(h.hasBlob("a", "mentioned"), "a blob that is mentioned is gone")
	h.wants(h.hasBlob("b", "in the trash"), "a blob that one in the trash mentions is gone")
	h.wants(h.hasBlob("c", "of a mistyped one"), "a layer of an image that was stored with another type is gone")
	h.wants(h.hasBlob("d", "below"), "a child of an index that was stored with another type is gone")
	h.wants(h.count("SELECT count(*) FROM unread") == 0, "manifests are left to be read")

	h.delete("a", unknown)
	h.pass(window)
	h.collect(policy(0, 0, 1))
	h.wants(!h.hasManifest("a", image) && !h.hasBlob("a", "mentioned"), "what it mentioned stays when it is gone")
}

// TestR1_ACycleOfMentionsIsKeptUntilOneOfItIsDeleted: a digest cannot be mentioned by what
// it depends on, but a subject keeps what refers to it, and that may mention what
// mentions the subject.
func TestR1_ACycleOfMentionsIsKeptUntilOneOfItIsDeleted(t *testing.T) {
	for i, name := range []string{"subject", "between", "referrer"} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			subject := h.image("a", []string{"layer"}, "v1")
			between := h.putUnknown("a", "", "", subject)
			referrer := h.putUnknown("a", "", subject, between)
			h.must(h.store.DeleteTag(h.ctx(), "a", "v1", "x"))
			all := []oci.Digest{subject, between, referrer}
			served := func() (n int) {
				for _, d := range all {
					if h.hasManifest("a", d) {
						n++
					}
				}
				return n
			}
			for range 3 {
				h.pass(2 * window)
				h.collect(policy(0, 0, 1))
			}
			h.wants(served() == 3 && h.hasBlob("a", "layer"), "%d of 3 are left that keep each other", served())
			h.delete("a", all[i])
			for range 4 {
				h.pass(2 * window)
				h.collect(policy(0, 0, 1))
			}
			h.wants(served() == 0 && !h.hasBlob("a", "layer"), "%d of 3 stay", served())
		})
	}
}

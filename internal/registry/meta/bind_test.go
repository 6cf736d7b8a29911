package meta_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// TestR1_ABlobThatIsServedAgainIsKeptByWhatHasMentionedItMeanwhile: it was there, and not
// served, when the manifest that mentions it came.
func TestR1_ABlobThatIsServedAgainIsKeptByWhatHasMentionedItMeanwhile(t *testing.T) {
	mention := func(d *db, content string) {
		raw := fmt.Appendf(nil, `{"mentioned":%q}`, digest.FromString(content))
		_, err := d.PutManifest(t.Context(), meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("application/x", raw)), Content: raw})
		d.must(err)
	}
	for name, tc := range map[string]struct{ hide, show func(*db) }{
		"deleted, and restored with an image": {
			func(d *db) {
				d.push("a", image("i", "layer"))
				d.delete("a", image("i", "layer"))
				d.must(d.DeleteBlob(t.Context(), "a", digest.FromString("layer"), "x"))
			},
			func(d *db) {
				must(d.Restore(t.Context(), "a", digest.FromBytes(image("i", "layer")), "x"))
				d.delete("a", image("i", "layer"))
			},
		},
		"lost, and found": {
			func(d *db) { outside(t, d.path, "UPDATE blobs SET lost_at = 1") },
			func(d *db) { outside(t, d.path, "UPDATE blobs SET lost_at = NULL") },
		},
		"lost, and uploaded to another repository": {
			func(d *db) { outside(t, d.path, "UPDATE blobs SET lost_at = 1") },
			func(d *db) { d.upload("b", "layer") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, path := traced(t, func(string, []any) {})
			d.path = path
			d.upload("a", "{}")
			d.upload("a", "layer")
			tc.hide(d)
			mention(d, "layer")
			tc.show(d)
			if err := d.DeleteBlob(t.Context(), "a", digest.FromString("layer"), "x"); !errors.Is(err, fault.Conflict) {
				t.Errorf("DELETE: %v, want a refusal", err)
			}
		})
	}
}

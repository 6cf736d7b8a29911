package meta_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// TestR12_TheTrashOfAPatternIsThatOfItsRepositories: whatever lies between them, even
// if it is more than a listing looks at in one go.
func TestR12_TheTrashOfAPatternIsThatOfItsRepositories(t *testing.T) {
	d, path := traced(t, nil)
	if items, _, err := d.Trash(t.Context(), meta.TrashPage{N: 1}); err != nil || items == nil {
		t.Errorf("an empty trash is listed as %v, %v", items, err)
	}
	want := map[string]int{}
	for i, repo := range []oci.Name{"a", "ab", "z", "a", "z", "ab"} {
		d.upload(repo, "{}")
		raw := image(fmt.Sprint(i))
		d.push(repo, raw)
		d.clock.Add(10_000)
		d.delete(repo, raw)
		if repo != "z" {
			want[string(repo)+"@"+string(digest.FromBytes(raw))] = 1
		}
	}
	for _, others := range []string{"few", "many"} {
		for _, n := range []int{-1, 1, 3, 4, 5} {
			got := map[string]int{}
			p := meta.TrashPage{Pattern: "a*", N: n}
			pages := 0
			for ; pages < 10; pages++ {
				items, next, err := d.Trash(t.Context(), p)
				d.must(err)
				if n >= 0 && len(items) > n {
					t.Errorf("beside %s others: a page of %d has %d items", others, n, len(items))
				}
				for _, it := range items {
					got[string(it.Repo)+"@"+string(it.Digest)]++
				}
				if p.After = next; next == (meta.TrashCursor{}) {
					break
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("beside %s others, pages of %d: got %v, want %v", others, n, got, want)
			}
			if n > 4 && pages > 0 {
				t.Errorf("beside %s others, pages of %d: %d pages follow the last item", others, n, pages)
			}
		}
		if others == "many" {
			break
		}
		// Others that went later, and between.
		outside(t, path, fmt.Sprintf(`WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < %d)
			INSERT INTO manifests (repo_id, digest, media_type, artifact_type, size, pushed_at, touched_at, trashed_at, content)
			SELECT (SELECT id FROM repositories WHERE name = 'z'), 'sha256:' || n, 'x', '', 1, 1, 1, %d + 2 * n, '{}' FROM i`, 2*meta.ListChunk+100, 1_700_000_021_000),
			`INSERT INTO trash (manifest_id, trashed_at, tags, reason, cause, actor) SELECT id, trashed_at, '[]', '', '', '' FROM manifests WHERE length(digest) < 20`)
	}
}

// TestR10_TheTrashSaysWhatItsItemsWouldFree: the bytes of an item are those that nothing
// else needs.
func TestR10_TheTrashSaysWhatItsItemsWouldFree(t *testing.T) {
	d := open(t)
	for _, layer := range []string{"{}", "own", "shared here", "shared elsewhere"} {
		d.upload("a", layer)
	}
	must(d.MountBlob(t.Context(), "b", "a", digest.FromString("shared elsewhere")))
	d.upload("b", "{}")
	d.push("a", image("kept", "shared here"), "v1")
	gone, other := image("gone", "own", "shared here", "shared elsewhere"), image("other")
	d.push("a", gone)
	d.push("a", other)
	d.delete("a", gone)
	d.delete("a", other)
	sizes := map[oci.Digest]int64{}
	for _, it := range d.trash("") {
		sizes[it.Digest] = it.Size
	}
	if got, want := sizes[digest.FromBytes(gone)], int64(len(gone)+len("own")); got != want {
		t.Errorf("the image with a layer of its own would free %d bytes, want %d", got, want)
	}
	if got, want := sizes[digest.FromBytes(other)], int64(len(other)); got != want {
		t.Errorf("the image without one would free %d bytes, want %d", got, want)
	}
	// A living manifest may share with the trash what it does not share with others.
	d.delete("a", image("kept", "shared here"))
	if got, want := d.trash("")[slices.IndexFunc(d.trash(""), func(it meta.TrashItem) bool { return it.Digest == digest.FromBytes(gone) })].Size, int64(len(gone)+len("own")+len("shared here")); got != want {
		t.Errorf("when all who share it are in the trash it would free %d bytes, want %d", got, want)
	}
}

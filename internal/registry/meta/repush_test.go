package meta_test

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// TestOneMoreTagOnAManifestThatIsKeptWritesLittle: it leaves alone what the manifest
// needs and what keeps it.
func TestOneMoreTagOnAManifestThatIsKeptWritesLittle(t *testing.T) {
	var written []string
	d, _ := traced(t, func(query string, _ []any) {
		for _, verb := range []string{"INSERT INTO ", "INSERT OR IGNORE INTO ", "UPDATE ", "DELETE FROM "} {
			if table, ok := strings.CutPrefix(query, verb); ok {
				written = append(written, strings.Fields(table)[0])
			}
		}
	})
	d.upload("a", "{}")
	d.upload("a", "layer")
	d.push("a", image("x", "layer"), "v1")
	d.push("a", indexOf("i", image("x", "layer")), "i1")
	written = nil
	d.push("a", image("x", "layer"), "v2")
	if want := []string{"manifests", "manifest_blobs", "tags"}; !slices.Equal(written, want) {
		t.Errorf("the second push of an image writes %v, want %v", written, want)
	}
	written = nil
	d.push("a", indexOf("i", image("x", "layer")), "i2")
	if want := []string{"manifests", "manifest_children", "tags"}; !slices.Equal(written, want) {
		t.Errorf("the second push of an index writes %v, want %v", written, want)
	}
}

// TestR8_ATagThatAKeptManifestTakesOverLeavesTheOther: the loser is untagged.
func TestR8_ATagThatAKeptManifestTakesOverLeavesTheOther(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	winner := d.push("a", image("winner"), "latest")
	loser := d.push("a", image("loser"), "v1")
	if got := d.loose(); len(got) != 0 {
		t.Errorf("untagged: %v, want none", got)
	}
	d.push("a", image("winner"), "v1")
	if got := d.loose(); !slices.Equal(got, []oci.Digest{loser}) {
		t.Errorf("untagged: %v, want %s; %s has two tags", got, loser, winner)
	}
}

// TestR1_WhatAnOlderManifestMentionsIsHeldWhenItIsPushedAgain: manifests of types not
// known here once held nothing.
func TestR1_WhatAnOlderManifestMentionsIsHeldWhenItIsPushedAgain(t *testing.T) {
	d, path := traced(t, nil)
	d.upload("a", "{}")
	layer := d.upload("a", "layer")
	child := d.push("a", image("child"))
	content := fmt.Appendf(nil, `{"mentions":[%q,%q]}`, child, layer)
	put := func() {
		t.Helper()
		m, err := oci.ParseManifest("application/x", content)
		d.must(err)
		_, err = d.PutManifest(t.Context(), meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(content), Manifest: m, Content: content})
		d.must(err)
	}
	put()
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	d.must(err)
	for _, s := range []string{"DELETE FROM manifest_children", "DELETE FROM manifest_blobs WHERE link_id = (SELECT l.id FROM links l JOIN blobs b ON b.id = l.blob_id WHERE b.digest = '" + string(layer) + "')",
		"UPDATE manifests SET loose_at = 1 WHERE digest = '" + string(child) + "'"} {
		_, err := pool.Exec(s)
		d.must(err)
	}
	d.must(pool.Close())
	d.upload("a", "layer") // is under review now
	if got := d.loose(); !slices.Equal(got, []oci.Digest{child}) {
		t.Fatalf("untagged: %v, want %s", got, child)
	}
	put()
	if got := d.loose(); len(got) != 0 {
		t.Errorf("what is mentioned is not held: %v", got)
	}
	if st := must(d.Stats(t.Context())); st.Reviews != 0 {
		t.Errorf("%d reviews, want none", st.Reviews)
	}
	if err := d.DeleteBlob(t.Context(), "a", layer, "x"); !errors.Is(err, fault.Conflict) {
		t.Error("a blob that is mentioned can be deleted")
	}
}

// loose lists the manifests that nothing keeps.
func (d *db) loose() (digests []oci.Digest) {
	d.Helper()
	fs, err := d.Loose(d.Context(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(d.Context(), "")), Limit: 100})
	d.must(err)
	for _, f := range fs {
		digests = append(digests, f.Digest)
	}
	return digests
}

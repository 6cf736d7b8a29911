package meta_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// TestR10_WhatAnotherChangeHasLeftIsNotOfARestore: it goes on with its own, and brings
// back, reports and logs what belongs to it, in its own repository.
func TestR10_WhatAnotherChangeHasLeftIsNotOfARestore(t *testing.T) {
	d, path := traced(t, nil)
	const n = 250
	children := images(n)
	d.upload("a", "{}")
	d.upload("b", "{}")
	d.push("a", image("other"))
	d.push("a", indexOf("other", image("other")), "v1")
	other := must(d.FindManifests(t.Context(), "a", digest.FromBytes(indexOf("other", image("other"))), 1))[0]
	d.pushAll("b", children)
	index := indexOf("i", children...)
	d.push("b", index, "v1")
	d.delete("b", index)
	for _, c := range children {
		d.delete("b", c)
	}
	must(meta.LeavesKin(d.Store, other.RepoID, other.ID))

	out := must(d.Restore(t.Context(), "b", digest.FromBytes(index), "x"))
	if len(out.Along) != n || d.served("b", children...) != n {
		t.Errorf("it reports %d of %d children, of which %d are served", len(out.Along), n, d.served("b", children...))
	}
	if left := countOf(t, path, "SELECT count(*) FROM kin"); left != 1 {
		t.Errorf("%d rows of others are left, want 1", left)
	}
	if logged := countOf(t, path, "SELECT count(*) FROM deletions WHERE act = 'restored' AND repo = 'b'"); logged != n+1 {
		t.Errorf("%d restored manifests are logged for the repository, want %d", logged, n+1)
	}
}

// TestR4_KinOfOneRepositoryAreSettledThere: by whoever finishes what a request left, so
// that a cached answer of that repository is not served any more.
func TestR4_KinOfOneRepositoryAreSettledThere(t *testing.T) {
	const n = 250
	children := images(n)
	index := indexOf("i", children...)
	d := killedAfter(t, "INSERT INTO kin", func(d *db) {
		d.upload("a", "{}")
		d.upload("b", "{}")
		d.push("a", image("first repository"))
		d.pushAll("b", children)
		d.push("b", index, "v1")
	}, func(d *db) { d.delete("b", index) })
	// Their answers are cached as those of what an index keeps, but for the orphans so far.
	if d.served("b", children...) != n {
		t.Fatal("not all are served")
	}
	d.must(d.FinishKin(t.Context()))
	before := d.Now()
	d.clock.Add(10_000)
	if d.served("b", children...) != n {
		t.Error("not all are served")
	}
	touched := 0
	for _, f := range must(d.Orphans(context.Background(), meta.Due{Before: d.Now(), Scope: must(d.RepoScope(t.Context(), "b")), Limit: 2 * n})) {
		if f.TouchedAt > before {
			touched++
		}
	}
	if touched != n {
		t.Errorf("%d of %d orphans that a client was told of are confirmed", touched, n)
	}
}

// TestR9_KinOfOneRepositoryDelayNoOther: what cannot be settled stops pushes and restores
// where it would mark them afterwards, and nowhere else.
func TestR9_KinOfOneRepositoryDelayNoOther(t *testing.T) {
	d, path := traced(t, nil)
	for _, repo := range []oci.Name{"a", "b", "c"} {
		d.upload(repo, "{}")
		d.push(repo, image("child"))
		d.push(repo, indexOf("i", image("child")), "v1")
		d.push(repo, image("gone"))
		if repo != "c" { // of which an index is being pushed
			d.delete(repo, indexOf("i", image("child")))
		}
		d.delete(repo, image("gone"))
	}
	const kin = `INSERT INTO kin (manifest_id, repo_id, run_id, mode, root, renewed_at, actor, referrers, after)
		SELECT m.id, r.id, 0, %d, 0, 0, '', 0, '' FROM repositories r JOIN manifests m ON m.repo_id = r.id WHERE r.name = '%s' AND m.media_type LIKE '%%index%%'`
	outside(t, path, fmt.Sprintf(kin, 0, "a"), fmt.Sprintf(kin, 1, "b"), fmt.Sprintf(kin, 2, "c"), "CREATE TRIGGER stuck BEFORE DELETE ON kin BEGIN SELECT RAISE(ABORT, 'stuck'); END")
	for repo, waits := range map[oci.Name]bool{"a": true, "b": false, "c": false} {
		if _, err := d.put(repo, image("new")); (err != nil) != waits {
			t.Errorf("a push to repository %s: %v", repo, err)
		}
		if _, err := d.Restore(t.Context(), repo, digest.FromBytes(image("gone")), "x"); (err != nil) != waits {
			t.Errorf("a restore in repository %s: %v", repo, err)
		}
	}
}

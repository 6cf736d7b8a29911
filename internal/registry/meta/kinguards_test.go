package meta_test

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"

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

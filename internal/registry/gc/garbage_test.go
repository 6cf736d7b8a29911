package gc_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func TestR10_DeletedImageGoesToTheTrashThenForGood(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"own", "shared"}, "v1", "v2")
	h.image("a", []string{"shared"}, "other")
	h.delete("a", d)
	h.wants(!h.hasManifest("a", d), "a deleted manifest is served")

	h.pass(trash - time.Minute)
	run := h.collect(h.gc.Policy())
	h.wants(run.Collected == 0, "collected %d before the trash time was over", run.Collected)
	items, _, err := h.store.Trash(h.ctx(), meta.TrashPage{N: -1})
	h.must(err)
	if len(items) != 1 || items[0].Digest != d || !reflect.DeepEqual(items[0].Tags, []string{"v1", "v2"}) || items[0].Actor != "tester" {
		t.Fatalf("trash is %+v", items)
	}
	h.pass(2 * time.Minute)
	run = h.collect(h.gc.Policy())
	// The window ran from the deletion, so the layer goes in the same run (R3).
	h.wants(run.Collected == 2 && run.Unlinked == 1 && run.FreedBytes == 3, "the run after the trash time: %+v", run.Counts)
	h.wants(!h.hasBlob("a", "own") && h.hasBlob("a", "shared"), "the wrong layer went")

	ds, err := h.store.Deletions(h.ctx(), "", run.ID, 0, 10)
	h.must(err)
	var log []string
	for _, x := range ds {
		log = append(log, x.Kind+" "+x.Act)
		h.wants(x.Reason != "" && x.Actor == "tester" && x.RunID == run.ID, "incomplete record %+v", x)
	}
	slices.Sort(log)
	h.wants(reflect.DeepEqual(log, []string{"blob removed", "link removed", "manifest removed"}), "deletion log is %v", log)
}

func TestR3_WindowCountsFromTheDeletionNotFromTheEndOfTheTrash(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.delete("a", d)
	h.pass(window - time.Minute)
	run := h.collect(policy(window, 0, 0)) // no trash: the manifest goes, the window is not over
	h.wants(run.Collected == 1 && h.hasBlob("a", "layer"), "run within the window: %+v", run.Counts)
	h.pass(2 * time.Minute)
	run = h.collect(policy(window, 0, 0))
	h.wants(run.Collected == 2 && !h.hasBlob("a", "layer"), "run after the window: %+v", run.Counts)
}

func TestR3_BlobHeldByTheTrashOnlyIsConfirmedLikeAnyOther(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.delete("a", d)
	h.pass(trash - time.Minute)
	_, err := h.store.ConfirmBlob(h.ctx(), "a", digest.FromString("layer"))
	h.must(err)
	h.pass(2 * time.Minute)
	h.collect(h.gc.Policy())
	h.wants(h.hasBlob("a", "layer"), "the blob went within the window after a HEAD")
	h.wants(!h.hasBlob("a", "{}"), "the blob that nobody asked for stays")
	h.pass(window)
	h.collect(h.gc.Policy())
	h.wants(!h.hasBlob("a", "layer"), "the blob stays for ever")
}

func TestR3_DeletedBlobAnswers404ButTheTrashMayWantItBack(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	err := h.store.DeleteBlob(h.ctx(), "a", digest.FromString("layer"), "tester")
	h.wants(errors.Is(err, fault.Conflict), "DELETE of a blob that a manifest needs: %v", err)
	h.delete("a", d)
	h.must(h.store.DeleteBlob(h.ctx(), "a", digest.FromString("layer"), "tester"))
	h.wants(!h.hasBlob("a", "layer"), "a deleted blob is served")
	h.pass(trash - time.Minute)
	h.collect(h.gc.Policy())
	_, err = h.store.Restore(h.ctx(), "a", d, "tester")
	h.must(err)
	h.wants(h.hasBlob("a", "layer") && h.hasManifest("a", d), "the restored image is not whole")
}

func TestManifestsOfADeletedIndexGoAfterTheWindowAndComeBackWithIt(t *testing.T) {
	h := newHouse(t)
	amd, arm := h.image("m", []string{"amd64"}), h.image("m", []string{"arm64"})
	kept := h.image("m", []string{"riscv"}, "riscv")
	i := h.index("m", "v1", amd, arm, kept)
	h.delete("m", i)
	h.collect(h.gc.Policy())
	h.wants(h.hasManifest("m", amd), "a child went within the window")
	h.pass(window + time.Minute)
	run := h.collect(h.gc.Policy())
	h.wants(run.Trashed == 2, "%d manifests went to the trash, want the two children", run.Trashed)
	h.wants(!h.hasManifest("m", amd) && h.hasManifest("m", kept), "the wrong children went")

	got, err := h.store.Restore(h.ctx(), "m", i, "tester")
	h.must(err)
	h.wants(len(got.Along) == 2, "restored along: %v, want the two children", got.Along)
	for _, d := range []oci.Digest{i, amd, arm, kept} {
		h.wants(h.hasManifest("m", d), "%s did not come back", d)
	}
	h.pass(100 * 24 * time.Hour)
	h.collectAll()
	h.wants(h.hasManifest("m", amd) && h.hasBlob("m", "arm64"), "a restored index lost a child")

	h.delete("m", i)
	run = h.collectAll()
	h.wants(run.Collected == 5 && run.Trashed == 2, "one run takes index, children and layers: %+v", run.Counts)
	h.wants(h.hasManifest("m", kept) && h.hasBlob("m", "riscv"), "the tagged child went")
}

func TestReferrersOfADeletedSubjectGo(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	raw := manifest(d)
	h.must(h.put("a", raw))
	sig := digest.FromBytes(raw)
	h.pass(100 * 24 * time.Hour)
	h.collect(policy(0, 0, time.Hour))
	h.wants(h.hasManifest("a", sig), "a referrer went though its subject is there")
	h.delete("a", d)
	h.pass(window + time.Minute)
	h.collect(h.gc.Policy())
	h.wants(!h.hasManifest("a", sig), "a referrer stays though its subject is gone")
	_, err := h.store.Restore(h.ctx(), "a", d, "tester")
	h.must(err)
	h.wants(h.hasManifest("a", sig), "the referrer did not come back with its subject")
}

func TestR1_DeletedChildOfALivingIndexStaysInTheTrash(t *testing.T) {
	h := newHouse(t)
	c := h.image("m", []string{"amd64"})
	i := h.index("m", "v1", c)
	h.delete("m", c)
	run := h.collectAll()
	h.wants(run.Collected == 0 && run.Kept[gc.KeptIndex] == 1, "run over a child of a living index: %+v", run.Counts)
	_, err := h.store.Restore(h.ctx(), "m", c, "tester")
	h.must(err)
	h.wants(h.hasManifest("m", c) && h.hasManifest("m", i) && h.hasBlob("m", "amd64"), "the index is not whole")
}

func TestUntaggedManifestsStayUnlessThePolicySaysSo(t *testing.T) {
	h := newHouse(t)
	old := h.image("a", []string{"old"}, "latest")
	h.image("a", []string{"new"}, "latest")
	child := h.image("a", []string{"child"})
	h.index("a", "multi", child)
	h.pass(365 * 24 * time.Hour)
	h.collect(policy(0, 0, 0))
	h.wants(h.hasManifest("a", old), "an untagged manifest went without being told to")
	// That look was a confirmation.
	h.pass(59 * time.Minute)
	h.collect(policy(0, 0, time.Hour))
	h.wants(h.hasManifest("a", old), "an untagged manifest went within the grace")
	h.pass(time.Hour + 2*time.Second)
	run := h.collect(policy(0, 0, time.Hour))
	h.wants(run.Trashed == 1 && run.Collected == 2, "run with --untagged 1h: %+v", run.Counts)
	h.wants(!h.hasBlob("a", "old") && h.hasManifest("a", child) && h.hasBlob("a", "new"), "the wrong manifest went")
}

func TestLeasedManifestAndAllBelowItStay(t *testing.T) {
	h := newHouse(t)
	c := h.image("m", []string{"amd64"})
	i := h.index("m", "v1", c)
	other := h.image("m", []string{"other"}, "latest")
	h.image("m", []string{"newer"}, "latest") // other is untagged now
	_, err := h.store.PutLease(h.ctx(), "node-1", []oci.Digest{i, other}, time.Hour.Milliseconds())
	h.must(err)
	h.delete("m", i)
	h.pass(30 * time.Minute)
	run := h.collect(policy(0, 0, time.Second))
	h.wants(run.Collected == 0 && run.Trashed == 0 && run.Kept[gc.KeptLease] == 3, "run under a lease: %+v", run.Counts)
	h.wants(h.hasManifest("m", c) && h.hasManifest("m", other) && h.hasBlob("m", "amd64"), "leased content went")
	_, err = h.store.Restore(h.ctx(), "m", i, "tester")
	h.must(err)
	h.delete("m", i)

	h.pass(31 * time.Minute) // the lease is over by itself
	run = h.collectAll()
	h.wants(!h.hasManifest("m", i) && !h.hasManifest("m", c) && !h.hasBlob("m", "amd64"), "content stays after its lease: %+v", run.Counts)
}

func TestLeaseOnABlobKeepsIt(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	d := digest.FromString("layer")
	_, err := h.store.PutLease(h.ctx(), "node-1", []oci.Digest{d}, time.Hour.Milliseconds())
	h.must(err)
	run := h.collectAll()
	h.wants(run.Kept[gc.KeptLease] == 1 && h.hasBlob("a", "layer"), "run over a leased blob: %+v", run.Counts)
	h.must(h.store.DeleteLease(h.ctx(), "node-1"))
	run = h.collectAll()
	h.wants(run.Collected == 1 && !h.hasBlob("a", "layer"), "run after the lease: %+v", run.Counts)
	err = h.store.DeleteLease(h.ctx(), "node-1")
	h.wants(errors.Is(err, fault.NotFound), "deleting no lease: %v", err)
}

func TestRunOverSomeRepositoriesLeavesTheOthers(t *testing.T) {
	h := newHouse(t)
	for _, repo := range []oci.Name{"team/a", "team/b/c", "else"} {
		d := h.image(repo, []string{string(repo)}, "v1")
		h.delete(repo, d)
	}
	p := policy(0, 0, 0)
	p.Repository = "team/*"
	run := h.collect(p)
	h.wants(!h.hasBlob("team/a", "team/a") && h.hasBlob("team/b/c", "team/b/c") && h.hasBlob("else", "else"), "team/* took the wrong ones: %+v", run.Counts)
	p.Repository = "team/**"
	h.collect(p)
	h.wants(!h.hasBlob("team/b/c", "team/b/c") && h.hasBlob("else", "else"), "team/** took the wrong ones")
	p.Repository = "nobody"
	_, err := h.gc.Start(h.ctx(), p, gc.TriggerManual, "tester")
	h.wants(errors.Is(err, fault.NotFound), "a run over an unknown repository: %v", err)
	p.Repository = "[x"
	_, err = h.gc.Start(h.ctx(), p, gc.TriggerManual, "tester")
	h.wants(errors.Is(err, fault.Invalid), "a run over a bad pattern: %v", err)
}

func TestDryRunPredictsExactlyAndChangesNothing(t *testing.T) {
	for _, p := range []meta.Policy{policy(0, 0, 0), policy(0, 0, time.Minute), policy(time.Hour, 0, time.Minute), policy(0, time.Hour, time.Minute), policy(window, trash, 0)} {
		h := newHouse(t)
		a, b := h.image("m", []string{"amd64", "shared"}), h.image("m", []string{"arm64"})
		i := h.index("m", "v1", a, b)
		nested := h.index("m", "", i)
		h.image("m", []string{"shared"}, "keep")
		h.must(h.put("m", manifest(i)))
		h.push("m", "unreferenced")
		_, err := h.store.MountBlob(h.ctx(), "n", "m", digest.FromString("shared"))
		h.must(err)
		u, err := h.store.CreateUpload(h.ctx(), "m", "sha256")
		h.must(err)
		w, err := h.blobs.Append(h.ctx(), u.Key, 0)
		h.must(err)
		_, err = w.Write([]byte("half an upload, and the database knows nothing of it"))
		h.must(err)
		h.must(w.Close())
		h.delete("m", nested)
		h.delete("m", i)
		h.pass(90 * time.Minute)

		before := h.objects()
		want, items, err := h.gc.DryRun(h.ctx(), p, 1000, nil)
		h.must(err)
		h.wants(reflect.DeepEqual(before, h.objects()), "a dry run changed the storage")
		runs, err := h.gc.History(h.ctx(), 0, 10)
		h.must(err)
		h.wants(len(runs) == 0, "a dry run left a run")
		got := h.collect(p)
		want.Total, got.Total = 0, 0
		h.wants(reflect.DeepEqual(want.Counts, got.Counts), "with %+v: predicted %+v, did %+v", p, want.Counts, got.Counts)
		ds, err := h.store.Deletions(h.ctx(), "", got.ID, 0, 1000)
		h.must(err)
		h.wants(reflect.DeepEqual(acts(items), acts(ds)), "with %+v: predicted\n%v\ndid\n%v", p, strings.Join(acts(items), "\n"), strings.Join(acts(ds), "\n"))
	}
}

func acts(ds []meta.Deletion) []string {
	out := []string{}
	for _, d := range ds {
		out = append(out, strings.Join([]string{d.Act, d.Kind, d.Repo, d.Digest, d.Reason}, " "))
	}
	slices.Sort(out)
	return out
}

func TestEmptyRepositoriesAreForgotten(t *testing.T) {
	h := newHouse(t)
	d := h.image("a/b", []string{"layer"}, "v1")
	h.delete("a/b", d)
	h.collectAll()
	st, err := h.store.Stats(h.ctx())
	h.must(err)
	h.wants(st == meta.Stats{}, "left over: %+v", st)
	_, _, err = h.store.Tags(h.ctx(), "a/b", "", -1)
	h.wants(errors.Is(err, fault.NotFound), "an empty repository is known: %v", err)
}

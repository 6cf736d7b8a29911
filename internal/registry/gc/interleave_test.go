package gc_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// These tests put an event between two steps of a collection by taking the
// steps themselves: read facts, judge, and only then claim.

func (h *house) judgedLinks(now time.Duration) []meta.Claim {
	h.Helper()
	fs, err := h.store.Links(h.ctx(), everything(h.T, h.store))
	h.must(err)
	l := gc.LimitsOf(policy(window, 0, 0), h.clock.Load()+now.Milliseconds())
	var claims []meta.Claim
	for _, f := range fs {
		v := gc.JudgeLink(f, l)
		if !v.Go {
			h.Fatalf("link %s is kept: %s", f.Digest, v.Reason)
		}
		claims = append(claims, meta.Claim{ID: f.ID, Version: f.Version, Before: l.Now - l.Window, Reason: v.Reason})
	}
	if len(claims) == 0 {
		h.Fatal("nothing was judged")
	}
	return claims
}

func (h *house) claim(w meta.Work) meta.Counts {
	h.Helper()
	c, err := h.store.Collect(h.ctx(), w)
	h.must(err)
	return c
}

func TestR4_HeadBetweenJudgementAndClaimKeepsTheBlob(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	h.pass(window + time.Second)
	claims := h.judgedLinks(0)
	_, err := h.store.ConfirmBlob(h.ctx(), "a", digest.FromString("layer"))
	h.must(err)
	c := h.claim(meta.Work{Unlink: claims})
	h.wants(c.Unlinked == 0 && c.Kept["raced"] == 1, "claim after HEAD: %+v", c)
	h.wants(h.hasBlob("a", "layer"), "the blob is gone though a client was told it is there")

	h.pass(window - time.Second)
	h.collect(h.gc.Policy())
	h.wants(h.hasBlob("a", "layer"), "the blob went within the window after the HEAD")
	h.pass(2*time.Second + meta.ConfirmAhead*time.Millisecond)
	h.collect(h.gc.Policy())
	h.wants(!h.hasBlob("a", "layer"), "the blob stays for ever")
	h.wants(len(h.objects()) == 0, "its bytes are left: %v", h.objects())
}

func TestR4_RetagOfAnUntaggedManifestBeingJudgedKeepsIt(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.must(h.store.DeleteTag(h.ctx(), "a", "v1", "tester"))
	h.pass(window)
	fs, err := h.store.Loose(h.ctx(), everything(t, h.store))
	h.must(err)
	if len(fs) != 1 {
		t.Fatalf("%d untagged manifests, want 1", len(fs))
	}
	v := gc.JudgeManifest(fs[0], gc.LimitsOf(policy(window, trash, time.Minute), h.clock.Load()))
	h.wants(v.Go, "an untagged manifest is kept: %s", v.Reason)
	h.must(h.put("a", manifest("", "layer"), "v2"))
	c := h.claim(meta.Work{Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: fs[0].ID, Version: fs[0].Version, Before: meta.NoLimit}, Repo: "a", RepoID: fs[0].RepoID, Digest: d}}})
	h.wants(c.Trashed == 0 && c.Kept["raced"] == 1, "claim after retag: %+v", c)
	h.wants(h.hasManifest("a", d), "the retagged manifest is gone")
}

func TestR3_MountDuringCollectionKeepsTheBlob(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	h.pass(window + time.Second)
	// The repository lost it; the blob itself is judged and not yet claimed.
	h.claim(meta.Work{Unlink: h.judgedLinks(0)})
	bs, err := h.store.Blobs(h.ctx(), everything(t, h.store))
	h.must(err)
	if len(bs) != 1 || !gc.JudgeBlob(bs[0], gc.LimitsOf(policy(window, 0, 0), h.clock.Load())).Go {
		t.Fatalf("the blob is not judged to go: %+v", bs)
	}
	// A mount cannot see it any more: nobody may be told of it.
	_, err = h.store.MountBlob(h.ctx(), "b", "", digest.FromString("layer"))
	h.wants(errors.Is(err, fault.NotFound), "mount of a blob in no repository: %v", err)

	// With another repository that has it, a mount wins over the claim.
	h.push("c", "layer")
	_, err = h.store.MountBlob(h.ctx(), "b", "c", digest.FromString("layer"))
	h.must(err)
	c := h.claim(meta.Work{Collect: []meta.Claim{{ID: bs[0].ID, Version: bs[0].Version, Before: meta.NoLimit}}})
	h.wants(c.Collected == 0 && c.Kept["raced"] == 1, "claim after mount: %+v", c)
	h.wants(h.hasBlob("b", "layer"), "the mounted blob is gone")
	h.collect(h.gc.Policy())
	h.wants(h.hasBlob("b", "layer") && h.hasBlob("c", "layer"), "the mounted blob went within the window")
}

func TestR3_MountBetweenJudgementAndClaimOfALinkKeepsIt(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	h.push("b", "layer")
	h.pass(window + time.Second)
	claims := h.judgedLinks(0)
	_, err := h.store.MountBlob(h.ctx(), "a", "b", digest.FromString("layer"))
	h.must(err)
	c := h.claim(meta.Work{Unlink: claims})
	h.wants(c.Unlinked == 1 && c.Kept["raced"] == 1, "claims after a mount into one of two: %+v", c)
	h.wants(h.hasBlob("a", "layer"), "the mounted blob is gone")
}

func TestR6_UploadOfADigestWhoseOldBytesAreBeingPurged(t *testing.T) {
	h := newHouse(t)
	h.push("a", "layer")
	h.pass(window + time.Second)
	h.claim(meta.Work{Unlink: h.judgedLinks(0)})
	bs, err := h.store.Blobs(h.ctx(), everything(t, h.store))
	h.must(err)
	h.claim(meta.Work{Collect: []meta.Claim{{ID: bs[0].ID, Version: bs[0].Version, Before: meta.NoLimit}}})
	ps, err := h.store.DuePurges(h.ctx(), 0, 0, "", 10)
	h.must(err)
	if len(ps) != 1 {
		t.Fatalf("%d objects to purge, want 1", len(ps))
	}
	h.push("a", "layer") // while the purge is under way
	_, err = h.blobs.Delete(h.ctx(), ps[0].Key)
	h.must(err)
	h.wants(h.hasBlob("a", "layer"), "the late delete hit the new bytes")
	_, err = h.blobs.Delete(h.ctx(), ps[0].Key) // twice
	h.wants(errors.Is(err, blob.ErrNotFound), "a second delete: %v", err)
	c, err := h.store.FinishPurges(h.ctx(), 0, []meta.Purged{{Key: ps[0].Key, Freed: 5}})
	h.must(err)
	h.wants(c.FreedBytes == 5, "freed %d bytes, want 5", c.FreedBytes)
	c, err = h.store.FinishPurges(h.ctx(), 0, []meta.Purged{{Key: ps[0].Key, Freed: 5}})
	h.must(err)
	h.wants(c.FreedBytes == 0, "a purge that finishes twice is counted twice")
	h.wants(h.hasBlob("a", "layer"), "the new upload is gone")
}

func TestR1_ManifestPutAgainstClaimOfItsLayer(t *testing.T) {
	h := newHouse(t)
	h.push("a", "{}")
	h.push("a", "layer")
	h.pass(window + time.Second)
	claims := h.judgedLinks(0)
	h.must(h.put("a", manifest("", "layer"), "v1"))
	c := h.claim(meta.Work{Unlink: claims})
	h.wants(c.Unlinked == 0 && c.Kept["raced"] == 2, "claims after the PUT: %+v", c)
	h.wants(h.hasBlob("a", "layer") && h.hasBlob("a", "{}"), "the acknowledged image lost a blob")

	// The other order: the layer went first, so the PUT must be refused.
	h.push("b", "{}")
	h.push("b", "other")
	h.pass(window + time.Second)
	h.claim(meta.Work{Unlink: h.judgedLinks(0)})
	err := h.put("b", manifest("", "other"), "v1")
	var f *fault.Error
	h.wants(errors.As(err, &f) && f.Code == oci.CodeManifestBlobUnknown, "PUT after its layer went: %v", err)
}

func TestR2_DeleteAndPutOfTheSameManifest(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.delete("a", d)
	h.pass(trash + time.Second)
	fs, err := h.store.Trashed(h.ctx(), everything(t, h.store))
	h.must(err)
	h.wants(len(fs) == 1 && gc.JudgeTrash(fs[0], gc.LimitsOf(h.gc.Policy(), h.clock.Load())).Go, "the trash item is not due: %+v", fs)
	h.must(h.put("a", manifest("", "layer"), "v2")) // its blobs are held by the trash
	c := h.claim(meta.Work{Remove: []meta.Claim{{ID: fs[0].ID, Version: fs[0].Version, Before: meta.NoLimit}}})
	h.wants(c.Collected == 0 && c.Kept["raced"] == 1, "claim after the PUT: %+v", c)
	h.collectAll()
	h.wants(h.hasManifest("a", d) && h.hasBlob("a", "layer"), "the manifest that was PUT again is not whole")

	var wg sync.WaitGroup
	for range 50 {
		wg.Add(2)
		go func() { defer wg.Done(); _ = h.store.DeleteManifest(h.ctx(), "a", d, "tester") }()
		go func() { defer wg.Done(); h.must(h.put("a", manifest("", "layer"), "v2")) }()
		wg.Wait()
		if h.hasManifest("a", d) && !h.hasBlob("a", "layer") {
			t.Fatal("a living manifest without its layer")
		}
	}
	h.must(h.put("a", manifest("", "layer"), "v2"))
	h.collectAll()
	h.wants(h.hasManifest("a", d) && h.hasBlob("a", "layer"), "the manifest that was PUT last is not whole")
}

func TestR1_IndexPushedLongAfterItsChildren(t *testing.T) {
	h := newHouse(t)
	a := h.image("m", []string{"amd64"})
	b := h.image("m", []string{"arm64"})
	h.pass(30 * 24 * time.Hour)
	h.collect(h.gc.Policy())
	i := h.index("m", "v1", a, b)
	h.pass(30 * 24 * time.Hour)
	h.collect(policy(0, 0, time.Hour))
	for _, d := range []oci.Digest{i, a, b} {
		h.wants(h.hasManifest("m", d), "%s is gone", d)
	}
	h.wants(h.hasBlob("m", "amd64") && h.hasBlob("m", "arm64"), "a layer is gone")
}

func TestUploadSessionLongerThanTheWindow(t *testing.T) {
	h := newHouse(t)
	u, err := h.store.CreateUpload(h.ctx(), "a", "sha256")
	h.must(err)
	for i := range 5 { // a chunk now and then, for longer than the window
		h.pass(window - time.Minute)
		h.collect(h.gc.Policy())
		w, err := h.blobs.Append(h.ctx(), u.Key, u.Size)
		h.must(err)
		_, err = io.WriteString(w, "chunk")
		h.must(err)
		h.must(w.Commit())
		if i%2 == 0 {
			h.must(h.store.TouchUpload(h.ctx(), u.ID))
		}
		u.Version, err = h.store.AdvanceUpload(h.ctx(), u, u.Size+5, nil)
		h.must(err)
		u.Size += 5
	}
	_, err = h.store.FinishUpload(h.ctx(), u, digest.FromString("chunkchunkchunkchunkchunk"), u.Size)
	h.must(err)
	h.wants(h.hasBlob("a", "chunkchunkchunkchunkchunk"), "the upload is lost")

	left, err := h.store.CreateUpload(h.ctx(), "a", "sha256")
	h.must(err)
	w, err := h.blobs.Append(h.ctx(), left.Key, 0)
	h.must(err)
	_, err = io.WriteString(w, "abandoned")
	h.must(err)
	h.must(w.Commit())
	h.pass(window + time.Minute)
	run := h.collect(h.gc.Policy())
	h.wants(run.Collected == 2, "collected %d, want the abandoned upload and the unreferenced blob", run.Collected)
	h.wants(len(h.objects()) == 0, "bytes are left: %v", h.objects())
}

func TestR13_TwoRunsAtOnceCollectEachItemOnce(t *testing.T) {
	h := newHouse(t)
	const n = 400
	for i := range n {
		h.push("a", string(rune('A'+i%26))+time.Duration(i).String())
	}
	h.pass(window + time.Second)
	var runs [2]meta.Run
	var wg sync.WaitGroup
	for i := range runs {
		wg.Add(1)
		go func() { defer wg.Done(); runs[i] = h.collect(h.gc.Policy()) }()
	}
	wg.Wait()
	h.wants(runs[0].Collected+runs[1].Collected == n, "collected %d and %d, want %d in all", runs[0].Collected, runs[1].Collected, n)
	h.wants(runs[0].Purged+runs[1].Purged == n, "purged %d and %d, want %d in all", runs[0].Purged, runs[1].Purged, n)
	ds, err := h.store.Deletions(h.ctx(), "", 0, 0, 10*n)
	h.must(err)
	seen := map[string]int{}
	for _, d := range ds {
		if d.Kind == "blob" {
			seen[d.Digest]++
		}
	}
	h.wants(len(seen) == n, "the log names %d blobs, want %d", len(seen), n)
	for d, k := range seen {
		h.wants(k == 1, "the log names %s %d times", d, k)
	}
}

// afterDelete is a store whose Delete calls after before it returns.
type afterDelete struct {
	blob.Store
	after func()
}

func (a *afterDelete) Delete(ctx context.Context, key string) (int64, error) {
	freed, err := a.Store.Delete(ctx, key)
	a.after()
	return freed, err
}

// TestR13_AnObjectThatOneRunIsDeletingIsLeftToIt: a second run would find the bytes gone,
// and would count the object with nothing freed.
func TestR13_AnObjectThatOneRunIsDeletingIsLeftToIt(t *testing.T) {
	h := newHouse(t)
	h.push("a", "garbage")
	inside, release := make(chan struct{}), make(chan struct{})
	var deletes atomic.Int64
	h.withStore(&afterDelete{h.files, func() {
		if deletes.Add(1) == 1 {
			close(inside)
			<-release
		}
	}})
	first, err := h.gc.Start(h.ctx(), policy(0, 0, 0), gc.TriggerManual, "tester")
	h.must(err)
	<-inside
	second := h.collect(policy(0, 0, 0))
	close(release)
	first, err = h.gc.Wait(h.ctx(), first.ID)
	h.must(err)
	h.wants(deletes.Load() == 1, "the object was deleted %d times", deletes.Load())
	h.wants(first.Purged == 1 && first.FreedBytes == int64(len("garbage")), "the run that deleted it: %+v", first.Counts)
	h.wants(second.Purged == 0 && second.FreedBytes == 0, "the other run: %+v", second.Counts)
}

func TestR7_CrashAfterClaimAndAfterByteDelete(t *testing.T) {
	h := newHouse(t)
	h.push("a", "one")
	h.push("a", "two")
	h.pass(window + time.Second)
	h.claim(meta.Work{Unlink: h.judgedLinks(0)})
	bs, err := h.store.Blobs(h.ctx(), everything(t, h.store))
	h.must(err)
	var claims []meta.Claim
	for _, b := range bs {
		claims = append(claims, meta.Claim{ID: b.ID, Version: b.Version, Before: meta.NoLimit})
	}
	h.claim(meta.Work{Collect: claims})
	h.reopen() // after the claim, before any byte went
	h.wants(len(h.objects()) == 2, "the bytes went without a purge")
	ps, err := h.store.DuePurges(h.ctx(), 0, 0, "", 10)
	h.must(err)
	if len(ps) != 2 {
		t.Fatalf("%d objects wait for purge, want 2", len(ps))
	}
	_, err = h.blobs.Delete(h.ctx(), ps[0].Key)
	h.must(err)
	h.reopen() // after one delete, before it was recorded
	run := h.collectAll()
	h.wants(run.Purged == 2 && run.FreedBytes == 3 && run.Failed == 0, "the run after the crash: %+v", run)
	h.wants(len(h.objects()) == 0, "bytes are left: %v", h.objects())
	st, err := h.store.Stats(h.ctx())
	h.must(err)
	h.wants(st.Purges == 0 && st.Reviews == 0, "queues are left: %+v", st)
}

func TestR10_RestoreDuringPurge(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.delete("a", d)
	h.pass(trash + time.Second)
	fs, err := h.store.Trashed(h.ctx(), everything(t, h.store))
	h.must(err)
	got, err := h.store.Restore(h.ctx(), "a", d, "tester") // between judgement and claim
	h.must(err)
	h.wants(len(got.Tags) == 1 && got.Tags[0] == "v1", "restored tags %v, want v1", got.Tags)
	c := h.claim(meta.Work{Remove: []meta.Claim{{ID: fs[0].ID, Version: fs[0].Version, Before: meta.NoLimit}}})
	h.wants(c.Collected == 0, "claim after restore: %+v", c)
	h.collectAll()
	h.wants(h.hasManifest("a", d) && h.hasBlob("a", "layer") && h.hasBlob("a", "{}"), "the restored image is not whole")

	// Once it has left the trash it cannot come back, and says so.
	h.delete("a", d)
	h.pass(trash + time.Second)
	fs, err = h.store.Trashed(h.ctx(), everything(t, h.store))
	h.must(err)
	h.claim(meta.Work{Remove: []meta.Claim{{ID: fs[0].ID, Version: fs[0].Version, Before: meta.NoLimit}}})
	_, err = h.store.Restore(h.ctx(), "a", d, "tester")
	h.wants(errors.Is(err, fault.NotFound), "restore of what left the trash: %v", err)
	h.collectAll()
	h.wants(len(h.objects()) == 0, "bytes are left: %v", h.objects())
}

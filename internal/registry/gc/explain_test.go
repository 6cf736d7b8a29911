package gc_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
)

func (h *house) explains(subject, verdict string) gc.Explanation {
	h.Helper()
	x, err := h.gc.Explain(h.ctx(), subject)
	h.must(err)
	h.wants(x.Verdict == verdict && x.Summary != "", "explain %s: verdict %q (%s), want %q", subject, x.Verdict, x.Summary, verdict)
	return x
}

func hasPath(x gc.Explanation, code string, parts ...string) bool {
	for _, r := range x.Reasons {
		path := strings.Join(r.Path, " → ")
		ok := r.Code == code
		for _, p := range parts {
			ok = ok && strings.Contains(path, p)
		}
		if ok {
			return true
		}
	}
	return false
}

func TestR10_ExplainFollowsABlobToTheTagThatKeepsIt(t *testing.T) {
	h := newHouse(t)
	c := h.image("m", []string{"amd64"})
	h.index("m", "v1", c)
	x := h.explains(string(digest.FromString("amd64")), gc.VerdictKept)
	h.wants(hasPath(x, gc.KeptReferenced, "tag m:v1", "index", string(c), "blob"), "no path from the tag to the blob: %+v", x.Reasons)
	x = h.explains("m@"+string(c), gc.VerdictKept)
	h.wants(hasPath(x, gc.KeptIndex, "tag m:v1", string(c)), "no path from the tag to the child: %+v", x.Reasons)
	x = h.explains("m:v1", gc.VerdictKept)
	h.wants(x.Kind == "tag" && hasPath(x, gc.KeptTag, "tag m:v1"), "the tag: %+v", x)
	x = h.explains("m", gc.VerdictKept)
	h.wants(x.Kind == "repository", "the repository: %+v", x)
}

func TestR10_ExplainSaysWhenAndWhyThingsGo(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	_, err := h.store.PutLease(h.ctx(), "node-7", []oci.Digest{d}, (48 * time.Hour).Milliseconds())
	h.must(err)
	h.delete("a", d)
	x := h.explains("a@"+string(d), gc.VerdictTrash)
	h.wants(hasPath(x, gc.KeptLease, "node-7"), "the lease is not named: %+v", x.Reasons)
	h.must(h.store.DeleteLease(h.ctx(), "node-7"))
	x = h.explains("a@"+string(d), gc.VerdictTrash)
	want := h.clock.Load() + trash.Milliseconds()
	h.wants(x.GoesAt != nil && x.GoesAt.UnixMilli() == want, "goes at %v, want the end of the trash", x.GoesAt)
	x = h.explains(string(digest.FromString("layer")), gc.VerdictKept)
	h.wants(hasPath(x, gc.KeptTrash, string(d)), "the trash is not named: %+v", x.Reasons)
	h.pass(trash + time.Second)
	h.explains("a@"+string(d), gc.VerdictDue)
	h.collect(h.gc.Policy())
	x = h.explains("a@"+string(d), gc.VerdictGone)
	h.wants(len(x.History) == 2, "history: %+v", x.History)
	h.explains(string(digest.FromString("layer")), gc.VerdictGone)

	h.push("b", "fresh")
	x = h.explains("b@"+string(digest.FromString("fresh")), gc.VerdictWaiting)
	h.wants(x.GoesAt != nil && x.GoesAt.UnixMilli() == h.clock.Load()+window.Milliseconds(), "goes at %v, want the end of the window", x.GoesAt)
	h.explains(string(digest.FromString("never seen")), gc.VerdictUnknown)
}

func TestExplainRefusesWhatItCannotRead(t *testing.T) {
	h := newHouse(t)
	for subject, kind := range map[string]fault.Kind{"UPPER": fault.Invalid, "a:b:c d": fault.Invalid, "a@sha256:short": fault.Invalid, "": fault.Invalid,
		"nobody": fault.NotFound, "nobody:v1": fault.NotFound} {
		_, err := h.gc.Explain(h.ctx(), subject)
		h.wants(errors.Is(err, kind), "explain %q: %v, want %s", subject, err, kind)
	}
}

// TestR10_ExplainKnowsWhatIsOnItsWayIn: what a crash has left of the push of a
// manifest with very many layers is not in the trash.
func TestR10_ExplainKnowsWhatIsOnItsWayIn(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"})
	h.sql("UPDATE manifests SET trashed_at = 1, loose_at = NULL", "INSERT INTO staged (manifest_id) SELECT id FROM manifests")
	x := h.explains("a@"+string(d), gc.VerdictWaiting)
	h.wants(strings.Contains(x.Summary, "being pushed"), "the manifest: %+v", x)
	x = h.explains("a@"+string(digest.FromString("layer")), gc.VerdictKept)
	h.wants(hasPath(x, gc.KeptReferenced, string(d)), "its layer: %+v", x)
}

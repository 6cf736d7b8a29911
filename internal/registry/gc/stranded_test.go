package gc_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

const stranded = time.Hour

func strandedPolicy(window, trash time.Duration) meta.Policy {
	p := policy(window, trash, 0)
	p.Stranded = meta.Duration(stranded)
	return p
}

func tagOf(d oci.Digest, suffix string) oci.Tag {
	return oci.Tag(strings.Replace(string(d), ":", "-", 1) + suffix)
}

// sign pushes a signature as cosign does, under a tag alone.
func (h *house) sign(repo oci.Name, d oci.Digest, more ...oci.Tag) oci.Digest {
	h.Helper()
	return h.image(repo, []string{"signature of " + string(d)}, append(more, tagOf(d, ".sig"))...)
}

func TestStrandedSignatureIsShownAndKeptByDefault(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	sig := h.sign("a", d)
	run := h.predicted(h.gc.Policy())
	h.wants(run.Kept[gc.KeptStranded] == 0, "while its image is there: %+v", run.Counts)
	h.delete("a", d)
	h.pass(100 * trash)
	run = h.predicted(h.gc.Policy())
	h.wants(run.Kept[gc.KeptStranded] == 1 && run.Collected > 0, "the run does not show the stranded signature: %+v", run.Counts)
	h.wants(h.hasManifest("a", sig), "a signature was collected though no rule says so")
	for _, subject := range []string{"a:" + string(tagOf(d, ".sig")), "a@" + string(sig)} {
		x, err := h.gc.Explain(h.ctx(), subject)
		h.must(err)
		i := slices.IndexFunc(x.Reasons, func(r gc.Reason) bool { return r.Code == gc.KeptStranded })
		h.wants(x.Verdict == gc.VerdictKept && i >= 0 && strings.Contains(x.Reasons[max(i, 0)].Text, string(d)) && strings.Contains(x.Summary, "stranded"), "explain %s: %+v", subject, x)
	}
	x, err := h.gc.Explain(h.ctx(), "a")
	h.must(err)
	h.wants(strings.Contains(x.Summary, "gone"), "explain of the repository: %s", x.Summary)
	h.image("a", []string{"layer"}, "v1")
	run = h.predicted(h.gc.Policy())
	h.wants(run.Kept[gc.KeptStranded] == 0, "its image is there again: %+v", run.Counts)
}

func TestStrandedSignatureGoesByTheRuleAndCanBeRestored(t *testing.T) {
	h := newHouse(t)
	p := strandedPolicy(window, trash)
	h.opts.Policy = p
	h.withStore(h.files)
	d := h.image("a", []string{"layer"}, "v1")
	sig := h.sign("a", d)
	h.delete("a", d)
	h.pass(trash - time.Minute)
	run := h.predicted(p)
	h.wants(run.Trashed == 0 && run.Kept[gc.KeptTrash] > 0, "its image can still be restored: %+v", run.Counts)
	h.pass(2 * time.Minute)
	h.predicted(p) // the image goes for good
	x, err := h.gc.Explain(h.ctx(), "a:"+string(tagOf(d, ".sig")))
	h.must(err)
	h.wants(x.Verdict == gc.VerdictDue, "explain what goes next: %s, %s", x.Verdict, x.Summary)
	run = h.predicted(p)
	h.wants(run.Trashed == 1, "the stranded signature was not trashed: %+v", run.Counts)
	h.wants(!h.hasManifest("a", sig), "it is still served")
	got, err := h.store.Restore(h.ctx(), "a", sig, "tester")
	h.must(err)
	h.wants(slices.Equal(got.Tags, []string{string(tagOf(d, ".sig"))}) && h.hasManifest("a", sig), "restored %+v", got)
	h.pass(stranded)
	run = h.predicted(p)
	h.wants(run.Trashed == 0, "it went within the window after its restore: %+v", run.Counts)
	h.pass(window + time.Minute)
	run = h.predicted(p)
	h.wants(run.Trashed == 1, "after its restore it stays for ever: %+v", run.Counts)
	h.pass(2 * trash)
	h.predicted(p)
	h.wants(len(h.objects()) == 0, "bytes are left: %v", h.objects())
}

func TestStrandedIndexOfReferrersGoesWithThem(t *testing.T) {
	h := newHouse(t)
	p := strandedPolicy(0, 0)
	d := h.image("a", []string{"layer"}, "v1")
	att := h.image("a", []string{"attestation"})
	h.index("a", tagOf(d, ""), att)
	h.delete("a", d)
	h.predicted(p)
	h.pass(stranded)
	h.predicted(p)
	h.wants(len(h.objects()) == 0, "bytes are left: %v", h.objects())
}

func TestStrandedSignatureStaysForWhateverSpeaksForIt(t *testing.T) {
	p := strandedPolicy(window, 0)
	for name, keep := range map[string]func(h *house, image, sig oci.Digest){
		"the image is pushed again": func(h *house, _, _ oci.Digest) { h.image("a", []string{"layer"}) },
		"the image is in the trash": func(h *house, image, _ oci.Digest) { h.image("a", []string{"layer"}); h.delete("a", image) },
		"another tag": func(h *house, _, sig oci.Digest) {
			h.must(h.put("a", manifest("", "signature of "+string(imageDigest)), "keep"))
			h.pass(window + time.Minute)
		},
		"an index":                     func(h *house, _, sig oci.Digest) { h.index("a", "keep", sig) },
		"a lease":                      func(h *house, _, sig oci.Digest) { h.leaseFor(365*24*time.Hour, sig) },
		"a client was just told of it": func(h *house, _, sig oci.Digest) { h.wants(h.hasManifest("a", sig), "it is gone") },
		"it was just pushed again":     func(h *house, image, _ oci.Digest) { h.sign("a", image) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			d := h.image("a", []string{"layer"}, "v1")
			h.wants(d == imageDigest, "the image is %s", d)
			sig := h.sign("a", d)
			for range 2 { // the cache knows it as kept by a tag
				h.wants(h.hasManifest("a", sig), "it is gone")
			}
			h.delete("a", d)
			h.pass(window - time.Minute)
			h.predicted(policy(window, 0, 0)) // the image is gone for good
			h.pass(2 * time.Minute)
			keep(h, d, sig)
			f := h.strandedOf(sig)
			q := p
			if name == "the image is in the trash" {
				q.Trash = meta.Duration(trash)
			}
			run := h.predicted(q)
			h.wants(run.Trashed == 0, "it went: %+v", run.Counts)
			if f != nil { // and the store refuses it, whatever was judged
				h.refused(name, meta.Work{Policy: q, Trash: []meta.TrashClaim{f.claim()}})
			}
		})
	}
}

var imageDigest = digest.FromBytes(manifest("", "layer"))

type strandedFacts struct{ meta.StrandedFacts }

func (f *strandedFacts) claim() meta.TrashClaim {
	return meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest, Stranded: true}
}

// strandedOf reads the facts of a manifest in its present version, nil where it
// is not stranded.
func (h *house) strandedOf(d oci.Digest) *strandedFacts {
	h.Helper()
	ms, err := h.store.FindManifests(h.ctx(), "a", d, 1)
	h.must(err)
	f, found, err := h.store.StrandedManifest(h.ctx(), ms[0].ID, window.Milliseconds())
	h.must(err)
	if !found {
		return nil
	}
	return &strandedFacts{f}
}

func TestR4_StoreRefusesToTrashASignatureThatIsNotStranded(t *testing.T) {
	h := newHouse(t)
	p := strandedPolicy(0, 0)
	d := h.image("a", []string{"layer"}, "v1")
	sig := h.sign("a", d)
	f := h.manifestOf("a", sig)
	claim := meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest, Stranded: true}
	h.refused("whose image is there", meta.Work{Policy: p, Trash: []meta.TrashClaim{claim}})
	h.pass(trash)
	h.delete("a", d)
	h.pass(stranded)
	h.refused("whose image is in the trash", meta.Work{Policy: p, Trash: []meta.TrashClaim{claim}})
	h.collect(policy(0, 0, 0))
	h.refused("that no rule collects", meta.Work{Trash: []meta.TrashClaim{claim}})
	h.clock.Add(-stranded.Milliseconds() + 1)
	h.refused("that is not stranded for long enough", meta.Work{Policy: p, Trash: []meta.TrashClaim{claim}})
	h.pass(stranded)
	c := h.claim(meta.Work{Policy: p, Trash: []meta.TrashClaim{claim}})
	h.wants(c.Trashed == 1, "what may go does not: %+v", c)
}

// Some keep signatures in a repository of their own, and some tools copy the
// signature before the image.
func TestSignatureOfAnImageThatNeverWasInTheRepositoryIsNotStranded(t *testing.T) {
	h := newHouse(t)
	p := strandedPolicy(0, 0)
	d := h.image("images", []string{"layer"}, "v1")
	sig := h.sign("signatures", d)
	h.delete("images", d)
	for range 2 {
		h.pass(100 * trash)
		run := h.predicted(p)
		h.wants(run.Trashed == 0 && run.Kept[gc.KeptStranded] == 0, "run %+v", run.Counts)
	}
	h.wants(h.hasManifest("signatures", sig), "it went")
	// Pushed for an image that was deleted before: that one is.
	h.image("images", []string{"other"}, "v2")
	late := h.sign("images", d)
	h.pass(100 * trash)
	run := h.predicted(p)
	h.wants(run.Trashed == 1 && !h.hasManifest("images", late), "run %+v", run.Counts)
}

func TestSignaturesStrandedBeforeTheUpgradeAreFound(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"layer"}, "v1")
	h.sign("a", d)
	other := h.image("a", []string{"other"}, "v2")
	h.sign("a", other)
	h.delete("a", d)
	h.exec("DELETE FROM stranded")
	script, err := os.ReadFile("../meta/migrations/00009_stranded.sql")
	h.must(err)
	h.exec(string(script[strings.Index(string(script), "INSERT INTO"):]))
	n := h.count("SELECT count(*) FROM stranded WHERE subject = ?", string(d))
	h.wants(n == 1 && h.count("SELECT count(*) FROM stranded") == 1, "the migration found %d of the deleted image", n)
}

// Here one condition alone speaks against the claim of a stranded manifest, or none.
func TestR4_StoreChecksEachConditionOfAStrandedManifest(t *testing.T) {
	const tag = "t"
	strand := func(h *house, repo oci.Name, tag oci.Tag, d oci.Digest, subject string, since int64) {
		h.Helper()
		f := h.manifestOf(repo, d)
		h.exec("INSERT OR REPLACE INTO stranded (repo_id, tag, manifest_id, subject, since) VALUES (?, ?, ?, ?, ?)", f.RepoID, string(tag), f.ID, subject, since)
	}
	low, high := "sha256:"+strings.Repeat("0", 64), "sha256:"+strings.Repeat("f", 64)
	now := func(h *house) int64 { return h.clock.Load() }
	for name, tt := range map[string]struct {
		tags    []oci.Tag
		subject string
		change  func(h *house, d oci.Digest, c *meta.TrashClaim, p *meta.Policy)
		goes    bool
	}{
		"nothing, subject before all others": {subject: low, goes: true},
		"nothing, subject after all others":  {subject: high, goes: true},
		"nothing, at the limit of the judge": {subject: low, change: func(h *house, _ oci.Digest, c *meta.TrashClaim, _ *meta.Policy) {
			c.Before = h.manifestOf("a", c.Digest).TouchedAt
		}, goes: true},
		"a subject in another repository": {subject: string(digest.FromBytes(manifest("", "b"))), goes: true},
		"stranded for just long enough": {subject: low, change: func(h *house, d oci.Digest, _ *meta.TrashClaim, _ *meta.Policy) {
			strand(h, "a", tag, d, low, now(h)-stranded.Milliseconds())
		}, goes: true},
		"stranded for not long enough": {subject: low, change: func(h *house, d oci.Digest, _ *meta.TrashClaim, _ *meta.Policy) {
			strand(h, "a", tag, d, low, now(h)-stranded.Milliseconds()+1)
		}},
		"another version": {subject: low, change: func(_ *house, _ oci.Digest, c *meta.TrashClaim, _ *meta.Policy) { c.Version-- }},
		"touched since judged": {subject: low, change: func(h *house, _ oci.Digest, c *meta.TrashClaim, _ *meta.Policy) {
			c.Before = h.manifestOf("a", c.Digest).TouchedAt - 1
		}},
		"touched in the window": {subject: low, change: func(_ *house, _ oci.Digest, _ *meta.TrashClaim, p *meta.Policy) {
			p.Window = meta.Duration(100 * trash)
		}},
		"an index": {subject: low, change: func(h *house, d oci.Digest, c *meta.TrashClaim, _ *meta.Policy) {
			h.index("a", "multi", d)
			h.pass(2 * stranded)
			c.Version = h.manifestOf("a", d).Version
		}},
		"another tag": {tags: []oci.Tag{tag, "other"}, subject: low},
		"another tag, stranded elsewhere": {tags: []oci.Tag{tag, "other"}, subject: low, change: func(h *house, _ oci.Digest, _ *meta.TrashClaim, _ *meta.Policy) {
			strand(h, "b", "other", digest.FromBytes(manifest("", "b")), low, 1)
		}},
		"no stranded tag of its own": {subject: low, change: func(h *house, d oci.Digest, c *meta.TrashClaim, _ *meta.Policy) {
			strand(h, "b", tag, digest.FromBytes(manifest("", "b")), low, 1)
			h.exec("DELETE FROM stranded WHERE manifest_id = ?", c.ID)
			h.exec("DELETE FROM tags WHERE manifest_id = ?", c.ID)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			if tt.tags == nil {
				tt.tags = []oci.Tag{tag}
			}
			h.image("b", []string{"b"}, tag)
			h.image("a", []string{"beside"}, "beside")
			d := h.image("a", []string{"signature"}, tt.tags...)
			strand(h, "a", tag, d, tt.subject, 1)
			h.pass(2 * stranded)
			f := h.manifestOf("a", d)
			c := meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: d, Stranded: true}
			p := strandedPolicy(0, 0)
			if tt.change != nil {
				tt.change(h, d, &c, &p)
			}
			if w := (meta.Work{Policy: p, Trash: []meta.TrashClaim{c}}); !tt.goes {
				h.refused(name, w)
			} else if got := h.claim(w); got.Trashed != 1 {
				t.Errorf("it stays: %+v", got)
			}
		})
	}
}

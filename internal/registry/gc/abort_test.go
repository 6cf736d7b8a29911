package gc_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// state is what a claim may change, to compare.
func (h *house) state() string {
	h.Helper()
	var s strings.Builder
	for _, t := range []string{"repositories", "manifests", "links", "blobs", "uploads", "trash", "purges", "deletions", "stranded"} {
		fmt.Fprintf(&s, "%s %d; ", t, h.count("SELECT count(*) FROM "+t))
	}
	for _, t := range []string{"manifests", "links", "blobs", "uploads", "reviews"} {
		fmt.Fprintf(&s, "versions of %s %d; ", t, h.count("SELECT coalesce(sum(version), 0) FROM "+t))
	}
	for _, sum := range []string{"sum(trashed_at) FROM manifests", "sum(event_at) FROM reviews", "count(*) FROM reviews WHERE run_id IS NOT NULL", "sum(collected + unlinked + trashed) FROM runs"} {
		fmt.Fprintf(&s, "%s %d; ", sum, h.count("SELECT coalesce("+strings.Replace(sum, " FROM", ", 0) FROM", 1)))
	}
	return s.String()
}

// everyClaim is work with claims of all kinds that succeed, in one repository each,
// and one claim of each kind that loses.
func (h *house) everyClaim() meta.Work {
	h.Helper()
	loose := h.image("loose", []string{"1"})
	removed := h.index("removed", "")
	h.delete("removed", removed)
	withLinks := h.image("links", []string{"2"})
	h.delete("links", withLinks)
	h.push("lonely", "3")
	h.push("unlinked", "4")
	h.push("unlinked", "settled")
	h.push("unlinked", "postponed")
	gone := h.linkOf("unlinked", "4")
	h.claim(meta.Work{Unlink: []meta.Claim{{ID: gone.ID, Version: gone.Version, Before: meta.NoLimit}}})
	u, err := h.store.CreateUpload(h.ctx(), "abandoned", "sha256")
	h.must(err)
	review := func(content string) meta.Settled {
		h.Helper()
		l := h.linkOf("unlinked", content)
		return meta.Settled{Kind: "link", Target: l.ID, Version: h.count("SELECT version FROM reviews WHERE kind = 'link' AND target = ?", l.ID)}
	}
	m, t, t2, l, b := h.manifestOf("loose", loose), h.trashOf("removed", removed), h.trashOf("links", withLinks), h.linkOf("lonely", "3"), h.blobOf("4")
	claim := func(id, version int64) []meta.Claim {
		return []meta.Claim{{ID: id, Version: version, Before: meta.NoLimit, Reason: "test"}, {ID: 1 << 40, Before: meta.NoLimit}}
	}
	trash := meta.TrashClaim{Claim: claim(m.ID, m.Version)[0], Repo: m.Repo, RepoID: m.RepoID, Digest: m.Digest}
	o := h.manifestOf("loose", h.image("loose", []string{"5"}))
	lost := meta.TrashClaim{Claim: claim(o.ID, 1<<40)[0], Repo: o.Repo, RepoID: o.RepoID, Digest: o.Digest}
	h.exec("INSERT INTO reviews (kind, target, repo_id, event_at, event) VALUES ('manifest', ?, ?, 1, 'test')", o.ID, o.RepoID)
	return meta.Work{Run: h.run(), Actor: "tester", Trash: []meta.TrashClaim{lost, trash}, Remove: append(claim(t.ID, t.Version), claim(t2.ID, t2.Version)[0]), Unlink: claim(l.ID, l.Version), Collect: claim(b.ID, b.Version),
		Abandon: []meta.UploadClaim{{ID: "none", Before: meta.NoLimit}, {ID: u.ID, Version: u.Version, Before: meta.NoLimit}},
		Settled: []meta.Settled{review("settled")}, Postponed: []meta.Postponed{{Settled: review("postponed"), EventAt: 1 << 50}}}
}

// run is a run that the work of a test belongs to.
func (h *house) run() int64 {
	h.Helper()
	h.exec("INSERT INTO runs (trigger, state, actor, policy, started_at) VALUES ('manual', 'running', 'tester', '{}', 1)")
	return h.count("SELECT max(id) FROM runs")
}

// A statement that fails, whichever it is, takes back all claims of its
// transaction, and the caller hears of it.
func TestR9_AClaimWhoseStatementFailsChangesNothing(t *testing.T) {
	h := newHouse(t)
	w := h.everyClaim()
	before := h.state()
	for _, at := range []string{
		"UPDATE ON manifests", "INSERT ON trash", "DELETE ON manifests", "DELETE ON links", "UPDATE ON blobs", "DELETE ON blobs",
		"INSERT ON purges", "INSERT ON deletions WHEN new.kind = 'manifest' AND new.act = 'removed'", "INSERT ON deletions WHEN new.kind = 'link'",
		"INSERT ON deletions WHEN new.kind = 'blob'", "INSERT ON deletions WHEN new.kind = 'upload'",
		"DELETE ON uploads", "DELETE ON repositories", "INSERT ON reviews WHEN new.kind = 'blob'", "INSERT ON reviews WHEN new.kind = 'link'",
		"DELETE ON reviews", "UPDATE ON reviews", "UPDATE ON reviews WHEN new.event_at = 1125899906842624", "UPDATE ON runs",
		"DELETE ON reviews WHEN old.kind = 'link' AND old.target = " + fmt.Sprint(w.Settled[0].Target),
		fmt.Sprintf("DELETE ON reviews WHEN old.kind = 'link' AND old.target = %d", w.Unlink[0].ID), "DELETE ON reviews WHEN old.kind = 'blob'",
		"UPDATE ON reviews WHEN old.kind = 'manifest'", "INSERT ON purges WHEN new.digest = ''", "INSERT ON purges WHEN new.digest <> ''",
		"DELETE ON repositories WHEN old.name = 'removed'", "DELETE ON repositories WHEN old.name = 'lonely'", "DELETE ON repositories WHEN old.name = 'abandoned'",
	} {
		h.exec("CREATE TRIGGER failing BEFORE " + at + " BEGIN SELECT RAISE(ABORT, 'injected'); END")
		_, err := h.store.Collect(h.ctx(), w)
		h.exec("DROP TRIGGER failing")
		h.wants(err != nil && strings.Contains(err.Error(), "injected"), "%s fails: Collect returns %v", at, err)
		if after := h.state(); after != before {
			h.Fatalf("%s fails, and\n%s\nbecame\n%s", at, before, after)
		}
	}
	c := h.claim(w)
	h.wants(c.Trashed == 1 && c.Unlinked == 1 && c.Collected == 4 && c.Kept["raced"] == 5, "what succeeds, and is lost: %+v", c)
	h.wants(h.count("SELECT count(*) FROM repositories WHERE name IN ('removed', 'lonely', 'abandoned')") == 0, "an empty repository stays")
	h.wants(!h.hasManifest("loose", w.Trash[1].Digest) && h.hasManifest("loose", w.Trash[0].Digest), "one of two was claimed, and the other went, or neither: %s", h.state())
}

// text is one column of a query, in one line.
func (h *house) text(query string, args ...any) (s string) {
	h.Helper()
	h.must(h.raw().QueryRow("SELECT coalesce(group_concat(x, ' '), '') FROM ("+query+")", args...).Scan(&s))
	return s
}

// Two of each kind are alike, in version and time. The claim on one leaves the
// other as it was.
func TestR4_AClaimChangesOnlyWhatItNames(t *testing.T) {
	h := newHouse(t)
	loose, other := h.image("a", []string{"1"}), h.image("a", []string{"2"})
	stranded, otherStranded := h.sign("b", loose), h.sign("b", other)
	gone, otherGone := h.image("c", []string{"5"}), h.image("c", []string{"6"})
	h.delete("c", gone)
	h.delete("c", otherGone)
	h.push("d", "7")
	h.push("d", "8")
	for _, content := range []string{"9", "10"} {
		h.push("e", content)
		l := h.linkOf("e", content)
		h.claim(meta.Work{Unlink: []meta.Claim{{ID: l.ID, Version: l.Version, Before: meta.NoLimit}}})
	}
	u, err := h.store.CreateUpload(h.ctx(), "f", "sha256")
	h.must(err)
	_, err = h.store.CreateUpload(h.ctx(), "f", "sha256")
	h.must(err)
	m, g, l, b := h.manifestOf("a", loose), h.trashOf("c", gone), h.linkOf("d", "7"), h.blobOf("9")
	h.wants(m.Version == h.manifestOf("a", other).Version && g.Version == h.trashOf("c", otherGone).Version &&
		l.Version == h.linkOf("d", "8").Version && b.Version == h.blobOf("10").Version, "they are not alike")
	h.exec("INSERT OR REPLACE INTO stranded (repo_id, tag, manifest_id, subject, since) SELECT repo_id, name, manifest_id, ?, 1 FROM tags WHERE repo_id = (SELECT id FROM repositories WHERE name = 'b')", "sha256:"+strings.Repeat("0", 64))
	s := h.manifestOf("b", stranded)
	h.exec("DELETE FROM reviews")
	for _, kind := range []string{"manifest", "link", "blob", "settled", "postponed"} { // of each kind, whatever the target
		for _, target := range []int64{m.ID, g.ID, l.ID, b.ID, s.ID, 1 << 30, 1 << 31} {
			h.exec("INSERT OR IGNORE INTO reviews (kind, target, repo_id, event_at, event, run_id, version) VALUES (?, ?, 1, 1, 'test', 7, 3)", kind, target)
		}
	}
	unlinked := h.blobOf("7").ID
	rest := func() string {
		return h.text(`SELECT 'm' || id || ':' || version || coalesce(trashed_at, '') AS x FROM manifests WHERE id NOT IN (?1, ?2, ?3)
			UNION ALL SELECT 'l' || id || ':' || version FROM links WHERE id <> ?4 AND repo_id = (SELECT id FROM repositories WHERE name = 'd') UNION ALL SELECT 'u' || id || ':' || version FROM uploads WHERE id <> ?6
			UNION ALL SELECT 'b' || id || ':' || version FROM blobs WHERE id NOT IN (?5, ?8)
			UNION ALL SELECT 'r' || name FROM repositories
			UNION ALL SELECT kind || target || ':' || version || coalesce(run_id, '') FROM reviews
				WHERE (kind, target) NOT IN (VALUES ('manifest', ?1), ('manifest', ?2), ('link', ?4), ('blob', ?5), ('settled', ?7), ('postponed', ?7))
					AND kind || target NOT IN (SELECT 'link' || link_id FROM manifest_blobs) AND NOT (kind = 'blob' AND event_at > 1) AND NOT (kind = 'link' AND event_at > 1)`,
			m.ID, s.ID, g.ID, l.ID, b.ID, u.ID, int64(1)<<30, unlinked)
	}
	before := rest()
	claim := func(id, version int64) meta.Claim { return meta.Claim{ID: id, Version: version, Before: meta.NoLimit} }
	p := policy(0, 0, 0)
	p.Stranded = 1
	c := h.claim(meta.Work{Policy: p, Trash: []meta.TrashClaim{
		{Claim: claim(m.ID, m.Version), Repo: m.Repo, RepoID: m.RepoID, Digest: m.Digest},
		{Claim: claim(s.ID, s.Version), Repo: s.Repo, RepoID: s.RepoID, Digest: s.Digest, Stranded: true}},
		Remove: []meta.Claim{claim(g.ID, g.Version)}, Unlink: []meta.Claim{claim(l.ID, l.Version)}, Collect: []meta.Claim{claim(b.ID, b.Version)},
		Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version, Before: meta.NoLimit}},
		Settled: []meta.Settled{{Kind: "settled", Target: 1 << 30, Version: 3}}, Postponed: []meta.Postponed{{Settled: meta.Settled{Kind: "postponed", Target: 1 << 30, Version: 3}, EventAt: 1 << 50}}})
	h.wants(c.Trashed == 2 && c.Collected == 3 && c.Unlinked == 1 && c.Kept["raced"] == 0, "%+v", c)
	if after := rest(); after != before {
		t.Errorf("of the others\n%s\nbecame\n%s", before, after)
	}
	h.wants(h.hasManifest("a", other) && h.hasManifest("b", otherStranded), "another manifest went")
	h.wants(h.count("SELECT count(*) FROM reviews WHERE kind = 'settled' AND target = ?", 1<<30) == 0 &&
		h.count("SELECT event_at FROM reviews WHERE kind = 'postponed' AND target = ?", 1<<30) == 1<<50, "the reviews were not answered")
}

// The store does not claim for the trash what is there already.
func TestR4_WhatIsInTheTrashIsNotTrashedAgain(t *testing.T) {
	h := newHouse(t)
	d := h.image("a", []string{"1"})
	f := h.manifestOf("a", d)
	h.delete("a", d)
	f.Version = h.trashOf("a", d).Version
	claim := meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}
	h.refused("as a loose one", meta.Work{Trash: []meta.TrashClaim{claim}})
	h.exec("INSERT INTO stranded (repo_id, tag, manifest_id, subject, since) VALUES (?, 't', ?, 'sha256:x', 1)", f.RepoID, f.ID)
	claim.Stranded = true
	p := policy(0, 0, 0)
	p.Stranded = 1
	h.refused("as a stranded one", meta.Work{Policy: p, Trash: []meta.TrashClaim{claim}})
}

// What is logged names its own repository, digest and size, among others like it.
func TestR10_EachClaimIsLoggedAsWhatItWas(t *testing.T) {
	h := newHouse(t)
	h.push("0", "first of all") // a name, a digest and a size that are nobody else's
	w := h.everyClaim()
	for _, list := range [][]meta.Claim{w.Remove, w.Unlink, w.Collect} {
		for i := range list {
			list[i].Reason = "reason " + fmt.Sprint(list[i].ID)
		}
	}
	w.Trash[1].Reason, w.Abandon[1].Reason = "loose", "abandoned"
	digestOf := func(content string) string { return string(digest.FromString(content)) }
	removed, links := h.text("SELECT digest AS x FROM manifests WHERE id = ?", w.Remove[0].ID), h.text("SELECT digest AS x FROM manifests WHERE id = ?", w.Remove[2].ID)
	h.claim(w)
	want := []string{
		"manifest trashed loose " + string(w.Trash[1].Digest) + " loose",
		"manifest removed removed " + removed + " reason " + fmt.Sprint(w.Remove[0].ID),
		"manifest removed links " + links + " reason " + fmt.Sprint(w.Remove[2].ID),
		"link removed lonely " + digestOf("3") + " reason " + fmt.Sprint(w.Unlink[0].ID),
		"blob removed  " + digestOf("4") + " reason " + fmt.Sprint(w.Collect[0].ID),
		"upload removed abandoned " + w.Abandon[1].ID + " abandoned",
	}
	for _, line := range want {
		n := h.count("SELECT count(*) FROM deletions WHERE run_id = ? AND kind || ' ' || act || ' ' || coalesce(repo, '') || ' ' || digest || ' ' || reason = ?", w.Run, line)
		h.wants(n == 1, "%q is logged %d times; the log has\n%s", line, n, h.text("SELECT kind || ' ' || act || ' ' || coalesce(repo, '') || ' ' || digest || ' ' || reason || char(10) AS x FROM deletions WHERE run_id = ?", w.Run))
	}
	h.wants(h.count("SELECT bytes FROM deletions WHERE run_id = ? AND kind = 'link'", w.Run) == 1 && h.count("SELECT bytes FROM deletions WHERE run_id = ? AND kind = 'blob'", w.Run) == 1,
		"sizes of a link and a blob of one byte: %s", h.text("SELECT kind || bytes AS x FROM deletions WHERE run_id = ?", w.Run))
	h.wants(h.count("SELECT count(*) FROM purges WHERE digest = ? AND size = 1 AND run_id = ?", digestOf("4"), w.Run) == 1, "the blob's bytes are not queued for the purge")
}

// A repository that something is left in stays, and so does one that no claim is about.
func TestR1_ARepositoryGoesOnlyWhenItIsEmpty(t *testing.T) {
	h := newHouse(t)
	gone, stays := h.index("manifests", ""), h.index("manifests", "v1", digest.FromString("other"))
	h.delete("manifests", gone)
	h.exec("INSERT INTO repositories (name, created_at) VALUES ('beside', 1)")
	h.push("links", "1")
	h.push("links", "2")
	u, err := h.store.CreateUpload(h.ctx(), "uploads", "sha256")
	h.must(err)
	_, err = h.store.CreateUpload(h.ctx(), "uploads", "sha256")
	h.must(err)
	t1, l := h.trashOf("manifests", gone), h.linkOf("links", "1")
	c := h.claim(meta.Work{Remove: []meta.Claim{{ID: t1.ID, Version: t1.Version, Before: meta.NoLimit}}, Unlink: []meta.Claim{{ID: l.ID, Version: l.Version, Before: meta.NoLimit}},
		Abandon: []meta.UploadClaim{{ID: u.ID, Version: u.Version, Before: meta.NoLimit}}})
	h.wants(c.Collected == 2 && c.Unlinked == 1, "%+v", c)
	h.wants(h.text("SELECT name AS x FROM repositories ORDER BY name") == "beside links manifests uploads", "left are: %s", h.text("SELECT name AS x FROM repositories ORDER BY name"))
	h.wants(h.hasManifest("manifests", stays), "a tagged manifest went with its repository")
}

// While children and referrers of a manifest are not settled yet, nothing leaves its
// repository's trash: it may be among what is to be restored.
func TestR7_AManifestWithUnsettledKinIsNotRemoved(t *testing.T) {
	h := newHouse(t)
	d, beside, other := h.image("a", []string{"1"}), h.image("a", []string{"2"}), h.image("b", []string{"2"})
	h.delete("a", d)
	h.delete("a", beside)
	h.delete("b", other)
	work := func(repo oci.Name, d oci.Digest) meta.Work {
		f := h.trashOf(repo, d)
		return meta.Work{Remove: []meta.Claim{{ID: f.ID, Version: f.Version, Before: meta.NoLimit}}}
	}
	h.exec("INSERT INTO kin (manifest_id, repo_id, run_id, referrers, after) SELECT id, repo_id, 0, 0, '' FROM manifests WHERE id = ?", h.trashOf("a", d).ID)
	h.refused("with kin", work("a", d))
	h.refused("beside it", work("a", beside))
	c := h.claim(work("b", other))
	h.wants(c.Collected == 1, "kin in another repository keep it: %+v", c)
}

// Work of which each claim fails is left to a later run, with a line in the log.
func TestR9_WorkThatFailedIsLeftToALaterRun(t *testing.T) {
	h := newHouse(t)
	w := meta.Work{Run: h.run(), Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: 1}}}, Unlink: []meta.Claim{{ID: 2}}, Collect: []meta.Claim{{ID: 3}}}
	for kind, target := range map[string]int{"manifest": 1, "link": 2, "blob": 3} {
		for _, id := range []int{target, 10 + target} {
			h.exec("INSERT INTO reviews (kind, target, repo_id, event_at, event, run_id) VALUES (?, ?, 1, 1, 'test', 7)", kind, id)
		}
	}
	failed := func() int64 { return h.count("SELECT failed FROM runs WHERE id = ?", w.Run) }
	for _, at := range []string{"UPDATE ON reviews WHEN old.kind = 'blob'", "INSERT ON run_events", "UPDATE ON runs"} {
		h.exec("CREATE TRIGGER failing BEFORE " + at + " BEGIN SELECT RAISE(ABORT, 'injected'); END")
		err := h.store.CollectFailed(h.ctx(), w, "it failed")
		h.exec("DROP TRIGGER failing")
		h.wants(err != nil && failed() == 0 && h.count("SELECT count(*) FROM reviews WHERE run_id IS NULL") == 0 && h.count("SELECT count(*) FROM run_events") == 0, "%s fails: %v", at, err)
	}
	h.must(h.store.CollectFailed(h.ctx(), w, "it failed"))
	free := h.text("SELECT kind || target AS x FROM reviews WHERE run_id IS NULL ORDER BY target")
	h.wants(free == "manifest1 link2 blob3" && failed() == 1 && h.text("SELECT text AS x FROM run_events") == "it failed", "left to a later run: %s; %d failed", free, failed())
}

package gc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Verdicts of an Explanation.
const (
	VerdictKept    = "kept"    // something keeps it
	VerdictWaiting = "waiting" // nothing keeps it but time
	VerdictDue     = "due"     // the next run takes it
	VerdictTrash   = "trash"   // deleted, and can be restored
	VerdictGone    = "gone"    // the deletion log knows it
	VerdictUnknown = "unknown" // never heard of it
)

// Explanation says why something is kept, or when it will go and why.
type Explanation struct {
	Subject string          `json:"subject"` // as asked for
	Kind    string          `json:"kind"`    // repository, tag, manifest, blob
	Repo    string          `json:"repository,omitempty"`
	Digest  string          `json:"digest,omitempty"`
	Verdict string          `json:"verdict"`
	Summary string          `json:"summary"` // one sentence
	Reasons []Reason        `json:"reasons"`
	GoesAt  *time.Time      `json:"goes_at,omitempty"` // at the earliest, if nothing happens
	History []meta.Deletion `json:"history,omitempty"` // newest first
	Parts   []Explanation   `json:"parts,omitempty"`   // each place of a digest; what is at risk in a repository
}

// Reason is one thing that keeps it.
type Reason struct {
	Code  string     `json:"code"` // as in a run's "kept"
	Path  []string   `json:"path"` // from what is kept for its own sake down to the subject
	Text  string     `json:"text"`
	Until *time.Time `json:"until,omitempty"`
}

// How much an explanation shows of each kind.
const (
	explainPlaces  = 20
	explainHolders = 5
	explainDepth   = 8
	explainHistory = 10
)

// Explain reads REPO, REPO:TAG, REPO@DIGEST or DIGEST and tells what the
// server's own policy makes of it. The error is Invalid for any other form,
// NotFound for a repository or tag that is not there.
func (c *Collector) Explain(ctx context.Context, subject string) (Explanation, error) {
	e := &explainer{Collector: c, ctx: ctx, limits: LimitsOf(c.opts.Policy, c.store.Now())}
	x, err := e.explain(subject)
	x.Subject = subject
	if x.Reasons == nil {
		x.Reasons = []Reason{}
	}
	return x, err
}

type explainer struct {
	*Collector
	ctx    context.Context
	limits Limits
}

func (e *explainer) explain(subject string) (Explanation, error) {
	if name, d, ok := strings.Cut(subject, "@"); ok {
		repo, err := oci.ParseName(name)
		if err != nil {
			return Explanation{}, err
		}
		digest, err := oci.ParseDigest(d)
		if err != nil {
			return Explanation{}, err
		}
		return e.digest(repo, digest)
	}
	if d, err := oci.ParseDigest(subject); err == nil {
		return e.digest("", d)
	}
	name, tag, tagged := cutTag(subject)
	repo, err := oci.ParseName(name)
	if err != nil {
		return Explanation{}, fault.New(fault.Invalid, "%q is no REPO, REPO:TAG, REPO@DIGEST or DIGEST: %w", subject, err)
	}
	if !tagged {
		return e.repository(repo)
	}
	t, err := oci.ParseTag(tag)
	if err != nil {
		return Explanation{}, err
	}
	m, err := e.store.FindTag(e.ctx, repo, t)
	if err != nil {
		return Explanation{}, err
	}
	x, err := e.manifest(m)
	x.Kind = "tag"
	return x, err
}

func cutTag(s string) (name, tag string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s[i:], '/') >= 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// digest explains a digest wherever it is found.
func (e *explainer) digest(repo oci.Name, d oci.Digest) (Explanation, error) {
	manifests, err := e.store.FindManifests(e.ctx, repo, d, explainPlaces)
	if err != nil {
		return Explanation{}, err
	}
	var parts []Explanation
	for _, m := range manifests {
		x, err := e.manifest(m)
		if err != nil {
			return Explanation{}, err
		}
		x.Subject = string(m.Repo) + "@" + string(d)
		parts = append(parts, x)
	}
	links, blobID, err := e.store.FindLinks(e.ctx, repo, d, explainPlaces)
	if err != nil {
		return Explanation{}, err
	}
	for _, l := range links {
		x, err := e.link(l, d)
		if err != nil {
			return Explanation{}, err
		}
		parts = append(parts, x)
	}
	if blobID != 0 && repo == "" && len(links) == 0 {
		x, err := e.blob(blobID, d)
		if err != nil {
			return Explanation{}, err
		}
		parts = append(parts, x)
	}
	history, err := e.store.Deletions(e.ctx, string(d), 0, 0, explainHistory)
	if err != nil {
		return Explanation{}, err
	}
	return join(string(repo), d, parts, history), nil
}

// join makes one explanation of those for each place.
func join(repo string, d oci.Digest, parts []Explanation, history []meta.Deletion) Explanation {
	switch len(parts) {
	case 0:
		x := Explanation{Kind: "blob", Repo: repo, Digest: string(d), Verdict: VerdictUnknown, Summary: "nothing of this digest is or was here", History: history}
		for _, h := range history {
			if repo == "" || h.Repo == "" || h.Repo == repo {
				x.Kind, x.Verdict = h.Kind, VerdictGone
				x.Summary = fmt.Sprintf("it was %s on %s by %s: %s", h.Act, h.At.Format(time.DateTime), h.Actor, h.Reason)
				break
			}
		}
		if x.Kind == "link" {
			x.Kind = "blob"
		}
		return x
	case 1:
		x := parts[0]
		x.History = history
		return x
	}
	x := Explanation{Kind: parts[0].Kind, Repo: repo, Digest: string(d), Verdict: VerdictDue, History: history, Parts: parts}
	order := []string{VerdictKept, VerdictWaiting, VerdictTrash}
	for _, v := range order {
		for _, p := range parts {
			if p.Verdict == v && x.Verdict == VerdictDue {
				x.Verdict, x.GoesAt = v, p.GoesAt
			}
		}
	}
	for _, p := range parts {
		x.Reasons = append(x.Reasons, p.Reasons...)
	}
	x.Summary = fmt.Sprintf("it is in %d places, see each", len(parts))
	return x
}

func (e *explainer) repository(repo oci.Name) (Explanation, error) {
	ms, living, tags, err := e.store.AtRisk(e.ctx, repo, explainPlaces)
	if err != nil {
		return Explanation{}, err
	}
	x := Explanation{Kind: "repository", Repo: string(repo), Verdict: VerdictKept,
		Summary: fmt.Sprintf("it has %s manifests and %s tags; %s manifests are untagged or in the trash",
			countText(living, meta.CountMax), countText(tags, meta.CountMax), countText(int64(len(ms)), explainPlaces))}
	scope, err := e.store.RepoScope(e.ctx, string(repo))
	if err != nil {
		return Explanation{}, err
	}
	stranded, err := e.store.CountStranded(e.ctx, scope)
	if err != nil {
		return Explanation{}, err
	}
	if stranded > 0 {
		x.Summary += fmt.Sprintf("; %s to images that are gone", some(stranded, "tag of a signature belongs", "tags of signatures belong"))
	}
	if living == 0 {
		x.Verdict = VerdictWaiting
	}
	for _, m := range ms {
		part, err := e.manifest(m)
		if err != nil {
			return Explanation{}, err
		}
		part.Subject = string(m.Repo) + "@" + string(m.Digest)
		x.Parts = append(x.Parts, part)
	}
	return x, nil
}

func (e *explainer) manifest(m meta.ManifestAt) (Explanation, error) {
	x := Explanation{Kind: "manifest", Repo: string(m.Repo), Digest: string(m.Digest)}
	if m.Staged {
		x.Verdict, x.Summary = VerdictWaiting, "it is being pushed and not served yet; if the push breaks off, the next run removes it"
		return x, nil
	}
	if m.Trashed {
		fs, err := e.store.Trashed(e.ctx, meta.Due{IDs: []int64{m.ID}, Window: e.limits.Window})
		if err != nil || len(fs) == 0 {
			return x, err
		}
		v := JudgeTrash(fs[0], e.limits)
		x.Verdict, x.Summary, x.GoesAt = VerdictTrash, v.Reason, at(v.Again)
		if v.Go {
			x.Verdict = VerdictDue
			x.Summary = "it is in the trash and its time there is over; the next run takes it, unless it is restored first"
		}
		holders, err := e.paths(m, explainDepth)
		if err != nil {
			return x, err
		}
		leases, err := e.leases(m.RepoID, m.Digest, fullName(m))
		return e.fill(x, v, append(holders, leases...), fullName(m)), err
	}
	fs, err := e.store.Orphans(e.ctx, meta.Due{IDs: []int64{m.ID}, Window: e.limits.Window})
	if err != nil || len(fs) == 0 {
		return x, err
	}
	v := JudgeManifest(fs[0], e.limits)
	stranded, isStranded, err := e.store.StrandedManifest(e.ctx, m.ID, e.limits.Window)
	if err != nil {
		return x, err
	}
	if isStranded {
		v = JudgeStranded(stranded, e.limits)
	}
	x.Verdict, x.Summary, x.GoesAt = verdict(v), v.Reason, at(v.Again)
	holders, err := e.paths(m, explainDepth)
	if err != nil {
		return x, err
	}
	leases, err := e.leases(m.RepoID, m.Digest, fullName(m))
	if isStranded {
		holders = append(holders, Reason{Code: KeptStranded, Path: []string{"tag " + string(m.Repo) + ":" + string(stranded.Tag), fullName(m)}, Until: at(v.Again),
			Text: fmt.Sprintf("tag %s belongs to %s, which was deleted; it is stranded since %s", stranded.Tag, stranded.Subject, moment(stranded.Since))})
	}
	return e.fill(x, v, append(holders, leases...), fullName(m)), err
}

// countText renders a count that ends at limit.
func countText(n, limit int64) string {
	if n >= limit {
		return fmt.Sprintf("at least %d", limit)
	}
	return strconv.FormatInt(n, 10)
}

func fullName(m meta.ManifestAt) string { return string(m.Repo) + "@" + string(m.Digest) }

// verdict reads what a judge said of something that is not in the trash.
func verdict(v Verdict) string {
	switch {
	case v.Go:
		return VerdictDue
	case v.Kept == KeptWindow || v.Kept == KeptGrace:
		return VerdictWaiting
	}
	return VerdictKept
}

// fill adds the reasons: the paths and leases that keep it, and what the judge
// said if that is none of these.
func (e *explainer) fill(x Explanation, v Verdict, reasons []Reason, self string) Explanation {
	x.Reasons = append(x.Reasons, reasons...)
	if v.Go {
		return x
	}
	for _, r := range x.Reasons {
		if r.Code == v.Kept {
			if v.Kept == KeptLease {
				x.Summary = r.Text
			}
			return x
		}
	}
	x.Reasons = append(x.Reasons, Reason{Code: v.Kept, Path: []string{self}, Text: v.Reason, Until: at(v.Again)})
	return x
}

// paths finds what keeps a living manifest: its tags, or the indexes and the
// subject that keep it with what keeps those.
func (e *explainer) paths(m meta.ManifestAt, depth int) ([]Reason, error) {
	if depth == 0 {
		return nil, nil
	}
	h, err := e.store.Holders(e.ctx, m.ID, explainHolders)
	if err != nil {
		return nil, err
	}
	self := fullName(m)
	var rs []Reason
	for _, t := range h.Tags {
		rs = append(rs, Reason{Code: KeptTag, Path: []string{"tag " + string(m.Repo) + ":" + t, self}, Text: fmt.Sprintf("tag %s names it", t)})
	}
	above := func(code, what string, a meta.ManifestAt) error {
		up, err := e.paths(a, depth-1)
		if err != nil {
			return err
		}
		top := []string{what + " " + fullName(a)}
		if len(up) > 0 {
			top = append(append([]string{}, up[0].Path[:len(up[0].Path)-1]...), top...)
		}
		rs = append(rs, Reason{Code: code, Path: append(top, self), Text: fmt.Sprintf("%s %s keeps it", what, a.Digest)})
		return nil
	}
	for _, p := range h.Parents {
		if err := above(KeptIndex, "index", p); err != nil {
			return nil, err
		}
	}
	if h.Subject != nil && !m.Trashed {
		if err := above(KeptSubject, "subject", *h.Subject); err != nil {
			return nil, err
		}
	}
	return rs, nil
}

func (e *explainer) link(l meta.LinkAt, d oci.Digest) (Explanation, error) {
	x := Explanation{Kind: "blob", Repo: string(l.Repo), Digest: string(d), Subject: string(l.Repo) + "@" + string(d)}
	fs, err := e.store.Links(e.ctx, meta.Due{IDs: []int64{l.ID}, Window: e.limits.Window})
	if err != nil || len(fs) == 0 {
		return x, err
	}
	v := JudgeLink(fs[0], e.limits)
	x.Verdict, x.Summary, x.GoesAt = verdict(v), v.Reason, at(v.Again)
	users, err := e.store.LinkUsers(e.ctx, l.ID, explainHolders)
	if err != nil {
		return x, err
	}
	self := "blob " + string(d)
	var rs []Reason
	for _, m := range users {
		r := Reason{Code: KeptReferenced, Text: fmt.Sprintf("manifest %s needs it", m.Digest)}
		if m.Trashed && !m.Staged {
			r.Code, r.Text = KeptTrash, fmt.Sprintf("manifest %s, which is in the trash, may want it back", m.Digest)
		}
		up, err := e.paths(m, explainDepth)
		if err != nil {
			return x, err
		}
		if len(up) > 0 {
			r.Path = append(r.Path, up[0].Path...)
		} else {
			r.Path = append(r.Path, fullName(m))
		}
		r.Path = append(r.Path, self)
		rs = append(rs, r)
		leases, err := e.leases(m.RepoID, m.Digest, fullName(m), self)
		if err != nil {
			return x, err
		}
		rs = append(rs, leases...)
	}
	leases, err := e.leases(0, d, self)
	if err != nil {
		return x, err
	}
	x = e.fill(x, v, append(rs, leases...), self)
	if l.Hidden {
		x.Summary += "; it was deleted and answers 404"
	}
	return x, nil
}

func (e *explainer) blob(id int64, d oci.Digest) (Explanation, error) {
	x := Explanation{Kind: "blob", Digest: string(d), Subject: string(d)}
	fs, err := e.store.Blobs(e.ctx, meta.Due{IDs: []int64{id}, Window: e.limits.Window})
	if err != nil || len(fs) == 0 {
		return x, err
	}
	v := JudgeBlob(fs[0], e.limits)
	x.Verdict, x.Summary, x.GoesAt = verdict(v), v.Reason, at(v.Again)
	leases, err := e.leases(0, d, "blob "+string(d))
	return e.fill(x, v, leases, "blob "+string(d)), err
}

func at(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := meta.Time(ms)
	return &t
}

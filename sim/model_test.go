package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// model is what the registry promises, in maps and loops. It knows nothing of
// queues, versions, claims and caches: it is told what was acknowledged, and
// says what must be there, what may go, and what must have gone.
type model struct {
	repos    map[oci.Name]*repoModel
	blobs    map[oci.Digest]int64 // stored → the latest confirmation of links that went
	uploads  map[string]*uploadModel
	leases   map[string]leaseModel
	leaseEnd int64                            // the latest time at which a lease ended or will
	held     map[heldKey]int64                // until when somebody holds, or held, a digest
	removed  map[oci.Name]map[oci.Digest]bool // of each repository, also one that is gone
}

type repoModel struct {
	manifests map[oci.Digest]*manifestModel
	tags      map[oci.Tag]oci.Digest
	links     map[oci.Digest]*linkModel
	removed   map[oci.Digest]bool // manifests that were removed for good at some time; outlives the repository
}

type manifestModel struct {
	content *content
	edges   map[oci.Digest]bool // blobs that it is bound to
	living  bool
	touched int64 // last confirmation

	loose    int64      // since when neither tag nor index nor subject keeps it; 0 = kept
	orphanAt int64      // when its index or subject was deleted; 0 = never, or of no matter by now
	orphanOf oci.Digest // that index or subject

	trashedAt int64
	trashTags []string
	cause     oci.Digest // deleted because of that one
}

type linkModel struct {
	hidden    bool
	confirmed int64 // the last confirmation, or the loss of the last living reference
}

type uploadModel struct {
	repo    oci.Name
	data    []byte // durable
	touched int64  // when it last got bytes
	asked   int64  // when a request last named it, which may count as use
}

type leaseModel struct {
	digests []oci.Digest
	expires int64
}

// content is a manifest's bytes, which never change.
type content struct {
	digest oci.Digest
	raw    []byte
	parsed oci.Manifest
}

func newModel() *model {
	return &model{repos: map[oci.Name]*repoModel{}, blobs: map[oci.Digest]int64{}, uploads: map[string]*uploadModel{}, leases: map[string]leaseModel{},
		held: map[heldKey]int64{}, removed: map[oci.Name]map[oci.Digest]bool{}}
}

type heldKey struct {
	holder string
	digest oci.Digest
}

func (m *model) clone() *model {
	c := newModel()
	c.blobs, c.leases, c.leaseEnd, c.held = maps.Clone(m.blobs), maps.Clone(m.leases), m.leaseEnd, maps.Clone(m.held)
	for id, u := range m.uploads {
		v := *u
		c.uploads[id] = &v
	}
	for name, removed := range m.removed {
		c.removed[name] = maps.Clone(removed)
	}
	for name, r := range m.repos {
		s := c.repo(name)
		s.tags = maps.Clone(r.tags)
		for d, l := range r.links {
			v := *l
			s.links[d] = &v
		}
		for d, x := range r.manifests {
			v := *x
			v.edges = maps.Clone(x.edges)
			s.manifests[d] = &v
		}
	}
	return c
}

// repo returns a repository for what is to be put into it.
func (m *model) repo(name oci.Name) *repoModel {
	r := m.repos[name]
	if r == nil {
		if m.removed[name] == nil {
			m.removed[name] = map[oci.Digest]bool{}
		}
		r = &repoModel{manifests: map[oci.Digest]*manifestModel{}, tags: map[oci.Tag]oci.Digest{}, links: map[oci.Digest]*linkModel{}, removed: m.removed[name]}
		m.repos[name] = r
	}
	return r
}

// look is repo for questions.
func (m *model) look(name oci.Name) *repoModel {
	if r := m.repos[name]; r != nil {
		return r
	}
	return newModel().repo(name)
}

func (m *model) exists(name oci.Name) bool {
	r := m.look(name)
	for _, u := range m.uploads {
		if u.repo == name {
			return true
		}
	}
	return len(r.manifests)+len(r.links) > 0
}

func (r *repoModel) serves(d oci.Digest) bool {
	l := r.links[d]
	return l != nil && !l.hidden
}

func (r *repoModel) lives(d oci.Digest) bool {
	x := r.manifests[d]
	return x != nil && x.living
}

// needed reports whether a manifest, living or trashed, is bound to a blob.
func (r *repoModel) needed(d oci.Digest) bool {
	for _, x := range r.manifests {
		if x.edges[d] {
			return true
		}
	}
	return false
}

func (r *repoModel) neededByLiving(d oci.Digest) bool {
	for _, x := range r.manifests {
		if x.living && x.edges[d] {
			return true
		}
	}
	return false
}

// wants reports that a manifest names a blob.
func (x *manifestModel) wants(d oci.Digest) bool {
	return slices.ContainsFunc(x.content.parsed.Blobs, func(b oci.Descriptor) bool { return b.Digest == d })
}

func (x *manifestModel) names(child oci.Digest) bool {
	return slices.ContainsFunc(x.content.parsed.Children, func(c oci.Descriptor) bool { return c.Digest == child })
}

func (r *repoModel) livingParent(d oci.Digest) bool {
	for _, x := range r.manifests {
		if x.living && x.names(d) {
			return true
		}
	}
	return false
}

// held reports whether a tag, a living index or a living subject keeps a manifest.
func (r *repoModel) held(d oci.Digest) bool {
	for _, named := range r.tags {
		if named == d {
			return true
		}
	}
	return r.heldAbove(d)
}

// heldAbove is held without tags.
func (r *repoModel) heldAbove(d oci.Digest) bool {
	subject := r.manifests[d].content.parsed.Subject
	return r.livingParent(d) || subject != "" && r.lives(subject)
}

// indexed reports whether a living index names a manifest, or names an index
// in the trash that does, at whatever depth.
func (r *repoModel) indexed(d oci.Digest) bool {
	up := []oci.Digest{d}
	for i := 0; i < len(up); i++ {
		for p, x := range r.manifests {
			switch {
			case !x.names(up[i]):
			case x.living:
				return true
			case !slices.Contains(up, p):
				up = append(up, p)
			}
		}
		if x := r.manifests[up[i]]; x != nil {
			if s := r.manifests[x.content.parsed.Subject]; s != nil && !s.living && !slices.Contains(up, x.content.parsed.Subject) {
				up = append(up, x.content.parsed.Subject)
			}
		}
	}
	return false
}

// below lists what is in the trash below a manifest: it may be wanted with it.
func (r *repoModel) below(d oci.Digest) []oci.Digest {
	down := []oci.Digest{d}
	for i := 0; i < len(down); i++ {
		x := r.manifests[down[i]]
		for k, y := range r.manifests {
			if !y.living && (x.names(k) || y.content.parsed.Subject == down[i]) && !slices.Contains(down, k) {
				down = append(down, k)
			}
		}
	}
	return down[1:]
}

// settle notes since when manifests are loose. An orphan is one no longer once
// an index or a subject keeps it; a tag puts that off.
func (m *model) settle(now int64) {
	for _, r := range m.repos {
		for d, x := range r.manifests {
			switch {
			case !x.living || r.held(d):
				x.loose = 0
			case x.loose == 0:
				x.loose = now
			}
			if !x.living || r.heldAbove(d) {
				x.orphanAt = 0
			}
		}
	}
}

// leased reports whether somebody holds a lease on a manifest or on what is
// above it: indexes, subjects, and what is above those.
func (m *model) leased(r *repoModel, d oci.Digest, now int64, window meta.Duration) bool {
	up := []oci.Digest{d}
	for i := 0; i < len(up); i++ {
		if m.leasedItself(up[i], now, window) {
			return true
		}
		for p, x := range r.manifests {
			if x.names(up[i]) && !slices.Contains(up, p) {
				up = append(up, p)
			}
		}
		if x := r.manifests[up[i]]; x != nil && x.content.parsed.Subject != "" && !slices.Contains(up, x.content.parsed.Subject) {
			up = append(up, x.content.parsed.Subject)
		}
	}
	return false
}

// leasedItself reports whether a lease on d is in force, or has ended within
// the window.
func (m *model) leasedItself(d oci.Digest, now int64, window meta.Duration) bool {
	for k, until := range m.held {
		if k.digest == d && until > now-time.Duration(window).Milliseconds() {
			return true
		}
	}
	return false
}

// The client's operations. Each returns the kind of error that is due, "" for
// none; with an error nothing has changed.

func (m *model) link(name oci.Name, d oci.Digest, now int64) {
	r := m.repo(name)
	if r.links[d] == nil {
		r.links[d] = &linkModel{}
	}
	r.links[d].hidden = false
	r.links[d].confirmed = now
	r.bindWaiting(d)
}

// bindWaiting binds a blob that comes to be served to what names it and came before.
func (r *repoModel) bindWaiting(d oci.Digest) {
	for _, x := range r.manifests {
		if x.names(d) || x.wants(d) {
			x.edges[d] = true
		}
	}
}

func (m *model) confirm(name oci.Name, d oci.Digest, now int64) fault.Kind {
	if !m.look(name).serves(d) {
		return fault.NotFound
	}
	m.repo(name).links[d].confirmed = now
	return ""
}

func (m *model) mount(name, from oci.Name, d oci.Digest, now int64) fault.Kind {
	for other, r := range m.repos {
		if (from == "" || from == other) && r.serves(d) {
			m.link(name, d, now)
			return ""
		}
	}
	return fault.NotFound
}

func (m *model) deleteBlob(name oci.Name, d oci.Digest, now int64) fault.Kind {
	r := m.look(name)
	switch {
	case !r.serves(d):
		return fault.NotFound
	case r.neededByLiving(d):
		return fault.Conflict
	}
	r.links[d].hidden = true
	r.links[d].confirmed = now
	return ""
}

func (m *model) put(name oci.Name, c *content, tags []oci.Tag, now int64) fault.Kind {
	r := m.look(name)
	edges := map[oci.Digest]bool{}
	for _, b := range c.parsed.Blobs {
		switch {
		case r.serves(b.Digest):
			edges[b.Digest] = true
		case !b.Optional:
			return fault.Invalid
		}
	}
	for _, k := range c.parsed.Children { // those that are blobs, as in an index of layers
		if r.serves(k.Digest) {
			edges[k.Digest] = true
		}
	}
	r = m.repo(name)
	x := r.manifests[c.digest]
	if x == nil {
		x = &manifestModel{content: c, edges: map[oci.Digest]bool{}}
		r.manifests[c.digest] = x
	}
	x.living, x.touched, x.orphanAt = true, now, 0
	x.trashedAt, x.trashTags, x.cause = 0, nil, ""
	for d := range edges {
		x.edges[d] = true
		r.links[d].confirmed = now
	}
	for _, t := range tags {
		r.tags[t] = c.digest
	}
	if s := c.parsed.Subject; r.lives(s) {
		r.manifests[s].touched = now
	}
	if oci.IsIndex(c.parsed.MediaType) {
		r.reviveBelow(c.digest, now)
	}
	m.settle(now)
	return ""
}

// reviveBelow brings back what an index that was pushed names, at every depth,
// without tags and referrers.
func (r *repoModel) reviveBelow(d oci.Digest, now int64) {
	queue := []oci.Digest{d}
	for i := 0; i < len(queue); i++ {
		for k, y := range r.manifests {
			if y.living || !r.manifests[queue[i]].names(k) {
				continue
			}
			y.revive(r, now)
			queue = append(queue, k)
		}
	}
}

// revive has a manifest of the trash served.
func (x *manifestModel) revive(r *repoModel, now int64) {
	x.living, x.touched = true, now
	for b := range x.edges {
		if r.links[b].hidden {
			r.bindWaiting(b)
		}
		r.links[b].hidden = false
		r.links[b].confirmed = now
	}
	x.trashedAt, x.trashTags, x.cause = 0, nil, ""
}

func (m *model) get(name oci.Name, ref oci.Reference, now int64) (*content, fault.Kind) {
	r := m.look(name)
	d := ref.Digest
	if ref.Tag != "" {
		d = r.tags[ref.Tag]
	}
	if !r.lives(d) {
		return nil, fault.NotFound
	}
	r.manifests[d].touched = now
	return r.manifests[d].content, ""
}

func (m *model) deleteTag(name oci.Name, t oci.Tag, now int64) fault.Kind {
	r := m.look(name)
	if _, ok := r.tags[t]; !ok {
		return fault.NotFound
	}
	delete(r.tags, t)
	m.settle(now)
	return ""
}

func (m *model) deleteManifest(name oci.Name, d oci.Digest, now int64) fault.Kind {
	if !m.look(name).lives(d) {
		return fault.NotFound
	}
	m.trash(m.repos[name], d, "", now)
	return ""
}

// trash is all that follows from the deletion of a living manifest.
func (m *model) trash(r *repoModel, d, cause oci.Digest, now int64) {
	x := r.manifests[d]
	x.living, x.trashedAt, x.cause, x.trashTags = false, now, cause, []string{}
	for t, named := range r.tags {
		if named == d {
			x.trashTags = append(x.trashTags, string(t))
			delete(r.tags, t)
		}
	}
	slices.Sort(x.trashTags)
	for _, k := range r.below(d) {
		r.manifests[k].trashedAt = now
	}
	for b := range x.edges {
		if !r.neededByLiving(b) {
			r.links[b].confirmed = max(r.links[b].confirmed, now)
		}
	}
	m.settle(now)
	for k, y := range r.manifests {
		if y.living && (x.names(k) || y.content.parsed.Subject == d) && !r.heldAbove(k) {
			y.orphanAt, y.orphanOf = now, d
		}
	}
}

func (m *model) restore(name oci.Name, d oci.Digest, now int64) (meta.Restored, fault.Kind) {
	r := m.look(name)
	out := meta.Restored{Repo: name, Digest: d}
	if x := r.manifests[d]; x == nil || x.living {
		return out, fault.NotFound
	}
	queue := []oci.Digest{d}
	for i := 0; i < len(queue); i++ {
		x := r.manifests[queue[i]]
		if x.living {
			continue // named twice
		}
		if i > 0 {
			out.Along = append(out.Along, queue[i])
		}
		for _, t := range x.trashTags {
			if _, taken := r.tags[oci.Tag(t)]; taken {
				out.TagsTaken = append(out.TagsTaken, t)
				continue
			}
			r.tags[oci.Tag(t)] = queue[i]
			out.Tags = append(out.Tags, t)
		}
		x.revive(r, now)
		for k, y := range r.manifests {
			if !y.living && (x.names(k) || y.cause != "" && y.content.parsed.Subject == queue[i]) {
				queue = append(queue, k)
			}
		}
		for _, c := range x.content.parsed.Children {
			gone := meta.NotRestored{Digest: c.Digest, Reason: "it was removed for good; push it again"}
			if r.manifests[c.Digest] == nil && r.removed[c.Digest] && !slices.Contains(out.NotRestored, gone) {
				out.NotRestored = append(out.NotRestored, gone)
			}
		}
	}
	m.settle(now)
	return out, ""
}

func (m *model) putLease(holder string, ds []oci.Digest, expires, now int64) {
	m.letGo(holder, now)
	for _, d := range ds {
		m.held[heldKey{holder, d}] = expires
	}
	m.leases[holder] = leaseModel{ds, expires}
	m.leaseEnd = max(m.leaseEnd, expires)
}

func (m *model) deleteLease(holder string, now int64) fault.Kind {
	if _, ok := m.leases[holder]; !ok {
		return fault.NotFound
	}
	delete(m.leases, holder)
	m.letGo(holder, now)
	m.leaseEnd = max(m.leaseEnd, now)
	return ""
}

// letGo ends what a holder holds.
func (m *model) letGo(holder string, now int64) {
	for k, until := range m.held {
		if k.holder == holder {
			m.held[k] = min(until, now)
		}
	}
}

// slack is how much later than the model says things may go: a confirmation is
// written down that much ahead.
const slack = meta.ConfirmAhead + 1

// passed reports whether a duration is over since a time.
func passed(since, now int64, d meta.Duration) bool {
	return d == 0 || since+time.Duration(d).Milliseconds() <= now
}

// learn takes in what a run under a policy has left, which must lie between
// what may go and what must go. complete says that the run was not cut off.
func (m *model) learn(seen *observed, p meta.Policy, inScope func(oci.Name) bool, now int64, complete bool) error {
	if p.Uploads == 0 {
		p.Uploads = p.Window
	}
	for holder, l := range m.leases {
		if _, there := seen.leases[holder]; !there && l.expires <= now {
			delete(m.leases, holder)
		}
	}
	for id, u := range m.uploads {
		if _, there := seen.uploads[id]; there {
			// Each request makes it younger, if the clock stands still.
			if last := max(u.touched, u.asked) + slack; complete && inScope(u.repo) && last <= now && passed(last, now, p.Uploads) {
				return fmt.Errorf("the run left upload %s, idle since %d", id, u.touched)
			}
			continue
		}
		if !inScope(u.repo) || !passed(u.touched, now, p.Uploads) {
			return fmt.Errorf("the run ended upload %s of %s, in use at %d", id, u.repo, u.touched)
		}
		delete(m.uploads, id)
	}
	for name, r := range m.repos {
		if err := m.learnRepo(name, r, seen.repos[name], p, inScope(name), now, complete); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for d, touched := range m.blobs {
		linked := false
		for _, r := range m.repos {
			linked = linked || r.links[d] != nil
		}
		_, there := seen.blobs[d]
		switch {
		case there && complete && !linked && inScope("") && !m.leasedItself(d, now, p.Window) && passed(max(touched, m.leaseEnd)+slack, now, p.Window):
			return fmt.Errorf("the run left blob %s without links, touched at %d", d, touched)
		case there:
			continue
		case linked:
			return fmt.Errorf("R1: the run removed blob %s, which has links", d)
		case m.leasedItself(d, now, p.Window):
			return fmt.Errorf("the run removed blob %s, which is leased", d)
		case !passed(touched, now, p.Window):
			return fmt.Errorf("R3: the run removed blob %s, confirmed at %d", d, touched)
		}
		delete(m.blobs, d)
	}
	return nil
}

func (m *model) learnRepo(name oci.Name, r *repoModel, seen *observedRepo, p meta.Policy, inScope bool, now int64, complete bool) error {
	if seen == nil {
		seen = &observedRepo{}
	}
	// What the run has moved to the trash, and perhaps beyond.
	trashed := map[oci.Digest]bool{}
	for d, x := range r.manifests {
		if o := seen.manifests[d]; x.living && (o == nil || o.trashed) {
			trashed[d] = true
		}
	}
	wasHeld := map[oci.Digest]bool{}
	for d := range trashed {
		wasHeld[d] = r.held(d)
		if err := m.mayTrash(r, d, trashed, p, inScope, now); err != nil {
			return err
		}
	}
	for len(trashed) > 0 {
		// From the top down, as the run does it.
		for d := range trashed {
			if r.held(d) {
				continue
			}
			cause := oci.Digest("")
			if r.manifests[d].orphanAt != 0 {
				cause = r.manifests[d].orphanOf
			}
			if o := seen.manifests[d]; o != nil && o.cause != cause {
				// Which of several went last is the run's choice.
				x := r.manifests[o.cause]
				if !wasHeld[d] || x == nil || !x.names(d) && r.manifests[d].content.parsed.Subject != o.cause {
					return fmt.Errorf("the trash says that %s went because of %q, want %q", d, o.cause, cause)
				}
				cause = o.cause
			}
			m.trash(r, d, cause, now)
			delete(trashed, d)
		}
	}
	for d, x := range r.manifests {
		if err := m.learnManifest(r, d, x, seen.manifests[d], p, inScope, now, complete); err != nil {
			return err
		}
	}
	for d, l := range r.links {
		leased := m.leasedItself(d, now, p.Window)
		if _, there := seen.links[d]; there {
			if complete && inScope && !r.needed(d) && !leased && passed(max(l.confirmed, m.leaseEnd)+slack, now, p.Window) {
				return fmt.Errorf("the run left the link of %s, which nothing needs and which was confirmed at %d", d, l.confirmed)
			}
			continue
		}
		switch {
		case r.needed(d):
			return fmt.Errorf("R1: the run unlinked blob %s, which a manifest needs", d)
		case leased:
			return fmt.Errorf("the run unlinked blob %s, which is leased", d)
		case !inScope:
			return fmt.Errorf("the run unlinked blob %s out of its scope", d)
		case !passed(l.confirmed, now, p.Window):
			return fmt.Errorf("R3: the run unlinked blob %s, confirmed at %d", d, l.confirmed)
		}
		m.blobs[d] = max(m.blobs[d], l.confirmed)
		delete(r.links, d)
	}
	return nil
}

// mayTrash says why a run may not have deleted a living manifest, given all
// that it has deleted.
func (m *model) mayTrash(r *repoModel, d oci.Digest, gone map[oci.Digest]bool, p meta.Policy, inScope bool, now int64) error {
	x := r.manifests[d]
	for t, named := range r.tags {
		if named == d {
			return fmt.Errorf("R1: the run deleted manifest %s, which tag %s keeps", d, t)
		}
	}
	bereft := false
	for k, y := range r.manifests {
		if y.living && (y.names(d) || x.content.parsed.Subject == k) {
			if !gone[k] {
				return fmt.Errorf("R1: the run deleted manifest %s, which %s keeps", d, k)
			}
			bereft = true
		}
	}
	orphan := x.orphanAt != 0 && passed(max(x.orphanAt, x.loose, x.touched), now, p.Window) || bereft && p.Window == 0
	untagged := p.Untagged != 0 && x.loose != 0 && passed(max(x.loose, x.touched), now, max(p.Untagged, p.Window))
	switch {
	case m.leased(r, d, now, p.Window):
		return fmt.Errorf("R1: the run deleted manifest %s, which is leased", d)
	case !inScope:
		return fmt.Errorf("the run deleted manifest %s out of its scope", d)
	case !orphan && !untagged:
		return fmt.Errorf("the run deleted manifest %s (loose %d, orphan %d, touched %d, bereft now %v)", d, x.loose, x.orphanAt, x.touched, bereft)
	}
	return nil
}

func (m *model) learnManifest(r *repoModel, d oci.Digest, x *manifestModel, seen *observedManifest, p meta.Policy, inScope bool, now int64, complete bool) error {
	leased := m.leased(r, d, now, p.Window)
	if x.living {
		last := max(x.touched, x.orphanAt, x.loose, m.leaseEnd) + slack
		if complete && inScope && !leased && x.orphanAt != 0 && x.loose != 0 && passed(last, now, p.Window) {
			return fmt.Errorf("the run left manifest %s, an orphan since %d and touched at %d", d, x.orphanAt, x.touched)
		}
		last = max(x.touched, x.loose) + slack
		if complete && inScope && !leased && x.orphanAt == 0 && x.loose != 0 && p.Untagged != 0 && passed(last, now, max(p.Untagged, p.Window)) {
			return fmt.Errorf("the run left manifest %s, loose since %d and touched at %d", d, x.loose, x.touched)
		}
		return nil
	}
	parent := r.indexed(d)
	if seen != nil {
		// What an index kept until this very run is left to the next.
		if complete && inScope && !leased && !parent && x.trashedAt < now && passed(x.trashedAt, now, p.Trash) && !r.somethingWent(now) {
			return fmt.Errorf("the run left manifest %s in the trash since %d", d, x.trashedAt)
		}
		return nil
	}
	switch {
	case parent:
		return fmt.Errorf("R1: the run removed manifest %s from the trash, which an index names", d)
	case leased:
		return fmt.Errorf("R1: the run removed manifest %s from the trash, which is leased", d)
	case !inScope:
		return fmt.Errorf("the run removed manifest %s from the trash out of its scope", d)
	case !passed(x.trashedAt, now, p.Trash):
		return fmt.Errorf("R10: the run removed manifest %s from the trash, deleted at %d", d, x.trashedAt)
	}
	delete(r.manifests, d)
	r.removed[d] = true
	return nil
}

// somethingWent reports whether a manifest went to the trash in this run.
func (r *repoModel) somethingWent(now int64) bool {
	for _, x := range r.manifests {
		if !x.living && x.trashedAt == now {
			return true
		}
	}
	return false
}

// forget drops what has become empty: repositories.
func (m *model) forget() {
	for name := range m.repos {
		if !m.exists(name) {
			delete(m.repos, name)
		}
	}
}

package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// principal is whoever asks, as far as rights go: a hash of the Authorization
// sent, or "" for all who send none, for whom the node's own credentials count.
type principal string

func principalOf(authorization string) principal {
	if authorization == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(authorization))
	return principal(hex.EncodeToString(sum[:]))
}

// access is who asks for what.
type access struct {
	ns      string // the upstream
	repo    oci.Name
	auth    string // the Authorization sent: for the upstream only
	who     principal
	prefix  string // the upstream as the first part of the name, with its slash
	byQuery bool   // the upstream was named by ?ns=
	ahead   bool   // the node itself asks, for nobody who waits
}

// right is an access to a digest that was decided on.
type right struct {
	direct bool // the upstream said so of this very digest
	public bool // everybody may have it
	relay  bool // only what the upstream itself sends may be handed out
	heard  bool // only another node said so; it counts while the upstream decides nothing
	// absent says that nothing was on this machine when it was decided. What has
	// come since is decided on again: another may have brought it.
	absent bool
	open   bool // it was here, and nothing about it was private
	// size and mediaType are what the upstream or a manifest says of the digest;
	// −1 and "" if they do not.
	size      int64
	mediaType string
}

type grantKey struct {
	who    principal
	ns     string
	repo   oci.Name
	digest oci.Digest
}

// grant is an upstream's word, or another node's, about a digest.
type grant struct {
	at        time.Time
	direct    bool // about this very digest
	public    bool // no credentials were needed
	heard     bool // another node says so
	size      int64
	mediaType string
}

// grantsMax bounds the grants in memory; one that was pushed out is asked for again.
const grantsMax = 16384

// rights knows what upstreams have said. Rights that everybody has are kept in
// the index, those that took credentials in memory only.
type rights struct {
	index    *index.Index
	mark     func(oci.Digest) // notes in the cache's memory that a blob is private
	ttl      time.Duration    // how long a word counts without asking again
	staleMax time.Duration    // how long this node's own counts while nothing is decided
	now      func() time.Time
	grants   *lru.Cache[grantKey, grant]

	mu sync.Mutex
	// private is who on this node may have a private digest, by the upstream's own
	// word about it, and when that was said.
	private *lru.Cache[oci.Digest, map[grantKey]time.Time]
}

func newRights(ix *index.Index, mark func(oci.Digest), ttl, staleMax time.Duration, now func() time.Time) *rights {
	cache, err := lru.New[grantKey, grant](grantsMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	private, err := lru.New[oci.Digest, map[grantKey]time.Time](grantsMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &rights{index: ix, mark: mark, ttl: ttl, staleMax: staleMax, now: now, grants: cache, private: private}
}

// grant notes that the upstream gave d to a.
func (g *rights) grant(ctx context.Context, a access, d oci.Digest, public bool, size int64) error {
	g.given(a, d, public, size)
	if !public {
		return nil
	}
	return unlessFull(g.index.GrantPublic(ctx, a.ns, a.repo, d, g.now().UnixMilli()))
}

// holdersMax bounds for how many askers it is remembered that they may have one
// private digest.
const holdersMax = 64

// given notes in memory that the upstream gave d to a.
func (g *rights) given(a access, d oci.Digest, public bool, size int64) {
	key, now := grantKey{a.who, a.ns, a.repo, d}, g.now()
	g.grants.Add(key, grant{at: now, direct: true, public: public, size: size})
	if public {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	holders, ok := g.private.Get(d)
	if !ok || len(holders) >= holdersMax {
		holders = map[grantKey]time.Time{}
		g.private.Add(d, holders)
	}
	holders[key] = now
}

// unlessFull forgives that something could not be noted because the disk is full:
// then it is asked for again, and no pull fails for it.
func unlessFull(err error) error {
	if errors.Is(err, fault.Full) {
		return nil
	}
	return err
}

// children notes that a was given a manifest that needs these, so that the index
// need not be asked when they are pulled next. heard: by another node.
func (g *rights) children(a access, edges []index.Edge, public, heard bool) {
	for _, e := range edges {
		key := grantKey{a.who, a.ns, a.repo, e.Child}
		got, _ := g.grants.Get(key) // the zero grant counts for nothing
		better := g.standing(a, got) == fresh && (got.direct || heard && !got.heard)
		if e.Role == index.RoleSubject || better {
			continue
		}
		size := e.Size
		if e.Size == 0 && e.MediaType == "" { // Docker schema 1 says neither
			size = -1
		}
		g.grants.Add(key, grant{at: g.now(), public: public, heard: heard, size: size, mediaType: e.MediaType})
	}
}

// standing is how much a grant counts now. This node's own login stays what it
// was while nothing is decided; a client's may have ended meanwhile.
func (g *rights) standing(a access, got grant) standing {
	age := g.now().Sub(got.at).Abs()
	switch {
	case age < g.ttl:
		return fresh
	case a.who == "" && !got.heard && age < g.staleMax:
		return past
	}
	return never
}

// since is how much it counts that the index says so since then; 0: it does not.
func (g *rights) since(at int64) standing {
	switch {
	case at == 0:
		return never
	case g.now().Sub(time.UnixMilli(at)).Abs() < g.ttl:
		return fresh
	}
	return past
}

// about gathers what upstreams have said about a's right to d.
func (g *rights) about(ctx context.Context, a access, d oci.Digest) (f facts, size int64, mediaType string, err error) {
	size = -1
	got, _ := g.grants.Get(grantKey{a.who, a.ns, a.repo, d}) // the zero grant counts for nothing
	f.add(got, g.standing(a, got), got.direct)
	if f != (facts{}) {
		size, mediaType = got.size, got.mediaType
	}
	if f.direct == fresh || f.loose == fresh && f.public {
		return f, size, mediaType, nil
	}
	known, err := g.index.Granted(ctx, a.ns, a.repo, d)
	if err != nil {
		return f, size, mediaType, err
	}
	f.add(grant{public: true}, g.since(known.Direct), true)
	f.add(grant{public: true}, g.since(known.Through), false)
	parents, err := g.index.Parents(ctx, d)
	if err != nil {
		return f, size, mediaType, err
	}
	for _, e := range parents {
		if e.Role == index.RoleSubject {
			continue // a manifest about d does not make d a part of it
		}
		got, _ := g.grants.Get(grantKey{a.who, a.ns, a.repo, e.Parent})
		counts := g.standing(a, got)
		if counts == never {
			of, err := g.index.Granted(ctx, a.ns, a.repo, e.Parent)
			if err != nil {
				return f, size, mediaType, err
			}
			got, counts = grant{public: true}, g.since(max(of.Direct, of.Through))
		}
		if counts == never {
			continue
		}
		f.add(got, counts, false)
		// Only a manifest that this client was given may say how large d is.
		if size < 0 && (e.Size > 0 || e.MediaType != "") {
			size, mediaType = e.Size, e.MediaType
		}
		if f.loose == fresh {
			break
		}
	}
	return f, size, mediaType, nil
}

// add takes one word into account.
func (f *facts) add(got grant, counts standing, direct bool) {
	switch {
	case counts == never:
		return
	case got.heard:
		if !f.known() {
			f.heard, f.public = true, got.public
		}
		return
	case direct:
		f.direct = max(f.direct, counts)
	default:
		f.loose = max(f.loose, counts)
	}
	if f.heard {
		f.heard, f.public = false, false // the upstream's own word takes its place
	}
	f.public = f.public || got.public
}

// known reports that an upstream itself has given a right.
func (f facts) known() bool { return f.direct > never || f.loose > never }

// denied notes that the registry asks a for other credentials than it has, in all
// of the repository. It says nothing about others, unless a has none.
func (g *rights) denied(ctx context.Context, a access) error {
	for _, key := range g.grants.Keys() {
		if key.who == a.who && key.ns == a.ns && key.repo == a.repo {
			g.forget(key)
		}
	}
	if a.who != "" {
		return nil
	}
	return g.index.RevokeRepository(ctx, a.ns, a.repo, g.mark)
}

// revoke notes that the upstream does not give d to a any more.
func (g *rights) revoke(ctx context.Context, a access, d oci.Digest) error {
	g.forget(grantKey{a.who, a.ns, a.repo, d})
	if a.who != "" {
		return nil // what one client may not says nothing of the others
	}
	return g.index.RevokePublic(ctx, a.ns, a.repo, d)
}

// age has the upstream asked before a's right to d is used again.
func (g *rights) age(ctx context.Context, a access, d oci.Digest) error {
	key := grantKey{a.who, a.ns, a.repo, d}
	if got, ok := g.grants.Get(key); ok {
		got.at = got.at.Add(-g.ttl)
		g.grants.Add(key, got)
	}
	if a.who != "" {
		return nil
	}
	return g.index.AgeGrant(ctx, a.ns, a.repo, d)
}

func (g *rights) forget(key grantKey) {
	g.grants.Remove(key)
	g.mu.Lock()
	defer g.mu.Unlock()
	holders, _ := g.private.Get(key.digest)
	delete(holders, key)
}

// allowed reports whether anybody on this node may have a private d, by the word
// of the upstream ns.
func (g *rights) allowed(ns string, d oci.Digest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	holders, _ := g.private.Get(d)
	for key, at := range holders {
		if key.ns == ns && g.now().Sub(at).Abs() < g.ttl {
			return true
		}
	}
	return false
}

// facts gathers all that a decision about d depends on.
func (m *Mirror) facts(ctx context.Context, a access, d oci.Digest) (f facts, size int64, mediaType string, err error) {
	f, size, mediaType, err = m.rights.about(ctx, a, d)
	if err != nil {
		return f, size, mediaType, err
	}
	f.shares = m.o.Shares
	behalf, own := m.o.Fetch.Behalf(d) // before the look at the row, which comes before the download
	b, err := m.o.Index.Blob(ctx, d)
	switch {
	case errors.Is(err, fault.NotFound):
		if behalf != "" { // somebody's download that has brought nothing yet
			if coming, err := m.o.Store.Open(ctx, d); err == nil {
				f.present, f.open, f.origin = true, !coming.Private(), own && behalf == a.ns
				coming.Close()
			} else if !errors.Is(err, fault.NotFound) {
				return f, size, mediaType, err
			}
		}
		return f, size, mediaType, nil
	case err != nil:
		return f, size, mediaType, err
	}
	if behalf == "" && b.State == index.Partial {
		info, err := m.o.Store.Info(ctx, d)
		if errors.Is(err, fault.NotFound) || err == nil && info.Present == 0 && info.Writers == 0 {
			return f, size, mediaType, nil // it was to come, and nothing of it has
		}
	}
	f.present, f.open = true, !b.Private
	f.origin = own && behalf == a.ns
	if !f.open && !f.origin {
		f.origin, err = m.o.Index.IsOrigin(ctx, d, a.ns)
	}
	return f, size, mediaType, err
}

// mayRead decides whether a may have the blob or manifest d, and asks the
// upstream if need be. A refusal is the upstream's answer, or its silence.
func (m *Mirror) mayRead(ctx context.Context, a access, d oci.Digest, e endpoint) (right, error) {
	return m.judge(ctx, a, d, e, func(*facts) {})
}

// judge is mayRead with what is known of bytes outside of the cache.
func (m *Mirror) judge(ctx context.Context, a access, d oci.Digest, e endpoint, amend func(*facts)) (right, error) {
	f, size, mediaType, err := m.facts(ctx, a, d)
	if err != nil {
		return right{}, err
	}
	amend(&f)
	r := right{direct: f.direct == fresh, public: f.public, heard: f.heard, absent: !f.present, open: f.open, size: size, mediaType: mediaType}
	decided := decide(f)
	var answer error
	if decided == ask {
		silent := f
		silent.asked, silent.outcome = true, ociclient.Unreachable
		if m.outages.now(a, m.o.Now()) && decide(silent) != refuse {
			decided = decide(silent)
		} else {
			f.asked = true
			var res *ociclient.Response
			var other bool
			res, other, answer = m.confirm(ctx, a, d, e)
			f.origin = f.origin && !other
			if ctx.Err() != nil {
				return right{}, ctx.Err()
			}
			f.outcome = ociclient.OutcomeOf(answer)
			if answer == nil {
				r.direct, r.heard = true, false
				r.public = f.public && !f.heard || res.Anonymous
				if res.Size >= 0 {
					r.size = res.Size
				}
			}
			decided = decide(f)
		}
	}
	switch decided {
	case refuse:
		return right{}, answer
	case relay:
		r.relay = true
	}
	return r, nil
}

// mayReadHeld decides about bytes that somebody else on this machine has. Nobody
// here knows who may have them, and where they came from only if they say.
func (m *Mirror) mayReadHeld(ctx context.Context, a access, d oci.Digest, e endpoint, v *fetch.Verified) (right, error) {
	proved, err := m.o.Index.IsOrigin(ctx, d, a.ns)
	if err != nil {
		return right{}, err
	}
	return m.judge(ctx, a, d, e, func(f *facts) { f.present, f.open, f.origin = true, false, proved || v.From(a.ns) })
}

// confirm asks the upstream about this very digest, and heeds the answer. other says
// that it may be about something else than what is on its way here: it has another size,
// which is not verified yet.
func (m *Mirror) confirm(ctx context.Context, a access, d oci.Digest, e endpoint) (res *ociclient.Response, other bool, err error) {
	client, ok := m.o.Upstreams.Client(a.ns)
	if !ok {
		return nil, false, notConfigured(a.ns)
	}
	res, err = m.ask(ctx, client, a, func() (*ociclient.Response, error) { return head(ctx, client, a, d, e) })
	if err != nil {
		return nil, false, m.heed(ctx, a, d, err)
	}
	_ = res.Body.Close()
	size := res.Size
	if size == 0 && res.Digest() == d {
		size = -1 // that of an answer without a body, which is about d all the same
	}
	b, err := m.o.Index.Blob(ctx, d)
	other = err == nil && size >= 0 && size != b.Size
	if other && b.State != index.Partial {
		// Whoever answers has something else, or says yes to everything.
		return nil, false, fmt.Errorf("%s has %d bytes, and the upstream %s says that it has %d: %w", d, b.Size, a.ns, size, fetch.ErrWrongLength)
	}
	if other {
		return res, true, nil // what it sends will tell; until then it gives no right
	}
	return res, false, m.exists(ctx, a, d, res.Anonymous, res.Size)
}

// exists notes that the upstream has d and gave it to a. An image that was
// deleted and is there again is not deleted any more.
func (m *Mirror) exists(ctx context.Context, a access, d oci.Digest, public bool, size int64) error {
	info, err := m.o.Store.Info(ctx, d)
	if err == nil && info.DeletedAt != 0 {
		err = unlessFull(m.o.Index.SetDeleted(ctx, []oci.Digest{d}, 0))
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	return m.rights.grant(ctx, a, d, public, size)
}

// Gave notes that an upstream has sent bytes of a blob in answer to w, which is
// its word about that digest.
func (m *Mirror) Gave(w fetch.Want, anonymous bool) {
	a := access{ns: w.Namespace, repo: w.Repo, auth: w.Authorization, who: principalOf(w.Authorization)}
	m.rights.given(a, w.Digest, anonymous, w.Size)
}

func head(ctx context.Context, client *ociclient.Client, a access, d oci.Digest, e endpoint) (*ociclient.Response, error) {
	if e == apiManifest {
		return client.Manifest(ctx, string(a.repo), string(d), manifestTypes, a.auth, true)
	}
	return client.Blob(ctx, string(a.repo), d, nil, a.auth, true)
}

// Allowed reports whether the upstream ns has, within the time that a grant lasts,
// given d to this node or one of its clients that had to show who they are.
// Only then is a private d exchanged with other nodes, as content of that upstream
// (N10). A manifest that names d is not enough: anybody can write one.
func (m *Mirror) Allowed(ns string, d oci.Digest) bool { return m.rights.allowed(ns, d) }

// isPrivate reports whether d is in the cache and came with credentials.
func (m *Mirror) isPrivate(ctx context.Context, d oci.Digest) bool {
	b, err := m.o.Index.Blob(ctx, d)
	if err != nil {
		return !errors.Is(err, fault.NotFound) // in doubt it is
	}
	return b.Private
}

// heed draws the conclusions from an upstream's refusal of d to a, and returns
// it. Only what the registry itself has decided has any.
func (m *Mirror) heed(ctx context.Context, a access, d oci.Digest, refusal error) error {
	var status *ociclient.StatusError
	if !errors.As(refusal, &status) {
		return refusal
	}
	var err error
	switch {
	case status.Outcome() == ociclient.Denied && status.Status == http.StatusUnauthorized:
		err = m.rights.denied(ctx, a)
	case status.Outcome() == ociclient.Denied:
		err = m.rights.revoke(ctx, a, d)
	case status.Outcome() == ociclient.NotFound:
		// A client that never had it may get the same 404 for what others still have.
		var f facts
		if f, _, _, err = m.rights.about(ctx, a, d); err == nil && f.known() {
			err = m.markDeleted(ctx, a, d)
		}
		err = errors.Join(err, m.rights.revoke(ctx, a, d))
	}
	if err != nil {
		m.o.Log.Warn("what the upstream refuses could not be noted", "digest", d, "upstream", a.ns, "repository", a.repo, "err", err)
	}
	return refusal
}

// heedRepository draws the conclusions from the refusal of what is no digest, and
// returns it.
func (m *Mirror) heedRepository(ctx context.Context, a access, refusal error) error {
	var status *ociclient.StatusError
	if errors.As(refusal, &status) && status.Outcome() == ociclient.Denied && status.Status == http.StatusUnauthorized {
		return m.heed(ctx, a, "", refusal)
	}
	return refusal
}

// markDeleted notes that an image is deleted, unless another repository has a
// name for it too.
func (m *Mirror) markDeleted(ctx context.Context, a access, d oci.Digest) error {
	named, err := m.o.Index.Names(ctx, d)
	if err != nil {
		return err
	}
	for _, n := range named {
		if n.Namespace != a.ns || n.Repository != a.repo {
			return nil
		}
		if err := m.o.Index.DeleteName(ctx, n.Namespace, n.Repository, n.Tag); err != nil {
			return err
		}
	}
	return m.o.Index.SetDeleted(ctx, []oci.Digest{d}, m.o.Now().UnixMilli())
}

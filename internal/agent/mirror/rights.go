package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

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

// right is what is known of an access to a digest.
type right struct {
	ok      bool
	direct  bool // the upstream was asked for this very digest
	public  bool // anybody may
	hearsay bool // another node says so
	// loose says that it is by a manifest only, and was decided while the cache
	// had nothing private under the digest. See confirm.
	loose bool
	// size and mediaType are what the upstream or the manifest says of the
	// digest; −1 and "" if they do not.
	size      int64
	mediaType string
}

type grantKey struct {
	who    principal
	ns     string
	repo   oci.Name
	digest oci.Digest
}

// grant is a right, for a time.
type grant struct {
	right
	until time.Time
}

// grantsMax bounds the grants in memory; one that was pushed out is asked for again.
const grantsMax = 16384

// rights knows who may read what. Public rights are kept in the index, those
// that took credentials in memory only.
type rights struct {
	index  *index.Index
	ttl    time.Duration
	now    func() time.Time
	grants *lru.Cache[grantKey, grant]
	// private is until when, by the upstream's own word about the very digest,
	// somebody on this node may have it.
	private *lru.Cache[oci.Digest, time.Time]
}

func newRights(ix *index.Index, ttl time.Duration, now func() time.Time) *rights {
	cache, err := lru.New[grantKey, grant](grantsMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	private, err := lru.New[oci.Digest, time.Time](grantsMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &rights{index: ix, ttl: ttl, now: now, grants: cache, private: private}
}

// grant notes that the upstream gave d to a.
func (g *rights) grant(ctx context.Context, a access, d oci.Digest, public bool, size int64) error {
	now := g.now()
	g.grants.Add(grantKey{a.who, a.ns, a.repo, d}, grant{right{ok: true, direct: true, public: public, size: size}, now.Add(g.ttl)})
	if !public {
		g.private.Add(d, now.Add(g.ttl))
		return nil
	}
	return unlessFull(g.index.GrantPublic(ctx, a.ns, a.repo, d, now.UnixMilli()))
}

// unlessFull forgives that something could not be noted because the disk is full:
// then it is asked for again, and no pull fails for it.
func unlessFull(err error) error {
	if errors.Is(err, fault.Full) {
		return nil
	}
	return err
}

// grantChildren notes that a was given the manifest that needs these, so that
// the index need not be asked when they are pulled next.
func (g *rights) grantChildren(a access, edges []index.Edge, public bool) {
	g.children(a, edges, right{ok: true, public: public})
}

func (g *rights) children(a access, edges []index.Edge, r right) {
	until := g.now().Add(g.ttl)
	for _, e := range edges {
		if got, ok := g.fresh(a, e.Child); e.Role == index.RoleSubject || ok && (got.direct || r.hearsay && !got.hearsay) {
			continue
		}
		r.size, r.mediaType = e.Size, e.MediaType
		if e.Size == 0 && e.MediaType == "" { // Docker schema 1 says neither
			r.size = -1
		}
		g.grants.Add(grantKey{a.who, a.ns, a.repo, e.Child}, grant{r, until})
	}
}

// revoke notes that the upstream does not give d to a any more.
func (g *rights) revoke(ctx context.Context, a access, d oci.Digest) error {
	g.grants.Remove(grantKey{a.who, a.ns, a.repo, d})
	g.private.Remove(d) // another who may have it will be asked for again
	if a.auth != "" {
		return nil // what one client may not says nothing of the others
	}
	return g.index.RevokePublic(ctx, a.ns, a.repo, d)
}

func (g *rights) fresh(a access, d oci.Digest) (grant, bool) {
	got, ok := g.grants.Get(grantKey{a.who, a.ns, a.repo, d})
	return got, ok && g.now().Before(got.until)
}

// of tells what is known here of a's right to d, without asking the upstream.
func (g *rights) of(ctx context.Context, a access, d oci.Digest) (right, error) {
	if got, ok := g.fresh(a, d); ok {
		return got.right, nil
	}
	r := right{size: -1}
	parents, err := g.index.Parents(ctx, d)
	if err != nil {
		return r, err
	}
	if _, r.public, err = g.index.Public(ctx, a.ns, a.repo, d); err != nil {
		return r, err
	}
	r.ok = r.public
	for _, e := range parents {
		if e.Role == index.RoleSubject {
			continue
		}
		got, ok := g.fresh(a, e.Parent)
		if !ok {
			if _, ok, err = g.index.Public(ctx, a.ns, a.repo, e.Parent); err != nil {
				return r, err
			}
			got.public = ok
		}
		// Only a manifest that this client was given may say how large d is.
		if ok {
			r.ok, r.public, r.hearsay = true, r.public || got.public, got.hearsay && !r.public
			if e.Size > 0 || e.MediaType != "" {
				r.size, r.mediaType = e.Size, e.MediaType
			}
			break
		}
	}
	return r, nil
}

// mayRead tells whether a may have the blob or manifest d, asking the upstream
// if need be. A refusal is a *ociclient.StatusError.
//
// What came here with somebody's credentials is not handed out because a
// manifest names it: the upstream is asked for this very digest, so that nobody
// gets at it by a manifest of their own making. Only while the upstream gives no
// answer does the manifest have to do.
func (m *Mirror) mayRead(ctx context.Context, a access, d oci.Digest, e endpoint) (right, error) {
	r, err := m.rights.of(ctx, a, d)
	if err != nil {
		return r, err
	}
	if r.ok && (r.direct || !m.mustAsk(ctx, r, d)) {
		r.loose = !r.direct
		return r, nil
	}
	return m.confirm(ctx, a, d, e, r)
}

// confirm asks the upstream whether a may have d, of which r is known. It is also
// for a loose right that meets, by the time of reading, what may be private: of
// what a runtime holds nobody here knows how it came by it, and another client's
// download may have begun meanwhile. The word of other nodes does not count here.
func (m *Mirror) confirm(ctx context.Context, a access, d oci.Digest, e endpoint, r right) (right, error) {
	if r.hearsay {
		r = right{size: r.size, mediaType: r.mediaType}
	}
	if r.loose = false; r.ok && m.outages.now(a.ns, m.o.Now()) {
		return r, nil
	}
	client, ok := m.o.Upstreams.Client(a.ns)
	if !ok {
		return r, notConfigured(a.ns)
	}
	res, err := m.ask(ctx, client, a.ns, func() (*ociclient.Response, error) { return head(ctx, client, a, d, e) })
	var refusal *ociclient.StatusError
	switch {
	case err == nil:
	case errors.As(err, &refusal) && refusal.Status < http.StatusInternalServerError:
		m.gone(ctx, a, d, r, refusal.Status)
		return right{}, err
	case r.ok && ctx.Err() == nil:
		return r, nil
	default:
		return right{}, err
	}
	_ = res.Body.Close()
	r.ok, r.direct, r.public = true, true, r.public || res.Anonymous
	if res.Size >= 0 {
		r.size = res.Size
	}
	return r, m.exists(ctx, a, d, r.public, r.size)
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

func head(ctx context.Context, client *ociclient.Client, a access, d oci.Digest, e endpoint) (*ociclient.Response, error) {
	if e == apiManifest {
		return client.Manifest(ctx, string(a.repo), string(d), manifestTypes, a.auth, true)
	}
	return client.Blob(ctx, string(a.repo), d, nil, a.auth, true)
}

// Allowed reports whether an upstream has, within the time that a grant lasts,
// given d to this node or one of its clients that had to show who they are.
// Only then is a private d exchanged with other nodes (N10). A manifest that
// names d is not enough: anybody can write one.
func (m *Mirror) Allowed(d oci.Digest) bool {
	until, ok := m.rights.private.Get(d)
	return ok && m.o.Now().Before(until)
}

// mustAsk reports whether a right that a manifest gave does not do: for private
// content that is here, and for what may come from other nodes.
func (m *Mirror) mustAsk(ctx context.Context, r right, d oci.Digest) bool {
	return m.o.Shares && !r.public || m.isPrivate(ctx, d)
}

// isPrivate reports whether d is in the cache and came with credentials.
func (m *Mirror) isPrivate(ctx context.Context, d oci.Digest) bool {
	info, err := m.o.Store.Info(ctx, d)
	if err != nil {
		return !errors.Is(err, fault.NotFound) // on doubt
	}
	return info.Private
}

// gone draws the conclusions from an upstream that refuses d to a: the right
// ends, and if nobody knows another name of the image its data may go first.
func (m *Mirror) gone(ctx context.Context, a access, d oci.Digest, was right, status int) {
	if status != http.StatusNotFound && status != http.StatusUnauthorized && status != http.StatusForbidden {
		return
	}
	err := m.rights.revoke(ctx, a, d)
	// A client that never had it may get the same 404 for what others still have.
	if err == nil && status == http.StatusNotFound && was.ok {
		err = m.markDeleted(ctx, a, d)
	}
	if err != nil {
		m.o.Log.Warn("what the upstream refuses could not be noted", "digest", d, "upstream", a.ns, "repository", a.repo, "err", err)
	}
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

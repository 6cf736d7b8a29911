package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Peers are other nodes. Together brings content to which the upstream has given a
// right. The rest is asked only while the upstream gives no answer, and what peers say
// of an upstream's names and rights is hearsay: it lasts for a
// short time, is kept in memory only, and opens nothing that came to this node
// with credentials. Content is checked against its digest.
type Peers interface {
	Tag(ctx context.Context, ns string, repo oci.Name, tag oci.Tag) (swarm.Named, error)
	Content(ctx context.Context, ns string, repo oci.Name, d oci.Digest) (swarm.Given, error)
	Together(ctx context.Context, ns string, repo oci.Name, d oci.Digest, private bool) (g swarm.Given, found bool, failed func())
	KnowsTag(ns string, repo oci.Name, tag oci.Tag)
	KnowsContent(d oci.Digest)
}

// Named answers another node: what the upstream said last, if everybody may know.
func (m *Mirror) Named(ctx context.Context, ns string, repo oci.Name, tag oci.Tag) (swarm.Named, error) {
	name, err := m.o.Index.ResolveName(ctx, ns, repo, tag)
	if err != nil {
		return swarm.Named{}, err
	}
	_, public, err := m.o.Index.Public(ctx, ns, repo, name.Digest)
	if err != nil {
		return swarm.Named{}, err
	}
	age := max(m.o.Now().Sub(time.UnixMilli(name.At)), 0)
	if !public || age > m.o.StaleMax || m.isPrivate(ctx, name.Digest) {
		return swarm.Named{}, fault.New(fault.NotFound, "nothing is to be said of the tag %s of %s", tag, repo)
	}
	return swarm.Named{Digest: name.Digest, Age: age}, nil
}

// Given answers another node with small content of the cache.
func (m *Mirror) Given(ctx context.Context, ns string, repo oci.Name, d oci.Digest, own bool) (swarm.Given, error) {
	b, err := m.o.Store.Open(ctx, d)
	if err != nil {
		return swarm.Given{}, err
	}
	defer b.Close()
	switch {
	case !b.Complete() || b.Size() > oci.ManifestMax:
		return swarm.Given{}, fault.New(fault.NotFound, "%s is not here, or too large to be asked for so", d)
	case b.Private() && (!own || !m.Allowed(ns, d)):
		return swarm.Given{}, fault.New(fault.Denied, "%s is private, and a right to it was not shown", d)
	}
	if b.Private() {
		// The upstream that gave the asker its right may only say that it has this.
		if ours, err := m.o.Index.IsOrigin(ctx, d, ns); err != nil || !ours {
			return swarm.Given{}, errors.Join(err, fault.New(fault.Denied, "%s is private, and did not come from %s", d, ns))
		}
	}
	g := swarm.Given{MediaType: b.MediaType()}
	if !b.Private() {
		if _, g.Public, err = m.o.Index.Public(ctx, ns, repo, d); err != nil {
			return g, err
		}
	}
	g.Content, err = readAll(ctx, b)
	return g, err
}

// Each calls f for the tags that were ever resolved here.
func (m *Mirror) Each(ctx context.Context, f func(ns string, repo oci.Name, tag oci.Tag)) error {
	names, err := m.o.Index.AllNames(ctx)
	for _, n := range names {
		f(n.Namespace, n.Repository, n.Tag)
	}
	return err
}

// together brings a manifest, to which the upstream has given a right, from a node that
// has it or is asking the upstream for it. If found is false the upstream is to be
// asked, and failed called if that brings nothing.
func (m *Mirror) together(ctx context.Context, a access, d oci.Digest, may right) (doc document, found bool, failed func()) {
	if m.o.Peers == nil || may.heard || !may.public && !may.direct {
		return document{}, false, func() {}
	}
	g, found, failed := m.o.Peers.Together(ctx, a.ns, a.repo, d, !may.public)
	if !found {
		return document{}, false, failed
	}
	doc = document{digest: d, mediaType: typeOf(g.Content), content: g.Content, source: sourcePeer}
	if doc.mediaType == "" || d.Algorithm().FromBytes(g.Content) != d {
		return document{}, false, failed // only the upstream may say what the bytes do not
	}
	ns := a.ns
	if m.here(ctx, d) {
		ns = ""
	}
	edges, err := m.keep(ctx, ns, doc, piece.Meta{MediaType: doc.mediaType, Private: !may.public, Spare: a.ahead})
	if err != nil {
		m.o.Log.Warn("a manifest from another node is not kept", "digest", d, "err", err)
		return document{}, false, failed
	}
	m.rights.children(a, edges, may.public, false)
	m.o.Peers.KnowsContent(d)
	return doc, true, failed
}

// fromPeers brings a manifest from other nodes where the upstream gave no answer
// but cause, which is the error if they have none either, or it is not for a.
func (m *Mirror) fromPeers(ctx context.Context, a access, d oci.Digest, cause error) (document, error) {
	if m.o.Peers == nil || ctx.Err() != nil || !isOutage(cause) {
		return document{}, cause
	}
	known, _, _, err := m.rights.about(ctx, a, d)
	if err != nil {
		return document{}, err
	}
	g, err := m.o.Peers.Content(ctx, a.ns, a.repo, d)
	if err != nil || !known.known() && !known.heard && (!g.Public || m.isPrivate(ctx, d)) || d.Algorithm().FromBytes(g.Content) != d {
		return document{}, cause
	}
	doc := document{digest: d, mediaType: g.MediaType, content: g.Content, source: sourcePeer}
	if parsed, err := oci.ParseManifest("", g.Content); err == nil && parsed.MediaType != "" {
		doc.mediaType = parsed.MediaType // that of the content itself cannot be made up
	}
	public := g.Public || known.public
	ns := a.ns
	if m.here(ctx, d) {
		ns = "" // the upstream has not shown that it has what is here
	}
	edges, err := m.keep(ctx, ns, doc, piece.Meta{MediaType: doc.mediaType, Private: !public})
	if err != nil {
		return document{}, err
	}
	m.rights.hear(a, d, edges, known, public)
	m.o.Log.Warn("the upstream does not answer; another node gave the manifest", "upstream", a.ns, "repository", a.repo, "digest", d, "err", cause)
	return doc, nil
}

// hear notes that a may have d and what it needs: known is what the upstream
// itself has said of that, and where it has not, peers have.
func (g *rights) hear(a access, d oci.Digest, edges []index.Edge, known facts, public bool) {
	if !known.known() && !known.heard {
		g.grants.Add(grantKey{a.who, a.ns, a.repo, d}, grant{at: g.now(), heard: true, public: public, size: -1})
	}
	g.children(a, edges, public, !known.known())
}

// heardOf asks other nodes what a tag stood for, at most once in the time that
// a tag is trusted for, and brings what it stood for here. A tag is answered so
// only if it can be pulled.
func (m *Mirror) heardOf(ctx context.Context, a access, tag oci.Tag, than time.Time, cause error) (resolved, time.Duration, bool) {
	if m.o.Peers == nil || m.o.StaleMax <= 0 {
		return resolved{}, 0, false
	}
	key := tagKey{who: a.who, ns: a.ns, repo: a.repo, tag: tag}
	r, ok := m.heard.Get(key)
	if now := m.o.Now(); !ok || now.Sub(r.asked).Abs() >= max(m.o.TagTTL, time.Second) {
		r = resolved{asked: now}
		if n, err := m.o.Peers.Tag(ctx, a.ns, a.repo, tag); err == nil {
			r.digest, r.at = n.Digest, now.Add(-n.Age)
		}
		m.heard.Add(key, r)
	}
	age := max(m.o.Now().Sub(r.at), 0)
	if r.digest == "" || age > m.o.StaleMax || !r.at.After(than) {
		return r, age, false
	}
	if m.mayStill(ctx, a, r.digest) {
		return r, age, true
	}
	_, err := m.fromPeers(ctx, a, r.digest, cause)
	return r, age, err == nil
}

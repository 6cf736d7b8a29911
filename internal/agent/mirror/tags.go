package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// tagKey is what an upstream's answer about a tag depends on.
type tagKey struct {
	who    principal
	ns     string
	repo   oci.Name
	tag    oci.Tag
	accept string
}

func keyOf(a access, tag oci.Tag, accept []string) tagKey {
	return tagKey{a.who, a.ns, a.repo, tag, strings.Join(slices.Sorted(slices.Values(accept)), ",")}
}

// resolved is what a tag stands for.
type resolved struct {
	digest oci.Digest
	at     time.Time
	asked  time.Time // peers were asked
}

// tagsMax bounds the tags whose digests are remembered.
const tagsMax = 4096

// resolve finds the digest of a tag. stale is how old it is if the upstream gave
// no answer, and negative otherwise.
func (m *Mirror) resolve(ctx context.Context, a access, tag oci.Tag, accept []string) (r resolved, stale time.Duration, err error) {
	key := keyOf(a, tag, accept)
	if got, ok := m.tags.Get(key); ok && m.o.Now().Sub(got.at).Abs() < m.o.TagTTL {
		return got, -1, nil
	}
	if m.outages.now(a, m.o.Now()) {
		if last, age, known := m.lastAnswer(ctx, a, tag, errOutage); known {
			return last, age, nil
		}
	}
	flight := strings.Join([]string{"tag", string(a.who), a.ns, string(a.repo), string(tag), key.accept}, "\x00")
	r, err = once(ctx, m, flight, func(ctx context.Context) (resolved, error) {
		found, err := m.askTag(ctx, a, tag, accept)
		if err == nil {
			m.tags.Add(key, found)
		}
		return found, err
	})
	if err == nil || ctx.Err() != nil || !isOutage(err) {
		return r, -1, err
	}
	last, age, known := m.lastAnswer(ctx, a, tag, err)
	if !known {
		return r, -1, err
	}
	m.o.Log.Warn("the upstream does not answer; giving the last known digest", "upstream", a.ns, "repository", a.repo, "tag", tag,
		"digest", last.digest, "age_s", int64(age/time.Second), "err", err)
	return last, age, nil
}

// errOutage stands for the silence of a moment ago.
var errOutage error = fault.New(fault.Busy, "the upstream gave no answer a moment ago")

// lastAnswer is the newest of what this node and its peers know of a tag, while
// the upstream gives no answer but cause.
func (m *Mirror) lastAnswer(ctx context.Context, a access, tag oci.Tag, cause error) (r resolved, age time.Duration, ok bool) {
	r, age, ok = m.lastKnown(ctx, a, tag)
	than := time.Time{}
	if ok {
		than = r.at
	}
	if heard, old, newer := m.heardOf(ctx, a, tag, than, cause); newer {
		return heard, old, true
	}
	return r, age, ok
}

// isOutage reports that the registry has decided nothing about what it was asked.
func isOutage(err error) bool {
	var refusal *ociclient.StatusError
	if errors.As(err, &refusal) {
		return !refusal.Outcome().Verdict()
	}
	return errors.Is(err, fault.Busy) || fetch.IsWrongContent(err)
}

// askTag asks the upstream what a tag stands for.
func (m *Mirror) askTag(ctx context.Context, a access, tag oci.Tag, accept []string) (resolved, error) {
	client, ok := m.o.Upstreams.Client(a.ns)
	if !ok {
		return resolved{}, notConfigured(a.ns)
	}
	if len(accept) == 0 {
		accept = manifestTypes
	}
	res, err := m.ask(ctx, client, a, func() (*ociclient.Response, error) {
		return client.Manifest(ctx, string(a.repo), string(tag), accept, a.auth, true)
	})
	if err != nil {
		var refusal *ociclient.StatusError
		if errors.As(err, &refusal) {
			m.tagGone(ctx, a, tag, refusal)
		}
		return resolved{}, err
	}
	_ = res.Body.Close() // an answer to HEAD
	r := resolved{digest: res.Digest(), at: m.o.Now()}
	if r.digest == "" {
		// The upstream does not name it, so its bytes have to.
		doc, err := m.bring(ctx, a, string(tag), "", accept)
		if err != nil {
			return resolved{}, err
		}
		r.digest = doc.digest
	} else if err := m.exists(ctx, a, r.digest, res.Anonymous, res.Size); err != nil {
		return resolved{}, err
	}
	if err := unlessFull(m.o.Index.PutName(ctx, a.ns, a.repo, tag, r.digest, r.at.UnixMilli())); err != nil {
		return resolved{}, fmt.Errorf("note what %s:%s stands for: %w", a.repo, tag, err)
	}
	if m.o.Peers != nil {
		m.o.Peers.KnowsTag(a.ns, a.repo, tag)
	}
	return r, nil
}

// tagGone draws the conclusions from an upstream that refuses a tag to a. That a
// tag is gone says nothing about its digest, which is asked for again.
func (m *Mirror) tagGone(ctx context.Context, a access, tag oci.Tag, refusal *ociclient.StatusError) {
	if !refusal.Outcome().Verdict() {
		return
	}
	if refusal.Outcome() == ociclient.Denied && refusal.Status == http.StatusUnauthorized {
		_ = m.heed(ctx, a, "", refusal) // it is the caller's
		return
	}
	name, err := m.o.Index.ResolveName(ctx, a.ns, a.repo, tag)
	if err != nil {
		return // it was not known here
	}
	if refusal.Outcome() == ociclient.Denied {
		_ = m.heed(ctx, a, name.Digest, refusal) // it is the caller's
		return
	}
	f, _, _, err := m.rights.about(ctx, a, name.Digest)
	if err != nil || !f.known() {
		return // another client's tag
	}
	if err := errors.Join(m.untag(ctx, a, tag, name.Digest), m.rights.age(ctx, a, name.Digest)); err != nil {
		m.o.Log.Warn("it could not be noted that a tag is gone", "upstream", a.ns, "repository", a.repo, "tag", tag, "err", err)
	}
}

// untag forgets a tag, and notes that its image is deleted if it has no other name.
func (m *Mirror) untag(ctx context.Context, a access, tag oci.Tag, d oci.Digest) error {
	if err := m.o.Index.DeleteName(ctx, a.ns, a.repo, tag); err != nil {
		return err
	}
	named, err := m.o.Index.Names(ctx, d)
	if err != nil || len(named) > 0 {
		return err
	}
	return m.o.Index.SetDeleted(ctx, []oci.Digest{d}, m.o.Now().UnixMilli())
}

// lastKnown finds what a tag stood for when the upstream last said so, if that is
// not too long ago, a may still have it, and it is here.
func (m *Mirror) lastKnown(ctx context.Context, a access, tag oci.Tag) (r resolved, age time.Duration, ok bool) {
	name, err := m.o.Index.ResolveName(ctx, a.ns, a.repo, tag)
	if err != nil {
		return r, 0, false
	}
	r = resolved{digest: name.Digest, at: time.UnixMilli(name.At)}
	age = max(m.o.Now().Sub(r.at), 0)
	return r, age, age <= m.o.StaleMax && m.mayStill(ctx, a, r.digest)
}

// mayStill reports whether a may have a manifest that is here while the upstream
// decides nothing.
func (m *Mirror) mayStill(ctx context.Context, a access, d oci.Digest) bool {
	f, _, _, err := m.facts(ctx, a, d)
	if err != nil {
		return false
	}
	f.asked, f.outcome = true, ociclient.Unreachable
	if decide(f) == serve {
		_, err = m.local(ctx, a, d)
		return err == nil
	}
	return false
}

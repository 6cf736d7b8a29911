package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

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
	sorted := slices.Sorted(slices.Values(accept))
	key := tagKey{a.who, a.ns, a.repo, tag, strings.Join(sorted, ",")}
	if got, ok := m.tags.Get(key); ok && m.o.Now().Sub(got.at).Abs() < m.o.TagTTL {
		return got, -1, nil
	}
	if m.outages.now(a.ns, m.o.Now()) {
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

// isOutage reports that an upstream gave no answer about what it was asked.
func isOutage(err error) bool {
	var refusal *ociclient.StatusError
	if errors.As(err, &refusal) {
		return refusal.Status >= http.StatusInternalServerError
	}
	return errors.Is(err, fault.Busy)
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
	res, err := m.ask(ctx, client, a.ns, func() (*ociclient.Response, error) {
		return client.Manifest(ctx, string(a.repo), string(tag), accept, a.auth, true)
	})
	if err != nil {
		var refusal *ociclient.StatusError
		if errors.As(err, &refusal) {
			m.tagGone(ctx, a, tag, refusal.Status)
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

// tagGone draws the conclusions from an upstream that refuses a tag to a.
func (m *Mirror) tagGone(ctx context.Context, a access, tag oci.Tag, status int) {
	name, err := m.o.Index.ResolveName(ctx, a.ns, a.repo, tag)
	if err != nil {
		return // it was not known here
	}
	was, err := m.rights.of(ctx, a, name.Digest)
	if err != nil || !was.ok {
		return // another client's tag
	}
	m.gone(ctx, a, name.Digest, was, status)
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
	if age > m.o.StaleMax {
		return r, age, false
	}
	may, err := m.rights.of(ctx, a, r.digest)
	if err != nil || !may.ok || may.hearsay && m.isPrivate(ctx, r.digest) {
		return r, age, false
	}
	_, err = m.local(ctx, r.digest)
	return r, age, err == nil
}

package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// manifestTypes are accepted where the runtime does not say what it accepts.
var manifestTypes = []string{oci.MediaTypeIndex, oci.MediaTypeImage, oci.MediaTypeDockerList, oci.MediaTypeDockerImage, "*/*"}

// document is a manifest's bytes and what goes with them.
type document struct {
	digest    oci.Digest
	mediaType string
	content   []byte
	source    string
}

// manifest is dist-spec v1.1 §Pulling manifests and §Checking if content exists.
// HEAD brings the manifest here too: the GET comes next.
func (m *Mirror) manifest(w http.ResponseWriter, r *http.Request, a access, last string) error {
	ref, err := oci.ParseReference(last)
	if err != nil {
		return err
	}
	accept := r.Header.Values("Accept")
	stale := time.Duration(-1)
	d := ref.Digest
	if d == "" {
		var found resolved
		if found, stale, err = m.resolve(r.Context(), a, ref.Tag, accept); err != nil {
			return err
		}
		d = found.digest
	}
	doc, err := m.document(r.Context(), a, d, accept)
	if err != nil {
		if ref.Digest == "" {
			// The upstream has named what it has not got: the tag has moved since, or it errs.
			m.tags.Remove(keyOf(a, ref.Tag, accept))
		}
		return err
	}
	if stale >= 0 {
		doc.source = sourceStale
		w.Header().Set("Fairway-Stale", strconv.FormatInt(int64(stale/time.Second), 10))
		w.Header().Set("Warning", `110 fairway "the upstream does not answer; this is the last known digest"`)
		m.metrics.stale.Inc()
	}
	m.sendManifest(w, r, doc)
	return nil
}

func (m *Mirror) sendManifest(w http.ResponseWriter, r *http.Request, doc document) {
	header := w.Header()
	etag := `"` + string(doc.digest) + `"`
	header.Set("Docker-Content-Digest", string(doc.digest))
	header.Set("Etag", etag)
	header.Set(headerSource, doc.source)
	m.metrics.requests.WithLabelValues("manifest", doc.source).Inc()
	if etagIn(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", doc.mediaType)
	header.Set("Content-Length", strconv.Itoa(len(doc.content)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		n, _ := w.Write(doc.content) // a client that is gone needs no answer
		m.metrics.bytes.WithLabelValues(doc.source).Add(float64(n))
	}
}

// document returns a manifest by its digest, from this machine if the right to
// it is known. If nothing is known the GET is the question.
func (m *Mirror) document(ctx context.Context, a access, d oci.Digest, accept []string) (document, error) {
	f, _, _, err := m.facts(ctx, a, d)
	if err != nil {
		return document{}, err
	}
	var may right // nothing is known
	if f.present || decide(f) != ask {
		may, err = m.mayRead(ctx, a, d, apiManifest)
		if err != nil {
			return m.fromPeers(ctx, a, d, err)
		}
		if !may.relay {
			doc, err := m.local(ctx, a, d)
			if err == nil {
				return doc, nil
			}
			if !errors.Is(err, fault.NotFound) {
				m.o.Log.Warn("a manifest in the cache cannot be read; asking the upstream", "digest", d, "err", err)
			}
		}
	}
	key := strings.Join([]string{"manifest", string(a.who), a.ns, string(a.repo), string(d)}, "\x00")
	return once(ctx, m, key, func(ctx context.Context) (document, error) {
		failed := func() {}
		if !may.relay {
			doc, found, giveUp := m.together(ctx, a, d, may)
			if found {
				return doc, nil
			}
			failed = giveUp
		}
		doc, err := m.bring(ctx, a, string(d), d, accept)
		if err != nil {
			failed()
			return m.fromPeers(ctx, a, d, err)
		}
		return doc, nil
	})
}

// local reads a manifest that is on this machine and that a may have; NotFound if
// it is not, or only where it needs the upstream to say so.
func (m *Mirror) local(ctx context.Context, a access, d oci.Digest) (document, error) {
	content, mediaType, source, err := m.localBytes(ctx, a, d)
	if err != nil {
		return document{}, err
	}
	if own := typeOf(content); own != "" {
		mediaType = own
	}
	if mediaType == "" || mediaType == "application/octet-stream" { // it came in as a blob
		return document{}, fault.New(fault.NotFound, "%s is not a manifest", d).WithCode(oci.CodeManifestUnknown)
	}
	return document{digest: d, mediaType: mediaType, content: content, source: source}, nil
}

// typeOf is what a manifest's own bytes say that it is, "" if they do not. An
// upstream may say something else, or nothing.
func typeOf(content []byte) string {
	said, err := oci.DetectType(content)
	if err != nil || oci.IsSchema1(said) { // of which there are two that look alike
		return ""
	}
	return said
}

func (m *Mirror) localBytes(ctx context.Context, a access, d oci.Digest) (content []byte, mediaType, source string, err error) {
	b, err := m.o.Store.Open(ctx, d)
	if err == nil {
		defer b.Close()
		if b.Complete() && b.Size() <= oci.ManifestMax {
			content, err = readAll(ctx, b)
			return content, b.MediaType(), sourceCache, err
		}
	} else if !errors.Is(err, fault.NotFound) {
		return nil, "", "", err
	}
	held, holder, ok := m.o.Fetch.Held(ctx, d)
	if !ok {
		return nil, "", "", fault.New(fault.NotFound, "%s is not on this machine", d).WithCode(oci.CodeManifestUnknown)
	}
	defer func() { _ = held.Close() }() // it was only read
	if held.Size() > oci.ManifestMax {
		return nil, "", "", fault.New(fault.NotFound, "%s is too large for a manifest", d).WithCode(oci.CodeManifestUnknown)
	}
	may, err := m.mayReadHeld(ctx, a, d, apiManifest, held)
	if err != nil {
		return nil, "", "", err
	}
	if may.relay {
		return nil, "", "", fault.New(fault.NotFound, "%s is here, but not from %s", d, a.ns).WithCode(oci.CodeManifestUnknown)
	}
	var all sink
	_, err = held.WriteTo(&all)
	return all, "", holder, err
}

// sink gathers what is written to it.
type sink []byte

func (s *sink) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

func readAll(ctx context.Context, b *piece.Blob) ([]byte, error) {
	rc := b.NewReader(ctx, 0, -1)
	defer func() { _ = rc.Close() }() // it was only read
	content, err := io.ReadAll(rc)
	if err != nil {
		return nil, fmt.Errorf("read %s from the cache: %w", b.Digest(), err)
	}
	return content, nil
}

// bring asks the upstream for a manifest and keeps it. want is its digest, "" if
// ref is a tag.
func (m *Mirror) bring(ctx context.Context, a access, ref string, want oci.Digest, accept []string) (document, error) {
	doc, anonymous, err := m.receive(ctx, a, ref, want, accept)
	if err != nil {
		if want != "" {
			err = m.heed(ctx, a, want, err)
		}
		return document{}, err
	}
	return doc, m.learn(ctx, a, doc, anonymous)
}

func (m *Mirror) here(ctx context.Context, d oci.Digest) bool {
	b, err := m.o.Index.Blob(ctx, d)
	return err == nil && b.State != index.Partial
}

// receive asks the upstream for a manifest, and whether everybody may have it.
func (m *Mirror) receive(ctx context.Context, a access, ref string, want oci.Digest, accept []string) (doc document, anonymous bool, err error) {
	client, ok := m.o.Upstreams.Client(a.ns)
	if !ok {
		return document{}, false, notConfigured(a.ns)
	}
	if len(accept) == 0 {
		accept = manifestTypes
	}
	res, err := m.ask(ctx, client, a, func() (*ociclient.Response, error) {
		return client.Manifest(ctx, string(a.repo), ref, accept, a.auth, false)
	})
	if err != nil {
		return document{}, false, err
	}
	defer func() { _ = res.Body.Close() }() // all of it was read, or it is wrong
	content, err := io.ReadAll(io.LimitReader(res.Body, oci.ManifestMax+1))
	if err != nil {
		return document{}, false, fault.Wrap(fault.Busy, fmt.Errorf("read manifest %s of %s: %w", ref, a.repo, err), "the upstream broke off in the middle of a manifest")
	}
	if len(content) > oci.ManifestMax || res.Size >= 0 && int64(len(content)) != res.Size {
		return document{}, false, fmt.Errorf("manifest %s of %s: %w", ref, a.repo, fetch.ErrWrongLength)
	}
	if want == "" {
		if want = res.Digest(); want == "" {
			if !json.Valid(content) {
				return document{}, false, fmt.Errorf("manifest %s of %s is not JSON: %w", ref, a.repo, fetch.ErrMismatch)
			}
			want = digest.SHA256.FromBytes(content)
		}
	}
	if want.Algorithm().FromBytes(content) != want {
		m.metrics.failures.WithLabelValues("mismatch").Inc()
		return document{}, false, fmt.Errorf("manifest %s of %s: %w", ref, a.repo, fetch.ErrMismatch)
	}
	mediaType := typeOf(content)
	if mediaType == "" {
		mediaType = res.Header.Get("Content-Type")
	}
	return document{digest: want, mediaType: mediaType, content: content, source: sourceUpstream}, res.Anonymous, nil
}

// ask puts a question to an upstream, and once more if it has trouble of its
// own and says so at once. What it refuses is a *ociclient.StatusError.
func (m *Mirror) ask(ctx context.Context, client *ociclient.Client, a access, question func() (*ociclient.Response, error)) (*ociclient.Response, error) {
	for attempt := 0; ; attempt++ {
		began := m.o.Now()
		res, err := question()
		took := m.o.Now().Sub(began)
		if err != nil {
			if ctx.Err() == nil {
				m.metrics.upstreamFailed(err)
				m.outages.note(a, ociclient.OutcomeOf(err), m.o.Now(), took)
			}
			return nil, err
		}
		if res.OK() {
			m.outages.over(a)
			return res, nil
		}
		refusal := client.Refusal(res)
		if refusal.Outcome().Verdict() {
			m.outages.over(a)
			return nil, refusal
		}
		m.metrics.upstreamFailed(refusal)
		m.outages.note(a, refusal.Outcome(), m.o.Now(), took)
		if refusal.Outcome() != ociclient.Failed || refusal.Status < http.StatusInternalServerError || attempt > 0 || took > time.Second ||
			refusal.RetryAfter(m.o.Now()) > 0 {
			return nil, refusal
		}
	}
}

// learn keeps a manifest, what it needs, and that a may have it. A cache without
// room is no reason to refuse the manifest.
func (m *Mirror) learn(ctx context.Context, a access, doc document, anonymous bool) error {
	edges, err := m.keep(ctx, a.ns, doc, piece.Meta{MediaType: doc.mediaType, Private: !anonymous, Spare: a.ahead})
	if err != nil {
		return err
	}
	m.rights.children(a, edges, anonymous, false)
	if m.o.Peers != nil {
		m.o.Peers.KnowsContent(doc.digest)
	}
	return m.exists(ctx, a, doc.digest, anonymous, int64(len(doc.content)))
}

// keep puts a manifest into the cache, if there is room, and returns what it
// needs. ns is the upstream that it proves to have it, "" for none. That comes first: a manifest that is here is never asked for again, so
// an end in between would leave its layers without an image for good.
func (m *Mirror) keep(ctx context.Context, ns string, doc document, meta piece.Meta) ([]index.Edge, error) {
	_, edges := fetch.Edges(doc.digest, doc.mediaType, doc.content)
	put := m.o.Index.SetOrigin
	if m.here(ctx, doc.digest) {
		put = m.o.Index.PutOrigin // the upstream has shown that it has the same
	}
	var err error
	if ns != "" {
		err = put(ctx, doc.digest, ns)
	}
	if err == nil && len(edges) > 0 {
		err = m.o.Index.PutEdges(ctx, doc.digest, edges)
	}
	if err == nil {
		err = m.o.Store.Put(ctx, doc.digest, doc.content, meta)
	}
	if errors.Is(err, fault.Conflict) {
		// Somebody said that it has another size, and a download by that is under way.
		m.o.Log.Warn("a manifest is not kept, since it is being fetched with another size", "digest", doc.digest, "err", err)
		err = nil
	}
	if err = unlessFull(err); err != nil {
		return nil, fmt.Errorf("keep manifest %s: %w", doc.digest, err)
	}
	return edges, nil
}

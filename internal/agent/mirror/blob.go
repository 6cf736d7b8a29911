package mirror

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// blob is dist-spec v1.1 §Pulling blobs and §Checking if content exists.
func (m *Mirror) blob(w http.ResponseWriter, r *http.Request, a access, last string) error {
	d, err := oci.ParseDigest(last)
	if err != nil {
		return err
	}
	may, err := m.mayRead(r.Context(), a, d, apiBlob)
	if err != nil {
		return err
	}
	p := &pull{m: m, w: w, r: r, a: a, may: may, began: m.o.Now(), n: -1, from: map[string]int64{}}
	p.want = fetch.Want{
		Digest: d, Size: fetch.Claimed(d, may.size), MediaType: may.mediaType, Namespace: a.ns, Repo: a.repo,
		Authorization: a.auth, Private: !may.public,
	}
	if etagIn(r.Header.Values("If-None-Match"), `"`+string(d)+`"`) {
		p.describe()
		w.Header().Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if r.Method == http.MethodHead {
		return p.head(r.Context())
	}
	return p.get(r.Context())
}

// pull is one request for a blob.
type pull struct {
	m     *Mirror
	w     http.ResponseWriter
	r     *http.Request
	a     access
	may   right
	want  fetch.Want
	began time.Time

	source string
	coming *piece.Blob   // that was not complete when it was opened
	begun  bool          // the header is sent
	ttfb   time.Duration // until then
	off, n int64         // the part wanted; n < 0: to the end, wherever that is
	sent   int64         // of that
	// parts are several parts: off, n and sent are those of the present one.
	parts  *httpserve.Parts
	part   int
	headed bool             // its head is sent
	done   int64            // bytes sent of the parts before
	direct bool             // they are read at the upstream, as parts
	from   map[string]int64 // of these, by where they came from
	trusts bool             // what a download has brought may be handed out as parts
	broken error            // the client's end of the connection
	around bool             // the cache is not to be asked
}

// describe sets what all answers about a blob have in common.
func (p *pull) describe() {
	header := p.w.Header()
	header.Set("Docker-Content-Digest", string(p.want.Digest))
	header.Set("Etag", `"`+string(p.want.Digest)+`"`)
	header.Set("Content-Type", "application/octet-stream")
	if p.want.Size >= 0 {
		header.Set("Accept-Ranges", "bytes")
	}
}

func (p *pull) head(ctx context.Context) error {
	p.source = sourceUpstream
	if b, err := p.m.o.Store.Open(ctx, p.want.Digest); err == nil {
		if b.Complete() && !p.may.relay {
			p.want.Size, p.source = b.Size(), sourceCache
		}
		b.Close()
	}
	if err := p.size(ctx); err != nil {
		return err
	}
	p.describe()
	header := p.w.Header()
	header.Set(headerSource, p.source)
	if p.want.Size >= 0 {
		header.Set("Content-Length", strconv.FormatInt(p.want.Size, 10))
	}
	p.m.metrics.requests.WithLabelValues("blob", p.source).Inc()
	p.w.WriteHeader(http.StatusOK)
	return nil
}

// size asks the upstream how large the blob is, if nobody here knows. An
// upstream that does not say so in its header is no error.
func (p *pull) size(ctx context.Context) error {
	if p.want.Size >= 0 {
		return nil
	}
	client, ok := p.m.o.Upstreams.Client(p.want.Namespace)
	if !ok {
		return notConfigured(p.want.Namespace)
	}
	res, err := p.m.ask(ctx, client, p.a, func() (*ociclient.Response, error) {
		return client.Blob(ctx, string(p.want.Repo), p.want.Digest, nil, p.want.Authorization, true)
	})
	if err != nil {
		return err
	}
	_ = res.Body.Close() // an answer to HEAD
	p.want.Size = fetch.Claimed(p.want.Digest, res.Size)
	return nil
}

// rereadMax bounds how often in a row a blob is fetched again because the cache
// finds pieces of it corrupt while they are read, without handing anything out.
const rereadMax = 3

func (p *pull) get(ctx context.Context) error {
	err := p.once(ctx)
	for again := 0; again < rereadMax && p.broken == nil; again++ {
		if errors.Is(err, piece.ErrCorrupt) {
			p.m.metrics.refetch.Inc()
			p.m.o.Log.Warn("a blob in the cache was corrupt; fetching it again", "digest", p.want.Digest, "at", p.off+p.sent)
		} else if size, ok := fetch.SizeOf(err); ok && !p.begun {
			p.want.Size, p.coming = size, nil
		} else if !fetch.RefusedAnother(err, p.want) {
			break
		}
		err = p.once(ctx)
	}
	if errors.Is(err, fault.Full) { // from the beginning, or the disk in the middle of the download
		p.tellOversized()
		err = p.streamed(ctx)
	} else if p.begun && p.broken == nil && p.m.diskTrouble(p.r, err) {
		p.m.troubled(err)
		err = p.streamed(ctx) // from where it broke off
	}
	if err == nil {
		p.begin() // an empty blob has no first byte
	}
	p.account(err)
	switch {
	case err == nil:
		return nil
	case !p.begun:
		return err
	}
	// The client has a header that promises more: only a broken connection tells
	// it that this is not the blob.
	httpserve.Note(p.w, err)
	panic(http.ErrAbortHandler)
}

// once hands the blob out from the nearest place that has it, beginning with the
// first byte that is not sent yet.
func (p *pull) once(ctx context.Context) error {
	if p.around || p.may.relay {
		return p.relay(ctx)
	}
	b, err := p.m.o.Store.Open(ctx, p.want.Digest)
	if err == nil {
		if b.Complete() {
			defer b.Close()
			if err := p.confirm(ctx, b.Private()); err != nil {
				return err
			}
			if p.may.relay {
				return p.relay(ctx)
			}
			return p.fromCache(ctx, b, sourceCache)
		}
		err := p.confirm(ctx, b.Private())
		b.Close()
		if err != nil {
			return err
		}
		if p.may.relay {
			return p.relay(ctx)
		}
	} else if !errors.Is(err, fault.NotFound) {
		return err
	}
	if v, holder, ok := p.m.o.Fetch.Held(ctx, p.want.Digest); ok {
		may, err := p.m.mayReadHeld(ctx, p.a, p.want.Digest, apiBlob, v)
		if err != nil || may.relay {
			_ = v.Close() // nothing was read
		}
		if err != nil {
			return err
		}
		if may.relay {
			return p.relay(ctx)
		}
		size := p.want.Size
		err = p.through(v, holder)
		var rng *rangeError
		if err == nil || p.begun || errors.As(err, &rng) {
			return err
		}
		p.m.o.Log.Warn("a blob outside of the cache cannot be read; fetching it", "holder", holder, "digest", p.want.Digest, "err", err)
		p.want.Size = size // the holder's may be as wrong as the rest
	}
	if err := p.size(ctx); err != nil {
		return err
	}
	if p.want.Size < 0 {
		return p.stream(ctx)
	}
	b, err = p.m.o.Fetch.Get(ctx, p.want)
	if errors.Is(err, fetch.ErrWrongLength) {
		return p.streamed(ctx)
	}
	if err != nil {
		return err
	}
	defer b.Close()
	if err := p.confirm(ctx, b.Private()); err != nil {
		return err
	}
	if p.may.relay {
		return p.relay(ctx)
	}
	if done, err := p.beside(ctx, b); done {
		return err
	}
	return p.fromCache(ctx, b, "")
}

// confirm decides again about what has come here, or has become private, since
// it was decided.
func (p *pull) confirm(ctx context.Context, private bool) error {
	if !p.may.absent && !(p.may.open && private) {
		return nil
	}
	may, err := p.m.mayRead(ctx, p.a, p.want.Digest, apiBlob)
	if err == nil {
		p.may = may
		p.want.Private = !may.public
	}
	return err
}

// relay hands on what the upstream itself sends, and nothing that is here. If
// that is the blob, the upstream has proved that it has it.
func (p *pull) relay(ctx context.Context) error {
	p.want.Unchecked = true
	if err := p.size(ctx); err != nil {
		return err
	}
	if err := p.stream(ctx); err != nil || p.around {
		return err
	}
	if err := p.m.o.Index.PutOrigin(ctx, p.want.Digest, p.a.ns); err != nil {
		p.m.o.Log.Warn("it could not be noted where a blob came from", "digest", p.want.Digest, "upstream", p.a.ns, "err", err)
	}
	return nil
}

// stream hands the blob out as it comes from peers or the upstream: N6.
func (p *pull) stream(ctx context.Context) error {
	// Peers give what is private only to who asks for it as that; a right that is
	// not enough for it leaves the decision to the upstream.
	p.want.Unchecked = p.want.Unchecked || p.want.Private && !p.may.direct
	v, err := p.m.o.Fetch.Stream(ctx, p.want)
	if err != nil {
		return err
	}
	if v.FromPeers() {
		return p.through(v, sourcePeer)
	}
	return p.through(v, sourceUpstream)
}

// fromCache follows a blob that is in the cache or on its way there. source is
// "" in the latter case: who brings it shows when it comes.
func (p *pull) fromCache(ctx context.Context, b *piece.Blob, source string) error {
	if source == "" {
		p.coming = b
	}
	if !p.begun {
		p.source, p.want.Size = source, b.Size()
		if err := p.slice(source != ""); err != nil {
			return err
		}
		if err := p.hold(ctx, b); err != nil {
			return err
		}
	}
	before, all := p.sent, p.done+p.sent
	err := p.each(func() error {
		_, err := p.m.o.Fetch.Copy(ctx, p, b, p.off+p.sent, p.n-p.sent)
		return err
	})
	if source != "" {
		p.from[source] += p.done + p.sent - all
		return err
	}
	for name, n := range b.Sources(p.off+before, p.sent-before) {
		p.from[kindOf(name)] += n
	}
	return err
}

const (
	holdSmall = 8 << 20         // bytes
	holdMost  = 5 * time.Second // less than the silence after which a source is given up (fetch)
	holdLeast = time.Second
)

// hold waits for a whole blob to be verified before the first byte of it is
// handed out. A runtime that was given bytes of a source which turned out wrong
// asks another host for the rest, and has spoilt the blob for good. A large one is
// not waited for longer than a runtime is patient; then bytes are handed out as they
// come, and the last piece when all of it is verified. A part of a blob does not wait: whoever asks for one
// of something cold verifies it otherwise.
func (p *pull) hold(ctx context.Context, b *piece.Blob) error {
	if p.coming == nil || b.Complete() || p.w.Header().Get("Content-Range") != "" || p.m.o.Hold < 0 || b.Pieces() == 0 {
		return nil
	}
	patience := p.m.o.Hold
	if patience == 0 {
		if patience = holdLeast; b.Size() <= holdSmall {
			patience = holdMost
		}
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := b.Wait(waiting, b.Pieces()-1)
	if waiting.Err() != nil && ctx.Err() == nil && errors.Is(err, waiting.Err()) {
		return nil
	}
	return err
}

// kindOf is where a piece came from, by the name that its source has in the store.
func kindOf(source string) string {
	switch {
	case source == sourceUpstream:
		return sourceUpstream
	case source == sourceSwarm, strings.HasPrefix(source, sourcePeer+":"):
		return sourcePeer
	}
	return sourceCache
}

// through hands out a blob that is not kept.
func (p *pull) through(v *fetch.Verified, source string) error {
	defer func() { _ = v.Close() }() // it was only read
	if !p.begun {
		p.source, p.want.Size = source, v.Size()
		if err := p.slice(false); err != nil {
			return err
		}
	}
	if n := p.n; n >= 0 {
		v.Slice(p.off+p.sent, n-p.sent)
	}
	before := p.sent
	_, err := v.WriteTo(p)
	p.from[source] += p.sent - before
	return err
}

// begin sends the header, once. It is late, so that what goes wrong before the
// first byte has a status of its own.
func (p *pull) begin() {
	if p.begun {
		return
	}
	p.begun = true
	if p.source == "" {
		if p.source = p.m.o.Fetch.Source(p.want); p.source == "" {
			p.source = brought(p.coming)
		}
	}
	p.describe()
	header := p.w.Header()
	header.Set(headerSource, p.source)
	status := http.StatusOK
	if header.Get("Content-Range") != "" {
		status = http.StatusPartialContent
	}
	if p.parts != nil {
		status = http.StatusPartialContent
		header.Set("Content-Type", p.parts.Type())
		header.Set("Content-Length", strconv.FormatInt(p.parts.Length(), 10))
	} else if p.n >= 0 {
		header.Set("Content-Length", strconv.FormatInt(p.n, 10))
	}
	p.ttfb = p.m.o.Now().Sub(p.began)
	p.w.WriteHeader(status)
}

// brought is where a blob came from whose download was over before its header
// was sent.
func brought(b *piece.Blob) string {
	by := map[string]int64{}
	if b != nil {
		for name, n := range b.Sources(0, b.Size()) {
			by[kindOf(name)] += n
		}
	}
	switch {
	case by[sourcePeer] > 0:
		return sourceSwarm
	case by[sourceUpstream] > 0:
		return sourceUpstream
	}
	return sourceCache
}

// Write implements io.Writer.
func (p *pull) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := p.lead(); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	if p.sent += int64(n); err != nil {
		p.broken = err
	}
	return n, err
}

// Flush sends what net/http has gathered.
func (p *pull) Flush() {
	if f, ok := p.w.(http.Flusher); ok {
		f.Flush()
	}
}

// ReadFrom lets a file go to the socket without a copy.
func (p *pull) ReadFrom(src io.Reader) (int64, error) {
	to, ok := p.w.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{p}, src)
	}
	if err := p.lead(); err != nil {
		return 0, err
	}
	n, err := to.ReadFrom(src)
	p.sent += n
	return n, err
}

// account counts and logs a pull when it is over.
func (p *pull) account(err error) {
	source := p.source
	if source == "" {
		source = sourceUpstream
	}
	p.m.metrics.requests.WithLabelValues("blob", source).Inc()
	for from, n := range p.from {
		p.m.metrics.bytes.WithLabelValues(from).Add(float64(n))
	}
	p.m.handed.add(p.from)
	attrs := []any{
		"digest", p.want.Digest, "upstream", p.want.Namespace, "repository", p.want.Repo, "source", source,
		"bytes", p.done + p.sent, "cache_bytes", p.from[sourceCache], "peer_bytes", p.from[sourcePeer], "upstream_bytes", p.from[sourceUpstream], "ms", p.m.o.Now().Sub(p.began).Milliseconds(), "ttfb_ms", p.ttfb.Milliseconds(),
	}
	switch {
	case err == nil:
		p.m.o.Log.Info("pulled", attrs...)
	case p.broken != nil || p.r.Context().Err() != nil:
		p.m.o.Log.Info("a client left in the middle of a pull", attrs...)
	case p.begun:
		p.m.o.Log.Error("a pull was cut off", append(attrs, "err", err)...)
	}
}

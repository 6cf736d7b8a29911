package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// ErrMismatch says that what streamed through does not have its digest. The end
// of it has not been handed out.
var ErrMismatch = errors.New("the bytes do not match the digest")

// chunk is how much streams through at a time, in bytes; as much is held back.
const chunk = 64 << 10

// Verified is a blob that passes through this process without being kept. Its
// WriteTo hands out bytes as they come, but the last of them only when the whole
// blob has proved to be what its digest says (N7). For a part of a blob it reads
// all of it.
type Verified struct {
	src    io.Reader
	close  func() error
	failed func() // what to do about a source that lies
	digest oci.Digest
	size   int64 // −1: whatever comes
	off, n int64 // the part wanted; n < 0: to the end
	peers  bool  // it began to come from other nodes
	from   func(namespace string) bool
	whole  io.ReaderAt // all of it, if it can be read twice
}

// From reports whether a blob at a Holder came from an upstream. A Holder that
// does not know has nobody's word against it.
func (v *Verified) From(namespace string) bool { return v.from == nil || v.from(namespace) }

// FromPeers reports whether a stream began at other nodes and not at the upstream.
func (v *Verified) FromPeers() bool { return v.peers }

// Size is the blob's, in bytes; −1 if nobody knows.
func (v *Verified) Size() int64 { return v.size }

// Slice asks for n bytes from off; n < 0: to the end.
func (v *Verified) Slice(off, n int64) { v.off, v.n = off, n }

// Close gives up the source.
func (v *Verified) Close() error { return v.close() }

// WriteTo implements io.WriterTo. Nothing is handed out of a blob that can be read
// twice before it is known to be right, nor of a small one.
func (v *Verified) WriteTo(w io.Writer) (written int64, err error) {
	switch {
	case v.whole != nil:
		sum := v.digest.Algorithm().Hash()
		n, err := io.Copy(sum, io.NewSectionReader(v.whole, 0, v.size))
		if err != nil {
			return 0, fmt.Errorf("stream %s through: %w", v.digest, err)
		}
		if err := v.check(sum, n); err != nil {
			return 0, err
		}
	case v.size >= 0 && v.size <= wholeMax:
		return v.writeWhole(w)
	}
	sum := v.digest.Algorithm().Hash()
	buf, held := make([]byte, chunk), make([]byte, 0, chunk)
	var at int64
	for {
		n, err := io.ReadFull(v.src, buf)
		part := v.part(at, buf[:n])
		at += int64(n)
		_, _ = sum.Write(buf[:n]) // a hash never fails
		if len(part) > 0 {
			m, werr := w.Write(held)
			if written += int64(m); werr != nil {
				return written, werr
			}
			held = append(held[:0], part...)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && v.ended(at) {
			break
		}
		if err != nil {
			return written, fmt.Errorf("stream %s through: %w", v.digest, err)
		}
	}
	if err := v.check(sum, at); err != nil {
		return written, err
	}
	m, err := w.Write(held)
	return written + int64(m), err
}

// wholeMax bounds what is held in memory until it is verified, in bytes.
const wholeMax = 1 << 20

func (v *Verified) writeWhole(w io.Writer) (int64, error) {
	content := make([]byte, v.size)
	n, err := io.ReadFull(v.src, content)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, fmt.Errorf("stream %s through: %w", v.digest, err)
	}
	sum := v.digest.Algorithm().Hash()
	_, _ = sum.Write(content[:n]) // a hash never fails
	more, err := io.CopyN(sum, v.src, 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("stream %s through: %w", v.digest, err)
	}
	if err := v.check(sum, int64(n)+more); err != nil {
		return 0, err
	}
	m, err := w.Write(v.part(0, content[:n]))
	return int64(m), err
}

// ended tells the end of the source from one that was cut short, for which
// io.ReadFull has one word.
func (v *Verified) ended(at int64) bool { return v.size < 0 || at >= v.size }

// part is what of p, which begins at at, is wanted.
func (v *Verified) part(at int64, p []byte) []byte {
	from := min(max(v.off-at, 0), int64(len(p)))
	to := int64(len(p))
	if v.n >= 0 {
		to = min(max(v.off+v.n-at, 0), to)
	}
	if from >= to {
		return nil
	}
	return p[from:to]
}

func (v *Verified) check(sum hash.Hash, at int64) error {
	if v.size >= 0 && at != v.size {
		return fmt.Errorf("stream %s through: %w", v.digest, ErrWrongLength)
	}
	if oci.Digest(string(v.digest.Algorithm())+":"+fmt.Sprintf("%x", sum.Sum(nil))) != v.digest {
		if v.failed != nil {
			v.failed()
		}
		return fmt.Errorf("stream %s through: %w", v.digest, ErrMismatch)
	}
	return nil
}

// Stream opens a blob without keeping it: N6. It comes from a nearer place than
// the upstream if one has it (N9), and from there, too, when the upstream is down
// (N8).
func (f *Fetcher) Stream(ctx context.Context, w Want) (*Verified, error) {
	src := &resuming{f: f, ctx: ctx, want: w, peers: holding{"peers", w.Digest}}
	trusted := !w.Unchecked && w.Size >= 0 && f.worthAsking(src.peers)
	if f.o.Near != nil && trusted {
		src.places = append(src.places, place{f.o.Near, true})
	}
	src.places = append(src.places, place{f.o.Origin, false})
	if f.o.Last != nil && trusted {
		src.places = append(src.places, place{f.o.Last, true})
	}
	err := src.reopen()
	if size, ok := SizeOf(err); ok && size != src.want.Size {
		src.want.Size, src.places = size, []place{{f.o.Origin, false}}
		err = src.reopen()
	}
	if err != nil {
		return nil, err
	}
	if sized, ok := src.rc.(*body); ok && src.want.Size < 0 {
		src.want.Size = sized.size
	}
	f.metrics.streamed.Inc()
	return &Verified{
		src: src, close: src.Close, digest: w.Digest, size: src.want.Size, n: -1, peers: src.mixed,
		failed: src.lied,
	}, nil
}

// place is where a stream may come from.
type place struct {
	Origin
	peers bool
}

// resuming reads a blob at the first place that has it, and goes on where a
// connection broke, there or at the next one.
type resuming struct {
	f      *Fetcher
	ctx    context.Context
	want   Want
	places []place // the first is the present one
	peers  holding
	mixed  bool // some of it came from peers
	rc     io.ReadCloser
	at     int64
	tries  int // in a row that brought nothing
}

// reopen returns the upstream's error if no place is left.
func (r *resuming) reopen() (err error) {
	if r.rc != nil {
		_ = r.rc.Close() // it is broken
		r.rc = nil
	}
	for ; len(r.places) > 0; r.places = r.places[1:] {
		here := r.places[0]
		rc, failed := here.Range(r.ctx, r.want, r.at, -1)
		if failed == nil {
			r.rc, r.mixed = rc, r.mixed || here.peers
			return nil
		}
		if !here.peers {
			err = failed
		}
		var status *ociclient.StatusError
		if r.ctx.Err() != nil || errors.As(failed, &status) && status.Outcome().Verdict() {
			break // others may not give what the upstream refuses
		}
	}
	if err == nil {
		err = fault.New(fault.Busy, "nobody has the rest of %s", r.want.Digest)
	}
	return err
}

// lied has peers not asked again for a blob that was not what it should be.
func (r *resuming) lied() {
	if r.mixed {
		r.f.distrust(r.peers)
		return
	}
	r.f.metrics.failures.WithLabelValues("upstream", "mismatch").Inc()
}

// Read implements io.Reader.
func (r *resuming) Read(p []byte) (int, error) {
	for {
		if r.rc == nil {
			return 0, io.ErrClosedPipe // it failed before
		}
		n, err := r.rc.Read(p)
		r.at += int64(n)
		if n > 0 {
			r.tries = 0
			return n, nil
		}
		if err == nil || errors.Is(err, io.EOF) || r.ctx.Err() != nil || r.want.Size < 0 {
			return n, err
		}
		if r.tries++; r.tries >= attemptsMax || r.places[0].peers {
			r.places, r.tries = r.places[1:], 0
		}
		if len(r.places) == 0 {
			return 0, err
		}
		if again := r.reopen(); again != nil {
			return 0, errors.Join(err, again)
		}
	}
}

// Close implements io.Closer.
func (r *resuming) Close() error {
	if r.rc == nil {
		return nil
	}
	return r.rc.Close()
}

// holding is a blob at a Holder.
type holding struct {
	holder string
	digest oci.Digest
}

// Held opens a blob that somebody else on this machine has. ok is false if
// nobody has, or what they have proved to be something else before.
func (f *Fetcher) Held(ctx context.Context, d oci.Digest) (v *Verified, holder string, ok bool) {
	for _, h := range f.o.Holders() {
		key := holding{h.Name(), d}
		if !f.worthAsking(key) {
			continue
		}
		opening, cancel := context.WithTimeout(ctx, holderTimeout)
		content, err := h.Open(opening, d)
		cancel()
		if err != nil {
			if !errors.Is(err, fault.NotFound) && ctx.Err() == nil {
				f.mu.Lock()
				f.silent[key.holder] = f.o.Now()
				f.mu.Unlock()
				f.o.Log.Warn("a holder cannot be asked", "holder", key.holder, "digest", d, "err", err)
			}
			continue
		}
		var from func(string) bool
		if s, ok := content.(Sourced); ok {
			from = func(namespace string) bool { return slices.Contains(s.Origins(), namespace) }
		}
		return &Verified{
			from: from, whole: content,
			src: io.NewSectionReader(content, 0, content.Size()), close: content.Close, digest: d, size: content.Size(), n: -1,
			failed: func() { f.distrust(key) },
		}, key.holder, true
	}
	return nil, "", false
}

const (
	// holderTimeout bounds a question to a holder, which a pull waits for.
	holderTimeout = 500 * time.Millisecond
	// holderPause is how long a holder that did not answer is left alone.
	holderPause = 5 * time.Second
)

func (f *Fetcher) worthAsking(key holding) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, silent := f.silent[key.holder]
	return !f.bad[key] && (!silent || f.o.Now().Sub(last).Abs() > holderPause)
}

// distrust asks a holder no more for a blob that was not what it should be.
func (f *Fetcher) distrust(key holding) {
	f.mu.Lock()
	f.bad[key] = true
	f.mu.Unlock()
	f.metrics.failures.WithLabelValues(key.holder, "mismatch").Inc()
	f.o.Log.Error("a blob outside of the cache is corrupt", "holder", key.holder, "digest", key.digest)
}

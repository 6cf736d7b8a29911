package mirror

import (
	"context"
	"errors"
	"strconv"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// partMax is how much of a blob that is on its way here is read at the upstream
// beside its download, in bytes: what lazy snapshotters and partial pulls ask for
// at once. More follows the download, so that it costs the upstream one copy.
const partMax = 4 << 20

// ranges reads the Range header (RFC 9110 §14.2); nil stands for the whole blob.
// A blob whose size is not known has no ranges, and nor has content other than
// that which If-Range means.
func (p *pull) ranges() ([]httpserve.Range, error) {
	size := p.want.Size
	if cond := p.r.Header.Get("If-Range"); size < 0 || cond != "" && cond != `"`+string(p.want.Digest)+`"` {
		return nil, nil
	}
	lines := p.r.Header.Values("Range")
	all, err := httpserve.ParseRanges(lines, size)
	if err != nil {
		p.w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		return nil, &rangeError{fault.New(fault.Invalid, "range %.64q cannot be satisfied; the blob has %d bytes", lines[0], size).WithCode(oci.CodeSizeInvalid)}
	}
	return all, nil
}

// slice chooses the part that is handed out. Several are framed if many says that
// each can be read without reading all of the blob; otherwise the whole is handed
// out, as RFC 9110 §14.2 allows.
func (p *pull) slice(many bool) error {
	p.off, p.n, p.parts = 0, p.want.Size, nil
	p.w.Header().Del("Content-Range") // of a try that sent nothing
	all, err := p.ranges()
	switch {
	case err != nil:
		return err
	case len(all) == 1:
		p.w.Header().Set("Content-Range", all[0].ContentRange(p.want.Size))
	case len(all) == 0 || !many:
		return nil
	default:
		p.parts = httpserve.NewParts(all, p.want.Size, "application/octet-stream")
	}
	p.off, p.n = all[0].First, all[0].Length
	return nil
}

// each has send hand out the bytes from off+sent to off+n, for one part after
// another.
func (p *pull) each(send func() error) error {
	for {
		if err := send(); err != nil {
			return err
		}
		if p.parts == nil {
			return nil
		}
		p.done += p.sent
		if p.part++; p.part == len(p.parts.Ranges) {
			_, err := p.frame(p.parts.Tail())
			p.parts, p.sent = nil, 0
			return err
		}
		next := p.parts.Ranges[p.part]
		p.off, p.n, p.sent, p.headed = next.First, next.Length, 0, false
	}
}

// frame writes what is no part of the blob.
func (p *pull) frame(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err != nil {
		p.broken = err
	}
	return n, err
}

// lead sends what precedes the bytes of the present part.
func (p *pull) lead() error {
	p.begin()
	if p.parts == nil || p.headed {
		return nil
	}
	p.headed = true
	_, err := p.frame(p.parts.Head(p.part))
	return err
}

// beside answers a request for small parts of a blob that is coming, b, before all
// of it is here. They cannot be verified without the rest, so they are what the
// upstream sends, and nothing that came from anybody else: whoever asks for a part
// gets what it would have got there, and verifies it otherwise. done is false if
// the request is for more, or nothing was handed out because the upstream failed.
func (p *pull) beside(ctx context.Context, b *piece.Blob) (done bool, err error) {
	if p.begun {
		if !p.direct {
			return false, nil
		}
		return true, p.parted(ctx, b)
	}
	all, err := p.ranges()
	if err != nil {
		return true, err
	}
	var total int64
	for _, r := range all {
		total += r.Length
	}
	if len(all) == 0 || total > partMax || p.whole(all) || b.Complete() {
		return false, nil
	}
	// What the download has brought is the upstream's as much as what it sends for a
	// part, if it answers ranges at all. From one that does not, a part costs all of
	// the blob, which can then be verified.
	first := int(all[0].First / piece.Size)
	p.trusts = p.m.o.Fetch.AnswersRanges(ctx, b)
	if !p.trusts && (first == 0 || b.Has(first) || b.Has(first-1)) {
		return false, nil
	}
	p.coming = b
	err = p.parted(ctx, b)
	if err != nil && !p.begun && ctx.Err() == nil {
		p.m.o.Log.Debug("the upstream gives no part of a blob; following its download", "digest", p.want.Digest, "err", err)
		p.direct = false
		return false, nil
	}
	return true, err
}

// parted hands out the parts that were asked for. b is what is here of the blob;
// nil: nothing.
func (p *pull) parted(ctx context.Context, b *piece.Blob) error {
	if !p.begun {
		p.source, p.direct = sourceUpstream, true
		if err := p.slice(true); err != nil {
			return err
		}
	}
	before := p.done + p.sent
	err := p.each(func() error {
		if b != nil {
			return p.partOf(ctx, b)
		}
		return p.m.o.Fetch.Part(ctx, plain{p}, p.want, p.off+p.sent, p.n-p.sent)
	})
	p.from[sourceUpstream] += p.done + p.sent - before
	return err
}

// partOf hands out the present part: what the download has brought from the
// upstream, what it is about to bring, and the rest beside it.
func (p *pull) partOf(ctx context.Context, b *piece.Blob) error {
	var buf []byte
	for p.sent < p.n {
		at := p.off + p.sent
		i := int(at / piece.Size)
		switch {
		case b.Complete():
			_, err := p.m.o.Fetch.Copy(ctx, p, b, at, p.n-p.sent)
			return err
		case p.trusts && fromUpstream(b, i):
			if buf == nil {
				buf = make([]byte, piece.Size)
			}
			n, err := b.ReadPiece(i, buf)
			if err != nil {
				continue // it was found corrupt, and is not here any more
			}
			from := int64(i) * piece.Size
			if _, err := p.Write(buf[at-from : min(int64(n), p.off+p.n-from)]); err != nil {
				return err
			}
		case p.trusts && !b.Has(i) && (i == 0 || b.Has(i-1)) && b.Wait(ctx, i) == nil:
			// It was the next one.
		default:
			to := i + 1
			for to < b.Pieces() && int64(to)*piece.Size < p.off+p.n && !(p.trusts && fromUpstream(b, to)) {
				to++
			}
			if err := p.m.o.Fetch.Part(ctx, plain{p}, p.want, at, min(int64(to)*piece.Size, p.off+p.n)-at); err != nil {
				return err
			}
		}
	}
	return nil
}

// fromUpstream reports whether piece i is here and this process has it from the
// upstream.
func fromUpstream(b *piece.Blob, i int) bool {
	return b.Has(i) && b.Sources(int64(i)*piece.Size, 1)[sourceUpstream] == 1
}

// plain keeps io.Copy from sending the header before there is a byte.
type plain struct{ p *pull }

func (w plain) Write(b []byte) (int, error) { return w.p.Write(b) }

// streamed hands a blob out that is not kept. A part of a large one is asked for as
// a part: for each of those that a lazy snapshotter wants all of it would be read.
// The rest is verified on its way.
func (p *pull) streamed(ctx context.Context) error {
	if p.begun && (p.direct || p.parts != nil) {
		p.direct = true
		return p.parted(ctx, nil)
	}
	if !p.begun {
		all, err := p.ranges()
		if err != nil {
			return err
		}
		if len(all) > 0 && !p.whole(all) {
			if err := p.parted(ctx, nil); err == nil || p.begun || ctx.Err() != nil || refused(err) {
				return err
			}
			p.direct = false // other nodes may have it, which are asked for all of it
		}
	}
	return p.stream(ctx)
}

// verifiedMax is the size of a blob that is read as a whole for any part, in
// bytes: that costs little, and verifies it.
const verifiedMax = 1 << 20

// whole reports whether all of the blob is read for these ranges, so that they can
// be verified.
func (p *pull) whole(all []httpserve.Range) bool {
	last := (p.want.Size - 1) / piece.Size * piece.Size // where the last piece begins
	return p.want.Size <= verifiedMax || len(all) == 1 && all[0].First < piece.Size && all[0].First+all[0].Length > last
}

// refused reports whether the upstream decided, or stated another size.
func refused(err error) bool {
	_, resized := fetch.SizeOf(err)
	var status *ociclient.StatusError
	return resized || errors.As(err, &status) && status.Outcome().Verdict()
}

package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// head is the piece with which a download begins, while it is still coming in:
// on a slow line a whole piece takes long, and whoever waits for the first byte
// need not wait for the 262,144th.
type head struct {
	mu      sync.Mutex
	piece   int    // −1: none is coming in
	p       []byte // what is here of it
	changed chan struct{}
	ranges  bool // the upstream has said that it answers ranges
}

func newHead() *head { return &head{piece: -1, changed: make(chan struct{})} }

// show lets readers see p, the beginning of piece i; its bytes must not change
// until hide returns. A nil head is shown to nobody.
func (h *head) show(i int, p []byte) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.piece, h.p = i, p
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *head) hide() { h.show(-1, nil) }

// answered notes what the upstream's answer says of ranges.
func (h *head) answered(res *ociclient.Response) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ranges = res.Status == http.StatusPartialContent || strings.EqualFold(res.Header.Get("Accept-Ranges"), "bytes")
	close(h.changed)
	h.changed = make(chan struct{})
}

// AnswersRanges reports whether the upstream of b's download has said that it
// answers ranges. It waits until the download has brought something.
func (f *Fetcher) AnswersRanges(ctx context.Context, b *piece.Blob) bool {
	h := f.headOf(b)
	if h == nil {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	some := make(chan struct{})
	go func() {
		defer close(some)
		_ = b.WaitAny(ctx) // whatever it is, there is nothing more to wait for
	}()
	for over := false; ; {
		h.mu.Lock()
		ranges, changed := h.ranges, h.changed
		h.mu.Unlock()
		if ranges || over {
			return ranges
		}
		select {
		case <-changed:
		case <-some:
			over = true
		}
	}
}

// after copies what is here of piece i from byte from on, and tells when there
// will be more.
func (h *head) after(i, from int) (p []byte, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.piece == i && len(h.p) > from {
		p = bytes.Clone(h.p[from:])
	}
	return p, h.changed
}

// Show lets w's readers see p, the beginning of piece i, while the rest of it is
// still coming in: what a Filler from elsewhere may do for the first piece. The
// bytes must not change until Hide. Of two sources of one piece the last to show counts.
func (w Want) Show(i int, p []byte) { w.head.show(i, p) }

// Hide ends what Show began, after the piece was stored or given up.
func (w Want) Hide() { w.head.hide() }

// errChanged says that a piece came in otherwise than it began.
var errChanged = errors.New("a piece that was handed out before it was complete has changed")

// Copy writes n bytes (n < 0: to the end) of b from off on to dst, as they come
// in. It is b's reader, but for the first piece it does not wait for all of it.
// The last piece of these bytes is never handed out before the whole blob is
// verified.
// Where dst can be flushed it is, when nothing more is there for the moment.
func (f *Fetcher) Copy(ctx context.Context, dst io.Writer, b *piece.Blob, off, n int64) (int64, error) {
	shown, err := f.ahead(ctx, dst, b, off, n)
	if err != nil {
		return int64(len(shown)), err
	}
	rc := b.NewReader(ctx, off, n)
	defer func() { _ = rc.Close() }() // it was only read
	if len(shown) > 0 {
		// The piece may have come from elsewhere in the end. The digest vouches
		// for that one only.
		now := make([]byte, len(shown))
		if _, err := io.ReadFull(rc, now); err != nil {
			return int64(len(shown)), err
		}
		if !bytes.Equal(now, shown) {
			return int64(len(shown)), fmt.Errorf("read %s: %w", b.Digest(), errChanged)
		}
	}
	m, err := io.Copy(dst, rc)
	return int64(len(shown)) + m, err
}

// ahead hands out what is coming in of the piece at off until it is complete.
func (f *Fetcher) ahead(ctx context.Context, dst io.Writer, b *piece.Blob, off, n int64) (shown []byte, err error) {
	end := b.Size()
	if n >= 0 {
		end = min(end, off+min(n, end))
	}
	i := int(off / piece.Size)
	h := f.headOf(b)
	if h == nil || end <= int64(i+1)*piece.Size || b.Has(i) {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	whole := make(chan error, 1)
	go func() { whole <- b.Wait(ctx, i) }()
	from := int(off - int64(i)*piece.Size)
	for {
		p, changed := h.after(i, from+len(shown))
		if len(p) > 0 {
			// It may be the beginning of the next download, which is another's.
			if err := b.Barred(); err != nil {
				return shown, err
			}
			m, err := dst.Write(p)
			shown = append(shown, p[:m]...)
			if err != nil {
				return shown, err
			}
			if flusher, ok := dst.(interface{ Flush() }); ok {
				flusher.Flush()
			}
			continue
		}
		select {
		case err := <-whole:
			return shown, err
		case <-changed:
		}
	}
}

func (f *Fetcher) headOf(b *piece.Blob) *head {
	if b.Complete() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.flights[b.Digest()]; ok {
		return fl.head
	}
	return nil
}

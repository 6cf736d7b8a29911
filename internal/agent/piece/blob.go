package piece

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Blob is a handle on a blob. Until it is closed the blob is neither claimed nor
// removed (N2). All methods may be called at once.
type Blob struct {
	s      *Store
	e      *entry
	closed atomic.Bool
	since  int // 1 + the entry's failures when this handle began to attend; 0: it does not
}

// Close lets go of the blob.
func (b *Blob) Close() {
	if !b.closed.Swap(true) {
		b.s.release(b.e)
	}
}

// Digest is what the bytes match, or will.
func (b *Blob) Digest() oci.Digest { return b.e.d }

// Size is the number of bytes of the whole.
func (b *Blob) Size() int64 { return b.e.size }

// MediaType is what the blob was created with.
func (b *Blob) MediaType() string { return b.e.mediaType }

// Private tells that it came from a repository that asked for credentials.
func (b *Blob) Private() bool {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.private
}

// MarkPrivate notes that what comes of it now comes from such a repository.
func (b *Blob) MarkPrivate(ctx context.Context) error {
	// In this order: whoever makes the row meanwhile looks at it afterwards.
	b.e.mu.Lock()
	b.e.private = true
	b.e.mu.Unlock()
	return b.s.index.SetPrivate(ctx, b.e.d)
}

// MarkPrivate notes in memory that a blob is private, wherever it is open or was a
// moment ago. The row is the caller's to change, afterwards.
func (s *Store) MarkPrivate(d oci.Digest) {
	s.mu.Lock()
	e := s.open[d]
	s.mu.Unlock()
	if e == nil {
		return
	}
	e.mu.Lock()
	e.private = true
	e.mu.Unlock()
}

// Urgent says that somebody waits for the blob: what Meta.Spare meant ends.
func (b *Blob) Urgent() {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	b.e.spare = false
}

// Pieces is the number of pieces of the whole.
func (b *Blob) Pieces() int { return b.e.count() }

// PieceLen is the number of bytes in piece i.
func (b *Blob) PieceLen(i int) int { return pieceLen(b.e.size, i) }

// Complete tells that all is here and matched the digest.
func (b *Blob) Complete() bool {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.complete
}

// Has tells that piece i is here. Whether it is right is known when all are.
func (b *Blob) Has(i int) bool {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.pieces.have.has(i)
}

// Bitmap is a copy of which pieces are here: piece i is bit i&7, from the lowest,
// of byte i>>3.
func (b *Blob) Bitmap() []byte {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	if b.e.pieces.have == nil {
		return newBitmap(b.e.count())
	}
	return slices.Clone(b.e.pieces.have)
}

// Missing are the pieces that are not here, in order.
func (b *Blob) Missing() (missing []int) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	for i := range b.e.count() {
		if !b.e.pieces.have.has(i) {
			missing = append(missing, i)
		}
	}
	return missing
}

// Lacks is the number of pieces that are not here.
func (b *Blob) Lacks() int {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.count() - b.e.pieces.n
}

// Supersede ends a blob that is not complete because it has another size: all who
// read or write it get why, and it is gone with its last handle.
func (b *Blob) Supersede(why error) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	if !b.e.complete && b.e.doomed == nil {
		b.e.doomed, b.e.superseded = why, true
		b.e.wake()
	}
}

// Superseded tells that Supersede has ended the blob.
func (b *Blob) Superseded() bool {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.superseded
}

// Sources counts n bytes from off by the source that WritePiece was told of. ""
// stands for pieces that were here before the blob was opened.
func (b *Blob) Sources(off, n int64) map[string]int64 {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	p := provenance{b.e.from, b.e.sources}
	if p.from == nil {
		p = b.e.past
	}
	by := map[string]int64{}
	for end := min(off+n, b.e.size); off < end; {
		i := off / Size
		next := min(end, (i+1)*Size)
		source := ""
		if p.from != nil && p.from[i] > 0 {
			source = p.sources[p.from[i]]
		}
		by[source] += next - off
		off = next
	}
	return by
}

// WritePiece stores the whole of piece i, which came from a source with that
// name. p is not kept. A piece that is here already is left as it is. The writer
// after which all pieces are here gets a *MismatchError if they do not match the
// digest; an error of kind fault.Full means that nothing more of this blob can
// be stored. After nil for the last missing piece it may still be that another
// one was found corrupt, and is Missing.
func (b *Blob) WritePiece(ctx context.Context, i int, p []byte, from string) error {
	return b.WritePieceOf(ctx, b.Round(), i, p, from)
}

// Round counts how often all pieces were thrown away since the whole did not match
// the digest.
func (b *Blob) Round() int {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.resets
}

// WritePieceOf is WritePiece for a piece that was requested in a given round. A piece
// that arrives after that round is not stored, and its writer gets the *MismatchError
// that ended the round: the next round may exclude its sender.
func (b *Blob) WritePieceOf(ctx context.Context, round, i int, p []byte, from string) error {
	if i < 0 || i >= b.e.count() || len(p) != b.PieceLen(i) {
		return fmt.Errorf("write piece %d of %s: %d bytes is not its length", i, b.e.d, len(p))
	}
	if b.closed.Load() {
		return ErrClosed
	}
	return b.s.write(ctx, b.e, round, i, p, from)
}

// Wait waits until piece i is here; for the last one, until the whole is verified.
func (b *Blob) Wait(ctx context.Context, i int) error {
	if i < 0 || i >= b.e.count() {
		return fmt.Errorf("wait for piece %d of %s: it has %d", i, b.e.d, b.e.count())
	}
	return b.e.wait(ctx, i, b.since)
}

// WaitAny waits until one piece is here, or none will come.
func (b *Blob) WaitAny(ctx context.Context) error {
	for {
		b.e.mu.Lock()
		here := b.e.complete || b.e.pieces.n > 0
		failed, ch := errors.Join(b.e.doomed, b.e.failed, b.e.barred(b.since)), b.e.changed
		b.e.mu.Unlock()
		if here || failed != nil {
			return failed
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wait waits for piece i. since is as in Blob.
func (e *entry) wait(ctx context.Context, i, since int) error {
	for {
		e.mu.Lock()
		here := e.complete || i < e.count()-1 && e.pieces.have.has(i)
		doomed, failed, ch := e.doomed, e.failed, e.changed
		barred := e.barred(since)
		e.mu.Unlock()
		switch {
		case barred != nil:
			return barred
		case here:
			return nil
		case doomed != nil:
			return doomed
		case failed != nil:
			return failed
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ReadPiece reads piece i, which must be here, into p and checks it, complete or
// not: for peers, who verify the whole themselves.
func (b *Blob) ReadPiece(i int, p []byte) (int, error) {
	if b.closed.Load() {
		return 0, ErrClosed
	}
	if i < 0 || i >= b.e.count() || len(p) < b.PieceLen(i) {
		return 0, fmt.Errorf("read piece %d of %s: no such piece, or no room for it", i, b.e.d)
	}
	p = p[:b.PieceLen(i)]
	return len(p), b.s.readPiece(b.e, i, p)
}

// Failed tells those who wait for missing pieces that nobody brings them. It
// holds until a piece is written or somebody begins to fill again; for those who
// attend and what is private it holds for good.
func (b *Blob) Failed(err error) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	b.e.failures++
	b.e.failure = err
	if !b.e.complete {
		b.e.failed = err
		b.e.wake()
	}
}

// Attend says that b's user reads on the strength of the download that is under
// way. If that fails, the next one may be another's, and of what is private it
// brings nothing to b and the readers that are made from now on (R12). Without
// Attend they go on with the next one.
func (b *Blob) Attend() {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	b.since = b.e.failures + 1
}

// Barred returns why nothing more of the blob is for b, which attended: what
// became of its download. nil: it may read.
func (b *Blob) Barred() error {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return b.e.barred(b.since)
}

// barred is Barred for a handle with this since. e.mu is held.
func (e *entry) barred(since int) error {
	if since > 0 && e.failures >= since && e.private {
		return e.failure
	}
	return nil
}

var errNobody = errors.New("the download ended before its end")

// Filling makes the caller the one who brings what is missing, until it calls
// release. It is false if somebody is that already, or nothing is missing.
func (b *Blob) Filling() (release func(), ok bool) {
	e := b.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.filling || e.complete || b.closed.Load() {
		return nil, false
	}
	e.filling, e.failed, e.began = true, nil, b.s.now()
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.filling = false
		if !e.complete && e.failed == nil {
			e.failed = errNobody
		}
		e.wake()
	}), true
}

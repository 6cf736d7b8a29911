package piece

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Open gives a handle on a blob, which pins it until it is closed. NotFound if
// nothing of it is here. A claimed blob is won back.
func (s *Store) Open(ctx context.Context, d oci.Digest) (*Blob, error) {
	e, err := s.acquire(ctx, d, func(e *entry) error {
		row, err := s.index.Blob(ctx, d)
		if err != nil {
			return err
		}
		return s.load(ctx, e, row)
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, err)
	}
	s.touch(d)
	return &Blob{s: s, e: e}, nil
}

// Create opens a blob, or admits one of size bytes. ErrNoRoom if room for all of
// it could not be made; Conflict if it is being fetched with another size.
//
// A size is a claim until the bytes have arrived: nothing is written, counted as
// used or evicted for a new blob before its first piece is written, and then
// room is made for what arrives only (N12). A blob of which no piece was written
// is forgotten with its last handle.
func (s *Store) Create(ctx context.Context, d oci.Digest, size int64, meta Meta) (*Blob, error) {
	return s.create(ctx, d, size, meta, s.admit)
}

// create is Create with another way to be admitted.
func (s *Store) create(ctx context.Context, d oci.Digest, size int64, meta Meta, admit admission) (*Blob, error) {
	if _, err := oci.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	switch {
	case size < 0:
		return nil, fmt.Errorf("create %s: its size is not known", d)
	case size > SizeMax:
		s.metrics.refused.Inc()
		return nil, fmt.Errorf("create %s: %d bytes are more than any cached blob may have: %w", d, size, ErrNoRoom)
	}
	for {
		e, err := s.acquire(ctx, d, func(e *entry) error { return s.loadOrAdmit(ctx, e, size, meta, admit) })
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", d, err)
		}
		again, err := s.suits(ctx, e, size)
		if err == nil && !again {
			s.touch(d)
			return &Blob{s: s, e: e}, nil
		}
		e.mu.Lock()
		superseded := e.superseded
		e.mu.Unlock()
		s.release(e)
		if superseded && s.awaitGone(ctx, e) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", d, err)
		}
	}
}

// goneWait is how long Create waits for the handles of a superseded blob, which
// are about to be closed: who has one gets nothing more.
const goneWait = 2 * time.Second

func (s *Store) awaitGone(ctx context.Context, e *entry) bool {
	t := time.NewTimer(goneWait)
	defer t.Stop()
	select {
	case <-e.gone:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// suits tells whether an entry is what Create was asked for. It is to be tried
// again after what was left of another size, which nobody else has open, is gone.
func (s *Store) suits(ctx context.Context, e *entry, size int64) (again bool, err error) {
	s.mu.Lock()
	alone := e.refs == 1
	e.mu.Lock()
	complete := e.complete
	if alone && !complete && e.size != size && e.doomed == nil {
		e.doomed, again = fault.New(fault.Conflict, "%s has another size", e.d), true
	}
	doomed := e.doomed
	e.mu.Unlock()
	s.mu.Unlock()
	switch {
	case again:
		return true, nil
	case complete: // the digest matched, whatever size was believed
		return false, nil
	case doomed != nil:
		if errors.Is(doomed, fault.Full) {
			s.metrics.refused.Inc()
		}
		return false, noRoomFor(doomed)
	case e.size != size:
		return false, fault.New(fault.Conflict, "%s is being fetched with %d bytes, not %d", e.d, e.size, size)
	case e.count() == 0:
		return false, s.advance(ctx, e, -1, nil)
	}
	return false, nil
}

// Put stores small content whole, and verifies it.
func (s *Store) Put(ctx context.Context, d oci.Digest, content []byte, meta Meta) error {
	if d.Algorithm().FromBytes(content) != d {
		return fmt.Errorf("put %s: %w", d, &MismatchError{Digest: d})
	}
	b, err := s.create(ctx, d, int64(len(content)), meta, s.arrived)
	if err != nil {
		return err
	}
	defer b.Close()
	if meta.Private && !b.Private() && !b.Complete() {
		// Somebody began it in the belief that everybody may have it. Whoever waits
		// for that must not get what comes now.
		if !s.alone(b.e) {
			return fault.New(fault.Conflict, "%s is being fetched as public content", d)
		}
		if err := b.MarkPrivate(ctx); err != nil {
			return err
		}
	}
	for _, i := range b.Missing() {
		p := content[i*Size:]
		if err := b.WritePiece(ctx, i, p[:min(len(p), Size)], "put"); err != nil {
			return err
		}
	}
	return nil
}

// alone reports whether the caller has the only handle on an entry.
func (s *Store) alone(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.refs == 1
}

func (s *Store) loadOrAdmit(ctx context.Context, e *entry, size int64, meta Meta, admit admission) error {
	row, err := s.index.Blob(ctx, e.d)
	switch {
	case err == nil && (row.Size == size || row.State != index.Partial):
		err = s.load(ctx, e, row)
		if errors.Is(err, errUnopened) {
			return errors.Join(ErrNoRoom, err)
		}
		if errors.Is(err, ErrMismatch) || !errors.Is(err, fault.NotFound) {
			return noRoomFor(err)
		}
	case err == nil:
		// Nobody has it open, and one of the two who said a size was wrong.
		if err := s.discard(e.d, row.Size); err != nil {
			return noRoomFor(err)
		}
	case !errors.Is(err, fault.NotFound):
		return err
	}
	if err := admit(ctx, e, size, meta.Spare); err != nil {
		return err
	}
	e.size, e.mediaType, e.private, e.spare, e.began = size, meta.MediaType, meta.Private, meta.Spare, s.now()
	e.hash = e.d.Algorithm().Hash()
	if size > 0 {
		return nil
	}
	// An empty blob is all here, so nothing of it will arrive.
	if err := s.grow(ctx, e, 0); err != nil {
		return err
	}
	return s.materialize(ctx, e)
}

// errUnopened says that the files of a blob may be there and cannot be opened or read.
// Nothing is known of them, so they and the row stay.
var errUnopened = errors.New("it may be there all the same")

// load fills an entry with what is on disk, and wins it back from a claim.
// NotFound if its files are not there: then its row goes as well.
func (s *Store) load(ctx context.Context, e *entry, row index.Blob) error {
	row, err := s.winBack(ctx, row)
	if err != nil {
		return err
	}
	f, err := s.openFiles(e.d)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.paired(); err != nil {
			return fault.Wrap(fault.NotFound, err, "the disk of the cache is not there")
		}
		s.corrupt(e.d, pieces(row.Size), "its files are gone")
		if err := s.discard(e.d, row.Size); err != nil {
			return err
		}
		return fault.New(fault.NotFound, "the cache has lost %s", e.d).WithCode(oci.CodeBlobUnknown)
	}
	if err != nil {
		s.log.Error("the files of a cached blob cannot be opened; it is handed out from elsewhere", "digest", e.d, "error", err)
		return fault.Wrap(fault.NotFound, errors.Join(errUnopened, err), "the cache cannot open a blob")
	}
	e.size, e.mediaType, e.private, e.files, e.began, e.made = row.Size, row.MediaType, row.Private, f, s.now(), true
	if err = s.loadPieces(ctx, e, row.State == index.Complete); err != nil {
		return errors.Join(err, f.close())
	}
	return nil
}

// loadPieces finds out what of a blob is here. That of a complete one is taken
// from its sidecar, and each piece checked when it is read; that of a partial
// one is checked now, by checksum and, from its beginning, by digest.
func (s *Store) loadPieces(ctx context.Context, e *entry, complete bool) (err error) {
	e.pieces, err = e.files.readSidecar(e.size)
	e.checked = newBitmap(e.count())
	e.hash = e.d.Algorithm().Hash()
	if err != nil && !errors.Is(err, errSidecar) {
		// What it says is not known, which is no reason to overwrite it.
		s.log.Error("the checksums of a cached blob cannot be read; it is handed out from elsewhere", "digest", e.d, "error", err)
		return fault.Wrap(fault.NotFound, errors.Join(errUnopened, err), "the cache cannot read the checksums of a blob")
	}
	if err != nil {
		s.log.Warn("the checksums of a cached blob are not its own", "digest", e.d, "error", err)
		if err := e.files.reset(e.size); err != nil {
			return full(err)
		}
	}
	if e.pieces.bad > 0 {
		s.corrupt(e.d, e.pieces.bad, "their checksums are damaged")
	}
	st, err := stampOf(e.files.data)
	if err != nil {
		return err
	}
	if st.size != e.size {
		s.corrupt(e.d, 0, fmt.Sprintf("the file has %d bytes instead of %d", st.size, e.size))
		if err := e.files.data.Truncate(e.size); err != nil {
			return full(err)
		}
		complete = false // which pieces are hit is found out by reading them all
	}
	if complete && e.pieces.n == e.count() {
		e.complete, e.verified = true, true
		return nil
	}
	if complete || st.size != e.size {
		if err := s.index.Become(ctx, e.d, index.Partial, 0, ""); err != nil {
			return err
		}
	}
	return s.resume(ctx, e)
}

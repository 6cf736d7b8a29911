package piece

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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

// Create opens a blob, or admits and makes it. ErrNoRoom if it does not fit;
// Conflict if it is being fetched with another size.
func (s *Store) Create(ctx context.Context, d oci.Digest, size int64, meta Meta) (*Blob, error) {
	if _, err := oci.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("create %s: its size is not known", d)
	}
	for {
		e, err := s.acquire(ctx, d, func(e *entry) error { return s.loadOrAdmit(ctx, e, size, meta) })
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", d, err)
		}
		again, err := s.suits(ctx, e, size)
		if err == nil && !again {
			s.touch(d)
			return &Blob{s: s, e: e}, nil
		}
		s.release(e)
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", d, err)
		}
	}
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
	b, err := s.Create(ctx, d, int64(len(content)), meta)
	if err != nil {
		return err
	}
	defer b.Close()
	for _, i := range b.Missing() {
		p := content[i*Size:]
		if err := b.WritePiece(ctx, i, p[:min(len(p), Size)], "put"); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadOrAdmit(ctx context.Context, e *entry, size int64, meta Meta) error {
	row, err := s.index.Blob(ctx, e.d)
	switch {
	case err == nil && (row.Size == size || row.State != index.Partial):
		if err = s.load(ctx, e, row); !errors.Is(err, fault.NotFound) {
			return err
		}
	case err == nil:
		// Nobody has it open, and one of the two who said a size was wrong.
		if err := s.discard(e.d, row.Size); err != nil {
			return err
		}
	case !errors.Is(err, fault.NotFound):
		return err
	}
	if err := s.reserve(ctx, e.d, size, meta.Spare); err != nil {
		return err
	}
	if err := s.make(ctx, e, size, meta); err != nil {
		return errors.Join(noRoomFor(err), s.discard(e.d, size))
	}
	return nil
}

// make writes the row and then the files of a blob that was admitted.
func (s *Store) make(ctx context.Context, e *entry, size int64, meta Meta) error {
	now := s.now()
	_, err := s.index.PutBlob(ctx, index.Blob{Digest: e.d, Size: size, State: index.Partial,
		MediaType: meta.MediaType, Private: meta.Private, CreatedAt: now.UnixMilli(), UsedAt: now.UnixMilli()})
	if err != nil {
		return err
	}
	s.step("row put")
	f, err := s.makeFiles(e.d, size)
	if err != nil {
		return fmt.Errorf("make the files of %s: %w", e.d, full(err))
	}
	e.size, e.mediaType, e.private, e.files, e.began = size, meta.MediaType, meta.Private, f, now
	e.pieces = newSidecar(size)
	e.checked = newBitmap(e.count())
	e.hash = e.d.Algorithm().Hash()
	return nil
}

// reserve takes the space for a blob out of quota and disk, and has room made if
// there is too little. What would not fit into an empty cache is refused at
// once: nothing would be won by emptying it.
func (s *Store) reserve(ctx context.Context, d oci.Digest, size int64, spare bool) error {
	err := s.fit(ctx, cost(size), spare, func() {
		s.totals.Used += cost(size)
		s.totals.Blobs++
		s.pending += size
		s.partial[d] = 0
	})
	if errors.Is(err, fault.Full) {
		s.metrics.refused.Inc()
	}
	return err
}

// Fits is ErrNoRoom unless blobs of these sizes, none of which is here, would all
// be admitted with Meta.Spare, for which cold data makes way. It reserves nothing.
func (s *Store) Fits(ctx context.Context, sizes []int64) error {
	var need int64
	for _, size := range sizes {
		need += cost(size)
	}
	return s.fit(ctx, need, true, func() {})
}

// fit calls take, with s.mu held, when need bytes fit.
func (s *Store) fit(ctx context.Context, need int64, spare bool, take func()) error {
	const tries = 3
	for range tries {
		lack, room, err := s.tryFit(need, spare, take)
		if err != nil || lack == 0 {
			return err
		}
		if room == nil || !room(ctx, lack) {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return ErrNoRoom
}

// tryFit returns how many bytes are lacking, or what room is to be asked for, and
// who may free them.
func (s *Store) tryFit(need int64, spare bool, take func()) (lack int64, room Room, err error) {
	free, total, err := s.fsSpace()
	if err != nil {
		return 0, nil, fmt.Errorf("ask for the free space: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	quota, margin, room := s.limits.Quota, s.limits.MinFree, s.room
	if spare {
		room = s.spare
		if high := s.limits.High; high > 0 { // eviction begins at it, and not above
			quota = int64(high*float64(quota)) - 1
			margin = max(margin, total-int64(high*float64(total))+1)
		}
	}
	if s.limits.Quota > 0 {
		lack = max(lack, s.totals.Used+need-quota)
		if need > quota {
			return need, nil, nil
		}
	}
	lack = max(lack, margin+need-(free-s.pending))
	switch {
	case need+margin > total:
		return need, nil, nil
	case lack <= 0:
		take()
		return 0, nil, nil
	case spare:
		return need, room, nil
	}
	return lack, room, nil
}

// unreserve gives the space of a blob back.
func (s *Store) unreserve(d oci.Digest, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Used -= cost(size)
	s.totals.Blobs--
	s.setPresent(d, size, size)
	delete(s.touched, d)
}

// setPresent notes how many bytes of a blob are here. s.mu is held.
func (s *Store) setPresent(d oci.Digest, size, present int64) {
	if before, ok := s.partial[d]; ok {
		s.pending -= size - before
		delete(s.partial, d)
	}
	if present < size {
		s.partial[d] = present
		s.pending += size - present
	}
}

// unclaimed takes a blob out of what is about to go.
func (s *Store) unclaimed(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Claimed -= cost(size)
}

// load fills an entry with what is on disk, and wins it back from a claim.
// NotFound if its files are not there: then its row goes as well.
func (s *Store) load(ctx context.Context, e *entry, row index.Blob) error {
	row, err := s.winBack(ctx, row)
	if err != nil {
		return err
	}
	f, err := s.openFiles(e.d)
	if errors.Is(err, fs.ErrNotExist) {
		s.corrupt(e.d, pieces(row.Size), "its files are gone")
		if err := s.discard(e.d, row.Size); err != nil {
			return err
		}
		return fault.New(fault.NotFound, "the cache has lost %s", e.d).WithCode(oci.CodeBlobUnknown)
	}
	if err != nil {
		return err
	}
	e.size, e.mediaType, e.private, e.files, e.began = row.Size, row.MediaType, row.Private, f, s.now()
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
	if err != nil {
		s.log.Warn("the checksums of a cached blob cannot be read", "digest", e.d, "error", err)
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

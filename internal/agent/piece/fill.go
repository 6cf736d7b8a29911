package piece

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// write stores piece i if its round is not over. Several writers may be at work; of
// two with the same piece the second waits for the first.
func (s *Store) write(ctx context.Context, e *entry, round, i int, p []byte, from string) error {
	e.mu.Lock()
	for e.writing[i] {
		ch := e.changed
		e.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
		e.mu.Lock()
	}
	doomed := e.doomed
	if doomed != nil || e.complete || e.resets != round || e.pieces.have.has(i) {
		e.mu.Unlock()
		if doomed != nil {
			return doomed
		}
		return e.verdict(ctx, round)
	}
	e.writing[i] = true
	e.mu.Unlock()

	crc := checksum(p)
	err := s.place(ctx, e, i, p, crc)

	e.mu.Lock()
	delete(e.writing, i)
	if err != nil {
		if err = full(err); errors.Is(err, fault.Full) {
			e.doomed = err
		}
		e.wake()
		e.mu.Unlock()
		return fmt.Errorf("write piece %d of %s: %w", i, e.d, err)
	}
	e.pieces.crc[i] = crc
	e.pieces.have.set(i)
	e.pieces.n++
	e.checked.clear(i)
	e.failed = nil
	e.came(i, from)
	e.wake()
	e.mu.Unlock()
	s.account(e, int64(len(p)))

	if err := s.advance(ctx, e, i, p); err != nil {
		return err
	}
	return e.verdict(ctx, round)
}

// place stores the piece where there is room for it, and has the blob exist.
func (s *Store) place(ctx context.Context, e *entry, i int, p []byte, crc uint32) error {
	n := int64(len(p))
	if err := s.grow(ctx, e, n); err != nil {
		return err
	}
	err := s.materialize(ctx, e)
	if err == nil {
		err = s.store(e, i, p, crc)
	}
	if err != nil {
		s.unwritten(e, n)
	}
	return err
}

// store writes the piece, then the record that says so.
func (s *Store) store(e *entry, i int, p []byte, crc uint32) error {
	if _, err := e.files.data.WriteAt(p, int64(i)*Size); err != nil {
		return err
	}
	s.step("piece written")
	if _, err := e.files.side.WriteAt(record(i, crc), recordAt(i)); err != nil {
		return err
	}
	s.step("record written")
	return nil
}

// came notes from where a piece is. e.mu is held.
func (e *entry) came(i int, from string) {
	if e.from == nil {
		e.from = make([]uint16, e.count())
		e.sources = []string{"earlier"} // pieces that were here when this process began
	}
	k := slices.Index(e.sources, from)
	if k < 0 && len(e.sources) < 1<<16 {
		k = len(e.sources)
		e.sources = append(e.sources, from)
	}
	e.from[i] = uint16(max(k, 0))
}

// verdict waits, if all pieces are here, until they are hashed. It returns the
// mismatch that ended the writer's round, if one did.
func (e *entry) verdict(ctx context.Context, round int) error {
	for {
		e.mu.Lock()
		wrong, waiting, ch := e.mismatched, e.hashing && e.pieces.n == e.count(), e.changed
		same := e.resets == round
		e.mu.Unlock()
		if !same {
			return wrong
		}
		if !waiting {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// advance hashes the pieces that follow on those hashed before, as far as they
// are here, unless somebody is at it, who will then see the new one too. p is
// the content of piece i, which need not be read back; i < 0: none.
func (s *Store) advance(ctx context.Context, e *entry, i int, p []byte) error {
	e.mu.Lock()
	if e.hashing {
		e.mu.Unlock()
		return nil
	}
	e.hashing = true
	defer func() {
		e.hashing = false
		e.wake()
		e.mu.Unlock()
	}()
	for {
		epoch, k := e.epoch, e.frontier
		if e.complete || k < e.count() && !e.pieces.have.has(k) {
			return nil
		}
		e.mu.Unlock()
		var err error
		switch {
		case k == e.count():
			err = s.finish(ctx, e, epoch)
		case k == i:
			_, _ = e.hash.Write(p) // a hash never fails
		default:
			s.rehash(e, k)
		}
		e.mu.Lock()
		if e.epoch != epoch {
			e.hash.Reset()
			e.frontier, i = 0, -1
		} else if k < e.count() {
			e.frontier = k + 1
		}
		if err != nil {
			return err
		}
	}
}

// rehash reads a piece back into the hash. One that is not right any more is
// dropped, which raises the epoch.
func (s *Store) rehash(e *entry, k int) {
	buf := s.buffers.Get().(*[Size]byte)
	defer s.buffers.Put(buf)
	p := buf[:pieceLen(e.size, k)]
	if err := s.readPiece(e, k, p); err == nil {
		_, _ = e.hash.Write(p) // a hash never fails
	}
}

// readPiece reads a piece that is here into p, which has its length, and checks
// it. One that is not right is dropped, and the error is ErrCorrupt.
func (s *Store) readPiece(e *entry, i int, p []byte) error {
	e.mu.Lock()
	here := e.pieces.have.has(i)
	var crc uint32
	if here {
		crc = e.pieces.crc[i]
	}
	e.mu.Unlock()
	if !here {
		return fmt.Errorf("read piece %d of %s: %w", i, e.d, ErrCorrupt) // dropped since
	}
	st, stErr := stampOf(e.files.data) // before the bytes, so that a change since shows
	_, err := e.files.data.ReadAt(p, int64(i)*Size)
	if errors.Is(err, io.EOF) && len(p) > 0 || err == nil && checksum(p) != crc {
		err = ErrCorrupt // also where the file has become too short
	}
	if err != nil {
		s.drop(e, i, err)
		return fmt.Errorf("read piece %d of %s: %w", i, e.d, errors.Join(ErrCorrupt, err))
	}
	if stErr == nil {
		e.mu.Lock()
		e.found(i, st)
		e.mu.Unlock()
	}
	return nil
}

// found notes that a piece of a file that was like st before it was read is
// right. While pieces come the file changes all the time, so this counts for
// complete blobs only. e.mu is held.
func (e *entry) found(i int, st stamp) {
	if !e.complete {
		return
	}
	if e.stamp != st {
		e.checked.none()
		e.stamp = st
	}
	e.checked.set(i)
}

// drop makes a piece one that is not here, so that it is fetched again. A
// complete blob becomes a partial one, to be verified anew from its beginning.
// Where one piece is wrong others often are: all of them are looked at before,
// so that what is wrong is fetched again in one go.
func (s *Store) drop(e *entry, i int, why error) {
	if !e.inspect() {
		s.dropAll(e, []int{i}, why) // somebody who looks at all of them may have dropped it by now
		return
	}
	bad := append([]int{i}, s.damaged(e, i)...)
	s.dropAll(e, bad, why)
	e.mu.Lock()
	e.inspecting = false
	e.wake()
	e.mu.Unlock()
}

// inspect makes the caller the one who looks at all pieces of a complete blob.
// False where there is no such blob any more; then whoever was at it has ended.
func (e *entry) inspect() bool {
	e.mu.Lock()
	for e.inspecting {
		ch := e.changed
		e.mu.Unlock()
		<-ch
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	e.inspecting = e.complete
	return e.inspecting
}

// damaged lists the pieces of a complete blob, other than one, that are not what
// they were.
func (s *Store) damaged(e *entry, other int) (bad []int) {
	buf := s.buffers.Get().(*[Size]byte)
	defer s.buffers.Put(buf)
	for i := range e.count() {
		if i == other {
			continue
		}
		p := buf[:pieceLen(e.size, i)]
		st, stErr := stampOf(e.files.data)
		_, err := e.files.data.ReadAt(p, int64(i)*Size)
		e.mu.Lock()
		if here := e.pieces.have.has(i); here && (err != nil || checksum(p) != e.pieces.crc[i]) {
			bad = append(bad, i)
		} else if here && stErr == nil {
			e.found(i, st)
		}
		e.mu.Unlock()
	}
	return bad
}

// dropAll drops pieces that are here and that nobody writes.
func (s *Store) dropAll(e *entry, bad []int, why error) {
	e.mu.Lock()
	bad = slices.DeleteFunc(bad, func(i int) bool { return e.writing[i] || !e.pieces.have.has(i) })
	for _, i := range bad {
		e.writing[i] = true // keeps writers of that piece away
	}
	e.mu.Unlock()
	if len(bad) == 0 {
		return
	}
	s.corrupt(e.d, len(bad), why.Error())
	// If that fails the record stays, and the piece is found wrong again later.
	var recordErr error
	for _, i := range bad {
		_, err := e.files.side.WriteAt(make([]byte, recordLen), recordAt(i))
		recordErr = errors.Join(recordErr, err)
	}

	e.mu.Lock()
	for _, i := range bad {
		delete(e.writing, i)
		e.pieces.have.clear(i)
		e.pieces.n--
		e.checked.clear(i)
	}
	wasComplete := e.complete
	e.complete = false
	e.frontier = 0
	e.epoch++
	if !e.hashing {
		e.hash.Reset()
	}
	if !e.verified {
		// What was handed out of it may have been wrong and will not be seen again.
		e.gen++
		e.wrong = fmt.Errorf("%s: %w", e.d, ErrDoubt)
	}
	e.wake()
	e.mu.Unlock()
	s.account(e, 0)
	var rowErr error
	if wasComplete {
		rowErr = s.index.Become(context.Background(), e.d, index.Partial, 0, "")
	}
	if err := errors.Join(recordErr, rowErr); err != nil {
		s.log.Warn("corrupt pieces could not be noted on disk; they will be found again", "digest", e.d, "pieces", len(bad), "error", err)
	}
}

// corrupt counts and logs pieces that were found wrong.
func (s *Store) corrupt(d oci.Digest, n int, why string) {
	s.metrics.corrupt.Add(float64(n))
	s.log.Warn("data in the cache is corrupt; it will be fetched again", "digest", d, "pieces", n, "error", why)
}

// finish compares the hash of all pieces with the digest. Readers are told
// first; the disk and the row follow.
func (s *Store) finish(ctx context.Context, e *entry, epoch int) error {
	sum := fmt.Sprintf("%x", e.hash.Sum(nil))
	if sum != e.d.Encoded() {
		return s.mismatch(e)
	}
	e.mu.Lock()
	if e.epoch != epoch {
		e.mu.Unlock()
		return nil
	}
	e.complete, e.verified, e.failed = true, true, nil
	took, source := s.now().Sub(e.began).Milliseconds(), e.source()
	e.past = provenance{e.from, e.sources}
	e.from, e.sources = nil, nil
	e.wake()
	e.mu.Unlock()
	s.step("verified")
	s.account(e, 0)
	// A small blob that a power failure takes is found out by its checksum and
	// costs little to get again; waiting for the disk would cost each of them.
	var err error
	if e.size > Size {
		err = e.files.sync()
		s.step("synced")
	}
	if err == nil {
		err = s.index.Become(context.WithoutCancel(ctx), e.d, index.Complete, max(0, took), source)
		s.step("completed")
	}
	if err != nil {
		// It is whole and right, and will be found so again after a restart.
		s.log.Warn("a cached blob could not be noted as complete", "digest", e.d, "error", err)
	}
	return nil
}

// provenance is from where pieces are, each an index of sources.
type provenance struct {
	from    []uint16
	sources []string
}

// source is where most pieces came from. e.mu is held.
func (e *entry) source() string {
	if e.from == nil {
		return ""
	}
	n := make([]int, len(e.sources))
	for _, k := range e.from {
		n[k]++
	}
	best := 0
	for k := range n {
		if n[k] > n[best] {
			best = k
		}
	}
	return e.sources[best]
}

// mismatch throws all pieces away. All of them are here, so no writer is at work.
func (s *Store) mismatch(e *entry) error {
	resetErr := e.files.reset(e.size)
	if resetErr == nil {
		resetErr = errors.Join(e.files.data.Truncate(0), e.files.data.Truncate(e.size))
	}
	e.mu.Lock()
	wrong := &MismatchError{Digest: e.d, From: map[string][]int{}}
	for i, k := range e.from {
		wrong.From[e.sources[k]] = append(wrong.From[e.sources[k]], i)
	}
	e.pieces.have.none()
	e.pieces.n = 0
	e.checked.none()
	e.from, e.sources = nil, nil
	e.epoch++
	e.gen++
	e.resets++
	e.wrong, e.mismatched = wrong, wrong
	if e.count() == 0 {
		e.doomed = wrong // nothing will ever come that could be right
	}
	e.wake()
	e.mu.Unlock()
	s.shrink(e)
	s.log.Warn("a blob does not match its digest; all of it is dropped", "digest", e.d, "sources", slices.Sorted(maps.Keys(wrong.From)), "error", resetErr)
	if e.count() == 0 {
		return wrong
	}
	return errors.Join(wrong, resetErr)
}

// resume checks what an earlier process has left of a partial blob, and hashes
// it from its beginning. Nobody else has the entry yet.
func (s *Store) resume(ctx context.Context, e *entry) error {
	buf := s.buffers.Get().(*[Size]byte)
	defer s.buffers.Put(buf)
	next := 0 // the first piece that is not hashed
	for i := range e.count() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.pieces.have.has(i) {
			continue
		}
		p := buf[:pieceLen(e.size, i)]
		if err := s.readPiece(e, i, p); err == nil && i == next {
			_, _ = e.hash.Write(p) // a hash never fails
			next++
		}
	}
	// Dropping a piece resets hash and frontier, but only one that was not hashed
	// can have been dropped here, unless all have to be hashed again.
	if e.epoch > 0 {
		e.hash.Reset()
		next = 0
	}
	e.frontier = next
	s.account(e, 0)
	var wrong *MismatchError
	if err := s.advance(ctx, e, -1, nil); err != nil && !errors.As(err, &wrong) {
		return err
	}
	return nil
}

package piece

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// The accounts of the cache. All of them are guarded by Store.mu.
//
//	Used      what the blobs take on disk; of a partial blob, what has arrived of it
//	writing   of that, what a writer is about to write
//	promised  what was admitted and has not arrived; it takes no space and evicts
//	          nothing, but two downloads are not admitted to the same room

// held is what a partial blob takes.
type held struct {
	present int64 // bytes of it that are here
	cost    int64 // bytes of disk, a part of Used
}

// growMax bounds for how much room is made at once ahead of what arrives.
const growMax = 32 << 20

// admit promises the room that a blob of size bytes needs, if it is free or could
// be made. Nothing is evicted.
func (s *Store) admit(ctx context.Context, e *entry, size int64, spare bool) error {
	need := cost(size, size)
	err := s.couldFit(ctx, need, spare, func() { e.admitted, e.promise, s.promised = true, need, s.promised+need })
	if errors.Is(err, fault.Full) {
		s.metrics.refused.Inc()
	}
	return err
}

// admission decides whether a new blob may come into the cache.
type admission func(ctx context.Context, e *entry, size int64, spare bool) error

// arrived is the admission of what has arrived already: there is nothing to ask
// before its bytes are written.
func (s *Store) arrived(context.Context, *entry, int64, bool) error { return nil }

// Fits is ErrNoRoom unless blobs of these sizes, none of which is here, could all
// be admitted with Meta.Spare. It evicts nothing and promises nothing.
func (s *Store) Fits(ctx context.Context, sizes []int64) error {
	var need int64
	for _, size := range sizes {
		if size < 0 || size > SizeMax || need > math.MaxInt64/2 {
			return fmt.Errorf("%d bytes: %w", size, ErrNoRoom)
		}
		need += cost(size, size)
	}
	return s.couldFit(ctx, need, true, func() {})
}

// couldFit calls take, with s.mu held, if need bytes fit or room for them could
// be made.
func (s *Store) couldFit(ctx context.Context, need int64, spare bool, take func()) error {
	free, total, err := s.fsSpace()
	if err != nil {
		return fmt.Errorf("ask for the free space: %w", err)
	}
	s.mu.Lock()
	lack, never := s.lack(need, s.promised, spare, free, total)
	room := s.roomFor(spare)
	if lack <= 0 {
		take()
	}
	s.mu.Unlock()
	switch {
	case lack <= 0:
		return nil
	case never || room == nil || !room.Could(ctx, lack):
		return ErrNoRoom
	}
	if err := ctx.Err(); err != nil {
		return err // before anything is taken, since nobody would give it back
	}
	s.mu.Lock()
	take()
	s.mu.Unlock()
	return nil
}

// grow takes the space for n more bytes of a blob, and has room made where there
// is too little.
func (s *Store) grow(ctx context.Context, e *entry, n int64) error {
	const tries = 3
	for try := range tries {
		lack, room, err := s.tryGrow(e, n, try == 0)
		if err != nil || lack <= 0 {
			return err
		}
		if room == nil {
			break
		}
		// The second time for these bytes alone: more was refused.
		if !room.Make(ctx, lack) && try > 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	s.metrics.refused.Inc()
	return ErrNoRoom
}

// tryGrow returns what is lacking, if the n bytes do not fit: with ahead, for so
// many more as have arrived, so that not each piece asks for room of its own.
func (s *Store) tryGrow(e *entry, n int64, ahead bool) (lack int64, room Room, err error) {
	free, total, err := s.fsSpace()
	if err != nil {
		return 0, nil, fmt.Errorf("ask for the free space: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.mu.Lock()
	spare := e.spare
	e.mu.Unlock()
	h := s.partial[e.d]
	need := max(cost(e.size, min(e.size, h.present+e.writes+n))-h.cost, 0)
	lack, never := s.lack(need, 0, spare, free, total)
	switch {
	case lack <= 0:
		h.cost += need
		s.partial[e.d] = h
		s.totals.Used += need
		s.writing += n
		e.writes += n
		s.setPromise(e)
		return 0, nil, nil
	case never:
		return lack, nil, nil
	}
	if more := min(h.present, growMax, e.size-h.present-n); ahead && more > 0 {
		if l, never := s.lack(need+more, 0, spare, free, total); !never {
			lack = l
		}
	}
	return lack, s.roomFor(spare), nil
}

// lack is how many bytes are missing to need, beside what is promised; never says
// that they would be in an empty cache, too. What is spare stays below the high
// watermarks, and its lack is all of need: see SetSpareRoom. s.mu is held.
func (s *Store) lack(need, promised int64, spare bool, free, total int64) (lack int64, never bool) {
	quota, margin := s.limits.Quota, s.limits.MinFree
	if spare {
		if high := s.limits.High; high > 0 { // eviction begins at it, and not above
			quota = int64(high*float64(quota)) - 1
			margin = max(margin, total-int64(high*float64(total))+1)
		}
	}
	if s.limits.Quota > 0 {
		if need > quota {
			return need, true
		}
		lack = max(lack, s.totals.Used+promised+need-quota)
	}
	if need > total-margin {
		return need, true
	}
	lack = max(lack, margin+need-(free-s.writing-promised))
	if spare && lack > 0 {
		lack = need
	}
	return lack, false
}

func (s *Store) roomFor(spare bool) Room {
	if spare {
		return s.spare
	}
	return s.room
}

// setPromise notes what of an admitted blob does not take its space yet. s.mu is
// held.
func (s *Store) setPromise(e *entry) {
	s.promised -= e.promise
	if e.promise = 0; e.admitted {
		e.promise = max(cost(e.size, e.size)-s.takes(e.d, e.size), 0)
	}
	s.promised += e.promise
}

// unwritten ends what grow began, for n bytes that could not be written.
func (s *Store) unwritten(e *entry, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing -= n
	e.writes -= n
}

// materialize makes the row and then the files of a blob, unless they are there.
// One writer does so while the others wait.
func (s *Store) materialize(ctx context.Context, e *entry) error {
	e.mu.Lock()
	for e.making {
		ch := e.changed
		e.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
		e.mu.Lock()
	}
	if e.made || e.doomed != nil {
		defer e.mu.Unlock()
		return e.doomed
	}
	e.making = true
	e.mu.Unlock()

	f, err := s.makeBlob(ctx, e)
	if err == nil {
		s.mu.Lock()
		s.totals.Blobs++
		s.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.making = false
	if err == nil {
		e.made, e.files = true, f
		e.pieces = newSidecar(e.size)
		e.checked = newBitmap(e.count())
	}
	e.wake()
	return err
}

func (s *Store) makeBlob(ctx context.Context, e *entry) (files, error) {
	if err := s.paired(); err != nil {
		return files{}, noRoomFor(err) // it would take another's space, or another's file
	}
	now := s.now().UnixMilli()
	e.mu.Lock()
	private := e.private
	e.mu.Unlock()
	_, err := s.index.PutBlob(ctx, index.Blob{Digest: e.d, Size: e.size, State: index.Partial,
		MediaType: e.mediaType, Private: private, CreatedAt: now, UsedAt: now})
	if err != nil {
		return files{}, noRoomFor(err)
	}
	s.step("row put")
	f, err := s.makeFiles(e.d, e.size)
	if err != nil {
		err = noRoomFor(fmt.Errorf("make the files of %s: %w", e.d, full(err)))
	}
	e.mu.Lock()
	became := e.private && !private // see MarkPrivate
	e.mu.Unlock()
	if err == nil && became {
		err = s.index.SetPrivate(ctx, e.d)
	}
	if err != nil {
		// Without its bytes the row is to go, whether the writer waits for it or not.
		return files{}, errors.Join(err, f.close(), s.index.Forget(context.WithoutCancel(ctx), e.d), s.removeFiles(e.d))
	}
	return f, nil
}

// takes is what a blob takes on disk. s.mu is held.
func (s *Store) takes(d oci.Digest, size int64) int64 {
	if h, ok := s.partial[d]; ok {
		return h.cost
	}
	return cost(size, size)
}

// unreserve gives the space of a blob back that is not on disk any more. s.mu is
// held.
func (s *Store) unreserve(d oci.Digest, size int64) {
	s.totals.Used -= s.takes(d, size)
	s.totals.Blobs--
	delete(s.partial, d)
	delete(s.touched, d)
}

// unmade gives back what was taken for a blob that was not made. s.mu is held.
func (s *Store) unmade(d oci.Digest) {
	s.totals.Used -= s.partial[d].cost
	delete(s.partial, d)
	delete(s.touched, d)
}

// account notes how much of a blob is here, after n bytes of it were written.
func (s *Store) account(e *entry, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing -= n
	e.writes -= n
	e.mu.Lock()
	present, complete := e.pieces.present(e.size), e.complete
	e.mu.Unlock()
	h, ok := s.partial[e.d]
	if !ok {
		h.cost = cost(e.size, e.size) // it was complete
	}
	if complete {
		s.totals.Used += cost(e.size, e.size) - h.cost
		delete(s.partial, e.d)
		s.setPromise(e)
		return
	}
	h.present = present
	s.partial[e.d] = h
}

// shrink notes that all bytes of a blob were thrown away.
func (s *Store) shrink(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := held{cost: cost(e.size, 0)}
	s.totals.Used += now.cost - s.takes(e.d, e.size)
	s.partial[e.d] = now
	s.setPromise(e)
}

// unclaimed takes a blob out of what is about to go.
func (s *Store) unclaimed(d oci.Digest, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Claimed -= s.takes(d, size)
}

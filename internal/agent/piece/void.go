package piece

import (
	"context"
	"errors"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// A claim whose end cannot be written, for the disk is full, is void: it stands in the
// row, and counts for nobody. Its end is written as soon as there is room.

// avoid ends a claim in memory. Nobody else may open, claim or remove the blob
// meanwhile.
func (s *Store) avoid(b index.Blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.void[b.Digest] != b.Version {
		s.void[b.Digest] = b.Version
		s.totals.Claimed -= s.takes(b.Digest, b.Size)
	}
}

func (s *Store) isVoid(d oci.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.void[d]
	return ok
}

// isOver reports that a claim was given up, whatever its row says. One that was made
// since, in memory, has the same version.
func (s *Store) isOver(c Claim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, claimed := s.unnoted[c.Digest]
	return s.void[c.Digest] == c.Version && !claimed
}

// real is a row as it would be without a claim that is void. s.mu is held.
func (s *Store) real(b index.Blob) index.Blob {
	if version, ok := s.void[b.Digest]; ok && b.Version == version {
		b.State = b.Was
	}
	return b
}

// noteVoid writes the end of claims that are void. s.flushMu is held.
func (s *Store) noteVoid(ctx context.Context) error {
	s.mu.Lock()
	all := make([]index.Judged, 0, len(s.void))
	for d, version := range s.void {
		all = append(all, index.Judged{Digest: d, Version: version})
	}
	s.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	if err := s.index.UnclaimThese(ctx, all); err != nil {
		return err
	}
	s.step("claims ended")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range all {
		if s.void[b.Digest] == b.Version {
			delete(s.void, b.Digest)
		}
	}
	return nil
}

// unclaimFull ends a claim that a full disk keeps in its row.
func (s *Store) unclaimFull(ctx context.Context, c Claim) error {
	for {
		e, err := s.seize(c.Digest, false)
		if err == nil {
			defer s.free(e)
			break
		}
		if !errors.Is(err, fault.Conflict) {
			return err
		}
		opened, busy := s.occupied(c.Digest)
		switch {
		case opened:
			return nil // whoever opened it has won it back
		case busy == nil:
			continue
		}
		// Who has its place now may be opening it and fail, or claim it in vain, and
		// would then leave the claim as it is.
		s.step("unclaim waits")
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b, err := s.index.Blob(ctx, c.Digest)
	if errors.Is(err, fault.NotFound) || err == nil && b.Version != c.Version {
		return nil // it does not stand any more
	}
	if err == nil {
		s.avoid(b)
	}
	return err
}

// occupied reports whether a blob that was claimed was opened since, or else what is
// closed when whoever has its place is done; nil: nobody has it.
func (s *Store) occupied(d oci.Digest) (opened bool, busy <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.open[d]
	if e != nil && e.busy != nil {
		return false, e.busy
	}
	_, used := s.touched[d]
	return e != nil || used, nil
}

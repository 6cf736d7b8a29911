package piece

import (
	"context"
	"errors"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// List returns every blob, in order of the digest.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	s.mu.Lock()
	all := make([]Info, 0, s.totals.Blobs)
	s.mu.Unlock()
	err := s.Each(ctx, func(i Info) error { all = append(all, i); return nil })
	return all, err
}

// Each calls fn for every blob, in order of the digest, and holds no list of
// them. fn must not call the store.
func (s *Store) Each(ctx context.Context, fn func(Info) error) error {
	if err := s.flushed(ctx); err != nil {
		return err
	}
	return s.index.Blobs(ctx, func(b index.Blob) error { return fn(s.info(b)) })
}

// Info returns one blob; NotFound if it is not here.
func (s *Store) Info(ctx context.Context, d oci.Digest) (Info, error) {
	if err := s.flushed(ctx); err != nil {
		return Info{}, err
	}
	b, err := s.index.Blob(ctx, d)
	if err != nil {
		return Info{}, err
	}
	return s.info(b), nil
}

func (s *Store) info(b index.Blob) Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{Blob: s.real(b), Present: b.Size}
	i.Cost = s.takes(b.Digest, b.Size)
	if h, ok := s.partial[b.Digest]; ok {
		i.Present = h.present
	}
	if e := s.open[b.Digest]; e != nil {
		i.Readers = e.refs
		e.mu.Lock()
		if e.filling {
			i.Writers = 1
		}
		e.mu.Unlock()
	}
	return i
}

// flushed has the rows say what they can. A full disk must not keep the judge
// from looking at them.
func (s *Store) flushed(ctx context.Context) error {
	if err := s.flush(ctx); err != nil && !errors.Is(err, fault.Full) {
		return err
	}
	return nil
}

package piece

import (
	"context"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/oci"
)

// SetStep has fn called between any two changes of the disk, with the name of
// the place, so that a test can end the process there.
func (s *Store) SetStep(fn func(string)) { s.step = fn }

// UnclaimFull is Unclaim where the disk was full at the first try.
func (s *Store) UnclaimFull(ctx context.Context, c Claim) error { return s.unclaimFull(ctx, c) }

// Real is a row as it would be without a claim that is void.
func (s *Store) Real(b index.Blob) index.Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.real(b)
}

// Path is where the bytes of a blob are.
func (s *Store) Path(d oci.Digest) string { return s.path(d) }

// Cost is what a blob of a size takes on disk.
func Cost(size int64) int64 { return cost(size, size) }

// CostOf is what a blob of a size takes when some bytes of it are here.
func CostOf(size, present int64) int64 { return cost(size, present) }

// Promised is what was admitted and has not arrived, in bytes.
func (s *Store) Promised() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.promised
}

// InMemory is the number of blobs that the store holds state of.
func (s *Store) InMemory() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Pending is what is being written, in bytes.
func (s *Store) Pending() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writing
}

// Sidecar is what a .pieces file says, for the fuzzer.
func Sidecar(b []byte, size int64) (have []byte, crc []uint32, n int, err error) {
	sc, err := parseSidecar(b, size)
	return sc.have, sc.crc, sc.n, err
}

// Header and Record are the parts of a .pieces file.
func Header(size int64) []byte        { return header(size) }
func Record(i int, crc uint32) []byte { return record(i, crc) }

package piece

import (
	"context"
	"errors"
	"io"

	"github.com/fairway-registry/fairway/internal/oci"
)

var errStub = errors.New("not yet")

type Store struct{}

// Open opens the cache and puts in order what the last process left.
func Open(ctx context.Context, o Options) (*Store, error) { return nil, errStub }

// Close flushes what is known of uses. Handles must be closed before.
func (s *Store) Close() error { return errStub }

// SetLimits changes the limits at once.
func (s *Store) SetLimits(l Limits) {}

// Limits returns the limits as they are.
func (s *Store) Limits() Limits { return Limits{} }

// SetRoom says who is asked when an admission does not fit.
func (s *Store) SetRoom(r Room) {}

// Usage tells what the cache takes.
func (s *Store) Usage() (u Usage) { return u }

// Open gives a handle on a blob, which pins it until it is closed. NotFound if nothing of it is here. A claimed blob is won back.
func (s *Store) Open(ctx context.Context, d oci.Digest) (*Blob, error) { return nil, errStub }

// Create opens a blob, or admits and makes it. ErrNoRoom if it does not fit.
func (s *Store) Create(ctx context.Context, d oci.Digest, size int64, meta Meta) (*Blob, error) {
	return nil, errStub
}

// Put stores small content whole, and verifies it.
func (s *Store) Put(ctx context.Context, d oci.Digest, content []byte, meta Meta) error {
	return errStub
}

// List returns every blob, in order of the digest.
func (s *Store) List(ctx context.Context) ([]Info, error) { return nil, errStub }

// Each calls fn for every blob, in order of the digest. It holds no list of them. fn must not call the store.
func (s *Store) Each(ctx context.Context, fn func(Info) error) error { return errStub }

// Info returns one blob; NotFound if it is not here.
func (s *Store) Info(ctx context.Context, d oci.Digest) (Info, error) { return Info{}, errStub }

// Claim begins the removal of a blob. Conflict if it is open, pinned or changed since version.
func (s *Store) Claim(ctx context.Context, d oci.Digest, version int64) (Claim, error) {
	return Claim{}, errStub
}

// Remove removes a claimed blob and returns the bytes of disk freed. Conflict if the claim does not stand.
func (s *Store) Remove(ctx context.Context, c Claim) (freed int64, err error) { return 0, errStub }

// Unclaim gives a claim up. It is no error if the claim does not stand any more.
func (s *Store) Unclaim(ctx context.Context, c Claim) error { return errStub }

// Blob is a handle on a blob.
type Blob struct{}

func (b *Blob) Digest() oci.Digest                 { return "" }
func (b *Blob) Size() int64                        { return 0 }
func (b *Blob) MediaType() string                  { return "" }
func (b *Blob) Private() bool                      { return false }
func (b *Blob) Complete() bool                     { return false }
func (b *Blob) Pieces() int                        { return 0 }
func (b *Blob) PieceLen(i int) int                 { return 0 }
func (b *Blob) Has(i int) bool                     { return false }
func (b *Blob) Bitmap() []byte                     { return nil } // bit i&7 (from the lowest) of byte i>>3 is piece i
func (b *Blob) Missing() []int                     { return nil }
func (b *Blob) Failed(err error)                   {}
func (b *Blob) Close()                             {}
func (b *Blob) Filling() (release func(), ok bool) { return nil, false }

// WritePiece stores a whole piece. p is not kept.
func (b *Blob) WritePiece(ctx context.Context, i int, p []byte, from string) error { return errStub }

// Wait waits until piece i is here (the last one: until the whole is verified).
func (b *Blob) Wait(ctx context.Context, i int) error { return errStub }

// ReadPiece reads piece i, which must be here, into p and checks it; for uploads to peers.
func (b *Blob) ReadPiece(i int, p []byte) (int, error) { return 0, errStub }

// NewReader reads n bytes from off (n < 0: to the end), waiting for what is missing.
func (b *Blob) NewReader(ctx context.Context, off, n int64) io.ReadCloser { return nil }

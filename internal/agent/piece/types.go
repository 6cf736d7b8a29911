package piece

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Size is the number of bytes in a piece; the last one of a blob may be shorter.
const Size = 256 << 10

// SizeMax bounds the size of a cached blob, in bytes. What is larger, or is said
// to be, passes through.
const SizeMax = 1 << 40

// Limits bound the cache. They may change while it runs.
type Limits struct {
	Quota     int64   // bytes that the cache may take on disk; 0: the file system is the limit
	High, Low float64 // fractions at which eviction begins and ends; the judge's, kept here for it
	MinFree   int64   // bytes that stay free on the file system
}

// Options says what to open.
type Options struct {
	Dir     string
	Index   *index.Index
	Owner   string // what opens it, for the message to whoever is refused meanwhile
	Limits  Limits
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
	// Free tells what is free on the file system, and its size, in bytes; nil: statfs.
	Free func() (free, total int64, err error)
	Now  func() time.Time // nil: the index's clock
}

// Meta is what is known of a blob besides its bytes.
type Meta struct {
	MediaType string
	Private   bool // it came from a repository that asked for credentials
	// Spare admits it below the high watermarks only, and has nothing but cold
	// data make way for it: nobody needs it yet.
	Spare bool
}

// Usage is what the cache takes, in bytes.
type Usage struct {
	Used    int64 // on disk; of what is being fetched, what has arrived; Claimed is a part of it
	Claimed int64 // of that: will be gone soon, so it is no excess
	Blobs   int64 // number of blobs
	Quota   int64 // the limit; 0: none but the file system
	FSFree  int64 // free on the file system, less what is just being written
	FSTotal int64
}

// Info is a blob as it stands.
type Info struct {
	index.Blob
	Cost    int64 // bytes of disk that its removal gives back
	Present int64 // bytes of it that are here
	Readers int   // open handles
	Writers int   // 1 while somebody brings what is missing
}

// Claim is the right to remove a blob as long as nobody opens it.
type Claim struct {
	Digest  oci.Digest
	Version int64
}

// ErrNoRoom says that a blob does not fit into the cache; its kind is fault.Full.
var ErrNoRoom error = fault.New(fault.Full, "the node's cache has no room: what it holds is in use, or larger than its quota")

// ErrCorrupt says that a piece is not what it was. It has been dropped, so that
// it can be fetched again.
var ErrCorrupt = errors.New("a piece in the cache is corrupt")

// ErrDoubt says that what a reader was given of a blob that was not verified yet
// may have been wrong: a piece of it is not here any more to tell.
var ErrDoubt = errors.New("what was handed out before it was verified may have been wrong")

// ErrClosed says that the handle or the store is closed.
var ErrClosed = errors.New("the cache is closed")

// MismatchError says that the bytes of a blob are not those of its digest. All
// of them have been dropped.
type MismatchError struct {
	Digest oci.Digest
	From   map[string][]int // source → the pieces that came from it
}

// Error is for logs.
func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: the bytes from %d source(s) do not match the digest", e.Digest, len(e.From))
}

// Room removes what may go when something does not fit.
type Room interface {
	// Could reports whether room for so many more bytes could be made. It removes
	// nothing.
	Could(ctx context.Context, bytes int64) bool
	// Make makes room for so many more bytes. True if trying again makes sense.
	Make(ctx context.Context, bytes int64) bool
}

// Package blob owns the seam to where bytes lie.
//
// A key is used once: the upload session that first writes it is its only
// writer ever, and after a Delete the key is never written again (invariant
// R6). So a delete that arrives late, twice or after a crash can hit nothing
// that is alive, and bytes need no move when an upload is finished: the row in
// the database that points at the key is what makes them a blob.
//
// A key reads blobs/ab/<id>: two lowercase hex digits that spread the objects,
// then letters, digits, "-", "_" and, but not first, ".".
//
// Not found, full and failed are different answers: a missing object is
// ErrNotFound, a store without room is ErrFull, and nothing else is either.
package blob

import (
	"context"
	"errors"
	"io"
)

// ErrNotFound says that there is no object under a key.
var ErrNotFound = errors.New("no such object")

// ErrFull says that the store has no room. It is told apart so that a client
// hears of it in words.
var ErrFull = errors.New("no space left in the blob store")

// Store is where bytes lie. Its conformance suite is blobtest.
type Store interface {
	// Append opens key for writing at offset, creating it if offset is 0. Bytes
	// beyond offset, left by a writer that died, are cut off. If fewer than
	// offset bytes are there, it fails, with ErrNotFound where there is no object.
	// ErrFull where there is no room to write; the cut is made all the same.
	Append(ctx context.Context, key string, offset int64) (Appender, error)
	// Open opens key for reading. Bytes that were never committed may be read,
	// or may not.
	Open(ctx context.Context, key string) (Reader, error)
	// Delete removes key and returns how many bytes that gave back. ErrNotFound
	// where there is nothing (any more). A Reader that is open goes on reading.
	Delete(ctx context.Context, key string) (freed int64, err error)
	// Walk calls fn for each object whose key sorts after the given one, in key
	// order, until fn returns an error, which it passes on. Objects made or
	// deleted meanwhile may be seen or not. fn may call the store.
	Walk(ctx context.Context, after string, fn func(Info) error) error
}

// Info describes an object.
type Info struct {
	Key      string
	Size     int64 // bytes
	Modified int64 // ms since the Unix epoch, by the store's own clock
}

// Appender writes to one object. It is not for concurrent use. After an error
// (ErrFull among others) what was written since the last Commit counts for
// nothing: the writer begins again with Append at the last durable offset.
type Appender interface {
	io.Writer
	// Commit makes all bytes written so far, and the object's name, durable and
	// closes the appender. After an error from Write it fails.
	Commit() error
	// Close closes without a promise. It is harmless after Commit.
	Close() error
}

// Reader reads one object. The file driver's Reader is backed by an *os.File
// that it exposes as File() *os.File, so that net/http can use sendfile.
type Reader interface {
	io.ReadSeekCloser
	Size() int64 // bytes
}

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
// A store has an identity, a mark that lies where the objects lie and that the
// database knows too. Pair uses it: a disk that is not mounted, or another
// registry's storage, is never taken for a storage that has lost its objects
// (invariant R15).
//
// Not found, full, not proven and failed are different answers: a missing object
// is ErrNotFound, a store without room is ErrFull, one without the right mark is
// ErrUnproven, and nothing else is any of these.
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
	// Identity returns the store's mark, and "" where it has none. It is read
	// from the storage each time, from where the objects are. If there is none
	// and give is not "", the store is marked with give first: as a whole and
	// durably. Of several at once, all get the one that won. A mark that cannot be
	// read or understood is an error. The mark is not an object: Walk passes it over.
	Identity(ctx context.Context, give string) (string, error)
}

// ValidIdentity reports whether id can be a mark: 8 to 64 letters, digits and
// hyphens.
func ValidIdentity(id string) bool {
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return len(id) >= 8 && len(id) <= 64
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
	// Announce says that n more bytes are to come. ErrFull where there is no room for
	// them now; otherwise nothing is promised.
	Announce(n int64) error
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

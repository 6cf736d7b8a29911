package upload

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// bufferSize is the unit in which bytes of a large body are read, hashed and
// written, in bytes; buffers is how many of them one body uses. buffersMax bounds
// those of all bodies: a client that stalls holds one for as long as it may.
const (
	bufferSize = 512 << 10
	buffers    = 3
	buffersMax = 128
	// smallSize is what a body is read in first, and goes on in while all large
	// buffers are in use.
	smallSize = 32 << 10
)

// largeBuffers are lent to bodies that bring enough bytes to fill them.
type largeBuffers struct {
	lent chan struct{} // one for each that is lent
	pool sync.Pool     // of *[]byte with bufferSize bytes
}

func newLargeBuffers(n int) *largeBuffers {
	l := &largeBuffers{lent: make(chan struct{}, n)}
	l.pool.New = func() any { b := make([]byte, bufferSize); return &b }
	return l
}

// get returns nil while all buffers are lent.
func (l *largeBuffers) get() *[]byte {
	select {
	case l.lent <- struct{}{}:
		return l.pool.Get().(*[]byte)
	default:
		return nil
	}
}

func (l *largeBuffers) put(b *[]byte) {
	l.pool.Put(b)
	<-l.lent
}

// newHash returns nil for an algorithm that is not supported.
func newHash(algorithm string) hash.Hash {
	switch algorithm {
	case "sha256":
		return sha256.New()
	case "sha512":
		return sha512.New()
	}
	return nil
}

// errBody marks an error of the body as opposed to one of the store: the
// client sent it.
type errBody struct{ err error }

func (e errBody) Error() string { return "read the body: " + e.err.Error() }
func (e errBody) Unwrap() error { return e.err }

// transfer copies body to w and h, at most limit bytes and one more, which
// tells that there are more. It returns the number of bytes that went to both.
//
// What fits into one buffer is hashed and written in turn. A larger body is
// hashed by a goroutine of its own while the next buffer is read and written.
func (s *Sessions) transfer(ctx context.Context, id string, w io.Writer, h hash.Hash, body io.Reader, limit int64) (total int64, err error) {
	if limit >= 0 {
		body = io.LimitReader(body, limit+1)
	}
	size := int64(smallSize)
	if limit >= 0 {
		size = min(size, limit+1)
	}
	small := make([]byte, size)
	alive := s.alive(ctx, id)
	for {
		n, err := fill(body, small)
		if err != nil {
			n, err := both(w, h, small[:n], err)
			return total + n, err
		}
		if first := s.large.get(); first != nil {
			n, err := s.pipeline(w, h, body, first, copy(*first, small[:n]), alive)
			return total + n, err
		}
		if _, err := both(w, h, small[:n], nil); err != nil {
			return total, err
		}
		total += int64(n)
		alive()
	}
}

// alive returns a function that tells the database now and then that the session
// is in use.
func (s *Sessions) alive(ctx context.Context, id string) func() {
	last := time.Now()
	return func() {
		if time.Since(last) <= s.opts.Touch {
			return
		}
		last = time.Now()
		// No reason to break off: a session that is gone shows when the chunk is
		// recorded, and of a client that is gone what has arrived is to be kept.
		_ = s.store.TouchUpload(context.WithoutCancel(ctx), id)
	}
}

// both hashes and writes all of a body, which ended with err.
func both(w io.Writer, h hash.Hash, p []byte, err error) (int64, error) {
	h.Write(p) // a hash never fails
	if _, werr := w.Write(p); werr != nil {
		return 0, werr
	}
	return int64(len(p)), bodyError(err)
}

// pipeline is transfer for a large body, of which have bytes are in first.
func (s *Sessions) pipeline(w io.Writer, h hash.Hash, body io.Reader, first *[]byte, have int, alive func()) (total int64, err error) {
	type filled struct {
		buf *[]byte
		n   int
	}
	toHash := make(chan filled, buffers)
	free := make(chan *[]byte, buffers)
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		for f := range toHash {
			h.Write((*f.buf)[:f.n]) // a hash never fails
			free <- f.buf
		}
	}()
	made := 1
	defer func() {
		close(toHash)
		<-hashed // the hash is complete, and no buffer is in use
		for range len(free) {
			s.large.put(<-free)
		}
	}()

	n, err := fill(body, (*first)[have:])
	buf, n := first, n+have
	for {
		if n > 0 {
			toHash <- filled{buf, n}
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				return total, werr
			}
			total += int64(n)
		} else {
			free <- buf
		}
		if err != nil {
			return total, bodyError(err)
		}
		alive()
		buf = nil
		if made < buffers {
			buf = s.large.get()
		}
		if buf != nil {
			made++
		} else {
			buf = <-free
		}
		n, err = fill(body, *buf)
	}
}

// fill reads until buf is full or body ends. Unlike io.ReadFull it returns the
// body's own error, so that one that broke off is not taken for one that ended.
func fill(body io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = body.Read(buf[n:])
		n += m
	}
	return n, err
}

func bodyError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	return errBody{err}
}

// hasher returns a hash over the first u.Size bytes of the session.
func (s *Sessions) hasher(ctx context.Context, u meta.Upload, algorithm string) (hash.Hash, error) {
	h := newHash(algorithm)
	if h == nil {
		return nil, fmt.Errorf("hash upload %s: unknown algorithm %q", u.ID, algorithm)
	}
	if u.Size == 0 {
		return h, nil
	}
	if algorithm == u.Algorithm && len(u.HashState) > 0 {
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(u.HashState); err == nil {
			return h, nil
		}
		// A state that another version of Go wrote: the bytes tell the same.
		h.Reset()
	}
	r, err := s.blobs.Open(ctx, u.Key)
	if err != nil {
		return nil, fmt.Errorf("hash upload %s again: %w", u.ID, err)
	}
	defer func() { _ = r.Close() }() // nothing was written
	if _, err := io.CopyN(h, r, u.Size); err != nil {
		return nil, fmt.Errorf("hash upload %s again: %w", u.ID, err)
	}
	return h, nil
}

func hashState(h hash.Hash) ([]byte, error) {
	return h.(encoding.BinaryMarshaler).MarshalBinary()
}

// trim gives back what a failed write left beyond the durable bytes.
func (s *Sessions) trim(ctx context.Context, u meta.Upload) error {
	a, err := s.blobs.Append(ctx, u.Key, u.Size)
	if errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.Close()
}

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
	"time"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// bufferSize is the unit in which bytes are read, hashed and written, in
// bytes; buffers is how many of them a large body uses.
const (
	bufferSize = 512 << 10
	buffers    = 3
	// smallSize is up to where a body gets a buffer of its own length: many
	// small uploads at once are to cost no more memory than they bring.
	smallSize = 32 << 10
)

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
// A body that fits into one buffer is hashed and written in turn. A larger one
// is hashed by a goroutine of its own while the next buffer is read and
// written.
func (s *Sessions) transfer(ctx context.Context, id string, w io.Writer, h hash.Hash, body io.Reader, limit int64) (int64, error) {
	if limit >= 0 {
		body = io.LimitReader(body, limit+1)
	}
	if limit >= 0 && limit < smallSize {
		small := make([]byte, limit+1)
		n, err := fill(body, small)
		return both(w, h, small[:n], err)
	}
	first := s.pool.Get().(*[]byte)
	n, err := fill(body, *first)
	if err != nil {
		defer s.pool.Put(first)
		return both(w, h, (*first)[:n], err)
	}
	return s.pipeline(ctx, id, w, h, body, first)
}

// both hashes and writes all of a body, which ended with err.
func both(w io.Writer, h hash.Hash, p []byte, err error) (int64, error) {
	h.Write(p) // a hash never fails
	if _, werr := w.Write(p); werr != nil {
		return 0, werr
	}
	return int64(len(p)), bodyError(err)
}

// pipeline is transfer for a large body, the first buffer of which is full.
func (s *Sessions) pipeline(ctx context.Context, id string, w io.Writer, h hash.Hash, body io.Reader, first *[]byte) (total int64, err error) {
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
			s.pool.Put(<-free)
		}
	}()

	buf, n := first, len(*first)
	lastTouch := time.Now()
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
		if time.Since(lastTouch) > s.opts.Touch {
			lastTouch = time.Now()
			// No reason to break off: a session that is gone shows when the chunk is
			// recorded, and of a client that is gone what has arrived is to be kept.
			_ = s.store.TouchUpload(context.WithoutCancel(ctx), id)
		}
		if made < buffers {
			made++
			buf = s.pool.Get().(*[]byte)
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

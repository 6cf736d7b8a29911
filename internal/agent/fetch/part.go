package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// Part hands out n bytes of a blob from off on as the upstream sends them, and
// goes on where a connection broke. Nothing of it is kept, and nothing but its
// length is checked: without the rest it cannot be compared with the digest.
func (f *Fetcher) Part(ctx context.Context, dst io.Writer, w Want, off, n int64) error {
	if f.o.Origin == nil {
		return fault.New(fault.Busy, "no source is configured for parts of %s", w.Digest)
	}
	for tries := 0; n > 0; {
		sent, err := f.part(ctx, dst, w, off, n)
		off, n = off+sent, n-sent
		if sent > 0 {
			tries = 0
		}
		if err == nil {
			continue
		}
		tries++
		var status *ociclient.StatusError
		_, resized := SizeOf(err)
		var gone *goneError
		if resized || errors.Is(err, errWhole) || errors.As(err, &gone) || errors.As(err, &status) && status.Status < http.StatusInternalServerError || tries >= attemptsMax || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// errWhole says that an upstream answers with all of a blob where a part was asked for.
var errWhole = errors.New("the upstream ignores ranges")

// goneError is an error of whoever is handed the bytes.
type goneError struct{ error }

func (e *goneError) Unwrap() error { return e.error }

func (f *Fetcher) part(ctx context.Context, dst io.Writer, w Want, off, n int64) (sent int64, err error) {
	src, err := f.o.Origin.Range(ctx, w, off, off+n)
	if err != nil {
		return 0, err
	}
	defer func() { _ = src.Close() }() // what was read of it is counted
	if b, ok := src.(*body); ok && !b.partial {
		// To read all of it for a part is what a download does, which verifies it.
		return 0, fault.Wrap(fault.Busy, errWhole, "the upstream gives no parts")
	}
	buf := make([]byte, min(n, chunk))
	for sent < n {
		m, err := src.Read(buf[:min(int64(len(buf)), n-sent)])
		if m > 0 {
			k, failed := dst.Write(buf[:m])
			if sent += int64(k); failed != nil {
				return sent, &goneError{failed}
			}
		}
		if err != nil && sent < n {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return sent, fmt.Errorf("read a part of %s: %w", w.Digest, err)
		}
	}
	return sent, nil
}

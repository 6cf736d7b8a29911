package piece_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// socket counts what comes as a part of a file, which a TCP connection would
// have the kernel send, and what comes as bytes.
type socket struct {
	bytes.Buffer
	files, plain int
}

func (s *socket) Write(p []byte) (int, error) { s.plain += len(p); return s.Buffer.Write(p) }

func (s *socket) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			s.files += int(l.N)
		}
	}
	return s.Buffer.ReadFrom(r)
}

func send(ctx context.Context, b *piece.Blob, off, n int64) (*socket, error) {
	var s socket
	r := b.NewReader(ctx, off, n)
	defer r.Close()
	_, err := io.Copy(&s, r)
	return &s, err
}

// TestN7_OnlyWhatWasCheckedGoesBySendfile: the first time each piece is read and
// checked; after that the kernel sends it, as long as nobody wrote to the file.
func TestN7_OnlyWhatWasCheckedGoesBySendfile(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 3*piece.Size+10)
	put(t, c, all, d)
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	check := func(what string, off, n int64, files int) {
		t.Helper()
		s, err := send(t.Context(), b, off, n)
		if err != nil || !bytes.Equal(s.Bytes(), all[off:off+n]) || s.files != files || s.plain != int(n)-files {
			t.Fatalf("%s: %d bytes by file and %d by hand, want %d by file; %v", what, s.files, s.plain, files, err)
		}
	}
	size := int64(len(all))
	check("a part, first", piece.Size-5, 10, 0)
	check("then all of it", 0, size, 2*piece.Size) // of which those pieces are checked
	check("again", 0, size, len(all))
	check("a part of that", 7, 2*piece.Size, 2*piece.Size)
	if err := os.Chtimes(c.Path(d), time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	check("after somebody touched the file", 0, size, 0)
	check("once more", 0, size, len(all))
	patch(t, c.Path(d), 2*piece.Size, []byte{all[2*piece.Size] ^ 1})
	s, err := send(t.Context(), b, 0, -1)
	if !errors.Is(err, piece.ErrCorrupt) || !bytes.Equal(s.Bytes(), all[:2*piece.Size]) {
		t.Fatalf("after somebody wrote to the file: %d bytes, %v", s.Len(), err)
	}
	write(t, b, all, b.Missing()...)
	check("mended", 0, size, 0)
	check("mended, again", 0, size, len(all))
}

func TestReader_ServesOverHTTP(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 5*piece.Size+10)
	put(t, c, all, d)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := c.Open(r.Context(), d)
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
		rd := b.NewReader(r.Context(), 3, -1)
		defer rd.Close()
		if _, err := io.Copy(w, rd); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	for range 3 {
		res, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil || !bytes.Equal(got, all[3:]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}

package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/oci"
)

// TestN7_APartIsWhatWasAskedFor: nobody verifies a part, so whatever an upstream makes of
// the range, a client gets these bytes of the blob or an error.
func TestN7_APartIsWhatWasAskedFor(t *testing.T) {
	all := content(100_000)
	const first, n = 1000, 50_000
	for name, tt := range map[string]struct {
		from, to, total int64 // what it sends, and says
		says            int64 // where it says that it begins
		none            bool  // no Content-Length
		ok              bool
	}{
		"the range":                            {from: first, to: first + n, total: 100_000, says: first, ok: true},
		"more before":                          {from: 0, to: first + n, total: 100_000, says: 0, ok: true},
		"more behind":                          {from: first, to: 100_000, total: 100_000, says: first, ok: true},
		"more on both sides":                   {from: 10, to: 90_000, total: 100_000, says: 10, ok: true},
		"more on both sides, without a length": {from: 10, to: 90_000, total: 100_000, says: 10, none: true, ok: true},
		"less before":                          {from: first + 1, to: first + n + 1, total: 100_000, says: first + 1},
		"less behind":                          {from: first, to: first + n - 1, total: 100_000, says: first},
		"less behind, without a length":        {from: first, to: first + n - 1, total: 100_000, says: first, none: true},
		"of another blob":                      {from: first, to: first + n, total: 99_999, says: first},
	} {
		t.Run(name, func(t *testing.T) {
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", tt.says, tt.says+tt.to-tt.from-1, tt.total))
				if !tt.none {
					w.Header().Set("Content-Length", fmt.Sprint(tt.to-tt.from))
				}
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(all[tt.from:tt.to])
			}))
			defer up.Close()
			s := open(t, fetch.Options{Origin: upstream(t, up.URL)})
			var got bytes.Buffer
			err := s.Part(t.Context(), &got, want(all), first, n)
			if !bytes.Equal(got.Bytes(), all[first:first+int64(got.Len())]) {
				t.Errorf("%d other bytes", got.Len())
			}
			if (err == nil) != tt.ok || tt.ok && got.Len() != n {
				t.Errorf("%d bytes, %v", got.Len(), err)
			}
		})
	}
}

// TestR16_ClaimedSizesAreBounded: a size that cannot be the blob's is not used.
func TestR16_ClaimedSizesAreBounded(t *testing.T) {
	some, empty := digest.FromString("some"), digest.FromBytes(nil)
	for _, tt := range []struct {
		d         oci.Digest
		size, use int64
	}{{some, 4, 4}, {some, 0, -1}, {empty, 0, 0}, {some, -1, -1}, {some, oci.SizeMax, oci.SizeMax}, {some, oci.SizeMax + 1, -1}} {
		if got := fetch.Claimed(tt.d, tt.size); got != tt.use {
			t.Errorf("%d bytes of %s are used as %d, want %d", tt.size, tt.d, got, tt.use)
		}
	}
}

// TestPart_EndsWhenItsReaderHasGone: nobody is asked again for somebody who is not there.
func TestPart_EndsWhenItsReaderHasGone(t *testing.T) {
	all := content(100_000)
	asked := 0
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Range", "bytes 0-49999/100000")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(all[:50_000])
	}))
	defer up.Close()
	s := open(t, fetch.Options{Origin: upstream(t, up.URL)})
	gone := errors.New("gone")
	if err := s.Part(t.Context(), writer(func([]byte) (int, error) { return 0, gone }), want(all), 0, 50_000); err == nil || !strings.Contains(err.Error(), "gone") || asked != 1 {
		t.Errorf("%v, after %d questions", err, asked)
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestPart_TriesAreBounded: of an upstream that breaks off before each byte, refuses, or
// gives the whole for a part.
func TestPart_TriesAreBounded(t *testing.T) {
	all := content(100_000)
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		most   int
	}{
		"breaks off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 3},
		"refuses":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, 1},
		"fails":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, 3},
		"gives the whole": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(all)
		}, 1},
		"says another size": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Range", "bytes 0-49999/99999")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(all[:50_000])
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				tt.answer(w, r)
			}))
			defer up.Close()
			s := open(t, fetch.Options{Origin: upstream(t, up.URL)})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := s.Part(ctx, io.Discard, want(all), 0, 50_000); err == nil || ctx.Err() != nil || asked > 3*tt.most {
				t.Errorf("%v, after %d questions", err, asked)
			}
			if tt.most == 1 && asked != 1 {
				t.Errorf("it was asked %d times", asked)
			}
		})
	}
}

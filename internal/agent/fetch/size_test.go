package fetch_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
)

// TestR16_ARangeBeyondTheEndSaysHowLargeTheBlobIs: that is how a node learns it
// that was leased pieces which do not exist.
func TestR16_ARangeBeyondTheEndSaysHowLargeTheBlobIs(t *testing.T) {
	all := content(4_000_000)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	defer up.Close()
	w := want(all)
	w.Size = 11 << 20
	for _, from := range []int64{0, 1 << 20, 8 << 20} {
		_, err := upstream(t, up.URL).Range(t.Context(), w, from, from+1<<20)
		if size, ok := fetch.SizeOf(err); !ok || size != 4_000_000 || !errors.Is(err, fetch.ErrWrongLength) {
			t.Errorf("from %d: %v", from, err)
		}
	}
}

// TestR16_AnotherUpstreamDoesNotEndADownload that is under way with its own size.
func TestR16_AnotherUpstreamDoesNotEndADownload(t *testing.T) {
	all := content(300)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	defer up.Close()
	filler, _ := blocked()
	s := open(t, fetch.Options{Fillers: []fetch.Filler{filler}, Origin: upstream(t, up.URL)})
	w := want(all)
	w.Size = 301
	b, err := s.Get(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	eventually(t, "the download is under way", func() bool { return s.Source(w) != "" })
	if _, err := s.Get(t.Context(), want(all)); !errors.Is(err, fetch.ErrWrongLength) || b.Superseded() {
		t.Errorf("%v, superseded %v", err, b.Superseded())
	}
}

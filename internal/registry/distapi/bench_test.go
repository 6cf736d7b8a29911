package distapi_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"testing"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/registry/distapi"
)

// discard is a ResponseWriter that costs nothing but its header.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkHandler is what a registry adds to a bare net/http handler on its
// hottest paths: all from the wrapped handler down, with a warm cache.
func BenchmarkHandler(b *testing.B) {
	s := serve(b)
	i := s.pushImage("library/busybox", "latest", "bench", "")
	o := httpserve.NewObserver(httpserve.ObserverOptions{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	h := o.Wrap(distapi.New(s.store, s.files, s.uploads, distapi.Options{Observer: o}))
	for name, r := range map[string]struct{ method, path string }{
		"GET manifest by tag":     {"GET", "/v2/library/busybox/manifests/latest"},
		"HEAD manifest by digest": {"HEAD", "/v2/library/busybox/manifests/" + string(i.digest)},
		"HEAD blob":               {"HEAD", "/v2/library/busybox/blobs/" + string(i.layer)},
		"GET tags":                {"GET", "/v2/library/busybox/tags/list"},
	} {
		b.Run(name, func(b *testing.B) {
			req := (&http.Request{Method: r.method, URL: &url.URL{Path: r.path}, Header: http.Header{}}).WithContext(context.Background())
			w := &discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				h.ServeHTTP(w, req)
			}
		})
	}
}

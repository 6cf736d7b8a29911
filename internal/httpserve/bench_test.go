package httpserve

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// discard is a ResponseWriter that costs nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkObserver is what observation adds to a request.
func BenchmarkObserver(b *testing.B) {
	o := NewObserver(ObserverOptions{Log: quiet(), Metrics: prometheus.NewRegistry()})
	route := o.Route("v2_manifest")
	h := o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		Mark(w, route)
		w.WriteHeader(http.StatusOK)
	}))
	r := &http.Request{Method: "GET", URL: &url.URL{Path: "/v2/a/manifests/v1"}, Header: http.Header{}}
	w := &discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}

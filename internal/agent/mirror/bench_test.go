package mirror_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// fetchURL reads an answer to its end and says when its first byte came.
func fetchURL(b *testing.B, url string, want int) (first time.Duration) {
	b.Helper()
	began := time.Now()
	res, err := http.Get(url) //nolint:noctx // ends with the server
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var one [1]byte
	if _, err := io.ReadFull(res.Body, one[:]); err != nil {
		b.Fatal(err)
	}
	first = time.Since(began)
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil || int(n)+1 != want {
		b.Fatalf("%s: %d bytes, %v; want %d", url, n+1, err, want)
	}
	return first
}

// BenchmarkWarmPull compares a layer out of the cache with the same bytes out of
// net/http's file server, which sends a file as fast as Go can.
func BenchmarkWarmPull(b *testing.B) {
	const size = 64 << 20
	u := newUpstream(b)
	i := u.push("app", "v1", "a", size)
	n := start(b, nodeOptions{upstreams: []*upstream{u}})
	if a := n.get("/v2/app/manifests/v1"); a.status != 200 {
		b.Fatal(a.status)
	}
	fetchURL(b, n.http.URL+layerPath(i), size)
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "layer"), i.bytes[0], 0o600); err != nil {
		b.Fatal(err)
	}
	static := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer static.Close()
	for _, tc := range [][2]string{{"file server", static.URL + "/layer"}, {"mirror", n.http.URL + layerPath(i)}} {
		b.Run(tc[0], func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				fetchURL(b, tc[1], size)
			}
		})
	}
}

// BenchmarkColdFirstByte is how long the first byte of a layer takes that the
// node does not have, beside the same from the upstream itself: ms/direct and
// ms/node. The upstream sends at the rate of a network.
func BenchmarkColdFirstByte(b *testing.B) {
	const size = 4 * piece.Size
	for _, mbit := range []int{100, 1000, 0} {
		b.Run(fmt.Sprintf("%d Mbit/s", mbit), func(b *testing.B) {
			u := newUpstream(b)
			n := start(b, nodeOptions{upstreams: []*upstream{u}})
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) || mbit == 0 {
					return false
				}
				d := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
				slowly(w, u.repo("app").find(u, d), mbit)
				return true
			})
			var direct, node time.Duration
			k := 0
			for b.Loop() {
				b.StopTimer()
				k++
				i := u.push("app", "v"+strconv.Itoa(k), strconv.Itoa(k), size)
				if a := n.get("/v2/app/manifests/v" + strconv.Itoa(k)); a.status != 200 {
					b.Fatal(a.status)
				}
				direct += fetchURL(b, u.URL+layerPath(i), size)
				b.StartTimer()
				node += fetchURL(b, n.http.URL+layerPath(i), size)
			}
			b.ReportMetric(float64(direct.Microseconds())/1000/float64(k), "ms/direct")
			b.ReportMetric(float64(node.Microseconds())/1000/float64(k), "ms/node")
		})
	}
}

func (r *repo) find(u *upstream, d string) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, b := range r.blobs {
		if string(key) == d {
			return b
		}
	}
	return nil
}

// slowly writes p at mbit megabits a second.
func slowly(w http.ResponseWriter, p []byte, mbit int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(p)))
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for at := 0; at < len(p); {
		due := int(time.Since(began).Microseconds()+1) * mbit / 8
		if end := min(due, len(p)); end > at {
			_, _ = w.Write(p[at:end])
			_ = http.NewResponseController(w).Flush()
			at = end
		}
		timer.Reset(200 * time.Microsecond)
		<-timer.C
	}
}

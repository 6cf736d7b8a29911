package meta_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// BenchmarkTag puts 5,000 tags on one manifest by 16 clients. It reports tags a
// second, and how many times as long the last thousand takes as the first.
func BenchmarkTag(b *testing.B) {
	for b.Loop() {
		var commits atomic.Int64
		s, err := meta.Open(b.Context(), meta.Options{Path: b.TempDir() + "/fairway.db", Trace: func(query string, _ []any) {
			if query == "COMMIT" {
				commits.Add(1)
			}
		}})
		if err != nil {
			b.Fatal(err)
		}
		raw := indexOf("x")
		m, err := oci.ParseManifest("", raw)
		if err != nil {
			b.Fatal(err)
		}
		const n, clients = 5000, 16
		var next atomic.Int64
		var times [n]time.Time
		began := time.Now()
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
					if _, err := s.PutManifest(b.Context(), meta.Push{Repo: "a", Tags: []oci.Tag{oci.Tag(fmt.Sprint("t", i))}, Digest: digest.FromBytes(raw), Manifest: m, Content: raw}); err != nil {
						b.Error(err)
					}
					times[i] = time.Now()
				}
			})
		}
		wg.Wait()
		b.ReportMetric(n/time.Since(began).Seconds(), "tags/s")
		b.ReportMetric(n/float64(commits.Load()), "tags/commit")
		b.ReportMetric(float64(times[n-1].Sub(times[n-1000]))/float64(times[999].Sub(times[0])), "last/first")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

package meta_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// cpu is what the process has used so far, user and system.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// holds measures how long each transaction holds the single writer, without the
// wait for the disk at its commit. It counts CPU time, of a process that does nothing
// else meanwhile, since on a busy machine the time of day says little.
type holds struct {
	mu    sync.Mutex
	began time.Duration
	most  time.Duration
	n     int
}

func (h *holds) trace(query string, _ []any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch query {
	case "BEGIN IMMEDIATE":
		h.began = cpu()
	case "COMMIT":
		h.most = max(h.most, cpu()-h.began)
		h.n++
	}
}

func (h *holds) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.most, h.n = 0, 0
}

// BenchmarkHold reports the longest transaction, in ms, of each change of an index
// with 10,000 children, of an image with 10,000 layers, and of a subject with 16,000 referrers.
func BenchmarkHold(b *testing.B) {
	for b.Loop() {
		var h holds
		s, err := meta.Open(b.Context(), meta.Options{Path: b.TempDir() + "/fairway.db", Trace: h.trace})
		if err != nil {
			b.Fatal(err)
		}
		must := func(err error) {
			b.Helper()
			if err != nil {
				b.Fatal(err)
			}
		}
		put := func(raw []byte, tags ...oci.Tag) oci.Digest {
			b.Helper()
			m, err := oci.ParseManifest("", raw)
			must(err)
			_, err = s.PutManifest(b.Context(), meta.Push{Repo: "a", Tags: tags, Digest: digest.FromBytes(raw), Manifest: m, Content: raw})
			must(err)
			return digest.FromBytes(raw)
		}
		putAll := func(raws [][]byte) {
			var wg sync.WaitGroup
			for i := range 32 {
				wg.Go(func() {
					for j := i; j < len(raws); j += 32 {
						put(raws[j])
					}
				})
			}
			wg.Wait()
		}
		upload := func(content string) {
			u, err := s.CreateUpload(b.Context(), "a", "sha256")
			must(err)
			_, err = s.FinishUpload(b.Context(), u, digest.FromString(content), int64(len(content)))
			must(err)
		}
		measure := func(what string, fn func()) {
			h.reset()
			began := time.Now()
			fn()
			b.ReportMetric(float64(h.most.Microseconds())/1000, what+"-ms")
			b.Logf("%s: longest transaction %v, %d transactions, took %v", what, h.most, h.n, time.Since(began))
		}
		upload("{}")
		const n = 10_000
		var children [][]byte
		for i := range n {
			children = append(children, image(fmt.Sprint("child", i)))
		}
		putAll(children)
		raw := indexOf("i", children...)
		d := digest.FromBytes(raw)
		measure("put-index", func() { put(raw, "v1") })
		measure("put-again", func() { put(raw, "v2") })
		measure("delete-index", func() { must(s.DeleteManifest(b.Context(), "a", d, "x")) })
		for _, c := range children {
			must(s.DeleteManifest(b.Context(), "a", digest.FromBytes(c), "x"))
		}
		measure("restore-index", func() {
			_, err := s.Restore(b.Context(), "a", d, "x")
			must(err)
		})
		var layers []string
		var wg sync.WaitGroup
		for i := range n {
			layers = append(layers, fmt.Sprint("layer", i))
		}
		for i := range 32 {
			wg.Go(func() {
				for j := i; j < n; j += 32 {
					upload(layers[j])
				}
			})
		}
		wg.Wait()
		many := image("many", layers...)
		measure("put-image", func() { put(many, "m") })
		measure("delete-image", func() { must(s.DeleteManifest(b.Context(), "a", digest.FromBytes(many), "x")) })
		measure("restore-image", func() {
			_, err := s.Restore(b.Context(), "a", digest.FromBytes(many), "x")
			must(err)
		})
		must(s.DeleteManifest(b.Context(), "a", digest.FromBytes(many), "x"))
		measure("put-deleted-image", func() { put(many, "m") })
		subject := image("subject")
		put(subject)
		var subs [][]byte
		for i := range 16_000 {
			subs = append(subs, sub(digest.FromBytes(subject), fmt.Sprint(i)))
		}
		putAll(subs)
		measure("delete-subject", func() { must(s.DeleteManifest(b.Context(), "a", digest.FromBytes(subject), "x")) })
		must(s.Close())
	}
}

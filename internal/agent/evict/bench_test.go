package evict

import (
	"fmt"
	"runtime/debug"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// BenchmarkPlan100000 is a whole judgement of a large cache: the runtimes asked,
// 100,000 rows read, 300 images and 100 containers traced to their content.
func BenchmarkPlan100000(b *testing.B) {
	h := open(b, choice{limits: piece.Limits{Quota: 1 << 40}})
	const images, each = 16_700, 4
	for n := range images {
		m := blobName(n)
		edges := []index.Edge{{Parent: m, Child: blobName(1_000_000 + n), Role: index.RoleConfig}}
		for l := range each {
			edges = append(edges, index.Edge{Parent: m, Child: blobName(2_000_000 + n*each + l), Role: index.RoleLayer})
		}
		if err := h.index.PutEdges(b.Context(), m, edges); err != nil {
			b.Fatal(err)
		}
		h.row(m)
		for _, e := range edges {
			h.row(e.Child)
		}
	}
	h.later(3 * time.Hour)
	for n := range 300 {
		i := image{name: fmt.Sprint("image-", n), manifest: blobName(n)}
		h.runtime.SetImage(inuse.Image{Runtime: "containerd", Name: i.name, Digests: []oci.Digest{i.manifest}})
		if n < 100 {
			h.run(i, fmt.Sprint("container-", n), inuse.Running)
		}
	}
	debug.FreeOSMemory()
	b.ReportAllocs()
	for b.Loop() {
		if p, err := h.Plan(b.Context()); err != nil || len(p.Verdicts) < 100_000 || p.Tiers[Active].Blobs != 100*(each+2) || p.Tiers[Warm].Blobs != 200*(each+2) {
			b.Fatalf("%d verdicts, %+v, %v", len(p.Verdicts), p.Tiers, err)
		}
	}
}

func (h *house) row(d oci.Digest) {
	if _, err := h.index.PutBlob(h.t.Context(), index.Blob{Digest: d, Size: 1000, State: index.Complete}); err != nil {
		h.t.Fatal(err)
	}
}

// BenchmarkEvict10000 is the eviction of 10,000 small blobs with their files.
func BenchmarkEvict10000(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		h := open(b, choice{limits: piece.Limits{Quota: 1 << 40}})
		for n := range 10_000 {
			h.put(fmt.Append(nil, n), "")
		}
		h.later(3 * time.Hour)
		h.store.SetLimits(piece.Limits{Quota: 1, High: 0.9, Low: 0.8})
		b.StartTimer()
		if r, err := h.Pass(b.Context()); err != nil || r.Evicted != 10_000 {
			b.Fatalf("%+v, %v", r, err)
		}
	}
}

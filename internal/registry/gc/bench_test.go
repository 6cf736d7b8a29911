package gc_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// BenchmarkCollect collects 1,000 deleted images of a config, a layer of their
// own and a shared one, among b.N times as many that stay. It reports items
// (manifests, blobs) a second.
func BenchmarkCollect(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		files, err := fsblob.Open(dir, fsblob.Options{Reserve: 1 << 16, MinFree: 1})
		if err != nil {
			b.Fatal(err)
		}
		store, err := meta.Open(b.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db")})
		if err != nil {
			b.Fatal(err)
		}
		c := gc.New(store, files, gc.Options{})
		push := func(content string) {
			u, err := store.CreateUpload(b.Context(), "a", "sha256")
			if err != nil {
				b.Fatal(err)
			}
			w, err := files.Append(b.Context(), u.Key, 0)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write([]byte(content)); err != nil {
				b.Fatal(err)
			}
			if err := w.Commit(); err != nil {
				b.Fatal(err)
			}
			if _, err := store.FinishUpload(b.Context(), u, digest.FromString(content), int64(len(content))); err != nil {
				b.Fatal(err)
			}
		}
		push("{}")
		push("base")
		for i := range 1000 {
			layer := fmt.Sprintf("layer %d", i)
			push(layer)
			raw := manifest("", "base", layer)
			m, err := oci.ParseManifest("", raw)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := store.PutManifest(b.Context(), meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: m, Content: raw}); err != nil {
				b.Fatal(err)
			}
			if err := store.DeleteManifest(b.Context(), "a", digest.FromBytes(raw), "bench"); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		run, err := c.Start(b.Context(), meta.Policy{}, gc.TriggerManual, "bench")
		if err != nil {
			b.Fatal(err)
		}
		if run, err = c.Wait(b.Context(), run.ID); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(run.Collected)/run.FinishedAt.Sub(run.StartedAt).Seconds(), "items/s")
		b.ReportMetric(float64(run.Examined)/run.FinishedAt.Sub(run.StartedAt).Seconds(), "judged/s")
		b.StopTimer()
		c.Close()
		if err := store.Close(); err != nil {
			b.Fatal(err)
		}
		if err := files.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

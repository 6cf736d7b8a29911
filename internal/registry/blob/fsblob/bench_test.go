package fsblob_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
)

const (
	layer = 1 << 30
	chunk = 512 << 10
)

// BenchmarkAppendLayer is a layer of 1 GiB, durable. It also reports the time
// of a plain write and fsync of the same bytes, in turns with it, over its own
// time, the best of each: 1 is no overhead, more is what early writeback saves.
func BenchmarkAppendLayer(b *testing.B) {
	dir := b.TempDir()
	s := open(b, dir, fsblob.Options{})
	part := blobtest.Bytes(1, chunk)
	plain, own := time.Hour, time.Hour
	for b.Loop() {
		start := time.Now()
		writePlain(b, filepath.Join(dir, "plain"), part)
		plain = min(plain, time.Since(start))
		start = time.Now()
		appendLayer(b, s, part)
		own = min(own, time.Since(start))
		for _, path := range []string{"plain", blobtest.Key(1)} {
			if err := os.Remove(filepath.Join(dir, path)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(plain)/float64(own), "plain/own")
	b.ReportMetric(layer/(1<<20)/own.Seconds(), "MiB/s")
}

func appendLayer(b *testing.B, s *fsblob.Store, part []byte) {
	a, err := s.Append(b.Context(), blobtest.Key(1), 0)
	if err != nil {
		b.Fatal(err)
	}
	for range layer / chunk {
		if _, err := a.Write(part); err != nil {
			b.Fatal(err)
		}
	}
	if err := a.Commit(); err != nil {
		b.Fatal(err)
	}
}

func writePlain(b *testing.B, path string, part []byte) {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	for range layer / chunk {
		if _, err := f.Write(part); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCommitSmall is 16 writers of objects of 4 KiB, each durable.
func BenchmarkCommitSmall(b *testing.B) {
	s := open(b, b.TempDir(), fsblob.Options{})
	part := blobtest.Bytes(1, 4<<10)
	var n atomic.Int64
	b.SetParallelism(8) // times GOMAXPROCS
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := blobtest.Append(s, blobtest.Key(int(n.Add(1))), 0, part); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkPlainSmall is the same by nothing but create, write and fsync.
func BenchmarkPlainSmall(b *testing.B) {
	dir := b.TempDir()
	part := blobtest.Bytes(1, 4<<10)
	var n atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			f, err := os.Create(filepath.Join(dir, filepath.Base(blobtest.Key(int(n.Add(1))))))
			if err == nil {
				_, err = f.Write(part)
			}
			if err == nil {
				err = f.Sync()
			}
			if err == nil {
				err = f.Close()
			}
			if err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkOpen is what a blob GET pays before the first byte.
func BenchmarkOpen(b *testing.B) {
	s := open(b, b.TempDir(), fsblob.Options{})
	blobtest.Put(b, s, blobtest.Key(1), []byte("x"))
	for b.Loop() {
		r, err := s.Open(b.Context(), blobtest.Key(1))
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

package piece_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// many makes an index of n blobs, without files: what is measured is not theirs.
func many(b testing.TB, c *cache, n int) {
	b.Helper()
	for i := range n {
		d := digest.FromString(fmt.Sprint(i))
		if _, err := c.index.PutBlob(context.Background(), index.Blob{Digest: d, Size: int64(i), State: index.Complete,
			MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Source: "upstream"}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList100k(b *testing.B) {
	c := open(b, piece.Options{})
	many(b, c, 100_000)
	for b.Loop() {
		n := 0
		if err := c.Each(context.Background(), func(piece.Info) error { n++; return nil }); err != nil || n != 100_000 {
			b.Fatal(n, err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	all, err := c.List(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-held/list")
	runtime.KeepAlive(all)
}

// BenchmarkOpen100k starts on a cache of so many blobs, files and all.
func BenchmarkOpen100k(b *testing.B) {
	dir := b.TempDir()
	c := openAt(b, dir, piece.Options{})
	many(b, c, 100_000)
	var ds []oci.Digest
	if err := c.Each(context.Background(), func(i piece.Info) error { ds = append(ds, i.Digest); return nil }); err != nil {
		b.Fatal(err)
	}
	for _, d := range ds {
		path := c.Path(d)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600), os.WriteFile(path+".pieces", nil, 0o600)); err != nil {
			b.Fatal(err)
		}
	}
	c.close(b)
	for b.Loop() {
		c := openAt(b, dir, piece.Options{})
		if c.Usage().Blobs != 100_000 {
			b.Fatal(c.Usage())
		}
		c.close(b)
	}
}

const benchSize = 64 * mib

func BenchmarkFill(b *testing.B) {
	all, d := content(1, benchSize)
	b.Run("cache", func(b *testing.B) {
		c := open(b, piece.Options{})
		b.SetBytes(benchSize)
		for b.Loop() {
			h := create(b, c, d, len(all))
			for i := range h.Pieces() {
				write(b, h, all, i)
			}
			h.Close()
			if _, err := c.Remove(context.Background(), claim(b, c, d)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("hash and write", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "f")
		b.SetBytes(benchSize)
		for b.Loop() {
			f, err := os.Create(path)
			if err != nil {
				b.Fatal(err)
			}
			h := sha256.New()
			for off := 0; off < len(all); off += piece.Size {
				_, _ = h.Write(all[off : off+piece.Size])
				if _, err := f.Write(all[off : off+piece.Size]); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(f.Sync(), f.Close(), os.Remove(path)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// sink is a TCP connection whose other end throws away what comes.
func sink(b *testing.B) *net.TCPConn {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 1<<20)
		for err == nil {
			_, err = conn.Read(buf)
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

func BenchmarkServeWarm(b *testing.B) {
	all, d := content(1, benchSize)
	c := open(b, piece.Options{})
	put(b, c, all, d)
	serve := func(b *testing.B, w io.Writer) {
		b.SetBytes(benchSize)
		for b.Loop() {
			h, err := c.Open(context.Background(), d)
			if err != nil {
				b.Fatal(err)
			}
			r := h.NewReader(context.Background(), 0, -1)
			if n, err := io.Copy(w, r); err != nil || n != benchSize {
				b.Fatal(n, err)
			}
			_ = r.Close()
			h.Close()
		}
	}
	b.Run("sendfile", func(b *testing.B) { serve(b, sink(b)) })
	b.Run("checked", func(b *testing.B) { serve(b, struct{ io.Writer }{sink(b)}) })
	b.Run("plain file", func(b *testing.B) {
		conn := sink(b)
		b.SetBytes(benchSize)
		for b.Loop() {
			f, err := os.Open(c.Path(d))
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(conn, f); err != nil || n != benchSize {
				b.Fatal(n, err)
			}
			_ = f.Close()
		}
	})
}

func BenchmarkOpenSmall(b *testing.B) {
	c := open(b, piece.Options{})
	all, d := content(1, 1000)
	put(b, c, all, d)
	for b.Loop() {
		h, err := c.Open(context.Background(), d)
		if err != nil {
			b.Fatal(err)
		}
		h.Close()
	}
}

// BenchmarkRemove claims and removes small blobs, one by one.
func BenchmarkRemove(b *testing.B) {
	c := open(b, piece.Options{})
	ctx := context.Background()
	var ds []oci.Digest
	for i := range b.N {
		all, d := content(uint64(i), 100+i)
		put(b, c, all, d)
		ds = append(ds, d)
	}
	versions := make([]int64, len(ds))
	for i, d := range ds {
		versions[i] = info(b, c, d).Version
	}
	b.ResetTimer()
	for i, d := range ds {
		cl, err := c.Claim(ctx, d, versions[i])
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Remove(ctx, cl); err != nil {
			b.Fatal(err)
		}
	}
}

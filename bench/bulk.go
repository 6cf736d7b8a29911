package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// bulk is a large layer that is made as it is read, from one random block with a
// number stamped into each copy, so that neither memory nor disk limits its
// reader.
type bulk struct {
	block  []byte
	blocks int
	stamp  uint64 // of this layer
}

func newBulk(sizeBytes int) *bulk {
	u := &bulk{block: make([]byte, 1<<20), blocks: sizeBytes >> 20}
	_, _ = rand.Read(u.block) // never fails
	u.stamp = binary.LittleEndian.Uint64(u.block)
	return u
}

func (u *bulk) size() int { return u.blocks << 20 }

// next makes it another layer.
func (u *bulk) next() { u.stamp += 1 << 32 }

func (u *bulk) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for i := range u.blocks {
		binary.LittleEndian.PutUint64(u.block, u.stamp+uint64(i))
		m, err := w.Write(u.block)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (u *bulk) digest() (digest.Digest, error) {
	h := sha256.New()
	if _, err := u.WriteTo(h); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// push sends the layer as one PUT and returns how long that took up to its 201.
func (u *bulk) push(s *server, repo string, d digest.Digest) (time.Duration, error) {
	c, err := dial(s.addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	began := time.Now()
	a, err := c.want(http.StatusAccepted, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(c.conn, "PUT %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n", finishing(a.location, d), c.addr, octets, u.size()); err != nil {
		return 0, err
	}
	if _, err := u.WriteTo(c.conn); err != nil {
		return 0, err
	}
	if a, err = c.answer(http.MethodPut, a.location); err != nil {
		return 0, err
	}
	if a.status != http.StatusCreated {
		return 0, fmt.Errorf("push of a large layer: %d %s", a.status, a.body)
	}
	return time.Since(began), nil
}

// limit hashes and writes the same bytes once, durably.
func (u *bulk) limit(path string) (time.Duration, error) {
	began := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	h := sha256.New()
	if _, err := u.WriteTo(io.MultiWriter(h, f)); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	_ = h.Sum(nil)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, os.Remove(path)
}

func (b *bench) bigPush(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	u := newBulk(pick(b, 1<<30, 128<<20))
	var speeds [3][]float64
	for range b.rounds {
		for i := range speeds {
			u.next()
			d, err := u.digest()
			if err != nil {
				return err
			}
			unix.Sync() // what others wrote is not this one's burden
			var took time.Duration
			if i < 2 {
				took, err = u.push(servers[i], "bench/large", d)
			} else {
				took, err = u.limit(filepath.Join(b.dir, "limit"))
			}
			if err != nil {
				return err
			}
			speeds[i] = append(speeds[i], float64(u.size())/(1<<20)/took.Seconds())
		}
	}
	f, d, l := median(speeds[0]), median(speeds[1]), median(speeds[2])
	r.textf("\n## Push of one large layer\n\n%d MiB from one client; the limit hashes and writes the same bytes once, with fsync. Target: ≥ 0.8 of the limit.\n\n", u.blocks)
	r.textf("| MiB/s | Fairway | Distribution | limit | of limit | × Distribution |\n|---|--:|--:|--:|--:|--:|\n")
	r.textf("| push, durable | %.0f | %.0f | %.0f | %.2f | %.1f |\n", f, d, l, f/l, f/d)
	r.atLeast("large push, of hashing and writing once", f/l, 0.8)
	return nil
}

func (b *bench) bigPull(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	u := newBulk(pick(b, 1<<30, 128<<20))
	d, err := u.digest()
	if err != nil {
		return err
	}
	for _, s := range servers[:2] {
		if _, err := u.push(s, "bench/large", d); err != nil {
			return err
		}
	}
	file, err := os.Create(filepath.Join(servers[2].data, "www", "layer"))
	if err != nil {
		return err
	}
	if _, err := u.WriteTo(file); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return err
	}
	unix.Sync()
	blob := "/v2/bench/large/blobs/" + d.String()
	paths := []string{blob, blob, "/layer"}

	r.textf("\n## Pull of one large layer\n\n%d MiB out of the page cache, thrown away by the reader, which may hash it before (SHA-256). Target: ≥ 0.9 of nginx with one reader.\n\n", u.blocks)
	r.textf("| MiB/s in all | Fairway | Distribution | nginx | of nginx | × Distribution | CPU ms a GiB: Fairway | Distribution | nginx |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, by := range []struct {
		what    string
		readers int
		hashing bool
	}{{"1 reader", 1, false}, {"1 that hashes", 1, true}, {"4 readers", 4, false}} {
		readers := by.readers
		var speeds, cpu [3][]float64
		for round := range b.rounds + 1 {
			for i, s := range servers {
				m, err := s.measure(func() (time.Duration, error) { return pullAll(s.addr, paths[i], u.size(), readers, by.hashing) })
				if err != nil {
					return err
				}
				if round > 0 {
					size := float64(readers*u.size()) / (1 << 20)
					speeds[i] = append(speeds[i], size/m.took.Seconds())
					cpu[i] = append(cpu[i], float64(m.cpu.Milliseconds())*1024/size)
				}
			}
		}
		f, d, n := median(speeds[0]), median(speeds[1]), median(speeds[2])
		r.textf("| %s | %s | %s | %s | %.2f | %.1f | %.0f | %.0f | %.0f |\n", by.what, thousands(f), thousands(d), thousands(n), f/n, f/d, median(cpu[0]), median(cpu[1]), median(cpu[2]))
		if readers == 1 && !by.hashing {
			r.atLeast("large pull with one reader, of nginx", f/n, 0.9)
		}
	}
	return nil
}

func pullAll(addr, path string, size, readers int, hashing bool) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, readers)
	began := time.Now()
	for i := range readers {
		wg.Go(func() { errs[i] = pullOne(addr, path, size, hashing) })
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

func pullOne(addr, path string, size int, hashing bool) error {
	c, err := dial(addr)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, addr); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil) //nolint:bodyclose // closing would drain it; the connection is closed instead
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(size) {
		return fmt.Errorf("%s, %d bytes", resp.Status, resp.ContentLength)
	}
	// What the reader of the head has not taken yet comes straight from the
	// connection, in large pieces.
	left := size - c.r.Buffered()
	buf := make([]byte, 256<<10)
	h := sha256.New() // of what this reads; nobody compares it
	for left > 0 {
		n, err := c.conn.Read(buf)
		if hashing {
			_, _ = h.Write(buf[:n]) // it never fails
		}
		if left -= n; err != nil {
			return err
		}
	}
	return nil
}

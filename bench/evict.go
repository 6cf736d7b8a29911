package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// smallBlobs is an upstream in this process that has any number of small blobs.
type smallBlobs struct {
	addr    string
	server  *http.Server
	size    int
	digests []digest.Digest
	index   map[string]int
}

func (b *bench) serveSmallBlobs(n, size int) (*smallBlobs, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &smallBlobs{addr: l.Addr().String(), size: size, index: map[string]int{}}
	for i := range n {
		d := digest.FromBytes(s.content(i))
		s.digests, s.index[d.String()] = append(s.digests, d), i
	}
	s.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(s.serve)}
	go func() { _ = s.server.Serve(l) }() // until it is closed
	return s, nil
}

func (s *smallBlobs) content(i int) []byte {
	p := make([]byte, s.size)
	binary.LittleEndian.PutUint64(p, uint64(i))
	return p
}

func (s *smallBlobs) serve(w http.ResponseWriter, r *http.Request) {
	d := path.Base(r.URL.Path)
	i, ok := s.index[d]
	if !ok && r.URL.Path != "/v2/" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d)
	w.Header().Set("Content-Length", fmt.Sprint(s.size))
	if r.Method != http.MethodHead {
		_, _ = w.Write(s.content(i)) // the reader may have gone
	}
}

// eviction fills a cache with small blobs and lowers its quota, so that most of
// them have to go, and unlinks as many files.
func (b *bench) eviction(r *report) error {
	blobs, size := pick(b, 11_000, 1_100), 4096
	upstream, err := b.serveSmallBlobs(blobs, size)
	if err != nil {
		return err
	}
	defer func() { _ = upstream.server.Close() }()
	node, err := b.startNode(&server{addr: upstream.addr}, "--warm", "0s", "--floor", "0", "--quota", "10GiB")
	if err != nil {
		return err
	}
	defer node.stop()
	if err := upstream.pull(node, blobs); err != nil {
		return err
	}
	before, err := nodeStatus(node)
	if err != nil {
		return err
	}
	if err := b.flush(); err != nil {
		return err
	}
	began := time.Now()
	// Low is at a tenth of what is there. The command waits for the pass that the
	// new limit has started.
	for _, args := range [][]string{{"limits", "--quota", fmt.Sprint(before.Cache.UsedBytes / 8)}, {"gc"}} {
		if out, err := exec.CommandContext(b.ctx, b.fairway, append([]string{"cache", "--node", node.url()}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("fairway cache %s: %w: %s", args[0], err, out)
		}
	}
	took := time.Since(began)
	after, err := nodeStatus(node)
	if err != nil {
		return err
	}
	evicted := int(before.Cache.Blobs - after.Cache.Blobs)
	plain, err := b.unlink(evicted, size)
	if err != nil {
		return err
	}
	ms, plainMS := took.Seconds()*1000, plain.Seconds()*1000
	r.textf("\n## Eviction\n\nA cache of %s blobs of %d bytes gets a quota of an eighth of it; until it holds what it may. Beside it, as many pairs of files are unlinked, spread over as many directories, which no eviction can do without.\n\n", thousands(float64(blobs)), size)
	r.textf("| blobs evicted | ms | a blob, µs | unlinking alone, ms | × |\n|--:|--:|--:|--:|--:|\n| %s | %.0f | %.0f | %.0f | %.1f |\n",
		thousands(float64(evicted)), ms, ms*1000/float64(max(1, evicted)), plainMS, ms/plainMS)
	return nil
}

// pull pulls every blob through an agent.
func (s *smallBlobs) pull(node *server, n int) error {
	var all errgroup.Group
	const clients = 8
	for c := range clients {
		all.Go(func() error {
			conn, err := dial(node.addr)
			if err != nil {
				return err
			}
			defer conn.close()
			for i := c; i < n; i += clients {
				where := "/v2/bench/small/blobs/" + s.digests[i].String() + "?ns=" + s.addr
				if _, err := conn.want(http.StatusOK, http.MethodGet, where, "", nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return all.Wait()
}

func nodeStatus(node *server) (st nodeapi.Status, err error) {
	c, err := adminclient.New(node.url())
	if err != nil {
		return st, err
	}
	return st, c.Call(context.Background(), http.MethodGet, "/status", nil, &st)
}

// flush has all that was written go to the disk, where it would be after some time: what
// only the kernel's memory has is written late, and unlinked at once.
func (b *bench) flush() error {
	if out, err := exec.CommandContext(b.ctx, "sync").CombinedOutput(); err != nil {
		return fmt.Errorf("sync: %w: %s", err, out)
	}
	return nil
}

// unlink removes n files of a size, and a small one beside each, spread over 256
// directories.
func (b *bench) unlink(n, size int) (time.Duration, error) {
	dir, err := os.MkdirTemp(b.dir, "files-")
	if err != nil {
		return 0, err
	}
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%02x", i%256), fmt.Sprint(i)) }
	for i := range n {
		if err := os.MkdirAll(filepath.Dir(name(i)), 0o755); err != nil {
			return 0, err
		}
		if err := errors.Join(os.WriteFile(name(i), make([]byte, size), 0o644), os.WriteFile(name(i)+".pieces", make([]byte, 64), 0o644)); err != nil {
			return 0, err
		}
	}
	if err := b.flush(); err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range n {
		if err := errors.Join(os.Remove(name(i)), os.Remove(name(i)+".pieces")); err != nil {
			return 0, err
		}
	}
	return time.Since(began), os.RemoveAll(dir)
}

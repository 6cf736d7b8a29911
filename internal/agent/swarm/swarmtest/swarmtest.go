// Package swarmtest runs several engines of package swarm in one process, over
// loopback, with token buckets for links and a counting origin.
//
// It owns the scene, not the assertions. Its members are the real ones: real
// engines, real stores, real TLS; only the origin is a server of its own, which
// serves ranges of blobs that it generated.
package swarmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Secret is the cluster's secret of all scenes.
const Secret = "the secret of a test's cluster, long enough"

// Origin is a registry that has some blobs, behind one link.
type Origin struct {
	link  *rate.Limiter
	sent  atomic.Int64
	down  atomic.Bool
	mu    sync.Mutex
	blobs map[oci.Digest][]byte
}

// NewOrigin returns an origin that sends bytesPerSecond to all together; 0: no limit.
func NewOrigin(bytesPerSecond int64) *Origin {
	o := &Origin{link: rate.NewLimiter(rate.Inf, 64<<10), blobs: map[oci.Digest][]byte{}}
	if bytesPerSecond > 0 {
		o.link = rate.NewLimiter(rate.Limit(bytesPerSecond), max(128<<10, int(bytesPerSecond/100)))
	}
	return o
}

// Make generates a blob of a size from a seed.
func (o *Origin) Make(size int, seed uint64) oci.Digest {
	content := make([]byte, size)
	var key [32]byte
	key[0] = byte(seed)
	_, _ = rand.NewChaCha8(key).Read(content) // never fails
	d := oci.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(content)))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blobs[d] = content
	return d
}

// Content returns a blob.
func (o *Origin) Content(d oci.Digest) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.blobs[d]
}

// Sent returns the bytes that have left the origin.
func (o *Origin) Sent() int64 { return o.sent.Load() }

// Stop makes the origin fail, Start mends it.
func (o *Origin) Stop() { o.down.Store(true) }

// Start mends the origin.
func (o *Origin) Start() { o.down.Store(false) }

// ErrDown is what an origin fails with that was stopped.
var ErrDown = errors.New("the origin is down")

// Range is part of fetch.Origin.
func (o *Origin) Range(ctx context.Context, w fetch.Want, from, to int64) (io.ReadCloser, error) {
	content := o.Content(w.Digest)
	if o.down.Load() || content == nil {
		return nil, ErrDown
	}
	if to < 0 {
		to = int64(len(content))
	}
	return io.NopCloser(&stream{ctx: ctx, o: o, r: bytes.NewReader(content[from:to])}), nil
}

type stream struct {
	ctx context.Context
	o   *Origin
	r   *bytes.Reader
}

func (s *stream) Read(p []byte) (int, error) {
	if s.o.down.Load() {
		return 0, ErrDown
	}
	n, err := s.r.Read(p[:min(len(p), 64<<10)])
	if err == nil {
		err = s.o.link.WaitN(s.ctx, n)
	}
	s.o.sent.Add(int64(n))
	return n, err
}

// Node is one engine with its store.
type Node struct {
	*swarm.Engine
	Peer  swarm.Peer
	Store *piece.Store
	Index *index.Index // of Store
	stop  func()
}

// Cluster is a scene.
type Cluster struct {
	Origin *Origin
	Roster *swarm.Static
	tb     testing.TB
	mu     sync.Mutex
	peers  []swarm.Peer
}

// New returns a cluster without nodes.
func New(tb testing.TB, o *Origin) *Cluster {
	return &Cluster{Origin: o, Roster: swarm.NewStatic(), tb: tb}
}

// Start adds a node; change may alter its options.
func (c *Cluster) Start(name string, change func(*swarm.Options)) *Node {
	c.tb.Helper()
	return c.StartWith(name, nil, change)
}

// StartWith is Start for a node that knows names.
func (c *Cluster) StartWith(name string, names swarm.Names, change func(*swarm.Options)) *Node {
	c.tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.tb.Fatal(err)
	}
	n := &Node{Peer: swarm.Peer{Node: plan.Node(name), Addr: ln.Addr().String(), Born: time.Now().UnixNano()}}
	n.Store, n.Index = openStore(c.tb)
	keys, err := swarm.NewKeys([]byte(Secret), name)
	if err != nil {
		c.tb.Fatal(err)
	}
	o := swarm.Options{
		Self: n.Peer, Keys: keys, Roster: c.Roster, Store: n.Store, Index: n.Index, Origin: c.Origin,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&o)
	}
	if n.Engine, err = swarm.New(o); err != nil {
		c.tb.Fatal(err)
	}
	if names != nil {
		n.SetNames(names)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, ln) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.tb.Errorf("%s: %v", name, err)
		}
	})
	c.tb.Cleanup(n.stop)
	c.Add(n.Peer)
	return n
}

// Add makes a member known that the scene does not run.
func (c *Cluster) Add(p swarm.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = append(c.peers, p)
	c.Roster.Set(c.peers...)
}

// Stop takes a node out of the cluster, as if it had left.
func (c *Cluster) Stop(n *Node) {
	n.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.peers {
		if p.Node == n.Peer.Node {
			c.peers = append(c.peers[:i:i], c.peers[i+1:]...)
			break
		}
	}
	c.Roster.Set(c.peers...)
}

// openStore returns an empty store in a directory of the test.
func openStore(tb testing.TB) (*piece.Store, *index.Index) {
	tb.Helper()
	dir := tb.TempDir()
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ix, err := index.Open(ctx, index.Options{Path: filepath.Join(dir, "index.db"), Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ix.Close() })
	s, err := piece.Open(ctx, piece.Options{Dir: dir, Index: ix, Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s, ix
}

// Pull brings a blob to a node and compares every byte. As package fetch does, it
// notes first from which upstream the bytes come.
func (c *Cluster) Pull(ctx context.Context, n *Node, w fetch.Want) error {
	content := c.Origin.Content(w.Digest)
	b, err := n.Store.Create(ctx, w.Digest, int64(len(content)), piece.Meta{Private: w.Private})
	if err != nil {
		return err
	}
	defer b.Close()
	if len(b.Missing()) == b.Pieces() {
		if err := n.Index.SetOrigin(ctx, w.Digest, w.Namespace); err != nil {
			return err
		}
	}
	if err := n.Fill(ctx, w, b); err != nil {
		return fmt.Errorf("%s: %w", n.Peer.Node, err)
	}
	r := b.NewReader(ctx, 0, -1)
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if got := fmt.Sprintf("sha256:%x", h.Sum(nil)); got != string(w.Digest) {
		return fmt.Errorf("%s: read %s instead of %s", n.Peer.Node, got, w.Digest)
	}
	return nil
}

// Crowd lets all nodes pull a blob, each after its delay, and returns the time
// from the last arrival to the end.
func (c *Cluster) Crowd(ctx context.Context, d oci.Digest, nodes []*Node, delay func(i int) time.Duration) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	last := time.Duration(0)
	began := time.Now()
	for i, n := range nodes {
		wait := time.Duration(0)
		if delay != nil {
			wait = delay(i)
		}
		last = max(last, wait)
		wg.Go(func() {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			errs[i] = c.Pull(ctx, n, fetch.Want{Digest: d, Size: -1, Namespace: "test", Repo: "r"})
		})
	}
	wg.Wait()
	return time.Since(began) - last, errors.Join(errs...)
}

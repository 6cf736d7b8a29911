package swarm

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// Limits bound what a node sends and takes, in bytes a second; 0: no limit. They
// may change while it runs.
type Limits struct {
	Upload, Download         int64 // of the node, all peers together; Download includes the origin
	PeerUpload, PeerDownload int64 // to and from one peer
	// Wait is how long Together waits for another node, before a random part of as much
	// again; 0 = 1 s.
	Wait time.Duration
}

// grain is how many bytes are taken from a bucket at once: small enough that
// transfers which share a link take turns.
const grain = 64 << 10

// buckets are the token buckets of one direction.
type buckets struct {
	mu    sync.Mutex
	all   *rate.Limiter
	each  int64
	peers map[plan.Node]*rate.Limiter
}

func newBuckets() *buckets {
	return &buckets{all: rate.NewLimiter(rate.Inf, grain), peers: map[plan.Node]*rate.Limiter{}}
}

func limitOf(bytes int64) (rate.Limit, int) {
	if bytes <= 0 {
		return rate.Inf, piece.Size
	}
	// Ten milliseconds' worth, so that a timer that fires late costs nothing.
	return rate.Limit(bytes), max(2*grain, int(bytes/100))
}

func (b *buckets) set(all, each int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, burst := limitOf(all)
	b.all.SetLimit(l)
	b.all.SetBurst(burst)
	b.each = each
	l, burst = limitOf(each)
	for _, p := range b.peers {
		p.SetLimit(l)
		p.SetBurst(burst)
	}
}

func (b *buckets) forget(n plan.Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.peers, n)
}

// wait takes n bytes, at most grain, for a transfer with peer ("": the origin).
func (b *buckets) wait(ctx context.Context, peer plan.Node, n int) error {
	b.mu.Lock()
	var one *rate.Limiter
	if b.each > 0 && peer != "" {
		if one = b.peers[peer]; one == nil {
			l, burst := limitOf(b.each)
			one = rate.NewLimiter(l, burst)
			b.peers[peer] = one
		}
	}
	b.mu.Unlock()
	if one != nil {
		if err := one.WaitN(ctx, n); err != nil {
			return err
		}
	}
	if b.all.Limit() == rate.Inf {
		return nil
	}
	return b.all.WaitN(ctx, n)
}

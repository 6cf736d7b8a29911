package swarm

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// take draws bytes for a peer, and returns how long that took.
func take(t *testing.T, b *buckets, peer plan.Node, bytes int) time.Duration {
	t.Helper()
	began := time.Now()
	for bytes > 0 {
		n := min(grain, bytes)
		if err := b.wait(context.Background(), peer, n); err != nil {
			t.Fatal(err)
		}
		bytes -= n
	}
	return time.Since(began)
}

func TestBuckets_HoldTheRatesOfNodeAndPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuckets()
		if took := take(t, b, "a", 1<<30); took != 0 {
			t.Errorf("without a limit a GiB took %v", took)
		}
		b.set(10<<20, 2<<20)
		if took := take(t, b, "a", 20<<20); took < 9*time.Second || took > 10*time.Second {
			t.Errorf("20 MiB at 2 MiB/s for one peer took %v", took)
		}
		if took := take(t, b, "", 20<<20); took < 1900*time.Millisecond || took > 2*time.Second {
			t.Errorf("20 MiB at 10 MiB/s from the origin took %v", took)
		}
		b.set(0, 0)
		if took := take(t, b, "a", 1<<30); took != 0 {
			t.Errorf("with the limits gone a GiB took %v", took)
		}
	})
}

package swarm_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
)

// BenchmarkCrowd pulls one blob to several nodes of one process over loopback,
// each link limited, and reports time over the fluid bound, copies from the
// origin and CPU seconds a GiB and node. Run it on a quiet machine without the
// race detector: go test -run - -bench Crowd -benchtime 1x ./internal/agent/swarm
func BenchmarkCrowd(b *testing.B) {
	for _, tc := range []struct {
		nodes int
		gap   time.Duration
	}{{8, 0}, {8, 300 * time.Millisecond}, {16, 0}} {
		b.Run(fmt.Sprintf("%d nodes %v apart", tc.nodes, tc.gap), func(b *testing.B) {
			const size, rate = 64 * mb, 10 * mb
			for b.Loop() {
				b.StopTimer()
				c := swarmtest.New(b, swarmtest.NewOrigin(rate))
				nodes := make([]*swarmtest.Node, tc.nodes)
				for i := range nodes {
					nodes[i] = c.Start(fmt.Sprintf("node-%d", i), func(o *swarm.Options) { o.Limits = swarm.Limits{Upload: rate, Download: rate} })
				}
				d := c.Origin.Make(size, 1)
				before := cpu()
				b.StartTimer()
				took, err := c.Crowd(b.Context(), d, nodes, func(i int) time.Duration { return time.Duration(i) * tc.gap })
				if err != nil {
					b.Fatal(err)
				}
				gib := float64(tc.nodes) * size / (1 << 30)
				b.ReportMetric(took.Seconds()/(size/rate), "x-bound")
				b.ReportMetric(float64(c.Origin.Sent())/size, "copies")
				b.ReportMetric((cpu()-before).Seconds()/gib, "cpu-s/GiB")
			}
		})
	}
}

func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

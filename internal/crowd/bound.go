package crowd

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// Bound is the fluid limit of N nodes that each take size bytes from an origin
// that sends up bytes a second: no schedule can be faster than the origin sends
// one copy, the slowest node takes one, and all of them together send N.
func Bound(size, up int64, nodes []Link) time.Duration {
	slowest, sum := int64(0), up
	for _, l := range nodes {
		if l.Download > 0 && (slowest == 0 || l.Download < slowest) {
			slowest = l.Download
		}
		sum += l.Upload
	}
	s := float64(size)
	seconds := max(s/float64(up), float64(len(nodes))*s/float64(sum))
	if slowest > 0 {
		seconds = max(seconds, s/float64(slowest))
	}
	return time.Duration(seconds * float64(time.Second))
}

// Link is what a node may send and take, in bytes a second.
type Link struct{ Upload, Download int64 }

// bucket is a link as a token bucket.
type bucket struct{ *rate.Limiter }

// chunk is the most that is taken from a bucket at once, so that transfers which
// share it take turns.
const chunk = 32 << 10

func newBucket(bytesPerSecond int64) bucket {
	if bytesPerSecond <= 0 {
		return bucket{rate.NewLimiter(rate.Inf, chunk)}
	}
	// Ten milliseconds' worth, so that a timer that fires late costs nothing.
	return bucket{rate.NewLimiter(rate.Limit(bytesPerSecond), max(2*chunk, int(bytesPerSecond/100)))}
}

// take waits for n bytes.
func (b bucket) take(ctx context.Context, n int) error {
	for n > 0 {
		k := min(n, chunk)
		if err := b.WaitN(ctx, k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

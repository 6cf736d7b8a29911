package httpserve

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// body counts a request's body and gives up a connection that brings nothing
// for too long. A deadline costs a timer in the runtime, so it is renewed only
// when a quarter of it has passed.
type body struct {
	io.ReadCloser
	conn    *http.ResponseController
	idle    time.Duration
	renewed time.Time
	n       atomic.Int64 // net/http may drain the body while the request is logged
	ended   bool
}

func (b *body) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.renewed) > b.idle/4 && !b.ended {
		b.renewed = now
		// A ResponseWriter without deadlines (a test's recorder) has no
		// connection that could stall.
		_ = b.conn.SetReadDeadline(now.Add(b.idle))
	}
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	// At the end net/http lifts the deadline, and goes on reading to notice a
	// client that leaves: a new one would look like that.
	b.ended = b.ended || err != nil
	return n, err
}

func (b *body) count() int64 { return b.n.Load() }

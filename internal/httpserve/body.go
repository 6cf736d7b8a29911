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
	if !b.ended {
		if now := time.Now(); now.Sub(b.renewed) > b.idle/4 {
			b.renewed = now
			// A ResponseWriter without deadlines (a test's recorder) has no
			// connection that could stall.
			_ = b.conn.SetReadDeadline(now.Add(b.idle))
		}
	}
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	if err != nil && !b.ended {
		b.ended = true
		if err == io.EOF {
			// net/http goes on reading to notice a client that leaves; a deadline
			// left behind would look like one.
			_ = b.conn.SetReadDeadline(time.Time{})
		}
	}
	return n, err
}

func (b *body) count() int64 { return b.n.Load() }

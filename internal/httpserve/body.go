package httpserve

import (
	"errors"
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
	expects bool         // the client sends nothing before it is asked to
	n       atomic.Int64 // net/http may drain the body while the request is logged
	ended   bool         // a Read has returned the end or an error
	whole   bool         // it was the end
}

func newBody(w http.ResponseWriter, r *http.Request, idle time.Duration) *body {
	return &body{ReadCloser: r.Body, idle: idle, conn: http.NewResponseController(w), expects: r.Header["Expect"] != nil}
}

func (b *body) Read(p []byte) (int, error) {
	b.expects = false // net/http asks for the body now
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
	b.whole = b.whole || err == io.EOF
	return n, err
}

func (b *body) count() int64 { return b.n.Load() }

// lingerTime and lingerBytes bound what is read of a body after its request was
// refused. A connection that is closed while bytes arrive is reset, and a client
// that is still sending would lose the response.
const (
	lingerTime  = time.Second
	lingerBytes = 16 << 20
)

// linger gives the client that is still sending time to read the response, which
// has been flushed. The connection is closed afterwards.
func (b *body) linger(limit time.Duration) {
	if !b.expects && !b.ended {
		_ = b.conn.SetReadDeadline(time.Now().Add(limit)) // see Read
		_, err := io.CopyN(io.Discard, b.ReadCloser, lingerBytes)
		if errors.Is(err, io.EOF) {
			return
		}
	}
	// net/http reads up to 256 KiB more before it closes the connection. That
	// is not worth waiting for.
	_ = b.conn.SetReadDeadline(time.Unix(1, 0))
}

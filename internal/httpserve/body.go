package httpserve

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// body counts a request's body and gives up a connection that brings nothing,
// or next to nothing, for too long. A deadline costs a timer in the runtime, so
// it is renewed only when a quarter of it has passed.
type body struct {
	io.ReadCloser
	conn    *http.ResponseController
	idle    time.Duration
	renewed time.Time
	expects bool         // the client sends nothing before it is asked to
	n       atomic.Int64 // net/http may drain the body while the request is logged
	ended   bool         // a Read has returned the end or an error
	whole   bool         // it was the end

	// The pace is measured over what was waited for, not over what the server
	// itself took between two reads.
	rate    int64 // bytes per second that a client must send on average
	waited  time.Duration
	arrived int64 // bytes in this time
}

func newBody(w http.ResponseWriter, r *http.Request, idle time.Duration, rate int64) *body {
	return &body{ReadCloser: r.Body, idle: idle, rate: rate, conn: http.NewResponseController(w), expects: r.Header["Expect"] != nil}
}

// errSlow is in the chain of the error that a body ends with when its client
// sends too little.
var errSlow = errors.New("the client sends too slowly")

func (b *body) Read(p []byte) (int, error) {
	b.expects = false // net/http asks for the body now
	began := time.Now()
	if began.Sub(b.renewed) > b.idle/4 && !b.ended {
		b.renewed = began
		// A ResponseWriter without deadlines (a test's recorder) has no
		// connection that could stall.
		_ = b.conn.SetReadDeadline(began.Add(b.idle))
	}
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	if err == nil {
		err = b.pace(n, time.Since(began))
	}
	// At the end net/http lifts the deadline, and goes on reading to notice a
	// client that leaves: a new one would look like that.
	b.ended = b.ended || err != nil
	b.whole = b.whole || errors.Is(err, io.EOF)
	return n, err
}

// pace notes that n bytes came after a wait, and returns an error if too few
// have come in all of the idle time.
func (b *body) pace(n int, waited time.Duration) error {
	b.waited += waited
	b.arrived += int64(n)
	if b.waited < b.idle {
		return nil
	}
	if least := int64(b.waited.Seconds() * float64(b.rate)); b.arrived < least {
		return fmt.Errorf("%w: %d bytes in %s, want %d", errSlow, b.arrived, b.waited.Round(time.Millisecond), least)
	}
	b.waited, b.arrived = 0, 0
	return nil
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

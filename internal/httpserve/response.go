package httpserve

import (
	"errors"
	"io"
	"math"
	"net/http"
	"os"
	"time"
)

// response is the ResponseWriter that handlers see. It is pooled: nothing may
// hold it after the handler has returned.
type response struct {
	http.ResponseWriter
	route   *Route
	body    *body
	err     error
	fail    func(http.ResponseWriter, error) // answers a panic
	id      string
	status  int   // 0 until the header is written
	written int64 // bytes of the body

	idle    time.Duration // how long the client may take none of them
	renewed time.Time     // the deadline for that; zero: none is set
	rate    int64         // bytes per second that the client must take on average
	tls     bool
}

// slack is what a connection takes without its client: no answer of less
// needs a deadline. In bytes.
const slack = 64 << 10

func (w *response) reset(inner http.ResponseWriter, route *Route) {
	*w = response{ResponseWriter: inner, route: route}
}

// WriteHeader notes the first final status.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.begin(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.implicitOK()
	w.renew(len(p))
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	return n, err
}

// WriteString spares the copy that io.WriteString would make.
func (w *response) WriteString(s string) (int, error) {
	w.implicitOK()
	w.renew(len(s))
	n, err := io.WriteString(w.ResponseWriter, s)
	w.written += int64(n)
	return n, err
}

// renew moves the deadline before n bytes are written, when a quarter of it has
// passed: it costs a timer in the runtime.
func (w *response) renew(n int) {
	if w.renewed.IsZero() && w.written+int64(n) <= slack {
		return
	}
	if now := time.Now(); now.Sub(w.renewed) > w.idle/4 {
		w.deadline(now)
	}
}

// deadline gives the client until now and the idle time to take something.
// net/http lifts it when the answer is complete. A ResponseWriter without
// deadlines (a test's recorder) has no connection that could stall.
func (w *response) deadline(now time.Time) {
	w.renewed = now
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(now.Add(w.idle))
}

// ReadFrom hands a file to the connection, which sends it without a copy. It
// gives up a client that takes too little in the idle time; one that is slow
// gets all.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	w.implicitOK()
	all, limited := src.(*io.LimitedReader)
	if !limited {
		all = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	if _, file := all.R.(*os.File); !file || w.tls {
		return io.Copy(struct{ io.Writer }{w}, src) // Write sees to the deadline
	}
	start := w.written
	for {
		w.deadline(time.Now())
		before := all.N
		n, err := io.Copy(w.ResponseWriter, all) // uses the inner ReaderFrom where there is one
		w.written += n
		// When the deadline comes the kernel reports what it has sent. What was
		// copied and is left over would be lost.
		least := int64(w.idle.Seconds() * float64(w.rate))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n <= least || n != before-all.N {
			return w.written - start, err
		}
	}
}

func (w *response) implicitOK() {
	if w.status == 0 {
		w.begin(http.StatusOK)
	}
}

// begin notes the status. A response to a request whose body was not read goes
// out at once, and is the last one on its connection: net/http would wait for up
// to 256 KiB of the body first, from a client that may never send them.
func (w *response) begin(status int) {
	w.status = status
	if w.unread() != nil {
		w.Header()["Connection"] = closeConnection
	}
}

var closeConnection = []string{"close"}

// unread returns the request's body unless it was read to its end.
func (w *response) unread() *body {
	if w.body == nil || w.body.whole {
		return nil
	}
	return w.body
}

// Flush sends what is buffered.
func (w *response) Flush() {
	w.implicitOK()
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

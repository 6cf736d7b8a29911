package ociclient

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// stalledError says that an upstream sent headers and then nothing for too long.
type stalledError struct{ idle time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("nothing has come for %s", e.idle)
}

// Timeout is of net.Error.
func (e *stalledError) Timeout() bool { return true }

// guarded is a response's body. Its Close ends the exchange, and a Read that
// brings nothing for the time idle fails. The time between two Reads does not
// count: whoever reads may be slow.
type guarded struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	host   string
	idle   time.Duration // 0: the reader sees to it
	timer  *time.Timer
}

func (b *guarded) Read(p []byte) (int, error) {
	if b.idle <= 0 {
		return b.ReadCloser.Read(p)
	}
	if b.timer == nil {
		b.timer = time.AfterFunc(b.idle, b.stall)
	} else {
		b.timer.Reset(b.idle)
	}
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	var stalled *stalledError
	if err != nil && errors.As(context.Cause(b.ctx), &stalled) {
		err = fault.Wrap(fault.Busy, fmt.Errorf("read the answer of %s: %w", b.host, stalled),
			fmt.Sprintf("the upstream %s does not answer in time", b.host)).WithCode(oci.CodeUnknown)
	}
	return n, err
}

func (b *guarded) stall() { b.cancel(&stalledError{b.idle}) }

func (b *guarded) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// identity undoes a Content-Encoding, which nobody asked for but RFC 9110
// §12.5.3 allows: what is handed on must have the digest that was asked for.
func (r *Response) identity(host string) error {
	encoding := strings.ToLower(strings.TrimSpace(strings.Join(r.Header.Values("Content-Encoding"), ",")))
	if encoding == "" || encoding == "identity" {
		return nil
	}
	r.Header.Del("Content-Encoding")
	r.Header.Del("Content-Length")
	r.Size = -1
	if encoding != "gzip" && encoding != "x-gzip" || r.Status == http.StatusPartialContent {
		if !r.OK() {
			r.Body = struct {
				io.Reader
				io.Closer
			}{http.NoBody, r.Body} // an error's text
			return nil
		}
		return &encodingError{host, encoding, r.Status}
	}
	r.Body = &gunzip{src: r.Body}
	return nil
}

// encodingError is the refusal of an answer that is encoded.
type encodingError struct {
	host, encoding string
	status         int
}

func (e *encodingError) Error() string {
	return fmt.Sprintf("the upstream %s answers %d with the Content-Encoding %.32q, which was not asked for and cannot be undone", e.host, e.status, e.encoding)
}

// gunzip decompresses when it is first read: the answer to a HEAD is empty.
type gunzip struct {
	src io.ReadCloser
	z   *gzip.Reader
}

func (g *gunzip) Read(p []byte) (int, error) {
	if g.z == nil {
		z, err := gzip.NewReader(g.src)
		if err != nil {
			return 0, err
		}
		g.z = z
	}
	return g.z.Read(p)
}

func (g *gunzip) Close() error { return g.src.Close() }

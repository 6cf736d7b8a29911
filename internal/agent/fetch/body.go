package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// errStalled says that an upstream sent nothing for too long.
var errStalled = errors.New("the upstream sends nothing any more")

// body is an upstream's answer while it comes in. It gives up an upstream that
// stalls, counts what arrives, and ends with io.EOF only where it should.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
	stall  *time.Timer
	count  prometheus.Counter
	left   int64 // bytes until its end; −1: as many as come
	size   int64 // of the blob; −1: the upstream does not say

	private bool // it took credentials
	partial bool // it is the part that was asked for, and not the whole
}

func newBody(ctx context.Context, cancel context.CancelCauseFunc, rc io.ReadCloser, idle time.Duration, count prometheus.Counter) *body {
	b := &body{
		ReadCloser: rc, ctx: ctx, cancel: cancel, idle: idle, count: count, left: -1, size: -1,
		stall: time.AfterFunc(idle, func() { cancel(errStalled) }),
	}
	b.stall.Stop() // until somebody reads: a reader may be slower than the upstream
	return b
}

// align makes the answer begin at from and end at to, whatever the upstream
// made of the range. size is the blob's, −1 if it is not known.
func (b *body) align(res *ociclient.Response, size, from, to int64) error {
	at, err := res.Offset()
	if err != nil {
		return err
	}
	if at > from {
		return fmt.Errorf("the upstream was asked for bytes from %d and sends them from %d", from, at)
	}
	if err := checkTotal(res, size); err != nil {
		return err
	}
	b.size = res.Total()
	if to < 0 {
		if to = size; to < 0 {
			to = b.size
		}
	}
	if to >= 0 {
		if have := at + res.Size; res.Size >= 0 && have < to {
			return fmt.Errorf("%w: they end at %d instead of %d", ErrWrongLength, have, to)
		}
	}
	if _, err := io.CopyN(io.Discard, b, from-at); err != nil {
		return fmt.Errorf("%w: they end before %d", ErrWrongLength, from)
	}
	if to >= 0 {
		b.left = to - from
	}
	return nil
}

// Read fails with io.ErrUnexpectedEOF if the upstream ends too early.
func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.stall.Reset(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.stall.Stop()
	b.count.Add(float64(n))
	if b.left > 0 {
		b.left -= int64(n)
	}
	switch {
	case err == nil:
	case errors.Is(context.Cause(b.ctx), errStalled):
		err = fault.Wrap(fault.Busy, errStalled, "the upstream stalls")
	case errors.Is(err, io.EOF) && b.left > 0:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close ends the exchange.
func (b *body) Close() error {
	b.stall.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}

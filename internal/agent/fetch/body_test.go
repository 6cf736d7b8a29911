package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// hanging gives some bytes and then waits for the end of ctx.
type hanging struct {
	io.Reader
	ctx context.Context
}

func (h hanging) Read(p []byte) (int, error) {
	if n, err := h.Reader.Read(p); err == nil {
		return n, nil
	}
	<-h.ctx.Done()
	return 0, h.ctx.Err()
}

func (hanging) Close() error { return nil }

// TestN8_OnlyTheUpstreamStalls: a reader that is slower than its upstream was
// taken for an upstream that sends nothing any more.
func TestN8_OnlyTheUpstreamStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		b := newBody(ctx, cancel, hanging{bytes.NewReader(make([]byte, 100)), ctx}, time.Second, prometheus.NewCounter(prometheus.CounterOpts{Name: "x"}))
		defer func() { _ = b.Close() }()
		time.Sleep(time.Hour) // of the bubble
		for range 10 {
			if n, err := b.Read(make([]byte, 10)); n != 10 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			time.Sleep(time.Hour)
		}
		began := time.Now()
		if _, err := b.Read(make([]byte, 10)); !errors.Is(err, errStalled) || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

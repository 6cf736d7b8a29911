package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// ErrWrongLength says that an upstream sends another number of bytes than the blob has.
var ErrWrongLength = errors.New("the upstream sends another number of bytes than the blob has")

// errDropped says that a blob is not complete although everything was brought:
// the cache has found some of it corrupt.
var errDropped = errors.New("some of the blob was corrupt when all of it was here")

func isStatus(err error) bool {
	var status *ociclient.StatusError
	return errors.As(err, &status)
}

// UpstreamOptions is what an Upstream needs.
type UpstreamOptions struct {
	Upstreams *ociclient.Upstreams
	// Idle is how long a body may bring no byte; 0 = 8 s.
	Idle time.Duration
	// Gave is told of each answer that brings bytes of a blob, and whether anybody
	// would have got it; nil: nobody.
	Gave func(w Want, anonymous bool)
	// Pause is before the second attempt in a row that brought nothing, and
	// doubles from there; 0 = 250 ms.
	Pause   time.Duration
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

const (
	idleDefault  = 8 * time.Second
	pauseDefault = 250 * time.Millisecond
	// attemptsMax bounds attempts in a row that bring nothing. The first of all
	// is not followed by another if the upstream gave no answer: the runtime has
	// other hosts to ask.
	attemptsMax = 3
)

// Upstream brings blobs from the registries that they come from: in one stream,
// in order, beginning with the first byte that is missing. It is a Filler and
// an Origin.
type Upstream struct {
	o        UpstreamOptions
	received *prometheus.CounterVec
	retries  *prometheus.CounterVec
	buffers  sync.Pool // of *[]byte, one piece long
}

// NewUpstream returns the source that all blobs come from in the end.
func NewUpstream(o UpstreamOptions) *Upstream {
	if o.Idle <= 0 {
		o.Idle = idleDefault
	}
	if o.Pause <= 0 {
		o.Pause = pauseDefault
	}
	u := &Upstream{
		o: o,
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_upstream_bytes_total",
			Help: "Bytes of blobs received from an upstream.",
		}, []string{"upstream"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_upstream_errors_total",
			Help: "Attempts to get a blob from an upstream that did not bring all of it.",
		}, []string{"upstream", "kind"}),
	}
	u.buffers.New = func() any { b := make([]byte, piece.Size); return &b }
	if o.Metrics != nil {
		o.Metrics.MustRegister(u.received, u.retries)
	}
	return u
}

const upstreamName = "upstream"

// Name is the source's label.
func (u *Upstream) Name() string { return upstreamName }

// Range opens the bytes from to to (exclusive; −1: the end) at the upstream.
// It is fault.Busy, or a *ociclient.StatusError, if the upstream does not give them.
func (u *Upstream) Range(ctx context.Context, w Want, from, to int64) (io.ReadCloser, error) {
	return u.open(ctx, w, from, to)
}

// open is Range; it also says how many bytes the blob has, as far as the
// upstream tells.
func (u *Upstream) open(ctx context.Context, w Want, from, to int64) (*body, error) {
	client, ok := u.o.Upstreams.Client(w.Namespace)
	if !ok {
		return nil, fault.New(fault.NotFound, "no upstream %q is configured", w.Namespace)
	}
	var rng *ociclient.Range
	if from > 0 || to >= 0 && to != w.Size {
		rng = &ociclient.Range{First: from, Last: max(to, 0) - 1}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	res, err := client.Blob(ctx, string(w.Repo), w.Digest, rng, w.Authorization, false)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if !res.OK() {
		defer cancel(nil)
		if err := checkTotal(res, w.Size); err != nil {
			_ = res.Body.Close() // what it says of the range is all there is to know
			return nil, err
		}
		return nil, client.Refusal(res)
	}
	if u.o.Gave != nil {
		u.o.Gave(w, res.Anonymous)
	}
	b := newBody(ctx, cancel, res.Body, u.o.Idle, u.received.WithLabelValues(w.Namespace))
	w.head.answered(res)
	b.private, b.partial = !res.Anonymous, res.Status == http.StatusPartialContent
	if err := b.align(res, w.Size, from, to); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// Fill brings what is missing of b.
func (u *Upstream) Fill(ctx context.Context, w Want, b *piece.Blob) error {
	w.Size = b.Size()
	for attempt, any, lied := 0, false, false; ; {
		before := b.Lacks()
		err := u.once(ctx, w, b)
		if err == nil && b.Complete() {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if err == nil {
			err = errDropped
		}
		u.retries.WithLabelValues(w.Namespace, kind(err)).Inc()
		if _, ok := SizeOf(err); ok {
			return err
		}
		var mismatch *piece.MismatchError
		switch {
		case errors.As(err, &mismatch):
			// Another's pieces may have been among them; now all are the upstream's.
			if lied {
				return err
			}
			lied = true
		case b.Lacks() < before:
			attempt, any = 0, true
		default:
			attempt++
		}
		if !worthwhile(err, any) || attempt >= attemptsMax {
			return err
		}
		u.o.Log.Debug("asking the upstream again", "digest", w.Digest, "upstream", w.Namespace, "attempt", attempt, "err", err)
		if err := pause(ctx, u.o.Pause<<attempt); err != nil {
			return err
		}
	}
}

// worthwhile reports whether another attempt may end better than err. any says
// that the upstream has sent some of the blob before.
func worthwhile(err error, any bool) bool {
	var status *ociclient.StatusError
	if errors.As(err, &status) {
		// A short wait is worth it where some of the blob has come; else the next
		// source is.
		return status.Outcome() == ociclient.Failed && status.Status >= 500 && status.RetryAfter(time.Now()) == 0
	}
	if errors.Is(err, fault.NotFound) {
		return false
	}
	return any || !errors.Is(err, fault.Busy)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// once asks for each run of missing pieces once.
func (u *Upstream) once(ctx context.Context, w Want, b *piece.Blob) error {
	for _, r := range runs(b.Missing()) {
		if err := u.run(ctx, w, b, r[0], r[1]); err != nil {
			return err
		}
	}
	return nil
}

// runs gathers ascending numbers into runs, first to last, inclusive.
func runs(missing []int) [][2]int {
	var all [][2]int
	for _, i := range missing {
		if n := len(all); n > 0 && all[n-1][1] == i-1 {
			all[n-1][1] = i
			continue
		}
		all = append(all, [2]int{i, i})
	}
	return all
}

// run brings the pieces first to last.
func (u *Upstream) run(ctx context.Context, w Want, b *piece.Blob, first, last int) error {
	from, to := int64(first)*piece.Size, min(int64(last+1)*piece.Size, w.Size)
	src, err := u.open(ctx, w, from, to)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // what was read of it is checked
	if src.private && !b.Private() {
		if err := b.MarkPrivate(ctx); err != nil {
			return err
		}
	}
	pooled := u.buffers.Get().(*[]byte)
	defer u.buffers.Put(pooled)
	for i := first; i <= last; i++ {
		buf := (*pooled)[:min(piece.Size, w.Size-int64(i)*piece.Size)]
		h := w.head
		if i > first {
			h = nil // from now on pieces come one after another
		}
		if err := readPiece(src, h, i, buf); err != nil {
			return fmt.Errorf("read %s from the upstream %s: %w", w.Digest, w.Namespace, err)
		}
		if err := b.WritePiece(ctx, i, buf, u.Name()); err != nil {
			return err
		}
	}
	return nil
}

// readPiece fills buf with piece i, and lets h show how it grows.
func readPiece(src io.Reader, h *head, i int, buf []byte) error {
	defer h.hide()
	for n := 0; n < len(buf); {
		m, err := src.Read(buf[n:])
		if n += m; n == len(buf) {
			return nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return ErrWrongLength
		}
		if err != nil {
			return err
		}
		h.show(i, buf[:n])
	}
	return nil
}

package swarm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// order is a request for pieces that is under way.
type order struct {
	d      *download
	from   plan.Node
	ctx    context.Context
	cancel context.CancelFunc
	open   map[int]bool // pieces that are still wanted; guarded by d.mu
}

// order prepares what the schedule ordered. d.mu is held.
func (d *download) order(p plan.Order) *order {
	o := &order{d: d, from: p.From, open: map[int]bool{}}
	for _, i := range p.Pieces {
		o.open[i] = true
	}
	o.ctx, o.cancel = context.WithCancel(d.ctx)
	d.orders[p.From] = append(d.orders[p.From], o)
	return o
}

// giveUp withdraws a piece from the order that it is in. An order without pieces
// left is cancelled; one with others goes on, and the piece is dropped when it comes.
// d.mu is held.
func (d *download) giveUp(c plan.Cancel) {
	for _, o := range d.orders[c.From] {
		if !o.open[c.Piece] {
			continue
		}
		delete(o.open, c.Piece)
		if len(o.open) == 0 {
			o.cancel()
		}
		return
	}
}

// run carries the order out and tells the schedule what did not come.
func (o *order) run() {
	var err error
	if o.from == plan.Origin {
		err = o.fromOrigin()
	} else {
		err = o.fromPeer()
		o.d.doubt(err)
	}
	o.cancel()
	d, now := o.d, o.d.e.now()
	d.mu.Lock()
	d.orders[o.from] = slices.DeleteFunc(d.orders[o.from], func(x *order) bool { return x == o })
	for i := range o.open {
		d.plan.Failed(now, i, o.from, plan.Broken)
	}
	if o.from == plan.Origin {
		d.plan.RunEnded()
		if err != nil && d.ctx.Err() == nil {
			d.refusal = err
			if _, ok := fetch.SizeOf(err); ok && d.failure == nil {
				d.failure = err // nobody has a blob of the size that it was begun with
			}
		}
	}
	failed := len(o.open) > 0
	d.mu.Unlock()
	if failed && d.ctx.Err() == nil {
		d.e.log.Debug("a source of pieces failed", "digest", d.b.Digest(), "source", o.from, "err", err)
		d.e.metrics.failures.WithLabelValues(kindOf(o.from)).Inc()
	}
	d.poke()
}

func kindOf(n plan.Node) string {
	if n == plan.Origin {
		return "origin"
	}
	return "peer"
}

// closeOpen takes a piece off the order.
func (o *order) closeOpen(i int) (wanted bool) {
	o.d.mu.Lock()
	defer o.d.mu.Unlock()
	wanted = o.open[i]
	delete(o.open, i)
	return wanted
}

// fromOrigin reads a run of pieces in one range.
func (o *order) fromOrigin() error {
	d := o.d
	o.d.mu.Lock()
	first, last := d.b.Pieces(), 0
	for i := range o.open {
		first, last = min(first, i), max(last, i)
	}
	d.mu.Unlock()
	from, to := int64(first)*piece.Size, min(int64(last+1)*piece.Size, d.b.Size())
	body, err := d.e.o.Origin.Range(o.ctx, d.w, from, to)
	if err != nil {
		return fmt.Errorf("read bytes %d to %d of %s from the upstream: %w", from, to, d.b.Digest(), err)
	}
	defer body.Close()
	buf := d.e.buffers.Get().(*[piece.Size]byte)
	defer d.e.buffers.Put(buf)
	for i := first; i <= last; i++ {
		p := buf[:d.b.PieceLen(i)]
		if err := d.read(o.ctx, body, i, p, plan.Origin); err != nil {
			return fmt.Errorf("read piece %d of %s from the upstream: %w", i, d.b.Digest(), err)
		}
		o.closeOpen(i)
		// What comes is paid for, wanted or not any more.
		kept := d.got(i, p, plan.Origin, false)
		d.shown(i)
		if !kept {
			return errors.New("the cache takes no more of it")
		}
	}
	return nil
}

// read fills p, which is piece i. The first piece of the blob is shown to readers
// as it grows: who waits for the first byte need not wait for a whole piece.
// Whoever called it calls shown when p was stored.
func (d *download) read(ctx context.Context, r io.Reader, i int, p []byte, from plan.Node) error {
	peer := from
	if from == plan.Origin {
		peer = ""
	}
	if i > 0 {
		return d.e.read(ctx, r, p, peer)
	}
	for n := 0; n < len(p); {
		m, err := io.ReadAtLeast(r, p[n:min(n+grain, len(p))], 1)
		if err == nil {
			err = d.e.down.wait(ctx, peer, m)
		}
		if err != nil {
			d.shown(i)
			return err
		}
		n += m
		d.w.Show(i, p[:n])
	}
	return nil
}

// shown ends what read shows of piece i, so that its buffer may be used again.
func (d *download) shown(i int) {
	if i == 0 {
		d.w.Hide()
	}
}

// read fills p at the pace of the token buckets.
func (e *Engine) read(ctx context.Context, r io.Reader, p []byte, peer plan.Node) error {
	for len(p) > 0 {
		part := p[:min(grain, len(p))]
		if _, err := io.ReadFull(r, part); err != nil {
			return err
		}
		if err := e.down.wait(ctx, peer, len(part)); err != nil {
			return err
		}
		p = p[len(part):]
	}
	return nil
}

// fromPeer asks a neighbour and takes what it sends, in its order.
func (o *order) fromPeer() error {
	d := o.d
	d.mu.Lock()
	req := request{Progress: d.plan.Progress(), Low: d.w.Background, Grant: d.grant(), Size: d.b.Size()}
	for i := range o.open {
		req.Pieces = append(req.Pieces, i)
	}
	d.mu.Unlock()
	slices.Sort(req.Pieces)
	began := time.Now()
	ctx, in := traceIncoming(o.ctx)
	body, err := d.e.post(ctx, o.from, "/swarm/v1/blobs/"+string(d.b.Digest())+"/pieces", req)
	if err != nil {
		return err
	}
	defer body.Close()
	r := bufio.NewReaderSize(body, 4<<10)
	var head [headerLen]byte
	for range req.Pieces {
		f, err := readFrame(r, &head)
		if err != nil {
			return err
		}
		in.consumed += headerLen
		if f.kind == kindPiece && f.piece > 0 { // the first one is shown as it comes
			in.expect(f.size)
		}
		if err := o.take(r, f, began); err != nil {
			return err
		}
		in.consumed += int64(f.size)
	}
	// The end of the body lets the connection be used again.
	_, err = io.Copy(io.Discard, io.LimitReader(r, 1))
	return err
}

func (o *order) take(r io.Reader, f frame, began time.Time) error {
	d := o.d
	if f.piece >= d.b.Pieces() {
		return fmt.Errorf("%s sent piece %d of %d", o.from, f.piece, d.b.Pieces())
	}
	switch f.kind {
	case kindPiece:
		if f.size != d.b.PieceLen(f.piece) {
			return fmt.Errorf("%s sent %d bytes as piece %d", o.from, f.size, f.piece)
		}
		buf := d.e.buffers.Get().(*[piece.Size]byte)
		defer d.e.buffers.Put(buf)
		p := buf[:f.size]
		if err := d.read(o.ctx, r, f.piece, p, o.from); err != nil {
			return err
		}
		wanted := o.closeOpen(f.piece)
		d.e.metrics.piece.Observe(time.Since(began).Seconds())
		kept := !wanted || d.got(f.piece, p, o.from, f.flags&flagRelayed != 0)
		d.shown(f.piece)
		if !kept {
			return errors.New("the cache takes no more of it")
		}
	case kindBusy, kindGone:
		why := plan.Busy
		if f.kind == kindGone {
			why = plan.Missing
		}
		if o.closeOpen(f.piece) {
			d.mu.Lock()
			d.plan.Failed(d.e.now(), f.piece, o.from, why)
			d.mu.Unlock()
		}
	default:
		return fmt.Errorf("%s answered with a frame of kind %d", o.from, f.kind)
	}
	d.mu.Lock()
	d.plan.Loaded(o.from, f.load)
	d.mu.Unlock()
	d.poke()
	return nil
}

// grant states this node's right to private content, as it is now: the blob may have
// become private, and the right may have run out, since Fill looked.
func (d *download) grant() grant {
	if d.w.Private || d.b.Private() {
		return d.e.grantFor(d.w.Namespace, d.b.Digest())
	}
	return grant{}
}

// errOtherSize says that a peer takes a blob for one of another size.
var errOtherSize = errors.New("the blob has another size there")

// doubt has the upstream say how large the blob is, once, if a peer disagrees. If
// this node is wrong, the download ends before bytes of a blob that there is not are
// handed out; otherwise the peer is only one that does not help.
func (d *download) doubt(err error) {
	if !errors.Is(err, errOtherSize) {
		return
	}
	d.mu.Lock()
	known := d.doubted
	d.doubted = true
	d.mu.Unlock()
	if known {
		return
	}
	d.talk.Go(func() {
		body, err := d.e.o.Origin.Range(d.ctx, d.w, 0, 1)
		switch _, sized := fetch.SizeOf(err); {
		case err == nil:
			_ = body.Close() // its header was enough
		case sized:
			d.fail(err)
		default: // whoever disagrees next has it asked again
			d.mu.Lock()
			d.doubted = false
			d.mu.Unlock()
		}
	})
}

// post sends a message to a member and returns the body of its answer.
func (e *Engine) post(ctx context.Context, to plan.Node, path string, v any) (io.ReadCloser, error) {
	msg, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write a message to %s: %w", to, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+hostOf(to)+path, bytes.NewReader(msg))
	if err != nil {
		return nil, fmt.Errorf("write a message to %s: %w", to, err)
	}
	res, err := e.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", to, err)
	}
	if res.StatusCode == http.StatusConflict {
		_ = res.Body.Close()
		return nil, fmt.Errorf("ask %s: %w", to, errOtherSize)
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 200)) // the status says enough without it
		_ = res.Body.Close()
		return nil, fmt.Errorf("%s answered %d: %s", to, res.StatusCode, bytes.TrimSpace(text))
	}
	return res.Body, nil
}

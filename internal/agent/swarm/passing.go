package swarm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
)

// Tuning of blobs that pass through.
const (
	passingAhead = 8                      // pieces asked for at once; as many wait for the reader
	passingPause = 200 * time.Millisecond // before those are asked again who lacked a piece
	passingIdle  = 3 * time.Second        // passage.idle, unless others have been waited for in vain before
)

// Passing is the source of blobs that this node has no room for: it reads them
// in order from peers, and keeps nothing. With all it serves as the last resort:
// small blobs too, and it asks members that no leader named.
func (e *Engine) Passing(all bool) fetch.Origin { return passing{e, all} }

type passing struct {
	e   *Engine
	all bool
}

// Range is part of fetch.Origin. What comes is not verified.
func (p passing) Range(ctx context.Context, w fetch.Want, from, to int64) (io.ReadCloser, error) {
	e := p.e
	if to < 0 {
		to = w.Size
	}
	pieces := int((w.Size + piece.Size - 1) / piece.Size)
	if w.Size <= 0 || w.Size > piece.SizeMax || pieces > plan.MaxPieces || from >= to || w.Size < e.o.Small && !p.all || e.stop.Err() != nil {
		return nil, errLeft
	}
	if w.Private && !e.o.Allowed(w.Namespace, w.Digest) {
		e.metrics.refused.Inc()
		return nil, errLeft
	}
	r := &passage{e: e, w: w, first: int(from / piece.Size), last: int((to - 1) / piece.Size), pieces: make(chan []byte, passingAhead)}
	r.skip, r.left = int(from%piece.Size), to-from
	r.idle = e.vain.left(time.Now(), passingIdle)
	r.sources = e.mayHave(ctx, w, pieces, p.all)
	ctx, r.cancel = context.WithCancel(ctx)
	context.AfterFunc(e.stop, r.cancel)
	head, err := r.fetch(ctx, r.first, r.first) // so that somebody else is asked if nobody has it
	if err != nil {
		r.cancel()
		return nil, err
	}
	r.pieces <- head[0]
	e.work.Go(func() { r.run(ctx) })
	return r, nil
}

// mayHave are members that hold some of a blob as far as leaders know; with all,
// others at random where those are few.
func (e *Engine) mayHave(ctx context.Context, w fetch.Want, pieces int, all bool) []plan.Node {
	key := string(w.Digest)
	if w.Size < e.o.Small {
		key, pieces = contentKey(w.Digest), 1
	}
	began, least := time.Now(), 0
	if all {
		least = answersMost
	}
	ctx, cancel := context.WithTimeout(ctx, e.vain.left(began, answerTimeout))
	defer cancel()
	known := e.known(ctx, key, pieces, least)
	if ctx.Err() != nil {
		e.vain.spend(time.Now(), time.Since(began))
	}
	return known
}

// passage is a blob on its way through.
type passage struct {
	e           *Engine
	w           fetch.Want
	first, last int           // pieces
	idle        time.Duration // without a piece: there is no use in waiting
	cancel      context.CancelFunc
	pieces      chan []byte // in order; closed at the end
	err         error       // set before pieces is closed

	sources []plan.Node // next to ask first; used by fetch only
	cur     []byte
	skip    int   // bytes of the first piece that are not wanted
	left    int64 // bytes to read
}

func (r *passage) run(ctx context.Context) {
	defer close(r.pieces)
	for at := r.first + 1; at <= r.last; at += passingAhead {
		batch, err := r.fetch(ctx, at, min(at+passingAhead-1, r.last))
		if err != nil {
			r.err = err
			return
		}
		for _, p := range batch {
			select {
			case r.pieces <- p:
			case <-ctx.Done():
				r.err = ctx.Err()
				return
			}
		}
	}
}

// fetch brings the pieces from first to last. Sources that have none of a blob
// are asked no more; those that may still get it are asked again for a while.
func (r *passage) fetch(ctx context.Context, first, last int) ([][]byte, error) {
	got := make([][]byte, last-first+1)
	for idle := time.Now(); ; {
		for _, n := range slices.Clone(r.sources) {
			var missing []int
			for k, p := range got {
				if p == nil {
					missing = append(missing, first+k)
				}
			}
			if len(missing) == 0 {
				return got, nil
			}
			if time.Since(idle) > r.idle {
				break // one after the other may take their time
			}
			err := r.ask(ctx, n, missing, func(i int, p []byte) { got[i-first], idle = p, time.Now() })
			if err != nil {
				r.e.log.Debug("a peer gives nothing of a blob that passes through", "digest", r.w.Digest, "peer", n, "err", err)
			}
			// The next one is asked first the next time; who failed is not asked again.
			at := slices.Index(r.sources, n)
			r.sources = slices.Delete(r.sources, at, at+1)
			if err == nil {
				r.sources = append(r.sources, n)
			}
		}
		if !slices.ContainsFunc(got, func(p []byte) bool { return p == nil }) {
			return got, nil
		}
		if len(r.sources) == 0 || time.Since(idle) > r.idle {
			r.e.vain.spend(time.Now(), time.Since(idle))
			return nil, fault.New(fault.NotFound, "no other node has pieces %d to %d of %s", first, last, r.w.Digest)
		}
		select {
		case <-time.After(passingPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ask takes what a peer has of some pieces.
func (r *passage) ask(ctx context.Context, n plan.Node, pieces []int, take func(i int, p []byte)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(r.idle, cancel) // for each piece
	defer watchdog.Stop()
	req := request{Pieces: pieces, Size: r.w.Size}
	if r.w.Private {
		req.Grant = r.e.grantFor(r.w.Namespace, r.w.Digest) // it may have run out since Range looked
	}
	body, err := r.e.post(ctx, n, "/swarm/v1/blobs/"+string(r.w.Digest)+"/pieces", req)
	if err != nil {
		return err
	}
	defer body.Close()
	br := bufio.NewReaderSize(body, 4<<10)
	var head [headerLen]byte
	for range pieces {
		f, err := readFrame(br, &head)
		if err != nil {
			return err
		}
		watchdog.Reset(r.idle)
		if f.kind == kindBusy || f.kind == kindGone {
			continue
		}
		if f.kind != kindPiece || !slices.Contains(pieces, f.piece) || int64(f.size) != min(piece.Size, r.w.Size-int64(f.piece)*piece.Size) {
			return fmt.Errorf("%s sent a frame of kind %d with %d bytes as piece %d", n, f.kind, f.size, f.piece)
		}
		p := make([]byte, f.size)
		if err := r.e.read(ctx, br, p, n); err != nil {
			return err
		}
		take(f.piece, p)
		r.e.metrics.received(n, len(p), true)
		r.e.tallyReceived(n, len(p))
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(br, 1)) // so that the connection is used again
	return nil
}

// Read implements io.Reader.
func (r *passage) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if len(r.cur) == 0 {
		next, ok := <-r.pieces
		if !ok {
			return 0, r.err
		}
		r.cur, r.skip = next[r.skip:], 0
	}
	n := copy(p[:min(int64(len(p)), r.left)], r.cur)
	r.cur = r.cur[n:]
	r.left -= int64(n)
	return n, nil
}

// Close implements io.Closer.
func (r *passage) Close() error {
	r.cancel()
	return nil
}

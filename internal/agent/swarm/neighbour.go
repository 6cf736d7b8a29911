package swarm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/time/rate"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// meet makes a node that downloads the same blob a neighbour, if there is room.
func (d *download) meet(n plan.Node) {
	view := d.e.seen()
	if _, member := view.peers[n]; !member {
		return
	}
	d.mu.Lock()
	if len(d.plan.Peers()) < plan.MaxPeers {
		d.plan.AddPeer(n, view.distance(d.e.o.Self, n))
		d.watchAll(view)
	}
	d.mu.Unlock()
	d.poke()
}

// watchAll begins to watch the neighbours that are not watched yet. d.mu is held.
func (d *download) watchAll(view *members) {
	if d.ctx.Err() != nil {
		return
	}
	for _, n := range d.plan.Peers() {
		if d.watched[n] != nil {
			continue
		}
		if _, member := view.peers[n]; !member {
			d.plan.DropPeer(n)
			continue
		}
		d.plan.AddPeer(n, view.distance(d.e.o.Self, n))
		if d.e.bannedUntil(n) > 0 {
			d.plan.DropPeer(n)
			continue
		}
		ctx, stop := context.WithCancel(d.ctx)
		d.watched[n] = stop
		d.talk.Go(func() { d.watch(ctx, n) })
	}
}

// watch follows a neighbour's pieces until it ends or fails; one that fails is
// no neighbour any more, until the leader names it again.
func (d *download) watch(ctx context.Context, n plan.Node) {
	err := d.listen(ctx, n)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		return // it has said all that it will say
	}
	d.doubt(err)
	if errors.Is(err, errFlood) {
		d.e.log.Warn("a peer sends too much to the nodes that watch it", "peer", n, "banned_until", d.e.banish(n, true))
	}
	d.e.log.Debug("a neighbour is lost", "digest", d.b.Digest(), "peer", n, "err", err)
	d.mu.Lock()
	d.plan.Accuse(n)
	d.drop(n)
	d.mu.Unlock()
	d.poke()
}

func (d *download) listen(ctx context.Context, n plan.Node) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(silent, cancel)
	defer watchdog.Stop()
	body, err := d.e.post(ctx, n, "/swarm/v1/blobs/"+string(d.b.Digest())+"/watch",
		watchRequest{Zone: d.e.o.Self.Zone, Partial: true, Grant: d.grant(), Size: d.b.Size()})
	if err != nil {
		return err
	}
	defer body.Close()
	r := bufio.NewReaderSize(body, 4<<10)
	var head [headerLen]byte
	heard := hearing{frames: rate.NewLimiter(hearFrames, 2*hearFrames), pieces: d.b.Pieces()}
	for {
		f, err := readFrame(r, &head)
		if err == nil {
			err = heard.take(f)
		}
		if err != nil {
			return err
		}
		p := make([]byte, f.size)
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		watchdog.Reset(silent)
		if f.kind == kindEnd {
			_, _ = io.Copy(io.Discard, io.LimitReader(r, 1)) // so that the connection is used again
			return nil
		}
		if err := d.hear(n, f, p); err != nil {
			return err
		}
	}
}

// What a neighbour tells of itself costs memory and time. An honest one says something
// fifty times a second at most, and gains each piece once after each bitmap.
const (
	hearFrames  = 100 // a second
	hearBitmaps = 16
)

var errFlood = errors.New("a peer says more than there is to say")

// hearing bounds what one neighbour tells.
type hearing struct {
	frames          *rate.Limiter
	pieces          int // of the blob
	bitmaps, gained int
}

func (h *hearing) take(f frame) error {
	switch f.kind {
	case kindBitmap:
		h.bitmaps++
		h.gained = 0
	case kindGained:
		h.gained += f.size / 4
	}
	if !h.frames.Allow() || h.bitmaps > hearBitmaps || h.gained > h.pieces || f.kind == kindBitmap && f.size > (h.pieces+7)/8 {
		return fmt.Errorf("%w: a frame of kind %d with %d bytes", errFlood, f.kind, f.size)
	}
	return nil
}

// hear takes in what a neighbour tells of itself.
func (d *download) hear(n plan.Node, f frame, p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch f.kind {
	case kindBitmap:
		d.plan.Holds(n, plan.BitsOf(p, d.b.Pieces()))
	case kindGained:
		eachGained(p, func(i int) { d.plan.Gained(n, i) })
	case kindAlive:
	default:
		return fmt.Errorf("%s sent a frame of kind %d to a watcher", n, f.kind)
	}
	d.plan.Loaded(n, f.load)
	d.poke()
	return nil
}

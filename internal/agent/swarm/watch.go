package swarm

import (
	"net/http"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// Tuning of watches.
const (
	alive  = 3 * time.Second // a watcher hears something at least that often
	silent = 4 * alive       // and gives up after that
)

// watchRequest asks to be told of pieces.
type watchRequest struct {
	Zone  string `json:"zone,omitempty"`
	Grant grant  `json:"grant,omitzero"`
	Size  int64  `json:"size,omitempty"` // as in request
	// Partial says that the asker downloads too, so that a watch back pays.
	Partial bool `json:"partial,omitempty"`
}

// serveWatch tells a peer which pieces are here, and then of each that comes,
// for as long as this node downloads the blob.
func (e *Engine) serveWatch(w http.ResponseWriter, r *http.Request, peer plan.Node) error {
	var req watchRequest
	if err := e.receive(w, r, &req); err != nil {
		return err
	}
	b, err := e.open(r.Context(), r.PathValue("digest"), req.Grant)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := sameSize(req.Size, b); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	s := &sender{e: e, b: b, w: w, rc: http.NewResponseController(w), peer: peer}
	d := e.active(b.Digest())
	if d == nil {
		if err := s.whole(frame{kind: kindBitmap}, b.Bitmap()); err != nil {
			return abort(err)
		}
		return s.end()
	}
	if req.Partial {
		d.meet(peer)
	}
	if err := s.follow(r, d); err != nil {
		return abort(err)
	}
	return s.end()
}

// whole writes a frame with its payload at once.
func (s *sender) whole(f frame, payload []byte) error {
	if err := s.frame(f, payload); err != nil {
		return err
	}
	if _, err := s.w.Write(payload); err != nil {
		return err
	}
	return s.rc.Flush()
}

func (s *sender) end() error {
	if err := s.whole(frame{kind: kindEnd}, nil); err != nil {
		return abort(err)
	}
	return nil
}

// notice is how long to gather pieces before watchers hear of them.
func (d *download) notice() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return plan.NoticeEvery(len(d.plan.Peers()))
}

// follow sends what the download gains until it is over.
func (s *sender) follow(r *http.Request, d *download) error {
	bitmap, seen, generation := d.snapshot()
	if err := s.whole(frame{kind: kindBitmap}, bitmap); err != nil {
		return err
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	idle := time.NewTimer(alive)
	defer idle.Stop()
	for {
		fresh, next, reset, over, changed := d.since(seen, generation)
		switch {
		case reset:
			bitmap, seen, generation = d.snapshot()
			if err := s.whole(frame{kind: kindBitmap}, bitmap); err != nil {
				return err
			}
			continue
		case len(fresh) > 0:
			seen = next
			if err := s.whole(frame{kind: kindGained}, gained(fresh)); err != nil {
				return err
			}
		}
		if over {
			return nil
		}
		pause.Reset(d.notice())
		idle.Reset(alive)
		select {
		case <-changed:
		case <-idle.C:
			if err := s.whole(frame{kind: kindAlive}, nil); err != nil {
				return err
			}
		case <-r.Context().Done():
			return r.Context().Err()
		}
		select {
		case <-pause.C:
		case <-r.Context().Done():
			return r.Context().Err()
		}
	}
}

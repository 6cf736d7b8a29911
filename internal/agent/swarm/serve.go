package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
)

// writeIdle is how long a peer may take no byte of an answer.
const writeIdle = 20 * time.Second

// bodyTime is how long a peer may take to send a request, which has 1 MiB at most.
const bodyTime = 10 * time.Second

// Handler is what peers talk to. It serves nobody whose connection did not prove
// the cluster's secret.
func (e *Engine) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /swarm/v1/announce", e.authenticated(e.serveAnnounce))
	mux.HandleFunc("POST /swarm/v1/holding", e.authenticated(e.serveHolding))
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/watch", e.authenticated(e.serveWatch))
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/pieces", e.authenticated(e.servePieces))
	mux.HandleFunc("POST /swarm/v1/tags", e.authenticated(e.serveTag))
	mux.HandleFunc("POST /swarm/v1/contents", e.authenticated(e.serveContent))
	return mux
}

func (e *Engine) authenticated(h func(w http.ResponseWriter, r *http.Request, peer plan.Node) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer, err := peerOf(r.TLS)
		if err != nil {
			err = fault.Wrap(fault.Denied, err, "only members of the cluster are served")
		} else {
			err = h(w, r, peer)
		}
		if err == nil {
			return
		}
		httpserve.Note(w, err)
		http.Error(w, fault.Public(err).Public, httpserve.Status(err))
	}
}

// receive reads a request, for which the peer has bodyTime, and gives it writeIdle to take
// the answer: whoever answers at length sets that anew.
func (e *Engine) receive(w http.ResponseWriter, r *http.Request, v any) error {
	rc := http.NewResponseController(w)
	// Not every ResponseWriter of a test has deadlines.
	_ = rc.SetReadDeadline(time.Now().Add(e.bodyTime))
	err := decode(r.Body, maxAnnounce, v)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Now().Add(writeIdle))
	return err
}

func (e *Engine) serveAnnounce(w http.ResponseWriter, r *http.Request, peer plan.Node) error {
	var a plan.Announce
	if err := e.receive(w, r, &a); err != nil {
		return err
	}
	if a.Node != peer {
		return fault.New(fault.Denied, "%s announces itself as another node", peer)
	}
	if _, err := oci.ParseDigest(a.Blob); err != nil {
		return fault.Wrap(fault.Invalid, err, "an announcement without a digest")
	}
	reply, err := e.lead(a)
	if err != nil {
		return err
	}
	return answer(w, reply)
}

// lead answers an announcement as the blob's leader.
func (e *Engine) lead(a plan.Announce) (plan.Reply, error) {
	e.dirMu.Lock()
	defer e.dirMu.Unlock()
	return e.directory.Announce(e.now(), a)
}

func (e *Engine) serveHolding(w http.ResponseWriter, r *http.Request, peer plan.Node) error {
	var h holding
	if err := e.receive(w, r, &h); err != nil {
		return err
	}
	if len(h.Blobs) > maxHolding {
		return fault.New(fault.Invalid, "more than %d blobs in one message", maxHolding)
	}
	reply, err := e.hold(peer, h)
	if err != nil {
		return err
	}
	return answer(w, reply)
}

func (e *Engine) hold(peer plan.Node, h holding) (holders, error) {
	reply := holders{Holders: map[string]int{}}
	for blob, pieces := range h.Blobs {
		if _, err := oci.ParseDigest(blob); err != nil {
			return reply, fault.Wrap(fault.Invalid, err, "a holding without a digest")
		}
		r, err := e.lead(plan.Announce{Blob: blob, Node: peer, Zone: h.Zone, Pieces: pieces, Done: true})
		if err != nil {
			continue // somebody disagrees on its size; whoever asks for pieces will find out who is wrong
		}
		reply.Holders[blob] = r.Holders
	}
	return reply, nil
}

func answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// open opens a blob for a peer. Private content is handed out only while this
// node's right to it is fresh, to a peer that states a right of its own, and only
// as content of the upstream that it came from: the one that gave the peer its right
// may only say that it has it (N10).
func (e *Engine) open(ctx context.Context, digest string, g grant) (*piece.Blob, error) {
	d, err := oci.ParseDigest(digest)
	if err != nil {
		return nil, err
	}
	b, err := e.o.Store.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	if !b.Private() {
		return b, nil
	}
	if err := e.mayGive(ctx, d, g); err != nil {
		b.Close()
		e.metrics.refused.Inc()
		return nil, err
	}
	return b, nil
}

// mayGive returns why private content is not given for a grant.
func (e *Engine) mayGive(ctx context.Context, d oci.Digest, g grant) error {
	if g.Kind != grantUpstream || !e.o.Allowed(g.Namespace, d) {
		return fault.New(fault.Denied, "the blob is private, and a right to it was not shown")
	}
	ours, err := e.o.Index.IsOrigin(ctx, d, g.Namespace)
	if err != nil || !ours {
		return errors.Join(err, fault.New(fault.Denied, "the blob is private, and did not come from %s", g.Namespace))
	}
	return nil
}

// servePieces sends the pieces that were asked for, in the order of the upload
// queue.
func (e *Engine) servePieces(w http.ResponseWriter, r *http.Request, peer plan.Node) error {
	var req request
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
	if err := req.check(b.Pieces()); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	s := &sender{e: e, b: b, w: w, rc: http.NewResponseController(w), parcel: parcelOf(r.Context()), peer: peer}
	ready := make(chan *plan.Ask, len(req.Pieces))
	waiting := e.queue(s, req, ready)
	defer e.withdraw(b.Digest(), waiting, ready)
	_ = s.rc.Flush()
	for len(waiting) > 0 {
		select {
		case a := <-ready:
			delete(waiting, a)
			err := s.piece(r.Context(), a.Piece)
			e.sent(a)
			if err != nil {
				return abort(err)
			}
		case <-r.Context().Done():
			return abort(r.Context().Err())
		}
	}
	return nil
}

// abort ends an answer that cannot be completed in a way that the peer notices.
func abort(error) error { panic(http.ErrAbortHandler) }

// queue puts the pieces that are here into the upload queue and tells of the others.
func (e *Engine) queue(s *sender, req request, ready chan *plan.Ask) map[*plan.Ask]bool {
	waiting := map[*plan.Ask]bool{}
	var refused []frame
	e.mu.Lock()
	e.served[s.b.Digest()]++
	for _, i := range req.Pieces {
		if !s.b.Has(i) {
			refused = append(refused, frame{kind: kindGone, piece: i})
			continue
		}
		a := &plan.Ask{Peer: s.peer, Blob: string(s.b.Digest()), Piece: i, At: e.now(), Low: req.Low, Progress: max(0, min(32, req.Progress))}
		if !e.uploads.Push(a) {
			refused = append(refused, frame{kind: kindBusy, piece: i})
			continue
		}
		waiting[a] = true
		e.ready[a] = ready
	}
	e.pump()
	e.mu.Unlock()
	for _, f := range refused {
		if err := s.frame(f, nil); err != nil {
			break // the loop that follows hears of it through the context
		}
	}
	return waiting
}

// pump tells senders that their turn has come. e.mu is held.
func (e *Engine) pump() {
	for a := e.uploads.Pop(); a != nil; a = e.uploads.Pop() {
		ready := e.ready[a]
		delete(e.ready, a)
		ready <- a // has room for all asks of its request
	}
	e.metrics.queue.Set(float64(e.uploads.Load()))
}

func (e *Engine) sent(a *plan.Ask) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.uploads.Done(a)
	e.pump()
}

// withdraw takes what was not sent out of the queue.
func (e *Engine) withdraw(d oci.Digest, waiting map[*plan.Ask]bool, ready chan *plan.Ask) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(waiting) > 0 {
		e.uploads.Withdraw(func(a *plan.Ask) bool {
			if waiting[a] {
				delete(e.ready, a)
			}
			return waiting[a]
		})
	}
	for {
		select {
		case a := <-ready:
			e.uploads.Done(a)
			continue
		default:
		}
		break
	}
	if e.served[d]--; e.served[d] <= 0 {
		delete(e.served, d)
		if e.downloads[d] == nil {
			e.uploads.Forget(string(d))
		}
	}
	e.pump()
}

// sender writes frames of one answer.
type sender struct {
	e      *Engine
	b      *piece.Blob
	w      http.ResponseWriter
	rc     *http.ResponseController
	parcel *parcel
	peer   plan.Node
	head   [headerLen]byte
}

func (s *sender) frame(f frame, payload []byte) error {
	s.e.mu.Lock()
	f.load = s.e.uploads.Load()
	s.e.mu.Unlock()
	f.size = len(payload)
	f.put(&s.head)
	// Not every ResponseWriter of a test has deadlines.
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeIdle))
	if _, err := s.w.Write(s.head[:]); err != nil {
		return err
	}
	return nil
}

// piece sends one piece, at the pace of the token buckets.
func (s *sender) piece(ctx context.Context, i int) error {
	buf := s.e.buffers.Get().(*[piece.Size]byte)
	defer s.e.buffers.Put(buf)
	n, err := s.b.ReadPiece(i, buf[:])
	if errors.Is(err, piece.ErrCorrupt) {
		// It was dropped and will be fetched again; the peer asks elsewhere.
		return s.frame(frame{kind: kindGone, piece: i}, nil)
	}
	if err != nil {
		return err
	}
	f := frame{kind: kindPiece, piece: i}
	if d := s.e.active(s.b.Digest()); d != nil && d.relayed(i) {
		f.flags = flagRelayed
	}
	for from := 0; from < n; from += grain {
		part := buf[from:min(from+grain, n)]
		if err := s.e.up.wait(ctx, s.peer, len(part)); err != nil {
			return err
		}
		err := s.parcel.together(func() error {
			if from == 0 {
				if err := s.frame(f, buf[:n]); err != nil {
					return err
				}
			}
			_ = s.rc.SetWriteDeadline(time.Now().Add(writeIdle))
			if _, err := s.w.Write(part); err != nil {
				return err
			}
			if from+len(part) < n {
				return nil
			}
			return s.rc.Flush()
		})
		if err != nil {
			return err
		}
	}
	s.e.tallySent(s.peer, n)
	return nil
}

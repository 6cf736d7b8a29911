package swarm

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Tuning of Together.
const (
	// A node waits for this long, and a random part of as much again, for another that
	// asks the upstream: when that one is dead, the first whose time is over fetches for
	// those who still wait. One answer of a leader or a holder may take this long.
	togetherWait  = time.Second
	togetherPause = 10 * time.Millisecond
	togetherSlow  = 100 * time.Millisecond
	togetherCrowd = 300 * time.Millisecond // the pause, at most; it grows by 1 ms a member
	togetherAsked = 4                      // holders that are asked, at most
)

// errWrong says that a peer gave other bytes than it was asked for.
var errWrong = errors.New("the content does not match its digest")

// Together finds small content, of which the upstream has said already that it may be
// had, at another node, so that a crowd costs the upstream about one answer. Its bytes
// match d. It waits for a node that is asking the upstream, for two seconds in all. If
// found is false, the caller asks the upstream, and calls failed if that brings nothing.
// private: only by this node's own right, which has to be fresh (N10).
func (e *Engine) Together(ctx context.Context, ns string, repo oci.Name, d oci.Digest, private bool) (g Given, found bool, failed func()) {
	if e.stop.Err() != nil || len(e.seen().list) < 2 {
		return g, false, func() {}
	}
	t := &together{e: e, q: question{Namespace: ns, Repo: repo, Digest: d}, asked: map[plan.Node]bool{}}
	if private {
		if t.q.Grant = e.grantFor(ns, d); t.q.Grant.Kind == "" {
			e.metrics.refused.Inc()
			return g, false, func() {}
		}
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.vain.left(began, e.patience()+rand.N(e.patience())))
	defer cancel()
	t.a = plan.Announce{
		Blob: contentKey(d), Node: e.o.Self.Node, Zone: e.o.Self.Zone, Pieces: 1, Want: 1, Peers: togetherAsked, Whole: true, New: true,
		Have: plan.NewBits(1), // whatever the leader was told before
	}
	if g, err := t.run(ctx); err == nil {
		return g, true, func() {}
	}
	e.vain.spend(time.Now(), time.Since(began))
	return Given{}, false, t.handBack
}

func (e *Engine) patience() time.Duration {
	if wait := time.Duration(e.wait.Load()); wait > 0 {
		return wait
	}
	return togetherWait
}

// together is one search for small content.
type together struct {
	e      *Engine
	q      question
	a      plan.Announce
	leader plan.Node // asked last
	asked  map[plan.Node]bool
}

// run asks the leader until somebody gives the content, it is this node's turn, or
// ctx ends. Whatever goes wrong is a reason to ask the upstream.
func (t *together) run(ctx context.Context) (Given, error) {
	for pause := togetherPause; ; pause = min(2*pause, togetherSlow) {
		reply, err := t.tell(ctx)
		if err != nil || len(reply.Lease) > 0 {
			return Given{}, errLeft
		}
		t.a.New, t.a.Lost, t.a.Starved = false, nil, false
		g, err := t.askHolders(ctx, reply.Peers)
		if err == nil {
			return g, nil
		}
		if len(reply.Peers) > 0 && !errors.Is(err, errWrong) || len(t.asked) >= togetherAsked {
			return Given{}, err
		}
		rest := max(pause, min(time.Duration(reply.Members)*time.Millisecond, togetherCrowd))
		select {
		case <-time.After(rest/2 + rand.N(rest)):
		case <-ctx.Done():
			return Given{}, ctx.Err()
		}
	}
}

func (t *together) tell(ctx context.Context) (plan.Reply, error) {
	asking, cancel := context.WithTimeout(ctx, t.e.patience())
	defer cancel()
	t.leader = t.e.leaderOf(t.a.Blob)
	reply, err := t.e.tell(asking, t.leader, t.a)
	if err != nil && ctx.Err() == nil {
		t.e.noteUnwell(t.leader)
	}
	return reply, err
}

// askHolders asks those who are said to have the content, one after the other. The
// error is errWrong if somebody lied, whom the leader hears of next.
func (t *together) askHolders(ctx context.Context, members []plan.Member) (Given, error) {
	view, failure := t.e.seen(), error(fault.New(fault.NotFound, "no other node has %s", t.q.Digest))
	for _, m := range members {
		_, member := view.peers[m.Node]
		if len(t.asked) >= togetherAsked || !member || m.Node == t.e.o.Self.Node || t.asked[m.Node] || t.e.bannedUntil(m.Node) > 0 {
			continue
		}
		t.asked[m.Node] = true
		g, err := t.askOne(ctx, m.Node)
		if err == nil {
			return g, nil
		}
		t.e.log.Debug("a node does not give small content", "peer", m.Node, "digest", t.q.Digest, "err", err)
		if failure = err; errors.Is(err, errWrong) {
			t.e.metrics.mismatches.Inc()
			t.e.log.Warn("a peer gave wrong content", "peer", m.Node, "digest", t.q.Digest, "banned_until", t.e.banish(m.Node, false))
			t.a.Lost, t.a.Starved = append(t.a.Lost, m.Node), true
		}
	}
	return Given{}, failure
}

func (t *together) askOne(ctx context.Context, n plan.Node) (Given, error) {
	ctx, cancel := context.WithTimeout(ctx, t.e.patience())
	defer cancel()
	g, err := askOne[Given](ctx, t.e, n, t.q, "/swarm/v1/contents")
	if err == nil && t.q.Digest.Algorithm().FromBytes(g.Content) != t.q.Digest {
		err = errWrong
	}
	if err == nil {
		t.e.tallyReceived(n, len(g.Content))
	}
	return g, err
}

// handBack lets another node ask the upstream.
func (t *together) handBack() {
	if t.e.stop.Err() != nil {
		return
	}
	a := plan.Announce{Blob: t.a.Blob, Node: t.a.Node, Zone: t.a.Zone, Pieces: 1, Back: []int{0}}
	t.e.work.Go(func() {
		if _, err := t.e.tell(t.e.stop, t.leader, a); err != nil {
			t.e.log.Debug("a lease was not handed back; those who wait give up by themselves", "leader", t.leader, "err", err)
		}
	})
}

// fillSmall brings all of a blob that is too small for Fill from a node that has it,
// or leaves it to the upstream.
func (e *Engine) fillSmall(ctx context.Context, w fetch.Want, b *piece.Blob) error {
	if b.Size() > oci.ManifestMax {
		return errLeft
	}
	g, found, failed := e.Together(ctx, w.Namespace, w.Repo, w.Digest, w.Private || b.Private())
	if !found {
		context.AfterFunc(ctx, func() { // at the end of the download, whoever brings it
			if info, err := e.o.Store.Info(e.stop, w.Digest); err != nil || info.State != index.Complete {
				failed()
			}
		})
		return errLeft
	}
	return writeSmall(ctx, b, g, e.Name())
}

// writeSmall stores content whose digest was checked.
func writeSmall(ctx context.Context, b *piece.Blob, g Given, source string) error {
	if int64(len(g.Content)) != b.Size() {
		return fetch.ErrWrongLength
	}
	for _, i := range slices.Clone(b.Missing()) {
		p := g.Content[i*piece.Size:]
		if err := b.WritePiece(ctx, i, p[:b.PieceLen(i)], source); err != nil {
			return err
		}
	}
	return nil
}

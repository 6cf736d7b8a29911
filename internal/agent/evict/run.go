package evict

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// batchMax is how many blobs are claimed, asked about and removed together: the
// runtimes are asked once for each batch, and a reader meets a claim for no
// longer than a batch takes.
const batchMax = 256

// removeMax is how many of these are removed in one transaction.
const removeMax = 64

// Result is what a pass did.
type Result struct {
	Examined int
	Evicted  int
	Freed    int64            // bytes, as the store confirmed them
	Raced    int              // chosen, but used or changed before they were removed
	Failed   int              // could not be removed
	Kept     map[string]int   // by Verdict.Why
	Tiers    map[string]Total // before the pass
	Trigger  string           // what started it, "" for nothing
	Target   int64            // bytes to free
	Short    int64            // of these, how many could not go
	Refused  bool             // an admission got no room
	Used     int64            // bytes afterwards
	Took     time.Duration
}

// pass gathers, judges and evicts. The caller has the turn. What was done until
// an error is in the result.
func (e *Evictor) pass(ctx context.Context, need int64, coldOnly bool) (Result, error) {
	g, err := e.gather(ctx, need)
	if err != nil {
		return Result{}, err
	}
	return e.passOver(ctx, g, coldOnly)
}

// passOver is pass by what was gathered.
func (e *Evictor) passOver(ctx context.Context, g *gathered, coldOnly bool) (Result, error) {
	l := e.limits()
	if err := l.Validate(); err != nil {
		return Result{}, err
	}
	if g.situation.ColdOnly = coldOnly; coldOnly {
		l = l.spare(g.situation.Usage.FSTotal)
	}
	if err := e.renew(ctx, g); err != nil {
		return Result{}, err
	}
	j := Judge(g.facts, g.situation, l)
	r := Result{Examined: len(j.Verdicts), Kept: map[string]int{}, Tiers: map[string]Total{}, Trigger: j.Trigger, Target: j.Target, Short: j.Short, Refused: j.Refused}
	for t, total := range j.Tiers {
		r.Tiers[Tier(t).String()] = total
	}
	for i := range j.Verdicts {
		if v := &j.Verdicts[i]; !v.Go {
			r.Kept[v.Why]++
		}
	}
	var err error
	for victims := range slices.Chunk(j.Victims, batchMax) {
		if err = e.evict(ctx, l, g, &j, victims, &r); err != nil {
			break
		}
	}
	if err == nil {
		e.clock.seen()
	}
	r.Used = e.usage().Used
	r.Took = e.o.Now().Sub(g.began)
	e.report(g, &j, &r, l)
	return r, err
}

// claimed is a victim that nobody may remove but this batch.
type claimed struct {
	victim int // in the facts and verdicts of the first judgement
	piece.Claim
}

// evict claims victims, asks the runtimes again, and removes those that are
// judged as before.
func (e *Evictor) evict(ctx context.Context, l Limits, g *gathered, j *Judgement, victims []int, r *Result) error {
	var claims []claimed
	defer func() {
		// Whatever has not gone is given back, also when ctx is done.
		for _, c := range claims {
			if err := e.o.Store.Unclaim(context.WithoutCancel(ctx), c.Claim); err != nil {
				e.o.Log.Warn("a claim could not be given up", "digest", c.Digest, "error", err)
			}
		}
	}()
	judged := make([]piece.Judged, len(victims))
	for n, i := range victims {
		judged[n] = piece.Judged{Digest: j.Verdicts[i].Digest, Version: g.versions[i]}
	}
	all, errs := e.o.Store.ClaimAll(ctx, judged)
	for n, i := range victims {
		if errs[n] == nil {
			claims = append(claims, claimed{victim: i, Claim: all[n]})
		}
	}
	for n, err := range errs {
		if err == nil {
			continue
		}
		if err := e.refused(ctx, r, judged[n].Digest, err); err != nil {
			return err
		}
	}
	for len(claims) > 0 {
		u, err := e.o.Tracker.Ask(ctx)
		if err != nil {
			return fmt.Errorf("ask the runtimes again: %w", err)
		}
		keep, err := e.again(ctx, l, g, j, claims, u)
		if err != nil {
			return err
		}
		if claims, err = e.apply(ctx, g, j, claims, keep, u, r); err != nil {
			return err
		}
	}
	return nil
}

// apply gives back the claims that are to be kept and removes the others, unless
// what is believed of the runtimes is no longer what they were judged by (N4). A
// reading that changes nothing does not stop a removal: a busy node has several in
// a second, and would otherwise never evict anything. It returns the claims that it
// left.
func (e *Evictor) apply(ctx context.Context, g *gathered, j *Judgement, claims []claimed, keep []string, judged *inuse.Usage, r *Result) ([]claimed, error) {
	var going []claimed
	for n, c := range claims {
		if keep[n] == "" {
			going = append(going, c)
			continue
		}
		r.Raced++
		e.metrics.refused.WithLabelValues("in use").Inc()
		e.o.Log.Info("a blob was wanted before it was evicted", "digest", c.Digest, "reason", keep[n])
		if err := e.o.Store.Unclaim(ctx, c.Claim); err != nil {
			return slices.Concat(going, claims[n+1:]), err
		}
	}
	// In parts, so that whoever opens one of them waits for a part only.
	for len(going) > 0 {
		if err := ctx.Err(); err != nil {
			return going, err
		}
		now := going[:min(len(going), removeMax)]
		all := make([]piece.Claim, len(now))
		for n, c := range now {
			all[n] = c.Claim
		}
		done, err := e.o.Store.RemoveAll(ctx, all, func() bool { return e.o.Tracker.Usage().Same(judged) })
		if errors.Is(err, piece.ErrOutdated) {
			return going, nil
		}
		if err != nil {
			// None of these is gone.
			done = make([]piece.Removed, len(now))
			for n := range done {
				done[n].Err = err
			}
		}
		going = going[len(now):]
		var outdated []claimed
		for n, c := range now {
			if errors.Is(done[n].Err, piece.ErrOutdated) {
				outdated = append(outdated, c)
			} else if err := e.removed(ctx, g, j, c, done[n], r); err != nil {
				return slices.Concat(outdated, now[n:], going), err
			}
		}
		if len(outdated) > 0 {
			return slices.Concat(outdated, going), nil // after another question to the runtimes
		}
	}
	return nil, nil
}

// removed counts what became of a claim.
func (e *Evictor) removed(ctx context.Context, g *gathered, j *Judgement, c claimed, done piece.Removed, r *Result) error {
	v := &j.Verdicts[c.victim]
	if done.Freed > 0 { // also where something of it stays
		r.Freed += done.Freed
		e.metrics.evicted.WithLabelValues(v.Tier.String(), v.Why).Add(float64(done.Freed))
	}
	if done.Err != nil {
		if err := e.refused(ctx, r, c.Digest, done.Err); err != nil {
			return err
		}
		if err := e.o.Store.Unclaim(ctx, c.Claim); err != nil {
			e.o.Log.Warn("a claim could not be given up", "digest", c.Digest, "error", err)
		}
		return nil
	}
	if g.usage.PullsUnseen {
		e.gone[c.Digest] = e.o.Index.Now()
	}
	e.o.Evicted(c.Digest)
	r.Evicted++
	e.o.Log.Info("evicted", "digest", c.Digest, "bytes", done.Freed, "tier", v.Tier.String(), "reason", v.Reason, "idle", time.Duration(v.Idle)*time.Millisecond)
	return nil
}

// refused counts what the store did not let go. Only the end of ctx ends the
// pass: one blob that fails does not stop the others.
func (e *Evictor) refused(ctx context.Context, r *Result, d oci.Digest, err error) error {
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, fault.Conflict), errors.Is(err, fault.NotFound):
		r.Raced++
		e.metrics.refused.WithLabelValues("raced").Inc()
		e.o.Log.Debug("a blob changed before it was evicted", "digest", d, "error", err)
	default:
		r.Failed++
		e.metrics.refused.WithLabelValues("failed").Inc()
		e.o.Log.Error("a blob could not be evicted", "digest", d, "error", err)
	}
	return nil
}

// again judges the claimed ones by a newer answer of the runtimes. For each it
// returns why it is to be kept, "" if it still is to go.
func (e *Evictor) again(ctx context.Context, l Limits, g *gathered, j *Judgement, claims []claimed, u *inuse.Usage) ([]string, error) {
	now := &gathered{traced: g.traced, all: g, situation: Situation{Usage: g.situation.Usage}}
	sorted := slices.Clone(claims)
	slices.SortFunc(sorted, func(a, b claimed) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	for _, c := range sorted {
		i, err := e.o.Store.Info(ctx, c.Digest)
		if err != nil && !errors.Is(err, fault.NotFound) {
			return nil, err
		}
		f := g.facts[c.victim]
		if err == nil {
			f = factsOf(&i)
			if i.DeletedAt != 0 {
				now.deleted = append(now.deleted, len(now.facts))
			}
		}
		f.Claimed, f.Use = false, nil // the claim is ours
		now.facts = append(now.facts, f)
	}
	if err := e.situate(ctx, now, u, 0); err != nil {
		return nil, err
	}
	keep := make([]string, len(claims))
	for n, c := range claims {
		before := j.Verdicts[c.victim]
		v := tierOf(&now.facts[now.find(c.Digest)], &now.situation, &l)
		switch {
		case v.Tier > before.Tier: // a victim was not active
			keep[n] = v.Reason
		case before.Why == Expired && v.Why != Expired:
			keep[n] = "its image is there again"
		}
	}
	return keep, nil
}

// renew has the time of deleted images begin anew when the clock has jumped:
// nobody knows how much of it is over, and after a restart the jump would be
// forgotten.
func (e *Evictor) renew(ctx context.Context, g *gathered) error {
	if !g.situation.Stepped || len(g.deleted) == 0 {
		return nil
	}
	var all []oci.Digest
	for _, i := range g.deleted {
		all = append(all, g.facts[i].Digest)
	}
	e.o.Log.Warn("the clock has jumped, so the time of deleted images begins anew", "blobs", len(all))
	return e.o.Index.SetDeleted(ctx, all, g.situation.Now)
}

package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// batchMax is how many items are judged and applied together where no client writes:
// a commit writes each page once that they have in common. A run with a limit takes
// fewer at a time, and so do deletes, which a stop waits for.
const (
	batchMax   = 512
	limitedMax = 128
)

// purgeMax is how many objects are deleted after one wait for the disk.
const purgeMax = 1024

// A batch makes way for a client that wants to write after so many acts: more where
// none has come lately. While clients write, each transaction is followed by a rest of so
// many times the work that it was, and so are the deletes of so many objects.
const (
	portion          = 64
	portionContended = 8
	deletesContended = 48
	restFactor       = 2
	restMax          = 200 * time.Millisecond
)

// totalMax bounds the count of what is due, which is for the estimate only.
const totalMax = 5_000_000

// runner is one run.
type runner struct {
	*Collector
	run     meta.Run
	actor   string
	scope   meta.Scope
	limits  Limits // of the run's beginning
	limiter *rate.Limiter

	trashed []int64 // moved to the trash by this run and not judged there yet; with a trash time of 0 they go on at once
}

func (c *Collector) limiter() *rate.Limiter {
	if c.opts.Rate <= 0 {
		return rate.NewLimiter(rate.Inf, batchMax)
	}
	return rate.NewLimiter(rate.Limit(c.opts.Rate), limitedMax)
}

// atOnce is how many items this run takes at a time.
func (r *runner) atOnce() int { return r.limiter.Burst() }

// batch is verdicts on their way to becoming one Work.
type batch struct {
	meta.Work
	size int
}

func (r *runner) newBatch() *batch {
	return &batch{Work: meta.Work{Run: r.run.ID, Actor: r.actor, Policy: r.run.Policy, Counts: meta.Counts{Kept: map[string]int64{}}}}
}

func (b *batch) examined(v Verdict) {
	b.size++
	b.Counts.Examined++
	if !v.Go {
		b.Counts.Kept[v.Kept]++
	}
}

// review answers the review that brought a kept thing up: closed if only an
// event can change the verdict, put off if time can.
func (b *batch) review(kind string, target int64, row meta.ReviewRow, v Verdict, window int64) {
	if row.Version == 0 {
		return
	}
	s := meta.Settled{Kind: kind, Target: target, Version: row.Version}
	switch {
	case v.Again == 0:
		b.Settled = append(b.Settled, s)
	case v.Kept == KeptLease:
		// The end of a lease is an event like the loss of a reference. It is put
		// beyond what this run reads, which so meets it once.
		b.Postponed = append(b.Postponed, meta.Postponed{Settled: s, EventAt: v.Again - window + meta.ConfirmAhead, Holder: v.Holder})
	default:
		b.Postponed = append(b.Postponed, meta.Postponed{Settled: s, EventAt: max(v.Again-window, row.EventAt+1)})
	}
}

// execute works until nothing is left that was due when the run began, or that
// the run has uncovered. What fails does not stop the rest (R9): the bytes of what
// is gone are deleted in any case.
func (r *runner) execute(ctx context.Context) error {
	return errors.Join(r.settleKin(ctx), r.forgetLeases(ctx, r.limits.Window), r.estimate(ctx), r.judgeAll(ctx), r.purge(ctx))
}

// settleKin goes on with what a crash or an error has left of deleted and pushed
// manifests. What fails again is a failure of the run.
func (r *runner) settleKin(ctx context.Context) error {
	err := r.store.FinishKin(ctx)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	r.opts.Log.Error("children and referrers were not settled", "run", r.run.ID, "error", err)
	r.metrics.worked(meta.Counts{Failed: 1})
	if err := r.store.CollectFailed(ctx, meta.Work{Run: r.run.ID}, "children and referrers of a manifest were not settled: "+plain(err)); err != nil {
		return fmt.Errorf("the database takes no writes: %w", err)
	}
	return nil
}

// estimate counts what is due.
func (r *runner) estimate(ctx context.Context) error {
	total, err := r.store.CountDue(ctx, cutoffs(r.limits), r.scope, totalMax)
	if err != nil {
		return err
	}
	return r.store.AddRunCounts(ctx, r.run.ID, meta.Counts{Total: total})
}

// judgeAll works off the queues. One that fails is left to the next run.
func (r *runner) judgeAll(ctx context.Context) error {
	var errs []error
	steps := []func(context.Context, bool) (int, error){r.uploads, r.loose, r.stranded, r.orphans, r.trash, r.links, r.unlinked}
	for first := true; ; first = false {
		n := 0
		for i, step := range steps {
			if step == nil {
				continue
			}
			k, err := step(ctx, first)
			if err != nil {
				errs, steps[i] = append(errs, err), nil
			}
			n += k
		}
		if n == 0 {
			return errors.Join(errs...)
		}
	}
}

// due says what to read: in the first pass what was due at the beginning, in
// later ones what this run has uncovered and is due by now.
func (r *runner) due(first bool, duration int64) meta.Due {
	d := meta.Due{Scope: r.scope, Limit: r.atOnce(), Window: r.limits.Window}
	if first {
		// Bounded even where no window applies, so that a run does not follow for
		// ever what is deleted while it works.
		d.Before = min(r.limits.cutoff(duration), r.limits.Now+meta.ConfirmAhead)
	} else {
		d.Run = r.run.ID
		l := r.limits
		l.Now = r.store.Now()
		d.Before = l.cutoff(duration)
	}
	return d
}

// now is the policy at this time; a judge must not use the time of the run's
// beginning for what was touched since.
func (r *runner) now() Limits {
	l := r.limits
	l.Now = r.store.Now()
	return l
}

// each reads a queue batch by batch: read returns the next batch's work and
// how many items it read; none ends it. items is how many were dealt with: what
// fails is still in its queue and is no reason for another pass.
func (r *runner) each(ctx context.Context, read func(*batch) (int, error)) (items int, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return items, err
		}
		b := r.newBatch()
		n, err := read(b)
		if err != nil {
			return items, err
		}
		if n == 0 {
			return items, nil
		}
		if err := r.limiter.WaitN(ctx, n); err != nil {
			return items, context.Canceled
		}
		failed, err := r.apply(ctx, b)
		if err != nil {
			return items, err
		}
		items += n - failed
	}
}

// apply commits a batch. If that fails, its items are tried one by one, so that
// one that fails does not stop the others (R9); what fails alone is counted,
// logged and left in its queue.
func (r *runner) apply(ctx context.Context, b *batch) (failed int, err error) {
	for left, more := b.Work, true; more; more = !left.Empty() {
		n := portion
		if r.contended() {
			n = portionContended
		}
		before := r.store.Upkeep()
		var counts meta.Counts
		step := left
		counts, left, err = r.store.CollectSome(ctx, step, n)
		if err != nil {
			k, err := r.oneByOne(ctx, step, err)
			return failed + k, err
		}
		r.metrics.worked(counts)
		if err := r.rest(ctx, r.store.Upkeep()-before); err != nil {
			return failed, err
		}
	}
	return failed, nil
}

// rest leaves the database and the storage to clients, if any are writing, for some
// times as long as a step has kept them busy: so a collection slows a push by a small part
// of itself, however long it goes on (R5). What a step has waited for, such as its
// turn, is no work.
func (c *Collector) rest(ctx context.Context, work time.Duration) error {
	if !c.contended() {
		return nil
	}
	t := time.NewTimer(min(restFactor*work, restMax))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// oneByOne tries work that has failed together with others. What fails alone is counted.
func (r *runner) oneByOne(ctx context.Context, work meta.Work, cause error) (failed int, err error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	r.opts.Log.Warn("a batch failed, trying its items one by one", "run", r.run.ID, "error", cause)
	for _, w := range split(work) {
		counts, err := r.store.Collect(ctx, w)
		if err == nil {
			r.metrics.worked(counts)
			continue
		}
		if ctx.Err() != nil {
			return failed, ctx.Err()
		}
		failed++
		r.metrics.worked(meta.Counts{Failed: 1})
		r.opts.Log.Error("an item failed", "run", r.run.ID, "error", err)
		if err := r.store.CollectFailed(ctx, w, "an item failed: "+plain(err)); err != nil {
			return failed, fmt.Errorf("the database takes no writes: %w", err)
		}
	}
	return failed, nil
}

// plain is what an administrator may read of an error; the log has the rest.
func plain(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	if sqldb.IsFull(err) {
		return "the database has no room to write"
	}
	return fault.Public(err).Public
}

// split takes a work apart into works of one claim each.
func split(w meta.Work) []meta.Work {
	rest := w
	rest.Trash, rest.Remove, rest.Unlink, rest.Collect, rest.Abandon = nil, nil, nil, nil, nil
	one := meta.Work{Run: w.Run, Actor: w.Actor, Policy: w.Policy}
	out := []meta.Work{rest}
	for i := range w.Trash {
		o := one
		o.Trash = w.Trash[i : i+1]
		out = append(out, o)
	}
	for i := range w.Remove {
		o := one
		o.Remove = w.Remove[i : i+1]
		out = append(out, o)
	}
	for i := range w.Unlink {
		o := one
		o.Unlink = w.Unlink[i : i+1]
		out = append(out, o)
	}
	for i := range w.Collect {
		o := one
		o.Collect = w.Collect[i : i+1]
		out = append(out, o)
	}
	for i := range w.Abandon {
		o := one
		o.Abandon = w.Abandon[i : i+1]
		out = append(out, o)
	}
	return out
}

func (r *runner) uploads(ctx context.Context, first bool) (int, error) {
	if !first {
		return 0, nil
	}
	var after meta.UploadFacts
	return r.each(ctx, func(b *batch) (int, error) {
		l := r.now()
		fs, err := r.store.IdleUploads(ctx, min(r.limits.cutoff(l.Uploads), r.limits.Now), r.scope, after, r.atOnce())
		for _, f := range fs {
			after = f
			v := JudgeUpload(f, r.opts.Busy(f.ID), l)
			b.examined(v)
			if v.Go {
				// Not the limit but what was judged: each request touches the session.
				b.Abandon = append(b.Abandon, meta.UploadClaim{ID: f.ID, Version: f.Version, Before: f.TouchedAt, Reason: v.Reason})
			}
		}
		return len(fs), err
	})
}

func (r *runner) loose(ctx context.Context, first bool) (int, error) {
	if !first || r.limits.Untagged == 0 {
		return 0, nil
	}
	d := r.due(first, r.limits.untagged())
	return r.each(ctx, func(b *batch) (int, error) {
		fs, err := r.store.Loose(ctx, d)
		for _, f := range fs {
			d.After = meta.Cursor{At: f.LooseAt, ID: f.ID}
			r.judgeManifest(b, f)
		}
		return len(fs), err
	})
}

// stranded looks at signatures whose image is gone. Where they are kept it only
// counts them, whatever else keeps them.
func (r *runner) stranded(ctx context.Context, first bool) (int, error) {
	if !first {
		return 0, nil
	}
	if r.limits.Stranded == 0 {
		n, err := r.store.CountStranded(ctx, r.scope)
		if err != nil || n == 0 {
			return 0, err
		}
		b := r.newBatch()
		b.Counts.Examined, b.Counts.Kept[KeptStranded] = n, n
		_, err = r.apply(ctx, b)
		return 0, err
	}
	var after meta.StrandedFacts
	d := r.due(first, r.limits.stranded())
	return r.each(ctx, func(b *batch) (int, error) {
		fs, err := r.store.Stranded(ctx, d, after)
		l := r.now()
		for _, f := range fs {
			after = f
			v := JudgeStranded(f, l)
			b.examined(v)
			if v.Go {
				b.Trash = append(b.Trash, meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: l.cutoff(l.stranded()), Reason: v.Reason},
					Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest, Cause: oci.Digest(f.Subject), Stranded: true})
				r.goesOn(f.ID, l)
			}
		}
		return len(fs), err
	})
}

// goesOn notes that a manifest is to be judged in the trash by this run.
func (r *runner) goesOn(id int64, l Limits) {
	if l.Trash == 0 {
		r.trashed = append(r.trashed, id)
	}
}

// orphans follows deletions down to the last child and referrer before the
// trash is looked at: what they let go there goes in the same run.
func (r *runner) orphans(ctx context.Context, first bool) (items int, err error) {
	for ; ; first = false {
		d := r.due(first, r.limits.Window)
		n, err := r.each(ctx, func(b *batch) (int, error) {
			fs, err := r.store.Orphans(ctx, d)
			for _, f := range fs {
				d.After = meta.Cursor{At: f.Review.EventAt, ID: f.ID}
				r.judgeManifest(b, f)
			}
			return len(fs), err
		})
		items += n
		if err != nil || n == 0 {
			return items, err
		}
	}
}

func (r *runner) judgeManifest(b *batch, f meta.ManifestFacts) {
	l := r.now()
	v := JudgeManifest(f, l)
	b.examined(v)
	if !v.Go {
		// A manifest found by the index of untagged ones has no review to answer.
		b.review("manifest", f.ID, f.Review, v, l.Window)
		return
	}
	t := meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: l.cutoff(patience(f, l)), Reason: v.Reason},
		Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest}
	if f.OrphanedAt != 0 {
		t.Cause = f.OrphanOf
	}
	b.Trash = append(b.Trash, t)
	r.goesOn(f.ID, l)
}

// patience is the duration that JudgeManifest goes by.
func patience(f meta.ManifestFacts, l Limits) int64 {
	if f.OrphanedAt != 0 {
		return l.Window
	}
	return l.untagged()
}

func (r *runner) trash(ctx context.Context, first bool) (int, error) {
	if !first {
		if r.limits.Trash != 0 || len(r.trashed) == 0 {
			return 0, nil
		}
		ids := r.trashed
		r.trashed = nil
		return r.each(ctx, func(b *batch) (int, error) {
			n := min(r.atOnce(), len(ids))
			if n == 0 {
				return 0, nil
			}
			fs, err := r.store.Trashed(ctx, meta.Due{IDs: ids[:n], Window: r.limits.Window})
			ids = ids[n:]
			r.judgeTrash(b, fs)
			return n, err
		})
	}
	d := r.due(first, r.limits.Trash)
	mine := map[int64]bool{} // that this run has put there, and that are not judged there yet
	for _, id := range r.trashed {
		mine[id] = true
	}
	items, err := r.each(ctx, func(b *batch) (int, error) {
		fs, err := r.store.Trashed(ctx, d)
		r.judgeTrash(b, fs)
		for _, f := range fs {
			d.After = meta.Cursor{At: f.TrashedAt, ID: f.ID}
			delete(mine, f.ID)
		}
		return len(fs), err
	})
	r.trashed = slices.DeleteFunc(r.trashed, func(id int64) bool { return !mine[id] })
	return items, err
}

func (r *runner) judgeTrash(b *batch, fs []meta.TrashFacts) {
	l := r.now()
	for _, f := range fs {
		v := JudgeTrash(f, l)
		b.examined(v)
		if v.Go {
			b.Remove = append(b.Remove, meta.Claim{ID: f.ID, Version: f.Version, Before: l.cutoff(l.Trash), Reason: v.Reason})
		}
	}
}

func (r *runner) links(ctx context.Context, first bool) (int, error) {
	d := r.due(first, r.limits.Window)
	return r.each(ctx, func(b *batch) (int, error) {
		fs, err := r.store.Links(ctx, d)
		l := r.now()
		for _, f := range fs {
			d.After = meta.Cursor{At: f.Review.EventAt, ID: f.ID}
			v := JudgeLink(f, l)
			b.examined(v)
			if v.Go {
				b.Unlink = append(b.Unlink, meta.Claim{ID: f.ID, Version: f.Version, Before: l.cutoff(l.Window), Reason: v.Reason})
			} else {
				b.review("link", f.ID, f.Review, v, l.Window)
			}
		}
		return len(fs), err
	})
}

func (r *runner) unlinked(ctx context.Context, first bool) (int, error) {
	d := r.due(first, r.limits.Window)
	return r.each(ctx, func(b *batch) (int, error) {
		fs, err := r.store.Blobs(ctx, d)
		l := r.now()
		for _, f := range fs {
			d.After = meta.Cursor{At: f.Review.EventAt, ID: f.ID}
			v := JudgeBlob(f, l)
			b.examined(v)
			if v.Go {
				b.Collect = append(b.Collect, meta.Claim{ID: f.ID, Version: f.Version, Before: l.cutoff(l.Window), Reason: v.Reason})
			} else {
				b.review("blob", f.ID, f.Review, v, l.Window)
			}
		}
		return len(fs), err
	})
}

// purge deletes the bytes whose keys nothing names any more. A run over all
// repositories clears the whole queue, one over some only its own part.
func (r *runner) purge(ctx context.Context) error {
	origin := r.run.ID
	if r.scope.All() {
		origin = 0
	}
	// What fails is due again while this run goes on. It is for a later run: each
	// object is tried once in a run, so counts and events are one for an object.
	until := r.store.Now()
	var due int64
	key := ""
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		ps, err := r.store.DuePurges(ctx, origin, due, key, purgeMax)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(ps, func(p meta.PendingPurge) bool { return p.DueAt > until }); i >= 0 {
			ps = ps[:i]
		}
		if len(ps) == 0 {
			return nil
		}
		due, key = ps[len(ps)-1].DueAt, ps[len(ps)-1].Key
		if err := r.purgeThese(ctx, r.takePurges(ps)); err != nil {
			return err
		}
	}
}

// purgeThese deletes objects, after the rows that named them have gone on disk
// for good: otherwise a loss of power would bring back rows without bytes.
func (r *runner) purgeThese(ctx context.Context, ps []meta.PendingPurge) error {
	defer r.endPurges(ps)
	if err := r.store.Sync(ctx); err != nil {
		return err
	}
	for left := ps; len(left) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := limitedMax
		if r.contended() {
			n = deletesContended
		}
		n = min(n, len(left))
		began := time.Now()
		outcomes, unproven := r.deleteBytes(ctx, left[:n])
		took := time.Since(began)
		// What is deleted is counted, also when the run is told to stop.
		counts, err := r.store.FinishPurges(context.WithoutCancel(ctx), r.run.ID, outcomes)
		if err != nil {
			return err
		}
		r.metrics.worked(counts)
		if unproven != nil {
			return unproven
		}
		left = left[n:]
		if err := r.rest(ctx, took); err != nil {
			return err
		}
	}
	return nil
}

// takePurges returns those that no other run of this process is deleting: the
// one that deletes an object is the one to count its bytes.
func (c *Collector) takePurges(ps []meta.PendingPurge) []meta.PendingPurge {
	c.mu.Lock()
	defer c.mu.Unlock()
	mine := ps[:0]
	for _, p := range ps {
		if !c.purging[p.Key] {
			c.purging[p.Key] = true
			mine = append(mine, p)
		}
	}
	return mine
}

func (c *Collector) endPurges(ps []meta.PendingPurge) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range ps {
		delete(c.purging, p.Key)
	}
}

// deleteBytes deletes objects, several at once. No transaction is open
// meanwhile (R5). Where the storage turns out not to be the right one, that is
// the error: the objects have no outcome then and stay in the queue as they are.
func (r *runner) deleteBytes(ctx context.Context, ps []meta.PendingPurge) (outcomes []meta.Purged, unproven error) {
	all := make([]meta.Purged, len(ps))
	errs := make([]error, len(ps))
	var g errgroup.Group
	g.SetLimit(r.opts.Workers)
	for i, p := range ps {
		g.Go(func() error {
			freed, err := r.blobs.Delete(ctx, p.Key)
			if errors.Is(err, blob.ErrNotFound) {
				freed, err = 0, nil // it is gone, which is all that a purge wants
			}
			all[i] = meta.Purged{Key: p.Key, Freed: freed}
			if errs[i] = err; err != nil {
				r.opts.Log.Error("an object could not be deleted", "run", r.run.ID, "key", p.Key, "error", err)
				all[i].Problem = plain(err)
			}
			return nil
		})
	}
	_ = g.Wait() // no function returns an error: each outcome carries its own
	for i, err := range errs {
		if errors.Is(err, blob.ErrUnproven) {
			unproven = err
			continue
		}
		outcomes = append(outcomes, all[i])
	}
	return outcomes, unproven
}

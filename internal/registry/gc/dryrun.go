package gc

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// dryRun predicts a run. It reads the same queues as a run, asks the same
// judges, and where a run would write it notes what would be gone by then; what
// that uncovers is judged in turn, with those notes taken off the facts. Its
// memory grows with the garbage it finds.
type dryRun struct {
	*Collector
	scope    meta.Scope
	limits   Limits
	run      meta.Run
	items    []meta.Deletion
	itemsMax int
	progress func(meta.Counts)

	loseKeeper map[int64]keepers // living manifests that lost an index or a subject
	inTrash    map[int64]bool    // living manifests that would be in the trash
	renewed    map[int64]bool    // in the trash, whose time there would begin anew
	edgesGone  map[int64]int64   // link → manifests gone that needed it
	linksGone  map[int64]int64   // blob → repositories gone that had it
	touched    map[int64]int64   // blob → latest confirmation of the links gone
	seen       map[seenKey]bool  // judged already

	kin, unlinked []int64 // uncovered, to be judged
	uncovered     []meta.TrashFacts
	linkTouched   map[int64]int64 // links that lost their last living manifest just now
}

type keepers struct {
	parents, subjects int64
	of                oci.Digest // the last of them to go
}

type seenKey struct {
	kind byte
	id   int64
}

// DryRun predicts what a run with this policy would do now, without any
// change. The deletions are its acts in their order, items
// at the most. progress, which
// may be nil, hears of the counts from time to time.
func (c *Collector) DryRun(ctx context.Context, p meta.Policy, items int, progress func(meta.Counts)) (meta.Run, []meta.Deletion, error) {
	if err := checkPolicy(p); err != nil {
		return meta.Run{}, nil, err
	}
	scope, err := c.store.RepoScope(ctx, p.Repository)
	if err != nil {
		return meta.Run{}, nil, err
	}
	now := c.store.Now()
	d := &dryRun{
		Collector: c, scope: scope, limits: LimitsOf(p, now), itemsMax: items, progress: progress, items: []meta.Deletion{},
		run: meta.Run{Trigger: TriggerManual, State: meta.RunDone, DryRun: true, Policy: p, StartedAt: meta.Time(now),
			Counts: meta.Counts{Kept: map[string]int64{}}},
		loseKeeper: map[int64]keepers{}, inTrash: map[int64]bool{}, renewed: map[int64]bool{}, edgesGone: map[int64]int64{}, linksGone: map[int64]int64{}, touched: map[int64]int64{},
		seen: map[seenKey]bool{}, linkTouched: map[int64]int64{},
	}
	if d.run.Total, err = c.store.CountDue(ctx, cutoffs(d.limits), scope, totalMax); err != nil {
		return meta.Run{}, nil, err
	}
	for _, step := range []func(context.Context) error{d.uploads, d.manifests, d.trash, d.linkQueue, d.blobQueue, d.purges} {
		if err := step(ctx); err != nil {
			return meta.Run{}, nil, err
		}
	}
	d.run.Total = max(d.run.Total, d.run.Examined)
	end := meta.Time(c.store.Now())
	d.run.FinishedAt = &end
	return d.run, d.items, nil
}

// first reports whether something is judged for the first time.
func (d *dryRun) first(kind byte, id int64) bool {
	k := seenKey{kind, id}
	if d.seen[k] {
		return false
	}
	d.seen[k] = true
	return true
}

func (d *dryRun) examined(v Verdict) bool {
	d.run.Examined++
	if !v.Go {
		d.run.Kept[v.Kept]++
	}
	if d.progress != nil && d.run.Examined%batchMax == 0 {
		d.progress(d.run.Counts)
	}
	return v.Go
}

// spared reports that a manifest that was judged to go is a child of one that is being
// pushed: a run does not get it, and counts it as one that has changed meanwhile.
func (d *dryRun) spared(ctx context.Context, id int64) (bool, error) {
	spared, err := d.store.NamedByStaged(ctx, id)
	if spared {
		d.run.Kept[KeptRaced]++
	}
	return spared, err
}

func (d *dryRun) act(del meta.Deletion) {
	if len(d.items) < d.itemsMax {
		del.At, del.Actor = d.run.StartedAt, "dry run"
		d.items = append(d.items, del)
	}
}

func (d *dryRun) due(duration int64) meta.Due {
	return meta.Due{Scope: d.scope, Limit: batchMax, Window: d.limits.Window, Before: min(d.limits.cutoff(duration), d.limits.Now+meta.ConfirmAhead)}
}

// dueNow reports whether what would be touched by the run itself would be due
// in the same run.
func (d *dryRun) dueNow(duration int64) bool { return duration == 0 }

// objectSize asks the store: an upload that was cut off may have left more
// bytes than the database knows of. An object that cannot be opened counts with
// what the database knows: a run needs no more than to delete it.
func (d *dryRun) objectSize(ctx context.Context, key string, known int64) int64 {
	r, err := d.blobs.Open(ctx, key)
	if errors.Is(err, blob.ErrNotFound) {
		return 0
	}
	if err != nil {
		d.opts.Log.Warn("dry run: the size of an object cannot be read", "key", key, "err", err)
		return known
	}
	size := r.Size()
	_ = r.Close() // nothing was read
	return size
}

func (d *dryRun) uploads(ctx context.Context) error {
	var after meta.UploadFacts
	for {
		fs, err := d.store.IdleUploads(ctx, min(d.limits.cutoff(d.limits.Uploads), d.limits.Now), d.scope, after, batchMax)
		if err != nil || len(fs) == 0 {
			return err
		}
		for _, f := range fs {
			after = f
			v := JudgeUpload(f, d.opts.Busy(f.ID), d.limits)
			if !d.examined(v) {
				continue
			}
			d.run.Collected++
			d.freed(d.objectSize(ctx, f.Key, f.Size))
			d.act(meta.Deletion{Kind: "upload", Act: "removed", Repo: string(f.Repo), Digest: f.ID, Bytes: f.Size, Reason: v.Reason})
		}
	}
}

func (d *dryRun) freed(size int64) {
	d.run.Purged++
	d.run.FreedBytes += size
}

func (d *dryRun) manifests(ctx context.Context) error {
	if d.limits.Untagged != 0 {
		err := drain(ctx, d.due(d.limits.untagged()), d.store.Loose, d.judgeManifests,
			func(f meta.ManifestFacts) meta.Cursor { return meta.Cursor{At: f.LooseAt, ID: f.ID} })
		if err != nil {
			return err
		}
	}
	if err := d.stranded(ctx); err != nil {
		return err
	}
	err := drain(ctx, d.due(d.limits.Window), d.store.Orphans, d.judgeManifests,
		func(f meta.ManifestFacts) meta.Cursor { return meta.Cursor{At: f.Review.EventAt, ID: f.ID} })
	if err != nil {
		return err
	}
	return d.judgeKin(ctx)
}

// drain reads a queue batch by batch to its end and has each batch judged.
// place is where in the queue an item is.
func drain[F any](ctx context.Context, q meta.Due, read func(context.Context, meta.Due) ([]F, error),
	judge func(context.Context, []F) error, place func(F) meta.Cursor) error {
	for {
		fs, err := read(ctx, q)
		if err != nil || len(fs) == 0 {
			return err
		}
		q.After = place(fs[len(fs)-1])
		if err := judge(ctx, fs); err != nil {
			return err
		}
	}
}

// byID reads things by their ids, some at a time, and has them judged.
func byID[F any](ctx context.Context, ids []int64, window int64, read func(context.Context, meta.Due) ([]F, error),
	judge func(context.Context, []F) error) error {
	for batch := range slices.Chunk(ids, batchMax) {
		fs, err := read(ctx, meta.Due{IDs: batch, Window: window})
		if err != nil {
			return err
		}
		if err := judge(ctx, fs); err != nil {
			return err
		}
	}
	return nil
}

// judgeKin judges the children and referrers of what would go, and theirs.
func (d *dryRun) judgeKin(ctx context.Context) error {
	for len(d.kin) > 0 {
		kin := d.kin
		d.kin = nil
		if err := byID(ctx, kin, d.limits.Window, d.store.Orphans, d.judgeManifests); err != nil {
			return err
		}
	}
	return nil
}

func (d *dryRun) judgeManifests(ctx context.Context, fs []meta.ManifestFacts) error {
	for _, f := range fs {
		k, bereft := d.loseKeeper[f.ID]
		f.Parents -= k.parents
		f.Subjects -= k.subjects
		if bereft && f.Tags == 0 && f.Parents == 0 && f.Subjects == 0 {
			// The run would have made it one.
			f.OrphanedAt, f.OrphanOf = d.limits.Now, k.of
			f.LooseAt = d.limits.Now
		}
		if !d.first('m', f.ID) {
			continue
		}
		v := JudgeManifest(f, d.limits)
		if !d.examined(v) {
			continue
		}
		if err := d.trashes(ctx, f, v.Reason); err != nil {
			return err
		}
	}
	return nil
}

// stranded does as the run does.
func (d *dryRun) stranded(ctx context.Context) error {
	if d.limits.Stranded == 0 {
		n, err := d.store.CountStranded(ctx, d.scope)
		if n > 0 {
			d.run.Examined += n
			d.run.Kept[KeptStranded] += n
		}
		return err
	}
	var after meta.StrandedFacts
	for {
		fs, err := d.store.Stranded(ctx, d.due(d.limits.stranded()), after)
		if err != nil || len(fs) == 0 {
			return err
		}
		for _, f := range fs {
			after = f
			if v := JudgeStranded(f, d.limits); d.examined(v) && d.first('m', f.ID) {
				if err := d.trashes(ctx, f.ManifestFacts, v.Reason); err != nil {
					return err
				}
			}
		}
	}
}

// trashes notes what follows if the run moves a living manifest to the trash.
func (d *dryRun) trashes(ctx context.Context, f meta.ManifestFacts, reason string) error {
	if spared, err := d.spared(ctx, f.ID); spared || err != nil {
		return err
	}
	d.run.Trashed++
	d.inTrash[f.ID] = true
	below, err := d.store.TrashedBelow(ctx, f.ID)
	if err != nil {
		return err
	}
	for _, id := range below {
		d.renewed[id] = true
	}
	d.act(meta.Deletion{Kind: "manifest", Act: "trashed", Repo: string(f.Repo), Digest: string(f.Digest), Bytes: f.Size, Reason: reason})
	links, children, referrers, err := d.store.Below(ctx, f.RepoID, f.ID, f.Digest)
	if err != nil {
		return err
	}
	if err := d.bereave(ctx, f.Digest, children, referrers); err != nil {
		return err
	}
	if d.dueNow(d.limits.Trash) {
		d.uncovered = append(d.uncovered, meta.TrashFacts{ID: f.ID, RepoID: f.RepoID, Repo: f.Repo, Digest: f.Digest, Size: f.Size,
			TrashedAt: d.limits.Now, Indexed: true, Lease: f.Lease})
		for _, l := range links {
			d.linkTouched[l] = d.limits.Now
		}
	}
	return nil
}

// bereave notes that manifests lose an index or their subject, and has those
// judged that nothing else keeps, if the same run would get to them.
func (d *dryRun) bereave(ctx context.Context, of oci.Digest, children, referrers []int64) error {
	for _, id := range children {
		k := d.loseKeeper[id]
		k.parents, k.of = k.parents+1, of
		d.loseKeeper[id] = k
	}
	for _, id := range referrers {
		k := d.loseKeeper[id]
		k.subjects, k.of = 1, of
		d.loseKeeper[id] = k
	}
	if !d.dueNow(d.limits.Window) {
		return nil
	}
	return byID(ctx, append(children, referrers...), d.limits.Window, d.store.Orphans, func(_ context.Context, fs []meta.ManifestFacts) error {
		for _, f := range fs {
			k := d.loseKeeper[f.ID]
			if f.Tags == 0 && f.Parents == k.parents && f.Subjects == k.subjects {
				d.kin = append(d.kin, f.ID)
			}
		}
		return nil
	})
}

// trash judges what is in the trash, and what the run would have put there.
func (d *dryRun) trash(ctx context.Context) error {
	err := drain(ctx, d.due(d.limits.Trash), d.store.Trashed, d.judgeTrash,
		func(f meta.TrashFacts) meta.Cursor { return meta.Cursor{At: f.TrashedAt, ID: f.ID} })
	if err != nil {
		return err
	}
	return d.judgeTrash(ctx, d.uncovered)
}

func (d *dryRun) judgeTrash(ctx context.Context, fs []meta.TrashFacts) error {
	for _, f := range fs {
		if d.renewed[f.ID] && !d.dueNow(d.limits.Trash) {
			continue // too young for the run to get to it
		}
		if f.Indexed {
			var err error
			if f.Indexed, err = d.indexed(ctx, f.ID); err != nil {
				return err
			}
		}
		v := JudgeTrash(f, d.limits)
		if !d.examined(v) {
			continue
		}
		if spared, err := d.spared(ctx, f.ID); err != nil {
			return err
		} else if spared {
			continue
		}
		d.run.Collected++
		d.act(meta.Deletion{Kind: "manifest", Act: "removed", Repo: string(f.Repo), Digest: string(f.Digest), Bytes: f.Size, Reason: v.Reason})
		links, _, _, err := d.store.Below(ctx, f.RepoID, f.ID, f.Digest)
		if err != nil {
			return err
		}
		for _, l := range links {
			d.edgesGone[l]++
		}
	}
	return nil
}

// indexed reports whether a living index would still name the manifest, or
// name an index in the trash that does, once the run had trashed what it would.
func (d *dryRun) indexed(ctx context.Context, id int64) (bool, error) {
	seen, queue := map[int64]bool{id: true}, []int64{id}
	for len(queue) > 0 {
		living, trashed, err := d.store.Above(ctx, queue[0])
		if err != nil {
			return false, err
		}
		queue = queue[1:]
		for _, p := range living {
			if !d.inTrash[p] {
				return true, nil
			}
			trashed = append(trashed, p)
		}
		for _, p := range trashed {
			if !seen[p] {
				seen[p] = true
				queue = append(queue, p)
			}
		}
	}
	return false, nil
}

func (d *dryRun) linkQueue(ctx context.Context) error {
	err := drain(ctx, d.due(d.limits.Window), d.store.Links, d.judgeLinks,
		func(f meta.LinkFacts) meta.Cursor { return meta.Cursor{At: f.Review.EventAt, ID: f.ID} })
	if err != nil {
		return err
	}
	links, err := d.bereftLinks(ctx)
	if err != nil {
		return err
	}
	return byID(ctx, links, d.limits.Window, d.store.Links, func(ctx context.Context, fs []meta.LinkFacts) error {
		for i := range fs {
			fs[i].Living, fs[i].Trashed = 0, 0
			fs[i].TouchedAt = max(fs[i].TouchedAt, d.linkTouched[fs[i].ID])
		}
		return d.judgeLinks(ctx, fs)
	})
}

// bereftLinks are those that no manifest would need any more.
func (d *dryRun) bereftLinks(ctx context.Context) (links []int64, err error) {
	for _, l := range slices.Sorted(maps.Keys(d.edgesGone)) {
		more, err := d.store.NeededByMore(ctx, l, d.edgesGone[l])
		if err != nil {
			return nil, err
		}
		if !more {
			links = append(links, l)
		}
	}
	return links, nil
}

func (d *dryRun) judgeLinks(ctx context.Context, fs []meta.LinkFacts) error {
	var blobs []int64
	for _, f := range fs {
		// A run reads the queue by time: what it would itself put there later
		// than its limit, it would not get to.
		if f.Review.Version == 0 && f.TouchedAt > d.limits.cutoff(d.limits.Window) {
			continue
		}
		if !d.first('l', f.ID) {
			continue
		}
		v := JudgeLink(f, d.limits)
		if !d.examined(v) {
			continue
		}
		d.run.Unlinked++
		if !f.Hidden { // else the client's DELETE was logged when it came
			d.act(meta.Deletion{Kind: "link", Act: "removed", Repo: string(f.Repo), Digest: string(f.Digest), Bytes: f.Size, Reason: v.Reason})
		}
		d.linksGone[f.BlobID]++
		d.touched[f.BlobID] = max(d.touched[f.BlobID], f.TouchedAt)
		blobs = append(blobs, f.BlobID)
	}
	if len(blobs) == 0 {
		return nil
	}
	bs, err := d.store.Blobs(ctx, meta.Due{IDs: blobs})
	for _, b := range bs {
		if b.Links == d.linksGone[b.ID] {
			d.unlinked = append(d.unlinked, b.ID)
		}
	}
	return err
}

func (d *dryRun) blobQueue(ctx context.Context) error {
	err := drain(ctx, d.due(d.limits.Window), d.store.Blobs, d.judgeBlobs,
		func(f meta.BlobFacts) meta.Cursor { return meta.Cursor{At: f.Review.EventAt, ID: f.ID} })
	if err != nil {
		return err
	}
	return byID(ctx, d.unlinked, d.limits.Window, d.store.Blobs, func(ctx context.Context, fs []meta.BlobFacts) error {
		for i := range fs {
			fs[i].Links = 0
			fs[i].TouchedAt = max(fs[i].TouchedAt, d.touched[fs[i].ID])
		}
		return d.judgeBlobs(ctx, fs)
	})
}

func (d *dryRun) judgeBlobs(_ context.Context, fs []meta.BlobFacts) error {
	for _, f := range fs {
		if f.Review.Version == 0 && f.TouchedAt > d.limits.cutoff(d.limits.Window) {
			continue
		}
		if !d.first('b', f.ID) {
			continue
		}
		v := JudgeBlob(f, d.limits)
		if !d.examined(v) {
			continue
		}
		d.run.Collected++
		d.freed(f.Size)
		d.act(meta.Deletion{Kind: "blob", Act: "removed", Digest: string(f.Digest), Bytes: f.Size, Reason: v.Reason})
	}
	return nil
}

// purges adds what waits in the purge queue already.
func (d *dryRun) purges(ctx context.Context) error {
	if !d.scope.All() {
		return nil // a run over some repositories purges what it has removed itself
	}
	var due int64
	for key := ""; ; {
		ps, err := d.store.DuePurges(ctx, 0, due, key, batchMax)
		if err != nil || len(ps) == 0 {
			return err
		}
		due, key = ps[len(ps)-1].DueAt, ps[len(ps)-1].Key
		for _, p := range ps {
			d.freed(d.objectSize(ctx, p.Key, p.Size))
		}
	}
}

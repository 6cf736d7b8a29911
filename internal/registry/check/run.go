package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Limits of what a report names one by one; counts have none.
const (
	maxKeys     = 100
	maxFailures = 100
	maxProblems = 100
	maxLost     = 1000
	maxAffected = 50
)

const (
	objectPage   = 256         // objects asked about in one query
	blobPage     = 100         // blob rows read at a time
	reviewPage   = 500         // rows looked at for a missed review at a time
	manifestPage = 16          // manifests, of 4 MiB at most, read at a time
	readSize     = 256 << 10   // bytes read and hashed at a time
	saveEvery    = time.Second // how much work a crash can undo
	quickCheck   = 256 << 20   // size of a database, bytes, whose structure is checked without Deep
)

// run is one check under way in this process.
type run struct {
	c      *Checker
	id     int64
	cancel context.CancelCauseFunc
	done   chan struct{}

	// Of the goroutine that carries it out.
	objects, bytes *rate.Limiter
	extent         meta.CheckExtent
	cursor         string
	savedAt        time.Time
	buf            []byte

	mu     sync.Mutex
	report Report
}

// Causes for which a check ends before it is through.
var (
	errStopped  = errors.New("stopped")
	errMadeWay  = errors.New("another check was asked for")
	errShutdown = errors.New("the server ends")
)

func (r *run) snapshot() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report // its slices are never changed in place
}

func (r *run) acts() meta.CheckActs {
	actor := "check"
	if r.report.Trigger == TriggerBackground {
		actor = "check (background)"
	}
	return meta.CheckActs{Actor: actor}
}

// advance moves the check on to cursor: what was found goes into the report,
// and what is to be repaired is repaired. It writes if there is something to
// repair or the last write is a while ago.
func (r *run) advance(ctx context.Context, cursor string, acts meta.CheckActs, tell func(*Report, meta.CheckDone)) error {
	idle := len(acts.Orphans)+len(acts.Lost)+len(acts.Found)+len(acts.Missed) == 0
	if idle && time.Since(r.savedAt) < saveEvery {
		next := r.report
		tell(&next, meta.CheckDone{})
		r.set(cursor, next)
		return nil
	}
	var next Report
	err := r.c.store.SaveCheck(ctx, acts, func(done meta.CheckDone) (meta.CheckRow, error) {
		next = r.report
		tell(&next, done)
		next.UpdatedAt = meta.Time(r.c.store.Now())
		next.Progress = r.progress(next.Phase, cursor)
		return row(next, cursor)
	})
	if err != nil {
		return err
	}
	r.savedAt = time.Now()
	r.set(cursor, next)
	return nil
}

func (r *run) set(cursor string, next Report) {
	next.Progress = max(r.report.Progress, r.progress(next.Phase, cursor))
	r.cursor = cursor
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report = next
}

func row(rep Report, cursor string) (meta.CheckRow, error) {
	text, err := json.Marshal(rep)
	if err != nil {
		return meta.CheckRow{}, fmt.Errorf("render report: %w", err)
	}
	options, err := json.Marshal(rep.Request)
	if err != nil {
		return meta.CheckRow{}, fmt.Errorf("render request: %w", err)
	}
	c := meta.CheckRow{ID: rep.ID, State: rep.State, Options: string(options), Phase: rep.Phase, UpdatedAt: rep.UpdatedAt.UnixMilli(), Cursor: cursor, Report: string(text)}
	if rep.FinishedAt != nil {
		c.FinishedAt = rep.FinishedAt.UnixMilli()
	}
	return c, nil
}

// phases in order; a phase that does not apply ends at once.
func (r *run) phases() []phase {
	share := []float64{0.45, 0.9, 0.95, 0.95, 1}
	if r.report.Request.Deep {
		share = []float64{0.05, 0.85, 0.9, 0.95, 1}
	}
	return []phase{
		{PhaseStorage, share[0], r.storage},
		{PhaseBlobs, share[1], r.blobs},
		{PhaseReviews, share[2], r.reviews},
		{PhaseManifests, share[3], r.manifests},
		{PhaseDatabase, share[4], r.database},
	}
}

type phase struct {
	name string
	end  float64 // progress of the whole when it is over
	run  func(context.Context) error
}

// progress estimates how much of a check is done.
func (r *run) progress(name, cursor string) float64 {
	begin := 0.0
	for _, p := range r.phases() {
		if p.name == name {
			return begin + (p.end-begin)*r.part(name, cursor)
		}
		begin = p.end
	}
	return begin
}

// part estimates how much of a phase is done.
func (r *run) part(name, cursor string) float64 {
	switch name {
	case PhaseStorage:
		var shard int64
		if rest, ok := strings.CutPrefix(cursor, "blobs/"); ok && len(rest) > 2 {
			shard, _ = strconv.ParseInt(rest[:2], 16, 64) // a key that is odd estimates as 0
		}
		return float64(shard) / 256
	case PhaseBlobs:
		return float64(number(cursor)) / float64(max(1, r.extent.MaxBlob, number(cursor)))
	case PhaseManifests:
		return float64(number(cursor)) / float64(max(1, r.extent.MaxManifest, number(cursor)))
	case PhaseDatabase:
		return float64(number(cursor)) / float64(len(meta.DatabaseChecks()))
	}
	return 0
}

// number reads a cursor that counts; the empty one is where a phase begins.
func number(cursor string) int64 {
	n, _ := strconv.ParseInt(cursor, 10, 64) // written by this package
	return n
}

// all goes through the phases from where the report says.
func (r *run) all(ctx context.Context) error {
	var err error
	if r.extent, err = r.c.store.CheckExtent(ctx); err != nil {
		return err
	}
	begun := false
	for _, p := range r.phases() {
		if !begun && p.name != r.report.Phase {
			continue
		}
		if begun {
			if err := r.advance(ctx, "", meta.CheckActs{}, func(rep *Report, _ meta.CheckDone) { rep.Phase = p.name }); err != nil {
				return err
			}
		}
		begun = true
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("phase %s: %w", p.name, err)
		}
	}
	if !begun {
		return fmt.Errorf("a check in phase %q: written by another version", r.report.Phase)
	}
	return nil
}

// storage looks for objects that no row names. A storage that cannot be
// listed is a failure of its own and does not keep the rows from being checked.
func (r *run) storage(ctx context.Context) error {
	page := make([]blob.Info, 0, objectPage)
	var pageErr error
	err := r.c.blobs.Walk(ctx, r.cursor, func(i blob.Info) error {
		if pageErr = r.objects.Wait(ctx); pageErr != nil {
			return pageErr
		}
		if page = append(page, i); len(page) == objectPage {
			pageErr = r.objectPage(ctx, page)
			page = page[:0]
		}
		return pageErr
	})
	if pageErr == nil && len(page) > 0 {
		pageErr = r.objectPage(ctx, page)
	}
	if pageErr != nil || err == nil || ctx.Err() != nil {
		return errors.Join(pageErr, ctx.Err())
	}
	if errors.Is(err, blob.ErrUnproven) {
		return err
	}
	r.c.log.Warn("check: the storage cannot be listed", "after", r.cursor, "err", err)
	return r.advance(ctx, r.cursor, meta.CheckActs{}, func(rep *Report, _ meta.CheckDone) {
		rep.fail("the storage cannot be listed after " + strconv.Quote(r.cursor) + ": " + plain(err))
	})
}

func (r *run) objectPage(ctx context.Context, page []blob.Info) error {
	keys := make([]string, len(page))
	infos := make(map[string]blob.Info, len(page))
	for i, o := range page {
		keys[i], infos[o.Key] = o.Key, o
	}
	unnamed, err := r.c.store.Unnamed(ctx, keys)
	if err != nil {
		return err
	}
	var found pageFindings
	acts := r.acts()
	for _, key := range unnamed {
		o := infos[key]
		if err := r.judge(ctx, o, &found, &acts); err != nil {
			return err
		}
	}
	if len(acts.Orphans) > 0 {
		if err := blob.Prove(ctx, r.c.blobs); err != nil {
			return err
		}
	}
	return r.advance(ctx, keys[len(keys)-1], acts, func(rep *Report, done meta.CheckDone) {
		rep.Objects += int64(len(page))
		rep.Orphans.Young += found.young
		for _, f := range found.failures {
			rep.fail(f)
		}
		for _, o := range found.orphans {
			if o.repair && !done.Queued[o.Key] {
				continue // a row names it by now
			}
			rep.Orphans.Count++
			rep.Orphans.Bytes += o.Size
			if o.Modified < r.extent.CreatedAt {
				rep.Orphans.Older++
			}
			if len(rep.Orphans.Keys) < maxKeys {
				rep.Orphans.Keys = append(slices.Clip(rep.Orphans.Keys), o.Key)
			}
			if o.repair {
				rep.Repaired++
			}
		}
	})
}

type pageFindings struct {
	orphans  []orphan
	young    int64
	failures []string
}

type orphan struct {
	blob.Info
	repair bool
}

// judge decides over an object that no row named a moment ago.
func (r *run) judge(ctx context.Context, o blob.Info, found *pageFindings, acts *meta.CheckActs) error {
	if r.c.store.Now()-o.Modified < time.Duration(r.report.Request.Grace).Milliseconds() {
		found.young++
		return nil
	}
	// A purge deletes the bytes first and its row last. Between the walk and the
	// query both may have gone; then there is nothing here any more.
	rd, err := r.c.blobs.Open(ctx, o.Key)
	switch {
	case errors.Is(err, blob.ErrNotFound):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		r.c.log.Warn("check: an object cannot be opened", "key", o.Key, "err", err)
		found.failures = append(found.failures, o.Key+": "+plain(err))
		return nil
	}
	_ = rd.Close() // nothing was written
	background := r.report.Trigger == TriggerBackground
	repair := r.report.Request.Repair || background && o.Modified >= r.extent.CreatedAt
	found.orphans = append(found.orphans, orphan{o, repair})
	if repair {
		acts.Orphans = append(acts.Orphans, meta.Orphan{Key: o.Key, Size: o.Size})
	}
	return nil
}

// blobs looks for rows whose bytes are not what they say.
func (r *run) blobs(ctx context.Context) error {
	for {
		page, err := r.c.store.CheckBlobs(ctx, number(r.cursor), blobPage)
		if err != nil {
			return err
		}
		for _, b := range page {
			if err := r.objects.Wait(ctx); err != nil {
				return err
			}
			if err := r.blob(ctx, b); err != nil {
				return err
			}
		}
		if len(page) < blobPage {
			return nil
		}
	}
}

func (r *run) blob(ctx context.Context, b meta.CheckBlob) error {
	cursor := strconv.FormatInt(b.ID, 10)
	// The bytes of a lost one are read whatever was asked for: to be served
	// again they must be right.
	problem, read, err := r.examine(ctx, b, r.report.Request.Deep || b.Lost)
	if err == nil && problem != "" {
		// A blob that was collected, or got new bytes, since the row was read is none.
		var named bool
		if named, err = r.c.store.Named(ctx, b); err == nil && !named {
			problem = ""
			b.Lost = false
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && (problem != "" || b.Lost) {
		err = blob.Prove(ctx, r.c.blobs) // what is to be marked was seen in the right storage
	}
	if errors.Is(err, blob.ErrUnproven) {
		return err
	}
	count := func(rep *Report) { rep.Blobs, rep.BytesHashed = rep.Blobs+1, rep.BytesHashed+read }
	acts := r.acts()
	switch {
	case err != nil:
		r.c.log.Warn("check: a blob cannot be examined", "digest", b.Digest, "key", b.Key, "err", err)
		return r.advance(ctx, cursor, acts, func(rep *Report, _ meta.CheckDone) {
			count(rep)
			rep.fail(string(b.Digest) + " (" + b.Key + "): " + plain(err))
		})
	case problem != "":
		return r.lost(ctx, b, problem, cursor, count)
	case b.Lost:
		// It harms nobody to serve what was just read and is right.
		if r.report.Request.Repair || r.report.Trigger == TriggerBackground {
			acts.Found = []meta.CheckBlob{b}
		}
	}
	return r.advance(ctx, cursor, acts, func(rep *Report, done meta.CheckDone) {
		count(rep)
		rep.Repaired += int64(len(done.Found))
	})
}

func (r *run) lost(ctx context.Context, b meta.CheckBlob, problem, cursor string, count func(*Report)) error {
	affected, total, err := r.c.store.AffectedBy(ctx, b.ID, maxAffected)
	if err != nil {
		return err
	}
	acts := r.acts()
	if r.report.Request.Repair && !b.Lost {
		acts.Lost = []meta.CheckBlob{b}
	}
	r.c.log.Error("check: a blob's bytes are lost", "digest", b.Digest, "key", b.Key, "problem", problem, "affected", total)
	return r.advance(ctx, cursor, acts, func(rep *Report, done meta.CheckDone) {
		count(rep)
		rep.LostCount++
		rep.Repaired += int64(len(done.Lost))
		if len(rep.Lost) < maxLost {
			rep.Lost = append(slices.Clip(rep.Lost), Lost{Digest: b.Digest, Size: b.Size, Key: b.Key, Problem: problem,
				Repaired: b.Lost || done.Lost[b.ID], Affected: affected, AffectedCount: total})
		}
	})
}

// examine compares an object with its row. An error says that it could not.
func (r *run) examine(ctx context.Context, b meta.CheckBlob, deep bool) (problem string, read int64, err error) {
	rd, err := r.c.blobs.Open(ctx, b.Key)
	if errors.Is(err, blob.ErrNotFound) {
		return ProblemMissing, 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = rd.Close() }() // nothing was written
	if rd.Size() != b.Size {
		return ProblemSize, 0, nil
	}
	if !deep {
		return "", 0, nil
	}
	return r.hash(ctx, rd, b.Digest)
}

func (r *run) hash(ctx context.Context, rd io.Reader, d oci.Digest) (problem string, read int64, err error) {
	if err := d.Validate(); err != nil {
		return "", 0, fmt.Errorf("digest %q: %w", d, err)
	}
	v := d.Verifier()
	for {
		n, err := rd.Read(r.buf)
		if n > 0 {
			read += int64(n)
			_, _ = v.Write(r.buf[:n]) // a hash never fails
			if err := r.bytes.WaitN(ctx, n); err != nil {
				return "", read, err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", read, err
		}
	}
	if !v.Verified() {
		return ProblemCorrupt, read, nil
	}
	return "", read, nil
}

// reviews looks for what the collector should have been told of.
func (r *run) reviews(ctx context.Context) error {
	at := r.cursor
	for _, kind := range []string{"link", "blob", "manifest"} {
		after := int64(0)
		if at != "" {
			reached, n, _ := strings.Cut(at, " ")
			if reached != kind {
				continue
			}
			at, after = "", number(n)
		}
		if err := r.reviewsOf(ctx, kind, after); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) reviewsOf(ctx context.Context, kind string, after int64) error {
	for {
		if err := r.objects.Wait(ctx); err != nil { // a page is one query
			return err
		}
		u, err := r.c.store.Unreviewed(ctx, kind, after, reviewPage)
		if err != nil {
			return err
		}
		if u.Next == 0 {
			return nil
		}
		after = u.Next
		acts := r.acts()
		if len(u.IDs) > 0 && (r.report.Request.Repair || r.report.Trigger == TriggerBackground) {
			acts.Missed = []meta.Unreviewed{u}
		}
		err = r.advance(ctx, kind+" "+strconv.FormatInt(u.Next, 10), acts, func(rep *Report, done meta.CheckDone) {
			rep.Missed += int64(len(u.IDs))
			rep.Repaired += done.Reviewed
		})
		if err != nil {
			return err
		}
	}
}

// manifests reads the content that the database keeps.
func (r *run) manifests(ctx context.Context) error {
	for r.report.Request.Deep {
		page, err := r.c.store.CheckManifests(ctx, number(r.cursor), manifestPage)
		if err != nil {
			return err
		}
		for _, m := range page {
			if err := errors.Join(r.objects.Wait(ctx), r.wait(ctx, len(m.Content))); err != nil {
				return err
			}
			err := r.advance(ctx, strconv.FormatInt(m.ID, 10), meta.CheckActs{}, func(rep *Report, _ meta.CheckDone) {
				rep.Manifests++
				rep.BytesHashed += int64(len(m.Content))
				if m.Digest.Validate() != nil || m.Digest.Algorithm().FromBytes(m.Content) != m.Digest {
					rep.problem(fmt.Sprintf("the content of manifest %s@%s does not have that digest", m.Repo, m.Digest))
				}
			})
			if err != nil {
				return err
			}
		}
		if len(page) < manifestPage {
			return nil
		}
	}
	return nil
}

// wait is WaitN for more than a burst.
func (r *run) wait(ctx context.Context, n int) error {
	for n > 0 {
		part := min(n, r.bytes.Burst())
		if err := r.bytes.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// database has the database look at itself, one part at a time.
func (r *run) database(ctx context.Context) error {
	parts := meta.DatabaseChecks()
	for i := number(r.cursor); i < int64(len(parts)); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		var problems []string
		if parts[i] != "structure" || r.report.Request.Deep || r.extent.Bytes <= quickCheck {
			var err error
			if problems, err = r.c.store.CheckDatabase(ctx, parts[i], maxProblems); err != nil {
				return err
			}
		}
		err := r.advance(ctx, strconv.FormatInt(i+1, 10), meta.CheckActs{}, func(rep *Report, _ meta.CheckDone) {
			for _, p := range problems {
				rep.problem(p)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (rep *Report) fail(text string) {
	rep.Failed++
	if len(rep.Failures) < maxFailures {
		rep.Failures = append(slices.Clip(rep.Failures), text)
	}
}

func (rep *Report) problem(text string) {
	if len(rep.Database) < maxProblems {
		rep.Database = append(slices.Clip(rep.Database), text)
	}
}

// plain says what went wrong without paths or internals, which are in the log.
func plain(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return fault.Public(err).Public
}

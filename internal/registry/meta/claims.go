package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Work is what one batch of verdicts changes; Collect applies it in one
// transaction. A claim that does not match what is there by now changes
// nothing and is returned as lost: the thing is kept (R4).
type Work struct {
	Run    int64
	Actor  string
	Policy Policy

	Trash   []TrashClaim
	Remove  []Claim // manifests from the trash
	Unlink  []Claim // links
	Collect []Claim // blobs
	Abandon []UploadClaim

	Settled   []Settled // reviews that are answered: what they brought up is needed
	Postponed []Postponed

	Counts Counts // to add besides what the claims themselves count
}

// Claim names what was judged, in the version that was judged.
type Claim struct {
	ID, Version int64
	// Before repeats the judge's time limit: touched_at (of a trashed manifest
	// trashed_at) must not be after it. NoLimit where the window is 0. The store
	// applies the policy's own limit besides, so a judge that goes by another
	// duration cannot shorten the window (R3).
	Before int64
	Reason string
}

// TrashClaim is a living manifest to be moved to the trash.
type TrashClaim struct {
	Claim
	Repo   oci.Name
	RepoID int64
	Digest oci.Digest
	Cause  oci.Digest // of an orphan, or of a stranded signature: what was deleted

	// Stranded says that the tags of the manifest do not keep it: all are named
	// after manifests that are gone.
	Stranded bool
}

// UploadClaim is an upload session to be ended.
type UploadClaim struct {
	ID      string
	Version int64
	Before  int64
	Reason  string
}

// Settled is a review to be closed, if it still is the one that was judged.
type Settled struct {
	Kind    string
	Target  int64
	Version int64
}

// Postponed is a review to be looked at again.
type Postponed struct {
	Settled
	EventAt int64
	Holder  string // of the lease that is the reason, if one is
}

// NoLimit is Claim.Before where no window applies.
const NoLimit = math.MaxInt64

// acts is how many things a work claims.
func (w Work) acts() int {
	return len(w.Trash) + len(w.Remove) + len(w.Unlink) + len(w.Collect) + len(w.Abandon)
}

// Empty reports that nothing is left to do.
func (w Work) Empty() bool { return w.acts() == 0 }

// cut takes at most n acts off work; what is counted and settled goes with the first
// of them.
func (w Work) cut(n int) (step, left Work) {
	step, left = w, Work{Run: w.Run, Actor: w.Actor, Policy: w.Policy}
	step.Trash, left.Trash = head(w.Trash, &n)
	step.Remove, left.Remove = head(w.Remove, &n)
	step.Unlink, left.Unlink = head(w.Unlink, &n)
	step.Collect, left.Collect = head(w.Collect, &n)
	step.Abandon, left.Abandon = head(w.Abandon, &n)
	return step, left
}

// head splits xs at *n, of which it takes off what the first part has.
func head[T any](xs []T, n *int) (first, rest []T) {
	k := min(*n, len(xs))
	*n -= k
	return xs[:k], xs[k:]
}

// Collect applies work and returns what it did: its counts, where claims that
// were lost count as kept with reason "raced". A loss of power may take it back,
// until the next commit of another kind, or Sync: before bytes are deleted, the
// caller has called that.
func (s *Store) Collect(ctx context.Context, w Work) (Counts, error) {
	done, _, err := s.CollectSome(ctx, w, max(w.acts(), 1))
	return done, err
}

// portionsMax is how many portions of a work a transaction is of at most, since the pages
// that it has changed are written at its end.
const portionsMax = 32

// CollectSome is Collect in portions of so many acts, after each of which it makes way for
// clients that wait to write (R5): left is the work that is not done yet then, and
// complete for another call. On an error nothing is done.
func (s *Store) CollectSome(ctx context.Context, w Work, acts int) (done Counts, left Work, err error) {
	var more bool
	err = s.db.MaintainNote(ctx, func(tx *sqldb.Tx) error {
		c := collection{s: s, tx: tx, kin: kinMax}
		c.done = w.Counts
		c.done.Kept = map[string]int64{}
		for k, v := range w.Counts.Kept {
			c.done.Kept[k] = v
		}
		left = w
		for i := 1; ; i++ {
			c.w, left = left.cut(acts)
			for _, step := range []func() error{c.trash, c.remove, c.unlink, c.collect, c.abandon, c.settle} {
				if err := step(); err != nil {
					return err
				}
			}
			if left.Empty() || i == portionsMax || tx.ClientsWait() {
				break
			}
		}
		done, more = c.done, c.more
		return addCounts(tx, w.Run, c.done)
	})
	if err == nil && more {
		s.followUp(ctx, s.db.Maintain)
	}
	if err != nil {
		return Counts{}, Work{}, fmt.Errorf("collect: %w", err)
	}
	return done, left, nil
}

// CollectFailed records that work of a single claim failed, with a line for
// the run's log, and leaves the claim's review for a later run.
func (s *Store) CollectFailed(ctx context.Context, w Work, text string) error {
	err := s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		trash := make([]Claim, len(w.Trash))
		for i, t := range w.Trash {
			trash[i] = t.Claim
		}
		for kind, claims := range map[string][]Claim{"manifest": trash, "link": w.Unlink, "blob": w.Collect} {
			if err := closeReviews(tx, kind, claims, nil); err != nil {
				return err
			}
		}
		if err := addEvent(tx, w.Run, "error", text); err != nil {
			return err
		}
		return addCounts(tx, w.Run, Counts{Failed: 1})
	})
	if err != nil {
		return fmt.Errorf("record a failure: %w", err)
	}
	return nil
}

// collection is one call of Collect inside its transaction.
type collection struct {
	s    *Store
	tx   *sqldb.Tx
	w    Work
	done Counts
	kin  int  // that the transaction settles
	more bool // kin are left to settle
}

// leasedAfter is the time after which a lease must have ended to keep what it
// was on: a window before now.
func (c *collection) leasedAfter() int64 {
	return c.tx.Now() - time.Duration(c.w.Policy.Window).Milliseconds()
}

// cutoff is the latest time of a last touch that a duration of the policy lets
// go. It is the store's own limit, apart from what the judge has claimed.
func (c *collection) cutoff(d Duration) int64 {
	if d == 0 {
		return NoLimit
	}
	return c.tx.Now() - time.Duration(d).Milliseconds()
}

func (c *collection) raced(n int) {
	if n > 0 {
		c.done.Kept["raced"] += int64(n)
	}
}

// claimRows renders the ids and versions of claims, and the strictest of their
// time limits.
func claimRows(claims []Claim) (rows string, before int64) {
	before = NoLimit
	pairs := make([][2]int64, len(claims))
	for i, cl := range claims {
		pairs[i] = [2]int64{cl.ID, cl.Version}
		before = min(before, cl.Before)
	}
	return sqldb.List(pairs), before
}

func reasons(claims []Claim) map[int64]string {
	m := make(map[int64]string, len(claims))
	for _, cl := range claims {
		m[cl.ID] = cl.Reason
	}
	return m
}

// trash moves living manifests to the trash. The claim repeats what the judge
// went by: version, time, nothing that holds it, no lease. Whatever the reason,
// the window counts from the last confirmation and from the loss of what kept
// the manifest, which the deletion of its index or subject is (R3).
func (c *collection) trash() error {
	for _, t := range c.w.Trash {
		claim := c.claimLoose
		if t.Stranded {
			claim = c.claimStranded
		}
		n, err := claim(t)
		if err != nil {
			return fmt.Errorf("claim manifest %s: %w", t.Digest, err)
		}
		if n == 0 {
			c.raced(1)
			if err := closeReviews(c.tx, "manifest", []Claim{t.Claim}, nil); err != nil {
				return err
			}
			continue
		}
		more, err := c.s.trashManifest(c.tx, trashing{id: t.ID, repoID: t.RepoID, repo: t.Repo, digest: t.Digest,
			reason: t.Reason, cause: string(t.Cause), actor: c.w.Actor, run: c.w.Run, budget: &c.kin})
		if err != nil {
			return err
		}
		c.more = c.more || more
		c.done.Trashed++
	}
	return nil
}

func (c *collection) claimLoose(t TrashClaim) (int64, error) {
	return c.tx.Exec(`UPDATE manifests AS m SET version = version + 1
		WHERE m.id = ? AND m.version = ? AND m.trashed_at IS NULL
			AND max(m.touched_at, coalesce(m.loose_at, 0)) <= ? AND NOT `+held+` AND NOT `+stagedAbove+` AND `+manifestLease+` IS NULL`,
		t.ID, t.Version, min(t.Before, c.cutoff(c.w.Policy.Window)), c.leasedAfter())
}

// claimStranded claims a manifest whose tags are all stranded, for as long as
// the policy says, and whose subjects cannot even be restored.
func (c *collection) claimStranded(t TrashClaim) (int64, error) {
	if c.w.Policy.Stranded == 0 {
		return 0, nil
	}
	before := min(t.Before, c.cutoff(c.w.Policy.Window), c.cutoff(c.w.Policy.Stranded))
	return c.tx.Exec(`UPDATE manifests AS m SET version = version + 1
		WHERE m.id = ? AND m.version = ? AND m.trashed_at IS NULL AND m.touched_at <= ? AND NOT `+heldAbove+` AND NOT `+stagedAbove+` AND `+manifestLease+` IS NULL
			AND EXISTS (SELECT 1 FROM stranded x WHERE x.manifest_id = m.id)
			AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.manifest_id = m.id AND NOT EXISTS (
				SELECT 1 FROM stranded x WHERE x.repo_id = t.repo_id AND x.tag = t.name AND x.since <= ?
					AND NOT EXISTS (SELECT 1 FROM manifests g WHERE g.repo_id = x.repo_id AND g.digest >= x.subject AND g.digest < x.subject || 'g')))`,
		t.ID, t.Version, before, c.leasedAfter(), before)
}

// remove takes manifests out of the trash for good; links that nothing needs
// any more go up for review.
func (c *collection) remove() error {
	if len(c.w.Remove) == 0 {
		return nil
	}
	ids := make([]int64, len(c.w.Remove))
	for i, cl := range c.w.Remove {
		ids[i] = cl.ID
	}
	links := map[int64][]int64{}
	err := c.tx.All(func(rows *sql.Rows) error {
		var m, l int64
		if err := rows.Scan(&m, &l); err != nil {
			return err
		}
		links[m] = append(links[m], l)
		return nil
	}, "SELECT manifest_id, link_id FROM manifest_blobs WHERE manifest_id IN (SELECT a FROM "+sqldb.Each+")", sqldb.List(ids))
	if err != nil {
		return err
	}
	why := reasons(c.w.Remove)
	claims, before := claimRows(c.w.Remove)
	var log []Deletion
	var freed, repos []int64
	err = c.tx.All(func(rows *sql.Rows) error {
		var id, repo int64
		d := Deletion{Kind: "manifest", Act: "removed"}
		if err := rows.Scan(&id, &repo, &d.Digest, &d.Bytes, &d.Repo); err != nil {
			return err
		}
		d.Reason = why[id]
		log = append(log, d)
		freed = append(freed, links[id]...)
		repos = append(repos, repo)
		return nil
	}, `DELETE FROM manifests AS m WHERE (m.id, m.version) IN (SELECT a, b FROM `+sqldb.Each2+`) AND m.trashed_at <= ?
			AND NOT `+indexed+` AND `+manifestLease+` IS NULL AND NOT EXISTS (SELECT 1 FROM kin WHERE repo_id = m.repo_id) AND NOT `+stagedAbove+`
		RETURNING id, repo_id, digest, size, (SELECT name FROM repositories r WHERE r.id = repo_id)`,
		claims, min(before, c.cutoff(c.w.Policy.Trash)), c.leasedAfter())
	if err != nil {
		return fmt.Errorf("remove manifests: %w", err)
	}
	c.raced(len(c.w.Remove) - len(log))
	c.done.Collected += int64(len(log))
	uncovered, err := reviewLinks(c.tx, freed, "the last manifest that needed it left the trash", c.w.Run)
	if err != nil {
		return err
	}
	c.done.Total += uncovered
	if err := c.s.dropEmptyRepos(c.tx, repos); err != nil {
		return err
	}
	return logDeletions(c.tx, c.w.Run, c.w.Actor, log)
}

// dropEmptyRepos forgets repositories that hold nothing.
func (s *Store) dropEmptyRepos(tx *sqldb.Tx, repos []int64) error {
	if len(repos) == 0 {
		return nil
	}
	var gone []oci.Name
	err := tx.All(scanInto(&gone), `DELETE FROM repositories AS r WHERE r.id IN (SELECT a FROM `+sqldb.Each+`)
		AND NOT EXISTS (SELECT 1 FROM manifests WHERE repo_id = r.id) AND NOT EXISTS (SELECT 1 FROM links WHERE repo_id = r.id)
		AND NOT EXISTS (SELECT 1 FROM uploads WHERE repo_id = r.id) RETURNING name`, sqldb.List(repos))
	if err != nil {
		return fmt.Errorf("drop empty repositories: %w", err)
	}
	for _, repo := range gone {
		s.dropTags(tx, repo)
	}
	return nil
}

// unlink takes blobs out of repositories that have no manifest for them; blobs
// that no repository has any more go up for review.
func (c *collection) unlink() error {
	if len(c.w.Unlink) == 0 {
		return nil
	}
	why := reasons(c.w.Unlink)
	claims, before := claimRows(c.w.Unlink)
	var log []Deletion
	var goneLinks, repos []int64
	bereft := map[int64]*[3]int64{} // blob → blob, latest confirmation, repository
	err := c.tx.All(func(rows *sql.Rows) error {
		var id, blob, repo, touched int64
		var hidden bool
		d := Deletion{Kind: "link", Act: "removed"}
		if err := rows.Scan(&id, &blob, &repo, &touched, &hidden, &d.Repo, &d.Digest, &d.Bytes); err != nil {
			return err
		}
		d.Reason = why[id]
		goneLinks, repos = append(goneLinks, id), append(repos, repo)
		c.done.Unlinked++
		if !hidden { // the client's DELETE was logged when it came
			log = append(log, d)
		}
		if b := bereft[blob]; b == nil {
			bereft[blob] = &[3]int64{blob, touched, repo}
		} else {
			b[1] = max(b[1], touched)
		}
		c.s.dropBlobs(c.tx, oci.Name(d.Repo), oci.Digest(d.Digest))
		return nil
	}, `DELETE FROM links AS l WHERE (l.id, l.version) IN (SELECT a, b FROM `+sqldb.Each2+`) AND l.touched_at <= ? AND NOT `+anyEdge+`
			AND NOT EXISTS (SELECT 1 FROM blobs b CROSS JOIN lease_digests ld ON ld.digest = b.digest WHERE b.id = l.blob_id AND ld.expires_at > ?)
		RETURNING id, blob_id, repo_id, touched_at, hidden, (SELECT name FROM repositories r WHERE r.id = repo_id),
			(SELECT digest FROM blobs b WHERE b.id = blob_id), (SELECT size FROM blobs b WHERE b.id = blob_id)`,
		claims, min(before, c.cutoff(c.w.Policy.Window)), c.leasedAfter())
	if err != nil {
		return fmt.Errorf("remove links: %w", err)
	}
	c.raced(len(c.w.Unlink) - len(goneLinks))
	if err := closeReviews(c.tx, "link", c.w.Unlink, goneLinks); err != nil {
		return err
	}
	if err := c.reviewBlobs(bereft); err != nil {
		return err
	}
	if err := c.s.dropEmptyRepos(c.tx, repos); err != nil {
		return err
	}
	return logDeletions(c.tx, c.w.Run, c.w.Actor, log)
}

// reviewBlobs hands the confirmations that links carried on to their blobs
// (R3) and puts those up for review that no repository has any more.
func (c *collection) reviewBlobs(bereft map[int64]*[3]int64) error {
	if len(bereft) == 0 {
		return nil
	}
	list := sqldb.List(slices.Collect(maps.Values(bereft)))
	if _, err := c.tx.Exec(`UPDATE blobs SET version = version + 1, touched_at = max(touched_at, i.b) FROM `+sqldb.Each2+` i WHERE blobs.id = i.a`, list); err != nil {
		return fmt.Errorf("hand on confirmations: %w", err)
	}
	n, err := c.tx.Exec(`INSERT INTO reviews (kind, target, repo_id, event_at, event, run_id)
		SELECT 'blob', b.id, i.c, b.touched_at, 'no repository has it any more', nullif(?, 0) FROM `+sqldb.Each3+` i CROSS JOIN blobs b ON b.id = i.a
		WHERE NOT EXISTS (SELECT 1 FROM links l WHERE l.blob_id = b.id)
		ON CONFLICT (kind, target) DO UPDATE SET event_at = excluded.event_at, run_id = excluded.run_id, version = version + 1`, c.w.Run, list)
	if err != nil {
		return fmt.Errorf("put blobs up for review: %w", err)
	}
	c.done.Total += n
	return nil
}

// collect forgets blobs. The keys of their bytes go to the purge queue in the
// same transaction (R6).
func (c *collection) collect() error {
	if len(c.w.Collect) == 0 {
		return nil
	}
	why := reasons(c.w.Collect)
	claims, before := claimRows(c.w.Collect)
	var log []Deletion
	var keys [][4]any
	var gone []int64
	err := c.tx.All(func(rows *sql.Rows) error {
		var id int64
		var key string
		d := Deletion{Kind: "blob", Act: "removed"}
		if err := rows.Scan(&id, &d.Digest, &d.Bytes, &key); err != nil {
			return err
		}
		d.Reason = why[id]
		log, gone = append(log, d), append(gone, id)
		keys = append(keys, [4]any{key, d.Digest, d.Bytes, d.Reason})
		return nil
	}, `DELETE FROM blobs AS b WHERE (b.id, b.version) IN (SELECT a, b FROM `+sqldb.Each2+`) AND b.touched_at <= ?
			AND NOT EXISTS (SELECT 1 FROM links l WHERE l.blob_id = b.id)
			AND NOT EXISTS (SELECT 1 FROM lease_digests ld WHERE ld.digest = b.digest AND ld.expires_at > ?)
		RETURNING id, digest, size, key`, claims, min(before, c.cutoff(c.w.Policy.Window)), c.leasedAfter())
	if err != nil {
		return fmt.Errorf("remove blobs: %w", err)
	}
	c.raced(len(c.w.Collect) - len(log))
	c.done.Collected += int64(len(log))
	if err := closeReviews(c.tx, "blob", c.w.Collect, gone); err != nil {
		return err
	}
	if len(keys) > 0 {
		if _, err := c.tx.Exec(`INSERT INTO purges (key, digest, size, reason, actor, run_id, queued_at, due_at)
			SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'), ?, nullif(?, 0), ?, ?
			FROM json_each(?)`, c.w.Actor, c.w.Run, c.tx.Now(), c.tx.Now(), sqldb.List(keys)); err != nil {
			return fmt.Errorf("queue purges: %w", err)
		}
	}
	return logDeletions(c.tx, c.w.Run, c.w.Actor, log)
}

// closeReviews forgets the reviews of what is gone, out of what was claimed. A
// claim that was lost leaves its review for a later run: this one judged it,
// and does not try again (R4).
func closeReviews(tx *sqldb.Tx, kind string, claims []Claim, gone []int64) error {
	if len(gone) > 0 {
		if _, err := tx.Exec("DELETE FROM reviews WHERE kind = ? AND target IN (SELECT a FROM "+sqldb.Each+")", kind, sqldb.List(gone)); err != nil {
			return fmt.Errorf("close reviews: %w", err)
		}
	}
	if len(gone) < len(claims) {
		rows, _ := claimRows(claims)
		if _, err := tx.Exec("UPDATE reviews SET run_id = NULL WHERE kind = ? AND target IN (SELECT a FROM "+sqldb.Each2+")", kind, rows); err != nil {
			return fmt.Errorf("leave reviews: %w", err)
		}
	}
	return nil
}

// abandon ends upload sessions that nobody goes on with.
func (c *collection) abandon() error {
	for _, u := range c.w.Abandon {
		var repo int64
		d := Deletion{Kind: "upload", Act: "removed", Digest: u.ID, Reason: u.Reason}
		p := purge{Reason: u.Reason, Actor: c.w.Actor, Run: c.w.Run}
		err := c.tx.Row(`DELETE FROM uploads WHERE id = ? AND version = ? AND touched_at <= ?
			RETURNING key, size, repo_id, (SELECT name FROM repositories r WHERE r.id = repo_id)`, u.ID, u.Version, u.Before).
			Scan(&p.Key, &p.Size, &repo, &d.Repo)
		if errors.Is(err, sql.ErrNoRows) {
			c.raced(1)
			continue
		}
		if err != nil {
			return fmt.Errorf("end upload %s: %w", u.ID, err)
		}
		d.Bytes = p.Size
		if err := enqueuePurge(c.tx, p); err != nil {
			return err
		}
		if err := logDeletions(c.tx, c.w.Run, c.w.Actor, []Deletion{d}); err != nil {
			return err
		}
		if err := c.s.dropEmptyRepos(c.tx, []int64{repo}); err != nil {
			return err
		}
		c.done.Collected++
	}
	return nil
}

// settle closes and postpones reviews, unless an event has renewed them since
// they were judged.
func (c *collection) settle() error {
	byKind := map[string][][2]int64{}
	for _, r := range c.w.Settled {
		byKind[r.Kind] = append(byKind[r.Kind], [2]int64{r.Target, r.Version})
	}
	for kind, rows := range byKind {
		if _, err := c.tx.Exec(`DELETE FROM reviews WHERE kind = ? AND (target, version) IN (SELECT a, b FROM `+sqldb.Each2+`)`, kind, sqldb.List(rows)); err != nil {
			return fmt.Errorf("close reviews: %w", err)
		}
	}
	for _, p := range c.w.Postponed {
		// A lease that has ended since it was seen puts nothing off: its end would
		// not find this review.
		if _, err := c.tx.Exec(`UPDATE reviews SET event_at = ?1, holder = nullif(?2, ''), run_id = NULL, version = version + 1
			WHERE kind = ?3 AND target = ?4 AND version = ?5 AND (?2 = '' OR EXISTS (SELECT 1 FROM lease_digests WHERE holder = ?2 AND expires_at >= ?6))`,
			p.EventAt, p.Holder, p.Kind, p.Target, p.Version, p.EventAt-ConfirmAhead); err != nil {
			return fmt.Errorf("postpone reviews: %w", err)
		}
	}
	return nil
}

package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// kinMax is how many children and referrers of a manifest one transaction deals
// with. A manifest with more leaves a row in the table kin, and whoever changed the
// manifest goes on from there in further transactions, so that no manifest holds up
// the writes of others (R5).
//
// Until that is done, the remaining kin are as they were. That loses nothing: a
// claim repeats in its statement what holds a manifest, so kin of a pushed index are
// safe at once; kin of a deleted one are kept for longer; and while a repository has
// a row, nothing leaves its trash for good, so what is to be restored stays. A crash
// leaves the row, and the next start or run goes on.
const kinMax = 100

// What is to be done with kin, besides bringing them in line with what keeps them.
const (
	kinSettle  = iota // of a deleted manifest: they become orphans, and those in the trash stay longer
	kinRenew          // of one in the trash: those in the trash stay longer
	kinPush           // of a pushed index: its children come back from the trash, without their tags
	kinRestore        // of a restored manifest: so do its children and the referrers that went because of it, with their tags
)

// kinship is a manifest whose kin are to be settled: the children of an index,
// and the referrers of a subject.
type kinship struct {
	id, repoID int64
	repo       oci.Name
	digest     oci.Digest
	trashed    bool
	run        int64 // that deleted it; 0: a client did
	mode       int
	root       int64  // whose push or restore it belongs to; whoever began that goes on with it
	renewedAt  int64  // what is in the trash below it since before stays from then on
	actor      string // of the restore
	referrers  bool   // the children are done
	after      string // digest of the last one that was settled
	queued     bool   // some have kin of their own, which are noted
}

// settleKin settles the first kin of a manifest, *budget at most, which it reduces.
// more reports that some are left: to finishRoot if they belong to a root, and else
// to finishKin.
func (s *Store) settleKin(tx *sqldb.Tx, k kinship, budget *int, out *Restored) (more bool, err error) {
	more = true
	if *budget > 0 {
		if more, err = s.stepKin(tx, &k, budget, out); err != nil {
			return false, err
		}
	}
	switch {
	case more:
		err = s.queueKin(tx, k)
	case k.trashed:
		// What an earlier change has left is part of what is done now.
		_, err = tx.Exec("DELETE FROM kin WHERE manifest_id = ?", k.id)
	}
	switch {
	case err != nil || !more && !k.queued:
		return false, err
	case k.root != 0:
		return s.stepRoot(tx, k.root, budget, out)
	}
	for more = true; more && *budget > 0; {
		if more, err = s.stepLeft(tx, "k.mode = 1 AND k.repo_id = ?", k.repoID, budget, out); err != nil {
			return false, err
		}
	}
	return more, nil
}

// queueKin notes where to go on. If a row is left of an earlier change of the
// manifest, all begins again, and what that was to restore still is, unless the
// manifest was deleted since.
func (s *Store) queueKin(tx *sqldb.Tx, k kinship) error {
	s.someKinLeft(tx)
	_, err := tx.Exec(`INSERT INTO kin (manifest_id, repo_id, run_id, mode, root, renewed_at, actor, referrers, after) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9, ?10)
		ON CONFLICT (manifest_id) DO UPDATE SET run_id = excluded.run_id, renewed_at = excluded.renewed_at, referrers = 0, after = '',
			mode = CASE WHEN ?8 OR kin.mode = 1 THEN ?4 ELSE max(kin.mode, ?4) END,
			root = CASE WHEN ?8 OR ?5 <> 0 THEN ?5 ELSE kin.root END, actor = CASE WHEN ?7 = '' THEN kin.actor ELSE ?7 END`,
		k.id, k.repoID, k.run, k.mode, k.root, k.renewedAt, k.actor, k.trashed, k.referrers, k.after)
	if err != nil {
		return fmt.Errorf("note children and referrers: %w", err)
	}
	return nil
}

// finishKin settles what settleKin has left, in bounded transactions. It goes on
// when the client has left: its request has been carried out. A manifest whose kin
// cannot be settled does not stop the others (R9): its row stays, and is part of
// the error.
func (s *Store) finishKin(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error) error {
	ctx = context.WithoutCancel(ctx)
	var failed int
	var first error
	var after int64 // the last one that failed
	for s.kinLeft.Load() {
		var id int64 // that was gone on with
		err := write(ctx, func(tx *sqldb.Tx) error {
			id = 0
			err := tx.Row("SELECT manifest_id FROM kin WHERE manifest_id > ? AND root NOT IN (SELECT a FROM "+sqldb.Each+") ORDER BY manifest_id LIMIT 1", after, s.roots.list()).Scan(&id)
			if errors.Is(err, sql.ErrNoRows) {
				return s.noKinLeft(tx)
			}
			if err != nil {
				return err
			}
			budget := kinMax
			_, err = s.stepLeft(tx, "k.manifest_id = ?", id, &budget, nil)
			return err
		})
		switch {
		case err != nil && id == 0:
			return fmt.Errorf("settle children and referrers: %w", err)
		case err != nil:
			if failed++; first == nil {
				first = fmt.Errorf("settle children and referrers of manifest %d: %w", id, err)
			}
			after = id
		case id == 0 && failed > 0:
			return fmt.Errorf("%w (%d manifests in all)", first, failed)
		case id == 0:
			return nil
		}
	}
	return nil
}

// someKinLeft remembers that the table has a row. It does so at the commit, as
// noKinLeft does: the writes of one commit may be of both kinds, and the last counts.
func (s *Store) someKinLeft(tx *sqldb.Tx) { tx.OnCommit(func() { s.kinLeft.Store(true) }) }

// noKinLeft remembers that the table is empty, if it is.
func (s *Store) noKinLeft(tx *sqldb.Tx) error {
	var left bool
	err := tx.Row("SELECT EXISTS (SELECT 1 FROM kin)").Scan(&left)
	if err == nil && !left {
		tx.OnCommit(func() { s.kinLeft.Store(false) })
	}
	return err
}

// finishRoot finishes a push or a restore that its first transaction did not.
func (s *Store) finishRoot(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error, root int64, out *Restored) error {
	ctx = context.WithoutCancel(ctx)
	for more := true; more; {
		var part Restored
		err := write(ctx, func(tx *sqldb.Tx) (err error) {
			part = Restored{}
			budget := kinMax
			more, err = s.stepRoot(tx, root, &budget, &part)
			return err
		})
		if err != nil {
			return fmt.Errorf("bring back what belongs to it: %w", err)
		}
		out.add(part)
	}
	return nil
}

// stepRoot goes on with a push or a restore, up to a budget.
func (s *Store) stepRoot(tx *sqldb.Tx, root int64, budget *int, out *Restored) (more bool, err error) {
	for more = true; more && *budget > 0; {
		if more, err = s.stepLeft(tx, "k.root = ?", root, budget, out); err != nil {
			return false, err
		}
	}
	return more, nil
}

// stepLeft goes on with the first row of the table kin that matches. more reports
// that the row was there, and so that there may be another.
func (s *Store) stepLeft(tx *sqldb.Tx, where string, arg int64, budget *int, out *Restored) (more bool, err error) {
	var k kinship
	err = tx.Row(`SELECT m.id, m.repo_id, r.name, m.digest, m.trashed_at IS NOT NULL, k.run_id, k.mode, k.root, k.renewed_at, k.actor, k.referrers, k.after
		FROM kin k CROSS JOIN manifests m ON m.id = k.manifest_id CROSS JOIN repositories r ON r.id = m.repo_id WHERE `+where+` ORDER BY k.manifest_id LIMIT 1`, arg).
		Scan(&k.id, &k.repoID, &k.repo, &k.digest, &k.trashed, &k.run, &k.mode, &k.root, &k.renewedAt, &k.actor, &k.referrers, &k.after)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	left, err := s.stepKin(tx, &k, budget, out)
	if err != nil {
		return false, err
	}
	if left {
		_, err = tx.Exec("UPDATE kin SET referrers = ?, after = ? WHERE manifest_id = ?", k.referrers, k.after, k.id)
	} else {
		_, err = tx.Exec("DELETE FROM kin WHERE manifest_id = ?", k.id)
	}
	return true, err
}

// followUp is finishKin after a commit that has carried out a request. Whatever
// becomes of it, the answer is that of the commit: what fails is left to the next
// run, which reports it.
func (s *Store) followUp(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error) {
	_ = s.finishKin(ctx, write)
}

// idSet are manifests that something is under way with in this process, and how often.
type idSet struct {
	mu  sync.Mutex
	ids map[int64]int
}

func (r *idSet) has(id int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ids[id] > 0
}

func (r *idSet) add(id int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids == nil {
		r.ids = map[int64]int{}
	}
	r.ids[id]++
}

func (r *idSet) remove(id int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id]--; r.ids[id] <= 0 {
		delete(r.ids, id)
	}
}

func (r *idSet) list() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sqldb.List(slices.Collect(maps.Keys(r.ids)))
}

// errKinFirst says that kin of a deleted manifest are to be settled before.
var errKinFirst = errors.New("children and referrers of a deleted manifest are not settled yet")

// noOrphansToCome returns errKinFirst while manifests of a repository may yet
// be marked as orphans of a deleted one. What is pushed or restored now is there
// for its own sake, and must not be marked afterwards (R2).
func noOrphansToCome(tx *sqldb.Tx, repoID int64) error {
	var pending bool
	err := tx.Row(`SELECT EXISTS (SELECT 1 FROM kin k CROSS JOIN manifests m ON m.id = k.manifest_id
		WHERE k.repo_id = ? AND k.mode <> 1 AND m.trashed_at IS NOT NULL)`, repoID).Scan(&pending)
	if err == nil && pending {
		err = errKinFirst
	}
	return err
}

// afterKin is write for a function that calls noOrphansToCome.
func (s *Store) afterKin(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error, fn func(*sqldb.Tx) error) error {
	var failed error
	for {
		err := write(ctx, fn)
		if !errors.Is(err, errKinFirst) {
			return err
		}
		if failed != nil {
			return failed
		}
		s.kinLeft.Store(true)
		failed = s.finishKin(ctx, write) // perhaps of another repository
	}
}

// FinishKin goes on with what a crash or an error has left: kin, and manifests whose
// push broke off. A collector calls it before it looks for orphans.
func (s *Store) FinishKin(ctx context.Context) error {
	return errors.Join(s.finishKin(ctx, s.db.Maintain), s.dropStaged(ctx, s.db.Maintain))
}

// kinPending reads whether a former process has left any.
func (s *Store) kinPending(ctx context.Context) error {
	return s.db.Read(ctx, func(tx *sqldb.Tx) error {
		var left bool
		err := tx.Row("SELECT EXISTS (SELECT 1 FROM kin)").Scan(&left)
		s.kinLeft.Store(left)
		return err
	})
}

// kinFound is what one step has found among kin.
type kinFound struct {
	settle  []int64       // living ones that nothing has kept so far, or of a deleted manifest all
	renew   []int64       // in the trash, to stay there longer
	restore []trashedItem // to come back
	absent  []string      // children that are not here at all
	read    int
}

// stepKin deals with the next kin of a manifest, *budget at most. left reports that
// there may be more.
func (s *Store) stepKin(tx *sqldb.Tx, k *kinship, budget *int, out *Restored) (left bool, err error) {
	for {
		limit := *budget
		f, err := k.read(tx, limit)
		if err != nil {
			return false, fmt.Errorf("list children and referrers: %w", err)
		}
		*budget -= f.read
		cut, err := s.dealWith(tx, k, f, budget, out)
		if err != nil {
			return false, err
		}
		switch {
		case cut:
			*budget = 0
			return true, nil
		case f.read == limit:
			return true, nil
		case k.referrers:
			return false, nil
		}
		k.referrers, k.after = true, ""
	}
}

// dealWith does what is to be done with some kin, and reduces the budget by what their
// references to blobs cost. cut reports that k goes on before the last of them, since
// those before it were enough for one transaction.
func (s *Store) dealWith(tx *sqldb.Tx, k *kinship, f kinFound, budget *int, out *Restored) (cut bool, err error) {
	if k.trashed {
		if err := s.renewTrash(tx, k, f.renew); err != nil {
			return false, err
		}
		if k.mode == kinRenew || len(f.settle) == 0 {
			return false, nil
		}
		return false, s.orphan(tx, *k, f.settle)
	}
	if k.mode != kinSettle {
		done, edges, err := s.restoreItems(tx, k, f.restore, out)
		if err != nil {
			return false, err
		}
		*budget = max(0, *budget-edges*kinMax/restoredEdges)
		if cut = done < len(f.restore); cut {
			k.after = string(f.restore[done-1].digest)
		}
		if err := goneForGood(tx, k, f.absent, out); err != nil {
			return false, err
		}
	}
	return cut, s.settle(tx, k.repo, f.settle)
}

// read finds the next n kin. Of a living manifest it takes those that nothing has
// kept so far and those that come back, of a deleted one those that are living and
// those that are in the trash for longer.
func (k *kinship) read(tx *sqldb.Tx, n int) (f kinFound, err error) {
	const columns = `, k.trashed_at IS NULL AND (k.loose_at IS NOT NULL OR k.orphaned_at IS NOT NULL), k.trashed_at IS NULL,
		t.manifest_id IS NOT NULL, coalesce(t.cause, '') <> '', coalesce(t.trashed_at, 0), coalesce(t.tags, ''), coalesce(k.size, 0) `
	query, args := `SELECT c.child_digest, coalesce(k.id, 0)`+columns+`
		FROM manifest_children c LEFT JOIN manifests k ON k.repo_id = c.repo_id AND k.digest = c.child_digest LEFT JOIN trash t ON t.manifest_id = k.id
		WHERE c.manifest_id = ? AND c.child_digest > ? ORDER BY c.child_digest LIMIT ?`, []any{k.id, k.after, n}
	if k.referrers {
		query, args = `SELECT k.digest, k.id`+columns+`
			FROM manifests k INDEXED BY manifests_subject LEFT JOIN trash t ON t.manifest_id = k.id
			WHERE k.repo_id = ? AND k.subject = ? AND k.digest > ? ORDER BY k.digest LIMIT ?`, []any{k.repoID, string(k.digest), k.after, n}
	}
	err = tx.All(func(rows *sql.Rows) error {
		var it trashedItem
		var loose, living, inTrash, caused bool
		var at int64
		if err := rows.Scan(&it.digest, &it.id, &loose, &living, &inTrash, &caused, &at, &it.tags, &it.size); err != nil {
			return err
		}
		k.after = string(it.digest)
		f.read++
		switch {
		case it.id == 0:
			f.absent = append(f.absent, k.after)
		case living && (loose || k.trashed):
			f.settle = append(f.settle, it.id)
		case inTrash && k.trashed && at < k.renewedAt:
			f.renew = append(f.renew, it.id)
		case inTrash && (!k.referrers && k.mode >= kinPush || caused && k.mode == kinRestore):
			f.restore = append(f.restore, it)
		}
		return nil
	}, query, args...)
	return f, err
}

// orphan marks the kin of a deleted manifest. They are marked before they are
// settled: those that an index or a subject still keeps lose the mark at once,
// those that only a tag keeps carry it.
func (s *Store) orphan(tx *sqldb.Tx, k kinship, ids []int64) error {
	list := sqldb.List(ids)
	if _, err := tx.Exec(`UPDATE manifests SET orphaned_at = ?, orphan_reason = ?, version = version + 1
		WHERE id IN (SELECT a FROM `+sqldb.Each+`)`, tx.Now(), string(k.digest), list); err != nil {
		return fmt.Errorf("mark orphans: %w", err)
	}
	// A review of an earlier deletion is renewed: its time counts from this one.
	if _, err := tx.Exec("DELETE FROM reviews WHERE kind = 'manifest' AND target IN (SELECT a FROM "+sqldb.Each+")", list); err != nil {
		return fmt.Errorf("renew reviews: %w", err)
	}
	if err := s.settle(tx, k.repo, ids); err != nil {
		return err
	}
	if k.run == 0 {
		return nil
	}
	_, err := tx.Exec("UPDATE reviews SET run_id = ? WHERE kind = 'manifest' AND target IN (SELECT a FROM "+sqldb.Each+")", k.run, list)
	return err
}

// renewTrash begins the time in the trash anew of what is there already and was
// kept by a manifest that now goes there too: whoever restores the one may want
// the other. What is in the trash below them follows.
func (s *Store) renewTrash(tx *sqldb.Tx, k *kinship, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	list := sqldb.List(ids)
	if _, err := tx.Exec("UPDATE trash SET trashed_at = ? WHERE manifest_id IN (SELECT a FROM "+sqldb.Each+")", k.renewedAt, list); err != nil {
		return fmt.Errorf("renew the time in the trash: %w", err)
	}
	if _, err := tx.Exec("UPDATE manifests SET trashed_at = ?, version = version + 1 WHERE id IN (SELECT a FROM "+sqldb.Each+")", k.renewedAt, list); err != nil {
		return fmt.Errorf("renew the time in the trash: %w", err)
	}
	k.queued = true
	return s.queueKinOf(tx, kinship{repoID: k.repoID, mode: kinRenew, renewedAt: k.renewedAt}, list)
}

// queueKinOf notes the same for each manifest of a list that has kin.
func (s *Store) queueKinOf(tx *sqldb.Tx, k kinship, list string) error {
	s.someKinLeft(tx)
	_, err := tx.Exec(`INSERT INTO kin (manifest_id, repo_id, run_id, mode, root, renewed_at, actor, referrers, after)
		SELECT m.id, ?1, 0, ?2, ?3, ?4, ?5, 0, '' FROM `+sqldb.Each+` i CROSS JOIN manifests m ON m.id = i.a
		WHERE EXISTS (SELECT 1 FROM manifest_children c WHERE c.manifest_id = m.id)
			OR EXISTS (SELECT 1 FROM manifests r INDEXED BY manifests_subject WHERE r.repo_id = ?1 AND r.subject = m.digest)
		ON CONFLICT (manifest_id) DO UPDATE SET referrers = 0, after = '', renewed_at = excluded.renewed_at,
			mode = CASE WHEN ?2 = 1 THEN kin.mode ELSE ?2 END, root = CASE WHEN ?2 = 1 THEN kin.root ELSE ?3 END, actor = ?5`,
		k.repoID, k.mode, k.root, k.renewedAt, k.actor, list)
	if err != nil {
		return fmt.Errorf("note children and referrers: %w", err)
	}
	return nil
}

// goneForGood notes children that a restore cannot bring back since they were
// removed. One that the repository never had is not among these.
func goneForGood(tx *sqldb.Tx, k *kinship, absent []string, out *Restored) error {
	if out == nil || len(absent) == 0 || k.mode != kinRestore {
		return nil
	}
	var gone []oci.Digest
	err := tx.All(scanInto(&gone), `SELECT i.a FROM `+sqldb.Each+` i WHERE EXISTS (SELECT 1 FROM deletions l
		WHERE l.digest = i.a AND l.repo = ? AND l.kind = 'manifest' AND l.act = 'removed')`, sqldb.List(absent), string(k.repo))
	for _, child := range gone {
		out.NotRestored = append(out.NotRestored, NotRestored{child, "it was removed for good; push it again"})
	}
	return err
}

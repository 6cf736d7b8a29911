package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// kinMax is how many children and referrers of a manifest one transaction
// settles. A manifest with more leaves a row in the table kin, and whoever
// changed the manifest goes on from there in further transactions, so that no
// manifest holds up the writes of others (R5).
//
// Until that is done, the remaining kin are as they were. That loses nothing:
// a claim repeats in its statement what holds a manifest, so kin of a pushed
// index are safe at once; and kin of a deleted one are kept for longer. A crash
// leaves the row, and the next start or run goes on.
const kinMax = 200

// kinship is a manifest whose kin are to be settled: the children of an index,
// and the referrers of a subject.
type kinship struct {
	id, repoID int64
	repo       oci.Name
	digest     oci.Digest
	trashed    bool
	run        int64  // that deleted it; 0: a client did
	referrers  bool   // the children are done
	after      string // digest of the last one that was settled
}

// settleKin settles the first kin of a manifest. more reports that some are
// left to finishKin.
func (s *Store) settleKin(tx *sqldb.Tx, k kinship) (more bool, err error) {
	// A row that an earlier change of the manifest has left may stay: whoever goes
	// on with it goes by what the manifest is by then.
	if more, err = s.stepKin(tx, &k); err != nil || !more {
		return false, err
	}
	tx.OnCommit(func() { s.kinLeft.Store(true) })
	_, err = tx.Exec(`INSERT INTO kin (manifest_id, run_id, referrers, after) VALUES (?, ?, ?, ?)
		ON CONFLICT (manifest_id) DO UPDATE SET run_id = excluded.run_id, referrers = excluded.referrers, after = excluded.after`, k.id, k.run, k.referrers, k.after)
	return true, err
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
		var k kinship
		err := write(ctx, func(tx *sqldb.Tx) error {
			k = kinship{}
			err := s.stepLeft(tx, after, &k)
			if errors.Is(err, sql.ErrNoRows) {
				if after == 0 {
					tx.OnCommit(func() { s.kinLeft.Store(false) })
				}
				return nil
			}
			return err
		})
		switch {
		case err != nil && k.id == 0:
			return fmt.Errorf("settle children and referrers: %w", err)
		case err != nil:
			if failed++; first == nil {
				first = fmt.Errorf("settle children and referrers of %s in %s: %w", k.digest, k.repo, err)
			}
			after = k.id
		case k.id == 0 && failed > 1:
			return fmt.Errorf("%w (and those of %d other manifests)", first, failed-1)
		case k.id == 0:
			return first
		}
	}
	return nil
}

// stepLeft goes on with the first manifest after an id that has kin left.
func (s *Store) stepLeft(tx *sqldb.Tx, after int64, k *kinship) error {
	err := tx.Row(`SELECT m.id, m.repo_id, r.name, m.digest, m.trashed_at IS NOT NULL, k.run_id, k.referrers, k.after
		FROM kin k CROSS JOIN manifests m ON m.id = k.manifest_id CROSS JOIN repositories r ON r.id = m.repo_id WHERE k.manifest_id > ? ORDER BY k.manifest_id LIMIT 1`, after).
		Scan(&k.id, &k.repoID, &k.repo, &k.digest, &k.trashed, &k.run, &k.referrers, &k.after)
	if err != nil {
		return err
	}
	more, err := s.stepKin(tx, k)
	if err != nil {
		return err
	}
	if more {
		_, err = tx.Exec("UPDATE kin SET referrers = ?, after = ? WHERE manifest_id = ?", k.referrers, k.after, k.id)
	} else {
		_, err = tx.Exec("DELETE FROM kin WHERE manifest_id = ?", k.id)
	}
	return err
}

// followUp is finishKin after a commit that has carried out a request. Whatever
// becomes of it, the answer is that of the commit: what fails is left to the next
// run, which reports it.
func (s *Store) followUp(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error) {
	_ = s.finishKin(ctx, write)
}

// errKinFirst says that kin of a deleted manifest are to be settled before.
var errKinFirst = errors.New("children and referrers of a deleted manifest are not settled yet")

// noOrphansToCome returns errKinFirst while manifests of a repository may yet
// be marked as orphans of a deleted one. What is pushed or restored now is there
// for its own sake, and must not be marked afterwards (R2).
func noOrphansToCome(tx *sqldb.Tx, repoID int64) error {
	var pending bool
	err := tx.Row(`SELECT EXISTS (SELECT 1 FROM kin k CROSS JOIN manifests m ON m.id = k.manifest_id
		WHERE m.repo_id = ? AND m.trashed_at IS NOT NULL)`, repoID).Scan(&pending)
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
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// FinishKin goes on with what a crash has left. A collector calls it before it
// looks for orphans.
func (s *Store) FinishKin(ctx context.Context) error { return s.finishKin(ctx, s.db.Maintain) }

// kinPending reads whether a former process has left any.
func (s *Store) kinPending(ctx context.Context) error {
	return s.db.Read(ctx, func(tx *sqldb.Tx) error {
		var left bool
		err := tx.Row("SELECT EXISTS (SELECT 1 FROM kin)").Scan(&left)
		s.kinLeft.Store(left)
		return err
	})
}

// stepKin settles the next kinMax of a manifest's kin.
func (s *Store) stepKin(tx *sqldb.Tx, k *kinship) (more bool, err error) {
	var ids []int64
	left := kinMax
	for {
		n, err := k.read(tx, left, &ids)
		if err != nil {
			return false, fmt.Errorf("list children and referrers: %w", err)
		}
		if n == left {
			more = true
			break
		}
		left -= n
		if k.referrers {
			break
		}
		k.referrers, k.after = true, ""
	}
	if len(ids) == 0 {
		return more, nil
	}
	if k.trashed {
		return more, s.orphan(tx, *k, ids)
	}
	return more, s.settle(tx, k.repo, ids)
}

// read appends the living ones of the next n kin to ids, and of a living
// manifest only those that nothing has kept so far. It returns how many there
// were.
func (k *kinship) read(tx *sqldb.Tx, n int, ids *[]int64) (read int, err error) {
	query, args := `SELECT c.child_digest, coalesce(k.id, 0), coalesce(k.trashed_at IS NULL AND (k.loose_at IS NOT NULL OR k.orphaned_at IS NOT NULL), 0), coalesce(k.trashed_at IS NULL, 0)
		FROM manifest_children c LEFT JOIN manifests k ON k.repo_id = c.repo_id AND k.digest = c.child_digest
		WHERE c.manifest_id = ? AND c.child_digest > ? ORDER BY c.child_digest LIMIT ?`, []any{k.id, k.after, n}
	if k.referrers {
		query, args = `SELECT k.digest, k.id, k.trashed_at IS NULL AND (k.loose_at IS NOT NULL OR k.orphaned_at IS NOT NULL), k.trashed_at IS NULL
			FROM manifests k INDEXED BY manifests_subject WHERE k.repo_id = ? AND k.subject = ? AND k.digest > ? ORDER BY k.digest LIMIT ?`,
			[]any{k.repoID, string(k.digest), k.after, n}
	}
	err = tx.All(func(rows *sql.Rows) error {
		var id int64
		var loose, living bool
		if err := rows.Scan(&k.after, &id, &loose, &living); err != nil {
			return err
		}
		read++
		if loose || living && id != 0 && k.trashed {
			*ids = append(*ids, id)
		}
		return nil
	}, query, args...)
	return read, err
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

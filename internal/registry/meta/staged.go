package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// stageMax is how many digests a manifest may name for its push to be one
// transaction. One that names more is staged: its row is made as that of a
// manifest which is not served, then its references are checked and written so many
// at a time, and the transaction of the push only has it served (R5).
//
// Until then its references protect as those of a living manifest do, and a claim
// spares its children. A crash leaves a row in the table staged, of an owner that is
// no more, and the next start or run removes it with all that was written.
const stageMax = 250

// staging is what the pushes of one manifest know of it.
type staging struct {
	id    int64
	since int64 // when its references began to be checked, ms
}

// errStageAgain says that what was staged is gone, or is to be checked again.
var errStageAgain = errors.New("what was staged is not there any more")

// stagedAbove says that manifest m is a child of one that is being pushed.
const stagedAbove = `EXISTS (SELECT 1 FROM manifest_children c CROSS JOIN staged x ON x.manifest_id = c.manifest_id WHERE c.repo_id = m.repo_id AND c.child_digest = m.digest)`

func (p Push) isLarge() bool {
	return len(p.Manifest.Blobs)+len(p.Manifest.Children)+len(p.Manifest.Mentions) > stageMax
}

// stage prepares the push of a large manifest. The caller ends it with unstage.
func (s *Store) stage(ctx context.Context, p Push) (st staging, err error) {
	refs, wanted := p.refs(), p.wanted()
	// A push that would be refused is refused before anything is written, with all that
	// is missing.
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		repo, err := repoID(tx, p.Repo)
		if err != nil && !errors.Is(err, fault.NotFound) {
			return err
		}
		_, err = resolveBlobs(tx, repo, p, refs)
		return err
	})
	if err != nil {
		return staging{}, err
	}
	for {
		if st, err = s.beginStage(ctx, p); err != nil {
			return st, err
		}
		var ref, want int
		for err == nil && (ref < len(refs) || want < len(wanted)) {
			if err = ctx.Err(); err != nil {
				break
			}
			nextRef, nextWant := min(ref+stageMax, len(refs)), min(want+stageMax, len(wanted))
			err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
				return stagePart(tx, p, st, refs[ref:nextRef], wanted[want:nextWant])
			})
			ref, want = nextRef, nextWant
		}
		if err == nil {
			return st, nil
		}
		s.unstage(ctx, st)
		if !errors.Is(err, errStageAgain) {
			return staging{}, err
		}
	}
}

// beginStage makes the row of the manifest if there is none. One of a push that was
// broken off is taken over, even while it is being removed: all references are
// written after this.
func (s *Store) beginStage(ctx context.Context, p Push) (st staging, err error) {
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		st = staging{since: tx.Now()}
		repo, err := ensureRepo(tx, p.Repo)
		if err != nil {
			return err
		}
		var staged bool
		err = tx.Row("SELECT m.id, x.manifest_id IS NOT NULL FROM manifests m LEFT JOIN staged x ON x.manifest_id = m.id WHERE m.repo_id = ? AND m.digest = ?", repo, string(p.Digest)).Scan(&st.id, &staged)
		if errors.Is(err, sql.ErrNoRows) {
			staged = true
			st.id, err = insertManifest(tx, repo, p, tx.Now())
		}
		if err != nil || !staged { // it is served, or in the trash
			return err
		}
		_, err = tx.Exec(`INSERT INTO staged (manifest_id, owner, users) VALUES (?, ?, 1)
			ON CONFLICT (manifest_id) DO UPDATE SET users = CASE WHEN owner = excluded.owner THEN users + 1 ELSE 1 END, owner = excluded.owner`, st.id, s.owner)
		return err
	})
	return st, err
}

// stagePart checks and writes some references of a manifest.
func stagePart(tx *sqldb.Tx, p Push, st staging, refs []oci.Descriptor, wanted []string) error {
	var repo int64
	var living bool // or staged
	err := tx.Row("SELECT repo_id, NOT EXISTS (SELECT 1 FROM trash t WHERE t.manifest_id = m.id) FROM manifests m WHERE id = ?", st.id).Scan(&repo, &living)
	if errors.Is(err, sql.ErrNoRows) {
		return errStageAgain
	}
	if err != nil {
		return err
	}
	links, err := resolveBlobs(tx, repo, p, refs)
	if err != nil {
		return err
	}
	_, err = writeEdges(tx, repo, st.id, living, links, wanted)
	return err
}

// checkStaged returns errStageAgain if what was staged is not what was checked any
// more: the manifest has another row, or bytes of some blob were found missing since.
// trashed says that it is in the trash: from there it has not kept clients from
// deleting its blobs.
func checkStaged(tx *sqldb.Tx, repo int64, p Push, st staging) (trashed bool, err error) {
	var ok bool
	err = tx.Row(`SELECT EXISTS (SELECT 1 FROM manifests WHERE id = ? AND repo_id = ? AND digest = ?) AND NOT EXISTS (SELECT 1 FROM blobs WHERE lost_at >= ?), EXISTS (SELECT 1 FROM trash WHERE manifest_id = ?)`,
		st.id, repo, string(p.Digest), st.since, st.id).Scan(&ok, &trashed)
	if err == nil && !ok {
		err = errStageAgain
	}
	return trashed, err
}

// unstage ends the push of a large manifest. If it has not come to be served and
// nobody else is pushing it, it is removed.
func (s *Store) unstage(ctx context.Context, st staging) {
	ctx = context.WithoutCancel(ctx)
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE staged SET users = max(users - 1, 0) WHERE manifest_id = ? AND owner = ?", st.id, s.owner)
		return err
	})
	if err == nil {
		// What fails is left to the next run. If not even the row can be written, the
		// next start takes it for that of a process which is no more.
		_ = s.dropStaged(ctx, s.db.Relieve)
	}
}

// dropStaged removes manifests whose push broke off, in bounded transactions. One
// that cannot be removed does not stop the others.
func (s *Store) dropStaged(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error) error {
	var errs []error
	var failed int64
	for {
		var id int64
		err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
			err := tx.Row("SELECT manifest_id FROM staged WHERE manifest_id > ? AND (users = 0 OR owner <> ?) ORDER BY manifest_id LIMIT 1", failed, s.owner).Scan(&id)
			if errors.Is(err, sql.ErrNoRows) {
				return nil
			}
			return err
		})
		if err == nil && id != 0 {
			err = write(ctx, func(tx *sqldb.Tx) error { return s.dropStagedPart(tx, id) })
		}
		switch {
		case err != nil && (id == 0 || ctx.Err() != nil):
			return errors.Join(append(errs, fmt.Errorf("look for pushes that broke off: %w", err))...)
		case err != nil:
			failed = id
			if len(errs) < 3 {
				errs = append(errs, fmt.Errorf("remove manifest %d, whose push broke off: %w", id, err))
			}
		case id == 0:
			return errors.Join(errs...)
		}
	}
}

// dropStagedPart removes some references of a manifest whose push broke off, and in
// the end the manifest. The window of its blobs counts from now: until now, a HEAD
// of one took it for needed, and wrote nothing (R3).
func (s *Store) dropStagedPart(tx *sqldb.Tx, id int64) error {
	var repo int64
	var name oci.Name
	err := tx.Row(`SELECT m.repo_id, r.name FROM staged x CROSS JOIN manifests m ON m.id = x.manifest_id JOIN repositories r ON r.id = m.repo_id
		WHERE x.manifest_id = ? AND (x.users = 0 OR x.owner <> ?)`, id, s.owner).Scan(&repo, &name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // somebody else has
	}
	if err != nil {
		return err
	}
	var links []int64
	var digests []oci.Digest
	err = tx.All(func(rows *sql.Rows) error {
		var l int64
		var d oci.Digest
		err := rows.Scan(&l, &d)
		links, digests = append(links, l), append(digests, d)
		return err
	}, `SELECT l.id, b.digest FROM manifest_blobs e CROSS JOIN links l ON l.id = e.link_id CROSS JOIN blobs b ON b.id = l.blob_id WHERE e.manifest_id = ? LIMIT ?`, id, stageMax)
	if err != nil {
		return err
	}
	s.dropBlobs(tx, name, digests...)
	list := sqldb.List(links)
	if _, err := tx.Exec("DELETE FROM manifest_blobs WHERE manifest_id = ? AND link_id IN (SELECT a FROM "+sqldb.Each+")", id, list); err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE links AS l SET touched_at = max(touched_at, ?), version = version + 1 WHERE l.id IN (SELECT a FROM "+sqldb.Each+") AND NOT "+livingEdge, tx.Now(), list); err != nil {
		return err
	}
	if _, err := reviewLinks(tx, links, "the push of its manifest broke off", 0); err != nil {
		return err
	}
	n, err := tx.Exec("DELETE FROM manifest_children WHERE manifest_id = ?1 AND child_digest IN (SELECT child_digest FROM manifest_children WHERE manifest_id = ?1 LIMIT ?2)", id, stageMax)
	if err != nil || n > 0 || len(links) > 0 {
		return err
	}
	if _, err := tx.Exec("DELETE FROM staged WHERE manifest_id = ?", id); err != nil {
		return err
	}
	if _, err := tx.Exec("DELETE FROM manifests WHERE id = ?", id); err != nil {
		return err
	}
	return s.dropEmptyRepos(tx, []int64{repo})
}

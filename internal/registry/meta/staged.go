package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

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
// spares its children. A row in the table staged that is not of a push which is under
// way in this process is left of a crash or an error, and the next start or run
// removes it with all that was written.
const stageMax = 250

// staging is what a push of a large manifest knows of it.
type staging struct {
	id      int64
	since   int64 // when its references began to be checked, ms
	counted bool  // in Store.pushes
}

// errStageAgain says that what was staged is gone, or is to be checked again.
var errStageAgain = errors.New("what was staged is not there any more")

// stagedAbove says that manifest m is a child of one that is being pushed.
const stagedAbove = `EXISTS (SELECT 1 FROM manifest_children c CROSS JOIN staged x ON x.manifest_id = c.manifest_id WHERE c.repo_id = m.repo_id AND c.child_digest = m.digest)`

// NamedByStaged reports that a manifest is a child of one that is being pushed, so that
// a claim would spare it.
func (s *Store) NamedByStaged(ctx context.Context, id int64) (named bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT "+stagedAbove+" FROM manifests m WHERE m.id = ?", id).Scan(&named)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return named, wrapFacts("what is being pushed", err)
}

func (p Push) isLarge() bool {
	return len(p.Manifest.Blobs)+len(p.Manifest.Children)+len(p.Manifest.Mentions) > stageMax
}

// putLarge is PutManifest for what names too much for one transaction.
func (s *Store) putLarge(ctx context.Context, p Push) (created bool, err error) {
	refs := p.refs()
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
		return false, err
	}
	for {
		created, err = s.putStaged(ctx, p, refs)
		if !errors.Is(err, errStageAgain) {
			return created, err
		}
	}
}

// putStaged is one try of putLarge.
func (s *Store) putStaged(ctx context.Context, p Push, refs []oci.Descriptor) (created bool, err error) {
	st, err := s.beginStage(ctx, p)
	if err != nil {
		return false, err
	}
	defer func() { s.endStage(ctx, st) }()
	if err := s.writeStage(ctx, p, st, refs); err != nil {
		return false, err
	}
	return s.putManifest(ctx, p, &st)
}

// writeStage checks and writes the references of a manifest, in parts.
func (s *Store) writeStage(ctx context.Context, p Push, st staging, refs []oci.Descriptor) error {
	wanted := p.wanted()
	var ref, want int
	for ref < len(refs) { // there is no more in wanted
		if err := ctx.Err(); err != nil {
			return err
		}
		nextRef, nextWant := min(ref+stageMax, len(refs)), min(want+stageMax, len(wanted))
		if err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
			return stagePart(tx, p, st, refs[ref:nextRef], wanted[want:nextWant])
		}); err != nil {
			return err
		}
		ref, want = nextRef, nextWant
	}
	return nil
}

// beginStage makes the row of the manifest if there is none. One of a push that was
// broken off is taken over, even while it is being removed: all references are
// written after this. The caller ends it with endStage.
func (s *Store) beginStage(ctx context.Context, p Push) (st staging, err error) {
	leave := func() {
		if st.counted {
			s.pushes.remove(st.id)
		}
	}
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		leave() // of a former try
		st = staging{since: tx.Now()}
		repo, err := ensureRepo(tx, p.Repo)
		if err != nil {
			return err
		}
		var staged bool
		err = tx.Row("SELECT m.id, x.manifest_id IS NOT NULL FROM manifests m LEFT JOIN staged x ON x.manifest_id = m.id WHERE m.repo_id = ? AND m.digest = ?", repo, string(p.Digest)).Scan(&st.id, &staged)
		if errors.Is(err, sql.ErrNoRows) {
			staged = true
			if st.id, err = insertManifest(tx, repo, p, tx.Now()); err == nil {
				_, err = tx.Exec("INSERT INTO staged (manifest_id) VALUES (?)", st.id)
			}
		}
		if err != nil || !staged { // it is served, or in the trash
			return err
		}
		// While the writer is held: a removal looks here before each of its writes.
		s.pushes.add(st.id)
		st.counted = true
		return nil
	})
	if err != nil {
		leave()
		return staging{}, err
	}
	return st, nil
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
// more: the manifest has another row, or bytes that it cannot do without, or a child
// that is to come back from the trash cannot, were found missing since. A blob that it
// can do without is bound whether it is lost or not. What it cannot do without was not
// lost when it was checked, so that one in the very millisecond in which the push began
// was lost after that. trashed says that it is in the trash: from there it has not kept
// clients from deleting its blobs.
func checkStaged(tx *sqldb.Tx, repo int64, p Push, st staging) (trashed bool, err error) {
	var ok bool
	err = tx.Row(`SELECT EXISTS (SELECT 1 FROM manifests WHERE id = ?1 AND repo_id = ?2 AND digest = ?3), EXISTS (SELECT 1 FROM trash WHERE manifest_id = ?1)`,
		st.id, repo, string(p.Digest)).Scan(&ok, &trashed)
	if err != nil {
		return false, err
	}
	if !ok {
		return trashed, errStageAgain
	}
	isIndex := oci.IsIndex(p.Manifest.MediaType)
	required := sync.OnceValue(p.required) // mostly nothing is lost
	return trashed, tx.All(func(rows *sql.Rows) error {
		var d oci.Digest
		var named, below bool
		if err := rows.Scan(&d, &named, &below); err != nil {
			return err
		}
		if below && isIndex || named && required()[d] {
			return errStageAgain
		}
		return nil
	}, `SELECT b.digest, EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.manifest_id = ?1 AND e.link_id = l.id),
			EXISTS (SELECT 1 FROM manifest_blobs e CROSS JOIN manifests k ON k.id = e.manifest_id CROSS JOIN manifest_children c ON c.manifest_id = ?1 AND c.child_digest = k.digest
				WHERE e.link_id = l.id AND e.living = 0)
		FROM blobs b CROSS JOIN links l ON l.repo_id = ?2 AND l.blob_id = b.id WHERE b.lost_at >= ?3`, st.id, repo, st.since)
}

// required are the blobs that the manifest cannot be pushed without.
func (p Push) required() map[oci.Digest]bool {
	required := map[oci.Digest]bool{}
	for _, b := range p.Manifest.Blobs {
		if !b.Optional {
			required[b.Digest] = true
		}
	}
	return required
}

// endStage ends a try to push a large manifest. If it has not come to be served and
// nobody else is pushing it, it is removed. What fails of that is left to the next run.
func (s *Store) endStage(ctx context.Context, st staging) {
	if st.counted {
		s.pushes.remove(st.id)
	}
	_ = s.dropStaged(context.WithoutCancel(ctx), s.db.Relieve)
}

// dropStaged removes manifests whose push broke off, in bounded transactions. One
// that cannot be removed does not stop the others.
func (s *Store) dropStaged(ctx context.Context, write func(context.Context, func(*sqldb.Tx) error) error) error {
	var errs []error
	var failed int64
	for {
		var id int64
		err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
			err := tx.Row("SELECT manifest_id FROM staged WHERE manifest_id > ? AND manifest_id NOT IN (SELECT a FROM "+sqldb.Each+") ORDER BY manifest_id LIMIT 1", failed, s.pushes.list()).Scan(&id)
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
	if s.pushes.has(id) {
		return nil // it was taken over
	}
	var repo int64
	var name oci.Name
	err := tx.Row("SELECT m.repo_id, r.name FROM staged x CROSS JOIN manifests m ON m.id = x.manifest_id JOIN repositories r ON r.id = m.repo_id WHERE x.manifest_id = ?", id).Scan(&repo, &name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // somebody else has removed it
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

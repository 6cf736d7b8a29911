package meta

import (
	"context"
	"database/sql"
	"fmt"
	"path"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Facts are what a judge needs to know of one thing, read together with the
// version they hold for. Counts tell how many hold it, so that a dry run can
// take away what it has collected in thought.

// ManifestFacts are of a living manifest that is loose or an orphan.
type ManifestFacts struct {
	ID, Version, RepoID int64
	Repo                oci.Name
	Digest              oci.Digest
	Size                int64
	Tags                int64 // that name it
	Parents             int64 // living indexes that name it
	Subjects            int64 // 1 if it refers to a living subject
	TouchedAt           int64
	LooseAt             int64      // 0: something keeps it
	OrphanedAt          int64      // 0: no index or subject of it was deleted
	OrphanOf            oci.Digest // that index or subject
	Lease               LeaseHold
	Review              ReviewRow
}

// TrashFacts are of a manifest in the trash.
type TrashFacts struct {
	ID, Version, RepoID int64
	Repo                oci.Name
	Digest              oci.Digest
	Size                int64
	TrashedAt           int64
	Indexed             bool // a living index names it, or names an index in the trash that does
	Lease               LeaseHold
}

// LinkFacts are of a blob in a repository.
type LinkFacts struct {
	ID, Version, RepoID, BlobID int64
	Repo                        oci.Name
	Digest                      oci.Digest
	Size                        int64
	Living, Trashed             int64 // manifests that need it
	TouchedAt                   int64
	Hidden                      bool // deleted by a client, and logged then
	Lease                       LeaseHold
	Review                      ReviewRow
}

// BlobFacts are of a blob as such.
type BlobFacts struct {
	ID, Version int64
	Digest      oci.Digest
	Size        int64
	Links       int64 // repositories that serve it, or hide it for their trash
	TouchedAt   int64
	Lease       LeaseHold
	Review      ReviewRow
}

// UploadFacts are of an upload session.
type UploadFacts struct {
	ID        string
	Version   int64
	Repo      oci.Name
	Key       string
	Size      int64 // bytes known to be durable; the object may have more
	TouchedAt int64
}

// ReviewRow is the review that brought something up; Version 0 means none.
type ReviewRow struct {
	EventAt int64
	Version int64
}

// Due selects what to look at.
type Due struct {
	Before int64   // events at or before this time, ms
	Run    int64   // only reviews that this run caused; 0 = any
	Scope  Scope   // repositories
	Window int64   // ms for which what a lease has kept stays after its end
	After  Cursor  // position
	IDs    []int64 // instead of the queue: just these
	Limit  int     // of rows read from the queue; none for IDs
}

// Cursor is a position in a queue, by time and id; by id alone in what a run
// has caused itself.
type Cursor struct {
	At int64
	ID int64
}

// Scope is a set of repositories.
type Scope struct {
	all bool
	ids []int64
}

func (s Scope) list() string {
	if s.ids == nil {
		return "[]"
	}
	return sqldb.List(s.ids)
}

// All reports that the scope has no bounds.
func (s Scope) All() bool { return s.all }

// Has reports whether a repository is in the scope.
func (s Scope) Has(repo int64) bool {
	if s.all {
		return true
	}
	for _, id := range s.ids {
		if id == repo {
			return true
		}
	}
	return false
}

// RepoScope resolves a pattern: "" is all repositories; * stands for anything
// but a slash, ** for anything. The error is NotFound where a pattern without
// wildcards names no repository.
func (s *Store) RepoScope(ctx context.Context, pattern string) (scope Scope, err error) {
	if pattern == "" {
		return Scope{all: true}, nil
	}
	wild := strings.IndexAny(pattern, "*?[\\")
	if wild < 0 {
		name, err := oci.ParseName(pattern)
		if err != nil {
			return Scope{}, err
		}
		err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
			id, err := repoID(tx, name)
			scope = Scope{ids: []int64{id}}
			return err
		})
		return scope, err
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return Scope{}, fault.New(fault.Invalid, "invalid repository pattern %q: want names with *, ** or ?", pattern)
	}
	last, end := pattern[:wild], pattern[:wild]+"\U0010ffff"
	for more := true; more; {
		err := s.db.List(ctx, func(tx *sqldb.Tx) error {
			looked := 0
			err := tx.All(func(rows *sql.Rows) error {
				var id int64
				if err := rows.Scan(&id, &last); err != nil {
					return err
				}
				if looked++; matchRepo(pattern, last) {
					scope.ids = append(scope.ids, id)
				}
				return nil
			}, "SELECT id, name FROM repositories WHERE name >= ? AND name < ? ORDER BY name LIMIT ?", last, end, listChunk)
			more = looked == listChunk
			last += "\x00" // what comes after it
			return err
		})
		if err != nil {
			return Scope{}, err
		}
	}
	return scope, nil
}

// matchRepo matches path.Match patterns part by part, with ** for any number of parts.
func matchRepo(pattern, name string) bool {
	return matchParts(strings.Split(pattern, "/"), strings.Split(name, "/"))
}

func matchParts(pattern, name []string) bool {
	for i, p := range pattern {
		if p == "**" {
			for j := i; j <= len(name); j++ {
				if matchParts(pattern[i+1:], name[j:]) {
					return true
				}
			}
			return false
		}
		if i >= len(name) {
			return false
		}
		if ok, err := path.Match(p, name[i]); err != nil || !ok {
			return false
		}
	}
	return len(pattern) == len(name)
}

// queue renders the rows that d selects as a table q (id, event_at, version).
func (d Due) queue(kind string) (string, []any) {
	if d.IDs != nil {
		return "(SELECT a AS id, 0 AS event_at, 0 AS version FROM " + sqldb.Each + ")", []any{sqldb.List(d.IDs)}
	}
	where, order, args := "kind = ? AND event_at <= ? AND (event_at, target) > (?, ?)", "event_at, target", []any{kind, d.Before, d.After.At, d.After.ID}
	if d.Run != 0 {
		where, order, args = "run_id = ? AND kind = ? AND target > ? AND +event_at <= ?", "target", []any{d.Run, kind, d.After.ID, d.Before}
	}
	if !d.Scope.all {
		where, args = where+" AND repo_id IN (SELECT a FROM "+sqldb.Each+")", append(args, d.Scope.list())
	}
	return "(SELECT target AS id, event_at, version FROM reviews WHERE " + where + " ORDER BY " + order + " LIMIT ?)", append(args, d.Limit)
}

const manifestFactsColumns = `m.id, m.version, m.repo_id, r.name, m.digest, m.size,
	(SELECT count(*) FROM tags t WHERE t.manifest_id = m.id),
	(SELECT count(*) FROM manifest_children c JOIN manifests p ON p.id = c.manifest_id
		WHERE c.repo_id = m.repo_id AND c.child_digest = m.digest AND p.trashed_at IS NULL),
	(SELECT count(*) FROM manifests s WHERE s.repo_id = m.repo_id AND s.digest = m.subject AND s.trashed_at IS NULL),
	m.touched_at, coalesce(m.loose_at, 0), coalesce(m.orphaned_at, 0), coalesce(m.orphan_reason, ''), `

func scanManifestFacts(out *[]ManifestFacts) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var f ManifestFacts
		err := rows.Scan(&f.ID, &f.Version, &f.RepoID, &f.Repo, &f.Digest, &f.Size, &f.Tags, &f.Parents, &f.Subjects,
			&f.TouchedAt, &f.LooseAt, &f.OrphanedAt, &f.OrphanOf, &f.Lease, &f.Review.EventAt, &f.Review.Version)
		*out = append(*out, f)
		return err
	}
}

// Orphans reads living manifests whose index or subject was deleted.
func (s *Store) Orphans(ctx context.Context, d Due) (fs []ManifestFacts, err error) {
	source, args := d.queue("manifest")
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(scanManifestFacts(&fs), "SELECT "+manifestFactsColumns+manifestLease+`, q.event_at, q.version
			FROM `+source+` q CROSS JOIN manifests m ON m.id = q.id JOIN repositories r ON r.id = m.repo_id WHERE m.trashed_at IS NULL`,
			append([]any{tx.Now() - d.Window}, args...)...)
	})
	return fs, wrapFacts("manifests", err)
}

// Loose reads living manifests that no tag, index or subject has kept since
// d.Before or longer, orphans apart; the cursor is by that time.
func (s *Store) Loose(ctx context.Context, d Due) (fs []ManifestFacts, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(scanManifestFacts(&fs), "SELECT "+manifestFactsColumns+manifestLease+`, m.loose_at, 0
			FROM manifests m JOIN repositories r ON r.id = m.repo_id
			WHERE m.loose_at <= ? AND m.orphaned_at IS NULL AND (m.loose_at, m.id) > (?, ?) AND (? OR m.repo_id IN (SELECT a FROM `+sqldb.Each+`))
			ORDER BY m.loose_at, m.id LIMIT ?`, tx.Now()-d.Window, d.Before, d.After.At, d.After.ID, d.Scope.all, d.Scope.list(), d.Limit)
	})
	return fs, wrapFacts("untagged manifests", err)
}

// Trashed reads manifests that have been in the trash since d.Before or longer.
func (s *Store) Trashed(ctx context.Context, d Due) (fs []TrashFacts, err error) {
	where, args := "q.trashed_at <= ? AND (q.trashed_at, q.manifest_id) > (?, ?) AND (? OR m.repo_id IN (SELECT a FROM "+sqldb.Each+"))",
		[]any{d.Before, d.After.At, d.After.ID, d.Scope.all, d.Scope.list()}
	limit := d.Limit
	if d.IDs != nil {
		where, args, limit = "q.manifest_id IN (SELECT a FROM "+sqldb.Each+")", []any{sqldb.List(d.IDs)}, -1
	}
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var f TrashFacts
			err := rows.Scan(&f.ID, &f.Version, &f.RepoID, &f.Repo, &f.Digest, &f.Size, &f.TrashedAt, &f.Indexed, &f.Lease)
			fs = append(fs, f)
			return err
		}, `SELECT m.id, m.version, m.repo_id, r.name, m.digest, m.size, q.trashed_at, `+indexed+`, `+manifestLease+`
			FROM trash q CROSS JOIN manifests m ON m.id = q.manifest_id JOIN repositories r ON r.id = m.repo_id
			WHERE `+where+` ORDER BY q.trashed_at, q.manifest_id LIMIT ?`, append(append([]any{tx.Now() - d.Window}, args...), limit)...)
	})
	return fs, wrapFacts("the trash", err)
}

// Links reads blobs in repositories that an event has put at risk.
func (s *Store) Links(ctx context.Context, d Due) (fs []LinkFacts, err error) {
	source, args := d.queue("link")
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var f LinkFacts
			err := rows.Scan(&f.ID, &f.Version, &f.RepoID, &f.BlobID, &f.Repo, &f.Digest, &f.Size, &f.Living, &f.Trashed, &f.TouchedAt, &f.Hidden,
				&f.Lease, &f.Review.EventAt, &f.Review.Version)
			fs = append(fs, f)
			return err
		}, `SELECT l.id, l.version, l.repo_id, l.blob_id, r.name, b.digest, b.size,
				(SELECT count(*) FROM manifest_blobs e WHERE e.link_id = l.id AND e.living = 1),
				(SELECT count(*) FROM manifest_blobs e WHERE e.link_id = l.id AND e.living = 0),
				l.touched_at, l.hidden, `+blobLease+`, q.event_at, q.version
			FROM `+source+` q CROSS JOIN links l ON l.id = q.id JOIN blobs b ON b.id = l.blob_id JOIN repositories r ON r.id = l.repo_id`,
			append([]any{tx.Now() - d.Window}, args...)...)
	})
	return fs, wrapFacts("links", err)
}

// Blobs reads blobs that have lost their last link.
func (s *Store) Blobs(ctx context.Context, d Due) (fs []BlobFacts, err error) {
	source, args := d.queue("blob")
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var f BlobFacts
			err := rows.Scan(&f.ID, &f.Version, &f.Digest, &f.Size, &f.Links, &f.TouchedAt, &f.Lease, &f.Review.EventAt, &f.Review.Version)
			fs = append(fs, f)
			return err
		}, `SELECT b.id, b.version, b.digest, b.size, (SELECT count(*) FROM links l WHERE l.blob_id = b.id), b.touched_at, `+blobLease+`, q.event_at, q.version
			FROM `+source+` q CROSS JOIN blobs b ON b.id = q.id`, append([]any{tx.Now() - d.Window}, args...)...)
	})
	return fs, wrapFacts("blobs", err)
}

// IdleUploads reads upload sessions that have been idle since before, longest
// first, after the given one.
func (s *Store) IdleUploads(ctx context.Context, before int64, scope Scope, after UploadFacts, limit int) (fs []UploadFacts, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var f UploadFacts
			err := rows.Scan(&f.ID, &f.Version, &f.Repo, &f.Key, &f.Size, &f.TouchedAt)
			fs = append(fs, f)
			return err
		}, `SELECT u.id, u.version, r.name, u.key, u.size, u.touched_at FROM uploads u JOIN repositories r ON r.id = u.repo_id
			WHERE u.touched_at <= ? AND (u.touched_at, u.id) > (?, ?) AND (? OR u.repo_id IN (SELECT a FROM `+sqldb.Each+`)) ORDER BY u.touched_at, u.id LIMIT ?`,
			before, after.TouchedAt, after.ID, scope.all, scope.list(), limit)
	})
	return fs, wrapFacts("uploads", err)
}

// Below reads what depends on a manifest: the links it needs, the children that
// it keeps, living or in the trash, and the living referrers. A dry run follows
// it where a run would write.
func (s *Store) Below(ctx context.Context, repoID, id int64, d oci.Digest) (links, children, referrers []int64, err error) {
	err = s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		if err := tx.All(scanInto(&links), "SELECT link_id FROM manifest_blobs WHERE manifest_id = ?", id); err != nil {
			return err
		}
		if err := tx.All(scanInto(&children), `SELECT k.id FROM manifest_children c CROSS JOIN manifests k ON k.repo_id = c.repo_id AND k.digest = c.child_digest
			WHERE c.manifest_id = ?`, id); err != nil {
			return err
		}
		referrers, err = referrersOf(tx, repoID, d)
		return err
	})
	return links, children, referrers, wrapFacts("what is below a manifest", err)
}

// TrashedBelow lists what is in the trash below a manifest, whose time there
// begins anew when that one goes to the trash too.
func (s *Store) TrashedBelow(ctx context.Context, id int64) (below []int64, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		below = nil
		return tx.All(scanInto(&below), `WITH RECURSIVE down (id) AS (
				SELECT ?1
				UNION SELECT k.id FROM down CROSS JOIN manifest_children c ON c.manifest_id = down.id
					CROSS JOIN manifests k ON k.repo_id = c.repo_id AND k.digest = c.child_digest WHERE k.trashed_at IS NOT NULL
				UNION SELECT k.id FROM down CROSS JOIN manifests a ON a.id = down.id
					CROSS JOIN manifests k INDEXED BY manifests_subject ON k.repo_id = a.repo_id AND k.subject = a.digest WHERE k.trashed_at IS NOT NULL)
			SELECT id FROM down WHERE id <> ?1`, id)
	})
	return below, wrapFacts("the trash below a manifest", err)
}

// NeededByMore reports whether more than n manifests need a link.
func (s *Store) NeededByMore(ctx context.Context, link, n int64) (more bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM manifest_blobs WHERE link_id = ? LIMIT 1 OFFSET ?)", link, n).Scan(&more)
	})
	return more, wrapFacts("a link's manifests", err)
}

// Above lists what may want a manifest back: the living indexes that name it,
// and those in the trash with its subject, if that is there.
func (s *Store) Above(ctx context.Context, id int64) (living, trashed []int64, err error) {
	const query = `SELECT p.id FROM manifests k CROSS JOIN manifest_children c ON c.repo_id = k.repo_id AND c.child_digest = k.digest
		CROSS JOIN manifests p ON p.id = c.manifest_id WHERE k.id = ? AND (p.trashed_at IS NULL) = ?`
	err = s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		if err := tx.All(scanInto(&living), query, id, true); err != nil {
			return err
		}
		if err := tx.All(scanInto(&trashed), query, id, false); err != nil {
			return err
		}
		return tx.All(scanInto(&trashed), "SELECT s.id FROM manifests k CROSS JOIN manifests s ON s.repo_id = k.repo_id AND s.digest = k.subject WHERE k.id = ? AND s.trashed_at IS NOT NULL", id)
	})
	return living, trashed, wrapFacts("what is above a manifest", err)
}

func wrapFacts(of string, err error) error {
	if err != nil {
		return fmt.Errorf("read facts of %s: %w", of, err)
	}
	return nil
}

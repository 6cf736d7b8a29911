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

// CheckRow is a check as the database keeps it. The texts are the checker's.
type CheckRow struct {
	ID         int64
	State      string
	Options    string
	Phase      string
	Cursor     string
	Report     string
	StartedAt  int64
	UpdatedAt  int64
	FinishedAt int64 // 0: not over
}

// checksKept is how many checks the history holds.
const checksKept = 1000

// CreateCheck records a new check and returns it with its id and times.
func (s *Store) CreateCheck(ctx context.Context, c CheckRow) (CheckRow, error) {
	err := s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		c.StartedAt, c.UpdatedAt = tx.Now(), tx.Now()
		err := tx.Row(`INSERT INTO checks (state, options, phase, cursor, report, started_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id`,
			c.State, c.Options, c.Phase, c.Cursor, c.Report, c.StartedAt, c.UpdatedAt).Scan(&c.ID)
		if err != nil {
			return err
		}
		_, err = tx.Exec("DELETE FROM checks WHERE id <= ?", c.ID-checksKept)
		return err
	})
	if err != nil {
		return CheckRow{}, fmt.Errorf("create check: %w", err)
	}
	return c, nil
}

// Checks lists checks, newest first, with an id below before (0 = all), n at
// most (n < 0: no limit).
func (s *Store) Checks(ctx context.Context, before int64, n int) (cs []CheckRow, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		cs = nil
		return tx.All(func(rows *sql.Rows) error {
			var c CheckRow
			err := rows.Scan(&c.ID, &c.State, &c.Options, &c.Phase, &c.Cursor, &c.Report, &c.StartedAt, &c.UpdatedAt, &c.FinishedAt)
			cs = append(cs, c)
			return err
		}, `SELECT id, state, options, phase, cursor, report, started_at, updated_at, coalesce(finished_at, 0)
			FROM checks WHERE id < ? ORDER BY id DESC LIMIT ?`, orLast(before), n)
	})
	if err != nil {
		return nil, fmt.Errorf("list checks: %w", err)
	}
	return cs, nil
}

// Check returns a check. The error is NotFound where there is none of that id.
func (s *Store) Check(ctx context.Context, id int64) (CheckRow, error) {
	cs, err := s.Checks(ctx, id+1, 1)
	if err != nil {
		return CheckRow{}, err
	}
	if len(cs) == 0 || cs[0].ID != id {
		return CheckRow{}, fault.New(fault.NotFound, "there is no check %d", id)
	}
	return cs[0], nil
}

// CheckActs is what a check repairs in one transaction.
type CheckActs struct {
	Actor   string
	Orphans []Orphan
	Lost    []CheckBlob // bytes are missing, cut or corrupt
	Found   []CheckBlob // marked lost, and the bytes are whole
	Missed  []Unreviewed
}

// Orphan is an object that no row seems to name.
type Orphan struct {
	Key  string
	Size int64 // bytes
}

// CheckDone is what became of CheckActs: what turned out to be different by
// the time of the transaction is not in it and was left alone (R4).
type CheckDone struct {
	Queued   map[string]bool // orphans, by key
	Lost     map[int64]bool  // blobs, by id
	Found    map[int64]bool
	Reviewed int64
}

// SaveCheck carries out acts and saves the check's state in one transaction,
// so that a crash repeats nothing and counts nothing twice. save makes the row
// of what was done; it may be called more than once.
func (s *Store) SaveCheck(ctx context.Context, acts CheckActs, save func(CheckDone) (CheckRow, error)) error {
	err := s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		done := CheckDone{Queued: map[string]bool{}, Lost: map[int64]bool{}, Found: map[int64]bool{}}
		if err := queueOrphans(tx, acts, done.Queued); err != nil {
			return err
		}
		if err := s.markLost(tx, acts, done.Lost); err != nil {
			return err
		}
		if err := s.markFound(tx, acts, done.Found); err != nil {
			return err
		}
		for _, u := range acts.Missed {
			if err := s.review(tx, u); err != nil {
				return err
			}
			done.Reviewed += int64(len(u.IDs))
		}
		c, err := save(done)
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE checks SET state = ?, phase = ?, cursor = ?, report = ?, updated_at = ?, finished_at = nullif(?, 0) WHERE id = ?",
			c.State, c.Phase, c.Cursor, c.Report, c.UpdatedAt, c.FinishedAt, c.ID)
		return err
	})
	if err != nil {
		return fmt.Errorf("save check: %w", err)
	}
	return nil
}

// unnamed says that no row names key k.a: neither an upload nor a blob nor a purge.
const unnamed = `NOT EXISTS (SELECT 1 FROM uploads u WHERE u.key = k.a) AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.key = k.a)
	AND NOT EXISTS (SELECT 1 FROM purges p WHERE p.key = k.a)`

// Unnamed returns those of keys that no row names.
func (s *Store) Unnamed(ctx context.Context, keys []string) (orphans []string, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		orphans = nil
		return tx.All(scanInto(&orphans), "SELECT k.a FROM "+sqldb.Each+" k WHERE "+unnamed, sqldb.List(keys))
	})
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	return orphans, nil
}

// queueOrphans asks once more, in the statement that hands the keys to the
// purge queue, whether a row names them.
func queueOrphans(tx *sqldb.Tx, acts CheckActs, queued map[string]bool) error {
	if len(acts.Orphans) == 0 {
		return nil
	}
	rows := make([][2]any, len(acts.Orphans))
	for i, o := range acts.Orphans {
		rows[i] = [2]any{o.Key, o.Size}
	}
	var log []Deletion
	err := tx.All(func(rows *sql.Rows) error {
		d := Deletion{Kind: "object", Act: "removed", Reason: "orphan: no row names it"}
		if err := rows.Scan(&d.Digest, &d.Bytes); err != nil {
			return err
		}
		queued[d.Digest] = true
		log = append(log, d)
		return nil
	}, `INSERT INTO purges (key, digest, size, reason, actor, queued_at, due_at)
		SELECT k.a, '', k.b, 'orphan', ?, ?, ? FROM `+sqldb.Each2+` k WHERE `+unnamed+`
		RETURNING key, size`, acts.Actor, tx.Now(), tx.Now(), sqldb.List(rows))
	if err != nil {
		return fmt.Errorf("queue orphans: %w", err)
	}
	return logDeletions(tx, 0, acts.Actor, log)
}

// CheckBlob is a blob row as a check looks at it.
type CheckBlob struct {
	ID     int64
	Digest oci.Digest
	Size   int64 // bytes
	Key    string
	Lost   bool // marked lost: not served
}

// CheckBlobs reads n blobs in order of id after the given one.
func (s *Store) CheckBlobs(ctx context.Context, after int64, n int) (bs []CheckBlob, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		bs = nil
		return tx.All(func(rows *sql.Rows) error {
			var b CheckBlob
			err := rows.Scan(&b.ID, &b.Digest, &b.Size, &b.Key, &b.Lost)
			bs = append(bs, b)
			return err
		}, "SELECT id, digest, size, key, lost_at IS NOT NULL FROM blobs WHERE id > ? ORDER BY id LIMIT ?", after, n)
	})
	if err != nil {
		return nil, fmt.Errorf("read blobs: %w", err)
	}
	return bs, nil
}

// Named reports whether the blob's row still names the key it named. Bytes go
// only after their row, so what was missing before this says yes is lost.
func (s *Store) Named(ctx context.Context, b CheckBlob) (named bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM blobs WHERE id = ? AND key = ?)", b.ID, b.Key).Scan(&named)
	})
	if err != nil {
		return false, fmt.Errorf("look at blob %s again: %w", b.Digest, err)
	}
	return named, nil
}

// markLost has blobs answer 404, so that clients bring their bytes again.
func (s *Store) markLost(tx *sqldb.Tx, acts CheckActs, marked map[int64]bool) error {
	return s.mark(tx, acts, acts.Lost, marked, tx.Now(),
		Deletion{Kind: "blob", Act: "lost", Reason: "its bytes are missing, cut or corrupt; served again when they are back or pushed anew"})
}

// markFound has blobs served again.
func (s *Store) markFound(tx *sqldb.Tx, acts CheckActs, marked map[int64]bool) error {
	return s.mark(tx, acts, acts.Found, marked, nil,
		Deletion{Kind: "blob", Act: "restored", Reason: "its bytes are there and match its digest"})
}

func (s *Store) mark(tx *sqldb.Tx, acts CheckActs, blobs []CheckBlob, marked map[int64]bool, lostAt any, record Deletion) error {
	for _, b := range blobs {
		n, err := tx.Exec("UPDATE blobs SET lost_at = ?1, version = version + 1 WHERE id = ?2 AND key = ?3 AND (lost_at IS NULL) = (?1 IS NOT NULL)",
			lostAt, b.ID, b.Key)
		if err != nil {
			return fmt.Errorf("mark blob %s: %w", b.Digest, err)
		}
		if n == 0 {
			continue
		}
		marked[b.ID] = true
		if err := s.dropBlobEverywhere(tx, b.ID, b.Digest); err != nil {
			return err
		}
		record.Digest, record.Bytes = string(b.Digest), b.Size
		if err := logDeletions(tx, 0, acts.Actor, []Deletion{record}); err != nil {
			return err
		}
	}
	return nil
}

// Affected is a manifest that cannot be pulled whole because a blob is lost,
// or a repository (Digest "") that serves the blob without a manifest.
type Affected struct {
	Repo   oci.Name   `json:"repository"`
	Digest oci.Digest `json:"digest,omitempty"`
	Tags   []string   `json:"tags"`
	Trash  bool       `json:"trash,omitempty"` // the manifest is in the trash
}

// affectedTags is how many tags of an affected manifest are named.
const affectedTags = 100

// AffectedBy names the manifests that need a blob, directly or through an
// index, and the repositories that have it without a manifest: n of them at
// most, and how many there are, up to CountMax.
func (s *Store) AffectedBy(ctx context.Context, blobID int64, n int) (as []Affected, total int64, err error) {
	err = s.db.List(ctx, func(tx *sqldb.Tx) error {
		as, total = []Affected{}, 0
		var ids []int64
		err := tx.All(func(rows *sql.Rows) error {
			if total++; len(as) == n {
				return nil
			}
			a := Affected{Tags: []string{}}
			var id int64
			err := rows.Scan(&id, &a.Repo, &a.Digest, &a.Trash)
			as, ids = append(as, a), append(ids, id)
			return err
		}, `WITH RECURSIVE place (id) AS (SELECT id FROM links WHERE blob_id = ?1 LIMIT ?2),
			above (id) AS (
				SELECT e.manifest_id FROM place CROSS JOIN manifest_blobs e INDEXED BY manifest_blobs_link ON e.link_id = place.id
				UNION
				SELECT c.manifest_id FROM above CROSS JOIN manifests m ON m.id = above.id
					CROSS JOIN manifest_children c ON c.repo_id = m.repo_id AND c.child_digest = m.digest
				LIMIT ?2)
			SELECT m.id, r.name AS repo, m.digest AS digest, m.trashed_at IS NOT NULL FROM above CROSS JOIN manifests m ON m.id = above.id JOIN repositories r ON r.id = m.repo_id
				WHERE NOT EXISTS (SELECT 1 FROM staged x WHERE x.manifest_id = m.id)
			UNION ALL
			SELECT 0, r.name, '', 0 FROM place CROSS JOIN links l ON l.id = place.id JOIN repositories r ON r.id = l.repo_id
				WHERE l.hidden = 0 AND NOT EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.link_id = l.id AND NOT EXISTS (SELECT 1 FROM staged x WHERE x.manifest_id = e.manifest_id))
			ORDER BY repo, digest LIMIT ?2`, blobID, CountMax)
		if err != nil {
			return err
		}
		for i, id := range ids {
			if err := tx.All(scanInto(&as[i].Tags), "SELECT name FROM tags WHERE manifest_id = ? ORDER BY repo_id, name LIMIT ?", id, affectedTags); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list what needs blob %d: %w", blobID, err)
	}
	return as, total, nil
}

// Unreviewed are things that should be in the review queue and are not, or
// manifests whose keepers are not recorded as they are: an event was missed.
type Unreviewed struct {
	Kind string // link, blob, manifest
	IDs  []int64
	Next int64 // the last id looked at; 0: there are no more
}

// unreviewed is a query for the n rows after an id and whether they miss a review.
func unreviewed(kind string) string {
	switch kind {
	case "link":
		return `SELECT l.id, NOT ` + anyEdge + ` AND NOT EXISTS (SELECT 1 FROM reviews v WHERE v.kind = 'link' AND v.target = l.id)
			FROM links l WHERE l.id > ? ORDER BY l.id LIMIT ?`
	case "blob":
		return `SELECT b.id, NOT EXISTS (SELECT 1 FROM links l WHERE l.blob_id = b.id) AND NOT EXISTS (SELECT 1 FROM reviews v WHERE v.kind = 'blob' AND v.target = b.id)
			FROM blobs b WHERE b.id > ? ORDER BY b.id LIMIT ?`
	}
	return `SELECT m.id, m.trashed_at IS NULL AND ((m.loose_at IS NULL) <> ` + held + `
			OR m.orphaned_at IS NOT NULL AND m.loose_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM reviews v WHERE v.kind = 'manifest' AND v.target = m.id))
		FROM manifests m WHERE m.id > ? ORDER BY m.id LIMIT ?`
}

// Unreviewed looks at n things of a kind in order of id after the given one.
func (s *Store) Unreviewed(ctx context.Context, kind string, after int64, n int) (u Unreviewed, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		u = Unreviewed{Kind: kind}
		return tx.All(func(rows *sql.Rows) error {
			var missed bool
			if err := rows.Scan(&u.Next, &missed); err != nil {
				return err
			}
			if missed {
				u.IDs = append(u.IDs, u.Next)
			}
			return nil
		}, unreviewed(kind), after, n)
	})
	if err != nil {
		return Unreviewed{}, fmt.Errorf("look for missed reviews: %w", err)
	}
	return u, nil
}

// review puts up for review what an event should have. Whoever judges it looks
// at it afresh, so one too many does no harm.
func (s *Store) review(tx *sqldb.Tx, u Unreviewed) error {
	const event = "found by a check"
	switch u.Kind {
	case "link":
		_, err := reviewLinks(tx, u.IDs, event, 0)
		return err
	case "blob":
		_, err := tx.Exec(`INSERT INTO reviews (kind, target, repo_id, event_at, event)
			SELECT 'blob', b.id, 0, b.touched_at, ? FROM `+sqldb.Each+` i CROSS JOIN blobs b ON b.id = i.a
			WHERE NOT EXISTS (SELECT 1 FROM links l WHERE l.blob_id = b.id)
			ON CONFLICT (kind, target) DO NOTHING`, event, sqldb.List(u.IDs))
		return err
	}
	for _, id := range u.IDs {
		var repo oci.Name
		err := tx.Row("SELECT r.name FROM manifests m JOIN repositories r ON r.id = m.repo_id WHERE m.id = ?", id).Scan(&repo)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.settle(tx, repo, []int64{id}); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`INSERT INTO reviews (kind, target, repo_id, event_at, event)
		SELECT 'manifest', m.id, m.repo_id, m.orphaned_at, ? FROM `+sqldb.Each+` i CROSS JOIN manifests m ON m.id = i.a
		WHERE m.orphaned_at IS NOT NULL AND m.loose_at IS NOT NULL AND m.trashed_at IS NULL
		ON CONFLICT (kind, target) DO NOTHING`, event, sqldb.List(u.IDs))
	return err
}

// CheckManifest is a manifest as a check reads it.
type CheckManifest struct {
	ID      int64
	Repo    oci.Name
	Digest  oci.Digest
	Content []byte
}

// CheckManifests reads n manifests in order of id after the given one.
func (s *Store) CheckManifests(ctx context.Context, after int64, n int) (ms []CheckManifest, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		ms = nil
		return tx.All(func(rows *sql.Rows) error {
			var m CheckManifest
			err := rows.Scan(&m.ID, &m.Repo, &m.Digest, &m.Content)
			ms = append(ms, m)
			return err
		}, "SELECT m.id, r.name, m.digest, m.content FROM manifests m JOIN repositories r ON r.id = m.repo_id WHERE m.id > ? ORDER BY m.id LIMIT ?", after, n)
	})
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	return ms, nil
}

// CheckExtent is what a check needs to know beforehand.
type CheckExtent struct {
	CreatedAt   int64 // of the database, ms
	Bytes       int64 // of the database
	MaxBlob     int64 // the highest id
	MaxManifest int64
}

// CheckExtent reads it.
func (s *Store) CheckExtent(ctx context.Context) (e CheckExtent, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row(`SELECT coalesce((SELECT CAST(strftime('%s', min(tstamp)) AS INTEGER) * 1000 FROM goose_db_version), 0),
			(SELECT page_count * page_size FROM pragma_page_count, pragma_page_size),
			coalesce((SELECT max(id) FROM blobs), 0), coalesce((SELECT max(id) FROM manifests), 0)`).
			Scan(&e.CreatedAt, &e.Bytes, &e.MaxBlob, &e.MaxManifest)
	})
	if err != nil {
		return CheckExtent{}, fmt.Errorf("measure the database: %w", err)
	}
	return e, nil
}

// DatabaseChecks are the parts of CheckDatabase, in order. All but the last
// look at one table each.
func DatabaseChecks() []string {
	return []string{"links", "manifests", "manifest_blobs", "manifest_children", "tags", "trash", "uploads", "run_events", "structure"}
}

// CheckDatabase runs one of DatabaseChecks and returns what is wrong, n
// findings at most. It reads only, and holds up no writer.
func (s *Store) CheckDatabase(ctx context.Context, part string, n int) (problems []string, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		problems = nil
		if part == "structure" {
			err := tx.All(scanInto(&problems), fmt.Sprintf("PRAGMA quick_check(%d)", n))
			if len(problems) == 1 && problems[0] == "ok" {
				problems = nil
			}
			return err
		}
		return tx.All(func(rows *sql.Rows) error {
			var table, parent string
			var row, key sql.NullInt64
			if err := rows.Scan(&table, &row, &parent, &key); err != nil {
				return err
			}
			if len(problems) < n {
				problems = append(problems, fmt.Sprintf("a row of %s (rowid %d) names a row of %s that is not there", table, row.Int64, parent))
			}
			return nil
		}, "PRAGMA foreign_key_check("+part+")")
	})
	if err != nil {
		return nil, fmt.Errorf("check %s of the database: %w", part, err)
	}
	return problems, nil
}

package meta

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// purge is a storage key that no row names any more.
type purge struct {
	Key, Digest   string
	Size          int64
	Reason, Actor string
	Run           int64
}

func enqueuePurge(tx *sqldb.Tx, p purge) error {
	_, err := tx.Exec(`INSERT INTO purges (key, digest, size, reason, actor, run_id, queued_at, due_at) VALUES (?, ?, ?, ?, ?, nullif(?, 0), ?, ?)`,
		p.Key, p.Digest, p.Size, p.Reason, p.Actor, p.Run, tx.Now(), tx.Now())
	if err != nil {
		return fmt.Errorf("queue purge of %s: %w", p.Key, err)
	}
	return nil
}

// Sync returns when the purge queue is on disk, and with it that no row names
// the keys in it. Until then their bytes must stay (R6, R7).
func (s *Store) Sync(ctx context.Context) error {
	if err := s.db.Sync(ctx); err != nil {
		return fmt.Errorf("have the purge queue on disk: %w", err)
	}
	return nil
}

// PendingPurge is an object whose bytes wait to be deleted.
type PendingPurge struct {
	Key      string
	Size     int64 // as the database knows it; the store tells what it freed
	DueAt    int64
	Attempts int64
}

// DuePurges reads the purge queue in order of due time after the cursor key;
// run 0 reads purges of any origin. A key that a blob or an upload names is
// never returned, whatever the queue says (R6).
func (s *Store) DuePurges(ctx context.Context, run int64, afterDue int64, afterKey string, limit int) (ps []PendingPurge, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		ps = nil
		return tx.All(func(rows *sql.Rows) error {
			var p PendingPurge
			err := rows.Scan(&p.Key, &p.Size, &p.DueAt, &p.Attempts)
			ps = append(ps, p)
			return err
		}, `SELECT p.key, p.size, p.due_at, p.attempts FROM purges p WHERE p.due_at <= ?1 AND (p.due_at, p.key) > (?2, ?3) AND (?4 = 0 OR p.run_id = ?4)
			AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.key = p.key) AND NOT EXISTS (SELECT 1 FROM uploads u WHERE u.key = p.key)
			ORDER BY p.due_at, p.key LIMIT ?5`, tx.Now(), afterDue, afterKey, run, limit)
	})
	if err != nil {
		return nil, fmt.Errorf("read the purge queue: %w", err)
	}
	return ps, nil
}

// Purged is the outcome of one object's delete.
type Purged struct {
	Key     string
	Freed   int64  // bytes that the store gave back
	Problem string // in words for an administrator; "": it is gone
}

// FinishPurges records outcomes. What is gone leaves the queue, and its bytes
// are counted once however many runs deleted it; what failed is tried again
// after a backoff that doubles up to an hour (R9).
func (s *Store) FinishPurges(ctx context.Context, run int64, outcomes []Purged) (Counts, error) {
	var done Counts
	err := s.db.MaintainNote(ctx, func(tx *sqldb.Tx) error {
		done = Counts{}
		freed := map[string]int64{}
		var gone []string
		for _, o := range outcomes {
			if o.Problem == "" {
				freed[o.Key] = o.Freed
				gone = append(gone, o.Key)
				continue
			}
			done.Failed++
			if _, err := tx.Exec(`UPDATE purges SET attempts = attempts + 1, last_error = ?, due_at = ? + min(3600000, 1000 * (1 << min(attempts, 12)))
				WHERE key = ?`, o.Problem, tx.Now(), o.Key); err != nil {
				return err
			}
			if err := addEvent(tx, run, "error", fmt.Sprintf("object %s could not be deleted: %s", o.Key, o.Problem)); err != nil {
				return err
			}
		}
		if len(gone) > 0 {
			err := tx.All(func(rows *sql.Rows) error {
				var key string
				if err := rows.Scan(&key); err != nil {
					return err
				}
				done.Purged++
				done.FreedBytes += freed[key]
				return nil
			}, "DELETE FROM purges WHERE key IN (SELECT a FROM "+sqldb.Each+") RETURNING key", sqldb.List(gone))
			if err != nil {
				return err
			}
		}
		return addCounts(tx, run, done)
	})
	if err != nil {
		return Counts{}, fmt.Errorf("record purges: %w", err)
	}
	return done, nil
}

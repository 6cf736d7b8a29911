package meta

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// logDeletions appends to the deletion log, in the transaction of the act.
func logDeletions(tx *sqldb.Tx, run int64, actor string, ds []Deletion) error {
	if len(ds) == 0 {
		return nil
	}
	rows := make([][6]any, len(ds))
	for i, d := range ds {
		rows[i] = [6]any{d.Kind, d.Act, d.Repo, d.Digest, d.Bytes, d.Reason}
	}
	_, err := tx.Exec(`INSERT INTO deletions (at, actor, run_id, kind, act, repo, digest, bytes, reason)
		SELECT ?, ?, nullif(?, 0), json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
			json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]') FROM json_each(?)`,
		tx.Now(), actor, run, sqldb.List(rows))
	if err != nil {
		return fmt.Errorf("log deletions: %w", err)
	}
	return nil
}

// orLast is the id below which a page of a history begins; 0 is the end.
func orLast(before int64) int64 {
	if before == 0 {
		return math.MaxInt64
	}
	return before
}

// Deletions lists the deletion log, newest first: n records with an id below
// before (0 = from the end), of one digest or one run where these are given.
func (s *Store) Deletions(ctx context.Context, digest string, run int64, before int64, n int) ([]Deletion, error) {
	var ds []Deletion
	where, args := "id < ?", []any{orLast(before)}
	if digest != "" {
		where, args = where+" AND digest = ?", append(args, digest)
	}
	if run != 0 {
		where, args = where+" AND run_id = ?", append(args, run)
	}
	err := s.db.List(ctx, func(tx *sqldb.Tx) error {
		ds = []Deletion{}
		return tx.All(func(rows *sql.Rows) error {
			var d Deletion
			var at int64
			var run sql.NullInt64
			if err := rows.Scan(&d.ID, &at, &d.Kind, &d.Act, &d.Repo, &d.Digest, &d.Bytes, &d.Reason, &d.Actor, &run); err != nil {
				return err
			}
			d.At, d.RunID = Time(at), run.Int64
			ds = append(ds, d)
			return nil
		}, "SELECT id, at, kind, act, repo, digest, bytes, reason, actor, run_id FROM deletions WHERE "+where+" ORDER BY id DESC LIMIT ?", append(args, n)...)
	})
	if err != nil {
		return nil, fmt.Errorf("list deletions: %w", err)
	}
	return ds, nil
}

package meta

import (
	"context"
	"fmt"
	"math"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Identity is the mark that a database shares with its storage (invariant R15).
// The database has it from its first migration on.
type Identity struct {
	ID     string
	Paired bool // the storage has been marked with it, once and for all
}

// Identity reads it.
func (s *Store) Identity(ctx context.Context) (i Identity, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT id, paired_at IS NOT NULL FROM identity").Scan(&i.ID, &i.Paired)
	})
	if err != nil {
		return Identity{}, fmt.Errorf("read the database's identity: %w", err)
	}
	return i, nil
}

// MarkPaired records that the storage has the database's mark. From then on a
// storage without it is not the right one. It works on a full disk.
func (s *Store) MarkPaired(ctx context.Context) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE identity SET paired_at = coalesce(paired_at, ?)", tx.Now())
		return err
	})
	if err != nil {
		return fmt.Errorf("record the storage's identity: %w", told(err))
	}
	return nil
}

// SomeBlobs returns the keys of those of the n oldest and the n newest blobs
// that should have their bytes.
func (s *Store) SomeBlobs(ctx context.Context, n int) (keys []string, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		keys = nil
		if err := tx.All(scanInto(&keys), "SELECT key FROM (SELECT key, lost_at FROM blobs WHERE id < ? ORDER BY id DESC LIMIT ?) WHERE lost_at IS NULL", int64(math.MaxInt64), n); err != nil {
			return err
		}
		return tx.All(scanInto(&keys), "SELECT key FROM (SELECT key, lost_at FROM blobs WHERE id > 0 ORDER BY id LIMIT ?) WHERE lost_at IS NULL", n)
	})
	if err != nil {
		return nil, fmt.Errorf("read some blobs: %w", err)
	}
	return keys, nil
}

package index

import (
	"context"
	"fmt"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Pair is what an index and the directory of the pieces that it describes both
// know (R15).
type Pair struct {
	Identity string // of the cache, for good; "": it has none yet
	Run      string // of the last process that had both; another one says that either is a copy of an earlier time
	Next     string // about to take the place of Run, or ""
}

// Pair returns what the index says.
func (x *Index) Pair(ctx context.Context) (p Pair, err error) {
	err = x.read(ctx, "read whose index it is", func(tx *sqldb.Tx) error {
		return tx.Row("SELECT identity, run, next FROM pair").Scan(&p.Identity, &p.Run, &p.Next)
	})
	return p, err
}

// SetPair writes it, and waits for the disk.
func (x *Index) SetPair(ctx context.Context, p Pair) error {
	err := x.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE pair SET identity = ?, run = ?, next = ?", p.Identity, p.Run, p.Next)
		return err
	})
	if err != nil {
		return fmt.Errorf("note whose index it is: %w", told(err))
	}
	return nil
}

// Distrust begins the index anew, but for its pins: it describes another time than
// that of the pieces beside it.
func (x *Index) Distrust(ctx context.Context) error {
	if err := x.beginAnew(); err != nil {
		return err
	}
	return x.relieve(ctx, "begin the cache's index anew", func(tx *sqldb.Tx) error {
		for _, table := range []string{"blobs", "edges", "chains", "names", "grants", "origins"} {
			if _, err := tx.Exec("DELETE FROM " + table); err != nil {
				return err
			}
		}
		return nil
	})
}

// TakeBack has the files without rows taken back, rather than removed, when the cache
// is opened next.
func (x *Index) TakeBack() error { return x.beginAnew() }

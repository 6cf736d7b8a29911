package index

import (
	"context"
	"fmt"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Pair is what an index and its directory of pieces both record, so that each
// recognizes the other (R15).
type Pair struct {
	Identity string // of the cache, for good; "": it has none yet
	Run      string // of the last process that had both; where the two differ, one is an older copy
	Next     string // replaces Run once the directory has it; "" if none
}

// Pair returns what the index says.
func (x *Index) Pair(ctx context.Context) (p Pair, err error) {
	err = x.read(ctx, "read the identity of the cache's index", func(tx *sqldb.Tx) error {
		return tx.Row("SELECT identity, run, next FROM pair").Scan(&p.Identity, &p.Run, &p.Next)
	})
	return p, err
}

// SetPair records p and waits for the disk.
func (x *Index) SetPair(ctx context.Context, p Pair) error {
	err := x.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE pair SET identity = ?, run = ?, next = ?", p.Identity, p.Run, p.Next)
		return err
	})
	if err != nil {
		return fmt.Errorf("record the identity of the cache's index: %w", told(err))
	}
	return nil
}

// Distrust deletes all rows but the pins, to be rebuilt from the files: the index is
// older or newer than the pieces beside it.
func (x *Index) Distrust(ctx context.Context) error {
	if err := x.beginAnew(); err != nil {
		return err
	}
	return x.relieve(ctx, "discard the rows of the cache's index", func(tx *sqldb.Tx) error {
		for _, table := range []string{"blobs", "edges", "chains", "names", "grants", "origins"} {
			if _, err := tx.Exec("DELETE FROM " + table); err != nil {
				return err
			}
		}
		return nil
	})
}

// TakeBack makes the next opening of the cache index the files without rows instead of
// removing them.
func (x *Index) TakeBack() error { return x.beginAnew() }

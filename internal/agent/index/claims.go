package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// pinOf finds a pin that needs a blob. It walks from the blob towards the pins,
// while Tree, by which the judge decides, walks from the pins to the blobs:
// upwards to everything that needs the blob; from those manifests to the configs
// and chains by which they may be pinned; and, if it is an index, down to the
// manifests that came through it. CROSS JOIN keeps SQLite from reading all edges.
const pinOf = `WITH RECURSIVE
 up(d) AS (SELECT ?1 UNION SELECT e.parent FROM up CROSS JOIN edges e ON e.child = up.d),
 through(d) AS (SELECT ?1 UNION SELECT e.child FROM through CROSS JOIN edges e ON e.parent = through.d AND e.role = 'manifest'),
 named(d) AS (SELECT d FROM up UNION SELECT d FROM through),
 config(d) AS (SELECT d FROM named UNION SELECT e.child FROM named CROSS JOIN edges e ON e.parent = named.d AND e.role = 'config'),
 root(d) AS (SELECT d FROM config UNION SELECT c.chain_id FROM config CROSS JOIN chains c ON c.config = config.d)
SELECT p.ref FROM pin_roots p WHERE p.digest IN (SELECT d FROM root) LIMIT 1`

// Judged is a blob as it was when it was judged, or claimed.
type Judged struct {
	Digest  oci.Digest
	Version int64
}

// Outcome is what became of one of many: Err is Conflict where Claim's or
// Remove's would be, and says nothing of the others.
type Outcome struct {
	Blob Blob // of a claim: the row, with the version that the claim made; of a removal: its size
	Err  error
}

// Claim marks a blob as about to be removed and returns its row, with the version
// that the claim made. Conflict unless it has the version that was judged, is not claimed already,
// and no pin needs it.
func (x *Index) Claim(ctx context.Context, d oci.Digest, version int64) (Blob, error) {
	one, err := x.ClaimAll(ctx, []Judged{{d, version}})
	if err != nil {
		return Blob{}, err
	}
	return one[0].Blob, one[0].Err
}

// ClaimAll is Claim for many blobs in one transaction.
func (x *Index) ClaimAll(ctx context.Context, all []Judged) (done []Outcome, err error) {
	err = x.relieve(ctx, fmt.Sprintf("claim %d blobs", len(all)), func(tx *sqldb.Tx) error {
		done = make([]Outcome, len(all))
		return eachUnpinned(tx, all, done, func(i int) error {
			b := all[i]
			err := scanBlob(tx.Row("UPDATE blobs SET was = state, state = 'claimed', version = version + 1 WHERE digest = ? AND version = ? AND state <> 'claimed' RETURNING "+blobColumns,
				string(b.Digest), b.Version).Scan, &done[i].Blob)
			if errors.Is(err, sql.ErrNoRows) {
				return changed(b.Digest)
			}
			return err
		})
	})
	return done, err
}

// eachUnpinned calls fn for every blob that no pin needs. A conflict is noted for
// the blob that it is about; any other error ends the transaction.
func eachUnpinned(tx *sqldb.Tx, all []Judged, done []Outcome, fn func(i int) error) error {
	var pins bool
	if err := tx.Row("SELECT EXISTS (SELECT 1 FROM pin_roots)").Scan(&pins); err != nil {
		return err
	}
	for i, b := range all {
		err := unpinned(tx, b.Digest, pins)
		if err == nil {
			err = fn(i)
		}
		if err != nil && !errors.Is(err, fault.Conflict) {
			return err
		}
		done[i].Err = err
	}
	return nil
}

// unpinned is Conflict if a pin needs a blob. pins says whether there are any.
func unpinned(tx *sqldb.Tx, d oci.Digest, pins bool) error {
	if !pins {
		return nil
	}
	var ref string
	switch err := tx.Row(pinOf, string(d)).Scan(&ref); {
	case err == nil:
		return fault.New(fault.Conflict, "%s is pinned by %s", d, ref)
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	return nil
}

// Removable returns the row of a blob that still has a version and that no pin
// needs, and Conflict otherwise. It is for a disk on which nothing can be written until something has
// gone: the caller looks at the state.
func (x *Index) Removable(ctx context.Context, d oci.Digest, version int64) (b Blob, err error) {
	err = x.read(ctx, "look whether "+string(d)+" may go", func(tx *sqldb.Tx) error {
		if err := unpinned(tx, d, true); err != nil {
			return err
		}
		err := scanBlob(tx.Row("SELECT "+blobColumns+" FROM blobs WHERE digest = ? AND version = ?", string(d), version).Scan, &b)
		if errors.Is(err, sql.ErrNoRows) {
			return changed(d)
		}
		return err
	})
	return b, err
}

// Unclaim ends the claim that made version, and returns the blob as it was
// before. Conflict if that claim does not stand.
func (x *Index) Unclaim(ctx context.Context, d oci.Digest, version int64) (b Blob, err error) {
	err = x.relieve(ctx, "give up the claim on "+string(d), func(tx *sqldb.Tx) error {
		err := scanBlob(tx.Row("UPDATE blobs SET state = was, version = version + 1 WHERE digest = ? AND version = ? AND state = 'claimed' RETURNING "+blobColumns, string(d), version).Scan, &b)
		if errors.Is(err, sql.ErrNoRows) {
			return changed(d)
		}
		return err
	})
	return b, err
}

// UnclaimThese ends claims of which some may not stand any more.
func (x *Index) UnclaimThese(ctx context.Context, all []Judged) error {
	return x.relieve(ctx, fmt.Sprintf("give up %d claims", len(all)), func(tx *sqldb.Tx) error {
		for _, b := range all {
			if _, err := tx.Exec("UPDATE blobs SET state = was, version = version + 1 WHERE digest = ? AND version = ? AND state = 'claimed'", string(b.Digest), b.Version); err != nil {
				return err
			}
		}
		return nil
	})
}

// UnclaimAll ends every claim: whoever held them is gone with the process.
func (x *Index) UnclaimAll(ctx context.Context) error {
	return x.relieve(ctx, "give up old claims", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE blobs SET state = was, version = version + 1 WHERE state = 'claimed'")
		return err
	})
}

// Remove deletes the row of a blob whose claim stands and that no pin needs,
// which must happen before its bytes go, and returns its size. Conflict otherwise.
func (x *Index) Remove(ctx context.Context, d oci.Digest, version int64) (size int64, err error) {
	one, err := x.RemoveAll(ctx, []Judged{{d, version}}, func() bool { return true })
	if err != nil {
		return 0, err
	}
	return one[0].Blob.Size, one[0].Err
}

// ErrOutdated says that what a removal was judged by does not hold any more.
// Nothing was removed.
var ErrOutdated error = fault.New(fault.Conflict, "the runtimes have reported something newer")

// RemoveAll is Remove for many blobs in one transaction, which is given up with
// ErrOutdated if still is false at its end.
func (x *Index) RemoveAll(ctx context.Context, all []Judged, still func() bool) (done []Outcome, err error) {
	err = x.relieve(ctx, fmt.Sprintf("remove %d blobs", len(all)), func(tx *sqldb.Tx) error {
		done = make([]Outcome, len(all))
		var gone []oci.Digest
		err := eachUnpinned(tx, all, done, func(i int) error {
			b := all[i]
			err := tx.Row("DELETE FROM blobs WHERE digest = ? AND version = ? AND state = 'claimed' RETURNING size", string(b.Digest), b.Version).Scan(&done[i].Blob.Size)
			if errors.Is(err, sql.ErrNoRows) {
				return changed(b.Digest)
			}
			if err == nil {
				gone = append(gone, b.Digest)
			}
			return err
		})
		if err == nil {
			err = prune(tx, gone)
		}
		if err == nil && !still() {
			return ErrOutdated
		}
		return err
	})
	if err == nil {
		x.reserve.replenish()
	}
	return done, err
}

// Forget deletes the row of a blob that has no bytes, whatever its state.
func (x *Index) Forget(ctx context.Context, d oci.Digest) error {
	return x.relieve(ctx, "forget "+string(d), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("DELETE FROM blobs WHERE digest = ?", string(d)); err != nil {
			return err
		}
		return prune(tx, []oci.Digest{d})
	})
}

// prune deletes what was known about blobs that have gone and about those above
// them, as far as nothing below these is cached any more.
func prune(tx *sqldb.Tx, gone []oci.Digest) error {
	// Where the bytes came from says nothing about those that may come next.
	if _, err := tx.Exec("DELETE FROM origins WHERE digest IN "+sqldb.Each, sqldb.List(gone)); err != nil {
		return err
	}
	const useless = `SELECT g.a FROM ` + sqldb.Each + ` AS g WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE digest = g.a)
		AND NOT EXISTS (SELECT 1 FROM edges e WHERE e.parent = g.a AND (
			EXISTS (SELECT 1 FROM blobs b WHERE b.digest = e.child) OR EXISTS (SELECT 1 FROM edges f WHERE f.parent = e.child)))`
	var loose []oci.Digest // may be named by nothing any more
	for next, first := gone, true; len(next) > 0; first = false {
		these, err := digests(tx, useless, sqldb.List(next))
		if err != nil {
			return err
		}
		list := sqldb.List(these)
		parents, err := digests(tx, "SELECT DISTINCT parent FROM edges WHERE child IN "+sqldb.Each, list)
		if err != nil {
			return err
		}
		children, err := digests(tx, "SELECT DISTINCT child FROM edges WHERE parent IN "+sqldb.Each, list)
		if err != nil {
			return err
		}
		n, err := tx.Exec("DELETE FROM edges WHERE parent IN "+sqldb.Each, list)
		if err != nil {
			return err
		}
		loose = append(append(loose, children...), these...)
		if n == 0 && !first {
			break // nothing has changed for those above; so it ends on a circle too
		}
		next = parents
	}
	return pruneNames(tx, loose)
}

// pruneNames deletes grants of, and chains to, blobs of which neither bytes nor
// a manifest that names them are known. Names of tags stay: they are small, and
// are what is served while an upstream is down.
func pruneNames(tx *sqldb.Tx, all []oci.Digest) error {
	list := sqldb.List(all)
	const loose = " IN (SELECT a FROM " + sqldb.Each + " WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE digest = a) AND NOT EXISTS (SELECT 1 FROM edges WHERE child = a))"
	if _, err := tx.Exec("DELETE FROM chains WHERE config"+loose, list); err != nil {
		return err
	}
	_, err := tx.Exec("DELETE FROM grants WHERE digest"+loose, list)
	return err
}

package index

import (
	"context"
	"database/sql"
	"errors"

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

// Claim marks a blob as about to be removed and returns its row, with the version
// that the claim made. Conflict unless it has the version that was judged, is not claimed already,
// and no pin needs it.
func (x *Index) Claim(ctx context.Context, d oci.Digest, version int64) (b Blob, err error) {
	err = x.relieve(ctx, "claim "+string(d), func(tx *sqldb.Tx) error {
		var ref string
		switch err := tx.Row(pinOf, string(d)).Scan(&ref); {
		case err == nil:
			return fault.New(fault.Conflict, "%s is pinned by %s", d, ref)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		err := scanBlob(tx.Row("UPDATE blobs SET was = state, state = 'claimed', version = version + 1 WHERE digest = ? AND version = ? AND state <> 'claimed' RETURNING "+blobColumns, string(d), version).Scan, &b)
		if errors.Is(err, sql.ErrNoRows) {
			return changed(d)
		}
		return err
	})
	return b, err
}

// Claimable returns the row that Claim would mark, and Conflict where Claim would:
// for a disk on which nothing can be written until something has gone.
func (x *Index) Claimable(ctx context.Context, d oci.Digest, version int64) (b Blob, err error) {
	err = x.read(ctx, "look whether "+string(d)+" may go", func(tx *sqldb.Tx) error {
		var ref string
		switch err := tx.Row(pinOf, string(d)).Scan(&ref); {
		case err == nil:
			return fault.New(fault.Conflict, "%s is pinned by %s", d, ref)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		err := scanBlob(tx.Row("SELECT "+blobColumns+" FROM blobs WHERE digest = ? AND version = ? AND state <> 'claimed'", string(d), version).Scan, &b)
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
	err = x.relieve(ctx, "remove "+string(d), func(tx *sqldb.Tx) error {
		var ref string
		switch err := tx.Row(pinOf, string(d)).Scan(&ref); {
		case err == nil:
			return fault.New(fault.Conflict, "%s is pinned by %s", d, ref)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		err := tx.Row("DELETE FROM blobs WHERE digest = ? AND version = ? AND state = 'claimed' RETURNING size", string(d), version).Scan(&size)
		if errors.Is(err, sql.ErrNoRows) {
			return changed(d)
		}
		if err != nil {
			return err
		}
		return prune(tx, d)
	})
	if err == nil {
		x.reserve.replenish()
	}
	return size, err
}

// Forget deletes the row of a blob that has no bytes, whatever its state.
func (x *Index) Forget(ctx context.Context, d oci.Digest) error {
	return x.relieve(ctx, "forget "+string(d), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("DELETE FROM blobs WHERE digest = ?", string(d)); err != nil {
			return err
		}
		return prune(tx, d)
	})
}

// prune deletes what was known about a blob that has gone and about those above
// it, as far as nothing below them is cached any more.
func prune(tx *sqldb.Tx, gone oci.Digest) error {
	// Where the bytes came from says nothing about those that may come next.
	if _, err := tx.Exec("DELETE FROM origins WHERE digest = ?", string(gone)); err != nil {
		return err
	}
	for next := []oci.Digest{gone}; len(next) > 0; {
		d := string(next[0])
		next = next[1:]
		var useful bool
		if err := tx.Row(`SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1)
			OR EXISTS (SELECT 1 FROM edges e WHERE e.parent = ?1 AND (
				EXISTS (SELECT 1 FROM blobs b WHERE b.digest = e.child) OR EXISTS (SELECT 1 FROM edges f WHERE f.parent = e.child)))`, d).Scan(&useful); err != nil {
			return err
		}
		if useful {
			continue
		}
		parents, err := digests(tx, "SELECT DISTINCT parent FROM edges WHERE child = ?", d)
		if err != nil {
			return err
		}
		children, err := digests(tx, "SELECT child FROM edges WHERE parent = ?", d)
		if err != nil {
			return err
		}
		n, err := tx.Exec("DELETE FROM edges WHERE parent = ?", d)
		if err != nil {
			return err
		}
		if err := pruneNames(tx, append(children, oci.Digest(d))); err != nil {
			return err
		}
		if n > 0 || d == string(gone) {
			next = append(next, parents...)
		}
	}
	return nil
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

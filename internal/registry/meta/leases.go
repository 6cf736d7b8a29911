package meta

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// LeaseHold is the lease that keeps something longest.
type LeaseHold struct {
	Holder    string
	ExpiresAt int64 // ms; 0: no lease
}

// Held reports whether there is a lease, in force or within the window after
// its end.
func (h LeaseHold) Held() bool { return h.ExpiresAt != 0 }

// Scan reads what manifestLease and blobLease select.
func (h *LeaseHold) Scan(v any) error {
	*h = LeaseHold{}
	s, ok := v.(string)
	if !ok {
		return nil // NULL: no lease
	}
	at, holder, _ := strings.Cut(s, " ")
	ms, err := strconv.ParseInt(at, 10, 64)
	*h = LeaseHold{Holder: holder, ExpiresAt: ms}
	return err
}

// A lease on a digest keeps the manifest or blob of that digest, in whichever
// repository, and everything below it. So a manifest m is leased if it, or an
// index above it, or the subject that it refers to, or an index above that, is
// leased; living or in the trash. Both expressions take a time as their only
// parameter, and select "expires_at holder" of the lease that ends last if it
// ends after that time, or NULL. The time is a window before now: the end of a
// lease is an event like the loss of a reference, and what it kept stays for
// the window. So its rows stay after its end for as long.
const (
	manifestLease = `CASE WHEN EXISTS (SELECT 1 FROM lease_digests) THEN (
		WITH RECURSIVE up (digest) AS (
			SELECT m.digest
			UNION SELECT a.digest FROM up CROSS JOIN manifest_children c ON c.repo_id = m.repo_id AND c.child_digest = up.digest CROSS JOIN manifests a ON a.id = c.manifest_id
			UNION SELECT a.subject FROM up CROSS JOIN manifests a ON a.repo_id = m.repo_id AND a.digest = up.digest WHERE a.subject IS NOT NULL)
		SELECT ld.expires_at || ' ' || ld.holder FROM up CROSS JOIN lease_digests ld ON ld.digest = up.digest
		WHERE ld.expires_at > ? ORDER BY ld.expires_at DESC LIMIT 1) END`
	blobLease = `(SELECT ld.expires_at || ' ' || ld.holder FROM lease_digests ld
		WHERE ld.digest = b.digest AND ld.expires_at > ? ORDER BY ld.expires_at DESC LIMIT 1)`
)

// PutLease sets what a holder needs, in place of what it needed before, for
// ttlMS milliseconds of the database's clock from now.
func (s *Store) PutLease(ctx context.Context, holder string, digests []oci.Digest, ttlMS int64) (Lease, error) {
	l := Lease{Holder: holder, Digests: digests}
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		l.ExpiresAt = Time(tx.Now() + ttlMS)
		before, err := setLease(tx, holder, tx.Now()+ttlMS)
		if err != nil {
			return err
		}
		dropped, err := leaseOnly(tx, holder, digests)
		if err != nil {
			return err
		}
		if dropped > 0 || tx.Now()+ttlMS < before {
			if err := leaseEnds(tx, holder); err != nil {
				return err
			}
		}
		return leaseAlso(tx, holder, digests, tx.Now()+ttlMS)
	})
	if err != nil {
		return Lease{}, told(fmt.Errorf("put lease of %s: %w", holder, err))
	}
	return l, nil
}

// setLease makes or moves the end of a lease, and returns where it was, 0 for
// none.
func setLease(tx *sqldb.Tx, holder string, expires int64) (before int64, err error) {
	if err := tx.Row("SELECT coalesce(max(expires_at), 0) FROM leases WHERE holder = ?", holder).Scan(&before); err != nil {
		return 0, err
	}
	_, err = tx.Exec(`INSERT INTO leases (holder, expires_at, updated_at) VALUES (?, ?, ?)
		ON CONFLICT (holder) DO UPDATE SET expires_at = excluded.expires_at, updated_at = excluded.updated_at`, holder, expires, tx.Now())
	return before, err
}

// leaseOnly ends a lease on what is not in digests, and returns on how many
// that was.
func leaseOnly(tx *sqldb.Tx, holder string, digests []oci.Digest) (dropped int64, err error) {
	return tx.Exec("UPDATE lease_digests SET expires_at = ?1 WHERE holder = ?2 AND expires_at > ?1 AND digest NOT IN (SELECT value FROM json_each(?3))",
		tx.Now(), holder, sqldb.List(digests))
}

// leaseAlso has a lease cover digests, besides what it does.
func leaseAlso(tx *sqldb.Tx, holder string, digests []oci.Digest, expires int64) error {
	_, err := tx.Exec("INSERT INTO lease_digests (holder, digest, expires_at) SELECT ?, a, ? FROM "+sqldb.Each+
		" WHERE true ON CONFLICT (holder, digest) DO UPDATE SET expires_at = excluded.expires_at WHERE lease_digests.expires_at <> excluded.expires_at", holder, expires, sqldb.List(digests))
	return err
}

// DeleteLease ends a lease. What it kept stays for a window from now.
func (s *Store) DeleteLease(ctx context.Context, holder string) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		n, err := endLease(tx, holder)
		if err == nil && n == 0 {
			return fault.New(fault.NotFound, "there is no lease of holder %q", holder)
		}
		return err
	})
	if err != nil {
		return told(fmt.Errorf("delete lease of %s: %w", holder, err))
	}
	return nil
}

// endLease ends a lease, and returns how many there were, 0 or 1.
func endLease(tx *sqldb.Tx, holder string) (int64, error) {
	n, err := tx.Exec("DELETE FROM leases WHERE holder = ?", holder)
	if err != nil {
		return 0, err
	}
	if _, err := leaseOnly(tx, holder, nil); err != nil {
		return 0, err
	}
	return n, leaseEnds(tx, holder)
}

// leaseEnds has what a lease put off judged again: for it, the end of the lease
// is an event like the loss of a reference.
func leaseEnds(tx *sqldb.Tx, holder string) error {
	_, err := tx.Exec("UPDATE reviews SET event_at = ?, holder = NULL, version = version + 1 WHERE holder = ?", tx.Now(), holder)
	return err
}

// leaseMemory is how long the digests of a lease are remembered after its end
// at least, in ms, so that any window can count from it.
const leaseMemory = 7 * 24 * 3600 * 1000

// leasesAtOnce and digestsAtOnce bound what one transaction forgets, so that
// clients do not wait for it.
const (
	leasesAtOnce  = 100
	digestsAtOnce = 1000
)

// ForgetLeases forgets some of the leases that are over, and their digests when
// no window looks for them any more; window, in ms, is the longest that any run
// may have. more says that there is more to forget.
func (s *Store) ForgetLeases(ctx context.Context, window int64) (more bool, err error) {
	window = max(window, leaseMemory)
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM leases WHERE expires_at <= ?1) OR EXISTS (SELECT 1 FROM lease_digests WHERE expires_at < ?2)"+
			" OR EXISTS (SELECT 1 FROM nodes WHERE kept_until < ?3)", tx.Now(), tx.Now()-window, tx.Now()-nodeMemory).Scan(&more)
	})
	if err == nil && more {
		err = s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
			more, err = forgetLeases(tx, window)
			return err
		})
	}
	if err != nil {
		return false, fmt.Errorf("forget expired leases: %w", err)
	}
	return more, nil
}

func forgetLeases(tx *sqldb.Tx, window int64) (more bool, err error) {
	var over []string
	if err := tx.All(scanInto(&over), "SELECT holder FROM leases WHERE expires_at <= ? ORDER BY expires_at, holder LIMIT ?", tx.Now(), leasesAtOnce); err != nil {
		return false, err
	}
	for _, table := range []string{"node_uses", "leases"} {
		if _, err := tx.Exec("DELETE FROM "+table+" WHERE holder IN (SELECT a FROM "+sqldb.Each+")", sqldb.List(over)); err != nil {
			return false, err
		}
	}
	if err := dropGoneNodes(tx); err != nil {
		return false, err
	}
	n, err := tx.Exec("DELETE FROM lease_digests WHERE (holder, digest) IN (SELECT holder, digest FROM lease_digests WHERE expires_at < ? LIMIT ?)",
		tx.Now()-window, digestsAtOnce)
	return len(over) == leasesAtOnce || n == digestsAtOnce, err
}

// LeasePage selects leases: of one holder, or a page of all.
type LeasePage struct {
	Holder  string // "": all
	After   string // holder of the last lease of the page before
	N       int    // leases at most
	Digests int    // of each lease at most
}

// Leases lists the leases that have not expired, by holder, and reports whether
// there are more.
func (s *Store) Leases(ctx context.Context, p LeasePage) (ls []Lease, more bool, err error) {
	err = s.db.ListSnapshot(ctx, func(tx *sqldb.Tx) error {
		ls = []Lease{}
		from, to := p.After, "\U0010ffff" // beyond any holder
		if p.Holder != "" {
			from, to = "", p.Holder
		}
		if err := tx.All(func(rows *sql.Rows) error {
			l := Lease{Digests: []oci.Digest{}}
			var at int64
			err := rows.Scan(&l.Holder, &at)
			l.ExpiresAt = Time(at)
			ls = append(ls, l)
			return err
		}, "SELECT holder, expires_at FROM leases WHERE holder > ? AND holder <= ? AND holder >= ? AND expires_at > ? ORDER BY holder LIMIT ?", from, to, p.Holder, tx.Now(), p.N+1); err != nil {
			return err
		}
		if more = len(ls) > p.N; more {
			ls = ls[:p.N]
		}
		for i := range ls {
			if err := tx.All(scanInto(&ls[i].Digests), "SELECT digest FROM lease_digests WHERE holder = ? AND expires_at > ? ORDER BY digest LIMIT ?", ls[i].Holder, tx.Now(), p.Digests+1); err != nil {
				return err
			}
			if ls[i].Cut = len(ls[i].Digests) > p.Digests; ls[i].Cut {
				ls[i].Digests = ls[i].Digests[:p.Digests]
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("list leases: %w", err)
	}
	return ls, more, nil
}

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

// Held reports whether there is a lease.
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
// leased; living or in the trash. Both expressions take the time as their only
// parameter and select "expires_at holder", or NULL.
const (
	manifestLease = `CASE WHEN EXISTS (SELECT 1 FROM leases) THEN (
		WITH RECURSIVE up (digest) AS (
			SELECT m.digest
			UNION SELECT a.digest FROM up CROSS JOIN manifest_children c ON c.repo_id = m.repo_id AND c.child_digest = up.digest CROSS JOIN manifests a ON a.id = c.manifest_id
			UNION SELECT a.subject FROM up CROSS JOIN manifests a ON a.repo_id = m.repo_id AND a.digest = up.digest WHERE a.subject IS NOT NULL)
		SELECT ls.expires_at || ' ' || ls.holder FROM up CROSS JOIN lease_digests ld ON ld.digest = up.digest CROSS JOIN leases ls ON ls.holder = ld.holder
		WHERE ls.expires_at > ? ORDER BY ls.expires_at DESC LIMIT 1) END`
	blobLease = `(SELECT ls.expires_at || ' ' || ls.holder FROM lease_digests ld JOIN leases ls ON ls.holder = ld.holder
		WHERE ld.digest = b.digest AND ls.expires_at > ? ORDER BY ls.expires_at DESC LIMIT 1)`
)

// PutLease sets what a holder needs, in place of what it needed before, for
// ttlMS milliseconds of the database's clock from now.
func (s *Store) PutLease(ctx context.Context, holder string, digests []oci.Digest, ttlMS int64) (Lease, error) {
	l := Lease{Holder: holder, Digests: digests}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		l.ExpiresAt = Time(tx.Now() + ttlMS)
		var before int64
		if err := tx.Row("SELECT coalesce(max(expires_at), 0) FROM leases WHERE holder = ?", holder).Scan(&before); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO leases (holder, expires_at, updated_at) VALUES (?, ?, ?)
			ON CONFLICT (holder) DO UPDATE SET expires_at = excluded.expires_at, updated_at = excluded.updated_at`,
			holder, tx.Now()+ttlMS, tx.Now()); err != nil {
			return err
		}
		list := sqldb.List(digests)
		dropped, err := tx.Exec("DELETE FROM lease_digests WHERE holder = ? AND digest NOT IN (SELECT a FROM "+sqldb.Each+")", holder, list)
		if err != nil {
			return err
		}
		if dropped > 0 || tx.Now()+ttlMS < before {
			if err := leaseEnds(tx, holder); err != nil {
				return err
			}
		}
		_, err = tx.Exec("INSERT OR IGNORE INTO lease_digests (holder, digest) SELECT ?, a FROM "+sqldb.Each, holder, list)
		return err
	})
	if err != nil {
		return Lease{}, fmt.Errorf("put lease of %s: %w", holder, err)
	}
	return l, nil
}

// DeleteLease ends a lease. Reviews that it put off are due a window from now.
func (s *Store) DeleteLease(ctx context.Context, holder string) error {
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec("DELETE FROM leases WHERE holder = ?", holder)
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.New(fault.NotFound, "there is no lease of holder %q", holder)
		}
		return leaseEnds(tx, holder)
	})
	if err != nil {
		return fmt.Errorf("delete lease of %s: %w", holder, err)
	}
	return nil
}

// leaseEnds has what a lease put off judged again: for it, the end of the lease
// is an event like the loss of a reference.
func leaseEnds(tx *sqldb.Tx, holder string) error {
	_, err := tx.Exec("UPDATE reviews SET event_at = ?, holder = NULL, version = version + 1 WHERE holder = ?", tx.Now(), holder)
	return err
}

// dropExpiredLeases forgets leases that are over, some at a time. What they put
// off is due at their end by itself.
func dropExpiredLeases(tx *sqldb.Tx) error {
	_, err := tx.Exec("DELETE FROM leases WHERE holder IN (SELECT holder FROM leases WHERE expires_at <= ? LIMIT 100)", tx.Now())
	return err
}

// Leases lists the leases that have not expired; holder "" lists all.
func (s *Store) Leases(ctx context.Context, holder string) ([]Lease, error) {
	var ls []Lease
	err := s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		ls = []Lease{}
		return tx.All(func(rows *sql.Rows) error {
			var who string
			var at int64
			var d sql.NullString
			if err := rows.Scan(&who, &at, &d); err != nil {
				return err
			}
			if len(ls) == 0 || ls[len(ls)-1].Holder != who {
				ls = append(ls, Lease{Holder: who, ExpiresAt: Time(at), Digests: []oci.Digest{}})
			}
			if d.Valid {
				last := &ls[len(ls)-1]
				last.Digests = append(last.Digests, oci.Digest(d.String))
			}
			return nil
		}, `SELECT l.holder, l.expires_at, d.digest FROM leases l LEFT JOIN lease_digests d ON d.holder = l.holder
			WHERE l.expires_at > ? AND (?2 = '' OR l.holder = ?2) ORDER BY l.holder, d.digest`, tx.Now(), holder)
	})
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	return ls, nil
}

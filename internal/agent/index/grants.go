package index

import (
	"context"
	"database/sql"
	"errors"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// A subject is about another manifest. It does not make that manifest part of
// itself, so no right passes along its edge.
const above = `WITH RECURSIVE up(d) AS (SELECT ?1 UNION SELECT e.parent FROM up CROSS JOIN edges e ON e.child = up.d AND e.role <> 'subject')
`

// GrantPublic notes that the upstream gave d of a repository to somebody who
// showed no credentials, at a time in ms since the Unix epoch.
func (x *Index) GrantPublic(ctx context.Context, namespace string, repo oci.Name, d oci.Digest, at int64) error {
	return x.note(ctx, "grant "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO grants (namespace, repository, digest, at) VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)",
			namespace, string(repo), string(d), at)
		return err
	})
}

// Public returns when the upstream last gave d of a repository, or a manifest of
// that repository which needs it, to somebody without credentials.
func (x *Index) Public(ctx context.Context, namespace string, repo oci.Name, d oci.Digest) (at int64, ok bool, err error) {
	err = x.read(ctx, "read grants", func(tx *sqldb.Tx) error {
		err := tx.Row(above+`SELECT g.at FROM up JOIN grants g ON g.digest = up.d AND g.namespace = ?2 AND g.repository = ?3 ORDER BY g.at DESC LIMIT 1`,
			string(d), namespace, string(repo)).Scan(&at)
		if ok = err == nil; errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return at, ok, err
}

// Grants is when an upstream last gave a digest of a repository to somebody
// without credentials, in ms since the Unix epoch; 0: never.
type Grants struct {
	Direct  int64 // this very digest
	Through int64 // a manifest that needs it
}

// Granted returns what is known of everybody's right to d of a repository.
func (x *Index) Granted(ctx context.Context, namespace string, repo oci.Name, d oci.Digest) (g Grants, err error) {
	err = x.read(ctx, "read grants", func(tx *sqldb.Tx) error {
		return tx.Row(above+`SELECT coalesce(max(CASE WHEN up.d = ?1 THEN g.at END), 0), coalesce(max(CASE WHEN up.d <> ?1 THEN g.at END), 0)
FROM up JOIN grants g ON g.digest = up.d AND g.namespace = ?2 AND g.repository = ?3`, string(d), namespace, string(repo)).Scan(&g.Direct, &g.Through)
	})
	return g, err
}

// AgeGrant has everybody's right to d of a repository confirmed before it is
// used again. It still counts while the upstream decides nothing.
func (x *Index) AgeGrant(ctx context.Context, namespace string, repo oci.Name, d oci.Digest) error {
	return x.note(ctx, "age the grant of "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE grants SET at = 1 WHERE namespace = ? AND repository = ? AND digest = ?", namespace, string(repo), string(d))
		return err
	})
}

// RevokePublic takes a grant back: the upstream said that d is not there, or not
// for everybody any more.
func (x *Index) RevokePublic(ctx context.Context, namespace string, repo oci.Name, d oci.Digest) error {
	return x.note(ctx, "revoke "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("DELETE FROM grants WHERE namespace = ? AND repository = ? AND digest = ?", namespace, string(repo), string(d))
		return err
	})
}

const fromRepository = `WITH RECURSIVE down(d) AS (
 SELECT digest FROM grants WHERE namespace = ?1 AND repository = ?2
 UNION SELECT e.child FROM down CROSS JOIN edges e ON e.parent = down.d AND e.role <> 'subject')
SELECT d FROM down`

// RevokeRepository takes all grants of a repository back, which asks for
// credentials now. What came from it counts as private from here on, also where
// a manifest elsewhere names it. mark is called with each digest of these before
// the rows are changed, so that a row that is made meanwhile is private too.
func (x *Index) RevokeRepository(ctx context.Context, namespace string, repo oci.Name, mark func(oci.Digest)) error {
	var all []oci.Digest
	err := x.read(ctx, "read grants", func(tx *sqldb.Tx) error {
		all = nil
		return tx.All(func(rows *sql.Rows) error {
			var d oci.Digest
			err := rows.Scan(&d)
			all = append(all, d)
			return err
		}, fromRepository, namespace, string(repo))
	})
	if err != nil || len(all) == 0 {
		return err
	}
	for _, d := range all {
		mark(d)
	}
	return x.note(ctx, "revoke all of "+string(repo), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("UPDATE blobs SET private = TRUE WHERE digest IN ("+fromRepository+")", namespace, string(repo)); err != nil {
			return err
		}
		_, err := tx.Exec("DELETE FROM grants WHERE namespace = ? AND repository = ?", namespace, string(repo))
		return err
	})
}

// PutOrigin notes that the bytes of d came here as content of an upstream.
func (x *Index) PutOrigin(ctx context.Context, d oci.Digest, namespace string) error {
	return x.note(ctx, "put the origin of "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO origins (digest, namespace) VALUES (?,?) ON CONFLICT DO NOTHING", string(d), namespace)
		return err
	})
}

// SetOrigin notes that the bytes of d come here as content of an upstream, and of
// no other; "" takes the notes of all back.
func (x *Index) SetOrigin(ctx context.Context, d oci.Digest, namespace string) error {
	return x.note(ctx, "set the origin of "+string(d), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("DELETE FROM origins WHERE digest = ? AND namespace <> ?", string(d), namespace); err != nil || namespace == "" {
			return err
		}
		_, err := tx.Exec("INSERT INTO origins (digest, namespace) VALUES (?,?) ON CONFLICT DO NOTHING", string(d), namespace)
		return err
	})
}

// IsOrigin reports whether the bytes of d came here as content of an upstream.
func (x *Index) IsOrigin(ctx context.Context, d oci.Digest, namespace string) (is bool, err error) {
	err = x.read(ctx, "read origins", func(tx *sqldb.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM origins WHERE digest = ? AND namespace = ?)", string(d), namespace).Scan(&is)
	})
	return is, err
}

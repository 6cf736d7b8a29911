package index

import (
	"context"
	"database/sql"
	"errors"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// PutName notes what the upstream said that a tag is, at a time in ms since the
// Unix epoch.
func (x *Index) PutName(ctx context.Context, namespace string, repo oci.Name, tag oci.Tag, d oci.Digest, at int64) error {
	return x.note(ctx, "put a name", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO names (namespace, repository, tag, digest, at) VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET digest = excluded.digest, at = excluded.at",
			namespace, string(repo), string(tag), string(d), at)
		return err
	})
}

// ResolveName returns what a tag was last; NotFound if that was never known.
func (x *Index) ResolveName(ctx context.Context, namespace string, repo oci.Name, tag oci.Tag) (Name, error) {
	found, err := x.names(ctx, "WHERE namespace = ? AND repository = ? AND tag = ?", namespace, string(repo), string(tag))
	if err != nil {
		return Name{}, err
	}
	if len(found) == 0 {
		return Name{}, fault.New(fault.NotFound, "the tag %s of %s/%s was never resolved here", tag, namespace, repo)
	}
	return found[0], nil
}

// DeleteName forgets a tag, which the upstream said to be gone.
func (x *Index) DeleteName(ctx context.Context, namespace string, repo oci.Name, tag oci.Tag) error {
	return x.note(ctx, "delete a name", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("DELETE FROM names WHERE namespace = ? AND repository = ? AND tag = ?", namespace, string(repo), string(tag))
		return err
	})
}

// Names returns the tags that were last resolved to d.
func (x *Index) Names(ctx context.Context, d oci.Digest) ([]Name, error) {
	return x.names(ctx, "WHERE digest = ? ORDER BY namespace, repository, tag", string(d))
}

// AllNames returns every tag that was ever resolved.
func (x *Index) AllNames(ctx context.Context) ([]Name, error) {
	return x.names(ctx, "ORDER BY namespace, repository, tag")
}

func (x *Index) names(ctx context.Context, where string, args ...any) (found []Name, err error) {
	err = x.read(ctx, "read names", func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var n Name
			if err := rows.Scan(&n.Namespace, &n.Repository, &n.Tag, &n.Digest, &n.At); err != nil {
				return err
			}
			found = append(found, n)
			return nil
		}, "SELECT namespace, repository, tag, digest, at FROM names "+where, args...)
	})
	return found, err
}

// Pin keeps the trees of roots from being evicted; it replaces what ref pinned before.
func (x *Index) Pin(ctx context.Context, ref string, roots []oci.Digest) error {
	if err := x.pin(ctx, ref, roots); err != nil {
		return err
	}
	return x.savePins(ctx)
}

func (x *Index) pin(ctx context.Context, ref string, roots []oci.Digest) error {
	return x.note(ctx, "pin "+ref, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("DELETE FROM pins WHERE ref = ?", ref); err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO pins (ref, created_at) VALUES (?,?)", ref, tx.Now()); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT INTO pin_roots (ref, digest) SELECT DISTINCT ?, a FROM "+sqldb.Each, ref, sqldb.List(roots))
		return err
	})
}

// Unpin takes a pin away; NotFound if there is none of that name.
func (x *Index) Unpin(ctx context.Context, ref string) error {
	err := x.relieve(ctx, "unpin "+ref, func(tx *sqldb.Tx) error {
		n, err := tx.Exec("DELETE FROM pins WHERE ref = ?", ref)
		if err == nil && n == 0 {
			return fault.New(fault.NotFound, "%s is not pinned", ref)
		}
		return err
	})
	if err != nil {
		return err
	}
	// The copy may keep it for longer, on a full disk: too much stays then, in the
	// one case that the copy is for.
	if err := x.savePins(ctx); err != nil {
		x.log.Warn("a pin that was taken away stays in the copy of the pins", "ref", ref, "error", err)
	}
	return nil
}

// Pins returns all pins, in order of their references.
func (x *Index) Pins(ctx context.Context) (found []Pin, err error) {
	err = x.read(ctx, "read pins", func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var p Pin
			var root sql.NullString
			if err := rows.Scan(&p.Ref, &p.CreatedAt, &root); err != nil {
				return err
			}
			if len(found) == 0 || found[len(found)-1].Ref != p.Ref {
				found = append(found, p)
			}
			if root.Valid {
				last := &found[len(found)-1]
				last.Roots = append(last.Roots, oci.Digest(root.String))
			}
			return nil
		}, "SELECT ref, created_at, digest FROM pins LEFT JOIN pin_roots USING (ref) ORDER BY ref, digest")
	})
	return found, err
}

// PinnedRoots returns the digests that pins name; Tree expands them.
func (x *Index) PinnedRoots(ctx context.Context) ([]oci.Digest, error) {
	return x.digests(ctx, "SELECT DISTINCT digest FROM pin_roots ORDER BY digest")
}

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
		err := tx.Row(`WITH RECURSIVE up(d) AS (SELECT ?1 UNION SELECT e.parent FROM up JOIN edges e ON e.child = up.d AND e.role <> 'subject')
SELECT g.at FROM up JOIN grants g ON g.digest = up.d AND g.namespace = ?2 AND g.repository = ?3 ORDER BY g.at DESC LIMIT 1`,
			string(d), namespace, string(repo)).Scan(&at)
		if ok = err == nil; errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return at, ok, err
}

// RevokePublic takes a grant back: the upstream said that it is gone or asks for
// credentials now.
func (x *Index) RevokePublic(ctx context.Context, namespace string, repo oci.Name, d oci.Digest) error {
	return x.note(ctx, "revoke "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("DELETE FROM grants WHERE namespace = ? AND repository = ? AND digest = ?", namespace, string(repo), string(d))
		return err
	})
}

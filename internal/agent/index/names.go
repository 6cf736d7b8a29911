package index

import (
	"context"
	"database/sql"

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

package index

import (
	"context"
	"database/sql"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// PutEdges says what a manifest or index needs; it replaces what was said before.
func (x *Index) PutEdges(ctx context.Context, parent oci.Digest, edges []Edge) error {
	return x.note(ctx, "put the edges of "+string(parent), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("DELETE FROM edges WHERE parent = ?", string(parent)); err != nil {
			return err
		}
		for _, e := range edges {
			if _, err := tx.Exec("INSERT INTO edges (parent, child, role, size, media_type) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
				string(parent), string(e.Child), e.Role, e.Size, e.MediaType); err != nil {
				return err
			}
		}
		return nil
	})
}

// Children returns what parent needs.
func (x *Index) Children(ctx context.Context, parent oci.Digest) ([]Edge, error) {
	return x.edges(ctx, "WHERE parent = ? ORDER BY role, child", string(parent))
}

// Parents returns what needs child.
func (x *Index) Parents(ctx context.Context, child oci.Digest) ([]Edge, error) {
	return x.edges(ctx, "WHERE child = ? ORDER BY role, parent", string(child))
}

func (x *Index) edges(ctx context.Context, where string, args ...any) (found []Edge, err error) {
	err = x.eachEdge(ctx, func(e Edge) error { found = append(found, e); return nil }, where, args...)
	return found, err
}

// Edges calls fn for every edge. fn must not write.
func (x *Index) Edges(ctx context.Context, fn func(Edge) error) error {
	return x.eachEdge(ctx, fn, "")
}

func (x *Index) eachEdge(ctx context.Context, fn func(Edge) error, where string, args ...any) error {
	return x.read(ctx, "read edges", func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			var e Edge
			if err := rows.Scan(&e.Parent, &e.Child, &e.Role, &e.Size, &e.MediaType); err != nil {
				return err
			}
			return fn(e)
		}, "SELECT parent, child, role, size, media_type FROM edges "+where, args...)
	})
}

// ManifestsOfConfig returns the manifests whose config it is.
func (x *Index) ManifestsOfConfig(ctx context.Context, config oci.Digest) ([]oci.Digest, error) {
	return x.digests(ctx, "SELECT parent FROM edges WHERE child = ? AND role = 'config' ORDER BY parent", string(config))
}

// SetChain says what the layers of a config add up to.
func (x *Index) SetChain(ctx context.Context, config, chainID oci.Digest) error {
	return x.note(ctx, "put the chain of "+string(config), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec("UPDATE blobs SET chain_id = ? WHERE digest = ?", string(chainID), string(config)); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT INTO chains (chain_id, config) VALUES (?,?) ON CONFLICT DO NOTHING", string(chainID), string(config))
		return err
	})
}

// ConfigsOfChain returns the configs whose layers add up to chainID.
func (x *Index) ConfigsOfChain(ctx context.Context, chainID oci.Digest) ([]oci.Digest, error) {
	return x.digests(ctx, "SELECT config FROM chains WHERE chain_id = ? ORDER BY config", string(chainID))
}

func (x *Index) digests(ctx context.Context, query string, args ...any) (found []oci.Digest, err error) {
	err = x.read(ctx, "read digests", func(tx *sqldb.Tx) (err error) {
		found, err = digests(tx, query, args...)
		return err
	})
	return found, err
}

// Tree returns the roots, everything that is known to be below them, and the
// indexes that they came through. A root is the digest of an index, a manifest,
// a config (which stands for the manifests whose config it is), or a chain ID
// (which stands for the configs with these layers). What it returns need not be
// in the cache.
func (x *Index) Tree(ctx context.Context, roots []oci.Digest) ([]oci.Digest, error) {
	if len(roots) == 0 {
		return nil, nil
	}
	// CROSS JOIN keeps SQLite from reading all edges where it expects many roots.
	return x.digests(ctx, `WITH RECURSIVE
 root(d) AS (SELECT value FROM json_each(?)),
 start(d) AS (SELECT d FROM root UNION SELECT c.config FROM root CROSS JOIN chains c ON c.chain_id = root.d),
 top(d) AS (SELECT d FROM start UNION SELECT e.parent FROM start CROSS JOIN edges e ON e.child = start.d AND e.role = 'config'),
 down(d) AS (SELECT d FROM top UNION SELECT e.child FROM down CROSS JOIN edges e ON e.parent = down.d),
 up(d) AS (SELECT d FROM top UNION SELECT e.parent FROM up CROSS JOIN edges e ON e.child = up.d AND e.role = 'manifest')
SELECT d FROM down UNION SELECT d FROM up`, sqldb.List(roots))
}

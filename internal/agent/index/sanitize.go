package index

import (
	"context"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// sanitize drops what this program does not write, but an earlier one did, or
// somebody with an editor: sizes out of bounds, and values of another type, which
// no query could read. The files of a blob without a row are removed when the
// cache is opened. The agent must start with any content on its disk.
func (x *Index) sanitize(ctx context.Context) error {
	return x.relieve(ctx, "drop what cannot be read", func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`DELETE FROM blobs WHERE typeof(size) <> 'integer' OR size < 0 OR size > ?
			OR typeof(digest) <> 'text' OR length(digest) NOT IN (71, 135) OR digest GLOB '*[^0-9a-z:]*'
			OR state NOT IN ('partial', 'complete', 'claimed') OR state = 'claimed' AND was NOT IN ('partial', 'complete') OR typeof(version) <> 'integer' OR typeof(created_at) <> 'integer'
			OR typeof(used_at) <> 'integer' OR typeof(uses) <> 'integer' OR typeof(fetch_ms) <> 'integer' OR typeof(deleted_at) <> 'integer'`,
			oci.SizeMax); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE edges SET size = -1 WHERE typeof(size) <> 'integer' OR size < -1 OR size > ?", oci.SizeMax)
		return err
	})
}

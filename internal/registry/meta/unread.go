package meta

import (
	"context"
	"fmt"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// unreadMax is how many manifests one transaction reads again.
const unreadMax = 100

// readUnread notes what manifests of an unknown type mention that earlier versions have
// stored. It is done before anything can be collected: what they mention is kept.
func (s *Store) readUnread(ctx context.Context) error {
	for more := true; more; {
		err := s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
			var ids []int64
			if err := tx.All(scanInto(&ids), "SELECT manifest_id FROM unread WHERE manifest_id > 0 ORDER BY manifest_id LIMIT ?", unreadMax); err != nil {
				return err
			}
			more = len(ids) == unreadMax
			budget := kinMax
			for _, id := range ids {
				if err := s.readAgain(tx, id, &budget); err != nil {
					return fmt.Errorf("manifest %d: %w", id, err)
				}
			}
			_, err := tx.Exec("DELETE FROM unread WHERE manifest_id IN (SELECT a FROM "+sqldb.Each+")", sqldb.List(ids))
			return err
		})
		if err != nil {
			return fmt.Errorf("read again what manifests of unknown types mention: %w", err)
		}
	}
	return nil
}

// readAgain binds what a manifest names and has not been noted. It was accepted, so
// nothing is refused: what is not here is wanted.
func (s *Store) readAgain(tx *sqldb.Tx, id int64, budget *int) error {
	k := kinship{id: id}
	var content []byte
	err := tx.Row("SELECT m.repo_id, r.name, m.digest, m.trashed_at IS NOT NULL, m.content FROM manifests m JOIN repositories r ON r.id = m.repo_id WHERE m.id = ?", id).
		Scan(&k.repoID, &k.repo, &k.digest, &k.trashed, &content)
	if err != nil {
		return err
	}
	p := Push{Repo: k.repo, Digest: k.digest, Manifest: oci.Salvage(content), Content: content}
	links, err := resolveBlobs(tx, k.repoID, p, p.refs())
	if err != nil {
		return err
	}
	if grown, err := writeEdges(tx, k.repoID, id, !k.trashed, links, p.wanted()); err != nil || !grown || k.trashed {
		return err
	}
	_, err = s.settleKin(tx, k, budget, nil)
	return err
}

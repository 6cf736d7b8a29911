package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Trash lists the trash, newest first, n items at most (n < 0: all); pattern
// selects repositories, "" all of them.
func (s *Store) Trash(ctx context.Context, pattern string, n int) ([]TrashItem, error) {
	var items []TrashItem
	err := s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		items = []TrashItem{}
		scope, err := repoScope(tx, pattern)
		if err != nil {
			return err
		}
		return tx.All(func(rows *sql.Rows) error {
			var it TrashItem
			var at int64
			var tags string
			var lease LeaseHold
			if err := rows.Scan(&it.Repo, &it.Digest, &it.MediaType, &tags, &it.Size, &at, &it.Reason, &it.Actor, &lease); err != nil {
				return err
			}
			it.TrashedAt, it.Holder = Time(at), lease.Holder
			if err := json.Unmarshal([]byte(tags), &it.Tags); err != nil {
				return err
			}
			items = append(items, it)
			return nil
		}, `SELECT r.name, m.digest, m.media_type, t.tags,
				m.size + coalesce((SELECT sum(b.size) FROM manifest_blobs e JOIN links l ON l.id = e.link_id JOIN blobs b ON b.id = l.blob_id
					WHERE e.manifest_id = m.id AND NOT EXISTS (SELECT 1 FROM links ol WHERE ol.blob_id = b.id AND ol.id <> l.id) AND NOT `+livingEdge+`), 0),
				t.trashed_at, t.reason, t.actor, `+manifestLease+`
			FROM trash t JOIN manifests m ON m.id = t.manifest_id JOIN repositories r ON r.id = m.repo_id
			WHERE (? OR m.repo_id IN (SELECT a FROM `+sqldb.Each+`)) ORDER BY t.trashed_at DESC, m.id DESC LIMIT ?`,
			tx.Now(), scope.all, scope.list(), n)
	})
	if err != nil {
		return nil, fmt.Errorf("list the trash: %w", err)
	}
	return items, nil
}

// Restore brings a manifest back from the trash, with its tags where these
// names are free, and with those of its children and referrers that went because
// something above them did. Errors: NotFound where it is not in the trash, Conflict where bytes that
// it needs are gone.
func (s *Store) Restore(ctx context.Context, repo oci.Name, d oci.Digest, actor string) (Restored, error) {
	var out Restored
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		out = Restored{Repo: repo, Digest: d, Tags: []string{}, TagsTaken: []string{}, Along: []oci.Digest{}}
		repoID, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		queue := []oci.Digest{d}
		for i := 0; i < len(queue); i++ {
			id, err := s.restoreOne(tx, repo, repoID, queue[i], actor, &out)
			if err != nil {
				return err
			}
			if id == 0 && i == 0 {
				return fault.New(fault.NotFound, "manifest %s of %s is not in the trash", d, repo).WithCode(oci.CodeManifestUnknown)
			}
			// What went because something above it did comes back with this one.
			if err := tx.All(scanInto(&queue), `SELECT m.digest FROM manifest_children c CROSS JOIN manifests m ON m.repo_id = c.repo_id AND m.digest = c.child_digest
					CROSS JOIN trash t ON t.manifest_id = m.id WHERE c.manifest_id = ?1 AND t.cause <> ''
				UNION SELECT m.digest FROM manifests m CROSS JOIN trash t ON t.manifest_id = m.id
					WHERE m.repo_id = ?2 AND m.subject = ?3 AND t.cause <> ''`, id, repoID, string(queue[i])); err != nil {
				return err
			}
			if i > 0 && id != 0 {
				out.Along = append(out.Along, queue[i])
			}
		}
		return nil
	})
	if err != nil {
		return Restored{}, fmt.Errorf("restore %s of %s: %w", d, repo, err)
	}
	return out, nil
}

func (s *Store) restoreOne(tx *sqldb.Tx, repo oci.Name, repoID int64, d oci.Digest, actor string, out *Restored) (id int64, err error) {
	var size int64
	var names string
	err = tx.Row(`SELECT m.id, m.size, t.tags FROM manifests m JOIN trash t ON t.manifest_id = m.id WHERE m.repo_id = ? AND m.digest = ?`,
		repoID, string(d)).Scan(&id, &size, &names)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var lost []string
	if err := tx.All(scanInto(&lost), `SELECT b.digest FROM manifest_blobs e JOIN links l ON l.id = e.link_id JOIN blobs b ON b.id = l.blob_id
		WHERE e.manifest_id = ? AND b.lost_at IS NOT NULL`, id); err != nil {
		return 0, err
	}
	if lost != nil {
		return 0, fault.New(fault.Conflict, "the bytes of %d blobs that %s needs are missing from the storage; push them again, then restore", len(lost), d).WithDetail(lost)
	}
	if _, err := tx.Exec("UPDATE manifests SET trashed_at = NULL, touched_at = max(touched_at, ?), version = version + 1 WHERE id = ?", tx.Now(), id); err != nil {
		return 0, err
	}
	if err := outOfTrash(tx, id); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(`UPDATE links SET hidden = 0, touched_at = max(touched_at, ?), version = version + 1
		WHERE id IN (SELECT link_id FROM manifest_blobs WHERE manifest_id = ?)`, tx.Now(), id); err != nil {
		return 0, err
	}
	if err := s.restoreTags(tx, repo, repoID, id, names, out); err != nil {
		return 0, err
	}
	if err := s.dropBlobsOf(tx, repo, id); err != nil {
		return 0, err
	}
	kin, err := looseKinOf(tx, repoID, id, d)
	if err != nil {
		return 0, err
	}
	if err := s.settle(tx, repo, append(kin, id)); err != nil {
		return 0, err
	}
	return id, logDeletions(tx, 0, actor, []Deletion{{Kind: "manifest", Act: "restored", Repo: string(repo), Digest: string(d), Bytes: size, Reason: "restored from the trash"}})
}

func (s *Store) restoreTags(tx *sqldb.Tx, repo oci.Name, repoID, id int64, names string, out *Restored) error {
	var tags []string
	if err := json.Unmarshal([]byte(names), &tags); err != nil {
		return err
	}
	for _, t := range tags {
		n, err := tx.Exec("INSERT OR IGNORE INTO tags (repo_id, name, manifest_id, updated_at) VALUES (?, ?, ?, ?)", repoID, t, id, tx.Now())
		switch {
		case err != nil:
			return err
		case n == 0:
			out.TagsTaken = append(out.TagsTaken, t)
		default:
			out.Tags = append(out.Tags, t)
			s.dropManifests(tx, repo, t)
			s.dropTags(tx, repo)
		}
	}
	return nil
}

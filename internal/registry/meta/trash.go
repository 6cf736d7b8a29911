package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// TrashPage selects items of the trash.
type TrashPage struct {
	Pattern string // of repositories; "" = all
	N       int    // items at most; < 0: all
	After   TrashCursor
}

// TrashCursor is a place in the trash; the zero value is its beginning.
type TrashCursor struct {
	At int64 // trashed_at, ms
	ID int64
}

// Trash lists the trash, newest first, and returns where the next page begins,
// or the zero cursor at the end. Only the rows that it returns are evaluated, and
// it looks at listChunk others at most in one go.
func (s *Store) Trash(ctx context.Context, p TrashPage) (items []TrashItem, next TrashCursor, err error) {
	items = []TrashItem{}
	scope, err := s.RepoScope(ctx, p.Pattern)
	if err != nil {
		return nil, TrashCursor{}, err
	}
	at := p.After
	if at == (TrashCursor{}) {
		at = TrashCursor{At: math.MaxInt64, ID: math.MaxInt64}
	}
	for {
		var last TrashCursor
		err := s.db.ListSnapshot(ctx, func(tx *sqldb.Tx) error {
			ids, end, err := trashIDs(tx, scope, at, p.N-len(items))
			if err != nil {
				return err
			}
			last = end
			return tx.All(scanTrashItem(&items), trashItems, tx.Now(), sqldb.List(ids))
		})
		switch {
		case err != nil:
			return nil, TrashCursor{}, fmt.Errorf("list the trash: %w", err)
		case last == TrashCursor{}, p.N >= 0 && len(items) >= p.N:
			return items, last, nil
		}
		at = last
	}
}

// trashIDs finds n manifests of the scope below a place in the trash (n < 0: as
// many as it looks at), and returns where to go on.
func trashIDs(tx *sqldb.Tx, scope Scope, at TrashCursor, n int) (ids []int64, next TrashCursor, err error) {
	looked, limit := 0, listChunk
	if n >= 0 && scope.all {
		limit = min(limit, n)
	}
	query, args := `SELECT t.trashed_at, t.manifest_id, m.repo_id FROM trash t CROSS JOIN manifests m ON m.id = t.manifest_id
		WHERE (t.trashed_at, t.manifest_id) < (?, ?) ORDER BY t.trashed_at DESC, t.manifest_id DESC LIMIT ?`, []any{at.At, at.ID, limit}
	if len(scope.ids) == 1 {
		query = `SELECT m.trashed_at, m.id, m.repo_id FROM manifests m INDEXED BY manifests_state
			WHERE m.repo_id = ? AND m.trashed_at IS NOT NULL AND (m.trashed_at, m.id) < (?, ?) ORDER BY m.trashed_at DESC, m.id DESC LIMIT ?`
		args = append([]any{scope.ids[0]}, args...)
	}
	err = tx.All(func(rows *sql.Rows) error {
		var c TrashCursor
		var repo int64
		if err := rows.Scan(&c.At, &c.ID, &repo); err != nil {
			return err
		}
		looked++
		if n >= 0 && len(ids) == n {
			return nil // next stays at the last one that is listed
		}
		next = c
		if scope.Has(repo) {
			ids = append(ids, c.ID)
		}
		return nil
	}, query, args...)
	if looked < limit && (n < 0 || len(ids) < n) {
		next = TrashCursor{}
	}
	return ids, next, err
}

const trashItems = `SELECT r.name, m.digest, m.media_type, t.tags,
		m.size + coalesce((SELECT sum(b.size) FROM manifest_blobs e JOIN links l ON l.id = e.link_id JOIN blobs b ON b.id = l.blob_id
			WHERE e.manifest_id = m.id AND NOT EXISTS (SELECT 1 FROM links ol WHERE ol.blob_id = b.id AND ol.id <> l.id) AND NOT ` + livingEdge + `), 0),
		t.trashed_at, t.reason, t.actor, ` + manifestLease + `
	FROM ` + sqldb.Each + ` i CROSS JOIN trash t ON t.manifest_id = i.a CROSS JOIN manifests m ON m.id = t.manifest_id CROSS JOIN repositories r ON r.id = m.repo_id`

func scanTrashItem(items *[]TrashItem) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
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
		*items = append(*items, it)
		return nil
	}
}

// Restore brings a manifest back from the trash, with its tags where these
// names are free, with all of its children, and with the
// referrers that went because what is above them did: an index without a child
// cannot be pulled, and a referrer that a client deleted is not missed. What of
// these cannot be restored is reported. Errors: NotFound where it is not in the
// trash, Conflict where bytes that it needs itself are gone.
func (s *Store) Restore(ctx context.Context, repo oci.Name, d oci.Digest, actor string) (Restored, error) {
	var out Restored
	err := s.afterKin(ctx, s.db.Relieve, func(tx *sqldb.Tx) error {
		out = Restored{Repo: repo, Digest: d, Tags: []string{}, TagsTaken: []string{}, Along: []oci.Digest{}, NotRestored: []NotRestored{}}
		repoID, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		if err := noOrphansToCome(tx, repoID); err != nil {
			return err
		}
		queue := []oci.Digest{d}
		for i := 0; i < len(queue); i++ {
			id, err := s.restoreOne(tx, repo, repoID, queue[i], actor, &out)
			switch {
			case i > 0 && errors.Is(err, fault.Conflict):
				out.NotRestored = append(out.NotRestored, NotRestored{queue[i], fault.Public(err).Public})
				continue
			case err != nil:
				return err
			case id == 0 && i == 0:
				return fault.New(fault.NotFound, "manifest %s of %s is not in the trash", d, repo).WithCode(oci.CodeManifestUnknown)
			case id == 0:
				continue // named twice
			case i > 0:
				out.Along = append(out.Along, queue[i])
			}
			if err := restoreNext(tx, repo, repoID, id, queue[i], &queue, &out); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.followUp(ctx, s.db.Relieve)
	}
	if err != nil {
		return Restored{}, fmt.Errorf("restore %s of %s: %w", d, repo, err)
	}
	return out, nil
}

// restoreNext lists what comes back with a manifest that was restored, and
// notes those of its children that were removed for good. A child that the
// repository never had is not among these.
func restoreNext(tx *sqldb.Tx, repo oci.Name, repoID, id int64, d oci.Digest, queue *[]oci.Digest, out *Restored) error {
	if err := tx.All(scanInto(queue), `SELECT m.digest FROM manifest_children c CROSS JOIN manifests m ON m.repo_id = c.repo_id AND m.digest = c.child_digest
			CROSS JOIN trash t ON t.manifest_id = m.id WHERE c.manifest_id = ?1
		UNION SELECT m.digest FROM manifests m CROSS JOIN trash t ON t.manifest_id = m.id
			WHERE m.repo_id = ?2 AND m.subject = ?3 AND t.cause <> ''`, id, repoID, string(d)); err != nil {
		return err
	}
	var gone []oci.Digest
	err := tx.All(scanInto(&gone), `SELECT c.child_digest FROM manifest_children c WHERE c.manifest_id = ?1
		AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.repo_id = ?2 AND m.digest = c.child_digest)
		AND EXISTS (SELECT 1 FROM deletions l WHERE l.digest = c.child_digest AND l.repo = ?3 AND l.kind = 'manifest' AND l.act = 'removed')`,
		id, repoID, string(repo))
	for _, child := range gone {
		out.NotRestored = append(out.NotRestored, NotRestored{child, "it was removed for good; push it again"})
	}
	return err
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
	if err := s.unstrand(tx, repo, repoID, d); err != nil {
		return 0, err
	}
	if err := s.dropBlobsOf(tx, repo, id); err != nil {
		return 0, err
	}
	if err := s.settle(tx, repo, []int64{id}); err != nil {
		return 0, err
	}
	if _, err := s.settleKin(tx, kinship{id: id, repoID: repoID, repo: repo, digest: d}); err != nil {
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
			if err := s.strandTags(tx, repo, repoID, id, []oci.Tag{oci.Tag(t)}); err != nil {
				return err
			}
		}
	}
	return nil
}

package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

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
//
// The first transaction brings back the manifest and the first of what is below it,
// further ones the rest (R5). If these fail or the process ends, a call for the same
// manifest goes on, and so does the next run; meanwhile nothing of the repository
// leaves the trash for good.
func (s *Store) Restore(ctx context.Context, repo oci.Name, d oci.Digest, actor string) (Restored, error) {
	var out Restored
	var root int64
	var more bool
	leave := func() {
		if root != 0 {
			s.roots.remove(root)
			root = 0
		}
	}
	defer func() { leave() }()
	err := s.afterKin(ctx, s.db.Relieve, func(tx *sqldb.Tx) error {
		leave() // of a former try
		out = Restored{Repo: repo, Digest: d, Tags: []string{}, TagsTaken: []string{}, Along: []oci.Digest{}, NotRestored: []NotRestored{}}
		repoID, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		if err := noOrphansToCome(tx, repoID); err != nil {
			return err
		}
		id, unfinished, err := s.restoreRoot(tx, repo, repoID, d, actor, &out)
		if err != nil {
			return err
		}
		root = id
		s.roots.add(root)
		budget := kinMax
		if unfinished {
			more, err = s.stepRoot(tx, root, &budget, &out)
			return err
		}
		more, err = s.settleKin(tx, kinship{id: id, repoID: repoID, repo: repo, digest: d, mode: kinRestore, root: root, actor: actor}, &budget, &out)
		return err
	})
	if err == nil && more {
		err = s.finishRoot(ctx, s.db.Relieve, root, &out)
	}
	if err != nil {
		return Restored{}, fmt.Errorf("restore %s of %s: %w", d, repo, err)
	}
	named := map[oci.Digest]bool{}
	out.NotRestored = slices.DeleteFunc(out.NotRestored, func(n NotRestored) bool {
		twice := named[n.Digest] // by two indexes
		named[n.Digest] = true
		return twice
	})
	return out, nil
}

// restoreRoot restores one manifest without its kin. unfinished reports that it was
// restored before and its kin were not yet.
func (s *Store) restoreRoot(tx *sqldb.Tx, repo oci.Name, repoID int64, d oci.Digest, actor string, out *Restored) (id int64, unfinished bool, err error) {
	it := trashedItem{digest: d}
	err = tx.Row("SELECT m.id, m.size, t.tags FROM manifests m JOIN trash t ON t.manifest_id = m.id WHERE m.repo_id = ? AND m.digest = ?", repoID, string(d)).
		Scan(&it.id, &it.size, &it.tags)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.Row("SELECT k.root FROM kin k CROSS JOIN manifests m ON m.id = k.root WHERE k.repo_id = ? AND m.digest = ? AND m.trashed_at IS NULL AND k.mode = ? LIMIT 1", repoID, string(d), kinRestore).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			err = fault.New(fault.NotFound, "manifest %s of %s is not in the trash", d, repo).WithCode(oci.CodeManifestUnknown)
		}
		return id, true, err
	}
	if err != nil {
		return 0, false, err
	}
	_, lost, err := edgesOf(tx, it.id)
	if err != nil {
		return 0, false, err
	}
	if lost != nil {
		return 0, false, fault.New(fault.Conflict, "%s", bytesMissing(it, lost)).WithDetail(lost)
	}
	return it.id, false, s.revive(tx, &kinship{repoID: repoID, repo: repo, mode: kinRestore, actor: actor}, []trashedItem{it}, out)
}

func bytesMissing(it trashedItem, lost []string) string {
	return fmt.Sprintf("the bytes of %d blobs that %s needs are missing from the storage; push them again, then restore", len(lost), it.digest)
}

// trashedItem is a manifest in the trash.
type trashedItem struct {
	id, size int64
	digest   oci.Digest
	tags     string // JSON
}

// restoredEdges is how many references to blobs a transaction restores at most, beyond
// those of one manifest.
const restoredEdges = 2000

// edgesOf counts the blobs of a manifest and lists those whose bytes are missing.
func edgesOf(tx *sqldb.Tx, id int64) (n int, lost []string, err error) {
	err = tx.All(func(rows *sql.Rows) error {
		var d string
		var isLost bool
		err := rows.Scan(&d, &isLost)
		if n++; isLost {
			lost = append(lost, d)
		}
		return err
	}, `SELECT b.digest, b.lost_at IS NOT NULL FROM manifest_blobs e CROSS JOIN links l ON l.id = e.link_id CROSS JOIN blobs b ON b.id = l.blob_id
		WHERE e.manifest_id = ?`, id)
	return n, lost, err
}

// restoreItems restores kin of k, and notes their own. done is how many it has dealt
// with: those that cannot be restored are reported. edges is how many references to
// blobs these have.
func (s *Store) restoreItems(tx *sqldb.Tx, k *kinship, items []trashedItem, out *Restored) (done, edges int, err error) {
	if out == nil {
		out = &Restored{}
	}
	var whole []trashedItem
	var ids []int64
	for ; done < len(items) && edges < restoredEdges; done++ {
		it := items[done]
		n, lost, err := edgesOf(tx, it.id)
		if err != nil {
			return 0, 0, err
		}
		edges += n
		if lost != nil {
			out.NotRestored = append(out.NotRestored, NotRestored{it.digest, bytesMissing(it, lost)})
			continue
		}
		whole, ids = append(whole, it), append(ids, it.id)
		out.Along = append(out.Along, it.digest)
	}
	if len(whole) == 0 {
		return done, edges, nil
	}
	k.queued = true
	if err := s.revive(tx, k, whole, out); err != nil {
		return 0, 0, err
	}
	return done, edges, s.queueKinOf(tx, kinship{repoID: k.repoID, mode: k.mode, root: k.root, actor: k.actor}, sqldb.List(ids))
}

// revive restores manifests of k's repository as they were, and confirms them.
func (s *Store) revive(tx *sqldb.Tx, k *kinship, items []trashedItem, out *Restored) error {
	reason := "restored from the trash"
	if k.mode == kinPush {
		reason = "an index that names it was pushed"
	}
	ids := make([]int64, len(items))
	log := make([]Deletion, len(items))
	digests := make([]oci.Digest, len(items))
	for i, it := range items {
		ids[i], digests[i] = it.id, it.digest
		log[i] = Deletion{Kind: "manifest", Act: "restored", Repo: string(k.repo), Digest: string(it.digest), Bytes: it.size, Reason: reason}
	}
	list := sqldb.List(ids)
	if _, err := tx.Exec("UPDATE manifests SET trashed_at = NULL, touched_at = max(touched_at, ?), version = version + 1 WHERE id IN (SELECT a FROM "+sqldb.Each+")", tx.Now(), list); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := endTrash(tx, list); err != nil {
		return err
	}
	var hidden []int64
	if err := tx.All(scanInto(&hidden), `SELECT l.id FROM `+sqldb.Each+` i CROSS JOIN manifest_blobs e ON e.manifest_id = i.a CROSS JOIN links l ON l.id = e.link_id
		WHERE l.hidden = 1`, list); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if _, err := tx.Exec(`UPDATE links SET hidden = 0, touched_at = max(touched_at, ?), version = version + 1
		WHERE id IN (SELECT link_id FROM manifest_blobs WHERE manifest_id IN (SELECT a FROM `+sqldb.Each+`))`, tx.Now(), list); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := bindWaiting(tx, hidden); err != nil {
		return err
	}
	for _, it := range items {
		if k.mode != kinRestore {
			break
		}
		if err := s.restoreTags(tx, k.repo, k.repoID, it.id, it.tags, out); err != nil {
			return err
		}
	}
	if err := s.unstrand(tx, k.repo, k.repoID, digests...); err != nil {
		return err
	}
	if err := s.dropBlobsOf(tx, k.repo, ids...); err != nil {
		return err
	}
	if err := s.settle(tx, k.repo, ids); err != nil {
		return err
	}
	return logDeletions(tx, 0, k.actor, log)
}

// endTrash brings the references of manifests back to life.
func endTrash(tx *sqldb.Tx, list string) error {
	if _, err := tx.Exec("DELETE FROM trash WHERE manifest_id IN (SELECT a FROM "+sqldb.Each+")", list); err != nil {
		return fmt.Errorf("take out of the trash: %w", err)
	}
	if _, err := tx.Exec("UPDATE manifest_blobs SET living = 1 WHERE living = 0 AND manifest_id IN (SELECT a FROM "+sqldb.Each+")", list); err != nil {
		return fmt.Errorf("take out of the trash: %w", err)
	}
	return nil
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

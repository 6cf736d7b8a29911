package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// blobEntry is what the cache knows of a visible link.
type blobEntry struct {
	Blob
	linkID    int64
	safe      bool   // a living manifest of the repository needs it: nobody will collect it
	touchedAt int64  // of the link
	seen      uint64 // commit that must be durable before it is promised
}

// Conditions on links and manifests that several statements share. l and m are
// the rows in question.
const (
	livingEdge = `EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.link_id = l.id AND e.living = 1)`
	anyEdge    = `EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.link_id = l.id)`
)

func (s *Store) lookupBlob(ctx context.Context, repo oci.Name, d oci.Digest) (*blobEntry, error) {
	key := cacheKey(repo, d)
	e, ok, token := s.blobs.get(key)
	if ok {
		return e, nil
	}
	e = &blobEntry{Blob: Blob{Digest: d}}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row(`SELECT l.id, b.size, b.key, l.touched_at, `+livingEdge+`
			FROM repositories r JOIN blobs b ON b.digest = ?2 JOIN links l ON l.repo_id = r.id AND l.blob_id = b.id
			WHERE r.name = ?1 AND l.hidden = 0 AND b.lost_at IS NULL`, string(repo), string(d)).
			Scan(&e.linkID, &e.Size, &e.Key, &e.touchedAt, &e.safe)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, blobUnknown(repo, d)
	}
	if err != nil {
		return nil, fmt.Errorf("look up blob %s in %s: %w", d, repo, err)
	}
	e.seen = s.db.Seen()
	s.blobs.put(key, e, token)
	return e, nil
}

// Blob looks up a blob for reading; the answer confirms nothing. The error is
// NotFound with BLOB_UNKNOWN where the repository does not serve it.
func (s *Store) Blob(ctx context.Context, repo oci.Name, d oci.Digest) (Blob, error) {
	e, err := s.lookupBlob(ctx, repo, d)
	if err != nil {
		return Blob{}, err
	}
	return e.Blob, nil
}

// ConfirmBlob looks up a blob for a client that may rely on the answer and not
// upload it (R3). That costs a write only where the blob could be collected.
func (s *Store) ConfirmBlob(ctx context.Context, repo oci.Name, d oci.Digest) (Blob, error) {
	for {
		e, err := s.lookupBlob(ctx, repo, d)
		if err != nil {
			return Blob{}, err
		}
		if e.safe || e.touchedAt > s.db.Now() {
			if err := s.db.Durable(ctx, e.seen); err != nil {
				return Blob{}, fmt.Errorf("confirm blob %s in %s: %w", d, repo, err)
			}
			return e.Blob, nil
		}
		var gone bool
		err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
			n, err := tx.Exec("UPDATE links SET touched_at = max(touched_at, ?), version = version + 1 WHERE id = ? AND hidden = 0", tx.Now()+ConfirmAhead, e.linkID)
			gone = n == 0
			s.dropBlobs(tx, repo, d)
			return err
		})
		if err != nil {
			return Blob{}, fmt.Errorf("confirm blob %s in %s: %w", d, repo, err)
		}
		if !gone {
			return e.Blob, nil
		}
		// It went between the lookup and the write: the answer is a new lookup's.
	}
}

func (s *Store) dropBlobs(tx *sqldb.Tx, repo oci.Name, ds ...oci.Digest) {
	tx.OnCommit(func() {
		for _, d := range ds {
			s.blobs.drop(cacheKey(repo, d))
		}
	})
}

// MountBlob has repo serve a blob that from serves; from "" stands for any
// repository. The error is NotFound where there is none.
func (s *Store) MountBlob(ctx context.Context, repo, from oci.Name, d oci.Digest) (Blob, error) {
	b := Blob{Digest: d}
	// Asked before the write so that a mount that cannot succeed makes nothing.
	if from != "" {
		if _, err := s.lookupBlob(ctx, from, d); err != nil {
			return Blob{}, err
		}
	}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		var id int64
		// By either way it looks at one link: a base layer is in every repository.
		query, args := `SELECT b.id, b.size, b.key FROM blobs b WHERE b.digest = ? AND b.lost_at IS NULL
			AND EXISTS (SELECT 1 FROM links l WHERE l.blob_id = b.id AND l.hidden = 0)`, []any{string(d)}
		if from != "" {
			query, args = `SELECT b.id, b.size, b.key FROM repositories r CROSS JOIN blobs b ON b.digest = ? CROSS JOIN links l ON l.repo_id = r.id AND l.blob_id = b.id
				WHERE r.name = ? AND b.lost_at IS NULL AND l.hidden = 0`, []any{string(d), string(from)}
		}
		err := tx.Row(query, args...).Scan(&id, &b.Size, &b.Key)
		if errors.Is(err, sql.ErrNoRows) {
			return blobUnknown(from, d)
		}
		if err != nil {
			return err
		}
		repoID, err := ensureRepo(tx, repo)
		if err != nil {
			return err
		}
		return s.linkBlob(tx, repo, repoID, id, d, "mounted")
	})
	if err != nil {
		return Blob{}, fmt.Errorf("mount %s from %q into %s: %w", d, from, repo, err)
	}
	return b, nil
}

// linkBlob makes repo serve a blob, confirmed now. Unless a living manifest
// needs it, it is put up for review.
func (s *Store) linkBlob(tx *sqldb.Tx, repo oci.Name, repoID, blobID int64, d oci.Digest, event string) error {
	s.dropBlobs(tx, repo, d)
	var link int64
	err := tx.Row(`INSERT INTO links (repo_id, blob_id, touched_at) VALUES (?, ?, ?)
		ON CONFLICT (repo_id, blob_id) DO UPDATE SET hidden = 0, version = version + 1, touched_at = max(touched_at, excluded.touched_at)
		RETURNING id`, repoID, blobID, tx.Now()).Scan(&link)
	if err != nil {
		return fmt.Errorf("link blob: %w", err)
	}
	if _, err := tx.Exec("DELETE FROM reviews WHERE kind = 'blob' AND target = ?", blobID); err != nil {
		return err
	}
	if err := bindWaiting(tx, []int64{link}); err != nil {
		return err
	}
	_, err = reviewLinks(tx, []int64{link}, event, 0)
	return err
}

// bindWaiting binds links that come to be served to the manifests that name their blobs
// and may have come before them: an index of layers, a type whose blobs need not be
// here, or one whose subject is a blob.
func bindWaiting(tx *sqldb.Tx, links []int64) error {
	const place = sqldb.Each + ` i CROSS JOIN links l ON l.id = i.a CROSS JOIN blobs b ON b.id = l.blob_id`
	const living = `m.trashed_at IS NULL OR EXISTS (SELECT 1 FROM staged x WHERE x.manifest_id = m.id)`
	for _, waiting := range []string{
		`SELECT m.id, l.id, ` + living + ` FROM ` + place + ` CROSS JOIN manifest_children c ON c.repo_id = l.repo_id AND c.child_digest = b.digest CROSS JOIN manifests m ON m.id = c.manifest_id`,
		`SELECT m.id, l.id, ` + living + ` FROM ` + place + ` CROSS JOIN manifests m INDEXED BY manifests_subject ON m.repo_id = l.repo_id AND m.subject = b.digest`,
	} {
		if _, err := tx.Exec("INSERT OR IGNORE INTO manifest_blobs (manifest_id, link_id, living) "+waiting+" WHERE true", sqldb.List(links)); err != nil {
			return fmt.Errorf("bind manifests that wait for the blob: %w", err)
		}
	}
	return nil
}

// reviewLinks puts those of the links up for review that no manifest, living
// or trashed, needs. The review's time is that of the link, so that the window
// counts from its last confirmation or loss and not from now (R3). n is how
// many there are.
func reviewLinks(tx *sqldb.Tx, links []int64, event string, run int64) (n int64, err error) {
	if len(links) == 0 {
		return 0, nil
	}
	n, err = tx.Exec(`INSERT INTO reviews (kind, target, repo_id, event_at, event, run_id)
		SELECT 'link', l.id, l.repo_id, l.touched_at, ?, nullif(?, 0) FROM `+sqldb.Each+` i CROSS JOIN links l ON l.id = i.a
		WHERE NOT `+anyEdge+`
		ON CONFLICT (kind, target) DO UPDATE SET event_at = excluded.event_at, event = excluded.event,
			run_id = excluded.run_id, version = version + 1`, event, run, sqldb.List(links))
	if err != nil {
		return 0, fmt.Errorf("put links up for review: %w", err)
	}
	return n, nil
}

// DeleteBlob has repo serve the blob no longer. The error is Conflict where a
// living manifest of the repository needs it (R1), NotFound where it is not
// served. A manifest in the trash that may want it back keeps the bytes.
func (s *Store) DeleteBlob(ctx context.Context, repo oci.Name, d oci.Digest, actor string) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		var link, size int64
		var needed bool
		err := tx.Row(`SELECT l.id, b.size, `+livingEdge+`
			FROM repositories r JOIN blobs b ON b.digest = ?2 JOIN links l ON l.repo_id = r.id AND l.blob_id = b.id
			WHERE r.name = ?1 AND l.hidden = 0`, string(repo), string(d)).Scan(&link, &size, &needed)
		if errors.Is(err, sql.ErrNoRows) {
			return blobUnknown(repo, d)
		}
		if err != nil {
			return err
		}
		if needed {
			return fault.New(fault.Conflict, "blob %s is needed by a manifest of %s; delete the manifest first", d, repo).WithCode(oci.CodeDenied)
		}
		s.dropBlobs(tx, repo, d)
		if _, err := tx.Exec("UPDATE links SET hidden = 1, version = version + 1, touched_at = max(touched_at, ?) WHERE id = ?", tx.Now(), link); err != nil {
			return err
		}
		if err := logDeletions(tx, 0, actor, []Deletion{{Kind: "link", Act: "removed", Repo: string(repo), Digest: string(d), Bytes: size, Reason: "deleted by a client"}}); err != nil {
			return err
		}
		_, err = reviewLinks(tx, []int64{link}, "deleted by a client", 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete blob %s from %s: %w", d, repo, err)
	}
	return nil
}

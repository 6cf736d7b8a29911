package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

func uploadUnknown(repo oci.Name, id string) error {
	return fault.New(fault.NotFound, "repository %s has no upload %q; it may have been finished, cancelled or abandoned", repo, id).WithCode(oci.CodeBlobUploadUnknown)
}

// CreateUpload begins an upload session. The row is there when it returns, so
// that whatever bytes come under its key have an owner. Only a loss of power
// can take it back, and then a check finds what bytes may be left.
func (s *Store) CreateUpload(ctx context.Context, repo oci.Name, algorithm string) (Upload, error) {
	return s.CreateUploadAs(ctx, repo, algorithm, uuid.NewString())
}

// CreateUploadAs is CreateUpload for a caller that must know the session before
// the collector can see it. id is a UUID that was never used.
func (s *Store) CreateUploadAs(ctx context.Context, repo oci.Name, algorithm, id string) (Upload, error) {
	u := Upload{ID: id, Repo: repo, Key: "blobs/" + id[:2] + "/" + id, Algorithm: algorithm, Version: 1}
	err := s.db.Note(ctx, func(tx *sqldb.Tx) error {
		repoID, err := ensureRepo(tx, repo)
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO uploads (id, repo_id, key, algorithm, created_at, touched_at) VALUES (?, ?, ?, ?, ?, ?)",
			u.ID, repoID, u.Key, u.Algorithm, tx.Now(), tx.Now())
		return err
	})
	if err != nil {
		return Upload{}, fmt.Errorf("create upload in %s: %w", repo, err)
	}
	return u, nil
}

// Upload returns a session. The error is NotFound with BLOB_UPLOAD_UNKNOWN
// where repo has none of that id.
func (s *Store) Upload(ctx context.Context, repo oci.Name, id string) (Upload, error) {
	u := Upload{ID: id, Repo: repo}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row(`SELECT u.key, u.algorithm, u.size, u.whole, u.hash_state, u.version FROM uploads u JOIN repositories r ON r.id = u.repo_id
			WHERE u.id = ? AND r.name = ?`, id, string(repo)).Scan(&u.Key, &u.Algorithm, &u.Size, &u.Whole, &u.HashState, &u.Version)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Upload{}, uploadUnknown(repo, id)
	}
	if err != nil {
		return Upload{}, fmt.Errorf("look up upload %s in %s: %w", id, repo, err)
	}
	return u, nil
}

// OpenUpload returns a session to a request that will write, in a version of
// its own: what a collector judged before is another one, so that its claim is
// lost. The error is NotFound with BLOB_UPLOAD_UNKNOWN where repo has none of
// that id.
func (s *Store) OpenUpload(ctx context.Context, repo oci.Name, id string) (Upload, error) {
	u := Upload{ID: id, Repo: repo}
	err := s.db.Note(ctx, func(tx *sqldb.Tx) error {
		err := tx.Row(`UPDATE uploads SET touched_at = max(touched_at, ?), version = version + 1
			WHERE id = ? AND repo_id = (SELECT id FROM repositories WHERE name = ?)
			RETURNING key, algorithm, size, whole, hash_state, version`, tx.Now(), id, string(repo)).Scan(&u.Key, &u.Algorithm, &u.Size, &u.Whole, &u.HashState, &u.Version)
		if errors.Is(err, sql.ErrNoRows) {
			return uploadUnknown(repo, id)
		}
		return err
	})
	if err != nil {
		return Upload{}, fmt.Errorf("open upload %s in %s: %w", id, repo, err)
	}
	return u, nil
}

// AdvanceUpload records that the first size bytes are durable, and u.Whole, and
// returns the session's new version. The error is Conflict when u is not the session's
// present state. A loss of power may take the record back to an earlier one;
// the client goes on from there.
func (s *Store) AdvanceUpload(ctx context.Context, u Upload, size int64, hashState []byte) (int64, error) {
	err := s.db.Note(ctx, func(tx *sqldb.Tx) error {
		return advanceUpload(tx, u, size, hashState)
	})
	if err != nil {
		return 0, fmt.Errorf("advance upload %s: %w", u.ID, err)
	}
	return u.Version + 1, nil
}

// RestartUpload has a session begin at 0 again and returns its new version. It
// is on disk when it returns: no loss of power may bring back a record of bytes
// that the caller is about to cut off. The error is Conflict when u is not the
// session's present state.
func (s *Store) RestartUpload(ctx context.Context, u Upload) (int64, error) {
	u.Whole = false
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error { return advanceUpload(tx, u, 0, nil) })
	if err != nil {
		return 0, fmt.Errorf("restart upload %s: %w", u.ID, err)
	}
	return u.Version + 1, nil
}

func advanceUpload(tx *sqldb.Tx, u Upload, size int64, hashState []byte) error {
	n, err := tx.Exec("UPDATE uploads SET size = ?, whole = ?, hash_state = ?, touched_at = ?, version = version + 1 WHERE id = ? AND version = ?",
		size, u.Whole, hashState, tx.Now(), u.ID, u.Version)
	if err == nil && n == 0 {
		return fault.New(fault.Conflict, "upload %s was changed by another request", u.ID).WithCode(oci.CodeBlobUploadInvalid)
	}
	return err
}

// TouchUpload keeps a session alive whose transfer takes long.
func (s *Store) TouchUpload(ctx context.Context, id string) error {
	err := s.db.Note(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE uploads SET touched_at = max(touched_at, ?) WHERE id = ?", tx.Now(), id)
		return err
	})
	if err != nil {
		return fmt.Errorf("touch upload %s: %w", id, err)
	}
	return nil
}

// HeldBlob returns the size and the key of the bytes that a digest has, in
// whatever repositories; held says whether it has any.
func (s *Store) HeldBlob(ctx context.Context, d oci.Digest) (b Blob, held bool, err error) {
	b.Digest = d
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT size, key FROM blobs WHERE digest = ?", string(d)).Scan(&b.Size, &b.Key)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Blob{}, false, nil
	}
	if err != nil {
		return Blob{}, false, fmt.Errorf("look up the bytes of %s: %w", d, err)
	}
	return b, true, nil
}

// FinishUpload makes a session a blob of its repository. The caller has made
// size bytes under u.Key durable and found their digest to be d. If the blob
// exists, its own bytes stay and the session's go to the purge queue; if its
// bytes were found lost by a check, the session's take their place.
func (s *Store) FinishUpload(ctx context.Context, u Upload, d oci.Digest, size int64) (Blob, error) {
	return s.FinishUploadOver(ctx, u, d, size, "")
}

// FinishUploadOver is FinishUpload for a caller that has found the bytes under
// the key damaged to be no good. The session's take their place if the blob
// still has that key: another upload may have been faster.
func (s *Store) FinishUploadOver(ctx context.Context, u Upload, d oci.Digest, size int64, damaged string) (Blob, error) {
	b := Blob{Digest: d, Size: size}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		var repoID int64
		err := tx.Row("DELETE FROM uploads WHERE id = ? AND version = ? RETURNING repo_id", u.ID, u.Version).Scan(&repoID)
		if errors.Is(err, sql.ErrNoRows) {
			return uploadUnknown(u.Repo, u.ID)
		}
		if err != nil {
			return err
		}
		var id int64
		var lost sql.NullInt64
		err = tx.Row("SELECT id, key, lost_at FROM blobs WHERE digest = ?", string(d)).Scan(&id, &b.Key, &lost)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			b.Key = u.Key
			err = tx.Row("INSERT INTO blobs (digest, size, key, touched_at, created_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
				string(d), size, u.Key, tx.Now(), tx.Now()).Scan(&id)
		case err != nil:
		case lost.Valid, b.Key == damaged:
			actor := "upload"
			if lost.Valid {
				actor = "check"
			}
			if err = enqueuePurge(tx, purge{Key: b.Key, Digest: string(d), Size: size, Reason: "replaced by a new upload", Actor: actor}); err != nil {
				return err
			}
			b.Key = u.Key
			_, err = tx.Exec("UPDATE blobs SET key = ?, size = ?, lost_at = NULL, version = version + 1 WHERE id = ?", u.Key, size, id)
			if err == nil {
				err = s.dropBlobEverywhere(tx, id, d)
			}
		default:
			err = enqueuePurge(tx, purge{Key: u.Key, Digest: string(d), Size: size, Reason: "uploaded again", Actor: "upload"})
		}
		if err != nil {
			return err
		}
		return s.linkBlob(tx, u.Repo, repoID, id, d, "uploaded")
	})
	if err != nil {
		return Blob{}, fmt.Errorf("finish upload %s of %s: %w", u.ID, d, err)
	}
	return b, nil
}

// dropEach is how many repositories' entries of the cache are dropped one by one;
// for a blob that more have, all of it is.
const dropEach = 500

// dropBlobEverywhere drops a blob from the cache for each repository that links it.
func (s *Store) dropBlobEverywhere(tx *sqldb.Tx, id int64, d oci.Digest) error {
	var repos []oci.Name
	err := tx.All(scanInto(&repos), "SELECT r.name FROM links l JOIN repositories r ON r.id = l.repo_id WHERE l.blob_id = ? LIMIT ?", id, dropEach+1)
	if len(repos) > dropEach {
		tx.OnCommit(s.blobs.dropAll)
		return err
	}
	for _, repo := range repos {
		s.dropBlobs(tx, repo, d)
	}
	return err
}

// CancelUpload ends a session; its bytes go to the purge queue. It works on a
// full disk.
func (s *Store) CancelUpload(ctx context.Context, repo oci.Name, id, actor string) error {
	return s.CancelUploadOf(ctx, repo, id, actor, 0)
}

// CancelUploadOf is CancelUpload for a caller that knows of size bytes under
// the session's key, which may be more than the session has recorded.
func (s *Store) CancelUploadOf(ctx context.Context, repo oci.Name, id, actor string, size int64) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		p := purge{Reason: "upload cancelled", Actor: actor}
		var repoID int64
		err := tx.Row(`DELETE FROM uploads WHERE id = ? AND repo_id = (SELECT id FROM repositories WHERE name = ?)
			RETURNING key, size, repo_id`, id, string(repo)).Scan(&p.Key, &p.Size, &repoID)
		if errors.Is(err, sql.ErrNoRows) {
			return uploadUnknown(repo, id)
		}
		if err != nil {
			return err
		}
		p.Size = max(p.Size, size)
		if err := enqueuePurge(tx, p); err != nil {
			return err
		}
		// No run would look at a repository that the upload alone had made.
		return s.dropEmptyRepos(tx, []int64{repoID})
	})
	if err != nil {
		return fmt.Errorf("cancel upload %s in %s: %w", id, repo, err)
	}
	return nil
}

// DisownUpload hands a key to the purge queue whose session ended while size
// bytes were written to it. A key that a session, a blob or the queue names stays
// where it is, but the queue learns how many bytes there are.
func (s *Store) DisownUpload(ctx context.Context, key string, size int64) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO purges (key, digest, size, reason, actor, queued_at, due_at)
			SELECT ?1, '', ?3, 'its upload ended while bytes came', 'upload', ?2, ?2
			WHERE NOT EXISTS (SELECT 1 FROM uploads WHERE key = ?1) AND NOT EXISTS (SELECT 1 FROM blobs WHERE key = ?1)
			ON CONFLICT (key) DO UPDATE SET size = max(size, excluded.size)`, key, tx.Now(), size)
		return err
	})
	if err != nil {
		return fmt.Errorf("disown upload key %s: %w", key, err)
	}
	return nil
}

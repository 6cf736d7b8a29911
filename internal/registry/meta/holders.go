package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Where finds things by name, for explanations.

// ManifestAt is a manifest's place and state.
type ManifestAt struct {
	ID, RepoID int64
	Repo       oci.Name
	Digest     oci.Digest
	MediaType  string
	Trashed    bool
}

// LinkAt is a blob's place in a repository.
type LinkAt struct {
	ID     int64
	Repo   oci.Name
	Hidden bool
}

const manifestAtColumns = "SELECT m.id, m.repo_id, r.name, m.digest, m.media_type, m.trashed_at IS NOT NULL FROM manifests m JOIN repositories r ON r.id = m.repo_id "

func scanManifestAt(out *[]ManifestAt) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var m ManifestAt
		err := rows.Scan(&m.ID, &m.RepoID, &m.Repo, &m.Digest, &m.MediaType, &m.Trashed)
		*out = append(*out, m)
		return err
	}
}

// FindManifests lists the manifests with a digest, living and trashed, in one
// repository or, for repo "", in all; n at most.
func (s *Store) FindManifests(ctx context.Context, repo oci.Name, d oci.Digest, n int) (ms []ManifestAt, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(scanManifestAt(&ms), manifestAtColumns+"WHERE m.digest = ?1 AND (?2 = '' OR r.name = ?2) ORDER BY r.name LIMIT ?3", string(d), string(repo), n)
	})
	return ms, wrapFind(err)
}

// FindTag resolves a tag. The error is NotFound.
func (s *Store) FindTag(ctx context.Context, repo oci.Name, tag oci.Tag) (ManifestAt, error) {
	var ms []ManifestAt
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		if _, err := repoID(tx, repo); err != nil {
			return err
		}
		return tx.All(scanManifestAt(&ms), manifestAtColumns+"JOIN tags t ON t.manifest_id = m.id WHERE r.name = ? AND t.name = ? AND t.repo_id = r.id", string(repo), string(tag))
	})
	if err == nil && len(ms) == 0 {
		err = manifestUnknown(repo, string(tag))
	}
	if err != nil {
		return ManifestAt{}, wrapFind(err)
	}
	return ms[0], nil
}

// AtRisk lists a repository's living manifests that no tag, index or subject
// keeps, then those in the trash; n at most. The error is NotFound for an
// unknown repository.
func (s *Store) AtRisk(ctx context.Context, repo oci.Name, n int) (ms []ManifestAt, living, tags int64, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		id, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		if err := tx.Row("SELECT (SELECT count(*) FROM manifests WHERE repo_id = ?1 AND trashed_at IS NULL), (SELECT count(*) FROM tags WHERE repo_id = ?1)", id).Scan(&living, &tags); err != nil {
			return err
		}
		return tx.All(scanManifestAt(&ms), manifestAtColumns+"WHERE m.repo_id = ? AND (m.loose_at IS NOT NULL OR m.trashed_at IS NOT NULL) ORDER BY m.trashed_at IS NOT NULL, m.id DESC LIMIT ?", id, n)
	})
	return ms, living, tags, wrapFind(err)
}

// FindLinks lists where a blob is, n repositories at most. blob is 0 where
// there is none of that digest.
func (s *Store) FindLinks(ctx context.Context, repo oci.Name, d oci.Digest, n int) (ls []LinkAt, blob int64, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		err := tx.Row("SELECT id FROM blobs WHERE digest = ?", string(d)).Scan(&blob)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return tx.All(func(rows *sql.Rows) error {
			var l LinkAt
			err := rows.Scan(&l.ID, &l.Repo, &l.Hidden)
			ls = append(ls, l)
			return err
		}, "SELECT l.id, r.name, l.hidden FROM links l JOIN repositories r ON r.id = l.repo_id WHERE l.blob_id = ?1 AND (?2 = '' OR r.name = ?2) ORDER BY r.name LIMIT ?3", blob, string(repo), n)
	})
	return ls, blob, wrapFind(err)
}

// LinkUsers lists the manifests that need a link, living ones first, n at most.
func (s *Store) LinkUsers(ctx context.Context, link int64, n int) (ms []ManifestAt, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(scanManifestAt(&ms), manifestAtColumns+`JOIN manifest_blobs e ON e.manifest_id = m.id WHERE e.link_id = ?
			ORDER BY m.trashed_at IS NOT NULL, m.id LIMIT ?`, link, n)
	})
	return ms, wrapFind(err)
}

// Holders are what keeps a manifest.
type Holders struct {
	Tags    []string     // n at most
	Parents []ManifestAt // living indexes, n at most
	Subject *ManifestAt  // living
}

// Holders reads what keeps a manifest, n of a kind at most.
func (s *Store) Holders(ctx context.Context, id int64, n int) (h Holders, err error) {
	err = s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		if err := tx.All(scanInto(&h.Tags), "SELECT name FROM tags WHERE manifest_id = ? ORDER BY name LIMIT ?", id, n); err != nil {
			return err
		}
		if err := tx.All(scanManifestAt(&h.Parents), manifestAtColumns+`JOIN manifest_children c ON c.manifest_id = m.id JOIN manifests k ON k.repo_id = c.repo_id AND k.digest = c.child_digest
			WHERE k.id = ? AND m.trashed_at IS NULL ORDER BY m.id LIMIT ?`, id, n); err != nil {
			return err
		}
		var subjects []ManifestAt
		if err := tx.All(scanManifestAt(&subjects), manifestAtColumns+"JOIN manifests k ON k.repo_id = m.repo_id AND k.subject = m.digest WHERE k.id = ? AND m.trashed_at IS NULL", id); err != nil {
			return err
		}
		if len(subjects) > 0 {
			h.Subject = &subjects[0]
		}
		return nil
	})
	return h, wrapFind(err)
}

func wrapFind(err error) error {
	if err != nil {
		return fmt.Errorf("look up for an explanation: %w", err)
	}
	return nil
}

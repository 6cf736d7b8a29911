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
	Trashed    bool // it is not served
	Staged     bool // because its push is not done, and not because it was deleted
}

// LinkAt is a blob's place in a repository.
type LinkAt struct {
	ID     int64
	Repo   oci.Name
	Hidden bool
}

const manifestAtColumns = "SELECT m.id, m.repo_id, r.name, m.digest, m.media_type, m.trashed_at IS NOT NULL, EXISTS (SELECT 1 FROM staged x WHERE x.manifest_id = m.id) FROM manifests m JOIN repositories r ON r.id = m.repo_id "

func scanManifestAt(out *[]ManifestAt) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var m ManifestAt
		err := rows.Scan(&m.ID, &m.RepoID, &m.Repo, &m.Digest, &m.MediaType, &m.Trashed, &m.Staged)
		*out = append(*out, m)
		return err
	}
}

// FindManifests lists the manifests with a digest, living and trashed, in one
// repository or, for repo "", in all; n at most.
func (s *Store) FindManifests(ctx context.Context, repo oci.Name, d oci.Digest, n int) (ms []ManifestAt, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		if repo != "" {
			return tx.All(scanManifestAt(&ms), manifestAtColumns+"WHERE r.name = ? AND m.digest = ?", string(repo), string(d))
		}
		return tx.All(scanManifestAt(&ms), manifestAtColumns+"WHERE m.id IN (SELECT id FROM manifests WHERE digest = ? LIMIT ?) ORDER BY r.name", string(d), n)
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

// CountMax is where counts for people end; more is "at least so many".
const CountMax = 10_000

// AtRisk lists a repository's living manifests that no tag, index or subject
// keeps, then those in the trash, each newest first; n at most. living and tags
// count what it has, up to CountMax. The error is NotFound for an unknown
// repository.
func (s *Store) AtRisk(ctx context.Context, repo oci.Name, n int) (ms []ManifestAt, living, tags int64, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		id, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		if err := tx.Row(`SELECT (SELECT count(*) FROM (SELECT 1 FROM manifests WHERE repo_id = ?1 AND trashed_at IS NULL LIMIT ?2)),
			(SELECT count(*) FROM (SELECT 1 FROM tags WHERE repo_id = ?1 LIMIT ?2))`, id, CountMax).Scan(&living, &tags); err != nil {
			return err
		}
		if err := tx.All(scanManifestAt(&ms), manifestAtColumns+"WHERE m.id IN (SELECT id FROM manifests INDEXED BY manifests_untagged WHERE repo_id = ? AND loose_at IS NOT NULL ORDER BY id DESC LIMIT ?) ORDER BY m.id DESC", id, n); err != nil {
			return err
		}
		return tx.All(scanManifestAt(&ms), manifestAtColumns+"WHERE m.id IN (SELECT id FROM manifests INDEXED BY manifests_state WHERE repo_id = ? AND trashed_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM staged x WHERE x.manifest_id = manifests.id) ORDER BY trashed_at DESC LIMIT ?) ORDER BY m.trashed_at DESC, m.id DESC", id, n-len(ms))
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
		scan := func(rows *sql.Rows) error {
			var l LinkAt
			err := rows.Scan(&l.ID, &l.Repo, &l.Hidden)
			ls = append(ls, l)
			return err
		}
		if repo != "" {
			return tx.All(scan, "SELECT l.id, r.name, l.hidden FROM repositories r CROSS JOIN links l ON l.repo_id = r.id AND l.blob_id = ? WHERE r.name = ?", blob, string(repo))
		}
		return tx.All(scan, "SELECT l.id, r.name, l.hidden FROM links l JOIN repositories r ON r.id = l.repo_id WHERE l.id IN (SELECT id FROM links WHERE blob_id = ? LIMIT ?) ORDER BY r.name", blob, n)
	})
	return ls, blob, wrapFind(err)
}

// LinkUsers lists the manifests that need a link, living ones first, n at most.
func (s *Store) LinkUsers(ctx context.Context, link int64, n int) (ms []ManifestAt, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.All(scanManifestAt(&ms), manifestAtColumns+`WHERE m.id IN (SELECT manifest_id FROM manifest_blobs INDEXED BY manifest_blobs_link WHERE link_id = ? ORDER BY living DESC LIMIT ?)
			ORDER BY m.trashed_at IS NOT NULL, m.id`, link, n)
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
		if err := tx.All(scanInto(&h.Tags), "SELECT name FROM tags WHERE manifest_id = ? ORDER BY repo_id, name LIMIT ?", id, n); err != nil {
			return err
		}
		if err := tx.All(scanManifestAt(&h.Parents), manifestAtColumns+`WHERE m.id IN (SELECT p.id FROM manifests k CROSS JOIN manifest_children c ON c.repo_id = k.repo_id AND c.child_digest = k.digest CROSS JOIN manifests p ON p.id = c.manifest_id
			WHERE k.id = ? AND p.trashed_at IS NULL LIMIT ?) ORDER BY m.id`, id, n); err != nil {
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

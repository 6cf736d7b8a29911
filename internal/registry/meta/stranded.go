package meta

import (
	"context"
	"database/sql"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Signatures, attestations and indexes of referrers that clients push under a
// tag named after a digest (sha256-….sig) refer to a manifest by nothing else.
// When it is deleted, their tag is noted as stranded. Only the deletion of a
// manifest from the same repository makes it so: whoever keeps signatures in a
// repository of their own, or pushes them first, has none that are stranded.

// gone says that repository ?1, of the name ?6, has deleted a manifest whose
// digest begins with ?4. A manifest in the trash is in the deletion log too.
const gone = `NOT EXISTS (SELECT 1 FROM manifests m WHERE m.repo_id = ?1 AND m.digest >= ?4 AND m.digest < ?4 || 'g' AND m.trashed_at IS NULL)
	AND EXISTS (SELECT 1 FROM deletions d WHERE d.digest >= ?4 AND d.digest < ?4 || 'g' AND d.repo = ?6 AND d.kind = 'manifest')`

// strandTags notes those of the tags, just put on manifest id, whose subject is gone.
func (s *Store) strandTags(tx *sqldb.Tx, repo oci.Name, repoID, id int64, tags []oci.Tag) error {
	for _, t := range tags {
		subject, ok := t.Subject()
		if !ok {
			continue
		}
		if _, err := tx.Exec(`INSERT INTO stranded (repo_id, tag, manifest_id, subject, since) SELECT ?1, ?2, ?3, ?4, ?5 WHERE `+gone+`
			ON CONFLICT (repo_id, tag) DO UPDATE SET manifest_id = excluded.manifest_id, since = excluded.since`,
			repoID, string(t), id, subject, tx.Now(), string(repo)); err != nil {
			return err
		}
	}
	return nil
}

// strand notes the tags of a manifest's signatures when it is deleted. From then
// on a HEAD of one is written down as a confirmation, so the cache drops it.
func (s *Store) strand(tx *sqldb.Tx, repo oci.Name, repoID int64, d oci.Digest) error {
	tags, subject := oci.SubjectTags(d)
	return tx.All(s.dropStranded(tx, repo), `INSERT INTO stranded (repo_id, tag, manifest_id, subject, since)
		SELECT t.repo_id, t.name, t.manifest_id, ?1, ?2 FROM tags t WHERE t.repo_id = ?3 AND t.name IN (SELECT value FROM json_each(?4))
		ON CONFLICT (repo_id, tag) DO NOTHING RETURNING tag, (SELECT digest FROM manifests m WHERE m.id = manifest_id)`,
		subject, tx.Now(), repoID, sqldb.List(tags))
}

// unstrand forgets that when the manifests are there again.
func (s *Store) unstrand(tx *sqldb.Tx, repo oci.Name, repoID int64, digests ...oci.Digest) error {
	subjects := make([]string, len(digests))
	for i, d := range digests {
		_, subjects[i] = oci.SubjectTags(d)
	}
	return tx.All(s.dropStranded(tx, repo), `DELETE FROM stranded WHERE repo_id = ? AND subject IN (SELECT a FROM `+sqldb.Each+`)
		RETURNING tag, (SELECT digest FROM manifests m WHERE m.id = manifest_id)`, repoID, sqldb.List(subjects))
}

func (s *Store) dropStranded(tx *sqldb.Tx, repo oci.Name) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var tag, digest string
		err := rows.Scan(&tag, &digest)
		s.dropManifests(tx, repo, tag, digest)
		return err
	}
}

// StrandedFacts are of a manifest that was pushed under a tag named after a
// digest, and whose subject, the manifest of that digest, was deleted.
type StrandedFacts struct {
	ManifestFacts
	Tag       oci.Tag // the one that was stranded last
	Subject   string  // digest; of a SHA-512 its first 64 digits
	Since     int64
	InTrash   bool  // the subject can be restored
	OtherTags int64 // that name the manifest and are not stranded
}

const strandedColumns = manifestFactsColumns + manifestLease + `, 0, 0, s.tag, s.subject, s.since,
	EXISTS (SELECT 1 FROM manifests g WHERE g.repo_id = s.repo_id AND g.digest >= s.subject AND g.digest < s.subject || 'g'),
	(SELECT count(*) FROM tags t WHERE t.manifest_id = m.id AND NOT EXISTS (SELECT 1 FROM stranded x WHERE x.repo_id = t.repo_id AND x.tag = t.name))
	FROM stranded s CROSS JOIN manifests m ON m.id = s.manifest_id JOIN repositories r ON r.id = m.repo_id `

// last selects one row for a manifest that has several.
const lastStranded = "NOT EXISTS (SELECT 1 FROM stranded x WHERE x.manifest_id = s.manifest_id AND (x.since, x.tag) > (s.since, s.tag))"

func scanStranded(out *[]StrandedFacts) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var f StrandedFacts
		err := rows.Scan(&f.ID, &f.Version, &f.RepoID, &f.Repo, &f.Digest, &f.Size, &f.Tags, &f.Parents, &f.Subjects,
			&f.TouchedAt, &f.LooseAt, &f.OrphanedAt, &f.OrphanOf, &f.Lease, &f.Review.EventAt, &f.Review.Version, &f.Tag, &f.Subject, &f.Since, &f.InTrash, &f.OtherTags)
		*out = append(*out, f)
		return err
	}
}

// Stranded reads what has been stranded since before or longer, longest first,
// after the given one.
func (s *Store) Stranded(ctx context.Context, d Due, after StrandedFacts) (fs []StrandedFacts, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		fs = nil
		return tx.All(scanStranded(&fs), "SELECT "+strandedColumns+`WHERE s.since <= ? AND (s.since, s.repo_id, s.tag) > (?, ?, ?)
			AND (? OR s.repo_id IN (SELECT a FROM `+sqldb.Each+`)) AND `+lastStranded+` ORDER BY s.since, s.repo_id, s.tag LIMIT ?`,
			tx.Now()-d.Window, d.Before, after.Since, after.RepoID, string(after.Tag), d.Scope.all, d.Scope.list(), d.Limit)
	})
	return fs, wrapFacts("stranded signatures", err)
}

// StrandedManifest reads why a manifest is stranded; found is false where it is not.
func (s *Store) StrandedManifest(ctx context.Context, id, window int64) (f StrandedFacts, found bool, err error) {
	var fs []StrandedFacts
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		fs = nil
		return tx.All(scanStranded(&fs), "SELECT "+strandedColumns+"WHERE s.manifest_id = ? AND "+lastStranded, tx.Now()-window, id)
	})
	if err != nil || len(fs) == 0 {
		return f, false, wrapFacts("a stranded signature", err)
	}
	return fs[0], true, nil
}

// StrandedMax is how far CountStranded counts.
const StrandedMax = 10_000

// CountStranded counts the stranded tags of a scope, up to StrandedMax.
func (s *Store) CountStranded(ctx context.Context, scope Scope) (n int64, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row(`SELECT count(*) FROM (SELECT 1 FROM stranded WHERE since <= ? AND (? OR repo_id IN (SELECT a FROM `+sqldb.Each+`)) LIMIT ?)`,
			tx.Now()+ConfirmAhead, scope.all, scope.list(), StrandedMax).Scan(&n)
	})
	return n, wrapFacts("the number of stranded signatures", err)
}

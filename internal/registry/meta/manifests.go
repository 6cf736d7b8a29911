package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// manifestEntry is what the cache knows of a living manifest.
type manifestEntry struct {
	Manifest
	id        int64
	atRisk    bool   // neither tag nor index nor subject keeps it, or its tag is stranded
	touchedAt int64  // last confirmation while at risk
	seen      uint64 // commit that must be durable before it is promised
}

// held says that a tag, a living index or a living subject keeps manifest m,
// heldAbove that one of the latter two does.
const (
	held      = `(EXISTS (SELECT 1 FROM tags t WHERE t.manifest_id = m.id) OR ` + heldAbove + `)`
	heldAbove = `(EXISTS (SELECT 1 FROM manifest_children c JOIN manifests p ON p.id = c.manifest_id
		WHERE c.repo_id = m.repo_id AND c.child_digest = m.digest AND p.trashed_at IS NULL)
	OR m.subject IS NOT NULL AND EXISTS (SELECT 1 FROM manifests s
		WHERE s.repo_id = m.repo_id AND s.digest = m.subject AND s.trashed_at IS NULL))`
)

// indexed says that a living index names manifest m, or what is above m in the
// trash (an index, or the subject that it refers to), at whatever depth: m may
// be wanted to make that index whole.
const indexed = `EXISTS (
	WITH RECURSIVE up (digest) AS (
		SELECT m.digest
		UNION SELECT p.digest FROM up CROSS JOIN manifest_children c ON c.repo_id = m.repo_id AND c.child_digest = up.digest
			CROSS JOIN manifests p ON p.id = c.manifest_id WHERE p.trashed_at IS NOT NULL
		UNION SELECT s.digest FROM up CROSS JOIN manifests a ON a.repo_id = m.repo_id AND a.digest = up.digest
			CROSS JOIN manifests s ON s.repo_id = m.repo_id AND s.digest = a.subject WHERE s.trashed_at IS NOT NULL)
	SELECT 1 FROM up CROSS JOIN manifest_children c ON c.repo_id = m.repo_id AND c.child_digest = up.digest
		CROSS JOIN manifests p ON p.id = c.manifest_id WHERE p.trashed_at IS NULL)`

// Manifest resolves a tag or a digest to a living manifest, with one indexed
// query at most. To a client the answer is a confirmation, which is written
// down where the manifest is at risk. The error is NotFound with NAME_UNKNOWN
// or MANIFEST_UNKNOWN.
func (s *Store) Manifest(ctx context.Context, repo oci.Name, ref oci.Reference) (*Manifest, error) {
	for {
		e, err := s.lookupManifest(ctx, repo, ref)
		if err != nil {
			return nil, err
		}
		if !e.atRisk || e.touchedAt > s.db.Now() {
			// A database whose log cannot be synced takes no pushes. Pulls go on.
			if err := s.db.Durable(ctx, e.seen); err != nil && ctx.Err() != nil {
				return nil, fmt.Errorf("confirm manifest %s in %s: %w", ref, repo, err)
			}
			return &e.Manifest, nil
		}
		var gone bool
		err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
			n, err := tx.Exec("UPDATE manifests SET touched_at = max(touched_at, ?), version = version + 1 WHERE id = ? AND trashed_at IS NULL", tx.Now()+ConfirmAhead, e.id)
			gone = n == 0
			s.dropManifests(tx, repo, string(e.Digest))
			if ref.Tag != "" {
				s.dropManifests(tx, repo, string(ref.Tag))
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("confirm manifest %s in %s: %w", ref, repo, err)
		}
		if !gone {
			return &e.Manifest, nil
		}
	}
}

func (s *Store) lookupManifest(ctx context.Context, repo oci.Name, ref oci.Reference) (*manifestEntry, error) {
	key := cacheKey(repo, ref.String())
	e, ok, token := s.manifests.get(key)
	if ok {
		return e, nil
	}
	e = &manifestEntry{}
	const columns = "SELECT m.id, m.digest, m.media_type, m.content, m.loose_at IS NOT NULL OR m.orphaned_at IS NOT NULL OR EXISTS (SELECT 1 FROM stranded WHERE manifest_id = m.id), m.touched_at FROM repositories r "
	query := columns + "JOIN manifests m ON m.repo_id = r.id AND m.digest = ? WHERE r.name = ? AND m.trashed_at IS NULL"
	if ref.Tag != "" {
		query = columns + "JOIN tags t ON t.repo_id = r.id AND t.name = ? JOIN manifests m ON m.id = t.manifest_id WHERE r.name = ? AND m.trashed_at IS NULL"
	}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		err := tx.Row(query, ref.String(), string(repo)).Scan(&e.id, &e.Digest, &e.MediaType, &e.Content, &e.atRisk, &e.touchedAt)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if _, err := repoID(tx, repo); err != nil {
			return err
		}
		return manifestUnknown(repo, ref.String())
	})
	if err != nil {
		return nil, fmt.Errorf("look up manifest %s in %s: %w", ref, repo, err)
	}
	e.seen = s.db.Seen()
	s.manifests.put(key, e, token)
	return e, nil
}

func (s *Store) dropManifests(tx *sqldb.Tx, repo oci.Name, refs ...string) {
	tx.OnCommit(func() {
		for _, ref := range refs {
			s.manifests.drop(cacheKey(repo, ref))
		}
	})
}

// PutManifest stores a manifest with all its references and tags in one
// transaction, which checks each blob it names (R2). created is false where
// the repository had it already. Errors: Invalid with MANIFEST_BLOB_UNKNOWN and
// the missing digests as detail, or MANIFEST_INVALID where a blob's size is not
// the descriptor's.
func (s *Store) PutManifest(ctx context.Context, p Push) (created bool, err error) {
	if !p.isLarge() {
		created, err = s.putManifest(ctx, p, nil)
	} else {
		created, err = s.putLarge(ctx, p)
	}
	if err != nil {
		return false, fmt.Errorf("put manifest %s in %s: %w", p.Digest, p.Repo, err)
	}
	return created, nil
}

// putManifest is the transaction that has the manifest served. st is of one whose
// references have been checked and written, or nil. The children of an index that
// are in the trash come back, in further transactions if they are many: the answer
// that follows promises them (R2).
func (s *Store) putManifest(ctx context.Context, p Push, st *staging) (created bool, err error) {
	var more bool
	var root int64
	leave := func() {
		if root != 0 {
			s.roots.remove(root)
			root = 0
		}
	}
	defer func() { leave() }()
	err = s.afterKin(ctx, s.db.Write, func(tx *sqldb.Tx) error {
		repo, err := ensureRepo(tx, p.Repo)
		if err != nil {
			return err
		}
		if err := noOrphansToCome(tx, repo); err != nil {
			return err
		}
		leave() // of a former try
		links, err := checkPush(tx, repo, p, st)
		if err != nil {
			return err
		}
		m, err := s.writeManifest(tx, repo, p)
		if err != nil {
			return err
		}
		created = m.isNew
		grown := st != nil
		if st == nil {
			grown, err = writeEdges(tx, repo, m.id, true, links, p.wanted())
		}
		if err != nil {
			return err
		}
		losers, err := writeTags(tx, repo, m.id, p.Tags)
		if err != nil {
			return err
		}
		if m.isNew {
			if err := s.unstrand(tx, p.Repo, repo, p.Digest); err != nil {
				return err
			}
		}
		if err := s.strandTags(tx, p.Repo, repo, m.id, p.Tags); err != nil {
			return err
		}
		s.dropPush(tx, p)
		if err := s.confirmSubject(tx, p.Repo, repo, p.Manifest.Subject); err != nil {
			return err
		}
		if err := s.preheatPushed(tx, p); err != nil {
			return err
		}
		isIndex := oci.IsIndex(p.Manifest.MediaType)
		same := m.firm && !grown
		if !same {
			losers = append(losers, m.id)
		}
		if err := s.settle(tx, p.Repo, losers); err != nil || same && !isIndex {
			return err
		}
		k := kinship{id: m.id, repoID: repo, repo: p.Repo, digest: p.Digest}
		if isIndex {
			k.mode, k.root = kinPush, m.id
			root = m.id
			s.roots.add(root)
		}
		budget := kinMax
		more, err = s.settleKin(tx, k, &budget, nil)
		return err
	})
	switch {
	case err != nil || !more:
		return created, err
	case root != 0:
		return created, s.finishRoot(ctx, s.db.Write, root, &Restored{})
	}
	s.followUp(ctx, s.db.Write)
	return created, nil
}

// checkPush finds the links of what a manifest names, or sees that what was found
// for a staged one still holds.
func checkPush(tx *sqldb.Tx, repo int64, p Push, st *staging) (links []int64, err error) {
	if st != nil {
		trashed, err := checkStaged(tx, repo, p, *st)
		if err != nil || !trashed {
			return nil, err
		}
	}
	return resolveBlobs(tx, repo, p, p.refs())
}

func (s *Store) dropPush(tx *sqldb.Tx, p Push) {
	s.dropManifests(tx, p.Repo, string(p.Digest))
	for _, t := range p.Tags {
		s.dropManifests(tx, p.Repo, string(t))
		s.dropTags(tx, p.Repo)
	}
	for _, b := range p.refs() {
		s.dropBlobs(tx, p.Repo, b.Digest)
	}
}

// refs lists what may be a blob of the repository: the blobs that the manifest
// names, the entries of an index, which are blobs where a build cache was
// pushed as an index of layers, even the subject, and whatever digest a manifest
// of an unknown type mentions.
func (p Push) refs() []oci.Descriptor {
	refs := slices.Clone(p.Manifest.Blobs)
	for _, c := range p.Manifest.Children {
		c.Optional = true
		refs = append(refs, c)
	}
	if p.Manifest.Subject != "" {
		refs = append(refs, oci.Descriptor{Digest: p.Manifest.Subject, Optional: true})
	}
	for _, d := range p.Manifest.Mentions {
		refs = append(refs, oci.Descriptor{Digest: d, Optional: true})
	}
	return refs
}

// wanted lists what is to be bound when it comes: the children of an index,
// blobs that may be missing, and what a manifest of an unknown type mentions,
// which may be a blob or a manifest. A subject is not among these: it keeps its
// referrers, and must not be kept by them. None has a later place here than in refs:
// of a staged manifest it is noted by the time that it is looked for, so a blob that
// comes in between is bound.
func (p Push) wanted() (digests []string) {
	for _, b := range p.Manifest.Blobs {
		if b.Optional {
			digests = append(digests, string(b.Digest))
		}
	}
	for _, c := range p.Manifest.Children {
		digests = append(digests, string(c.Digest))
	}
	for _, d := range p.Manifest.Mentions {
		if d != p.Manifest.Subject {
			digests = append(digests, string(d))
		}
	}
	return digests
}

// resolveBlobs finds the link of each of these blobs that the manifest names.
func resolveBlobs(tx *sqldb.Tx, repo int64, p Push, want []oci.Descriptor) (links []int64, err error) {
	if len(want) == 0 {
		return nil, nil
	}
	digests := make([]string, len(want))
	for i, d := range want {
		digests[i] = string(d.Digest)
	}
	type found struct {
		link, size int64
		lost       bool
	}
	have := make(map[oci.Digest]found, len(want))
	err = tx.All(func(rows *sql.Rows) error {
		var d oci.Digest
		var f found
		if err := rows.Scan(&d, &f.link, &f.size, &f.lost); err != nil {
			return err
		}
		have[d] = f
		return nil
	}, `SELECT b.digest, l.id, b.size, b.lost_at IS NOT NULL FROM `+sqldb.Each+` i CROSS JOIN blobs b ON b.digest = i.a CROSS JOIN links l ON l.repo_id = ? AND l.blob_id = b.id
		WHERE l.hidden = 0`, sqldb.List(digests), repo)
	if err != nil {
		return nil, fmt.Errorf("resolve blobs: %w", err)
	}
	links = make([]int64, 0, len(want))
	var missing []map[string]string
	for _, d := range want {
		f, ok := have[d.Digest]
		switch {
		case (!ok || f.lost) && !d.Optional:
			missing = append(missing, map[string]string{"digest": string(d.Digest)})
		case !ok:
		case f.lost: // its bytes may come back, and are kept then
			links = append(links, f.link)
		case f.size != d.Size && d.Exact:
			return nil, fault.New(fault.Invalid, "invalid manifest: it gives blob %s a size of %d bytes, the blob has %d", d.Digest, d.Size, f.size).WithCode(oci.CodeManifestInvalid)
		default:
			links = append(links, f.link)
		}
	}
	if missing != nil {
		return nil, fault.New(fault.Invalid, "repository %s lacks %d of the blobs that the manifest names; push them first", p.Repo, len(missing)).
			WithCode(oci.CodeManifestBlobUnknown).WithDetail(missing)
	}
	if len(p.Manifest.Children) == 0 {
		return links, nil
	}
	return links, checkChildren(tx, repo, p, want)
}

// checkChildren compares the sizes that an index states with those of the child
// manifests that the repository has. One in the trash comes back with the push, so
// its blobs must have their bytes.
func checkChildren(tx *sqldb.Tx, repo int64, p Push, want []oci.Descriptor) error {
	stated := make(map[oci.Digest]oci.Descriptor, len(want))
	digests := make([]string, 0, len(want))
	for _, c := range want {
		stated[c.Digest] = c
		digests = append(digests, string(c.Digest))
	}
	var lost []map[string]string
	err := tx.All(func(rows *sql.Rows) error {
		var d oci.Digest
		var size int64
		var isLost bool
		if err := rows.Scan(&d, &size, &isLost); err != nil {
			return err
		}
		if c := stated[d]; c.Exact && c.Size != size {
			return fault.New(fault.Invalid, "invalid manifest: it gives manifest %s a size of %d bytes, the manifest has %d", d, c.Size, size).WithCode(oci.CodeManifestInvalid)
		}
		if isLost && oci.IsIndex(p.Manifest.MediaType) {
			lost = append(lost, map[string]string{"digest": string(d)})
		}
		return nil
	}, `SELECT m.digest, m.size, m.trashed_at IS NOT NULL AND EXISTS (SELECT 1 FROM manifest_blobs e CROSS JOIN links l ON l.id = e.link_id CROSS JOIN blobs b ON b.id = l.blob_id
			WHERE e.manifest_id = m.id AND b.lost_at IS NOT NULL)
		FROM `+sqldb.Each+` i CROSS JOIN manifests m ON m.repo_id = ? AND m.digest = i.a`, sqldb.List(digests), repo)
	if err == nil && lost != nil {
		err = fault.New(fault.Invalid, "%d of the manifests that the index names were deleted from repository %s, and bytes that they need are missing; push them first", len(lost), p.Repo).
			WithCode(oci.CodeManifestBlobUnknown).WithDetail(lost)
	}
	return err
}

// pushed is the row of a manifest that is being pushed.
type pushed struct {
	id    int64
	isNew bool // it was not served before
	// firm: it was there, and something kept it, so that it is under no review. One
	// more tag changes nothing of that, nor for what it needs.
	firm bool
}

// writeManifest inserts the manifest, or revives it from the trash, or
// confirms it. Whatever it was an orphan of, it is now here for its own sake.
func (s *Store) writeManifest(tx *sqldb.Tx, repo int64, p Push) (m pushed, err error) {
	var trashed bool
	var was string
	err = tx.Row(`SELECT id, media_type, trashed_at IS NOT NULL, trashed_at IS NULL AND loose_at IS NULL
		FROM manifests WHERE repo_id = ? AND digest = ?`, repo, string(p.Digest)).Scan(&m.id, &was, &trashed, &m.firm)
	if errors.Is(err, sql.ErrNoRows) {
		m.id, err = insertManifest(tx, repo, p, 0)
		m.isNew = true
		return m, err
	}
	if err != nil {
		return pushed{}, err
	}
	m.isNew = trashed
	mediaType, err := keptType(p, was, trashed)
	if err != nil {
		return pushed{}, err
	}
	if mediaType != was {
		// Tags that name it already must not go on serving the other type.
		if err := s.dropTagsOf(tx, p.Repo, m.id); err != nil {
			return pushed{}, err
		}
	}
	if _, err := tx.Exec(`UPDATE manifests SET media_type = ?, artifact_type = ?, touched_at = max(touched_at, ?), trashed_at = NULL,
		orphaned_at = NULL, orphan_reason = NULL, version = version + 1 WHERE id = ?`,
		mediaType, p.Manifest.ArtifactType, tx.Now(), m.id); err != nil {
		return pushed{}, fmt.Errorf("revive manifest: %w", err)
	}
	if m.firm {
		return m, nil
	}
	if trashed {
		if err := outOfTrash(tx, m.id); err != nil {
			return pushed{}, err
		}
	}
	_, err = tx.Exec("DELETE FROM reviews WHERE kind = 'manifest' AND target = ?", m.id)
	return m, err
}

// insertManifest makes a manifest that is served, or, with a time, one that is not.
func insertManifest(tx *sqldb.Tx, repo int64, p Push, trashedAt int64) (id int64, err error) {
	annotations, err := json.Marshal(p.Manifest.Annotations)
	if err != nil {
		return 0, err
	}
	err = tx.Row(`INSERT INTO manifests (repo_id, digest, media_type, artifact_type, subject, size, pushed_at, touched_at, trashed_at, annotations, content)
		VALUES (?, ?, ?, ?, nullif(?, ''), ?, ?, ?, nullif(?, 0), nullif(?, 'null'), ?) RETURNING id`,
		repo, string(p.Digest), p.Manifest.MediaType, p.Manifest.ArtifactType, string(p.Manifest.Subject), len(p.Content),
		tx.Now(), tx.Now(), trashedAt, string(annotations), p.Content).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("insert manifest: %w", err)
	}
	return id, nil
}

// keptType returns the type that a repeated push leaves a manifest with. It
// refuses to change the type that a digest is served with. That concerns
// manifests which do not say what they are: of all others the content decides,
// and a stored type which the content contradicts is a mistake of an earlier
// version that the push mends. A manifest in the trash is not served.
func keptType(p Push, was string, trashed bool) (string, error) {
	if strings.EqualFold(was, p.Manifest.MediaType) {
		return was, nil
	}
	if _, err := oci.ParseManifest(was, p.Content); err != nil || trashed {
		return p.Manifest.MediaType, nil
	}
	return "", fault.New(fault.Invalid, "invalid manifest: repository %s has %s with the media type %q, which cannot be changed to %q", p.Repo, p.Digest, was, p.Manifest.MediaType).
		WithCode(oci.CodeManifestInvalid)
}

// outOfTrash has a manifest that is pushed again served, or one that was staged.
func outOfTrash(tx *sqldb.Tx, id int64) error {
	if _, err := tx.Exec("DELETE FROM staged WHERE manifest_id = ?", id); err != nil {
		return err
	}
	return endTrash(tx, sqldb.List([]int64{id}))
}

// writeEdges binds links, and notes the digests to be bound when they come. Edges are added and never taken away: a
// second push with another media type may be read to need less, and less is a
// reason to delete. living: the manifest is not in the trash. grown reports that it is to
// hold a digest that it did not before.
func writeEdges(tx *sqldb.Tx, repo, id int64, living bool, links []int64, wanted []string) (grown bool, err error) {
	if len(wanted) > 0 {
		n, err := tx.Exec("INSERT OR IGNORE INTO manifest_children (manifest_id, repo_id, child_digest) SELECT ?, ?, a FROM "+sqldb.Each, id, repo, sqldb.List(wanted))
		if err != nil {
			return false, fmt.Errorf("write children: %w", err)
		}
		grown = n > 0
	}
	if len(links) == 0 {
		return grown, nil
	}
	list := sqldb.List(links)
	n, err := tx.Exec("INSERT OR IGNORE INTO manifest_blobs (manifest_id, link_id, living) SELECT ?, a, ? FROM "+sqldb.Each, id, living, list)
	if err != nil {
		return false, fmt.Errorf("write references: %w", err)
	}
	if n == 0 {
		return grown, nil // it protects its blobs, whenever they were confirmed: their window begins when it goes
	}
	if _, err := tx.Exec("UPDATE links SET version = version + 1, touched_at = max(touched_at, ?) WHERE id IN (SELECT a FROM "+sqldb.Each+")", tx.Now(), list); err != nil {
		return false, fmt.Errorf("confirm references: %w", err)
	}
	if _, err := tx.Exec("DELETE FROM reviews WHERE kind = 'link' AND target IN (SELECT a FROM "+sqldb.Each+")", list); err != nil {
		return false, fmt.Errorf("close reviews: %w", err)
	}
	return grown, nil
}

// writeTags points tags at a manifest and returns the manifests that lost one.
func writeTags(tx *sqldb.Tx, repo, id int64, tags []oci.Tag) (losers []int64, err error) {
	for _, t := range tags {
		var old int64
		err := tx.Row("SELECT manifest_id FROM tags WHERE repo_id = ? AND name = ?", repo, string(t)).Scan(&old)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		if err == nil && old != id {
			losers = append(losers, old)
		}
		if _, err := tx.Exec(`INSERT INTO tags (repo_id, name, manifest_id, updated_at) VALUES (?, ?, ?, ?)
			ON CONFLICT (repo_id, name) DO UPDATE SET manifest_id = excluded.manifest_id, updated_at = excluded.updated_at`,
			repo, string(t), id, tx.Now()); err != nil {
			return nil, fmt.Errorf("write tag %s: %w", t, err)
		}
	}
	return losers, nil
}

// confirmSubject begins the window of a subject that nothing keeps: a referrer
// keeps no subject, but whoever pushed it relies on the subject being here (R3).
func (s *Store) confirmSubject(tx *sqldb.Tx, repo oci.Name, repoID int64, subject oci.Digest) error {
	if subject == "" {
		return nil
	}
	var id int64
	err := tx.Row(`UPDATE manifests SET touched_at = max(touched_at, ?), version = version + 1
		WHERE repo_id = ? AND digest = ? AND trashed_at IS NULL AND (loose_at IS NOT NULL OR orphaned_at IS NOT NULL) RETURNING id`,
		tx.Now(), repoID, string(subject)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("confirm subject %s: %w", subject, err)
	}
	s.dropManifests(tx, repo, string(subject))
	return s.dropTagsOf(tx, repo, id)
}

func referrersOf(tx *sqldb.Tx, repo int64, d oci.Digest) (referrers []int64, err error) {
	err = tx.All(scanInto(&referrers), "SELECT k.id FROM manifests k INDEXED BY manifests_subject WHERE k.repo_id = ? AND k.subject = ? AND k.trashed_at IS NULL", repo, string(d))
	if err != nil {
		return nil, fmt.Errorf("list referrers: %w", err)
	}
	return referrers, nil
}

// scanInto collects a single column.
func scanInto[T any](out *[]T) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var v T
		if err := rows.Scan(&v); err != nil {
			return err
		}
		*out = append(*out, v)
		return nil
	}
}

// settle brings loose_at of living manifests in line with what keeps them. An
// orphan is one no longer once an index or its subject keeps it; a tag only
// puts that off, and when the last one goes, it is put up for review.
func (s *Store) settle(tx *sqldb.Tx, repo oci.Name, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	list := sqldb.List(ids)
	err := tx.All(func(rows *sql.Rows) error {
		var d string
		if err := rows.Scan(&d); err != nil {
			return err
		}
		s.dropManifests(tx, repo, d)
		return nil
	}, `UPDATE manifests AS m SET version = version + 1,
			loose_at = CASE WHEN `+held+` THEN NULL ELSE coalesce(loose_at, ?) END,
			orphaned_at = CASE WHEN `+heldAbove+` THEN NULL ELSE orphaned_at END
		WHERE m.id IN (SELECT a FROM `+sqldb.Each+`) AND m.trashed_at IS NULL
			AND ((m.loose_at IS NULL) <> `+held+` OR m.orphaned_at IS NOT NULL) RETURNING digest`, tx.Now(), list)
	if err != nil {
		return fmt.Errorf("settle what keeps manifests: %w", err)
	}
	if _, err := tx.Exec(`DELETE FROM reviews WHERE kind = 'manifest' AND target IN (
			SELECT m.id FROM manifests m WHERE m.id IN (SELECT a FROM `+sqldb.Each+`) AND (m.orphaned_at IS NULL OR m.loose_at IS NULL))`, list); err != nil {
		return fmt.Errorf("close reviews: %w", err)
	}
	return reviewOrphans(tx, list)
}

// reviewOrphans puts orphans up for review that nothing keeps. list is of ids;
// an orphan that is under review stays under the review it has.
func reviewOrphans(tx *sqldb.Tx, list string) error {
	if _, err := tx.Exec(`INSERT INTO reviews (kind, target, repo_id, event_at, event)
		SELECT 'manifest', m.id, m.repo_id, ?, 'its index or subject ' || m.orphan_reason || ' was deleted'
		FROM manifests m WHERE m.id IN (SELECT a FROM `+sqldb.Each+`) AND m.orphaned_at IS NOT NULL AND m.loose_at IS NOT NULL
		ON CONFLICT (kind, target) DO NOTHING`, tx.Now(), list); err != nil {
		return fmt.Errorf("put orphans up for review: %w", err)
	}
	return nil
}

// DeleteTag removes a tag; the manifest stays. The error is NotFound where
// there is no such tag.
func (s *Store) DeleteTag(ctx context.Context, repo oci.Name, tag oci.Tag, actor string) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		repoID, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		var id int64
		var d oci.Digest
		err = tx.Row(`DELETE FROM tags WHERE repo_id = ? AND name = ? RETURNING manifest_id`, repoID, string(tag)).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return manifestUnknown(repo, string(tag))
		}
		if err != nil {
			return err
		}
		if err := tx.Row("SELECT digest FROM manifests WHERE id = ?", id).Scan(&d); err != nil {
			return err
		}
		s.dropManifests(tx, repo, string(tag))
		s.dropTags(tx, repo)
		if err := logDeletions(tx, 0, actor, []Deletion{{Kind: "tag", Act: "removed", Repo: string(repo), Digest: string(tag), Reason: "deleted by a client; it named " + string(d)}}); err != nil {
			return err
		}
		return s.settle(tx, repo, []int64{id})
	})
	if err != nil {
		return fmt.Errorf("delete tag %s of %s: %w", tag, repo, err)
	}
	return nil
}

// DeleteManifest moves a manifest to the trash and its tags' names with it.
// The error is NotFound where the repository does not serve it.
func (s *Store) DeleteManifest(ctx context.Context, repo oci.Name, d oci.Digest, actor string) error {
	var more bool
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		repoID, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		var id int64
		err = tx.Row("SELECT id FROM manifests WHERE repo_id = ? AND digest = ? AND trashed_at IS NULL", repoID, string(d)).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return manifestUnknown(repo, string(d))
		}
		if err != nil {
			return err
		}
		budget := kinMax
		more, err = s.trashManifest(tx, trashing{budget: &budget, id: id, repoID: repoID, repo: repo, digest: d, reason: "deleted by a client", actor: actor})
		return err
	})
	if err == nil && more {
		s.followUp(ctx, s.db.Relieve)
	}
	if err != nil {
		return fmt.Errorf("delete manifest %s of %s: %w", d, repo, err)
	}
	return nil
}

// trashing is one manifest on its way to the trash.
type trashing struct {
	id, repoID int64
	repo       oci.Name
	digest     oci.Digest
	reason     string
	cause      string // the deleted index or subject, for an orphan
	actor      string
	run        int64
	budget     *int // of kin that the transaction settles
}

// trashManifest does all that follows from a living manifest's deletion in the
// transaction of the deletion: its tags go and their names are kept, blobs that
// lose their last living reference begin their window now, children and
// referrers that nothing else keeps become orphans and are put up for review.
//
// more reports that some of these are left to finishKin.
func (s *Store) trashManifest(tx *sqldb.Tx, t trashing) (more bool, err error) {
	tags := []string{}
	err = tx.All(scanInto(&tags), "SELECT name FROM tags WHERE manifest_id = ? ORDER BY repo_id, name", t.id)
	if err != nil {
		return false, err
	}
	names, err := json.Marshal(tags)
	if err != nil {
		return false, err
	}
	if _, err := tx.Exec("DELETE FROM tags WHERE manifest_id = ?", t.id); err != nil {
		return false, err
	}
	var size int64
	if err := tx.Row(`UPDATE manifests SET trashed_at = ?, loose_at = NULL, orphaned_at = NULL, orphan_reason = NULL, version = version + 1
		WHERE id = ? RETURNING size`, tx.Now(), t.id).Scan(&size); err != nil {
		return false, fmt.Errorf("trash manifest: %w", err)
	}
	if _, err := tx.Exec("INSERT INTO trash (manifest_id, trashed_at, tags, reason, cause, actor) VALUES (?, ?, ?, ?, ?, ?)",
		t.id, tx.Now(), string(names), t.reason, t.cause, t.actor); err != nil {
		return false, fmt.Errorf("trash manifest: %w", err)
	}
	if _, err := tx.Exec("DELETE FROM reviews WHERE kind = 'manifest' AND target = ?", t.id); err != nil {
		return false, err
	}
	if _, err := tx.Exec("UPDATE manifest_blobs SET living = 0 WHERE manifest_id = ?", t.id); err != nil {
		return false, err
	}
	if _, err := tx.Exec(`UPDATE links AS l SET touched_at = max(touched_at, ?), version = version + 1
		WHERE l.id IN (SELECT link_id FROM manifest_blobs WHERE manifest_id = ?) AND NOT `+livingEdge, tx.Now(), t.id); err != nil {
		return false, fmt.Errorf("begin the window of its blobs: %w", err)
	}
	if err := s.strand(tx, t.repo, t.repoID, t.digest); err != nil {
		return false, fmt.Errorf("note its signatures: %w", err)
	}
	more, err = s.settleKin(tx, kinship{id: t.id, repoID: t.repoID, repo: t.repo, digest: t.digest, trashed: true, run: t.run, renewedAt: tx.Now()}, t.budget, nil)
	if err != nil {
		return false, err
	}
	if err := s.dropTrashed(tx, t, tags); err != nil {
		return false, err
	}
	return more, logDeletions(tx, t.run, t.actor, []Deletion{{Kind: "manifest", Act: "trashed", Repo: string(t.repo), Digest: string(t.digest), Bytes: size, Reason: t.reason}})
}

// dropTrashed drops from the caches what the deletion of a manifest changes.
func (s *Store) dropTrashed(tx *sqldb.Tx, t trashing, tags []string) error {
	s.dropManifests(tx, t.repo, append(tags, string(t.digest))...)
	s.dropTags(tx, t.repo)
	return s.dropBlobsOf(tx, t.repo, t.id)
}

// dropTagsOf drops a manifest's tags from the cache.
func (s *Store) dropTagsOf(tx *sqldb.Tx, repo oci.Name, id int64) error {
	var tags []string
	err := tx.All(scanInto(&tags), "SELECT name FROM tags WHERE manifest_id = ?", id)
	s.dropManifests(tx, repo, tags...)
	return err
}

// dropBlobsOf drops the blobs of manifests from the cache.
func (s *Store) dropBlobsOf(tx *sqldb.Tx, repo oci.Name, ids ...int64) error {
	var ds []oci.Digest
	err := tx.All(scanInto(&ds), `SELECT b.digest FROM `+sqldb.Each+` i CROSS JOIN manifest_blobs e ON e.manifest_id = i.a
		CROSS JOIN links l ON l.id = e.link_id CROSS JOIN blobs b ON b.id = l.blob_id`, sqldb.List(ids))
	s.dropBlobs(tx, repo, ds...)
	return err
}

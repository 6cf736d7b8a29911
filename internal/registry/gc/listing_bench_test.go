package gc_test

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// BenchmarkListings times a page of each listing, and an explanation, in a registry that is
// large in what the listing must not walk: 100,000 manifests in the trash, as many
// repositories that have a blob, 4,000 nodes that run an image.
func BenchmarkListings(b *testing.B) {
	dir := b.TempDir()
	path := dir + "/fairway.db"
	s, err := meta.Open(b.Context(), meta.Options{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	u, err := s.CreateUpload(b.Context(), "first", "sha256")
	if err == nil {
		_, err = s.FinishUpload(b.Context(), u, digest.FromString("base"), 4)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		b.Fatal(err)
	}
	image := digest.FromString("image")
	pool, err := sql.Open("sqlite", path)
	if err == nil {
		_, err = pool.ExecContext(b.Context(), `
			CREATE TEMP TABLE n (i INTEGER PRIMARY KEY);
			WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 100000) INSERT INTO n SELECT i FROM r;
			INSERT INTO repositories (name, created_at) VALUES ('big', 1);
			INSERT INTO manifests (repo_id, digest, media_type, artifact_type, size, pushed_at, touched_at, trashed_at, content)
				SELECT (SELECT id FROM repositories WHERE name = 'big'), printf('sha256:%064x', i), 'm', '', 2, ?1, ?1, ?1 + i, '{}' FROM n;
			INSERT INTO trash (manifest_id, trashed_at, tags, reason, cause, actor) SELECT id, trashed_at, '[]', 'deleted by a client', '', 'bench' FROM manifests;
			INSERT INTO repositories (name, created_at) SELECT printf('r%06d', i), 1 FROM n;
			INSERT INTO links (repo_id, blob_id, touched_at) SELECT r.id, b.id, 1 FROM repositories r, blobs b WHERE r.name LIKE 'r%';
			INSERT INTO manifests (repo_id, digest, media_type, artifact_type, size, pushed_at, touched_at, content)
				SELECT id, ?2, 'm', '', 2, ?1, ?1, '{}' FROM repositories WHERE name LIKE 'r%';
			INSERT INTO manifest_blobs (manifest_id, link_id, living)
				SELECT m.id, l.id, 1 FROM manifests m JOIN links l ON l.repo_id = m.repo_id WHERE m.digest = ?2;
			INSERT INTO tags (repo_id, name, manifest_id, updated_at) SELECT repo_id, 'v1', id, 1 FROM manifests WHERE digest = ?2;
			INSERT INTO nodes (name, instance, superseded, seq, version, complete, runtimes, cache, runs, print, first_seen, seen_at, fresh_until, kept_until)
				SELECT 'n' || i, 'i', '', 1, '', 1, '[]', '{}', '[]', '', ?1, ?1, ?1 + 86400000, ?1 + 86400000 FROM n WHERE i <= 4000;
			INSERT INTO leases (holder, expires_at, updated_at) SELECT 'node:n' || i, ?1 + 86400000, ?1 FROM n WHERE i <= 4000;
			INSERT INTO lease_digests (holder, digest, expires_at) SELECT holder, ?2, expires_at FROM leases;
			INSERT INTO node_uses (holder, digest, containers, since) SELECT holder, ?2, 1, ?1 FROM leases;`,
			time.Now().UnixMilli(), image.String())
	}
	if err = errors.Join(err, pool.Close()); err != nil {
		b.Fatal(err)
	}
	if s, err = meta.Open(b.Context(), meta.Options{Path: path}); err != nil {
		b.Fatal(err)
	}
	files, err := fsblob.Open(dir, fsblob.Options{Reserve: 1 << 16, MinFree: 1})
	if err != nil {
		b.Fatal(err)
	}
	c := gc.New(s, files, gc.Options{})
	defer func() {
		c.Close()
		if err := errors.Join(s.Close(), files.Close()); err != nil {
			b.Error(err)
		}
	}()
	for name, call := range map[string]func() (int, error){
		"catalog, 100 after a repository with a large trash": func() (int, error) {
			names, _, err := s.Repositories(b.Context(), "bif", 100)
			return len(names), err
		},
		"trash, the newest 100": func() (int, error) {
			items, _, err := s.Trash(b.Context(), meta.TrashPage{N: 100})
			return len(items), err
		},
		"leases, 100 of 4,000": func() (int, error) {
			ls, _, err := s.Leases(b.Context(), meta.LeasePage{N: 100, Digests: 100})
			return len(ls), err
		},
		"manifests affected by a blob, 10 of 100,000": func() (int, error) {
			as, _, err := s.AffectedBy(b.Context(), 1, 10)
			return len(as), err
		},
		"manifests at risk in a repository with a large trash": func() (int, error) {
			ms, _, _, err := s.AtRisk(b.Context(), "big", 10)
			return len(ms), err
		},
		"explain an image that 4,000 nodes run": func() (int, error) {
			e, err := c.Explain(b.Context(), "r000001@"+image.String())
			return len(e.Reasons), err
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if n, err := call(); err != nil || n == 0 {
					b.Fatalf("%d items, %v", n, err)
				}
			}
		})
	}
}

package meta_test

import (
	"database/sql"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// BenchmarkMount mounts a blob that 100,000 repositories have from one of these, as the
// base layer of everything is mounted.
func BenchmarkMount(b *testing.B) {
	path := b.TempDir() + "/fairway.db"
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
	pool, err := sql.Open("sqlite", path)
	if err == nil {
		_, err = pool.ExecContext(b.Context(), `
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) INSERT INTO repositories (name, created_at) SELECT 'r' || i, 1 FROM n;
			INSERT INTO links (repo_id, blob_id, touched_at) SELECT r.id, b.id, 1 FROM repositories r, blobs b WHERE r.name <> 'first';`)
	}
	if err = errors.Join(err, pool.Close()); err != nil {
		b.Fatal(err)
	}
	if s, err = meta.Open(b.Context(), meta.Options{Path: path}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.MountBlob(b.Context(), oci.Name("to"), "r99999", digest.FromString("base")); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Error(err)
	}
}

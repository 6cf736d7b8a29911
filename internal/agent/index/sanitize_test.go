package index_test

import (
	"database/sql"
	"errors"
	"math"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// TestR16_RowsThatCannotBeRightAreDropped when the index is opened, one by one.
func TestR16_RowsThatCannotBeRightAreDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	x := openAt(t, path)
	right := digest.FromString("right")
	wrong := map[string]any{
		"size = ": int64(math.MaxInt64 - 300000), "size =": int64(-1), "size=": "many", "state = ": "odd", "version = ": "x",
		"created_at = ": "x", "used_at = ": "x", "uses = ": "x", "fetch_ms = ": "x", "deleted_at = ": "x", "was = '', state = ": "claimed",
	}
	for _, d := range []oci.Digest{right, digest.FromString("digest")} {
		if _, err := x.PutBlob(t.Context(), index.Blob{Digest: d, Size: 5, State: index.Complete}); err != nil {
			t.Fatal(err)
		}
	}
	for set := range wrong {
		if _, err := x.PutBlob(t.Context(), index.Blob{Digest: digest.FromString(set), Size: 5, State: index.Complete}); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for set, value := range wrong {
		if _, err := db.Exec("UPDATE blobs SET "+set+" ? WHERE digest = ?", value, string(digest.FromString(set))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec("UPDATE blobs SET digest = 'no digest' WHERE digest = ?", string(digest.FromString("digest"))); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	x = openAt(t, path)
	defer func() { _ = x.Close() }()
	for set := range wrong {
		if _, err := x.Blob(t.Context(), digest.FromString(set)); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s%v: %v", set, wrong[set], err)
		}
	}
	n := 0
	if err := x.Blobs(t.Context(), func(b index.Blob) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d rows are left, %v", n, err)
	}
}

package check_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	_ "modernc.org/sqlite" // for what a test does to the database behind the store's back

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// world is a data directory with real parts.
type world struct {
	sizes map[oci.Digest]int // of the manifests that were pushed
	t     testing.TB
	dir   string
	blobs *fsblob.Store
	meta  *meta.Store
	ahead time.Duration // of the database's clock, over the machine's
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return openWorld(t, t.TempDir(), 0)
}

func openWorld(t testing.TB, dir string, ahead time.Duration) *world {
	t.Helper()
	w := &world{t: t, dir: dir, ahead: ahead}
	var err error
	if w.blobs, err = fsblob.Open(dir, fsblob.Options{Reserve: 1 << 20, MinFree: -1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.blobs.Close() })
	var now func() int64
	if ahead != 0 {
		now = func() int64 { return time.Now().Add(w.ahead).UnixMilli() }
	}
	w.meta, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db"), Now: now, Release: w.blobs.Release})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.meta.Close() })
	return w
}

// upload brings a blob in.
func (w *world) upload(repo oci.Name, content []byte) meta.Blob {
	w.t.Helper()
	b, err := w.tryUpload(w.t.Context(), repo, content)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) tryUpload(ctx context.Context, repo oci.Name, content []byte) (meta.Blob, error) {
	u, err := w.meta.CreateUpload(ctx, repo, "sha256")
	if err != nil {
		return meta.Blob{}, err
	}
	if err := blobtest.Append(w.blobs, u.Key, 0, content); err != nil {
		return meta.Blob{}, err
	}
	return w.meta.FinishUpload(ctx, u, digest.FromBytes(content), int64(len(content)))
}

// put pushes a manifest and returns its digest.
func (w *world) put(repo oci.Name, mediaType string, doc map[string]any, tags ...oci.Tag) oci.Digest {
	w.t.Helper()
	doc["schemaVersion"], doc["mediaType"] = 2, mediaType
	content, err := json.Marshal(doc)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := oci.ParseManifest(mediaType, content)
	if err != nil {
		w.t.Fatal(err)
	}
	d := digest.FromBytes(content)
	if _, err := w.meta.PutManifest(w.t.Context(), meta.Push{Repo: repo, Tags: tags, Digest: d, Manifest: m, Content: content}); err != nil {
		w.t.Fatal(err)
	}
	if w.sizes == nil {
		w.sizes = map[oci.Digest]int{}
	}
	w.sizes[d] = len(content)
	return d
}

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	indexType = "application/vnd.oci.image.index.v1+json"
)

// image pushes an image of one layer, the config being the same blob.
func (w *world) image(repo oci.Name, layer meta.Blob, tags ...oci.Tag) oci.Digest {
	d := func(mediaType string) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": layer.Digest, "size": layer.Size}
	}
	return w.put(repo, imageType, map[string]any{
		"config": d("application/vnd.oci.image.config.v1+json"),
		"layers": []any{d("application/vnd.oci.image.layer.v1.tar")},
	}, tags...)
}

func (w *world) index(repo oci.Name, child oci.Digest, tags ...oci.Tag) oci.Digest {
	return w.put(repo, indexType, map[string]any{
		"manifests": []any{map[string]any{"mediaType": imageType, "digest": child, "size": w.sizes[child]}},
	}, tags...)
}

// plant writes an object that no row names, modified this long ago.
func (w *world) plant(seed, size int, age time.Duration) (key string) {
	w.t.Helper()
	key = blobtest.Key(seed)
	blobtest.Put(w.t, w.blobs, key, blobtest.Bytes(seed, size))
	w.age(key, age)
	return key
}

func (w *world) age(key string, age time.Duration) {
	w.t.Helper()
	at := time.Now().Add(-age)
	if err := os.Chtimes(w.path(key), at, at); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) path(key string) string { return filepath.Join(w.dir, key) }

// exec changes the database behind the store's back.
func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if err := w.tryExec(query, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryExec(query string, args ...any) error {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "fairway.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		return err
	}
	_, err = db.Exec(query, args...)
	return errors.Join(err, db.Close())
}

// check runs a check to its end.
func (w *world) check(r check.Request) check.Report {
	w.t.Helper()
	return w.checkOver(w.blobs, r)
}

func (w *world) checkOver(blobs blob.Store, r check.Request) check.Report {
	w.t.Helper()
	return finish(w.t, check.New(w.meta, blobs, check.Options{}), r)
}

func finish(t testing.TB, c *check.Checker, r check.Request) check.Report {
	t.Helper()
	rep, err := c.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if rep, err = c.Wait(t.Context(), rep.ID); err != nil {
		t.Fatal(err)
	}
	if rep.State != check.StateDone {
		t.Fatalf("the check is %s: %s", rep.State, rep.Error)
	}
	return rep
}

// purge does the collector's part for the purge queue and returns what it deleted.
func (w *world) purge(ctx context.Context) (keys []string, err error) {
	ps, err := w.meta.DuePurges(ctx, 0, 0, "", 1000)
	if err != nil {
		return nil, err
	}
	var done []meta.Purged
	for _, p := range ps {
		freed, err := w.blobs.Delete(ctx, p.Key)
		if err != nil && !errors.Is(err, blob.ErrNotFound) {
			return nil, err
		}
		done, keys = append(done, meta.Purged{Key: p.Key, Freed: freed}), append(keys, p.Key)
	}
	_, err = w.meta.FinishPurges(ctx, 0, done)
	return keys, err
}

func (w *world) mustPurge() []string {
	w.t.Helper()
	keys, err := w.purge(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

// eventually polls until cond is met.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited in vain for: " + what)
		}
	}
}

func text(rep check.Report) string {
	b, err := json.Marshal(rep)
	return fmt.Sprintf("%s %v", b, err)
}

package gc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

const (
	window = 2 * time.Hour
	trash  = 24 * time.Hour
)

// house is a registry without its faces: real metadata, real files, a clock
// that the test moves.
type house struct {
	*testing.T
	dir   string
	clock atomic.Int64
	files *fsblob.Store
	blobs blob.Store // files, or a wrapper around it
	store *meta.Store
	gc    *gc.Collector
	opts  gc.Options
	trace func(query string, args []any) // of the statements; may be nil
	fsync func(*os.File) error           // of the database's log; nil: the real one
	sizes map[oci.Digest]int             // of what was pushed, in bytes
}

func newHouse(t *testing.T) *house {
	h := &house{T: t, dir: t.TempDir(), sizes: map[oci.Digest]int{}}
	h.clock.Store(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixMilli())
	h.opts = gc.Options{Policy: meta.Policy{Window: meta.Duration(window), Trash: meta.Duration(trash)}}
	h.open()
	t.Cleanup(h.close)
	return h
}

func (h *house) open() {
	h.Helper()
	var err error
	if h.files, err = fsblob.Open(h.dir, fsblob.Options{Reserve: 1 << 16, MinFree: 1}); err != nil {
		h.Fatal(err)
	}
	h.blobs = h.files
	if h.store, err = meta.Open(h.ctx(), meta.Options{Path: filepath.Join(h.dir, "fairway.db"), Now: h.clock.Load, Trace: h.trace, Sync: h.fsync}); err != nil {
		h.Fatal(err)
	}
	h.gc = gc.New(h.store, h.blobs, h.opts)
}

func (h *house) close() {
	h.gc.Close()
	if err := errors.Join(h.store.Close(), h.files.Close()); err != nil {
		h.Error(err)
	}
}

// reopen is a restart.
func (h *house) reopen() {
	h.close()
	h.open()
}

// withStore has the collector use a wrapper around the files.
func (h *house) withStore(b blob.Store) {
	h.gc.Close()
	h.blobs = b
	h.gc = gc.New(h.store, b, h.opts)
}

func (h *house) ctx() context.Context { return context.Background() }

func (h *house) pass(d time.Duration) { h.clock.Add(d.Milliseconds()) }

func (h *house) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// push uploads a blob.
func (h *house) push(repo oci.Name, content string) oci.Digest {
	h.Helper()
	u, err := h.store.CreateUpload(h.ctx(), repo, "sha256")
	h.must(err)
	w, err := h.blobs.Append(h.ctx(), u.Key, 0)
	h.must(err)
	_, err = io.WriteString(w, content)
	h.must(err)
	h.must(w.Commit())
	d := digest.FromString(content)
	_, err = h.store.FinishUpload(h.ctx(), u, d, int64(len(content)))
	h.must(err)
	h.sizes[d] = len(content)
	return d
}

func descriptor(mediaType string, d oci.Digest, size int) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": d, "size": size}
}

// manifest renders an image of the given layers; its config is "{}".
func manifest(subject oci.Digest, layers ...string) []byte {
	m := map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeImage,
		"config": descriptor("application/vnd.oci.image.config.v1+json", digest.FromString("{}"), 2)}
	ls := []any{}
	for _, l := range layers {
		ls = append(ls, descriptor("application/vnd.oci.image.layer.v1.tar", digest.FromString(l), len(l)))
	}
	m["layers"] = ls
	if subject != "" {
		m["subject"] = descriptor(oci.MediaTypeImage, subject, 1)
	}
	return render(m)
}

func render(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (h *house) put(repo oci.Name, raw []byte, tags ...oci.Tag) error {
	h.Helper()
	m, err := oci.ParseManifest("", raw)
	h.must(err)
	h.sizes[digest.FromBytes(raw)] = len(raw)
	_, err = h.store.PutManifest(h.ctx(), meta.Push{Repo: repo, Tags: tags, Digest: digest.FromBytes(raw), Manifest: m, Content: raw})
	return err
}

// image pushes an image with its blobs.
func (h *house) image(repo oci.Name, layers []string, tags ...oci.Tag) oci.Digest {
	h.Helper()
	h.push(repo, "{}")
	for _, l := range layers {
		h.push(repo, l)
	}
	raw := manifest("", layers...)
	h.must(h.put(repo, raw, tags...))
	return digest.FromBytes(raw)
}

// indexOf renders an index, with the sizes of the children that were pushed.
func (h *house) indexOf(children ...oci.Digest) []byte {
	cs := []any{}
	for _, c := range children {
		cs = append(cs, descriptor(oci.MediaTypeImage, c, max(h.sizes[c], 1)))
	}
	return render(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeIndex, "manifests": cs})
}

func (h *house) index(repo oci.Name, tag oci.Tag, children ...oci.Digest) oci.Digest {
	h.Helper()
	raw := h.indexOf(children...)
	var tags []oci.Tag
	if tag != "" {
		tags = append(tags, tag)
	}
	h.must(h.put(repo, raw, tags...))
	return digest.FromBytes(raw)
}

func (h *house) delete(repo oci.Name, d oci.Digest) {
	h.Helper()
	h.must(h.store.DeleteManifest(h.ctx(), repo, d, "tester"))
}

func policy(window, trash, untagged time.Duration) meta.Policy {
	return meta.Policy{Window: meta.Duration(window), Trash: meta.Duration(trash), Untagged: meta.Duration(untagged)}
}

// collect runs a collection and returns it when it is over.
func (h *house) collect(p meta.Policy) meta.Run {
	h.Helper()
	run, err := h.gc.Start(h.ctx(), p, gc.TriggerManual, "tester")
	h.must(err)
	run, err = h.gc.Wait(h.ctx(), run.ID)
	h.must(err)
	if run.State != meta.RunDone {
		h.Fatalf("run ended %s: %s", run.State, run.Error)
	}
	return run
}

// collectAll collects without window or trash.
func (h *house) collectAll() meta.Run { h.Helper(); return h.collect(policy(0, 0, 0)) }

func (h *house) hasManifest(repo oci.Name, d oci.Digest) bool {
	h.Helper()
	_, err := h.store.Manifest(h.ctx(), repo, oci.Reference{Digest: d})
	if err != nil && !errors.Is(err, fault.NotFound) {
		h.Fatal(err)
	}
	return err == nil
}

// hasBlob looks without confirming, and reads the bytes.
func (h *house) hasBlob(repo oci.Name, content string) bool {
	h.Helper()
	b, err := h.store.Blob(h.ctx(), repo, digest.FromString(content))
	if errors.Is(err, fault.NotFound) {
		return false
	}
	h.must(err)
	r, err := h.blobs.Open(h.ctx(), b.Key)
	if err != nil {
		h.Fatalf("blob %q is served but its bytes are not there: %v", content, err)
	}
	defer func() { _ = r.Close() }()
	got, err := io.ReadAll(r)
	h.must(err)
	if !bytes.Equal(got, []byte(content)) {
		h.Fatalf("blob %q has other bytes: %q", content, got)
	}
	return true
}

func (h *house) wants(ok bool, format string, args ...any) {
	h.Helper()
	if !ok {
		h.Errorf(format, args...)
	}
}

// objects lists the keys in the blob store.
func (h *house) objects() (keys []string) {
	h.Helper()
	h.must(h.files.Walk(h.ctx(), "", func(i blob.Info) error {
		keys = append(keys, i.Key)
		return nil
	}))
	return keys
}

func everything(t *testing.T, s *meta.Store) meta.Due {
	t.Helper()
	scope, err := s.RepoScope(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	return meta.Due{Before: meta.NoLimit, Scope: scope, Limit: 1000}
}

package meta_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

type db struct {
	*testing.T
	*meta.Store
	clock   atomic.Int64
	path    string
	onStage func() // is called when a large push begins
}

func open(t *testing.T) *db {
	t.Helper()
	d := &db{T: t}
	d.clock.Store(1_700_000_000_000)
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(t.TempDir(), "fairway.db"), Now: d.clock.Load})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *db) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *db) upload(repo oci.Name, content string) oci.Digest {
	d.Helper()
	u, err := d.CreateUpload(context.Background(), repo, "sha256")
	d.must(err)
	_, err = d.FinishUpload(context.Background(), u, digest.FromString(content), int64(len(content)))
	d.must(err)
	return digest.FromString(content)
}

// image renders a manifest whose config is "{}", told apart by an annotation.
func image(name string, layers ...string) []byte {
	ls := []any{}
	for _, l := range layers {
		ls = append(ls, map[string]any{"mediaType": "l", "digest": digest.FromString(l), "size": len(l)})
	}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeImage, "annotations": map[string]string{"name": name},
		"config": map[string]any{"mediaType": "c", "digest": digest.FromString("{}"), "size": 2}, "layers": ls})
	if err != nil {
		panic(err)
	}
	return raw
}

func (d *db) put(repo oci.Name, raw []byte, tags ...oci.Tag) (bool, error) {
	d.Helper()
	m, err := oci.ParseManifest("", raw)
	d.must(err)
	return d.PutManifest(context.Background(), meta.Push{Repo: repo, Tags: tags, Digest: digest.FromBytes(raw), Manifest: m, Content: raw})
}

func tag(t string) oci.Reference { return oci.Reference{Tag: oci.Tag(t)} }

func TestR2_PutManifestIsAllOrNothing(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	raw := image("x", "missing", "gone")
	_, err := d.put("a", raw, "v1")
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != oci.CodeManifestBlobUnknown || !strings.Contains(fmt.Sprint(f.Detail), digest.FromString("gone").String()) {
		t.Fatalf("PUT with missing layers: %v (%+v)", err, f)
	}
	if _, err := d.Manifest(t.Context(), "a", tag("v1")); !errors.Is(err, fault.NotFound) {
		t.Errorf("a refused manifest is served: %v", err)
	}
	d.upload("a", "missing")
	d.upload("a", "gone")
	created, err := d.put("a", raw, "v1")
	if err != nil || !created {
		t.Fatalf("PUT: created %v, %v", created, err)
	}
	created, err = d.put("a", raw, "v2")
	if err != nil || created {
		t.Errorf("PUT again: created %v, %v", created, err)
	}
	got, err := d.Manifest(t.Context(), "a", tag("v2"))
	if err != nil || string(got.Content) != string(raw) || got.MediaType != oci.MediaTypeImage {
		t.Errorf("GET: %+v, %v", got, err)
	}
}

func TestR2_DescriptorWhoseSizeIsNotTheBlobsIsRefused(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	d.upload("a", "layer")
	raw := []byte(strings.Replace(string(image("x", "layer")), `"size":5`, `"size":6`, 1))
	_, err := d.put("a", raw)
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != oci.CodeManifestInvalid {
		t.Errorf("PUT with a wrong size: %v", err)
	}
}

func TestR12_KnowingADigestGivesNoAccess(t *testing.T) {
	d := open(t)
	d.upload("private", "{}")
	layer := d.upload("private", "layer")
	raw := image("x", "layer")
	if _, err := d.put("private", raw, "v1"); err != nil {
		t.Fatal(err)
	}
	d.upload("public", "{}")
	if _, err := d.Blob(t.Context(), "public", layer); !errors.Is(err, fault.NotFound) {
		t.Errorf("GET of another repository's blob: %v", err)
	}
	if _, err := d.ConfirmBlob(t.Context(), "public", layer); !errors.Is(err, fault.NotFound) {
		t.Errorf("HEAD of another repository's blob: %v", err)
	}
	if _, err := d.Manifest(t.Context(), "public", oci.Reference{Digest: digest.FromBytes(raw)}); !errors.Is(err, fault.NotFound) {
		t.Errorf("GET of another repository's manifest: %v", err)
	}
	if _, err := d.put("public", raw, "v1"); !errors.Is(err, fault.Invalid) {
		t.Errorf("PUT that names another repository's blob: %v", err)
	}
	if _, err := d.MountBlob(t.Context(), "public", "elsewhere", layer); !errors.Is(err, fault.NotFound) {
		t.Errorf("mount from a repository that does not have it: %v", err)
	}
	if err := d.DeleteBlob(t.Context(), "public", layer, "x"); !errors.Is(err, fault.NotFound) {
		t.Errorf("DELETE of another repository's blob: %v", err)
	}
}

func TestR3_HeadOfAReferencedBlobWritesNothing(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	layer := d.upload("a", "layer")
	read := func() meta.LinkFacts {
		t.Helper()
		links, _, err := d.FindLinks(t.Context(), "a", layer, 1)
		d.must(err)
		fs, err := d.Links(t.Context(), meta.Due{IDs: []int64{links[0].ID}})
		d.must(err)
		return fs[0]
	}
	head := func() {
		t.Helper()
		_, err := d.ConfirmBlob(t.Context(), "a", layer)
		d.must(err)
	}
	d.clock.Add(5000)
	before := read()
	head()
	at := read()
	if at.Version == before.Version || at.TouchedAt < d.clock.Load() {
		t.Errorf("HEAD of an unreferenced blob was not written down: %+v", at)
	}
	head()
	if again := read(); again.Version != at.Version {
		t.Error("a second HEAD in the same second was written down")
	}
	d.clock.Add(meta.ConfirmAhead)
	head()
	if again := read(); again.Version == at.Version || again.TouchedAt < d.clock.Load() {
		t.Error("a HEAD a second later was not written down")
	}
	if _, err := d.put("a", image("x", "layer"), "v1"); err != nil {
		t.Fatal(err)
	}
	d.clock.Add(5000)
	before = read()
	head()
	if after := read(); after.Version != before.Version {
		t.Error("HEAD of a referenced blob cost a write")
	}
	d.must(d.DeleteManifest(t.Context(), "a", digest.FromBytes(image("x", "layer")), "x"))
	if after := read(); after.TouchedAt != d.clock.Load() {
		t.Errorf("the window does not begin when the last reference goes: touched at %d, now %d", after.TouchedAt, d.clock.Load())
	}
}

func TestR8_QueueHoldsWhatIsAtRiskAndNotWhatWasPushed(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	for i := range 20 {
		layer := fmt.Sprint("layer ", i)
		d.upload("a", layer)
		if _, err := d.put("a", image(layer, layer), oci.Tag(fmt.Sprint("v", i))); err != nil {
			t.Fatal(err)
		}
	}
	d.upload("a", "at risk")
	st, err := d.Stats(t.Context())
	d.must(err)
	if st.Reviews != 1 {
		t.Errorf("%d reviews after 20 images and one loose blob, want 1", st.Reviews)
	}
}

// Whoever has been told of a PUT, a tag's move or a deletion reads it, from
// whichever goroutine: the cache is never behind a commit that was told of.
func TestCacheIsNeverStale(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	var raws [8][]byte
	for i := range raws {
		raws[i] = image(fmt.Sprint(i))
	}
	var told atomic.Int64 // number of the last PUT that was told of
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	number := map[oci.Digest]int{}
	for i, raw := range raws {
		number[digest.FromBytes(raw)] = i
	}
	if _, err := d.put("a", raws[0], "latest"); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				before := told.Load()
				m, err := d.Manifest(context.Background(), "a", tag("latest"))
				after := told.Load() + 1 // one more may be under way
				if err != nil {
					t.Error(err)
					return
				}
				ok := false
				for n := before; n <= after; n++ {
					ok = ok || number[m.Digest] == int(n)%len(raws)
				}
				if !ok && after-before < int64(len(raws)) {
					t.Errorf("read PUT %d, told were %d to %d", number[m.Digest], before, after)
					return
				}
			}
		}()
	}
	for n := int64(1); n <= 200 && !t.Failed(); n++ {
		if _, err := d.put("a", raws[n%int64(len(raws))], "latest"); err != nil {
			t.Fatal(err)
		}
		told.Store(n)
	}
	cancel()
	wg.Wait()
}

func TestManifestConfirmationOfAnUntaggedManifestIsWrittenDown(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	raw := image("x")
	if _, err := d.put("a", raw); err != nil {
		t.Fatal(err)
	}
	ref := oci.Reference{Digest: digest.FromBytes(raw)}
	d.clock.Add(60_000)
	if _, err := d.Manifest(t.Context(), "a", ref); err != nil {
		t.Fatal(err)
	}
	ms, err := d.FindManifests(t.Context(), "a", ref.Digest, 1)
	d.must(err)
	fs, err := d.Orphans(t.Context(), meta.Due{IDs: []int64{ms[0].ID}})
	d.must(err)
	if fs[0].TouchedAt < d.clock.Load() {
		t.Errorf("touched at %d, want at least %d", fs[0].TouchedAt, d.clock.Load())
	}
}

func TestRestore_LeavesATagThatNamesAnotherManifest(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	old, next := image("old"), image("new")
	if _, err := d.put("a", old, "latest", "v1"); err != nil {
		t.Fatal(err)
	}
	d.must(d.DeleteManifest(t.Context(), "a", digest.FromBytes(old), "x"))
	if _, err := d.put("a", next, "latest"); err != nil {
		t.Fatal(err)
	}
	got, err := d.Restore(t.Context(), "a", digest.FromBytes(old), "x")
	d.must(err)
	if fmt.Sprint(got.Tags, got.TagsTaken) != "[v1] [latest]" {
		t.Errorf("restored %v, left %v", got.Tags, got.TagsTaken)
	}
	m, err := d.Manifest(t.Context(), "a", tag("latest"))
	d.must(err)
	if m.Digest != digest.FromBytes(next) {
		t.Error("restore moved a tag that had another manifest")
	}
	if _, err := d.Restore(t.Context(), "a", digest.FromBytes(old), "x"); !errors.Is(err, fault.NotFound) {
		t.Errorf("restore of what is not in the trash: %v", err)
	}
}

func TestListings(t *testing.T) {
	d := open(t)
	for _, repo := range []oci.Name{"b", "a/x", "a"} {
		d.upload(repo, "{}")
		if _, err := d.put(repo, image("i"), "v1", "V2", "v10"); err != nil {
			t.Fatal(err)
		}
	}
	d.upload("blobs-only", "x")
	names, more, err := d.Repositories(t.Context(), "", -1)
	if fmt.Sprint(names, more, err) != "[a a/x b] false <nil>" {
		t.Errorf("repositories: %v %v %v", names, more, err)
	}
	names, more, err = d.Repositories(t.Context(), "a", 1)
	if fmt.Sprint(names, more, err) != "[a/x] true <nil>" {
		t.Errorf("repositories after a: %v %v %v", names, more, err)
	}
	tags, more, err := d.Tags(t.Context(), "a", "", 2)
	if fmt.Sprint(tags, more, err) != "[V2 v1] true <nil>" {
		t.Errorf("tags: %v %v %v", tags, more, err)
	}
	tags, more, err = d.Tags(t.Context(), "a", "v1", 5)
	if fmt.Sprint(tags, more, err) != "[v10] false <nil>" {
		t.Errorf("tags after v1: %v %v %v", tags, more, err)
	}
	if tags, more, err = d.Tags(t.Context(), "a", "", 0); len(tags) != 0 || !more || err != nil {
		t.Errorf("no tags: %v %v %v", tags, more, err)
	}
}

func TestCacheOfTagsIsNeverStale(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	list := func() string {
		t.Helper()
		tags, _, err := d.Tags(t.Context(), "a", "", -1)
		if err != nil {
			return fault.KindOf(err).Error()
		}
		return strings.Join(tags, " ")
	}
	want := func(what, tags string) {
		t.Helper()
		if got := list(); got != tags {
			t.Errorf("%s: tags are %q, want %q", what, got, tags)
		}
	}
	want("before the first", "")
	raw := image("i")
	_, err := d.put("a", raw, "v2", "v1")
	d.must(err)
	want("after a push", "v1 v2")
	_, err = d.put("a", image("j"), "v3")
	d.must(err)
	want("after another", "v1 v2 v3")
	d.must(d.DeleteTag(t.Context(), "a", "v2", "x"))
	want("after a tag was deleted", "v1 v3")
	d.must(d.DeleteManifest(t.Context(), "a", digest.FromBytes(raw), "x"))
	want("after a manifest was deleted", "v3")
	_, err = d.Restore(t.Context(), "a", digest.FromBytes(raw), "x")
	d.must(err)
	want("after it was restored", "v1 v3")

	many := make([]oci.Tag, 2100)
	for i := range many {
		many[i] = oci.Tag(fmt.Sprintf("n%04d", i))
	}
	_, err = d.put("a", raw, many...)
	d.must(err)
	tags, more, err := d.Tags(t.Context(), "a", "n2097", 5)
	if fmt.Sprint(tags, more, err) != "[n2098 n2099 v1 v3] false <nil>" {
		t.Errorf("of more tags than the cache takes: %v %v %v", tags, more, err)
	}
}

func TestRepositoryPatterns(t *testing.T) {
	d := open(t)
	for _, repo := range []oci.Name{"team/a", "team/b/c", "teams", "x/team/a"} {
		d.upload(repo, "{}")
	}
	for pattern, want := range map[string]int{"team/*": 1, "team/**": 2, "**/a": 2, "team?": 1, "**": 4, "team/a": 1, "*": 1, "none*": 0} {
		scope, err := d.RepoScope(t.Context(), pattern)
		d.must(err)
		n := 0
		for id := range int64(10) {
			if scope.Has(id) {
				n++
			}
		}
		if n != want {
			t.Errorf("%s selects %d repositories, want %d", pattern, n, want)
		}
	}
}

func BenchmarkManifest_Cached(b *testing.B) {
	s, err := meta.Open(b.Context(), meta.Options{Path: filepath.Join(b.TempDir(), "fairway.db")})
	if err != nil {
		b.Fatal(err)
	}
	raw := []byte(`{"schemaVersion":2,"manifests":[]}`)
	m, err := oci.ParseManifest("", raw)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.PutManifest(b.Context(), meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: m, Content: raw}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Manifest(b.Context(), "a", oci.Reference{Tag: "v1"}); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

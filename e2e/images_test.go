package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// images are OCI layouts made of Debian packages, each with one image in it.
type images struct {
	busybox    string // busybox-static
	busyboxOn  string // the same with one more layer on top
	busyboxArm string // the same content, said to be for arm64
	debian     string // libc6, coreutils, bash
	debianPerl string // the same with perl in a layer on top
}

var layouts struct {
	once sync.Once
	ok   bool
	all  images
}

// theImages builds the images on first use.
func theImages(t *testing.T) images {
	t.Helper()
	layouts.once.Do(func() {
		dir := filepath.Join(scratch, "images")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all := images{
			busybox: filepath.Join(dir, "busybox"), busyboxOn: filepath.Join(dir, "busybox-on"), busyboxArm: filepath.Join(dir, "busybox-arm"),
			debian: filepath.Join(dir, "debian"), debianPerl: filepath.Join(dir, "debian-perl"),
		}
		busyboxImages(t, all)
		debianImages(t, all)
		layouts.all, layouts.ok = all, true
	})
	if !layouts.ok {
		t.Fatal("the images could not be built; the first test that needed them says why")
	}
	return layouts.all
}

func busyboxImages(t *testing.T, im images) {
	root := rootfs(t)
	unpack(t, root, "busybox-static")
	busybox := filepath.Join(root, "bin", "busybox")
	for _, applet := range strings.Fields(run(t, busybox, "--list")) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	newImage(t, im.busybox, "amd64", root)

	extra := rootfs(t)
	noise := make([]byte, 300_000) // incompressible, so that its layer has its size
	_, _ = rand.Read(noise)        // never fails
	if err := os.WriteFile(filepath.Join(extra, "noise"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	copyLayout(t, im.busybox, im.busyboxOn)
	addLayer(t, im.busyboxOn, extra)
	copyLayout(t, im.busybox, im.busyboxArm)
	run(t, "umoci", "config", "--image", im.busyboxArm+":img", "--architecture", "arm64")
	run(t, "umoci", "gc", "--layout", im.busyboxArm)
}

func debianImages(t *testing.T, im images) {
	root := rootfs(t)
	for _, name := range []string{"libc6", "coreutils", "bash", "libacl1", "libattr1", "libgmp10", "libselinux1", "libpcre2-8-0", "libtinfo6"} {
		unpack(t, root, name)
	}
	newImage(t, im.debian, "amd64", root)
	perl := rootfs(t)
	for _, name := range []string{"perl-base", "libperl5.36", "libcrypt1"} {
		unpack(t, perl, name)
	}
	copyLayout(t, im.debian, im.debianPerl)
	addLayer(t, im.debianPerl, perl)
}

func rootfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "rootfs-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// unpack unpacks a Debian package that scripts/tools.sh has fetched.
func unpack(t *testing.T, root, name string) {
	t.Helper()
	found, err := filepath.Glob("../.tools/debs/" + name + "_*.deb")
	if err != nil || len(found) == 0 {
		t.Fatalf("the Debian package %s is needed: run scripts/tools.sh e2e", name)
	}
	run(t, "dpkg-deb", "-x", found[len(found)-1], root)
}

func newImage(t *testing.T, layout, arch, root string) {
	t.Helper()
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", layout+":img")
	run(t, "umoci", "config", "--image", layout+":img", "--os", "linux", "--architecture", arch,
		"--config.cmd", "/bin/sh", "--config.env", "PATH=/bin:/usr/bin")
	addLayer(t, layout, root)
}

func addLayer(t *testing.T, layout, root string) {
	t.Helper()
	run(t, "umoci", "insert", "--rootless", "--image", layout+":img", root, "/")
	run(t, "umoci", "gc", "--layout", layout)
}

func copyLayout(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// top is the digest of the one image in a layout.
func top(t *testing.T, layout string) digest.Digest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 {
		t.Fatalf("%s has %d images, want 1", layout, len(index.Manifests))
	}
	return index.Manifests[0].Digest
}

// sameImage checks that the layout a client pulled has exactly the image of the
// layout it pushed, byte for byte.
func sameImage(t *testing.T, pushed, pulled string) {
	t.Helper()
	want, got := top(t, pushed), top(t, pulled)
	if want != got {
		t.Errorf("pulled %s, pushed %s", got, want)
	}
	checkLayout(t, pulled, got)
}

func checkLayout(t *testing.T, layout string, d digest.Digest) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	if d.Algorithm().FromBytes(b) != d {
		t.Errorf("%s in %s does not have its digest", d, layout)
	}
	for _, below := range parse(t, b).all() {
		checkLayout(t, layout, below.Digest)
	}
}

// document is any manifest or index.
type document struct {
	Version   int             `json:"schemaVersion"`
	Config    *v1.Descriptor  `json:"config"`
	Layers    []v1.Descriptor `json:"layers"`
	Manifests []v1.Descriptor `json:"manifests"`
}

func (d document) blobs() []v1.Descriptor {
	if d.Config == nil {
		return d.Layers
	}
	return append([]v1.Descriptor{*d.Config}, d.Layers...)
}

func (d document) all() []v1.Descriptor { return append(d.blobs(), d.Manifests...) }

// parse reads b as a manifest; anything else, such as a layer or a config, names
// nothing.
func parse(t *testing.T, b []byte) document {
	t.Helper()
	var d document
	if len(b) == 0 || b[0] != '{' || len(b) > 4<<20 {
		return d
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatalf("%v in %.200s", err, b)
	}
	if d.Version != 2 {
		return document{}
	}
	return d
}

// contents are the digests an image consists of, with their sizes in bytes.
type contents struct {
	repo, ref string
	top       digest.Digest
	manifests map[digest.Digest]int64
	blobs     map[digest.Digest]int64
}

// whole pulls everything that REPO:TAG or REPO@DIGEST names and checks every
// digest.
func (s *server) whole(name string) contents {
	s.t.Helper()
	repo, ref := splitName(name)
	c := contents{repo: repo, ref: ref, manifests: map[digest.Digest]int64{}, blobs: map[digest.Digest]int64{}}
	c.top = s.pull(&c, ref)
	return c
}

func splitName(name string) (repo, ref string) {
	if repo, ref, ok := strings.Cut(name, "@"); ok {
		return repo, ref
	}
	i := strings.LastIndexByte(name, ':')
	return name[:i], name[i+1:]
}

func (s *server) pull(c *contents, ref string) digest.Digest {
	s.t.Helper()
	resp := s.do(http.MethodGet, "/v2/"+c.repo+"/manifests/"+ref, http.Header{"Accept": {
		v1.MediaTypeImageManifest, v1.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
	}}, nil)
	b := s.bytes(resp)
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("pull %s:%s: %s %s", c.repo, ref, resp.Status, b)
	}
	d := digest.FromBytes(b)
	if got := resp.Header.Get("Docker-Content-Digest"); got != d.String() {
		s.t.Errorf("%s:%s: Docker-Content-Digest is %q, its bytes have %s", c.repo, ref, got, d)
	}
	if strings.Contains(ref, ":") && ref != d.String() {
		s.t.Errorf("asked for %s, got %s", ref, d)
	}
	c.manifests[d] = int64(len(b))
	doc := parse(s.t, b)
	for _, m := range doc.Manifests {
		s.pull(c, m.Digest.String())
	}
	for _, blob := range doc.blobs() {
		resp := s.do(http.MethodGet, "/v2/"+c.repo+"/blobs/"+blob.Digest.String(), nil, nil)
		b := s.bytes(resp)
		if resp.StatusCode != http.StatusOK || digest.FromBytes(b) != blob.Digest || int64(len(b)) != blob.Size {
			s.t.Fatalf("%s:%s: blob %s: %s, %d bytes with digest %s", c.repo, ref, blob.Digest, resp.Status, len(b), digest.FromBytes(b))
		}
		c.blobs[blob.Digest] = blob.Size
	}
	return d
}

func (s *server) bytes(resp *http.Response) []byte {
	s.t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// deleteAndCollect is the story every client tells: what is dropped is gone
// with its bytes after one collection, and what is kept still pulls whole.
func (s *server) deleteAndCollect(keep, drop []string, remove func(name string)) {
	s.t.Helper()
	var kept, dropped []contents
	for _, name := range keep {
		kept = append(kept, s.whole(name))
	}
	for _, name := range drop {
		dropped = append(dropped, s.whole(name))
	}
	before, _ := s.disk()
	for _, name := range drop {
		remove(name)
	}
	r := s.collect()
	after, objects := s.disk()
	if r.Collected == 0 || r.FreedBytes != before-after {
		s.t.Errorf("collected %d items and freed %d bytes, by its own account; the disk went from %d to %d bytes", r.Collected, r.FreedBytes, before, after)
	}

	stored := map[digest.Digest]int64{} // what must be left on disk
	needed := map[string]bool{}         // repository and digest
	for i, name := range keep {
		again := s.whole(name)
		if again.top != kept[i].top {
			s.t.Errorf("%s is %s after the collection, was %s", name, again.top, kept[i].top)
		}
		for d, size := range again.blobs {
			stored[d], needed[again.repo+d.String()] = size, true
		}
		for d := range again.manifests {
			needed[again.repo+d.String()] = true
		}
	}
	var want int64
	for _, size := range stored {
		want += size
	}
	if after != want || objects != len(stored) {
		s.t.Errorf("%d objects with %d bytes are left, want the %d blobs with %d bytes that living images need", objects, after, len(stored), want)
	}
	for _, c := range dropped {
		s.gone(c, needed)
	}
}

// gone checks that nothing of c is served but what others need.
func (s *server) gone(c contents, needed map[string]bool) {
	s.t.Helper()
	checked := 0
	probe := func(kind, ref string) {
		checked++
		if got := s.status(http.MethodHead, fmt.Sprintf("/v2/%s/%s/%s", c.repo, kind, ref)); got != http.StatusNotFound {
			s.t.Errorf("%s %s of %s answers %d after its deletion", kind, ref, c.repo, got)
		}
	}
	probe("manifests", c.ref)
	for d := range c.manifests {
		if !needed[c.repo+d.String()] {
			probe("manifests", d.String())
		}
	}
	for d := range c.blobs {
		if !needed[c.repo+d.String()] {
			probe("blobs", d.String())
		}
	}
	if checked < 3 {
		s.t.Errorf("%s:%s shares everything with what is kept: it proves nothing", c.repo, c.ref)
	}
}

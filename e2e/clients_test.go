package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
)

func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "skopeo", append([]string{"--insecure-policy"}, args...)...)
}

func TestSkopeo_PushPullDeleteCollect(t *testing.T) {
	im, s := theImages(t), serve(t)
	push := func(layout, name string) {
		skopeo(t, "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", "oci:"+layout+":img", "docker://"+s.host+"/"+name)
	}
	push(im.busybox, "shop/busybox:1")
	push(im.busyboxOn, "shop/busybox:2")
	push(im.debian, "shop/debian:1")
	push(im.debianPerl, "shop/debian:perl")
	push(im.busybox, "elsewhere/busybox:1") // skopeo mounts what it knows to be there

	out := filepath.Join(t.TempDir(), "pulled")
	skopeo(t, "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "docker://"+s.host+"/shop/debian:perl", "oci:"+out+":img")
	sameImage(t, im.debianPerl, out)

	s.deleteAndCollect(
		[]string{"shop/busybox:1", "shop/debian:1", "elsewhere/busybox:1"},
		[]string{"shop/busybox:2", "shop/debian:perl"},
		func(name string) { skopeo(t, "delete", "--tls-verify=false", "docker://"+s.host+"/"+name) })
}

func TestCrane_PushPullDeleteCollect(t *testing.T) {
	im, s := theImages(t), serve(t)
	run(t, "crane", "push", im.busybox, s.host+"/shop/busybox:1")
	run(t, "crane", "push", im.busyboxOn, s.host+"/shop/busybox:2")
	run(t, "crane", "push", im.debianPerl, s.host+"/shop/debian:perl")
	run(t, "crane", "copy", s.host+"/shop/busybox:1", s.host+"/copies/busybox:1")
	if got := run(t, "crane", "digest", s.host+"/copies/busybox:1"); strings.TrimSpace(got) != top(t, im.busybox).String() {
		t.Errorf("the copy has the digest %s, want %s", got, top(t, im.busybox))
	}
	if got := strings.Fields(run(t, "crane", "ls", s.host+"/shop/busybox")); strings.Join(got, " ") != "1 2" {
		t.Errorf("crane ls: %q", got)
	}
	if got := strings.Fields(run(t, "crane", "catalog", s.host)); strings.Join(got, " ") != "copies/busybox shop/busybox shop/debian" {
		t.Errorf("crane catalog: %q", got)
	}

	out := filepath.Join(t.TempDir(), "pulled")
	run(t, "crane", "pull", "--format", "oci", s.host+"/shop/busybox:2", out)
	sameImage(t, im.busyboxOn, out)

	s.deleteAndCollect(
		[]string{"shop/busybox:1", "copies/busybox:1"},
		[]string{"shop/busybox:2", "shop/debian:perl"},
		func(name string) {
			repo, _ := splitName(name)
			run(t, "crane", "delete", s.host+"/"+repo+"@"+strings.TrimSpace(run(t, "crane", "digest", s.host+"/"+name)))
		})
}

// TestCrane_MultiArchIndexKeepsItsChildren deletes the tags of the children of
// an index: R1 keeps them until the index goes.
func TestCrane_MultiArchIndexKeepsItsChildren(t *testing.T) {
	im, s := theImages(t), serve(t)
	run(t, "crane", "push", im.busybox, s.host+"/multi:amd64")
	run(t, "crane", "push", im.busyboxArm, s.host+"/multi:arm64")
	run(t, "crane", "push", im.debian, s.host+"/other:1")
	run(t, "crane", "index", "append", "-m", s.host+"/multi:amd64", "-m", s.host+"/multi:arm64", "-t", s.host+"/multi:1")
	for _, tag := range []string{"amd64", "arm64"} {
		if got := s.status(http.MethodDelete, "/v2/multi/manifests/"+tag); got != http.StatusAccepted {
			t.Fatalf("delete the tag %s: %d", tag, got)
		}
	}
	s.collect("--untagged", "1ms")
	if c := s.whole("multi:1"); len(c.manifests) != 3 {
		t.Errorf("the index and its children are %d manifests, want 3", len(c.manifests))
	}
	out := filepath.Join(t.TempDir(), "arm")
	run(t, "crane", "pull", "--format", "oci", "--platform", "linux/arm64", s.host+"/multi:1", out)
	checkLayout(t, out, top(t, im.busyboxArm))

	s.deleteAndCollect([]string{"other:1"}, []string{"multi:1"}, func(string) {
		run(t, "crane", "delete", s.host+"/multi@"+strings.TrimSpace(run(t, "crane", "digest", s.host+"/multi:1")))
	})
}

func regctl(t *testing.T, s *server, args ...string) string {
	t.Helper()
	return run(t, "regctl", append([]string{"--host", "reg=" + s.host + ",tls=disabled"}, args...)...)
}

func TestRegctl_PushPullDeleteCollectWithReferrers(t *testing.T) {
	im, s := theImages(t), serve(t)
	regctl(t, s, "image", "copy", "ocidir://"+im.debian+":img", s.host+"/shop/debian:1")
	regctl(t, s, "image", "copy", "ocidir://"+im.debianPerl+":img", s.host+"/shop/debian:perl")
	regctl(t, s, "index", "create", s.host+"/shop/debian:index", "--ref", s.host+"/shop/debian:1")
	note := filepath.Join(t.TempDir(), "sbom.json")
	if err := os.WriteFile(note, []byte(`{"packages":["perl-base"]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"1", "perl"} {
		regctl(t, s, "artifact", "put", "--subject", s.host+"/shop/debian:"+tag, "--artifact-type", "application/vnd.example.sbom",
			"--annotation", "of="+tag, "-f", note)
	}
	perl := s.whole("shop/debian:perl")
	list := regctl(t, s, "artifact", "list", "--format", "{{range .Descriptors}}{{.Digest}} {{end}}", s.host+"/shop/debian:perl")
	referrer := strings.TrimSpace(list)
	if _, err := digest.Parse(referrer); err != nil {
		t.Fatalf("the referrers of the image are %q, want one", list)
	}

	out := filepath.Join(t.TempDir(), "pulled")
	regctl(t, s, "image", "copy", s.host+"/shop/debian:perl", "ocidir://"+out+":img")
	sameImage(t, im.debianPerl, out)

	regctl(t, s, "manifest", "delete", s.host+"/shop/debian@"+perl.top.String())
	s.collect()
	if got := s.status(http.MethodHead, "/v2/shop/debian/manifests/"+referrer); got != http.StatusNotFound {
		t.Errorf("the referrer of a deleted subject answers %d", got)
	}
	kept := regctl(t, s, "artifact", "list", "--format", "{{len .Descriptors}}", s.host+"/shop/debian:1")
	if strings.TrimSpace(kept) != "1" {
		t.Errorf("the living image has %s referrers, want 1", kept)
	}
	s.whole("shop/debian:index")

	regctl(t, s, "image", "copy", "ocidir://"+im.debianPerl+":img", s.host+"/shop/debian:perl")
	regctl(t, s, "tag", "delete", s.host+"/shop/debian:perl")
	if got := s.status(http.MethodHead, "/v2/shop/debian/manifests/"+perl.top.String()); got != http.StatusOK {
		t.Errorf("deleting the tag took the manifest along: %d", got)
	}
}

func TestBuildah_PushPullRunDeleteCollect(t *testing.T) {
	im, s := theImages(t), serve(t)
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	store := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "runroot")}
	buildah := func(args ...string) string {
		return run(t, "buildah", append(append([]string{}, store...), args...)...)
	}

	base := strings.TrimSpace(buildah("from", "--signature-policy", policy, "oci:"+im.debian+":img"))
	buildah("config", "--label", "made=here", base)
	made := filepath.Join(dir, "made.txt")
	if err := os.WriteFile(made, bytes.Repeat([]byte("by buildah\n"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	buildah("copy", base, made, "/etc/made.txt")
	buildah("commit", "--signature-policy", policy, base, "built:1")
	buildah("push", "-q", "--signature-policy", policy, "--tls-verify=false", "built:1", "docker://"+s.host+"/built:1")
	buildah("push", "-q", "--signature-policy", policy, "--tls-verify=false", "built:1", "docker://"+s.host+"/copy/built:1")
	skopeo(t, "copy", "-q", "--dest-tls-verify=false", "oci:"+im.busybox+":img", "docker://"+s.host+"/busybox:1")
	buildah("rm", "-a")
	buildah("rmi", "-a", "-f")

	again := strings.TrimSpace(buildah("from", "--signature-policy", policy, "--tls-verify=false", s.host+"/built:1"))
	if got := buildah("run", "--isolation", "chroot", again, "/bin/cat", "/etc/made.txt"); !strings.HasPrefix(got, "by buildah\n") {
		t.Errorf("the pulled image runs and says %q", got)
	}
	buildah("rm", "-a")

	s.deleteAndCollect([]string{"copy/built:1"}, []string{"busybox:1"}, s.delete)
	s.deleteAndCollect(nil, []string{"copy/built:1", "built:1"}, s.delete)
}

// delete deletes a manifest by its digest, for clients that cannot.
func (s *server) delete(name string) {
	s.t.Helper()
	repo, _ := splitName(name)
	if got := s.status(http.MethodDelete, "/v2/"+repo+"/manifests/"+s.whole(name).top.String()); got != http.StatusAccepted {
		s.t.Fatalf("delete %s: %d", name, got)
	}
}

func TestOrasGo_PushPullDeleteCollectWithReferrers(t *testing.T) {
	im, s := theImages(t), serve(t)
	ctx := t.Context()
	repo, err := remote.NewRepository(s.host + "/shop/busybox")
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	for layout, tag := range map[string]string{im.busybox: "1", im.busyboxOn: "2"} {
		source, err := oci.NewFromFS(ctx, os.DirFS(layout))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := oras.Copy(ctx, source, "img", repo, tag, oras.DefaultCopyOptions); err != nil {
			t.Fatalf("push %s: %v", tag, err)
		}
	}
	subject, err := repo.Resolve(ctx, "2")
	if err != nil {
		t.Fatal(err)
	}
	signature := content.NewDescriptorFromBytes("application/vnd.example.signature", []byte("signed, me"))
	if err := repo.Push(ctx, signature, strings.NewReader("signed, me")); err != nil {
		t.Fatal(err)
	}
	artifact, err := oras.PackManifest(ctx, repo, oras.PackManifestVersion1_1, "application/vnd.example.signature",
		oras.PackManifestOptions{Subject: &subject, Layers: []v1.Descriptor{signature}})
	if err != nil {
		t.Fatal(err)
	}
	if got := referrers(t, repo, subject); len(got) != 1 || got[0] != artifact.Digest {
		t.Errorf("referrers are %v, want %s", got, artifact.Digest)
	}

	pulled, err := oci.New(filepath.Join(t.TempDir(), "pulled"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := oras.ExtendedCopy(ctx, repo, "2", pulled, "img", oras.DefaultExtendedCopyOptions); err != nil || d.Digest != top(t, im.busyboxOn) {
		t.Fatalf("pull: %v, %v; want %s", d.Digest, err, top(t, im.busyboxOn))
	}
	if ok, err := pulled.Exists(ctx, artifact); err != nil || !ok {
		t.Errorf("the referrer was not pulled along: %v", err)
	}

	s.deleteAndCollect([]string{"shop/busybox:1"}, []string{"shop/busybox:2"}, func(string) {
		if err := repo.Delete(ctx, subject); err != nil {
			t.Fatal(err)
		}
	})
	if got := s.status(http.MethodHead, fmt.Sprintf("/v2/shop/busybox/manifests/%s", artifact.Digest)); got != http.StatusNotFound {
		t.Errorf("the referrer of a deleted subject answers %d", got)
	}
	if got := referrers(t, repo, subject); len(got) != 0 {
		t.Errorf("the referrers of a deleted subject are %v", got)
	}
}

func referrers(t *testing.T, repo *remote.Repository, of v1.Descriptor) []digest.Digest {
	t.Helper()
	var all []digest.Digest
	err := repo.Referrers(t.Context(), of, "application/vnd.example.signature", func(page []v1.Descriptor) error {
		for _, d := range page {
			all = append(all, d.Digest)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestTrash_RestoresWhatAClientDeleted takes the long way round: deleted,
// collected into the trash, restored, pulled.
func TestTrash_RestoresWhatAClientDeleted(t *testing.T) {
	im, s := theImages(t), serve(t)
	run(t, "crane", "push", im.busyboxOn, s.host+"/shop/busybox:2")
	before := s.whole("shop/busybox:2")
	run(t, "crane", "delete", s.host+"/shop/busybox@"+before.top.String())
	if got := s.status(http.MethodHead, "/v2/shop/busybox/manifests/2"); got != http.StatusNotFound {
		t.Fatalf("a deleted tag answers %d", got)
	}
	s.cli("gc", "run", "--window", "0", "--json")
	if !strings.Contains(s.cli("trash", "ls", "--json"), before.top.String()) {
		t.Error("the trash does not list what was deleted")
	}
	s.cli("trash", "restore", "shop/busybox@"+before.top.String())
	if after := s.whole("shop/busybox:2"); after.top != before.top || len(after.blobs) != len(before.blobs) {
		t.Errorf("restored %v, deleted %v", after, before)
	}
	if out := s.cli("explain", "--json", "shop/busybox:2"); !strings.Contains(out, "kept") {
		t.Errorf("explain: %s", out)
	}
	s.deleteAndCollect(nil, []string{"shop/busybox:2"}, s.delete)
}

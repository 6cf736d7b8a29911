package node

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const mib = 1 << 20

// image is an image as it was made: an OCI layout, and what is in it.
type image struct {
	dir      string
	repo     string // REPO:TAG below the registry
	index    v1.Descriptor
	manifest v1.Descriptor // this machine's
	config   v1.Descriptor
	layers   []v1.Descriptor
}

// all lists every blob that a container of the image needs, manifests included.
func (im image) all() []digest.Digest {
	ds := []digest.Digest{im.index.Digest, im.manifest.Digest, im.config.Digest}
	for _, l := range im.layers {
		ds = append(ds, l.Digest)
	}
	return ds
}

// layer is a layer in the making.
type layer struct {
	desc    v1.Descriptor
	diffID  digest.Digest
	content []byte
}

// randomLayer has one file of the given size that does not compress. The seed
// makes it the same in every run.
func randomLayer(t testing.TB, seed uint64, sizeBytes int) layer {
	t.Helper()
	content := make([]byte, sizeBytes)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(content) // never fails
	return newLayer(t, func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("noise-%d", seed), Mode: 0o644, Size: int64(sizeBytes)}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	})
}

var busybox struct {
	sync.Once
	layer, pause layer
}

// busyboxLayer is Debian's static busybox with its applets, the base layer of
// every image that runs.
func busyboxLayer(t testing.TB) layer {
	t.Helper()
	busybox.Do(func() {
		found, err := filepath.Glob("../../.tools/debs/busybox-static_*.deb")
		if err != nil || len(found) == 0 {
			t.Fatal("the Debian package busybox-static is needed: run make e2e-tools")
		}
		root := filepath.Join(scratch, "busybox")
		run(t, "dpkg-deb", "-x", found[len(found)-1], root)
		program, err := os.ReadFile(filepath.Join(root, "bin", "busybox"))
		if err != nil {
			t.Fatal(err)
		}
		applets := strings.Fields(run(t, filepath.Join(root, "bin", "busybox"), "--list"))
		busybox.layer = newLayer(t, func(w *tar.Writer) error { return writeBusybox(w, program, applets) })
		busybox.pause = newLayer(t, func(w *tar.Writer) error { return writeBusybox(w, program, []string{"sleep"}) })
	})
	if busybox.layer.content == nil {
		t.Fatal("there is no busybox; the first test that needed it says why")
	}
	return busybox.layer
}

// pauseLayer is one that only sandboxes have.
func pauseLayer(t testing.TB) layer {
	t.Helper()
	busyboxLayer(t)
	return busybox.pause
}

func writeBusybox(w *tar.Writer, program []byte, applets []string) error {
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{"bin/busybox", program}, {"etc/passwd", []byte("root:x:0:0:root:/:/bin/sh\n")}} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o755, Size: int64(len(f.content))}); err != nil {
			return err
		}
		if _, err := w.Write(f.content); err != nil {
			return err
		}
	}
	for _, applet := range applets {
		if applet == "busybox" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	return nil
}

// newLayer packs a layer. It is wrapped in gzip without compressing, so that its
// digest and its diff ID differ as they do in practice, and its size is known.
func newLayer(t testing.TB, write func(*tar.Writer) error) layer {
	t.Helper()
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(&packed, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return layer{
		desc:    v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len())},
		diffID:  digest.FromBytes(plain.Bytes()),
		content: packed.Bytes(),
	}
}

// buildImage writes an image for two platforms, of which this machine's has the
// layers, as an OCI layout.
func buildImage(t testing.TB, repo string, entry []string, layers ...layer) image {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "image-")
	if err != nil {
		t.Fatal(err)
	}
	im := image{dir: dir, repo: repo}
	write := func(mediaType string, content []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		path := filepath.Join(dir, v1.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
		writeFile(t, path, content)
		return d
	}
	writeJSON := func(mediaType string, v any) v1.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return write(mediaType, b)
	}
	var diffIDs []digest.Digest
	for _, l := range layers {
		write(l.desc.MediaType, l.content)
		im.layers, diffIDs = append(im.layers, l.desc), append(diffIDs, l.diffID)
	}
	var platforms []v1.Descriptor
	other := map[bool]string{true: "arm64", false: "amd64"}[runtime.GOARCH != "arm64"]
	for _, arch := range []string{runtime.GOARCH, other} {
		platform := v1.Platform{OS: "linux", Architecture: arch}
		config := writeJSON(v1.MediaTypeImageConfig, v1.Image{
			Platform: platform, Author: repo, RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs},
			Config: v1.ImageConfig{Env: []string{"PATH=/bin"}, Entrypoint: entry},
		})
		m := writeJSON(v1.MediaTypeImageManifest, v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: im.layers,
		})
		if m.Platform = &platform; arch == runtime.GOARCH {
			im.manifest, im.config = m, config
		}
		platforms = append(platforms, m)
	}
	// What crane pushes is the layout's own index, byte for byte.
	top, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: platforms,
	})
	if err != nil {
		t.Fatal(err)
	}
	im.index = v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromBytes(top), Size: int64(len(top))}
	writeFile(t, filepath.Join(dir, v1.ImageIndexFile), top)
	writeFile(t, filepath.Join(dir, v1.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return im
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

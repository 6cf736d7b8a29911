package crowd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of random layers that a registry has.
type Image struct {
	Repo, Tag string
	Manifest  digest.Digest
	Config    v1.Descriptor
	Layers    []v1.Descriptor
}

// Size is that of its layers.
func (im Image) Size() (n int64) {
	for _, l := range im.Layers {
		n += l.Size
	}
	return n
}

// Noise returns a layer that is the same for each seed.
func Noise(size int, seed uint64) []byte {
	content := make([]byte, size)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(content) // never fails
	return content
}

// Push pushes an image with these layers straight to the registry.
func (g *Origin) Push(ctx context.Context, repo, tag string, layers ...[]byte) (Image, error) {
	im := Image{Repo: repo, Tag: tag}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range layers {
		d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(l), Size: int64(len(l))}
		if err := g.pushBlob(ctx, repo, d.Digest, l); err != nil {
			return im, err
		}
		im.Layers = append(im.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	c, err := json.Marshal(config)
	if err != nil {
		return im, err
	}
	im.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(c), Size: int64(len(c))}
	if err := g.pushBlob(ctx, repo, im.Config.Digest, c); err != nil {
		return im, err
	}
	m, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: im.Config, Layers: im.Layers,
	})
	if err != nil {
		return im, err
	}
	im.Manifest = digest.FromBytes(m)
	_, err = send(ctx, http.MethodPut, g.Admin+"/v2/"+repo+"/manifests/"+tag, v1.MediaTypeImageManifest, m, http.StatusCreated)
	return im, err
}

func (g *Origin) pushBlob(ctx context.Context, repo string, d digest.Digest, content []byte) error {
	h, err := send(ctx, http.MethodPost, g.Admin+"/v2/"+repo+"/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	base, err := url.Parse(g.Admin)
	if err != nil {
		return err
	}
	to, err := base.Parse(h.Get("Location"))
	if err != nil {
		return fmt.Errorf("an upload's location: %w", err)
	}
	q := to.Query()
	q.Set("digest", d.String())
	to.RawQuery = q.Encode()
	_, err = send(ctx, http.MethodPut, to.String(), "application/octet-stream", content, http.StatusCreated)
	return err
}

func send(ctx context.Context, method, to, contentType string, body []byte, want int) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, to, resp.Status, text)
	}
	return resp.Header, nil
}

// checked hashes what goes through it, and notes the first byte.
func sumOf(r io.Reader, first func()) (digest.Digest, int64, error) {
	h := sha256.New()
	buf := make([]byte, 64<<10)
	var n int64
	for {
		k, err := r.Read(buf)
		if k > 0 {
			if n == 0 {
				first()
			}
			n += int64(k)
			_, _ = h.Write(buf[:k]) // never fails
		}
		if errors.Is(err, io.EOF) {
			return digest.NewDigest(digest.SHA256, h), n, nil
		}
		if err != nil {
			return "", n, err
		}
	}
}

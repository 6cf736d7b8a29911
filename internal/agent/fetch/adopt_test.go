package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// reopen opens the cache in dir; end closes it.
func reopen(t *testing.T, dir string) (x *index.Index, s *piece.Store, end func()) {
	t.Helper()
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = piece.Open(t.Context(), piece.Options{Dir: dir, Index: x}); err != nil {
		t.Fatal(err)
	}
	return x, s, func() {
		if err := errors.Join(s.Close(), x.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestN1_AnIndexBegunAnewTakesBackWhatIsCached: a few bytes of junk in the
// database had every file removed, of what ran and of what was pinned too.
func TestN1_AnIndexBegunAnewTakesBackWhatIsCached(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"junk":    func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("junk"), 3000), 0o600) },
		"removed": os.Remove,
	} {
		for _, cutOff := range []bool{false, true} {
			t.Run(fmt.Sprint(name, cutOff), func(t *testing.T) { takesBack(t, damage, cutOff) })
		}
	}
}

func takesBack(t *testing.T, damage func(path string) error, cutOff bool) {
	dir, ctx := t.TempDir(), t.Context()
	layer, other := content(3*piece.Size+5), content(2*piece.Size)
	config := []byte(`{"rootfs":{"type":"layers","diff_ids":["` + string(digest.SHA256.FromString("diff")) + `"]}}`)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		oci.MediaTypeImage, digest.SHA256.FromBytes(config), len(config), digest.SHA256.FromBytes(layer), len(layer))
	root := digest.SHA256.FromBytes(manifest)
	x, s, end := reopen(t, dir)
	for _, b := range [][]byte{layer, config, manifest} {
		if err := s.Put(ctx, digest.SHA256.FromBytes(b), b, piece.Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	half, err := s.Create(ctx, digest.SHA256.FromBytes(other), int64(len(other)), piece.Meta{})
	if err == nil {
		err = errors.Join(write(ctx, half, other, 0, 0, "up"), x.Pin(ctx, "docker.io/library/app:1", []oci.Digest{root}))
		half.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	used := s.Usage()
	end()
	if err := damage(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	if cutOff { // before the manifests were read
		_, _, end := reopen(t, dir)
		end()
	}
	x, s, end = reopen(t, dir)
	defer func() { end() }()
	f := fetch.New(fetch.Options{Store: s, Index: x, Log: slog.New(slog.DiscardHandler)})
	defer f.Close()
	if err := f.Relearn(ctx); err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Used != used.Used || u.Blobs != 4 {
		t.Errorf("the cache holds %+v, held %+v", u, used)
	}
	pins, err := x.Pins(ctx)
	if err != nil || len(pins) != 1 || pins[0].Ref != "docker.io/library/app:1" || pins[0].Roots[0] != root {
		t.Errorf("pins %+v, %v", pins, err)
	}
	tree, err := x.Tree(ctx, []oci.Digest{digest.SHA256.FromString("diff")}) // its chain ID
	if err != nil || len(tree) != 4 {
		t.Errorf("the container leads to %v, %v", tree, err)
	}
	f.Verify(ctx)
	i, err := s.Info(ctx, digest.SHA256.FromBytes(layer))
	if err != nil || i.State != index.Complete {
		t.Fatalf("%+v, %v", i, err)
	}
	if _, err := s.Claim(ctx, i.Digest, i.Version); !errors.Is(err, fault.Conflict) {
		t.Errorf("a pinned layer was claimed: %v", err)
	}
	if x.Anew() {
		t.Error("the next start would take back what was removed")
	}
}

func TestN7_WhatIsTakenBackIsVerified(t *testing.T) {
	dir, all := t.TempDir(), content(3*piece.Size)
	d := digest.SHA256.FromBytes(all)
	_, s, end := reopen(t, dir)
	if err := s.Put(t.Context(), d, all, piece.Meta{}); err != nil {
		t.Fatal(err)
	}
	end()
	f, err := os.OpenFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded()), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("rot"), piece.Size+7)
		err = errors.Join(err, f.Close(), os.Remove(filepath.Join(dir, "index.db")))
	}
	if err != nil {
		t.Fatal(err)
	}
	_, s, end = reopen(t, dir)
	defer end()
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Complete() || len(b.Missing()) != 1 {
		t.Errorf("complete %v, missing %v", b.Complete(), b.Missing())
	}
}

// TestN1_WhatAManifestNamesIsKnownThoughItsSizesAreWrong: a container that runs
// from it needs its layers as much.
func TestN1_WhatAManifestNamesIsKnownThoughItsSizesAreWrong(t *testing.T) {
	config, layer := digest.FromString("config"), digest.FromString("layer")
	content := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
		"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + string(config) + `","size":2},
		"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + string(layer) + `","size":9223372036854475807}]}`)
	_, edges := fetch.Edges(digest.FromBytes(content), "application/vnd.oci.image.manifest.v1+json", content)
	roles := map[digest.Digest]string{}
	for _, e := range edges {
		if roles[e.Child] = e.Role; e.Size != -1 {
			t.Errorf("the size %d is handed on", e.Size)
		}
	}
	if roles[config] != index.RoleConfig || roles[layer] != index.RoleLayer {
		t.Errorf("%+v", edges)
	}
}

// TestR16_ADamagedConfigDoesNotKeepTheAgentFromStarting: the agent reads what
// configs it has before it serves, and nobody brings the rest of a damaged one then.
func TestR16_ADamagedConfigDoesNotKeepTheAgentFromStarting(t *testing.T) {
	config := []byte(`{"of":"an artifact"}`)
	d := digest.SHA256.FromBytes(config)
	flip := func(path string) error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		return os.WriteFile(path, b, 0o600)
	}
	cut := func(path string) error { return os.Truncate(path, 0) }
	for _, c := range []struct {
		name   string
		suffix string
		damage func(path string) error
		late   bool // after the blob was looked at
	}{
		{"no bytes", "", cut, false},
		{"wrong bytes", "", flip, false},
		{"no checksums", ".pieces", cut, false},
		{"wrong checksums", ".pieces", flip, false},
		{"no bytes, since it was looked at", "", cut, true},
		{"wrong bytes, since it was looked at", "", flip, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			x, s, end := reopen(t, dir)
			root := digest.SHA256.FromString("manifest")
			if err := errors.Join(s.Put(ctx, d, config, piece.Meta{}),
				x.PutEdges(ctx, root, []index.Edge{{Parent: root, Child: d, Role: index.RoleConfig}})); err != nil {
				t.Fatal(err)
			}
			end()
			path := filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded()+c.suffix)
			if !c.late {
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
			}
			x, s, end = reopen(t, dir)
			defer func() { end() }()
			if c.late {
				b, err := s.Open(ctx, d)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
			}
			f := fetch.New(fetch.Options{Store: s, Index: x, Log: slog.New(slog.DiscardHandler), Fillers: []fetch.Filler{honest("upstream", config)}})
			defer f.Close()
			if err := f.Relearn(ctx); err != nil {
				t.Fatalf("the agent does not start: %v", err)
			}
			b, err := f.Get(ctx, want(config))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			var got bytes.Buffer
			if _, err := f.Copy(ctx, &got, b, 0, -1); err != nil || !bytes.Equal(got.Bytes(), config) {
				t.Errorf("it is handed out as %q, %v", got.Bytes(), err)
			}
		})
	}
}

package containerd_test

import (
	"context"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/containerd"
	"github.com/fairway-registry/fairway/internal/oci"
)

var a, b, c = digest.FromString("a"), digest.FromString("b"), digest.FromString("c")

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		want    containerd.Parsed
	}{
		"index":    {`{"manifests":[{"digest":"` + string(a) + `"},{"digest":"` + string(b) + `"}]}`, containerd.Parsed{Manifests: []oci.Digest{a, b}}},
		"manifest": {`{"config":{"digest":"` + string(a) + `"},"layers":[{"digest":"` + string(b) + `"}]}`, containerd.Parsed{Config: a, Layers: []oci.Digest{b}}},
		"config": {
			`{"config":{"Cmd":["sh"],"Labels":{"digest":"x"}},"rootfs":{"type":"layers","diff_ids":["` + string(a) + `","` + string(b) + `"]}}`,
			containerd.Parsed{Chain: identity.ChainID([]oci.Digest{a, b})},
		},
		"config without settings":   {`{"config":null,"rootfs":{"diff_ids":["` + string(c) + `"]}}`, containerd.Parsed{Chain: c}},
		"half of a chain is none":   {`{"rootfs":{"diff_ids":["` + string(a) + `","sha256:12"]}}`, containerd.Parsed{}},
		"digests that are not such": {`{"config":{"digest":"../../etc"},"layers":[{"digest":"sha256:zz"}]}`, containerd.Parsed{}},
		"a layer":                   {"\x1f\x8b not JSON", containerd.Parsed{}},
	} {
		if got := containerd.Parse([]byte(tc.content)); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
}

// FuzzParse: content in a store is made by anybody. What comes out of it are
// valid digests, or nothing.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"config":{"digest":"` + string(a) + `"},"layers":[{"digest":"` + string(b) + `"}],"manifests":[{}]}`))
	f.Add([]byte(`{"config":[],"rootfs":{"diff_ids":["` + string(a) + `"]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		p := containerd.Parse(content)
		for _, d := range append(append(p.Manifests, p.Layers...), p.Config, p.Chain) {
			if _, err := oci.ParseDigest(string(d)); d != "" && err != nil {
				t.Errorf("%q came out: %v", d, err)
			}
		}
	})
}

func TestN3_NobodyThereIsAnError(t *testing.T) {
	s, err := containerd.New(containerd.Options{Path: filepath.Join(t.TempDir(), "nobody.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := s.Snapshot(ctx); err == nil || ctx.Err() != nil || !reflect.DeepEqual(got, inuse.Snapshot{}) {
		t.Errorf("Snapshot: %+v, %v, context %v; want an error at once", got, err, ctx.Err())
	}
	if err := s.Watch(ctx, func() {}); err == nil || ctx.Err() != nil {
		t.Errorf("Watch: %v, context %v; want an error at once", err, ctx.Err())
	}
	if _, err := s.Content().Open(ctx, a); err == nil {
		t.Error("a blob was opened")
	}
}

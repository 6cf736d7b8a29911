package cri_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/cri"
	"github.com/fairway-registry/fairway/internal/oci"
)

var (
	config, manifest, index = digest.FromString("config"), digest.FromString("manifest"), digest.FromString("index")
	other                   = digest.FromString("the tag's present target")
)

// TestTrap_ConfigDigestLeadsToTheManifest: ListContainers names the image by
// its config, and each runtime writes that in its own way.
func TestTrap_ConfigDigestLeadsToTheManifest(t *testing.T) {
	hex := strings.TrimPrefix(string(config), "sha256:")
	for name, tc := range map[string]struct {
		id        string
		container *criapi.Container
	}{
		"containerd":       {string(config), &criapi.Container{ImageRef: string(config), Image: &criapi.ImageSpec{Image: string(config)}}},
		"CRI-O":            {hex, &criapi.Container{ImageRef: hex, ImageId: hex, Image: &criapi.ImageSpec{Image: hex}}},
		"CRI-O by name":    {hex, &criapi.Container{ImageRef: "quay.io/app@" + string(manifest), Image: &criapi.ImageSpec{Image: "quay.io/app:1"}}},
		"pinned by digest": {string(config), &criapi.Container{Image: &criapi.ImageSpec{Image: "quay.io/app@" + string(index)}}},
	} {
		images := []*criapi.Image{
			{Id: tc.id, RepoTags: []string{"quay.io/app:1"}, RepoDigests: []string{"quay.io/app@" + string(manifest), "quay.io/app@" + string(index)}},
			{Id: string(other), RepoTags: []string{"quay.io/other:1"}},
		}
		got := cri.Read(images, []*criapi.Container{tc.container}, nil).Containers[0].Digests
		want := []oci.Digest{config, manifest, index}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want config, manifest and index %v", name, got, want)
		}
	}
}

// TestTrap_AMovedTagIsNeverLookedUp: the container was made of a tag that
// leads to another image now.
func TestTrap_AMovedTagIsNeverLookedUp(t *testing.T) {
	images := []*criapi.Image{{Id: string(other), RepoTags: []string{"quay.io/app:1"}}}
	c := &criapi.Container{ImageRef: string(config), Image: &criapi.ImageSpec{Image: "quay.io/app:1", UserSpecifiedImage: "quay.io/app:1"}}
	got := cri.Read(images, []*criapi.Container{c}, nil).Containers[0]
	if !slices.Equal(got.Digests, []oci.Digest{config}) || got.Image != "quay.io/app:1" {
		t.Errorf("got %+v, want what it was made of, and the name for people", got)
	}
}

func TestTrap_SandboxesAreNoContainers(t *testing.T) {
	pods := []*criapi.PodSandbox{
		{Id: "up", State: criapi.PodSandboxState_SANDBOX_READY},
		{Id: "over", State: criapi.PodSandboxState_SANDBOX_NOTREADY},
	}
	if got := cri.Read([]*criapi.Image{{Id: string(config)}}, nil, pods).Containers; len(got) != 0 {
		t.Errorf("nothing is pinned: %+v, want none", got)
	}
	got := cri.Read([]*criapi.Image{{Id: string(config), Pinned: true}, {Id: string(other)}}, nil, pods).Containers
	if len(got) != 1 || got[0].ID != "up" || !got[0].Sandbox || !slices.Equal(got[0].Digests, []oci.Digest{config}) {
		t.Errorf("got %+v, want the ready one, as a sandbox that uses the pinned image", got)
	}
}

func TestStates(t *testing.T) {
	for from, want := range map[criapi.ContainerState]inuse.State{
		criapi.ContainerState_CONTAINER_CREATED: inuse.Created,
		criapi.ContainerState_CONTAINER_RUNNING: inuse.Running,
		criapi.ContainerState_CONTAINER_EXITED:  inuse.Exited,
		criapi.ContainerState_CONTAINER_UNKNOWN: inuse.Unsure,
		42:                                      inuse.Unsure,
	} {
		got := cri.Read(nil, []*criapi.Container{{State: from}}, nil).Containers[0].State
		if got != want || got.Active() != (want != inuse.Exited) {
			t.Errorf("%v is read as %v (active %v), want %v", from, got, got.Active(), want)
		}
	}
}

func TestN3_NobodyThereIsAnError(t *testing.T) {
	s, err := cri.New(cri.Options{Path: filepath.Join(t.TempDir(), "nobody.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := s.Snapshot(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("Snapshot: %+v, %v, context %v; want an error at once", got, err, ctx.Err())
	}
	if err := s.Watch(ctx, func() {}); err == nil || ctx.Err() != nil {
		t.Errorf("Watch: %v, context %v; want an error at once", err, ctx.Err())
	}
}

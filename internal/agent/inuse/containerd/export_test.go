package containerd

import (
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Rootless is rootless for a container with an image, the key of a snapshot and a spec.
func Rootless(image, snapshot, spec string) bool {
	c := &containersapi.Container{Image: image, SnapshotKey: snapshot}
	if spec != "" {
		c.Spec = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(spec)}
	}
	return rootless(c)
}

// Parsed is what parse finds, for tests.
type Parsed struct {
	Manifests, Layers []oci.Digest
	Config, Chain     oci.Digest
}

// Parse is parse.
func Parse(content []byte) Parsed {
	d := parse(content)
	return Parsed{Manifests: d.manifests, Layers: d.layers, Config: d.config, Chain: d.chain}
}

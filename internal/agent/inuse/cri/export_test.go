package cri

import (
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Read is Snapshot of what a runtime has answered, without one.
func Read(images []*criapi.Image, containers []*criapi.Container, pods []*criapi.PodSandbox) (s inuse.Snapshot) {
	source := &Source{name: "cri", chains: map[string]oci.Digest{}}
	for _, i := range images {
		source.chains[i.GetId()] = ""
	}
	known := source.learn(nil, images) //nolint:staticcheck // nothing is left to ask
	for _, c := range containers {
		s.Containers = append(s.Containers, source.container(c, known))
	}
	s.Containers = append(s.Containers, source.sandboxes(pods, images)...)
	for _, i := range images {
		s.Images = append(s.Images, source.image(i)...)
	}
	return s
}

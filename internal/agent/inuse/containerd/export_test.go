package containerd

import "github.com/fairway-registry/fairway/internal/oci"

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

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/image-spec/identity"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Labels by which containerd's own collector knows what content needs.
const (
	refContent  = "containerd.io/gc.ref.content"
	refConfig   = refContent + ".config"
	refSnapshot = "containerd.io/gc.ref.snapshot."
)

// graph is what one namespace's content store holds, by the labels on the
// content and by the manifests and configs in it.
type graph struct {
	source    *Source
	documents *generation
	size      map[oci.Digest]int64               // of what is present
	parents   map[oci.Digest]map[oci.Digest]bool // by child: what names it
	configs   map[oci.Digest]bool
	chains    map[oci.Digest]map[oci.Digest]bool // configs by chain ID
}

func (r *reading) readGraph(ctx context.Context) (*graph, error) {
	g := &graph{
		source: r.Source, documents: r.documents, size: map[oci.Digest]int64{}, configs: map[oci.Digest]bool{},
		parents: map[oci.Digest]map[oci.Digest]bool{}, chains: map[oci.Digest]map[oci.Digest]bool{},
	}
	err := r.listContent(ctx, func(i *contentapi.Info) {
		d := oci.Digest(i.GetDigest())
		g.size[d] = i.GetSize()
		for label, value := range i.GetLabels() {
			other, err := oci.ParseDigest(value)
			switch {
			case err != nil:
			case strings.HasPrefix(label, refSnapshot):
				g.configs[d] = true
				link(g.chains, other, d)
			case strings.HasPrefix(label, refContent):
				link(g.parents, other, d)
				if label == refConfig {
					g.configs[other] = true
				}
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list content: %w", err)
	}
	return g, nil
}

func link(m map[oci.Digest]map[oci.Digest]bool, from, to oci.Digest) {
	if m[from] == nil {
		m[from] = map[oci.Digest]bool{}
	}
	m[from][to] = true
}

func (s *Source) listContent(ctx context.Context, each func(*contentapi.Info)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.content.List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, i := range m.GetInfo() {
			each(i)
		}
	}
}

// learnConfigs adds the chain IDs of configs that carry no label of it.
func (g *graph) learnConfigs(ctx context.Context) error {
	for c := range g.configs {
		doc, err := g.document(ctx, c)
		if err != nil {
			return err
		}
		if doc.chain != "" {
			link(g.chains, doc.chain, c)
		}
	}
	return nil
}

// tree is a set of content, by what it is.
type tree struct {
	tops, configs, layers map[oci.Digest]bool // tops: indexes and manifests
	sizeBytes             int64               // of what is present
}

func newTree() tree {
	return tree{tops: map[oci.Digest]bool{}, configs: map[oci.Digest]bool{}, layers: map[oci.Digest]bool{}}
}

func (t tree) digests() []oci.Digest { return sorted(t.tops, t.configs) }
func (t tree) blobs() []oci.Digest   { return sorted(t.configs, t.layers) }
func (t tree) all() []oci.Digest     { return sorted(t.tops, t.configs, t.layers) }

func sorted(sets ...map[oci.Digest]bool) []oci.Digest {
	all := map[oci.Digest]bool{}
	for _, s := range sets {
		maps.Copy(all, s)
	}
	return slices.Sorted(maps.Keys(all))
}

// below collects what root leads to: manifests that are present, and all that
// these name, present or not, since a store may drop layers it has unpacked.
func (g *graph) below(ctx context.Context, root oci.Digest) (tree, error) {
	t := newTree()
	err := g.collect(ctx, root, &t)
	for _, d := range t.all() {
		t.sizeBytes += g.size[d]
	}
	return t, err
}

func (g *graph) collect(ctx context.Context, d oci.Digest, t *tree) error {
	if t.tops[d] {
		return nil
	}
	t.tops[d] = true
	doc, err := g.document(ctx, d)
	if err != nil {
		return err
	}
	for _, child := range doc.manifests {
		if _, present := g.size[child]; !present {
			continue // another platform's
		}
		link(g.parents, child, d)
		if err := g.collect(ctx, child, t); err != nil {
			return err
		}
	}
	if doc.config != "" {
		link(g.parents, doc.config, d)
		g.configs[doc.config] = true
		t.configs[doc.config] = true
	}
	for _, l := range doc.layers {
		t.layers[l] = true
	}
	return nil
}

// above collects all that has a chain ID: configs, the manifests that name
// them with their layers, and the indexes that name these.
func (g *graph) above(ctx context.Context, chain oci.Digest) (tree, error) {
	t := newTree()
	for config := range g.chains[chain] {
		t.configs[config] = true
		for manifest := range g.parents[config] {
			if err := g.collect(ctx, manifest, &t); err != nil {
				return t, err
			}
			for index := range g.parents[manifest] {
				t.tops[index] = true
			}
		}
	}
	return t, nil
}

// document is what matters of a manifest, an index or a config.
type document struct {
	manifests, layers []oci.Digest
	config            oci.Digest
	chain             oci.Digest // of a config's layers
}

// document reads and parses content that is present. What is not there, too
// large, or no JSON leads nowhere.
func (g *graph) document(ctx context.Context, d oci.Digest) (document, error) {
	size, present := g.size[d]
	if !present || size > oci.ManifestMax {
		return document{}, nil
	}
	return g.documents.get(d, func() (document, error) {
		content, err := g.source.readAll(ctx, d, size)
		if isNotFound(err) {
			return document{}, nil
		}
		if err != nil {
			return document{}, fmt.Errorf("read %s: %w", d, err)
		}
		return parse(content), nil
	})
}

func parse(content []byte) document {
	type descriptor struct {
		Digest string `json:"digest"`
	}
	var raw struct {
		Config    json.RawMessage `json:"config"` // a descriptor in a manifest, something else in a config
		Layers    []descriptor    `json:"layers"`
		Manifests []descriptor    `json:"manifests"`
		RootFS    struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(content, &raw) != nil {
		return document{}
	}
	digests := func(list []descriptor) (all []oci.Digest) {
		for _, d := range list {
			if d, err := oci.ParseDigest(d.Digest); err == nil {
				all = append(all, d)
			}
		}
		return all
	}
	doc := document{manifests: digests(raw.Manifests), layers: digests(raw.Layers)}
	var config descriptor
	if len(raw.Config) > 0 && json.Unmarshal(raw.Config, &config) == nil {
		if d, err := oci.ParseDigest(config.Digest); err == nil {
			doc.config = d
		}
	}
	var diffs []oci.Digest
	for _, id := range raw.RootFS.DiffIDs {
		d, err := oci.ParseDigest(id)
		if err != nil {
			return doc
		}
		diffs = append(diffs, d)
	}
	if len(diffs) > 0 {
		doc.chain = identity.ChainID(diffs)
	}
	return doc
}

// documents remembers what was parsed, which never changes under its digest,
// as long as the last complete reading needed it.
type documents struct {
	mu   sync.Mutex
	last map[oci.Digest]document
}

// generation is one reading's view of documents.
type generation struct {
	before, used map[oci.Digest]document
}

func (d *documents) begin() *generation {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &generation{before: d.last, used: map[oci.Digest]document{}}
}

func (d *documents) end(g *generation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = g.used
}

func (g *generation) get(d oci.Digest, load func() (document, error)) (document, error) {
	if doc, ok := g.used[d]; ok {
		return doc, nil
	}
	doc, ok := g.before[d]
	if !ok {
		var err error
		if doc, err = load(); err != nil {
			return doc, err
		}
	}
	g.used[d] = doc
	return doc, nil
}

package evict

import (
	"fmt"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// crowd pulls images a few seconds apart, so that all is warm. Their layers are
// small, so what is larger goes first.
func (h *house) crowd(n int) {
	h.t.Helper()
	for i := range n {
		h.later(10 * time.Second)
		h.pull(fmt.Sprintf("crowd-%d", i), nil, 200_000)
	}
}

// begin caches some of an image of which more is to come.
func (h *house) begin(name string, layers ...int) image {
	h.t.Helper()
	i := h.pull(name, nil, layers...)
	edges := []index.Edge{{Parent: i.manifest, Child: i.config, Role: index.RoleConfig}, {Parent: i.manifest, Child: blobName(77), Role: index.RoleLayer}}
	for _, d := range i.layers {
		edges = append(edges, index.Edge{Parent: i.manifest, Child: d, Role: index.RoleLayer})
	}
	if err := h.index.PutEdges(h.t.Context(), i.manifest, edges); err != nil {
		h.t.Fatal(err)
	}
	return i
}

func (h *house) read(d oci.Digest) {
	h.t.Helper()
	b, err := h.store.Open(h.t.Context(), d)
	if err != nil {
		h.t.Fatal(err)
	}
	b.Close()
}

func TestN1_WhatIsBeingPulledStaysWhereTheRuntimeDoesNotTell(t *testing.T) {
	for name, end := range map[string]func(h *house, i image){
		"the runtime has it": func(h *house, i image) {
			h.runtime.SetImage(inuse.Image{Runtime: "docker", Name: "slow", Digests: []oci.Digest{i.config}})
		},
		"given up": func(h *house, _ image) { h.later(10 * time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, quota(4*mib))
			h.runtime.HidePulls()
			slow := h.begin("slow", 400_000)
			h.crowd(20)
			h.stays(slow, "three minutes into its pull")
			if v, err := h.Explain(t.Context(), slow.layers[0]); err != nil || v.Why != Pull {
				t.Errorf("%+v, %v", v, err)
			}
			end(h, slow)
			h.crowd(20)
			if h.has(slow.layers[0]) {
				t.Error("it stays though nobody pulls it any more")
			}
		})
	}
}

func TestN1_AnImageOfTheCacheIsPulledAgain(t *testing.T) {
	h := open(t, quota(4*mib))
	h.runtime.HidePulls()
	old := h.pull("old", nil, 400_000, 300_000, 250_000)
	h.later(3 * time.Hour)
	h.read(old.manifest)
	h.read(old.config)
	for _, d := range old.layers[:2] {
		h.crowd(20)
		h.stays(old, "before its last layer was asked for")
		h.read(d)
	}
	h.later(time.Second)
	h.read(old.layers[2])
	if v, err := h.Explain(t.Context(), old.layers[0]); err != nil || v.Tier != Warm {
		t.Errorf("all of it was pulled: %+v, %v", v, err)
	}
}

func TestN1_WhatWasEvictedIsNotBeingPulled(t *testing.T) {
	h := open(t, quota(4*mib))
	h.runtime.HidePulls()
	all := []image{h.pull("a", nil, 500_000, 500_000), h.pull("b", nil, 500_000, 500_000), h.pull("c", nil, 500_000, 500_000)}
	h.crowd(20)
	for _, i := range all {
		if h.has(i.layers[0]) || h.has(i.layers[1]) {
			t.Errorf("of %s there is a layer left", i.name)
		}
	}
}

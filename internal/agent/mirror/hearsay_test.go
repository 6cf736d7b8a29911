package mirror_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/oci"
)

// hearsay is a node that says of everything that it is public, unless it does not know.
type hearsay struct {
	tag     oci.Digest
	content map[oci.Digest][]byte
	age     time.Duration // of what it says of the tag
	unsure  bool          // it does not say that anybody may have it
}

func (h *hearsay) Tag(context.Context, string, oci.Name, oci.Tag) (swarm.Named, error) {
	return swarm.Named{Digest: h.tag, Age: h.age}, nil
}
func (h *hearsay) Content(_ context.Context, _ string, _ oci.Name, d oci.Digest) (swarm.Given, error) {
	if c, ok := h.content[d]; ok {
		return swarm.Given{Content: c, Public: !h.unsure}, nil
	}
	return swarm.Given{}, errors.New("no")
}
func (h *hearsay) Together(_ context.Context, _ string, _ oci.Name, d oci.Digest, private bool) (swarm.Given, bool, func()) {
	c, ok := h.content[d]
	return swarm.Given{Content: c}, ok && !private, func() {}
}
func (h *hearsay) KnowsTag(string, oci.Name, oci.Tag) {}
func (h *hearsay) KnowsContent(oci.Digest)            {}

func TestR12_HearsayOpensNothingOnceTheUpstreamRefuses(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "one", "s", 1000)
	d, list := u.index("secret", "v1", i)
	u.repo("secret").auth = alice
	p := &hearsay{tag: d, content: map[oci.Digest][]byte{d: list, i.digest: i.content}}
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: p})
	u.on(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	n.get("/v2/secret/manifests/v1").want(200) // the word of another node, in an outage
	u.on(nil)
	n.clock.advance(time.Minute)
	n.get("/v2/secret/manifests/v1").want(401) // the upstream is there again, and refuses
	before := u.count("/manifests/" + string(i.digest))
	a := n.get("/v2/secret/manifests/" + string(i.digest))
	is, err := n.index.IsOrigin(t.Context(), i.digest, u.name())
	if err != nil || a.status == 200 || is || u.count("/manifests/"+string(i.digest)) == before {
		t.Error("hearsay opened it though the upstream decides")
	}
}

// The same without the 401 in between.
func TestR12_HearsayDoesNotOutlastAnOutage(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "one", "s", 1000)
	d, list := u.index("secret", "v1", i)
	u.repo("secret").auth = alice
	p := &hearsay{tag: d, content: map[oci.Digest][]byte{d: list, i.digest: i.content, i.config: u.repo("secret").blobs[i.config]}}
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: p})
	u.on(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	n.get("/v2/secret/manifests/v1").want(200)
	u.on(nil)
	a := n.get("/v2/secret/manifests/" + string(i.digest))
	if a.status == 200 {
		t.Error("hearsay opened it though the upstream decides")
	}
}

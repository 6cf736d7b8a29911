package mirror_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// giving is a node that sends what is asked for to every client that states a right.
type giving struct {
	*hearsay
	mine    map[oci.Digest][]byte
	mu      sync.Mutex
	private []bool // of the questions
}

func (a *giving) Together(_ context.Context, _ string, _ oci.Name, d oci.Digest, private bool) (swarm.Given, bool, func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.private = append(a.private, private)
	c, ok := a.mine[d]
	return swarm.Given{Content: c}, ok, func() {}
}

// forget takes the questions so far for unasked.
func (a *giving) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.private = nil
}

// TestN10_TheUpstreamsWordTakesThePlaceOfHearsay: what another node took for everybody's, and
// the upstream gives only to this node's own login, is private, and a right to it is this
// node's own: it is had from another node as that (N9).
func TestN10_TheUpstreamsWordTakesThePlaceOfHearsay(t *testing.T) {
	const login = "Basic bm9kZTpodW50ZXIy" // node:hunter2
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	d, list := u.index("secret", "all", i)
	u.repo("secret").auth = login
	p := &giving{hearsay: &hearsay{content: map[oci.Digest][]byte{d: list}}, mine: map[oci.Digest][]byte{i.digest: i.content}}
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: p, creds: func(context.Context, string, string) (ociclient.Login, error) {
		return ociclient.Login{User: "node", Pass: "hunter2"}, nil
	}})
	n.pull("", "secret", "v1", i, "Authorization", login) // a client with credentials of its own
	u.on(down)
	n.get("/v2/secret/manifests/" + string(d)).want(200) // and so others hear of what it names
	u.on(nil)
	hex := i.digest.Encoded()
	if err := os.WriteFile(filepath.Join(n.dir, "blobs", "sha256", hex[:2], hex), make([]byte, len(i.content)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.forget()
	gets := u.count("GET", "/manifests/"+string(i.digest))
	n.get("/v2/secret/manifests/" + string(i.digest)).want(200).wantBody(i.content)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.private, []bool{true}) {
		t.Errorf("other nodes were asked for it as private: %v, want once", p.private)
	}
	if got := u.count("GET", "/manifests/"+string(i.digest)) - gets; got != 0 {
		t.Errorf("the upstream sent it %d times though another node has it", got)
	}
	n.get("/v2/secret/blobs/" + string(i.layers[0])).want(200)
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", bob).want(401)
}

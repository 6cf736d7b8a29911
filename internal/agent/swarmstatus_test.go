package agent

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// TestSwarm_TellsWhereEachByteCameFrom asks over the admin API what happened.
func TestSwarm_TellsWhereEachByteCameFrom(t *testing.T) {
	o := newOrigin(t, 2<<20+3)
	nodes := cluster(t, o, 2, nil)
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"manifests/1", "blobs/" + string(digest.FromBytes(o.config)), "blobs/" + string(digest.FromBytes(o.layer))} {
		header, _, err := nodes[1].get(o, path)
		if err != nil {
			t.Fatal(err)
		}
		if from := header.Get("Fairway-Source"); strings.HasSuffix(path, string(digest.FromBytes(o.layer))) && from != "swarm" {
			t.Errorf("the layer's source is said to be %q", from)
		}
	}
	ask := func(n *node, path string, out any) {
		t.Helper()
		c, err := adminclient.New("http://" + n.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Call(t.Context(), "GET", path, nil, out); err != nil {
			t.Fatal(err)
		}
	}
	var first, second nodeapi.Swarm
	ask(nodes[0], "/swarm", &first)
	ask(nodes[1], "/swarm", &second)
	size := int64(len(o.layer))
	if first.FromOrigin < size || first.Sent < size/2 || first.Saved != 0 {
		t.Errorf("the first node: %+v", first)
	}
	if second.FromPeers < size/2 || second.Saved < 0.5 || second.Saved > 1 || len(second.Members) != 2 {
		t.Errorf("the second node: %+v", second)
	}
	if h := second.Handed; h.Peers < size/2 || h.Cache != 0 || h.Peers+h.Upstreams != size+int64(len(o.config)) {
		t.Errorf("the second node's runtime got %+v", h)
	}
	for _, m := range second.Members {
		if m.Node == "n1" && (m.Received != second.FromPeers || m.Address != first.Self.Address) {
			t.Errorf("what n1 sent: %+v of %d", m, second.FromPeers)
		}
	}
	var traces nodeapi.SwarmTraces
	eventually(t, "the pull has left a trace", func() bool {
		ask(nodes[1], "/swarm/traces", &traces)
		return len(traces.Traces) > 0
	})
	if len(traces.Traces) != 1 || len(traces.Traces[0].Pieces) != 9 || traces.Traces[0].FromPeers+traces.Traces[0].FromOrigin != size {
		t.Errorf("traces %+v", traces)
	}
	var s nodeapi.Status
	ask(nodes[0], "/status", &s)
	if len(s.Peers) != 1 || s.Peers[0].Name != "n2" || s.Peers[0].State != nodeapi.PeerAlive {
		t.Errorf("peers %+v", s.Peers)
	}
}

package agent

import (
	"testing"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// TestSwarm_TellsWhereEachByteCameFrom asks over the admin API what happened.
func TestSwarm_TellsWhereEachByteCameFrom(t *testing.T) {
	o := newOrigin(t, 2<<20+3)
	nodes := cluster(t, o, 2, nil)
	for _, n := range nodes {
		if _, err := n.pull(o); err != nil {
			t.Fatal(err)
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

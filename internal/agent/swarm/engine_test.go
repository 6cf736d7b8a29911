package swarm_test

import (
	"fmt"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
)

const mb = 1 << 20

func crowd(t *testing.T, n int, origin int64, change func(*swarm.Options)) (*swarmtest.Cluster, []*swarmtest.Node) {
	c := swarmtest.New(t, swarmtest.NewOrigin(origin))
	nodes := make([]*swarmtest.Node, n)
	for i := range nodes {
		nodes[i] = c.Start(fmt.Sprintf("node-%d", i), change)
	}
	return c, nodes
}

// TestN9_FlashCrowdCostsOneCopy shows that the parts work together. How near to
// one copy and to the bound they come is measured without the race detector, in
// virtual time (swarmsim) and with real processes.
func TestN9_FlashCrowdCostsOneCopy(t *testing.T) {
	c, nodes := crowd(t, 4, 0, nil)
	const size = 8*mb + 12345
	d := c.Origin.Make(size, 1)
	took, err := c.Crowd(t.Context(), d, nodes, nil)
	if err != nil {
		t.Fatal(err)
	}
	copies := float64(c.Origin.Sent()) / size
	t.Logf("%v, %.3f copies", took, copies)
	if copies > 1.5 {
		t.Errorf("%.3f copies left the origin for 4 nodes", copies)
	}
	for _, n := range nodes {
		if s := n.Status(); s.FromPeers+s.FromHome < size || len(s.Members) != 4 {
			t.Errorf("%s: %+v", n.Peer.Node, s)
		}
	}
}

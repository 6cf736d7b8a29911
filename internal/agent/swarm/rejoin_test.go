package swarm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
)

// holdersAt asks a leader, as one of the members, how many hold a blob.
func holdersAt(t *testing.T, client *http.Client, as plan.Node, leader *swarmtest.Node, d oci.Digest, size int) int {
	t.Helper()
	body := fmt.Sprintf(`{"blob":%q,"node":%q,"pieces":%d}`, d, as, (size+piece.Size-1)/piece.Size)
	status, text := post(t, client, leader, "/swarm/v1/announce", body)
	var reply plan.Reply
	if err := json.Unmarshal([]byte(text), &reply); status != 200 || err != nil {
		t.Fatalf("%s answers %d %q", leader.Peer.Node, status, text)
	}
	return reply.Holders
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(what)
		}
	}
}

// TestN8_LeadersThatComeBackLearnWhoHolds restarts everybody but the one node
// that has a blob.
func TestN8_LeadersThatComeBackLearnWhoHolds(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	const size = 2 * mb
	d := c.Origin.Make(size, 1)
	names := []string{"a", "c", "d", "e"}
	var others []*swarmtest.Node
	for _, name := range names {
		others = append(others, c.Start(name, nil))
	}
	b := c.Start("b", nil)
	if err := c.Pull(t.Context(), b, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	for _, n := range others {
		c.Stop(n)
	}
	others = others[:0]
	for _, name := range names {
		others = append(others, c.Start(name, nil))
	}
	all := append(slices.Clone(others), b)
	client := clientAs(t, "a", all)
	for _, leader := range plan.Rank(string(d), []plan.Node{"a", "b", "c", "d", "e"}, 2) {
		i := slices.IndexFunc(all, func(n *swarmtest.Node) bool { return n.Peer.Node == leader })
		until(t, fmt.Sprintf("%s never learns that b has the blob", leader), func() bool {
			return holdersAt(t, client, "a", all[i], d, size) > 0
		})
	}
	c.Origin.Stop()
	for _, n := range others {
		if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err != nil {
			t.Error(err)
		}
	}
}

// TestN8_AHolderThatNoLeaderKnowsIsFoundWhenTheOriginIsDown has a node that
// others know and that knows nobody, so that it tells nobody what it has.
func TestN8_AHolderThatNoLeaderKnowsIsFoundWhenTheOriginIsDown(t *testing.T) {
	c, nodes := crowd(t, 5, 0, nil)
	members := []plan.Node{"shy"}
	for _, n := range nodes {
		members = append(members, n.Peer.Node)
	}
	d := c.Origin.Make(2*mb, 1)
	for seed := uint64(2); slices.Contains(plan.Rank(string(d), members, plan.Ranks), "shy"); seed++ {
		d = c.Origin.Make(2*mb, seed)
	}
	holdingNode(t, c, "shy", fetch.Want{Digest: d, Size: -1}, func(o *swarm.Options) { o.Roster = nil })
	c.Origin.Stop()
	if err := c.Pull(t.Context(), nodes[0], fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Error(err)
	}
	// And what nobody has is given up.
	if err := c.Pull(t.Context(), nodes[1], fetch.Want{Digest: c.Origin.Make(2*mb, 99), Size: -1}); !errors.Is(err, swarmtest.ErrDown) {
		t.Errorf("a blob that nobody has: %v", err)
	}
}

// TestN9_AHolderThatWasTakenForDeadIsKnownAgain has a leader that loses sight of
// a holder, which does not know that somebody forgot what it has, and says it
// only once.
func TestN9_AHolderThatWasTakenForDeadIsKnownAgain(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	const size = 2 * mb
	d := c.Origin.Make(size, 1)
	leader := c.Start("leader", nil)
	b := swarm.Peer{Node: "b", Addr: "127.0.0.1:1", Born: 7}
	sees := func(peers ...swarm.Peer) {
		t.Helper()
		c.Roster.Set(append(peers, leader.Peer)...)
		until(t, "the leader does not follow the roster", func() bool { return len(leader.Status().Members) == len(peers)+1 })
	}
	sees(b)
	all := []*swarmtest.Node{leader}
	done := fmt.Sprintf(`{"blob":%q,"node":"b","pieces":%d,"done":true}`, d, size/piece.Size)
	if status, text := post(t, clientAs(t, "b", all), leader, "/swarm/v1/announce", done); status != 200 {
		t.Fatal(status, text)
	}
	client := clientAs(t, "somebody", all)
	holders := func() int { return holdersAt(t, client, "somebody", leader, d, size) }
	if holders() != 1 {
		t.Fatal("the leader does not know b")
	}
	sees()
	until(t, "the leader never takes b for dead", func() bool { return holders() == 0 })
	sees(b)
	until(t, "the leader never knows again that b has the blob", func() bool { return holders() == 1 })
	sees()
	until(t, "the leader never takes b for dead", func() bool { return holders() == 0 })
	b.Born++
	sees(b)
	if holders() != 0 {
		t.Error("what a process held that is no more counts for the next of its name")
	}
}

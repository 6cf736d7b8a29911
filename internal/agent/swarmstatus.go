package agent

import (
	"slices"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

var errNoSwarm = fault.New(fault.NotFound, "this node is in no swarm, since no swarm.secret is set; it shares with nobody")

// swarmStatus is the node's part in the swarm.
func (a *Agent) swarmStatus() (nodeapi.Swarm, error) {
	if a.swarm == nil {
		return nodeapi.Swarm{}, errNoSwarm
	}
	st := a.swarm.engine.Status()
	n := nodeapi.Swarm{
		Self: memberOf(swarm.Member{Peer: st.Self}), Members: []nodeapi.SwarmMember{}, Transfers: []nodeapi.SwarmTransfer{},
		FromPeers: st.FromPeers, FromOrigin: st.FromHome, Sent: st.Sent, UploadQueue: st.Queue,
		DirectoryBlobs: st.Blobs, DirectoryMembers: st.Records,
	}
	n.Handed.Cache, n.Handed.Peers, n.Handed.Upstreams = a.mirror.Handed()
	if all := st.FromPeers + st.FromHome; all > 0 {
		n.Saved = float64(st.FromPeers) / float64(all)
	}
	for _, m := range st.Members {
		n.Members = append(n.Members, memberOf(m))
	}
	for _, t := range st.Transfers {
		n.Transfers = append(n.Transfers, nodeapi.SwarmTransfer{
			Digest: t.Digest, SizeBytes: t.Size, Pieces: t.Pieces, Missing: t.Missing, Neighbours: names(t.Neighbours),
			Members: t.Members, Holders: t.Holders, Leader: string(t.Leader), FromPeers: t.FromPeers, FromOrigin: t.FromOrigin, Background: t.Background,
		})
	}
	return n, nil
}

func memberOf(m swarm.Member) nodeapi.SwarmMember {
	return nodeapi.SwarmMember{Node: string(m.Node), Address: m.Addr, Zone: m.Zone, Sent: m.Sent, Received: m.Received, BannedUntil: m.Banned}
}

func names(nodes []plan.Node) []string {
	list := make([]string, 0, len(nodes))
	for _, n := range nodes {
		list = append(list, string(n))
	}
	return list
}

// peerStatus is the other nodes; nil in no swarm.
func (s *swarming) peerStatus() []nodeapi.PeerStatus {
	if s == nil {
		return nil
	}
	var list []nodeapi.PeerStatus
	st := s.engine.Status()
	for _, m := range st.Members {
		state := nodeapi.PeerAlive
		if m.Banned != nil {
			state = nodeapi.PeerBanned
		}
		if m.Node != st.Self.Node {
			list = append(list, nodeapi.PeerStatus{Name: string(m.Node), Address: m.Addr, State: state})
		}
	}
	return list
}

// traces is the course of the last pulls.
func (s *swarming) traces() (nodeapi.SwarmTraces, error) {
	if s == nil {
		return nodeapi.SwarmTraces{}, errNoSwarm
	}
	list := nodeapi.SwarmTraces{Traces: []nodeapi.SwarmTrace{}}
	for _, t := range slices.Backward(s.engine.Traces()) {
		list.Traces = append(list.Traces, nodeapi.SwarmTrace{
			Digest: t.Digest, SizeBytes: t.Size, FromPeers: t.Peers, FromOrigin: t.Origin, Seconds: t.Seconds, Sources: names(t.Sources), Pieces: t.Pieces,
		})
	}
	return list, nil
}

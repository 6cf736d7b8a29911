package agent

import (
	"net"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Swarm is the part of a Config about nodes that share what they pull.
type Swarm struct {
	Secret       string       `key:"secret" arg:"FILE" doc:"File with the secret of the cluster, the same on all of its nodes: at least 16 random bytes, readable by the agent's user only. Nodes that have it share layers with each other. Empty: this node shares with nobody, and the other settings of the swarm mean nothing."`
	Listen       string       `key:"listen" arg:"HOST:PORT" doc:"Address where other nodes fetch pieces, over TLS and with the secret only."`
	Gossip       string       `key:"gossip" arg:"HOST:PORT" doc:"Address where the nodes tell each other who is there, TCP and UDP, encrypted with the secret."`
	Advertise    string       `key:"advertise" arg:"HOST" doc:"Address or name of this machine as other nodes reach it. Empty: the address of listen, or one of the machine's."`
	Join         setting.List `key:"join" arg:"HOST:PORT,..." doc:"Gossip addresses of other nodes, or names that resolve to them, such as that of a headless Kubernetes service. They are resolved again and again. Without a port that of gossip is meant."`
	JoinRegistry bool         `key:"join_registry" doc:"Find other nodes in the registry's list of nodes, and be found there."`
	Zone         string       `key:"zone" arg:"NAME" doc:"Where this node is, such as a rack or an availability zone. Nodes of one zone are preferred."`
	Upload       unit.Size    `key:"upload" doc:"Bytes a second sent to other nodes, all together. 0: no limit."`
	Download     unit.Size    `key:"download" doc:"Bytes a second taken by the swarm, from other nodes and upstreams together. 0: no limit."`
	PeerUpload   unit.Size    `key:"peer_upload" doc:"Bytes a second sent to one other node. 0: no limit."`
	PeerDownload unit.Size    `key:"peer_download" doc:"Bytes a second taken from one other node. 0: no limit."`
	Small        unit.Size    `key:"small" doc:"Blobs below this size come as a whole from one node, or from the upstream."`
}

// swarmZoneMax bounds what every node tells of itself in each round of gossip.
const swarmZoneMax = 64

func (c Config) validateSwarm() error {
	s := c.Swarm
	if s.Secret == "" {
		return nil
	}
	for _, l := range []struct{ key, address, example string }{
		{"swarm.listen", s.Listen, "0.0.0.0:5003"}, {"swarm.gossip", s.Gossip, "0.0.0.0:7946"},
	} {
		if _, err := setting.Listen(l.key, l.address, l.example); err != nil {
			return err
		}
	}
	if _, port, _ := net.SplitHostPort(s.Gossip); s.Advertise != "" && port == "0" {
		return setting.Errorf("swarm.advertise", "swarm.gossip needs a port that others can be told")
	}
	if _, _, err := net.SplitHostPort(s.Advertise); err == nil {
		return setting.Errorf("swarm.advertise", "%q has a port; want the host only", s.Advertise)
	}
	if len(s.Zone) > swarmZoneMax {
		return setting.Errorf("swarm.zone", "a name of at most %d bytes is needed", swarmZoneMax)
	}
	if s.JoinRegistry && c.Registry == "" {
		return setting.Errorf("swarm.join_registry", "no registry is set")
	}
	return nil
}

func (s Swarm) limits() nodeapi.SwarmLimitsRequest {
	up, down, peerUp, peerDown := int64(s.Upload), int64(s.Download), int64(s.PeerUpload), int64(s.PeerDownload)
	return nodeapi.SwarmLimitsRequest{Upload: &up, Download: &down, PeerUpload: &peerUp, PeerDownload: &peerDown}
}

package nodeapi

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// States of a PeerStatus.
const (
	PeerAlive  = "alive"
	PeerBanned = "banned" // it gave out a wrong piece, and is asked for none until SwarmMember.BannedUntil
)

// SwarmOrigin is the upstream among the sources of a pull. No node of a swarm has
// this name.
const SwarmOrigin = "origin"

// Swarm is a node's part in the swarm, as the node sees it. Bytes are of pieces
// of blobs, since the agent's start; what is too small for the swarm is not in
// them.
type Swarm struct {
	Self       SwarmMember     `json:"self"`
	Members    []SwarmMember   `json:"members"` // this node included
	Transfers  []SwarmTransfer `json:"transfers"`
	FromPeers  int64           `json:"received_from_peers_bytes"`
	FromOrigin int64           `json:"received_from_origin_bytes"`
	Sent       int64           `json:"sent_to_peers_bytes"`
	// Saved is the share of what was received that no upstream had to send, 0 to 1.
	Saved float64 `json:"egress_saved"`
	// Handed is what went to the node's runtimes.
	Handed SwarmHanded `json:"handed"`
	// UploadQueue is the pieces that peers wait for or are being sent.
	UploadQueue int `json:"upload_queue"`
	// DirectoryBlobs is the blobs whose interested nodes this one keeps account
	// of, DirectoryMembers those nodes, each counted once for each of the blobs.
	DirectoryBlobs   int `json:"directory_blobs"`
	DirectoryMembers int `json:"directory_members"`
}

// SwarmHanded is bytes of blobs that runtimes were given, by where they came from,
// whatever the blob's size.
type SwarmHanded struct {
	Cache     int64 `json:"cache_bytes"` // that were here before the pull
	Peers     int64 `json:"peer_bytes"`
	Upstreams int64 `json:"upstream_bytes"`
}

// SwarmMember is a node of the swarm.
type SwarmMember struct {
	Node        string     `json:"node"`
	Address     string     `json:"address"`
	Zone        string     `json:"zone,omitempty"`
	Sent        int64      `json:"sent_bytes"`     // to it
	Received    int64      `json:"received_bytes"` // from it
	BannedUntil *time.Time `json:"banned_until,omitempty"`
}

// SwarmTransfer is a blob that is being brought to the node.
type SwarmTransfer struct {
	Digest     digest.Digest `json:"digest"`
	SizeBytes  int64         `json:"size_bytes"`
	Pieces     int           `json:"pieces"`
	Missing    int           `json:"missing"`
	Neighbours []string      `json:"neighbours"` // nodes that pieces are exchanged with
	Members    int           `json:"members"`    // nodes that want or hold it
	Holders    int           `json:"holders"`    // of these have all of it
	Leader     string        `json:"leader"`     // keeps account of these nodes
	FromPeers  int64         `json:"from_peers_bytes"`
	FromOrigin int64         `json:"from_origin_bytes"`
	Background bool          `json:"background,omitempty"` // nobody waits for it
}

// SwarmTraces is the last pulls, the latest first.
type SwarmTraces struct {
	Traces []SwarmTrace `json:"traces"`
}

// SwarmTrace is the course of one pull, for plotting.
type SwarmTrace struct {
	Digest     digest.Digest `json:"digest"`
	SizeBytes  int64         `json:"size_bytes"`
	FromPeers  int64         `json:"from_peers_bytes"`
	FromOrigin int64         `json:"from_origin_bytes"`
	Seconds    float64       `json:"seconds"` // until the last piece
	// Sources are the nodes that pieces came from, SwarmOrigin among them.
	Sources []string `json:"sources"`
	// Pieces are in the order of their arrival: milliseconds since the start, the
	// piece, the index of its source. Of very large blobs it is the beginning.
	Pieces [][3]int `json:"pieces"`
}

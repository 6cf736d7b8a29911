package nodeapi

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// States of a Node.
const (
	StateFresh = "fresh" // its last report still holds
	StateLate  = "late"  // it has not renewed it; what it named stays until KeptUntil
	StateGone  = "gone"  // nor did it until then, and nothing stays for it any more
)

// Accepted is the registry's answer to a report.
type Accepted struct {
	Node       string    `json:"node"`
	Seq        int64     `json:"seq"`
	Digests    int64     `json:"digests"`     // that the node's lease is on
	FreshUntil time.Time `json:"fresh_until"` // by the registry's clock, as all times that it tells
	KeptUntil  time.Time `json:"kept_until"`
}

// Node is what the registry knows of a node.
type Node struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Instance string `json:"instance"`
	Seq      int64  `json:"seq"`
	Version  string `json:"version"`
	// Labels are as of SeenAt, and never nil.
	Labels     map[string]string `json:"labels"`
	Complete   bool              `json:"complete"`
	Runtimes   []Runtime         `json:"runtimes"` // as of SeenAt
	Cache      Cache             `json:"cache"`    // as of SeenAt
	Images     int64             `json:"images"`   // that it has in use
	Digests    int64             `json:"digests"`  // that stay for it
	FirstSeen  time.Time         `json:"first_seen"`
	SeenAt     time.Time         `json:"seen_at"`
	FreshUntil time.Time         `json:"fresh_until"`
	KeptUntil  time.Time         `json:"kept_until"`
	// Swarm is the address of its gossip, for other nodes to join.
	Swarm string `json:"swarm,omitempty"`
	// Runs is what it has in use: all of it where one node was asked for, the
	// first few in a list.
	Runs []Running `json:"runs"`
}

// Running is an image that a node has in use.
type Running struct {
	Digests    []digest.Digest `json:"digests"`
	Image      string          `json:"image,omitempty"`
	Containers int             `json:"containers"`
	Pinned     bool            `json:"pinned,omitempty"`
	Since      time.Time       `json:"since"`
}

// NodeList is the answer to GET /api/v1/nodes.
type NodeList struct {
	Nodes []Node `json:"nodes"`
	// Next is what to give as after for the next page; "" at the end.
	Next string `json:"next,omitempty"`
}

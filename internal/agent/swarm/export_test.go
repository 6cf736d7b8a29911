package swarm

import "github.com/fairway-registry/fairway/internal/agent/swarm/plan"

// HostOf lets tests speak to an engine as a peer.
var HostOf = func(n plan.Node) string { return hostOf(n) }

// ContentKey lets tests know who leads small content.
var ContentKey = contentKey

package swarm

import (
	"slices"
	"sync"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// Peer is a member of the cluster.
type Peer struct {
	Node plan.Node `json:"node"`
	Addr string    `json:"addr"` // host:port of its HTTPS
	Zone string    `json:"zone,omitempty"`
	Host string    `json:"host,omitempty"` // the machine; agents on one are nearest
	// Born is when the agent started, in milliseconds since 1970: one that is back
	// under its name remembers nothing, however short it was away.
	Born int64 `json:"born,omitempty"`
}

// Roster knows the members of the cluster. Gossip is the real one; tests have one
// that they change by hand.
type Roster interface {
	// Members returns all members that are alive, this node included or not.
	Members() []Peer
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Static is a roster that changes only when told.
type Static struct {
	mu      sync.Mutex
	peers   []Peer
	changed chan struct{}
}

// NewStatic returns a roster of the given members.
func NewStatic(peers ...Peer) *Static {
	return &Static{peers: peers, changed: make(chan struct{})}
}

// Members returns the members.
func (s *Static) Members() []Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.peers)
}

// Changed returns a channel that is closed at the next Set.
func (s *Static) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Set replaces the members.
func (s *Static) Set(peers ...Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = peers
	close(s.changed)
	s.changed = make(chan struct{})
}

// members is the engine's view of a roster, made for look-ups.
type members struct {
	list  []plan.Node // in order, this node included
	peers map[plan.Node]Peer
	hosts map[string]plan.Node // name in the certificate → node
}

func viewOf(self Peer, peers []Peer) *members {
	m := &members{peers: map[plan.Node]Peer{}, hosts: map[string]plan.Node{}}
	for _, p := range append(slices.Clone(peers), self) {
		if p.Node == "" || p.Node == plan.Origin {
			continue
		}
		if _, twice := m.peers[p.Node]; !twice {
			m.list = append(m.list, p.Node)
		}
		m.peers[p.Node] = p
		m.hosts[hostOf(p.Node)] = p.Node
	}
	slices.Sort(m.list)
	return m
}

func (m *members) distance(self Peer, n plan.Node) int {
	p, ok := m.peers[n]
	switch {
	case ok && self.Host != "" && p.Host == self.Host:
		return plan.SameHost
	case ok && self.Zone != "" && p.Zone == self.Zone:
		return plan.SameZone
	}
	return plan.Elsewhere
}

package swarm

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// GossipOptions say how to find the other agents.
type GossipOptions struct {
	Self      Peer
	Keys      *Keys
	Bind      string // host:port, TCP and UDP
	Advertise string // host:port under which others reach it; "": as bound
	// Join returns addresses of members, host:port or host; names are resolved
	// each time. It is asked again and again, so that a cluster that was cut in
	// two heals.
	Join func(ctx context.Context) ([]string, error)
	// Every is how often Join is asked; 0 = 15 s.
	Every time.Duration
	Log   *slog.Logger
}

const joinEvery = 15 * time.Second

// Gossip is membership by hashicorp/memberlist, encrypted with the cluster's key.
type Gossip struct {
	o     GossipOptions
	list  *memberlist.Memberlist
	guard *guard
	meta  []byte
	say   *gossipLog

	mu      sync.Mutex
	members map[string]member // by name; memberlist changes its own nodes while others read them
	changed chan struct{}

	alone bool // Run's: that nobody can be joined has been told
}

// member is a node that is alive.
type member struct {
	gossip string // address
	peer   Peer
	sane   bool // what it says of itself is no nonsense
}

// NewGossip binds the gossip's port. Run joins.
func NewGossip(o GossipOptions) (*Gossip, error) {
	if o.Every <= 0 {
		o.Every = joinEvery
	}
	meta, err := json.Marshal(o.Self)
	if err != nil || len(meta) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("describe this node in %d bytes: %w", memberlist.MetaMaxSize, err)
	}
	if len(o.Self.Node) > guardName {
		return nil, fmt.Errorf("the node's name has %d bytes; in a swarm it may have %d", len(o.Self.Node), guardName)
	}
	g := &Gossip{o: o, meta: meta, say: newGossipLog(o.Log), members: map[string]member{}, changed: make(chan struct{})}
	c := memberlist.DefaultLANConfig()
	// The default of 4 leaves one node in forty of a small cluster ignorant of a
	// newcomer until states are exchanged in full.
	c.RetransmitMult = 10
	c.PushPullInterval = 15 * time.Second // of small clusters; memberlist stretches it in large ones
	c.Name = string(o.Self.Node)
	c.SecretKey = o.Keys.Gossip
	c.Delegate, c.Events = g, g
	c.Conflict, c.Logger = g.say, log.New(g.say, "", 0)
	c.DeadNodeReclaimTime = 10 * time.Second // an agent that restarts at another address is the same node
	if c.BindAddr, c.BindPort, err = hostPort(o.Bind); err != nil {
		return nil, err
	}
	c.AdvertisePort = c.BindPort
	if o.Advertise != "" {
		if c.AdvertiseAddr, c.AdvertisePort, err = hostPort(o.Advertise); err != nil {
			return nil, err
		}
	}
	base, err := listenGossip(c)
	if err != nil {
		return nil, fmt.Errorf("listen for gossip on %s: %w", o.Bind, err)
	}
	if g.guard, err = newGuard(base, o.Keys.Gossip, g.say.refused); err != nil {
		_ = base.Shutdown() // nothing was heard yet
		return nil, err
	}
	c.Transport, c.Alive = g.guard, g
	if g.list, err = memberlist.Create(c); err != nil {
		_ = g.guard.Shutdown() // nobody was spoken to yet
		return nil, fmt.Errorf("begin to gossip on %s: %w", o.Bind, err)
	}
	return g, nil
}

// listenGossip binds the port of c for TCP and UDP. Where the kernel chooses it, it may be
// free for one of the two only.
func listenGossip(c *memberlist.Config) (base *memberlist.NetTransport, err error) {
	for range 10 {
		base, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger})
		if err == nil && c.BindPort == 0 {
			c.BindPort = base.GetAutoBindPort()
			c.AdvertisePort = c.BindPort
		}
		if err == nil || c.BindPort != 0 {
			return base, err
		}
	}
	return nil, err
}

func hostPort(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("read the address %q: %w", addr, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", 0, fmt.Errorf("read the port of %q: %w", addr, err)
	}
	return host, n, nil
}

// Self is this node as the others see it: with an address that they can reach,
// where it listens on all of the machine's.
func (g *Gossip) Self() Peer { return memberOf(g.list.LocalNode()).peer }

// Addr is the address that others may join.
func (g *Gossip) Addr() string { return g.list.LocalNode().Address() }

// Run joins the cluster, and again when members are missing, until ctx ends.
// Then it says goodbye.
func (g *Gossip) Run(ctx context.Context) error {
	tick := time.NewTicker(g.o.Every)
	defer tick.Stop()
	for {
		g.join(ctx)
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	// Others learn of it at once instead of after a timeout; that nobody is
	// there to hear it is no error.
	if err := g.list.Leave(time.Second); err != nil {
		g.o.Log.Debug("leave the cluster", "err", err)
	}
	return g.list.Shutdown()
}

// Close gives the port up, without a goodbye; after Run there is nothing left to do.
func (g *Gossip) Close() error { return g.list.Shutdown() }

// join contacts the addresses that belong to no member known.
func (g *Gossip) join(ctx context.Context) {
	if g.o.Join == nil {
		return
	}
	addrs, err := g.o.Join(ctx)
	if err != nil {
		g.o.Log.Warn("the other agents' addresses cannot be had", "err", err)
		return
	}
	known := map[string]bool{}
	g.mu.Lock()
	for _, m := range g.members {
		known[m.gossip] = true
	}
	g.mu.Unlock()
	var unknown []string
	for _, a := range addrs {
		if !known[a] {
			unknown = append(unknown, a)
		}
	}
	if len(unknown) == 0 {
		return
	}
	n, err := g.list.Join(unknown)
	if n > 0 || err == nil || len(known) > 1 { // this node is known too
		g.alone = false
		return
	}
	level := slog.LevelDebug
	if !g.alone {
		// Once per outage: an address may be wrong, or the secret another one,
		// which looks the same from here.
		g.alone, level = true, slog.LevelWarn
	}
	g.o.Log.Log(ctx, level, "no other agent could be joined: is it up, and has it the same secret?", "addresses", len(unknown), "err", err)
}

// Members returns the members that are alive. What a member says of itself may
// be nonsense; then it is none.
func (g *Gossip) Members() []Peer {
	g.mu.Lock()
	defer g.mu.Unlock()
	peers := make([]Peer, 0, len(g.members))
	for _, m := range g.members {
		if m.sane {
			peers = append(peers, m.peer)
		}
	}
	return peers
}

// memberOf reads a node while memberlist holds it still.
func memberOf(n *memberlist.Node) member {
	m := member{gossip: n.Address()}
	p := &m.peer
	if json.Unmarshal(n.Meta, p) != nil || p.Node != plan.Node(n.Name) {
		return m
	}
	m.sane = true
	if host, port, err := net.SplitHostPort(p.Addr); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		p.Addr = net.JoinHostPort(n.Addr.String(), port)
	}
	return m
}

// Changed returns a channel that is closed at the next change.
func (g *Gossip) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// set notes that a node is alive.
func (g *Gossip) set(n *memberlist.Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members[n.Name] = memberOf(n)
	g.change()
}

// change tells who waits. g.mu is held.
func (g *Gossip) change() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// NotifyJoin is part of memberlist.EventDelegate.
func (g *Gossip) NotifyJoin(n *memberlist.Node) { g.set(n) }

// NotifyLeave is part of memberlist.EventDelegate.
func (g *Gossip) NotifyLeave(n *memberlist.Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.members, n.Name)
	g.change()
}

// NotifyUpdate is part of memberlist.EventDelegate.
func (g *Gossip) NotifyUpdate(n *memberlist.Node) { g.set(n) }

// NodeMeta is part of memberlist.Delegate.
func (g *Gossip) NodeMeta(int) []byte { return g.meta }

// NotifyMsg is part of memberlist.Delegate; nothing is gossiped but membership.
func (g *Gossip) NotifyMsg([]byte) {}

// GetBroadcasts is part of memberlist.Delegate.
func (g *Gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is part of memberlist.Delegate.
func (g *Gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState is part of memberlist.Delegate.
func (g *Gossip) MergeRemoteState([]byte, bool) {}

package crowd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/daemon"
)

// Secret is the cluster's secret of all scenes.
const Secret = "the secret of a scene, which is no secret"

// Options says how a crowd is.
type Options struct {
	Fairway string // the binary
	Dir     string // for all data
	Origin  *Origin
	Net     *Net // nil: loopback. Host 0 is the origin's, node i is on host i
	Link    Link // of each node, by token buckets; on a Net, links are limited by it
	Alone   bool // without a swarm: every node from the registry
	Args    []string
	Log     func(name string) io.Writer // nil: a file beside the data
}

// Crowd is a number of agents of one registry.
type Crowd struct {
	o      Options
	secret string

	mu    sync.Mutex
	Nodes []*Node
}

// Node is a `fairway node` process: one directory, one address, any number of lives.
type Node struct {
	Name   string
	Dir    string
	Mirror string // HOST:PORT, on its own machine
	Gossip string
	Host   *Host // nil: this machine
	Link   Link
	Proc   *daemon.Process

	c      *Crowd
	args   []string
	log    io.Writer
	client *http.Client
}

// NewCrowd returns a crowd without nodes.
func NewCrowd(o Options) (*Crowd, error) {
	secret, err := secretFile(o.Dir)
	if err != nil {
		return nil, err
	}
	return &Crowd{o: o, secret: secret}, nil
}

// Close kills all nodes.
func (c *Crowd) Close() {
	for _, n := range c.All() {
		n.Proc.Kill()
	}
}

// All returns the nodes, in the order of their start.
func (c *Crowd) All() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Node(nil), c.Nodes...)
}

// SecretFile is the path of the cluster's secret.
func (c *Crowd) SecretFile() string { return c.secret }

// Start starts a node. Change, if it is not nil, changes it before that; more
// arguments win over those here.
func (c *Crowd) Start(ctx context.Context, change func(*Node), more ...string) (*Node, error) {
	c.mu.Lock()
	i := len(c.Nodes) + 1
	n := &Node{Name: "node-" + strconv.Itoa(i), c: c, Link: c.o.Link}
	c.Nodes = append(c.Nodes, n)
	c.mu.Unlock()
	n.Dir = filepath.Join(c.o.Dir, n.Name)
	if err := n.place(i); err != nil {
		return nil, err
	}
	if change != nil {
		change(n)
	}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return nil, err
	}
	if c.o.Log != nil {
		n.log = c.o.Log(n.Name)
	} else {
		f, err := os.Create(filepath.Join(c.o.Dir, n.Name+".log"))
		if err != nil {
			return nil, err
		}
		n.log = f // open until this process ends
	}
	n.args = append([]string{
		"node", "--registry", c.o.Origin.URL, "--name", n.Name, "--data", n.data(), "--listen", n.Mirror, "--runtime", "none", "--floor", "0",
		"--admin-socket", n.socket(),
	}, n.swarmArgs()...)
	n.args = append(n.args, append(c.o.Args, more...)...)
	return n, n.Restart(ctx)
}

// place gives the node its addresses.
func (n *Node) place(i int) error {
	addrs := []*string{&n.Mirror, &n.Gossip}
	if n.c.o.Net != nil {
		n.Host = n.c.o.Net.Host(i)
		n.Mirror, n.Gossip = "127.0.0.1:5001", net.JoinHostPort(n.Host.IP, "5003")
		addrs = nil
	}
	for _, a := range addrs {
		addr, err := daemon.FreeAddr()
		if err != nil {
			return err
		}
		*a = addr
	}
	n.client = &http.Client{Transport: &http.Transport{DialContext: n.dial, MaxIdleConnsPerHost: 8, DisableCompression: true}}
	return nil
}

func (n *Node) swarmArgs() []string {
	if n.c.o.Alone {
		return nil
	}
	host, _, _ := net.SplitHostPort(n.Gossip) // it was made by JoinHostPort or a listener
	args := []string{"--swarm-secret", n.c.secret, "--swarm-listen", net.JoinHostPort(host, "0"), "--swarm-gossip", n.Gossip}
	var join []string
	for _, o := range n.c.All() {
		if o != n && len(join) < 3 {
			join = append(join, o.Gossip)
		}
	}
	if len(join) > 0 {
		args = append(args, "--swarm-join", strings.Join(join, ","))
	}
	if n.Link.Upload > 0 {
		args = append(args, "--swarm-upload", strconv.FormatInt(n.Link.Upload, 10))
	}
	if n.Link.Download > 0 {
		args = append(args, "--swarm-download", strconv.FormatInt(n.Link.Download, 10))
	}
	return args
}

func (n *Node) data() string   { return filepath.Join(n.Dir, "data") }
func (n *Node) socket() string { return filepath.Join(n.Dir, "s") }

func (n *Node) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if n.Host == nil {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return n.Host.Dial(ctx, network, addr)
}

// Restart starts the process, after it has ended.
func (n *Node) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	path, args := n.c.o.Fairway, n.args
	if n.Host != nil {
		path, args = n.Host.Command(path, args...)
	}
	p, err := daemon.Start(ctx, daemon.Options{Path: path, Args: args, Log: n.log, Ready: n.socket()})
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	n.Proc = p
	return nil
}

// Get reads something of the node's HTTP face, /metrics for example.
func (n *Node) Get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Mirror+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s of %s: %s: %s", path, n.Name, resp.Status, b)
	}
	return b, nil
}

// Metric is the sum of a metric over those of its labels that contain a text.
func (n *Node) Metric(ctx context.Context, name, label string) (float64, error) {
	b, err := n.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		bare, labels, _ := strings.Cut(key, "{")
		if !ok || bare != name || !strings.Contains(labels, label) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, err
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s with %s", n.Name, name, label)
	}
	return sum, nil
}

// Members is how many members of the swarm the node sees, itself included.
func (n *Node) Members(ctx context.Context) (int, error) {
	m, err := n.Metric(ctx, "fairway_node_swarm_members", "")
	return int(m), err
}

// Gather waits until all nodes see count members.
func (c *Crowd) Gather(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, n := range c.All() {
		select {
		case <-n.Proc.Ended():
			return fmt.Errorf("%s has ended", n.Name)
		default:
		}
		seen, last := 0, error(nil)
		err := Await(ctx, func() bool {
			m, err := n.Members(ctx)
			if err == nil {
				seen = m
			} else if ctx.Err() == nil {
				last = err
			}
			return seen >= count
		})
		if err != nil {
			return fmt.Errorf("%s sees %d members of %d: %w", n.Name, seen, count, errors.Join(err, last))
		}
	}
	return nil
}

// Package swarmsim runs the swarm's scheduler over virtual links in virtual time.
//
// It owns a model of the network: every node and the origin have an uplink and a
// downlink that serve quanta of 64 KiB in turn, messages take a latency, a
// transfer to a slow receiver holds its slot but not the sender's link. The
// decisions come from package plan, the code that the agent runs.
//
// It refuses to model what the scheduler does not see: packets, congestion
// control, CPU. Figures of real processes come from the benchmark.
package swarmsim

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// Config is one scenario.
type Config struct {
	Nodes     int
	Pieces    int
	PieceSize int     // bytes
	Up, Down  float64 // bytes a second of a node
	OriginUp  float64
	Latency   time.Duration // one way
	Seed      uint64
	Quanta    int // quanta of a piece; 0: 4
	Arrive    func(i int) time.Duration
	// Speed scales both links of a node; nil: 1.
	Speed func(i int) float64
	// Kill returns when a node dies; negative: never.
	Kill func(i int) time.Duration
	// Stall nodes claim to hold everything and send nothing.
	Stall func(i int) bool
	// OriginDown is when the origin stops; 0: never.
	OriginDown time.Duration
	Limit      time.Duration // virtual time after which the run is given up; 0: 10 minutes
	// Progress is told each delivery, for plots.
	Progress       func(now time.Duration, node int)
	Slots, PerPeer int // of the upload queue; 0: the defaults
}

// Result is what a run measured.
type Result struct {
	Bound      time.Duration   // the fluid limit, counted from the last arrival
	Took       time.Duration   // from the last arrival to the last node that completed
	Finish     []time.Duration // by node, since the start; 0: did not complete
	First      []time.Duration // by node, since the start: when it had the first piece
	Complete   int
	Egress     float64 // copies that left the origin
	Sent       []float64
	Announces  int // to leaders, answers included
	DirBytes   int64
	LeaderMsgs int // of these, at the busiest leader
	Haves      int // messages between neighbours about new pieces
	Neighbours int // the most any node had
	Asks       int
	Duplicates int // pieces that came twice
}

// Ratio is time over bound.
func (r Result) Ratio() float64 { return float64(r.Took) / float64(r.Bound) }

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(event)) }
func (h *events) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return x
}

type sim struct {
	Config
	now    time.Duration
	seq    int
	queue  events
	nodes  []*node
	byName map[plan.Node]*node
	alive  []plan.Node
	chief  *node // the leader among alive; nil: not known
	origin *link
	res    Result
	left   int // nodes that are expected to complete and have not
	blob   string
	last   time.Duration // last arrival
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now + d, s.seq, do})
}

// Run plays a scenario to its end.
func Run(c Config) Result {
	if c.Quanta == 0 {
		c.Quanta = 4
	}
	if c.Limit == 0 {
		c.Limit = 10 * time.Minute
	}
	s := &sim{Config: c, byName: map[plan.Node]*node{}, blob: fmt.Sprint("sha256:", c.Seed)}
	s.origin = &link{s: s, rate: c.OriginUp}
	s.res.Finish = make([]time.Duration, c.Nodes)
	s.res.First = make([]time.Duration, c.Nodes)
	s.res.Sent = make([]float64, c.Nodes)
	for i := range c.Nodes {
		s.plant(i)
	}
	if c.OriginDown > 0 {
		s.after(c.OriginDown, func() { s.origin.down = true })
	}
	for s.left > 0 && len(s.queue) > 0 {
		e := heap.Pop(&s.queue).(event)
		if s.now = e.at; s.now > c.Limit {
			break
		}
		e.do()
	}
	return s.result()
}

func (s *sim) result() Result {
	total := float64(s.Pieces) * float64(s.PieceSize)
	minDown, sumUp, n := s.Down, s.OriginUp, 0
	for i, nd := range s.nodes {
		if f := s.res.Finish[i]; f > 0 {
			s.res.Complete++
			s.res.Took = max(s.res.Took, f-s.last)
		}
		n++
		minDown, sumUp = min(minDown, nd.down.rate), sumUp+nd.up.rate
		s.res.Sent[i] = float64(nd.up.bytes) / total
		s.res.Neighbours = max(s.res.Neighbours, nd.most)
		s.res.LeaderMsgs = max(s.res.LeaderMsgs, nd.led)
	}
	s.res.Bound = time.Duration(max(total/s.OriginUp, total/minDown, float64(n)*total/sumUp) * float64(time.Second))
	s.res.Egress = float64(s.origin.bytes) / total
	return s.res
}

func (s *sim) plant(i int) {
	speed, arrive := 1.0, time.Duration(0)
	if s.Speed != nil {
		speed = s.Speed(i)
	}
	if s.Arrive != nil {
		arrive = s.Arrive(i)
	}
	n := &node{
		s: s, i: i, name: plan.Node(fmt.Sprintf("node-%05d", i)),
		up:       &link{s: s, rate: s.Up * speed},
		down:     &link{s: s, rate: s.Down * speed},
		uploads:  plan.NewUploads(s.Slots, s.PerPeer, 0),
		watching: map[plan.Node]bool{}, stall: s.Stall != nil && s.Stall(i),
		transfers: map[transferKey]*transfer{},
	}
	n.dir = plan.NewDirectory(plan.DirectoryLimits{}, rand.New(rand.NewPCG(s.Seed, uint64(i)+1e6)))
	s.nodes = append(s.nodes, n)
	s.byName[n.name] = n
	s.last = max(s.last, arrive)
	kill := time.Duration(-1)
	if s.Kill != nil {
		kill = s.Kill(i)
	}
	if kill < 0 && !n.stall {
		s.left++
	}
	// A node is a member of the cluster before it wants the blob.
	s.alive, s.chief = append(s.alive, n.name), nil
	s.after(arrive, n.start)
	if kill >= 0 {
		s.after(kill, n.die)
	}
}

// leader is who leads the blob among those alive. Everybody asks before every step,
// and only a death changes it.
func (s *sim) leader() *node {
	if s.chief == nil {
		s.chief = s.byName[plan.Rank(s.blob, s.alive, 1)[0]]
	}
	return s.chief
}

func size(v any) int64 {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return int64(len(b)) + 150 // what HTTP and TLS put around it
}

package swarm

import (
	"maps"
	"slices"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Status is what `fairway swarm` shows. Its JSON is public.
type Status struct {
	Self      Peer       `json:"self"`
	Members   []Member   `json:"members"`
	Transfers []Transfer `json:"transfers"`
	Queue     int        `json:"upload_queue"`
	FromPeers int64      `json:"received_from_peers_bytes"`
	FromHome  int64      `json:"received_from_origin_bytes"`
	Sent      int64      `json:"sent_to_peers_bytes"`
	Blobs     int        `json:"directory_blobs"`
	Records   int        `json:"directory_members"`
}

// Member is one agent as this one sees it.
type Member struct {
	Peer
	Sent     int64      `json:"sent_bytes"`     // to it, since the start
	Received int64      `json:"received_bytes"` // from it
	Banned   *time.Time `json:"banned_until,omitempty"`
}

// Transfer is a blob that is being brought here.
type Transfer struct {
	Digest     oci.Digest  `json:"digest"`
	Size       int64       `json:"size_bytes"`
	Pieces     int         `json:"pieces"`
	Missing    int         `json:"missing"`
	Neighbours []plan.Node `json:"neighbours"`
	Members    int         `json:"members"` // that want or hold it
	Holders    int         `json:"holders"`
	Leader     plan.Node   `json:"leader"`
	FromPeers  int64       `json:"from_peers_bytes"`
	FromOrigin int64       `json:"from_origin_bytes"`
	Background bool        `json:"background,omitempty"`
}

// tally counts bytes exchanged with a peer; for plan.Origin, with the origin.
type tally struct{ sent, received int64 }

func (e *Engine) tallyOf(n plan.Node) *tally {
	t := e.tallies[n]
	if t == nil {
		if len(e.tallies) > 50_000 {
			clear(e.tallies) // members come and go under new names; the sums are in the metrics
		}
		t = &tally{}
		e.tallies[n] = t
	}
	return t
}

func (e *Engine) tallySent(n plan.Node, bytes int) {
	e.metrics.sent.Add(float64(bytes))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tallyOf(n).sent += int64(bytes)
}

func (e *Engine) tallyReceived(n plan.Node, bytes int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tallyOf(n).received += int64(bytes)
}

// Status tells who is there and what goes on.
func (e *Engine) Status() Status {
	e.dirMu.Lock()
	blobs, records := e.directory.Len()
	e.dirMu.Unlock()
	e.mu.Lock()
	s := Status{Self: e.o.Self, Queue: e.uploads.Load(), Blobs: blobs, Records: records, Members: []Member{}, Transfers: []Transfer{}}
	for _, n := range e.view.list {
		m := Member{Peer: e.view.peers[n]}
		if t := e.tallies[n]; t != nil {
			m.Sent, m.Received = t.sent, t.received
		}
		if b := e.bans[n]; b != nil && time.Now().Before(b.until) {
			until := b.until // which changes with the next lie
			m.Banned = &until
		}
		s.Members = append(s.Members, m)
	}
	for n, t := range e.tallies {
		if n == plan.Origin {
			s.FromHome += t.received
			continue
		}
		s.FromPeers += t.received
		s.Sent += t.sent
	}
	active := slices.Collect(maps.Values(e.downloads))
	e.mu.Unlock()
	for _, d := range active {
		s.Transfers = append(s.Transfers, d.transfer())
	}
	slices.SortFunc(s.Transfers, func(a, b Transfer) int { return compare(a.Digest, b.Digest) })
	return s
}

func compare(a, b oci.Digest) int {
	if a < b {
		return -1
	}
	return 1
}

func (d *download) transfer() Transfer {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := Transfer{
		Digest: d.b.Digest(), Size: d.b.Size(), Pieces: d.b.Pieces(), Missing: d.plan.Missing(), Neighbours: d.plan.Peers(),
		Leader: d.leader, FromPeers: d.trace.Peers, FromOrigin: d.trace.Origin, Background: d.w.Background,
	}
	t.Members, t.Holders = d.plan.Members()
	slices.Sort(t.Neighbours)
	return t
}

// Trace is the course of one pull, for plotting.
type Trace struct {
	Digest  oci.Digest  `json:"digest"`
	Size    int64       `json:"size_bytes"`
	Peers   int64       `json:"from_peers_bytes"`
	Origin  int64       `json:"from_origin_bytes"`
	Seconds float64     `json:"seconds"`
	Sources []plan.Node `json:"sources"`
	// Pieces in the order of their arrival: milliseconds since the start, piece,
	// index of its source.
	Pieces [][3]int `json:"pieces"`

	began time.Duration
	index map[plan.Node]int
}

// Bounds of what is kept for traces.
const (
	maxTraces = 16
	maxTraced = 8192 // pieces of one
)

func newTrace(d oci.Digest, size int64, now time.Duration) *Trace {
	return &Trace{Digest: d, Size: size, began: now, index: map[plan.Node]int{}, Pieces: [][3]int{}}
}

func (t *Trace) add(now time.Duration, piece, bytes int, from plan.Node) {
	if from == plan.Origin {
		t.Origin += int64(bytes)
	} else {
		t.Peers += int64(bytes)
	}
	t.Seconds = (now - t.began).Seconds()
	k, known := t.index[from]
	if !known {
		k = len(t.Sources)
		t.index[from] = k
		t.Sources = append(t.Sources, from)
	}
	if len(t.Pieces) < maxTraced {
		t.Pieces = append(t.Pieces, [3]int{int((now - t.began).Milliseconds()), piece, k})
	}
}

// keepTrace keeps the trace of a download that is over. e.mu is held.
func (e *Engine) keepTrace(t *Trace) {
	e.traces = append(e.traces, t)
	if len(e.traces) > maxTraces {
		e.traces = e.traces[1:]
	}
}

// Traces returns the last pulls, the latest at the end.
func (e *Engine) Traces() []*Trace {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.traces)
}

// report logs where a blob came from.
func (e *Engine) report(d *download) {
	t := d.trace
	e.log.Info("pulled by the swarm", "digest", t.Digest, "bytes", t.Size, "from_peers_bytes", t.Peers, "from_origin_bytes", t.Origin,
		"peers", len(t.Sources)-min(1, len(t.Sources)), "seconds", t.Seconds)
}

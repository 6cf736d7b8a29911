package swarm_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// shelf is what a node has of small content.
type shelf struct {
	mu   sync.Mutex
	have map[oci.Digest][]byte
	own  bool // whether the last asker stated a right of its own
}

func (s *shelf) put(d oci.Digest, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have[d] = content
}

func (s *shelf) Named(context.Context, string, oci.Name, oci.Tag) (swarm.Named, error) {
	return swarm.Named{}, fault.New(fault.NotFound, "no tags here")
}

func (s *shelf) Given(_ context.Context, _ string, _ oci.Name, d oci.Digest, own bool) (swarm.Given, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = own
	if s.have[d] == nil {
		return swarm.Given{}, fault.New(fault.NotFound, "not here")
	}
	return swarm.Given{Content: s.have[d], Public: true}, nil
}

func (s *shelf) Each(context.Context, func(string, oci.Name, oci.Tag)) error { return nil }

func waiting(wait time.Duration) func(*swarm.Options) {
	return func(o *swarm.Options) { o.Limits.Wait = wait }
}

// TestN9_SmallContentIsAskedForOnce has all nodes look for the same at once.
func TestN9_SmallContentIsAskedForOnce(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	d := c.Origin.Make(5000, 1)
	var nodes []*swarmtest.Node
	var shelves []*shelf
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		s := &shelf{have: map[oci.Digest][]byte{}}
		nodes, shelves = append(nodes, c.StartWith(name, s, waiting(time.Minute))), append(shelves, s)
	}
	for _, n := range nodes {
		eventually(t, "all know each other", func() bool { return len(n.Status().Members) == len(nodes) })
	}
	var asked atomic.Int32
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			g, found, _ := n.Together(t.Context(), "ns", "app", d, false)
			if !found {
				asked.Add(1)
				g.Content = c.Origin.Content(d)
			}
			if string(g.Content) != string(c.Origin.Content(d)) {
				t.Errorf("%s has %d wrong bytes", n.Peer.Node, len(g.Content))
			}
			shelves[i].put(d, g.Content)
			n.KnowsContent(d)
		})
	}
	all.Wait()
	if asked := asked.Load(); asked != 1 {
		t.Errorf("%d of %d nodes asked the upstream", asked, len(nodes))
	}
}

// chief is a peer that leads all small content, and may say that it has it.
type chief struct {
	name    plan.Node
	reply   func(a plan.Announce) plan.Reply
	content func() []byte

	mu   sync.Mutex
	told []plan.Announce
	body []map[string]any // the questions for content
}

func startChief(t *testing.T, c *swarmtest.Cluster, reply func(plan.Announce) plan.Reply, content func() []byte) *chief {
	t.Helper()
	l := &chief{name: "chief", reply: reply, content: content}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /swarm/v1/announce", func(w http.ResponseWriter, r *http.Request) {
		var a plan.Announce
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			t.Error(err)
		}
		l.mu.Lock()
		l.told = append(l.told, a)
		l.mu.Unlock()
		_ = json.NewEncoder(w).Encode(l.reply(a))
	})
	mux.HandleFunc("POST /swarm/v1/contents", func(w http.ResponseWriter, r *http.Request) {
		var q map[string]any
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		l.mu.Lock()
		l.body = append(l.body, q)
		l.mu.Unlock()
		_ = json.NewEncoder(w).Encode(swarm.Given{Content: l.content(), Public: true})
	})
	srv := httptest.NewUnstartedServer(mux)
	srv.TLS = serverTLS(t, string(l.name))
	srv.StartTLS()
	t.Cleanup(srv.CloseClientConnections)
	c.Add(swarm.Peer{Node: l.name, Addr: srv.Listener.Addr().String()})
	return l
}

func (l *chief) heard() []plan.Announce {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.told)
}

// led returns the digest of content that the chief leads beside node, which knows it.
func (l *chief) led(t *testing.T, c *swarmtest.Cluster, n *swarmtest.Node) oci.Digest {
	t.Helper()
	eventually(t, "the chief is a member", func() bool { return len(n.Status().Members) == 2 })
	for seed := uint64(1); ; seed++ {
		d := c.Origin.Make(5000, seed)
		if plan.Rank(swarm.ContentKey(d), []plan.Node{l.name, n.Peer.Node}, 1)[0] == l.name {
			return d
		}
	}
}

func lease(plan.Announce) plan.Reply { return plan.Reply{Lease: []int{0}, Members: 2} }

// TestN8_ATurnThatFailsIsHandedBack lets the next one ask the upstream.
func TestN8_ATurnThatFailsIsHandedBack(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", waiting(time.Minute))
	l := startChief(t, c, lease, nil)
	d := l.led(t, c, n)
	_, found, failed := n.Together(t.Context(), "ns", "app", d, false)
	if told := l.heard(); found || len(told) != 1 || told[0].Want != 1 {
		t.Fatalf("found %v, announced %+v", found, told)
	}
	if first := l.heard()[0]; !first.New || first.Have == nil {
		t.Error("a record of a former copy of one's own is not withdrawn, so that the turn never comes")
	}
	failed()
	eventually(t, "the turn is handed back", func() bool {
		told := l.heard()
		return len(told) == 2 && slices.Equal(told[1].Back, []int{0})
	})
}

// TestN8_WhoNeverDeliversIsNotWaitedForLong has somebody else's turn last, a leader
// that does not answer, and a holder that does not.
func TestN8_WhoNeverDeliversIsNotWaitedForLong(t *testing.T) {
	forever := make(chan struct{})
	for name, reply := range map[string]func(plan.Announce) plan.Reply{
		"fetcher": func(plan.Announce) plan.Reply { return plan.Reply{Members: 2, Retry: 10} },
		"leader":  func(plan.Announce) plan.Reply { <-forever; return plan.Reply{} },
		"holder": func(plan.Announce) plan.Reply {
			return plan.Reply{Members: 2, Holders: 1, Peers: []plan.Member{{Node: "chief"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := swarmtest.New(t, swarmtest.NewOrigin(0))
			n := c.Start("node", waiting(100*time.Millisecond))
			l := startChief(t, c, reply, func() []byte { <-forever; return nil })
			over := make(chan bool, 1)
			d := l.led(t, c, n)
			go func() {
				_, found, _ := n.Together(context.WithoutCancel(t.Context()), "ns", "app", d, false)
				over <- found
			}()
			select {
			case found := <-over:
				if found {
					t.Error("found something")
				}
			case <-time.After(30 * time.Second):
				t.Error("it is waited for without an end")
			}
		})
	}
	close(forever)
}

// TestN8_OneWhoDoesNotAnswerLeavesTimeForTheNext: a leader is passed over the next time,
// and of two holders the second is asked. Each wait is a part of the whole, at random,
// so that it may take a few searches.
func TestN8_OneWhoDoesNotAnswerLeavesTimeForTheNext(t *testing.T) {
	const most = 100
	forever := make(chan struct{})
	t.Run("leader", func(t *testing.T) {
		c := swarmtest.New(t, swarmtest.NewOrigin(0))
		n := c.Start("node", waiting(50*time.Millisecond))
		l := startChief(t, c, func(plan.Announce) plan.Reply { <-forever; return plan.Reply{} }, nil)
		d := l.led(t, c, n)
		for searches := 0; ; searches++ {
			before := len(l.heard())
			if _, found, _ := n.Together(t.Context(), "ns", "app", d, false); found {
				t.Fatal("found something")
			}
			if searches > 0 && len(l.heard()) == before {
				break
			}
			if searches == most {
				t.Fatal("a leader that does not answer is asked again and again")
			}
		}
	})
	t.Run("holder", func(t *testing.T) {
		c := swarmtest.New(t, swarmtest.NewOrigin(0))
		n := c.Start("node", waiting(200*time.Millisecond))
		s := &shelf{have: map[oci.Digest][]byte{}}
		c.StartWith("good", s, nil)
		l := startChief(t, c, func(plan.Announce) plan.Reply {
			return plan.Reply{Members: 3, Holders: 2, Peers: []plan.Member{{Node: "chief"}, {Node: "good"}}}
		}, func() []byte { <-forever; return nil })
		eventually(t, "all are members", func() bool { return len(n.Status().Members) == 3 })
		d := c.Origin.Make(5000, 1)
		for seed := uint64(2); plan.Rank(swarm.ContentKey(d), []plan.Node{"chief", "good", "node"}, 1)[0] != l.name; seed++ {
			d = c.Origin.Make(5000, seed)
		}
		s.put(d, c.Origin.Content(d))
		for searches := 0; ; searches++ {
			if _, found, _ := n.Together(t.Context(), "ns", "app", d, false); found {
				break
			}
			if searches == most {
				t.Fatal("a holder that does not answer takes all the time")
			}
		}
	})
	close(forever)
}

// TestN7_WrongSmallContentIsRefused, and whoever gave it is not asked again.
func TestN7_WrongSmallContentIsRefused(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", waiting(time.Minute))
	l := startChief(t, c, func(a plan.Announce) plan.Reply {
		if len(a.Lost) > 0 {
			return lease(a)
		}
		return plan.Reply{Members: 2, Holders: 1, Peers: []plan.Member{{Node: "chief"}}}
	}, func() []byte { return []byte("something else") })
	d := l.led(t, c, n)
	if _, found, _ := n.Together(t.Context(), "ns", "app", d, false); found {
		t.Error("wrong content was taken")
	}
	told := l.heard()
	if last := told[len(told)-1]; !slices.Contains(last.Lost, "chief") {
		t.Errorf("the leader does not hear who lies: %+v", told)
	}
	if bannedOf(n, "chief") == nil {
		t.Error("the liar is not banned")
	}
}

// TestN10_SmallContentIsAskedForByItsRight: private content by this node's own, which
// is not stated for content that everybody may have.
func TestN10_SmallContentIsAskedForByItsRight(t *testing.T) {
	var may atomic.Bool
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", func(o *swarm.Options) {
		o.Allowed = func(ns string, _ oci.Digest) bool { return ns == "ns" && may.Load() }
		o.Limits.Wait = time.Minute
	})
	var d oci.Digest
	l := startChief(t, c, func(plan.Announce) plan.Reply {
		return plan.Reply{Members: 2, Holders: 1, Peers: []plan.Member{{Node: "chief"}}}
	}, func() []byte { return c.Origin.Content(d) })
	d = l.led(t, c, n)
	if _, found, _ := n.Together(t.Context(), "ns", "app", d, true); found || len(l.heard()) > 0 {
		t.Errorf("private content was asked for without a right: found %v, announced %+v", found, l.heard())
	}
	may.Store(true)
	for _, private := range []bool{true, false} {
		if _, found, _ := n.Together(t.Context(), "ns", "app", d, private); !found {
			t.Fatalf("private %v: not found", private)
		}
		grant, _ := l.body[len(l.body)-1]["grant"].(map[string]any)
		if stated := grant["kind"] == "upstream" && grant["namespace"] == "ns"; stated != private {
			t.Errorf("private %v: the question states %v", private, grant)
		}
	}
}

// TestN9_HoldersAreNamedAmongManyWhoWait is about the leader.
func TestN9_HoldersAreNamedAmongManyWhoWait(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	client := clientAs(t, "asker", []*swarmtest.Node{n})
	key := swarm.ContentKey(c.Origin.Make(5000, 1))
	n.KnowsContent(c.Origin.Make(5000, 1))
	eventually(t, "the holder is recorded", func() bool { return n.Status().Records == 1 })
	for i := range 100 {
		who := "waiting-" + string(rune('a'+i/10)) + string(rune('a'+i%10))
		status, text := post(t, clientAs(t, who, []*swarmtest.Node{n}), n, "/swarm/v1/announce", `{"blob":"`+key+`","node":"`+who+`","pieces":1,"want":1}`)
		if status != http.StatusOK {
			t.Fatal(status, text)
		}
	}
	_, text := post(t, client, n, "/swarm/v1/announce", `{"blob":"`+key+`","node":"asker","pieces":1,"want":1,"peers":4,"whole":true}`)
	var r plan.Reply
	if err := json.Unmarshal([]byte(text), &r); err != nil || len(r.Peers) != 1 || r.Peers[0].Node != "node" || len(r.Lease) > 0 {
		t.Errorf("the leader answers %s, %v", text, err)
	}
}

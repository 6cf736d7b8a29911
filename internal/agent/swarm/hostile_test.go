package swarm_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
)

// within returns a context that ends after 30 s, so that a call that hangs fails its test.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// useless is what a leader says who lets nobody get on.
func useless(plan.Announce) plan.Reply {
	return plan.Reply{Next: 3_600_000, Retry: 3_600_000, Members: 1000, Holders: 999}
}

// TestR17_AUselessLeaderIsWaitedForOnce whatever number of blobs it leads: what was
// waited for in vain shortens the next wait.
func TestR17_AUselessLeaderIsWaitedForOnce(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	l := startChief(t, c, useless, nil)
	l.led(t, c, n)
	n.Alone(2 * time.Second)
	seed := uint64(1)
	pull := func() time.Duration {
		for {
			d := c.Origin.Make(2*mb, seed)
			seed++
			if plan.Rank(string(d), []plan.Node{l.name, n.Peer.Node}, 1)[0] != l.name {
				continue
			}
			began := time.Now()
			if err := c.Pull(within(t), n, fetch.Want{Digest: d, Size: -1}); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
	}
	took := pull()
	if n.Spent() == 0 {
		t.Error("a download has waited in vain, and it is not noted")
	}
	n.Spend(time.Hour)
	if again := pull(); 2*again > took {
		t.Errorf("it took %v, and then %v", took, again)
	}
}

// TestR17_AUselessLeaderOfSmallContentIsWaitedForOnce in the same way.
func TestR17_AUselessLeaderOfSmallContentIsWaitedForOnce(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", waiting(20*time.Millisecond))
	l := startChief(t, c, useless, nil)
	d := l.led(t, c, n)
	if _, found, _ := n.Together(t.Context(), "ns", "app", d, false); found || n.Spent() == 0 {
		t.Errorf("found %v, after %v in vain", found, n.Spent())
	}
	n.SetLimits(swarm.Limits{Wait: time.Hour})
	n.Spend(time.Hour)
	ctx := within(t)
	if _, found, _ := n.Together(ctx, "ns", "app", d, false); found || ctx.Err() != nil {
		t.Errorf("found %v, %v", found, ctx.Err())
	}
}

// TestR17_HoldersThatGiveNothingAreNotAskedOneAfterTheOther of a blob that the cache has
// no room for: the upstream has it.
func TestR17_HoldersThatGiveNothingAreNotAskedOneAfterTheOther(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	names := []plan.Node{"a", "b", "c", "d", "e", "f", "g", "h"}
	d := c.Origin.Make(2*mb, 1)
	for seed := uint64(2); plan.Rank(string(d), append(names, n.Peer.Node), 1)[0] != n.Peer.Node; seed++ {
		d = c.Origin.Make(2*mb, seed)
	}
	var rogues []*rogue
	for _, name := range names {
		rogues = append(rogues, startRogue(t, c, string(name), func(w http.ResponseWriter, r *http.Request, content []byte, pieces []int) {
			if pieces[0] == 1 { // the first of many
				sendPieces(w, content, pieces[:1], 0, func(int) bool { return false })
			}
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		holdsAll(t, c, rogues[len(rogues)-1], d, []*swarmtest.Node{n})
	}
	eventually(t, "they are members", func() bool { return len(n.Status().Members) == 1+len(rogues) })
	read := func() time.Duration {
		began := time.Now()
		rc, err := n.Passing(false).Range(within(t), fetch.Want{Digest: d, Size: 2 * mb}, 0, -1)
		if err == nil {
			_ = rc.Close()
			t.Fatal("what nobody gives was given")
		}
		return time.Since(began)
	}
	took := read()
	asked := 0
	for _, g := range rogues {
		asked += g.askedFor("pieces")
	}
	if asked > 2 {
		t.Errorf("%d of them were asked", asked)
	}
	if n.Spent() < time.Second || n.Spent() > 7*time.Second {
		t.Errorf("%v were waited in vain", n.Spent())
	}
	n.Spend(time.Hour)
	if again := read(); 2*again > took {
		t.Errorf("it took %v, and then %v", took, again)
	}
}

// TestR17_AHolderThatStopsIsLeftSoon in the middle of such a blob.
func TestR17_AHolderThatStopsIsLeftSoon(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	d := c.Origin.Make(2*mb, 1)
	g := startRogue(t, c, "a", func(w http.ResponseWriter, r *http.Request, content []byte, pieces []int) {
		sendPieces(w, content, pieces[:1], 0, func(int) bool { return false })
		_ = http.NewResponseController(w).Flush()
		if len(pieces) > 1 {
			<-r.Context().Done()
		}
	})
	holdsAll(t, c, g, d, []*swarmtest.Node{n})
	eventually(t, "it is a member", func() bool { return len(n.Status().Members) == 2 })
	rc, err := n.Passing(false).Range(within(t), fetch.Want{Digest: d, Size: 2 * mb}, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	got, err := io.Copy(io.Discard, rc)
	if err == nil || got == 0 {
		t.Errorf("%d bytes came, %v", got, err)
	}
	if n.Spent() > 7*time.Second {
		t.Errorf("%v were waited in vain", n.Spent())
	}
}

// TestR17_WhoShouldKnowTheHoldersIsNotWaitedForAgain after it has not answered.
func TestR17_WhoShouldKnowTheHoldersIsNotWaitedForAgain(t *testing.T) {
	forever := make(chan struct{})
	t.Cleanup(func() { close(forever) })
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	startChief(t, c, func(plan.Announce) plan.Reply { <-forever; return plan.Reply{} }, nil)
	eventually(t, "the chief is a member", func() bool { return len(n.Status().Members) == 2 })
	read := func() time.Duration {
		began := time.Now()
		if rc, err := n.Passing(false).Range(within(t), fetch.Want{Digest: c.Origin.Make(2*mb, 1), Size: 2 * mb}, 0, -1); err == nil {
			_ = rc.Close()
			t.Fatal("what nobody gives was given")
		}
		return time.Since(began)
	}
	took := read()
	if n.Spent() < time.Second {
		t.Errorf("%v were waited in vain", n.Spent())
	}
	n.Spend(time.Hour)
	if again := read(); 2*again > took {
		t.Errorf("it took %v, and then %v", took, again)
	}
}

// TestR17_APeerThatFloodsItsWatchersIsLeft, and not watched for the next blob.
func TestR17_APeerThatFloodsItsWatchersIsLeft(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	nodes := []*swarmtest.Node{n}
	watches := make(chan string, 100)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/watch", func(w http.ResponseWriter, r *http.Request) {
		watches <- r.PathValue("digest")
		for {
			if _, err := w.Write(frameOf(6, 0, 0)); err != nil {
				return
			}
		}
	})
	srv := httptest.NewUnstartedServer(mux)
	srv.TLS = serverTLS(t, "flood")
	srv.StartTLS()
	t.Cleanup(srv.CloseClientConnections)
	c.Add(swarm.Peer{Node: "flood", Addr: srv.Listener.Addr().String()})
	g := &rogue{name: "flood"}

	first := c.Origin.Make(2*mb, 1)
	holdsAll(t, c, g, first, nodes)
	c.Origin.Stop() // so that it has the time to flood
	done := make(chan error, 1)
	go func() { done <- c.Pull(within(t), n, fetch.Want{Digest: first, Size: 2 * mb}) }()
	eventually(t, "the peer is banned", func() bool { return bannedOf(n, "flood") != nil })
	c.Origin.Start()
	<-done // it may have been given up before
	for len(watches) > 0 {
		<-watches
	}
	second := c.Origin.Make(2*mb, 2)
	holdsAll(t, c, g, second, nodes)
	if err := c.Pull(within(t), n, fetch.Want{Digest: second, Size: -1}); err != nil {
		t.Error(err)
	}
	for len(watches) > 0 {
		if d := <-watches; d == string(second) {
			t.Error("it is watched again although it is banned")
		}
	}
}

// TestR17_MembersWhoDoNotTakeContentHoldABoundedAmount, and not for long.
func TestR17_MembersWhoDoNotTakeContentHoldABoundedAmount(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	s := &shelf{have: map[oci.Digest][]byte{}}
	n := c.StartWith("node", s, nil)
	small, large := c.Origin.Make(1000, 1), c.Origin.Make(3*mb, 2)
	s.put(small, c.Origin.Content(small))
	s.put(large, c.Origin.Content(large))
	ask := func(d oci.Digest) (*http.Response, error) {
		conf := serverTLS(t, "slow").Clone()
		conf.RootCAs, conf.ServerName = conf.ClientCAs, swarm.HostOf(n.Peer.Node)
		tr := &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, n.Peer.Addr)
			if err == nil {
				err = conn.(*net.TCPConn).SetReadBuffer(4096)
			}
			return conn, err
		}}
		t.Cleanup(tr.CloseIdleConnections)
		body := fmt.Sprintf(`{"namespace":"a","repository":"app","digest":%q}`, d)
		return (&http.Client{Transport: tr}).Post("https://"+swarm.HostOf(n.Peer.Node)+"/swarm/v1/contents", "", strings.NewReader(body))
	}
	take := func(d oci.Digest, want int) {
		t.Helper()
		res, err := ask(d)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		if res.StatusCode != want {
			t.Errorf("it is answered with %s", res.Status)
		}
	}
	for range 3 * swarm.GivenAtOnce {
		take(small, http.StatusOK)
	}
	eventually(t, "small content holds nothing", func() bool { return n.Giving() == 0 })
	for range swarm.GivenAtOnce {
		take(large, http.StatusOK)
	}
	if got := n.Giving(); got != swarm.GivenAtOnce {
		t.Fatalf("%d members hold content", got)
	}
	take(large, http.StatusServiceUnavailable)
	eventually(t, "those who are slow are left", func() bool { return n.Giving() == 0 })
}

// TestR17_AMemberThatDoesNotSendItsRequestIsLeft on each path.
func TestR17_AMemberThatDoesNotSendItsRequestIsLeft(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.StartWith("node", &shelf{have: map[oci.Digest][]byte{}}, nil)
	n.BodyTime(50 * time.Millisecond)
	client := clientAs(t, "slow", []*swarmtest.Node{n})
	d := c.Origin.Make(2*mb, 1)
	for _, path := range []string{"announce", "holding", "tags", "contents", "blobs/" + string(d) + "/watch", "blobs/" + string(d) + "/pieces"} {
		ctx := within(t)
		body, never := io.Pipe()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+swarm.HostOf(n.Peer.Node)+"/swarm/v1/"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err == nil {
			_ = res.Body.Close()
		}
		if ctx.Err() != nil {
			t.Errorf("%s: the request is waited for", path)
		}
		_ = never.Close()
	}
}

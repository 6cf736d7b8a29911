package swarm_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
)

// holdingNode returns a node that has pulled a blob from the origin.
func holdingNode(t *testing.T, c *swarmtest.Cluster, name string, w fetch.Want, change func(*swarm.Options)) *swarmtest.Node {
	t.Helper()
	n := c.Start(name, change)
	if err := c.Pull(t.Context(), n, w); err != nil {
		t.Fatal(err)
	}
	return n
}

func post(t *testing.T, client *http.Client, n *swarmtest.Node, path, body string) (int, string) {
	t.Helper()
	res, err := client.Post("https://"+swarm.HostOf(n.Peer.Node)+path, "application/json", strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(text)
}

func TestStrangers_WithoutTheSecretNobodyReadsFeedsOrAnnounces(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	d := c.Origin.Make(2*mb, 1)
	n := holdingNode(t, c, "node", fetch.Want{Digest: d, Size: -1}, nil)
	nodes := []*swarmtest.Node{n}
	other, err := swarm.NewKeys([]byte("another secret, also long enough"), "stranger")
	if err != nil {
		t.Fatal(err)
	}
	// Even one who does not care to whom it talks.
	careless := other.Client()
	careless.InsecureSkipVerify = true
	nobody := &tls.Config{InsecureSkipVerify: true}
	for name, client := range map[string]*http.Client{
		"another secret": clientWith(t, other.Client(), nodes), "careless": clientWith(t, careless, nodes), "no certificate": clientWith(t, nobody, nodes),
	} {
		for path, body := range map[string]string{
			"/swarm/v1/blobs/" + string(d) + "/pieces": `{"pieces":[0]}`,
			"/swarm/v1/blobs/" + string(d) + "/watch":  `{}`,
			"/swarm/v1/announce":                       fmt.Sprintf(`{"blob":%q,"node":"stranger","pieces":8,"done":true}`, d),
			"/swarm/v1/holding":                        `{}`,
		} {
			if status, text := post(t, client, n, path, body); status == 200 {
				t.Errorf("%s: %s answers %d %.40q", name, path, status, text)
			}
		}
	}
	if status, _ := post(t, clientAs(t, "member", nodes), n, "/swarm/v1/blobs/"+string(d)+"/pieces", `{"pieces":[0]}`); status != 200 {
		t.Errorf("a member is answered %d", status)
	}
	// And plain HTTP is none.
	if res, err := http.Get("http://" + n.Peer.Addr + "/swarm/v1/announce"); err == nil && res.StatusCode == 200 {
		t.Error("plain HTTP is served")
	}
}

func TestStrangers_AHandlerWithoutTLSServesNobody(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	r, _ := http.NewRequest("POST", "/swarm/v1/announce", strings.NewReader(`{}`))
	w := &recorder{header: http.Header{}}
	n.Handler().ServeHTTP(w, r)
	if w.status != http.StatusForbidden {
		t.Errorf("answered %d", w.status)
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(s int)           { r.status = s }

func TestAnnounce_OnlyInOnesOwnName(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	d := c.Origin.Make(2*mb, 1)
	body := fmt.Sprintf(`{"blob":%q,"node":"somebody","pieces":8,"done":true}`, d)
	if status, _ := post(t, clientAs(t, "member", []*swarmtest.Node{n}), n, "/swarm/v1/announce", body); status != http.StatusForbidden {
		t.Errorf("an announcement in another's name is answered %d", status)
	}
}

func TestN10_PrivateContentNeedsAFreshRightOnBothSides(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	var serving, asking atomic.Bool
	serving.Store(true)
	d := c.Origin.Make(2*mb, 1)
	w := fetch.Want{Digest: d, Size: -1, Namespace: "a", Private: true}
	holder := holdingNode(t, c, "holder", w, func(o *swarm.Options) { o.Allowed = func(string, oci.Digest) bool { return serving.Load() } })
	asker := c.Start("asker", func(o *swarm.Options) { o.Allowed = func(string, oci.Digest) bool { return asking.Load() } })

	path := "/swarm/v1/blobs/" + string(d) + "/"
	client := clientAs(t, "asker", []*swarmtest.Node{holder})
	const granted, none = `{"pieces":[0],"grant":{"kind":"upstream","namespace":"a"}}`, `{"pieces":[0]}`
	for _, tc := range []struct {
		what, path, body string
		serving          bool
		status           int
	}{
		{"with a right", "pieces", granted, true, 200},
		{"without", "pieces", none, true, 403},
		{"when the holder's own has run out", "pieces", granted, false, 403},
		{"a watch without", "watch", `{}`, true, 403},
		{"a watch when the holder's own has run out", "watch", `{"grant":{"kind":"upstream","namespace":"a"}}`, false, 403},
	} {
		serving.Store(tc.serving)
		if status, text := post(t, client, holder, path+tc.path, tc.body); status != tc.status {
			t.Errorf("%s: %d, want %d (%.60q)", tc.what, status, tc.status, text)
		}
	}

	serving.Store(true)
	if err := c.Pull(t.Context(), asker, w); err == nil {
		t.Error("a node without a right took private content from the swarm")
	}
	if got := asker.Status().FromPeers; got != 0 {
		t.Errorf("it took %d bytes", got)
	}
	asking.Store(true)
	if err := c.Pull(t.Context(), asker, w); err != nil {
		t.Error(err)
	}
	if got := asker.Status().FromPeers; got == 0 {
		t.Error("with a right it took nothing from its peer")
	}
}

// TestN10_PrivatePiecesAreGivenAsContentOfTheirUpstream has the holder pull from the
// upstream a. Another upstream, b, may have said to the holder and to the asker that it
// has the same: that costs it nothing.
func TestN10_PrivatePiecesAreGivenAsContentOfTheirUpstream(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	d := c.Origin.Make(2*mb, 1)
	allows := func(namespaces ...string) func(o *swarm.Options) {
		return func(o *swarm.Options) {
			o.Allowed = func(ns string, _ oci.Digest) bool { return slices.Contains(namespaces, ns) }
		}
	}
	w := fetch.Want{Digest: d, Size: 2 * mb, Namespace: "a", Private: true}
	both := holdingNode(t, c, "both", w, allows("a", "b"))
	// Its right under a has run out since.
	var ended atomic.Bool
	stale := holdingNode(t, c, "stale", w, func(o *swarm.Options) {
		o.Allowed = func(ns string, _ oci.Digest) bool { return ns == "b" || !ended.Load() }
	})
	ended.Store(true)
	nodes := []*swarmtest.Node{both, stale}
	client := clientAs(t, "asker", nodes)
	for grant, want := range map[string][2]int{ // of both, of stale
		`{"kind":"upstream","namespace":"a"}`: {200, 403},
		`{"kind":"upstream","namespace":"b"}`: {403, 403},
		`{"kind":"upstream"}`:                 {403, 403},
		// Earlier versions do not say as whose content they ask for it.
		`{"kind":"own"}`:                 {403, 403},
		`{"kind":"own","namespace":"a"}`: {403, 403},
	} {
		for i, n := range nodes {
			for _, path := range []string{"pieces", "watch"} {
				body := `{"pieces":[0],"grant":` + grant + `}`
				if status, text := post(t, client, n, "/swarm/v1/blobs/"+string(d)+"/"+path, body); status != want[i] {
					t.Errorf("%s, %s of %s: %d, want %d (%.60q)", grant, path, n.Peer.Node, status, want[i], text)
				}
			}
		}
	}
	// And so through the engine of a node that may have it from b.
	asker := c.Start("asker", allows("b"))
	asked := w
	asked.Namespace = "b"
	if rc, err := asker.Passing(true).Range(t.Context(), asked, 0, -1); err == nil {
		_ = rc.Close()
		t.Error("what came from a passes through as content of b")
	}
	if err := c.Pull(t.Context(), asker, asked); err != nil {
		t.Error(err) // this origin answers for b too
	}
	if s := asker.Status(); s.FromPeers > 0 {
		t.Errorf("%d bytes that came from a were taken as content of b", s.FromPeers)
	}
}

// TestN10_ARightIsForOneUpstream: a node that may have content from b does not ask
// other nodes for it as content of a.
func TestN10_ARightIsForOneUpstream(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	node := c.Start("node", func(o *swarm.Options) {
		o.Allowed = func(ns string, _ oci.Digest) bool { return ns == "b" }
		o.Small = mb
	})
	g := startRogue(t, c, "peer", func(w http.ResponseWriter, r *http.Request, content []byte, pieces []int) {
		for _, i := range pieces {
			_, _ = w.Write(append(frameOf(1, i, len(pieceOf(content, i))), pieceOf(content, i)...))
		}
	})
	large, small := c.Origin.Make(2*mb, 1), c.Origin.Make(1000, 2)
	holdsAll(t, c, g, large, []*swarmtest.Node{node})
	for _, d := range []oci.Digest{large, small} {
		w := fetch.Want{Digest: d, Size: int64(len(c.Origin.Content(d))), Namespace: "a", Repo: "app", Private: true}
		if rc, err := node.Passing(true).Range(t.Context(), w, 0, -1); err == nil {
			_ = rc.Close()
			t.Error("it passes through")
		}
		if err := c.Pull(t.Context(), node, w); err == nil {
			t.Error("it was pulled")
		}
		b, err := node.Store.Create(t.Context(), d, w.Size, piece.Meta{Private: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := node.Rest().Fill(t.Context(), w, b); err == nil {
			t.Error("it was pulled as the last resort")
		}
		b.Close()
		if _, found, _ := node.Together(t.Context(), "a", "app", d, true); found {
			t.Error("it was found")
		}
	}
	if asked := g.askedWhat(); len(asked) > 0 {
		t.Errorf("the peer was asked: %s", asked)
	}
	// As content of b it asks for it, and says so.
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: large, Size: 2 * mb, Namespace: "b", Private: true}); err != nil {
		t.Fatal(err)
	}
	asked := g.askedWhat()
	if len(asked) == 0 {
		t.Error("the peer was not asked")
	}
	for _, body := range asked {
		if !strings.Contains(body, `"grant":{"kind":"upstream","namespace":"b"}`) {
			t.Errorf("asked: %s", body)
		}
	}
}

// TestN10_ARightIsStatedWhileItLasts: one that has run out since the download began,
// or that was not looked for when everybody could have the content, is not stated.
func TestN10_ARightIsStatedWhileItLasts(t *testing.T) {
	for name, begins := range map[string]bool{"runs out": true, "becomes private": false} {
		t.Run(name, func(t *testing.T) {
			c := swarmtest.New(t, swarmtest.NewOrigin(0))
			var asks atomic.Int32
			node := c.Start("node", func(o *swarm.Options) {
				o.Allowed = func(string, oci.Digest) bool { return begins && asks.Add(1) == 1 }
			})
			g := startRogue(t, c, "peer", func(w http.ResponseWriter, _ *http.Request, _ []byte, _ []int) { w.WriteHeader(http.StatusForbidden) })
			d := c.Origin.Make(2*mb, 1)
			holdsAll(t, c, g, d, []*swarmtest.Node{node})
			w := fetch.Want{Digest: d, Size: 2 * mb, Namespace: "a", Private: begins}
			rc, err := node.Passing(true).Range(t.Context(), w, 0, -1)
			if err == nil {
				_ = rc.Close()
			}
			asks.Store(0)
			b, err := node.Store.Create(t.Context(), d, w.Size, piece.Meta{Private: begins})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			g.first(func() {
				if err := b.MarkPrivate(t.Context()); err != nil {
					t.Error(err)
				}
			})
			if err := node.Fill(t.Context(), w, b); err != nil {
				t.Fatal(err)
			}
			asked := g.askedWhat()
			if len(asked) < 2 {
				t.Errorf("the peer was asked for %q only", asked)
			}
			for _, body := range asked {
				if strings.Contains(body, "grant") {
					t.Errorf("asked: %s", body)
				}
			}
		})
	}
}

// TestN10_SmallContentIsGivenAsThatOfItsUpstream: a right counts for the upstream
// whose content is asked for.
func TestN10_SmallContentIsGivenAsThatOfItsUpstream(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	s := &shelf{have: map[oci.Digest][]byte{}}
	n := c.StartWith("node", s, nil)
	d := c.Origin.Make(1000, 1)
	s.put(d, c.Origin.Content(d))
	client := clientAs(t, "asker", []*swarmtest.Node{n})
	for grant, want := range map[string]bool{
		`{"kind":"upstream","namespace":"a"}`: true,
		`{"kind":"upstream","namespace":"b"}`: false,
		`{"kind":"upstream"}`:                 false,
		`{"kind":"own"}`:                      false,
		`{"kind":"own","namespace":"a"}`:      false,
	} {
		body := fmt.Sprintf(`{"namespace":"a","repository":"app","digest":%q,"grant":%s}`, d, grant)
		if status, text := post(t, client, n, "/swarm/v1/contents", body); status != 200 || s.own != want {
			t.Errorf("%s counts as a right: %v, want %v (%d %.60q)", grant, s.own, want, status, text)
		}
	}
}

func TestSmallBlobs_AreLeftToTheUpstream(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	d := c.Origin.Make(1000, 1)
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err == nil {
		t.Error("the swarm fetched a small blob")
	}
}

func TestN8_LateNodeGetsEverythingFromPeersWhenTheOriginIsGone(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	d := c.Origin.Make(3*mb, 1)
	first := holdingNode(t, c, "first", fetch.Want{Digest: d, Size: -1}, nil)
	second := c.Start("second", nil)
	c.Origin.Stop()
	if err := c.Pull(t.Context(), second, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	if s := first.Status(); s.Sent < 3*mb {
		t.Errorf("the first node sent %d bytes", s.Sent)
	}
}

// TestN8_WithoutOriginAndPeersAPullFails when everybody was asked. How soon that is,
// TestN8_ADownloadIsGivenUpWhenNobodyIsLeftToAsk says without a clock.
func TestN8_WithoutOriginAndPeersAPullFails(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	g := startRogue(t, c, "other", nil)
	g.lacks.Store(true)
	eventually(t, "the other is a member", func() bool { return len(n.Status().Members) == 2 })
	d := c.Origin.Make(3*mb, 1)
	c.Origin.Stop()
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); !errors.Is(err, swarmtest.ErrDown) {
		t.Fatalf("a blob out of nowhere: %v", err)
	}
	if g.askedFor("watch") == 0 {
		t.Error("the other member was not asked for it")
	}
}

func TestN8_ADeadLeaderAndDeadPeersDoNotStopAPull(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	// Members that are announced and not there: whoever leads, somebody answers.
	for i := range 5 {
		gone := c.Start(fmt.Sprintf("gone-%d", i), nil)
		c.Stop(gone)
		c.Add(gone.Peer)
	}
	d := c.Origin.Make(3*mb, 1)
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	if got := c.Origin.Sent(); got != 3*mb {
		t.Errorf("%d bytes left the origin for a blob of %d", got, 3*mb)
	}
}

func TestKill_ANodeThatLeavesInMidDownloadStopsNobody(t *testing.T) {
	c, nodes := crowd(t, 4, 4*mb, nil)
	d := c.Origin.Make(6*mb, 1)
	done := make(chan error, 1)
	go func() {
		_, err := c.Crowd(t.Context(), d, nodes[:3], nil)
		done <- err
	}()
	// The fourth takes part and goes once it has something.
	go func() { _ = c.Pull(t.Context(), nodes[3], fetch.Want{Digest: d, Size: -1}) }()
	for nodes[3].Status().FromPeers+nodes[3].Status().FromHome < mb {
		if nodes[3].Status().Transfers == nil {
			t.Fatal("no transfer")
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the node has got nothing")
		}
	}
	c.Stop(nodes[3])
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestResume_PiecesThatAreHereAreNotFetchedAgain(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", nil)
	d := c.Origin.Make(4*mb, 1)
	content := c.Origin.Content(d)
	b, err := n.Store.Create(t.Context(), d, int64(len(content)), piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range 8 {
		if err := b.WritePiece(t.Context(), 2*i, pieceOf(content, 2*i), "earlier"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	if got := c.Origin.Sent(); got != 2*mb {
		t.Errorf("%d bytes left the origin; half of the blob was here", got)
	}
}

func TestEviction_LeaderIsToldAndRareIsKnown(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	d := c.Origin.Make(2*mb, 1)
	w := fetch.Want{Digest: d, Size: -1}
	a := holdingNode(t, c, "a", w, nil)
	b := c.Start("b", nil)
	eventually(t, "the only copy is rare", func() bool { return a.Rare(d) })
	if err := c.Pull(t.Context(), b, w); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one of two is not rare", func() bool { return !b.Rare(d) })
	// Each of the two is the first or the second rank, which both are told.
	records := func() int { return a.Status().Records + b.Status().Records }
	eventually(t, "both ranks know both holders", func() bool { return records() == 4 })
	eventually(t, "the blob is out of use and goes", func() bool {
		info, err := a.Store.Info(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		claim, err := a.Store.Claim(t.Context(), d, info.Version)
		if err == nil {
			_, err = a.Store.Remove(t.Context(), claim)
		}
		return err == nil
	})
	a.Evicted(d)
	eventually(t, "both ranks forgot the one without", func() bool { return records() == 2 })
}

// TestEviction_LeadersForgetWhoHadSmallContent has both nodes be the first two
// ranks, which both are told.
func TestEviction_LeadersForgetWhoHadSmallContent(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	d := c.Origin.Make(1000, 1)
	a, b := c.Start("a", nil), c.Start("b", nil)
	records := func() int { return a.Status().Records + b.Status().Records }
	eventually(t, "both know each other", func() bool { return len(a.Status().Members)+len(b.Status().Members) == 4 })
	a.KnowsContent(d)
	eventually(t, "both ranks know who has it", func() bool { return records() == 2 })
	a.Evicted(d)
	eventually(t, "both ranks forgot it", func() bool { return records() == 0 })
}

// TestR17_EvictionsAreToldByOne: a pass evicts thousands of blobs at once.
func TestR17_EvictionsAreToldByOne(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	last := c.Origin.Make(1000, 1)
	a, b := c.Start("a", nil), c.Start("b", nil)
	records := func() int { return a.Status().Records + b.Status().Records }
	eventually(t, "both know each other", func() bool { return len(a.Status().Members)+len(b.Status().Members) == 4 })
	a.KnowsContent(last)
	eventually(t, "both ranks know who has it", func() bool { return records() == 2 })
	before := runtime.NumGoroutine()
	for i := range 3000 {
		a.Evicted(oci.Digest(fmt.Sprintf("sha256:%064x", i)))
	}
	if n := runtime.NumGoroutine() - before; n > 500 {
		t.Errorf("%d goroutines tell of 3000 evictions", n)
	}
	a.Evicted(last)
	eventually(t, "both ranks forgot the last one", func() bool { return records() == 0 })
}

// TestEviction_WhatHasComeBackIsNotDenied: evictions are told of one by one, and the blob
// may be here again before it is its turn.
func TestEviction_WhatHasComeBackIsNotDenied(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	back, gone := c.Origin.Make(2*mb, 1), c.Origin.Make(1000, 2)
	a := holdingNode(t, c, "a", fetch.Want{Digest: back, Size: -1}, nil)
	b := c.Start("b", nil)
	records := func() int { return a.Status().Records + b.Status().Records }
	eventually(t, "both know each other", func() bool { return len(a.Status().Members)+len(b.Status().Members) == 4 })
	a.KnowsContent(gone)
	eventually(t, "both ranks know both", func() bool { return records() == 4 })
	a.Evicted(back)
	a.Evicted(gone)
	eventually(t, "both ranks forgot the small one", func() bool { return records() <= 2 })
	if n := records(); n < 2 {
		t.Errorf("%d records are left: the blob that is here was denied", n)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("not in time: " + what)
		}
	}
}

func TestLimits_ChangeWhileItRuns(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("node", func(o *swarm.Options) { o.Limits = swarm.Limits{Download: 64 << 10} })
	d := c.Origin.Make(4*mb, 1)
	done := make(chan error, 1)
	go func() { done <- c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}) }()
	eventually(t, "a transfer", func() bool { return len(n.Status().Transfers) == 1 })
	n.SetLimits(swarm.Limits{}) // with the limit it would take a minute
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the old limit still holds")
	}
}

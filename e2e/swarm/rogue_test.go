package swarm

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/crowd"
)

// rogue is a member of the cluster that knows the secret and does not behave. It
// claims to hold all of the image, verified.
type rogue struct {
	s      *scene
	name   string
	keys   *swarm.Keys
	gossip *swarm.Gossip
	layers map[string][]byte // by digest
	// send writes the answer to a request for pieces.
	send func(w http.ResponseWriter, r *http.Request, layer []byte, pieces []int)

	mu    sync.Mutex
	asked int // pieces
}

// startRogue lets it join, and tell every member that it has everything.
func (s *scene) startRogue(send func(w http.ResponseWriter, r *http.Request, layer []byte, pieces []int)) *rogue {
	t := s.t
	t.Helper()
	g := &rogue{s: s, name: "rogue", send: send, layers: map[string][]byte{}}
	for i, l := range s.im.Layers {
		g.layers[l.Digest.String()] = crowd.Noise(int(l.Size), uint64(i+1))
	}
	var err error
	if g.keys, err = swarm.NewKeys([]byte(crowd.Secret), g.name); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /swarm/v1/announce", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) })
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/watch", g.watch)
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/pieces", g.pieces)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(tls.NewListener(ln, g.keys.Server())) }) // until it is closed
	seed := s.crowd.All()[0].Gossip
	g.gossip, err = swarm.NewGossip(swarm.GossipOptions{
		Self: swarm.Peer{Node: plan.Node(g.name), Addr: ln.Addr().String()}, Keys: g.keys, Bind: "127.0.0.1:0",
		Join: func(context.Context) ([]string, error) { return []string{seed}, nil }, Every: time.Second, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	work.Go(func() { _ = g.gossip.Run(ctx) }) // until the scene is over
	t.Cleanup(func() {
		cancel()
		_ = server.Close() // with whatever hangs in it
		work.Wait()
	})
	members := len(s.crowd.All()) + 1
	s.await("the rogue joins", func() bool { return len(g.gossip.Members()) >= members })
	s.gather(members)
	g.claim()
	return g
}

// claim tells every member, as the leader that it may come to be.
func (g *rogue) claim() {
	conf := g.keys.Client()
	conf.InsecureSkipVerify = true // a rogue does not care who it lies to
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	for _, p := range g.gossip.Members() {
		if string(p.Node) == g.name {
			continue
		}
		for d, layer := range g.layers {
			msg, err := json.Marshal(plan.Announce{Blob: d, Node: plan.Node(g.name), Pieces: pieces(layer), Done: true})
			if err != nil {
				g.s.t.Fatal(err)
			}
			resp, err := client.Post("https://"+p.Addr+"/swarm/v1/announce", "application/json", bytes.NewReader(msg))
			if err != nil {
				g.s.t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body) // the status is what counts
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				g.s.t.Fatalf("%s does not take the claim: %s", p.Node, resp.Status)
			}
		}
	}
}

func pieces(layer []byte) int { return (len(layer) + piece.Size - 1) / piece.Size }

func pieceOf(layer []byte, i int) []byte {
	return layer[i*piece.Size : min((i+1)*piece.Size, len(layer))]
}

// Kinds of frames of the wire format; see internal/agent/swarm/wire.go.
const (
	framePiece  = 1
	frameBitmap = 4
	frameEnd    = 7
)

func frame(kind byte, piece int, payload []byte) []byte {
	h := make([]byte, 12, 12+len(payload))
	h[0] = kind
	binary.BigEndian.PutUint32(h[4:], uint32(piece))
	binary.BigEndian.PutUint32(h[8:], uint32(len(payload)))
	return append(h, payload...)
}

// watch claims everything.
func (g *rogue) watch(w http.ResponseWriter, r *http.Request) {
	n := pieces(g.layers[r.PathValue("digest")])
	_, _ = w.Write(frame(frameBitmap, 0, plan.FullBits(n).Bytes(n))) // a reader that has gone asks again
	_, _ = w.Write(frame(frameEnd, 0, nil))
}

func (g *rogue) pieces(w http.ResponseWriter, r *http.Request) {
	var req struct{ Pieces []int }
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return
	}
	g.mu.Lock()
	g.asked += len(req.Pieces)
	g.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // an error comes again with the first write
	g.send(w, r, g.layers[r.PathValue("digest")], req.Pieces)
}

// wasAsked fails if nobody fell for it: then the scenario has shown nothing.
func (g *rogue) wasAsked() {
	g.s.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked == 0 {
		g.s.t.Error("nobody asked the rogue for anything")
	}
	g.s.t.Logf("the rogue was asked for %d pieces", g.asked)
}

func TestN8_PeerStallsAfterClaimingEverything(t *testing.T) {
	s := newScene(t, setting{nodes: 5, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	g := s.startRogue(func(_ http.ResponseWriter, r *http.Request, _ []byte, _ []int) { <-r.Context().Done() })
	pulls := s.pull(s.crowd.All(), nil)()
	s.complete(pulls)
	g.wasAsked()
	s.within(1.2)
	s.inTime("the crowd", slowest(pulls), s.bound(5), 3)
}

func TestN8_PeerAtOneKilobyteASecond(t *testing.T) {
	s := newScene(t, setting{nodes: 5, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	g := s.startRogue(func(w http.ResponseWriter, r *http.Request, layer []byte, pieces []int) {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for _, i := range pieces {
			for p := frame(framePiece, i, pieceOf(layer, i)); len(p) > 0; p = p[min(102, len(p)):] {
				select {
				case <-tick.C:
				case <-r.Context().Done():
					return
				}
				_, _ = w.Write(p[:min(102, len(p))]) // the context tells when the reader has gone
				_ = http.NewResponseController(w).Flush()
			}
		}
	})
	pulls := s.pull(s.crowd.All(), nil)()
	s.complete(pulls)
	g.wasAsked()
	s.within(1.2)
	s.inTime("the crowd", slowest(pulls), s.bound(5), 3)
}

// A liar turns one bit of each piece, and vouches for it: it does not mark it as
// one that it could not verify. The pull succeeds, and the liar is banned.
func TestN7_PeerFlipsAByte(t *testing.T) {
	s := newScene(t, setting{nodes: 4, size: 8 * mib, up: 8 * mbps, link: even(8 * mbps)})
	g := s.startRogue(func(w http.ResponseWriter, _ *http.Request, layer []byte, pieces []int) {
		for _, i := range pieces {
			p := bytes.Clone(pieceOf(layer, i))
			p[len(p)/2] ^= 1
			_, _ = w.Write(frame(framePiece, i, p)) // a reader that has gone was not lied to
		}
	})
	pulls := s.pull(s.crowd.All(), nil)()
	s.complete(pulls)
	g.wasAsked()
	banned := 0.0
	for _, n := range s.crowd.All() {
		b, err := n.Metric(s.ctx, "fairway_node_swarm_bans_total", "")
		if err != nil {
			t.Fatal(err)
		}
		banned += b
	}
	if banned == 0 {
		t.Error("nobody banned the liar")
	}
	// A node that was lied to throws the layer away and, at the worst, takes it
	// from the registry.
	s.within(4.2)
	// At the worst each takes a copy from the registry in the second round, and
	// waits for the end of the ban of those who passed the lie on, ten seconds.
	s.inTime("the crowd", slowest(pulls), 4*s.bound(4)+10*time.Second, 1.5)
}

// Who does not know the secret is not spoken to.
func TestN10_WithoutTheSecretNobodyReadsAPiece(t *testing.T) {
	s := newScene(t, setting{nodes: 2, size: 8 * mib, up: 8 * mbps, link: even(8 * mbps)})
	s.complete(s.pull(s.crowd.All(), nil)())
	insider, err := swarm.NewKeys([]byte(crowd.Secret), "spy")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := swarm.NewKeys([]byte("another secret, just as long as it"), "node-2")
	if err != nil {
		t.Fatal(err)
	}
	addrs := s.peers(insider)
	ask := func(addr string, conf *tls.Config) (int, int, error) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}, Timeout: 10 * time.Second}
		defer client.CloseIdleConnections()
		resp, err := client.Post("https://"+addr+"/swarm/v1/blobs/"+s.im.Layers[0].Digest.String()+"/pieces", "application/json",
			bytes.NewReader([]byte(`{"pieces":[0]}`)))
		if err != nil {
			return 0, 0, err
		}
		defer func() { _ = resp.Body.Close() }() // it was read
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, len(b), err
	}
	for _, addr := range addrs {
		// The question is the right one: a member gets an answer to it.
		known := insider.Client()
		known.InsecureSkipVerify = true // it is dialled by its address
		if status, n, err := ask(addr, known); err != nil || status != http.StatusOK || n < piece.Size {
			t.Errorf("a member gets %d, %d bytes, %v", status, n, err)
		}
		forged := stranger.Client()
		forged.InsecureSkipVerify = true
		for what, conf := range map[string]*tls.Config{
			"no certificate": {InsecureSkipVerify: true}, "a certificate by another secret": forged,
		} {
			if status, n, err := ask(addr, conf); err == nil {
				t.Errorf("with %s the answer was %d, %d bytes", what, status, n)
			}
		}
		resp, err := http.Post("http://"+addr+"/swarm/v1/announce", "application/json", nil)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				t.Errorf("without TLS the answer was %s", resp.Status)
			}
		}
	}
	g, err := swarm.NewGossip(swarm.GossipOptions{
		Self: swarm.Peer{Node: "stranger", Addr: "127.0.0.1:1"}, Keys: stranger, Bind: "127.0.0.1:0", Every: 100 * time.Millisecond,
		Join: func(context.Context) ([]string, error) { return []string{s.crowd.All()[0].Gossip}, nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	if err := g.Run(ctx); err != nil {
		t.Log(err)
	}
	for _, n := range s.crowd.All() {
		if m, err := n.Members(s.ctx); err != nil || m != 2 {
			t.Errorf("%s sees %d members, %v", n.Name, m, err)
		}
	}
}

// peers returns the addresses under which members of the scene serve pieces, as
// somebody learns them who knows the secret.
func (s *scene) peers(keys *swarm.Keys) (addrs []string) {
	s.t.Helper()
	g, err := swarm.NewGossip(swarm.GossipOptions{
		Self: swarm.Peer{Node: "spy", Addr: "127.0.0.1:1"}, Keys: keys, Bind: "127.0.0.1:0", Every: 100 * time.Millisecond,
		Join: func(context.Context) ([]string, error) { return []string{s.crowd.All()[0].Gossip}, nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Run(ctx) // until it has seen enough
	}()
	s.await("the members are seen", func() bool { return len(g.Members()) > len(s.crowd.All()) })
	for _, p := range g.Members() {
		if p.Node != "spy" {
			addrs = append(addrs, p.Addr)
		}
	}
	cancel()
	<-done
	s.await("the spy is forgotten", func() bool {
		m, err := s.crowd.All()[0].Members(s.ctx)
		return err == nil && m == len(s.crowd.All())
	})
	return addrs
}

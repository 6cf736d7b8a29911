package swarm_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
)

// rogue is a member that knows the secret and does not behave. It claims to have
// all of every blob.
type rogue struct {
	name    plan.Node
	addr    string
	content func(d oci.Digest) []byte
	// send writes the answer to a request for pieces.
	send func(w http.ResponseWriter, r *http.Request, content []byte, pieces []int)

	lacks atomic.Bool // it says that it has nothing

	mu        sync.Mutex
	asked     []string // paths of requests
	questions []string // bodies of those for content
	before    func()   // the first of these is answered
}

// askedFor counts the requests so far whose path contains part.
func (g *rogue) askedFor(part string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, path := range g.asked {
		if strings.Contains(path, part) {
			n++
		}
	}
	return n
}

// askedWhat returns the bodies of requests for content so far.
func (g *rogue) askedWhat() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.questions)
}

// first has something happen before the next question for content is answered.
func (g *rogue) first(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.before = f
}

func startRogue(t *testing.T, c *swarmtest.Cluster, name string, send func(http.ResponseWriter, *http.Request, []byte, []int)) *rogue {
	g := &rogue{name: plan.Node(name), content: c.Origin.Content, send: send}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/watch", g.watch)
	mux.HandleFunc("POST /swarm/v1/blobs/{digest}/pieces", g.pieces)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		g.mu.Lock()
		g.asked = append(g.asked, r.URL.Path)
		if r.URL.Path != "/swarm/v1/announce" && r.URL.Path != "/swarm/v1/holding" {
			g.questions = append(g.questions, string(body))
			if g.before != nil {
				g.before()
				g.before = nil
			}
		}
		g.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	srv.TLS = serverTLS(t, name)
	srv.StartTLS()
	t.Cleanup(srv.CloseClientConnections)
	g.addr = srv.Listener.Addr().String()
	c.Add(swarm.Peer{Node: g.name, Addr: g.addr})
	return g
}

func serverTLS(t *testing.T, name string) *tls.Config {
	k, err := swarm.NewKeys([]byte(swarmtest.Secret), name)
	if err != nil {
		t.Fatal(err)
	}
	return k.Server()
}

func frameOf(kind byte, piece, size int) []byte {
	h := make([]byte, 12)
	h[0] = kind
	binary.BigEndian.PutUint32(h[4:], uint32(piece))
	binary.BigEndian.PutUint32(h[8:], uint32(size))
	return h
}

func (g *rogue) watch(w http.ResponseWriter, r *http.Request) {
	if g.lacks.Load() {
		http.NotFound(w, r)
		return
	}
	n := (len(g.content(oci.Digest(r.PathValue("digest")))) + piece.Size - 1) / piece.Size
	bits := plan.FullBits(n).Bytes(n)
	_, _ = w.Write(append(frameOf(4, 0, len(bits)), bits...))
	_, _ = w.Write(frameOf(7, 0, 0))
}

func (g *rogue) pieces(w http.ResponseWriter, r *http.Request) {
	var req struct{ Pieces []int }
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return
	}
	g.send(w, r, g.content(oci.Digest(r.PathValue("digest"))), req.Pieces)
}

func pieceOf(content []byte, i int) []byte {
	return content[i*piece.Size : min((i+1)*piece.Size, len(content))]
}

// holdsAll tells every node, as the leader that it may come to be, that the rogue
// holds the blob.
func holdsAll(t *testing.T, c *swarmtest.Cluster, g *rogue, d oci.Digest, nodes []*swarmtest.Node) {
	t.Helper()
	n := (len(c.Origin.Content(d)) + piece.Size - 1) / piece.Size
	client := clientAs(t, string(g.name), nodes)
	for _, node := range nodes {
		msg := fmt.Sprintf(`{"blob":%q,"node":%q,"pieces":%d,"done":true}`, d, g.name, n)
		res, err := client.Post("https://"+swarm.HostOf(node.Peer.Node)+"/swarm/v1/announce", "", strings.NewReader(msg))
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 200 {
			t.Fatalf("announce: %s", res.Status)
		}
		res.Body.Close()
	}
}

// clientAs speaks to nodes with the certificate of a member of that name.
func clientAs(t *testing.T, name string, nodes []*swarmtest.Node) *http.Client {
	k, err := swarm.NewKeys([]byte(swarmtest.Secret), name)
	if err != nil {
		t.Fatal(err)
	}
	return clientWith(t, k.Client(), nodes)
}

func clientWith(t *testing.T, conf *tls.Config, nodes []*swarmtest.Node) *http.Client {
	tr := &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		for _, n := range nodes {
			if strings.HasPrefix(addr, swarm.HostOf(n.Peer.Node)) {
				addr = n.Peer.Addr
			}
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// lies collects what engines report.
type lies struct {
	mu  sync.Mutex
	all []swarm.Lie
}

func (l *lies) options(o *swarm.Options) {
	o.Report = func(x swarm.Lie) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = append(l.all, x)
	}
}

func TestN7_ALiarIsFoundBannedAndReportedAndThePullSucceeds(t *testing.T) {
	for name, flips := range map[string]func(i int) bool{
		"every piece": func(int) bool { return true },
		"one piece":   func(i int) bool { return i == 7 },
	} {
		t.Run(name, func(t *testing.T) {
			told := &lies{}
			c := swarmtest.New(t, swarmtest.NewOrigin(0))
			node := c.Start("honest", told.options)
			g := startRogue(t, c, "liar", func(w http.ResponseWriter, _ *http.Request, content []byte, pieces []int) {
				for _, i := range pieces {
					p := append([]byte(nil), pieceOf(content, i)...)
					if flips(i) {
						p[len(p)/2] ^= 1
					}
					_, _ = w.Write(append(frameOf(1, i, len(p)), p...))
				}
			})
			d := c.Origin.Make(4*mb, 1)
			holdsAll(t, c, g, d, []*swarmtest.Node{node})
			if err := c.Pull(t.Context(), node, fetch.Want{Digest: d, Size: -1}); err != nil {
				t.Fatal(err)
			}
			told.mu.Lock()
			defer told.mu.Unlock()
			if len(told.all) == 0 || told.all[0].Peer != "liar" {
				t.Fatalf("reported: %+v", told.all)
			}
			if banned := bannedOf(node, "liar"); banned == nil || time.Until(*banned) < time.Minute {
				t.Errorf("the liar is banned until %v", banned)
			}
		})
	}
}

func bannedOf(n *swarmtest.Node, peer plan.Node) *time.Time {
	for _, m := range n.Status().Members {
		if m.Node == peer {
			return m.Banned
		}
	}
	return nil
}

func TestRogue_ThatStallsAfterClaimingEverythingCostsATimeout(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	node := c.Start("honest", nil)
	g := startRogue(t, c, "staller", func(w http.ResponseWriter, r *http.Request, _ []byte, _ []int) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	d := c.Origin.Make(4*mb, 1)
	holdsAll(t, c, g, d, []*swarmtest.Node{node})
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
}

func TestRogue_ThatTricklesOrSendsNonsenseIsLeft(t *testing.T) {
	for name, send := range map[string]func(http.ResponseWriter, *http.Request, []byte, []int){
		"trickle": func(w http.ResponseWriter, r *http.Request, content []byte, pieces []int) {
			_, _ = w.Write(frameOf(1, pieces[0], len(pieceOf(content, pieces[0]))))
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					_, _ = w.Write(make([]byte, 1024))
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		},
		"nonsense": func(w http.ResponseWriter, _ *http.Request, _ []byte, _ []int) {
			_, _ = io.WriteString(w, "hello, hello!")
		},
		"another piece":  func(w http.ResponseWriter, _ *http.Request, _ []byte, _ []int) { _, _ = w.Write(frameOf(1, 1<<19, 10)) },
		"a wrong length": func(w http.ResponseWriter, _ *http.Request, _ []byte, p []int) { _, _ = w.Write(frameOf(1, p[0], 10)) },
		"refusal":        func(w http.ResponseWriter, _ *http.Request, _ []byte, _ []int) { w.WriteHeader(500) },
		"busy": func(w http.ResponseWriter, _ *http.Request, _ []byte, pieces []int) {
			for _, i := range pieces {
				_, _ = w.Write(frameOf(2, i, 0))
			}
		},
		"gone": func(w http.ResponseWriter, _ *http.Request, _ []byte, pieces []int) {
			for _, i := range pieces {
				_, _ = w.Write(frameOf(3, i, 0))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := swarmtest.New(t, swarmtest.NewOrigin(0))
			node := c.Start("honest", nil)
			g := startRogue(t, c, "rogue", send)
			d := c.Origin.Make(3*mb, 1)
			holdsAll(t, c, g, d, []*swarmtest.Node{node})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := c.Pull(ctx, node, fetch.Want{Digest: d, Size: -1}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

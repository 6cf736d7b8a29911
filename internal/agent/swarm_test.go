package agent

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/setting"
)

// origin is a registry with one image, app:1, which it can ask credentials for.
type origin struct {
	*httptest.Server
	manifest, config, layer []byte
	private                 atomic.Bool
	down                    atomic.Bool
	sent                    atomic.Int64 // bytes of the layer
	most                    atomic.Int64 // of these, after which it dies; 0: never
	manifests, configs      atomic.Int64 // GETs that were answered with them
}

const originUser, originPassword = "u", "p"

func newOrigin(t *testing.T, size int) *origin {
	t.Helper()
	o := &origin{layer: make([]byte, size), config: []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)}
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))).Read(o.layer) // never fails
	descriptor := func(kind string, content []byte) map[string]any {
		return map[string]any{"mediaType": kind, "digest": digest.FromBytes(content), "size": len(content)}
	}
	var err error
	o.manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeImage,
		"config": descriptor("application/vnd.oci.image.config.v1+json", o.config),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar", o.layer)},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Server = httptest.NewServer(http.HandlerFunc(o.serve))
	t.Cleanup(o.Close)
	return o
}

func (o *origin) serve(w http.ResponseWriter, r *http.Request) {
	if o.down.Load() {
		panic(http.ErrAbortHandler)
	}
	if user, password, _ := r.BasicAuth(); o.private.Load() && (user != originUser || password != originPassword) {
		w.Header().Set("Www-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	content, kind := []byte(nil), "application/octet-stream"
	switch last {
	case "1", string(digest.FromBytes(o.manifest)):
		content, kind = o.manifest, oci.MediaTypeImage
	case string(digest.FromBytes(o.config)):
		content = o.config
	case string(digest.FromBytes(o.layer)):
		content = o.layer
	}
	if !strings.HasPrefix(r.URL.Path, "/v2/app/") || content == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(content)))
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	status, first, end := http.StatusOK, 0, len(content)
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &end); err == nil {
		end, status = min(end+1, len(content)), http.StatusPartialContent
	} else if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); err == nil {
		end, status = len(content), http.StatusPartialContent
	}
	if first >= len(content) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(content)))
		w.Header().Del("Content-Length")
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	if status == http.StatusPartialContent {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, end-1, len(content)))
		w.Header().Set("Content-Length", strconv.Itoa(end-first))
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		switch string(content) {
		case string(o.manifest):
			o.manifests.Add(1)
		case string(o.config):
			o.configs.Add(1)
		}
		o.send(w, content[first:end], len(content) == len(o.layer))
	}
}

func (o *origin) send(w io.Writer, p []byte, layer bool) {
	for len(p) > 0 {
		n, err := w.Write(p[:min(len(p), 64<<10)])
		p = p[n:]
		if err != nil || !layer {
			return
		}
		if sent, most := o.sent.Add(int64(n)), o.most.Load(); o.down.Load() || most > 0 && sent >= most {
			o.down.Store(true)
			panic(http.ErrAbortHandler)
		}
	}
}

// name is what runtimes call it.
func (o *origin) name() string { return strings.TrimPrefix(o.URL, "http://") }

// node is one of a cluster.
type node struct {
	*Agent
	cfg  Config
	stop func()
}

func secretFile(t *testing.T, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// cluster starts n agents that know of the first.
func cluster(t *testing.T, o *origin, n int, change func(i int, cfg *Config)) []*node {
	t.Helper()
	secret := secretFile(t, "a secret of the tests, long enough\n")
	var nodes []*node
	for i := range n {
		cfg := testConfig(t)
		cfg.Name, cfg.Registry = fmt.Sprintf("n%d", i+1), o.URL
		cfg.Swarm.Secret, cfg.Swarm.Listen, cfg.Swarm.Gossip = secret, "127.0.0.1:0", "127.0.0.1:0"
		cfg.Swarm.Small = 300 << 10
		if i > 0 {
			cfg.Swarm.Join = setting.List{nodes[0].swarm.gossip.Addr()}
		}
		if change != nil {
			change(i, &cfg)
		}
		nodes = append(nodes, startNode(t, cfg))
	}
	together(t, nodes...)
	return nodes
}

func startNode(t *testing.T, cfg Config) *node {
	t.Helper()
	a, stop := start(t, cfg)
	return &node{Agent: a, cfg: cfg, stop: stop}
}

// together waits until each of the nodes knows of all of them.
func together(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, n.name+" knows the others", func() bool { return len(n.swarm.engine.Status().Members) == len(nodes) })
	}
}

// pull pulls app:1 as a runtime does, and returns the header of the tag's
// answer, or why it failed.
func (n *node) pull(o *origin) (http.Header, error) {
	header, manifest, err := n.get(o, "manifests/1")
	if err != nil {
		return header, err
	}
	if string(manifest) != string(o.manifest) {
		return header, fmt.Errorf("the manifest is %q", manifest)
	}
	for _, want := range [][]byte{o.config, o.layer} {
		if _, got, err := n.get(o, "blobs/"+string(digest.FromBytes(want))); err != nil || string(got) != string(want) {
			return header, fmt.Errorf("%s: %d bytes, %w", digest.FromBytes(want), len(got), err)
		}
	}
	return header, nil
}

func (n *node) get(o *origin, path string) (http.Header, []byte, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+n.Addr().String()+"/v2/app/"+path+"?ns="+o.name(), nil)
	if err != nil {
		return nil, nil, err
	}
	if o.private.Load() {
		req.SetBasicAuth(originUser, originPassword)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, res.Status, body)
	}
	return res.Header, body, err
}

// crowd has all nodes pull at once.
func crowd(t *testing.T, o *origin, nodes []*node) {
	t.Helper()
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() {
			if _, err := n.pull(o); err != nil {
				t.Errorf("%s: %v", n.name, err)
			}
		})
	}
	all.Wait()
}

// TestN9_ACrowdCostsTheRegistryAboutOneCopy pulls on three nodes at once.
func TestN9_ACrowdCostsTheRegistryAboutOneCopy(t *testing.T) {
	o := newOrigin(t, 12<<20+17)
	nodes := cluster(t, o, 3, nil)
	crowd(t, o, nodes)
	if copies := float64(o.sent.Load()) / float64(len(o.layer)); copies > 1.5 {
		t.Errorf("%.2f copies have left the registry", copies)
	}
	var peers int64
	for _, n := range nodes {
		peers += n.swarm.engine.Status().FromPeers
	}
	if peers < int64(len(o.layer)) {
		t.Errorf("only %d bytes came from peers", peers)
	}
}

// TestR16_ASizeThatAManifestClaimsCostsASwarmNothing has a crowd pull a layer whose
// manifest states another size. Nodes that believed it each took its own copy from
// the registry, of what they took for a larger blob.
func TestR16_ASizeThatAManifestClaimsCostsASwarmNothing(t *testing.T) {
	for name, claimed := range map[string]int{"too much": 11 << 20, "too little": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			const size, count = 4_000_000, 6
			o := newOrigin(t, size)
			o.manifest = []byte(strings.Replace(string(o.manifest), fmt.Sprintf(`"size":%d`, size), fmt.Sprintf(`"size":%d`, claimed), 1))
			if !strings.Contains(string(o.manifest), strconv.Itoa(claimed)) {
				t.Fatalf("the manifest does not claim it: %s", o.manifest)
			}
			nodes := cluster(t, o, count, nil)
			crowd(t, o, nodes)
			copies := float64(o.sent.Load()) / size
			t.Logf("%.2f copies", copies)
			// About one, and what each node asks for before it hears of the size: half of
			// what they would take without each other is far from that.
			if copies > count/2 {
				t.Errorf("%.2f copies of the layer have left the registry for %d nodes", copies, count)
			}
		})
	}
}

// TestN9_ACrowdCostsAboutOneGETOfAManifest and of a small blob. A right to a private
// one comes with its manifest only, so each node asks the upstream for it.
func TestN9_ACrowdCostsAboutOneGETOfAManifest(t *testing.T) {
	for name, private := range map[string]bool{"public": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, 1<<20)
			o.private.Store(private)
			nodes := cluster(t, o, 6, nil)
			for _, n := range nodes {
				n.swarm.engine.SetLimits(swarm.Limits{Wait: time.Minute}) // however busy the machine is
			}
			crowd(t, o, nodes)
			if n := o.manifests.Load(); n > 2 {
				t.Errorf("the manifest was asked for %d times", n)
			}
			if n := o.configs.Load(); n > 2 && !private {
				t.Errorf("the config was asked for %d times", n)
			}
		})
	}
}

func TestSwarm_ANodeThatRestartsIsAMemberAgainAndGoesOn(t *testing.T) {
	o := newOrigin(t, 4<<20)
	nodes := cluster(t, o, 3, nil)
	if _, err := nodes[1].pull(o); err != nil {
		t.Fatal(err)
	}
	nodes[1].stop()
	eventually(t, "the others heard the goodbye", func() bool { return len(nodes[0].swarm.engine.Status().Members) == 2 })
	nodes[1] = startNode(t, nodes[1].cfg)
	together(t, nodes...)
	o.down.Store(true)
	if _, err := nodes[1].pull(o); err != nil {
		t.Errorf("what it had: %v", err)
	}
}

// TestN10_AStrangerIsNoMemberAndGetsNoPiece has another secret.
func TestN10_AStrangerIsNoMemberAndGetsNoPiece(t *testing.T) {
	o := newOrigin(t, 4<<20)
	nodes := cluster(t, o, 2, nil)
	cfg := nodes[1].cfg
	cfg.Name, cfg.Data, cfg.Swarm.Secret = "stranger", filepath.Join(t.TempDir(), "s"), secretFile(t, "another secret, as long as the right one")
	stranger := startNode(t, cfg)
	crowd(t, o, []*node{nodes[0], nodes[1], stranger})
	before := o.sent.Load()
	if stranger.swarm.engine.Status().FromPeers != 0 || before < 2*int64(len(o.layer)) {
		t.Errorf("the stranger has %+v, %d bytes have left the registry", stranger.swarm.engine.Status(), before)
	}
	for _, n := range append(nodes, stranger) {
		for _, m := range n.swarm.engine.Status().Members {
			if (m.Node == "stranger") != (n == stranger) {
				t.Errorf("%s has the member %s", n.name, m.Node)
			}
		}
	}
	res, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}).Post(
		"https://"+nodes[0].swarm.listener.Addr().String()+"/swarm/v1/blobs/"+string(digest.FromBytes(o.layer))+"/pieces", "application/json", strings.NewReader(`{"pieces":[0]}`))
	if err == nil {
		res.Body.Close()
		t.Errorf("without any secret: %s", res.Status)
	}
}

// TestN10_AnotherUpstreamOpensNothingOfAPeer has an upstream that says, to whoever
// shows some credentials, that it has any blob, and sends none.
func TestN10_AnotherUpstreamOpensNothingOfAPeer(t *testing.T) {
	o := newOrigin(t, 2<<20)
	o.private.Store(true)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _, shown := r.BasicAuth()
		content := map[string][]byte{string(digest.FromBytes(o.layer)): o.layer, string(digest.FromBytes(o.config)): o.config,
			string(digest.FromBytes(o.manifest)): o.manifest}[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
		switch {
		case !shown:
			w.Header().Set("Www-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodHead:
			w.Header().Set("Content-Type", oci.MediaTypeImage)
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(evil.Close)
	nodes := cluster(t, o, 2, func(_ int, cfg *Config) { cfg.Upstreams = setting.List{"evil=" + evil.URL} })
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	for n, what := range nodes {
		for _, path := range []string{"blobs/" + string(digest.FromBytes(o.layer)), "blobs/" + string(digest.FromBytes(o.config)), "manifests/" + string(digest.FromBytes(o.manifest))} {
			req, err := http.NewRequest(http.MethodGet, "http://"+what.Addr().String()+"/v2/app/"+path+"?ns=evil", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("anybody", "anything")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				continue // the node breaks off what it cannot complete
			}
			got, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK || len(got) > 1000 {
				t.Errorf("node %d gives %d bytes of %s: %s", n, len(got), path, res.Status)
			}
		}
	}
	if got := nodes[1].swarm.engine.Status().FromPeers; got > 0 {
		t.Errorf("the peer was given %d bytes", got)
	}
}

// TestN8_ARegistryThatDiesMidPullIsNotMissed when every piece is somewhere.
func TestN8_ARegistryThatDiesMidPullIsNotMissed(t *testing.T) {
	o := newOrigin(t, 16<<20)
	nodes := cluster(t, o, 3, func(_ int, cfg *Config) { cfg.Swarm.Download = 12 << 20 })
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes[1:] { // so that only blobs are missing
		if _, _, err := n.get(o, "manifests/1"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := n.get(o, "blobs/"+string(digest.FromBytes(o.config))); err != nil {
			t.Fatal(err)
		}
	}
	time.AfterFunc(200*time.Millisecond, func() { o.down.Store(true) })
	crowd(t, o, nodes[1:])
	if !o.down.Load() {
		t.Error("the registry was there until the end")
	}
}

// TestN9_ANodeWithoutRoomPullsFromPeers has one whose cache is smaller than the
// layer: what it passes on comes from the others, whether the registry is up
// (N9) or down (N8).
func TestN9_ANodeWithoutRoomPullsFromPeers(t *testing.T) {
	o := newOrigin(t, 6<<20+17)
	nodes := cluster(t, o, 3, func(i int, cfg *Config) {
		if i == 2 {
			cfg.Quota = 2 << 20
		}
	})
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	before := o.sent.Load()
	if _, err := nodes[2].pull(o); err != nil {
		t.Error(err)
	}
	if more := o.sent.Load() - before; more > 1<<20 {
		t.Errorf("%d bytes of a layer that a peer has left the registry", more)
	}
	o.down.Store(true)
	if _, err := nodes[2].pull(o); err != nil {
		t.Errorf("with the registry down: %v", err)
	}
}

func TestSecret_ThatOthersCanReadIsRefused(t *testing.T) {
	cfg := testConfig(t)
	cfg.Swarm = Swarm{Secret: secretFile(t, "a secret of the tests, long enough"), Listen: "127.0.0.1:0", Gossip: "127.0.0.1:0"}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o440: true, 0o644: false, 0o602: false} {
		if err := os.Chmod(cfg.Swarm.Secret, mode); err != nil {
			t.Fatal(err)
		}
		a, err := Open(t.Context(), cfg, quiet(), "test")
		if (err == nil) != ok || !ok && !strings.HasPrefix(err.Error(), "swarm.secret: ") {
			t.Errorf("mode %v: %v", mode, err)
		}
		if a != nil {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	cfg.Swarm.Secret = secretFile(t, "short")
	if _, err := Open(t.Context(), cfg, quiet(), "test"); err == nil || !strings.HasPrefix(err.Error(), "swarm.secret: ") {
		t.Errorf("a short secret: %v", err)
	}
}

// insecure accepts any certificate and shows none.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// TestN8_AnImageIsPulledFromAPeerByItsTagWhileTheRegistryIsDown on a node that
// never had any of it.
func TestN8_AnImageIsPulledFromAPeerByItsTagWhileTheRegistryIsDown(t *testing.T) {
	o := newOrigin(t, 2<<20)
	nodes := cluster(t, o, 3, nil)
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	o.down.Store(true)
	for _, n := range nodes[1:] {
		header, err := n.pull(o)
		if err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		if header.Get("Fairway-Stale") == "" || !strings.HasPrefix(header.Get("Warning"), "110 ") {
			t.Errorf("%s: the answer is not marked as stale: %v", n.name, header)
		}
	}
	if _, _, err := nodes[1].get(o, "manifests/2"); err == nil {
		t.Error("a tag that nobody knows was answered")
	}
	o.down.Store(false)
	eventually(t, "the registry is asked again", func() bool {
		header, _, err := nodes[1].get(o, "manifests/1")
		return err == nil && header.Get("Fairway-Stale") == ""
	})
}

func TestN8_WhatIsTooOldIsNotAnsweredForAPeer(t *testing.T) {
	o := newOrigin(t, 1<<20)
	nodes := cluster(t, o, 2, func(i int, cfg *Config) {
		if i == 1 {
			cfg.StaleMax = 1 // ns
		}
	})
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	o.down.Store(true)
	if _, _, err := nodes[1].get(o, "manifests/1"); err == nil {
		t.Error("an answer older than stale_max was given")
	}
}

// TestN10_PrivateContentNeedsAFreshGrantOfTheNodesOwn has the upstream ask for
// credentials, and go down.
func TestN10_PrivateContentNeedsAFreshGrantOfTheNodesOwn(t *testing.T) {
	o := newOrigin(t, 2<<20)
	o.private.Store(true)
	nodes := cluster(t, o, 2, nil)
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	layer, manifest := digest.FromBytes(o.layer), digest.FromBytes(o.manifest)
	o.down.Store(true)
	for _, path := range []string{"manifests/1", "manifests/" + string(manifest), "blobs/" + string(layer)} {
		if _, _, err := nodes[1].get(o, path); err == nil {
			t.Errorf("%s was given without a grant", path)
		}
	}
	if s := nodes[1].swarm.engine.Status(); s.FromPeers != 0 {
		t.Errorf("%d bytes came from a peer", s.FromPeers)
	}
	o.down.Store(false)
	before := o.sent.Load()
	if _, err := nodes[1].pull(o); err != nil {
		t.Fatal(err)
	}
	if s := nodes[1].swarm.engine.Status(); s.FromPeers < int64(len(o.layer))/2 {
		t.Errorf("with grants on both sides only %d bytes came from a peer, %d from the registry", s.FromPeers, o.sent.Load()-before)
	}
}

// TestN10_AManifestOfOnesOwnMakingOpensNothing names a private layer in a public
// manifest, on a node where the layer is not.
func TestN10_AManifestOfOnesOwnMakingOpensNothing(t *testing.T) {
	o := newOrigin(t, 2<<20)
	o.private.Store(true)
	nodes := cluster(t, o, 2, nil)
	if _, err := nodes[0].pull(o); err != nil {
		t.Fatal(err)
	}
	o.private.Store(false)
	if _, _, err := nodes[1].get(o, "manifests/1"); err != nil {
		t.Fatal(err)
	}
	o.down.Store(true)
	if _, _, err := nodes[1].get(o, "blobs/"+string(digest.FromBytes(o.layer))); err == nil {
		t.Error("a private layer was given because a manifest names it")
	}
	if s := nodes[1].swarm.engine.Status(); s.FromPeers != 0 {
		t.Errorf("%d bytes came from a peer", s.FromPeers)
	}
}

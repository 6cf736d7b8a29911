// Package preheat_test has real agents fetch images ahead for a real registry,
// all in one process and over HTTP, with a proxy between them that can hold a
// blob back.
package preheat_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/agent"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

// world is a registry behind a proxy, and nodes.
type world struct {
	t      *testing.T
	cfg    registry.Config
	target atomic.Pointer[url.URL] // of the registry; nil while it is down
	stop   func()                  // of the registry
	url    string                  // of the proxy
	client *adminclient.Client

	mu    sync.Mutex
	held  map[string]chan struct{} // path's end → what lets it through
	asked map[string]int           // blob → how often it was asked for
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func begin(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, cfg: registry.Default(), held: map[string]chan struct{}{}, asked: map[string]int{}}
	w.cfg.Data, w.cfg.Listen, w.cfg.MinFree, w.cfg.Reserve = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0", 1, 1
	w.start()
	srv := httptest.NewServer(http.HandlerFunc(w.pass))
	w.url = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	var err error
	if w.client, err = adminclient.New(w.url); err != nil {
		t.Fatal(err)
	}
	return w
}

// start opens the registry. It ends with the test, or when w.stop is called.
func (w *world) start() {
	w.t.Helper()
	r, err := registry.Open(context.Background(), w.cfg, quiet(), adminapi.Version{Version: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.stop = run(w.t, r)
	w.target.Store(&url.URL{Scheme: "http", Host: r.Addr().String()})
}

type house interface {
	Run(ctx context.Context) error
	Close() error
}

// run runs a house until the test ends or the function that it returns is called.
func run(t *testing.T, h house) func() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, h.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// pass is the proxy.
func (w *world) pass(rw http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		w.mu.Lock()
		w.asked[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]++
		var gate chan struct{}
		for end, g := range w.held {
			if strings.HasSuffix(r.URL.Path, end) {
				gate = g
			}
		}
		w.mu.Unlock()
		if gate != nil {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
	}
	target := w.target.Load()
	if target == nil {
		rw.WriteHeader(http.StatusBadGateway)
		return
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorLog = slog.NewLogLogger(quiet().Handler(), slog.LevelDebug)
	proxy.ServeHTTP(rw, r)
}

// hold keeps a blob back until the function that it returns is called.
func (w *world) hold(d oci.Digest) (release func()) {
	gate := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[string(d)] = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (w *world) times(d oci.Digest) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[string(d)]
}

// node runs an agent, after change has had its way with the settings.
func (w *world) node(name string, change func(*agent.Config)) *node {
	w.t.Helper()
	cfg := agent.Default()
	cfg.Data, cfg.Listen, cfg.Registry, cfg.Name = filepath.Join(w.t.TempDir(), name), "127.0.0.1:0", w.url, name
	cfg.Runtime, cfg.Margin, cfg.Floor = setting.List{"none"}, 1<<20, 0
	cfg.TagTTL = unit.Duration(time.Millisecond)
	// How full the disk of the machine is has nothing to do with these tests.
	cfg.High, cfg.Low = 99.9, 99
	if change != nil {
		change(&cfg)
	}
	n := &node{w: w, cfg: cfg}
	n.start()
	return n
}

type node struct {
	w    *world
	cfg  agent.Config
	url  string
	stop func()
}

func (n *node) start() {
	n.w.t.Helper()
	a, err := agent.Open(context.Background(), n.cfg, quiet(), "test")
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.url, n.stop = "http://"+a.Addr().String(), run(n.w.t, a)
	n.w.until(n.cfg.Name+" has reported", func() bool {
		var got nodeapi.Node
		return n.w.client.Call(n.w.t.Context(), "GET", "/nodes/"+n.cfg.Name, nil, &got) == nil
	})
}

// has tells which tier a whole blob of the node's cache is of, "" for none.
func (n *node) has(d oci.Digest) string {
	n.w.t.Helper()
	c, err := adminclient.New(n.url)
	if err != nil {
		n.w.t.Fatal(err)
	}
	var list nodeapi.CacheList
	if err := c.Call(n.w.t.Context(), "GET", "/cache", nil, &list); err != nil {
		n.w.t.Fatal(err)
	}
	for _, i := range list.Items {
		if i.Digest == d && i.State == "complete" {
			return i.Tier
		}
	}
	return ""
}

// got is has for what must be there: the index says so a moment after the last
// byte is verified.
func (n *node) got(d oci.Digest) (tier string) {
	n.w.t.Helper()
	n.w.until(n.cfg.Name+" has "+string(d), func() bool { tier = n.has(d); return tier != "" })
	return tier
}

// pulls gets an image through the node's mirror, as a runtime does.
func (n *node) pulls(i image) {
	n.w.t.Helper()
	base := n.url + "/v2/" + i.repo
	if got := n.w.get(base + "/manifests/" + i.tag); digest.FromBytes(got) != i.digest {
		n.w.t.Errorf("the manifest of %s:%s has %d bytes, and another digest", i.repo, i.tag, len(got))
	}
	for _, d := range i.blobs {
		if got := n.w.get(base + "/blobs/" + string(d)); digest.FromBytes(got) != d {
			n.w.t.Errorf("blob %s has %d bytes, and another digest", d, len(got))
		}
	}
}

func (w *world) get(url string) []byte {
	w.t.Helper()
	res, err := http.Get(url)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		w.t.Fatalf("GET %s: %d, %v %.200s", url, res.StatusCode, err, content)
	}
	return content
}

func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	w.t.Fatalf("in time it was not so that %s", what)
}

// image is one that was pushed: its manifest, and config and layers.
type image struct {
	repo, tag string
	digest    oci.Digest
	size      int
	blobs     []oci.Digest
}

func (w *world) send(method, path, contentType string, content []byte) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, bytes.NewReader(content))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusCreated {
		text, err := io.ReadAll(res.Body)
		w.t.Fatalf("%s %s: %d %s %v", method, path, res.StatusCode, text, err)
	}
}

// push pushes an image with layers of these sizes, which nothing else has.
func (w *world) push(repo, tag string, layers ...int) image {
	w.t.Helper()
	i := image{repo: repo, tag: tag}
	descriptor := func(mediaType string, content []byte) map[string]any {
		d := digest.FromBytes(content)
		w.send("POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(d), "application/octet-stream", content)
		i.blobs = append(i.blobs, d)
		return map[string]any{"mediaType": mediaType, "digest": d, "size": len(content)}
	}
	config := descriptor("application/vnd.oci.image.config.v1+json", fmt.Appendf(nil, `{"os":"linux","author":%q}`, repo+tag))
	var list []map[string]any
	for n, size := range layers {
		line := fmt.Sprintf("%s:%s layer %d ", repo, tag, n)
		list = append(list, descriptor("application/vnd.oci.image.layer.v1.tar", bytes.Repeat([]byte(line), size/len(line)+1)[:size]))
	}
	content := w.json(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeImage, "config": config, "layers": list})
	w.send("PUT", "/v2/"+repo+"/manifests/"+tag, oci.MediaTypeImage, content)
	i.digest, i.size = digest.FromBytes(content), len(content)
	return i
}

// pushIndex pushes an index of images for platforms.
func (w *world) pushIndex(repo, tag string, images map[string]image) image {
	w.t.Helper()
	var list []map[string]any
	for arch, i := range images {
		list = append(list, map[string]any{"mediaType": oci.MediaTypeImage, "digest": i.digest, "size": i.size,
			"platform": map[string]string{"os": "linux", "architecture": arch}})
	}
	content := w.json(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeIndex, "manifests": list})
	w.send("PUT", "/v2/"+repo+"/manifests/"+tag, oci.MediaTypeIndex, content)
	return image{repo: repo, tag: tag, digest: digest.FromBytes(content)}
}

// pushBuildCache pushes what BuildKit exports as a cache: an index of layers, in
// which the last entry is the cache's configuration.
func (w *world) pushBuildCache(repo, tag string, layers ...int) image {
	w.t.Helper()
	i := w.push(repo, tag+"-layers", layers...)
	types := []string{"application/vnd.buildkit.cacheconfig.v0"} // what push made first
	for range layers {
		types = append(types, "application/vnd.oci.image.layer.v1.tar")
	}
	var list []map[string]any
	for n, d := range i.blobs {
		size := len(fmt.Appendf(nil, `{"os":"linux","author":%q}`, repo+tag+"-layers"))
		if n > 0 {
			size = layers[n-1]
		}
		list = append(list, map[string]any{"mediaType": types[n], "digest": d, "size": size})
	}
	slices.Reverse(list)
	content := w.json(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeIndex, "manifests": list})
	w.send("PUT", "/v2/"+repo+"/manifests/"+tag, oci.MediaTypeIndex, content)
	i.tag, i.digest, i.size = tag, digest.FromBytes(content), len(content)
	return i
}

func (w *world) json(v any) []byte {
	w.t.Helper()
	content, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return content
}

func (w *world) preheat(req adminapi.PreheatRequest) (p meta.Preheat) {
	w.t.Helper()
	if err := w.client.Call(w.t.Context(), "POST", "/preheats", req, &p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// over waits for the end of a preheat.
func (w *world) over(id int64) (p meta.Preheat) {
	w.t.Helper()
	w.until("the preheat is over", func() bool {
		return w.client.Call(w.t.Context(), "GET", fmt.Sprintf("/preheats/%d?wait=5s", id), nil, &p) == nil && p.State != meta.PreheatRunning
	})
	return p
}

func (w *world) done(id int64) meta.Preheat {
	w.t.Helper()
	p := w.over(id)
	if p.State != meta.PreheatDone {
		w.t.Fatalf("it ended with %+v", p)
	}
	return p
}

// otherArch is a platform that this machine does not run.
func otherArch() string {
	list := []string{"s390x", "ppc64le"}
	return list[slices.IndexFunc(list, func(a string) bool { return a != runtime.GOARCH })]
}

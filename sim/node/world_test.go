package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/agent/report"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/unit"
)

// world is a registry that can be stopped and started, and what nodes need.
type world struct {
	*testing.T
	cfg  registry.Config
	stop func()
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, cfg: registry.Default()}
	w.cfg.Data, w.cfg.Listen = t.TempDir(), "127.0.0.1:0"
	w.cfg.GC.Window, w.cfg.GC.Trash, w.cfg.GC.Interval, w.cfg.CheckInterval = 0, 0, 0, 0
	w.cfg.ShutdownGrace = unit.Duration(time.Second)
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start starts the registry, where it was before.
func (w *world) start() {
	w.Helper()
	r, err := registry.Open(context.Background(), w.cfg, slog.New(slog.DiscardHandler), adminapi.Version{})
	if err != nil {
		w.Fatal(err)
	}
	w.cfg.Listen = r.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, r.Close()); err != nil {
			w.Error(err)
		}
	})
}

func (w *world) url() string { return "http://" + w.cfg.Listen }

// ask sends a request and decodes a good answer.
func (w *world) ask(method, path, contentType string, body []byte, into any) int {
	w.Helper()
	req, err := http.NewRequest(method, w.url()+path, bytes.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(res.Body)
	if err != nil {
		w.Fatal(err)
	}
	if into != nil && res.StatusCode < 300 {
		if err := json.Unmarshal(content, into); err != nil {
			w.Fatalf("%s %s: %v\n%s", method, path, err, content)
		}
	}
	return res.StatusCode
}

// image is what push pushed.
type image struct{ manifest, config, layer oci.Digest }

func (w *world) push(name string) image {
	w.Helper()
	blob := func(content string) oci.Digest {
		d := digest.FromString(content)
		if got := w.ask("POST", "/v2/app/blobs/uploads/?digest="+string(d), "application/octet-stream", []byte(content), nil); got != 201 {
			w.Fatalf("push a blob: status %d", got)
		}
		return d
	}
	i := image{config: blob(`{"name":"` + name + `"}`), layer: blob("layer of " + name)}
	content := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, oci.MediaTypeImage, i.config, len(name)+11, i.layer, len(name)+9)
	i.manifest = digest.FromBytes(content)
	if got := w.ask("PUT", "/v2/app/manifests/"+name, oci.MediaTypeImage, content, nil); got != 201 {
		w.Fatalf("push a manifest: status %d", got)
	}
	return i
}

// deleteAndCollect deletes images, and collects with window and trash 0.
func (w *world) deleteAndCollect(images ...image) {
	w.Helper()
	for _, i := range images {
		if got := w.ask("DELETE", "/v2/app/manifests/"+string(i.manifest), "", nil, nil); got != 202 && got != 404 {
			w.Fatalf("delete: status %d", got)
		}
	}
	var run struct {
		ID    int64
		State string
	}
	if got := w.ask("POST", "/api/v1/gc/runs", "", nil, &run); got != 202 {
		w.Fatalf("collect: status %d", got)
	}
	w.ask("GET", fmt.Sprintf("/api/v1/gc/runs/%d?wait=20s", run.ID), "", nil, &run)
	if run.State != "done" {
		w.Fatalf("the run is %s", run.State)
	}
}

// restorable reports whether a deleted image can still be brought back.
func (w *world) restorable(i image) bool {
	w.Helper()
	return w.ask("POST", "/api/v1/trash/restore", "application/json", fmt.Appendf(nil, `{"repository":"app","digest":%q}`, i.manifest), nil) == 200
}

func (w *world) node(name string) (n nodeapi.Node, known bool) {
	w.Helper()
	return n, w.ask("GET", "/api/v1/nodes/"+name, "", nil, &n) == 200
}

// names reports whether a node has said that it uses the digest.
func (w *world) names(node string, d oci.Digest) bool {
	w.Helper()
	n, _ := w.node(node)
	for _, r := range n.Runs {
		for _, has := range r.Digests {
			if has == d {
				return true
			}
		}
	}
	return false
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// agent is the part of an agent that reports, with a runtime.
type agent struct {
	*testing.T
	name, dir string
	runtime   *inusetest.Fake
	index     *index.Index
	reporter  *report.Reporter
	log       *lines
	stop      func()
	client    *http.Client
	url       string
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newAgent(w *world, name string) *agent {
	w.Helper()
	a := &agent{T: w.T, name: name, dir: w.TempDir(), runtime: inusetest.NewFake("containerd"), log: &lines{}, url: w.url(), stop: func() {}, client: &http.Client{}}
	w.Cleanup(func() { a.stop() })
	return a
}

// run starts the agent; what is in its directory was left by the last time.
func (a *agent) run() *agent {
	a.Helper()
	log := slog.New(slog.NewTextHandler(a.log, nil))
	var err error
	if a.index, err = index.Open(context.Background(), index.Options{Path: filepath.Join(a.dir, "node.db"), Log: log}); err != nil {
		a.Fatal(err)
	}
	tracker := inuse.NewTracker([]inuse.Source{a.runtime}, inuse.Options{Every: 50 * time.Millisecond, AskTimeout: time.Second, Log: log})
	a.reporter, err = report.Open(report.Options{
		Registry: a.url, Node: a.name, Version: "test", Dir: a.dir, Usage: tracker.Usage, Changed: tracker.Changed(), Index: a.index,
		Cache: func() nodeapi.Cache { return nodeapi.Cache{QuotaBytes: 10} }, TTL: time.Second, Grace: time.Hour,
		HTTP: a.client, Timeout: 2 * time.Second, Debounce: 10 * time.Millisecond, Retry: 10 * time.Millisecond, Log: log,
	})
	if err != nil {
		a.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tracker.Run(ctx) }) // which ends with ctx's error
	wg.Go(func() {
		if err := a.reporter.Run(ctx); !errors.Is(err, context.Canceled) {
			a.Errorf("the reporter ended with %v", err)
		}
	})
	a.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := a.index.Close(); err != nil {
			a.Error(err)
		}
	})
	return a
}

// knows has the node's index know an image, as after a pull through it.
func (a *agent) knows(i image) {
	a.Helper()
	if err := a.index.PutEdges(context.Background(), i.manifest, []index.Edge{
		{Parent: i.manifest, Child: i.config, Role: index.RoleConfig}, {Parent: i.manifest, Child: i.layer, Role: index.RoleLayer},
	}); err != nil {
		a.Fatal(err)
	}
}

func (a *agent) starts(id string, digests ...oci.Digest) {
	a.runtime.SetContainer(inuse.Container{Runtime: "containerd", Namespace: "default", ID: id, State: inuse.Running, Image: "app:" + id, Digests: digests, Since: time.Now().Add(-time.Minute)})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

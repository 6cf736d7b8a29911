package admin_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/admin"
	"github.com/fairway-registry/fairway/internal/agent/evict"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/jsonface/facetest"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

// node is the face over real HTTP, with a real cache and a fake runtime.
type node struct {
	*facetest.Server
	t       *testing.T
	index   *index.Index
	store   *piece.Store
	runtime *inusetest.Fake
	events  []nodeapi.Event
	limits  nodeapi.Limits
	swarm   *nodeapi.Swarm // nil: it is in none
	pinned  int            // how often it was told of pins
	clock   time.Time
	log     lines
}

// lines is a log that may be read while it is written.
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

func serve(t *testing.T, guard httpserve.Guard) *node {
	t.Helper()
	n := &node{t: t, runtime: inusetest.NewFake("fake"), clock: time.Now()}
	n.limits = nodeapi.Limits{QuotaBytes: 1000, HighPercent: 90, LowPercent: 80}
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(&n.log, nil))
	// The cache's times are of a while before the runtimes are asked.
	var err error
	n.index, err = index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db"), Now: func() int64 { return n.clock.UnixMilli() }})
	if err != nil {
		t.Fatal(err)
	}
	n.store, err = piece.Open(t.Context(), piece.Options{Dir: dir, Index: n.index, Limits: piece.Limits{Quota: 1 << 20, High: 0.9, Low: 0.5},
		Free: func() (int64, int64, error) { return 1 << 40, 1 << 41, nil }})
	if err != nil {
		t.Fatal(err)
	}
	tracker := inuse.NewTracker([]inuse.Source{n.runtime}, inuse.Options{Now: func() time.Time { return n.clock }})
	evictor, err := evict.New(evict.Options{Store: n.store, Index: n.index, Tracker: tracker, Now: func() time.Time { return n.clock }})
	if err != nil {
		t.Fatal(err)
	}
	observer := httpserve.NewObserver(httpserve.ObserverOptions{Log: log})
	n.Server = facetest.Serve(t, observer.Wrap(admin.New(admin.Options{
		Index: n.index, Store: n.store, Evictor: evictor, Tracker: tracker, Namespace: "registry.test:5000",
		Status: n.status, Pinned: func() { n.pinned++ }, Events: func() []nodeapi.Event { return n.events },
		Limits: func() nodeapi.Limits { return n.limits }, SetLimits: n.setLimits,
		Runtimes: func() []nodeapi.KnownRuntime { return []nodeapi.KnownRuntime{n.known()} }, Forget: n.forget,
		Swarm: n.swarmed, Traces: n.traces, Guard: guard, Observer: observer, Log: log,
	})))
	t.Cleanup(func() {
		if err := n.store.Close(); err != nil {
			t.Error(err)
		}
		if err := n.index.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// image puts an image with one layer of its own into the cache, as its mirror
// would, an hour before now.
func (n *node) image(name oci.Name, tag oci.Tag, layer string) (manifest, blob oci.Digest) {
	n.t.Helper()
	n.clock = n.clock.Add(-time.Hour)
	defer func() { n.clock = n.clock.Add(time.Hour) }()
	put := func(content, mediaType string) oci.Digest {
		d := digest.FromString(content)
		if err := n.store.Put(n.t.Context(), d, []byte(content), piece.Meta{MediaType: mediaType}); err != nil {
			n.t.Fatal(err)
		}
		return d
	}
	config, l := put(`{"of":"`+layer+`"}`, "application/vnd.oci.image.config.v1+json"), put(layer, "application/vnd.oci.image.layer.v1.tar")
	m := put(fmt.Sprintf(`{"schemaVersion":2,"of":%q}`, layer), oci.MediaTypeImage)
	err := n.index.PutEdges(n.t.Context(), m, []index.Edge{{Parent: m, Child: config, Role: index.RoleConfig}, {Parent: m, Child: l, Role: index.RoleLayer, Size: int64(len(layer))}})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.index.PutName(n.t.Context(), "registry.test:5000", name, tag, m, n.clock.UnixMilli()); err != nil {
		n.t.Fatal(err)
	}
	return m, l
}

func (n *node) item(d oci.Digest) nodeapi.CacheItem {
	n.t.Helper()
	var list nodeapi.CacheList
	n.Do("GET", "/cache", nil).OK(http.StatusOK, &list)
	i := slices.IndexFunc(list.Items, func(i nodeapi.CacheItem) bool { return i.Digest == d })
	if i < 0 {
		n.t.Fatalf("the cache does not list %s, but %+v", d, list.Items)
	}
	return list.Items[i]
}

func explainPath(d oci.Digest) string {
	return "/cache/explain?" + url.Values{"digest": {string(d)}}.Encode()
}

func TestCache_ShowsImagesTiersAndWhatPins(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	running, base := n.image("team/app", "v1", "layer of a container")
	_, idle := n.image("team/other", "v2", "layer of nobody")
	n.runtime.SetContainer(inuse.Container{ID: "c1", Name: "web", State: inuse.Paused, Image: "team/app:v1", Digests: []oci.Digest{running}})

	got := n.item(base)
	if got.Tier != nodeapi.TierActive || !slices.Equal(got.Images, []string{"registry.test:5000/team/app:v1"}) || len(got.PinnedBy) != 1 || !strings.Contains(got.PinnedBy[0], "container web") {
		t.Errorf("the layer of a container: %+v", got)
	}
	if got.SizeBytes != int64(len("layer of a container")) || got.PresentBytes != got.SizeBytes || got.State != index.Complete {
		t.Errorf("its size: %+v", got)
	}
	if got := n.item(idle); got.Tier == nodeapi.TierActive || len(got.PinnedBy) != 0 || !slices.Equal(got.Images, []string{"registry.test:5000/team/other:v2"}) {
		t.Errorf("the layer of nobody: %+v", got)
	}
	var v nodeapi.Verdict
	n.Do("GET", explainPath(base), nil).OK(http.StatusOK, &v)
	if v.Evict || v.Tier != nodeapi.TierActive || v.Why != evict.Container || len(v.PinnedBy) != 1 || !strings.Contains(v.PinnedBy[0], "container web (fake") {
		t.Errorf("verdict %+v", v)
	}
	n.Do("GET", explainPath(digest.FromString("nowhere")), nil).Refused(http.StatusNotFound, "the cache has no")
	n.Do("GET", "/cache/explain", nil).Refused(http.StatusBadRequest, "digest")
	n.Do("GET", "/cache/explain?digest=sha256:1", nil).Refused(http.StatusBadRequest, "digest")
}

func TestGC_ADryRunTellsAndChangesNothing(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	running, base := n.image("team/app", "v1", strings.Repeat("a", 3000))
	_, idle := n.image("team/other", "v2", strings.Repeat("b", 3000))
	n.runtime.SetContainer(inuse.Container{ID: "c1", State: inuse.Running, Digests: []oci.Digest{running}})
	n.store.SetLimits(piece.Limits{Quota: 5000, High: 0.9, Low: 0.8})

	var plan nodeapi.Plan
	for range 2 {
		n.Do("POST", "/cache/gc", nodeapi.GCRequest{DryRun: true}).OK(http.StatusOK, &plan)
		if len(plan.Verdicts) != 6 || !plan.Verdicts[0].Evict || plan.FreeBytes == 0 || !strings.Contains(plan.Reason, "quota") {
			t.Fatalf("plan %+v", plan)
		}
	}
	for _, v := range plan.Verdicts {
		if v.Evict && v.Digest == base || v.Digest == idle && !v.Evict {
			t.Errorf("verdict %+v", v)
		}
	}
	var done nodeapi.Evicted
	n.Do("POST", "/cache/gc", nil).OK(http.StatusOK, &done)
	if done.Evicted == 0 || done.Failed != 0 || done.Kept[evict.Container] != 3 {
		t.Errorf("evicted %+v", done)
	}
	if n.item(base).Tier != nodeapi.TierActive {
		t.Error("the layer of a container is not active")
	}
	n.Do("GET", explainPath(idle), nil).Refused(http.StatusNotFound)
}

func TestPins_KeepWhatTheTagNamedThen(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	m, layer := n.image("team/app", "latest", "layer one")
	var p nodeapi.Pin
	n.Do("PUT", "/pins", nodeapi.PinRequest{Ref: "team/app"}).OK(http.StatusOK, &p)
	if p.Ref != "registry.test:5000/team/app:latest" || !slices.Equal(p.Digests, []oci.Digest{m}) {
		t.Errorf("pin %+v", p)
	}
	n.image("team/app", "latest", "layer two")
	if got := n.item(layer); got.Tier != nodeapi.TierActive || !slices.Contains(got.PinnedBy, "pin "+p.Ref) {
		t.Errorf("the tag moved, and the pinned layer is %+v", got)
	}
	var list nodeapi.PinList
	n.Do("GET", "/pins", nil).OK(http.StatusOK, &list)
	if len(list.Pins) != 1 || list.Pins[0].Ref != p.Ref {
		t.Errorf("pins %+v", list)
	}
	unpin := "/pins?" + url.Values{"ref": {"Registry.test:5000/team/app"}}.Encode()
	n.Do("DELETE", unpin, nil).OK(http.StatusNoContent, nil)
	n.Do("DELETE", unpin, nil).Refused(http.StatusNotFound, "is not pinned")
	if n.item(layer).Tier == nodeapi.TierActive || n.pinned != 2 {
		t.Errorf("after the pin was taken away: %+v, told %d times", n.item(layer), n.pinned)
	}
	for _, ref := range []string{"registry.test:5000/team/app@" + string(m), "team/app:other@" + string(m), string(m)} {
		n.Do("PUT", "/pins", nodeapi.PinRequest{Ref: ref}).OK(http.StatusOK, &p)
		if !slices.Equal(p.Digests, []oci.Digest{m}) {
			t.Errorf("pin of %s: %+v", ref, p)
		}
	}
	for ref, want := range map[string]string{"docker.io/library/busybox": "was never pulled", "team/app:v9": "was never pulled", "team/app@" + string(digest.FromString("x")): "the cache has no"} {
		n.Do("PUT", "/pins", nodeapi.PinRequest{Ref: ref}).Refused(http.StatusNotFound, want)
	}
	for _, ref := range []string{"", "Team/app", "team/app:", "team/app@sha256:1", "sha256:1", "a.test/"} {
		n.Do("PUT", "/pins", nodeapi.PinRequest{Ref: ref}).Refused(http.StatusBadRequest)
	}
	n.Do("DELETE", "/pins", nil).Refused(http.StatusBadRequest, "ref")
}

func TestLimits_AreCheckedAndSet(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	var l nodeapi.Limits
	n.Do("PUT", "/limits", `{"quota_bytes":500}`).OK(http.StatusOK, &l)
	if l.QuotaBytes != 500 || l.HighPercent != 90 {
		t.Errorf("limits %+v", l)
	}
	n.Do("GET", "/limits", nil).OK(http.StatusOK, &l)
	if l.QuotaBytes != 500 {
		t.Errorf("limits %+v", l)
	}
	n.Do("PUT", "/limits", `{"high_percent":10}`).Refused(http.StatusBadRequest, "low watermark")
	n.Do("PUT", "/limits", `{}`).Refused(http.StatusBadRequest, "quota_bytes", "peer_download_bytes_per_second")
	n.Do("PUT", "/limits", `{"upload_bytes_per_second":700}`).OK(http.StatusOK, &l)
	if l.Swarm == nil || l.Swarm.Upload != 700 {
		t.Errorf("limits %+v", l)
	}
	n.Do("PUT", "/limits", `{"qota":1}`).Refused(http.StatusBadRequest, "qota", "quota_bytes")
}

func TestSwarm_IsTold(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	n.Do("GET", "/swarm", nil).Refused(http.StatusNotFound, "in no swarm")
	n.Do("GET", "/swarm/traces", nil).Refused(http.StatusNotFound, "in no swarm")
	until := n.clock
	n.swarm = &nodeapi.Swarm{Self: nodeapi.SwarmMember{Node: "n1"}, FromPeers: 3, FromOrigin: 1, Saved: 0.75,
		Members:   []nodeapi.SwarmMember{{Node: "n2", Address: "10.0.0.2:5003", Zone: "z", Sent: 1, Received: 3, BannedUntil: &until}},
		Transfers: []nodeapi.SwarmTransfer{{Digest: digest.FromString("x"), SizeBytes: 10, Pieces: 1, Missing: 1, Neighbours: []string{"n2"}, Leader: "n2", Background: true}}}
	var s nodeapi.Swarm
	n.Do("GET", "/swarm", nil).OK(http.StatusOK, &s)
	if s.Saved != 0.75 || len(s.Members) != 1 || s.Members[0].Node != "n2" || len(s.Transfers) != 1 {
		t.Errorf("swarm %+v", s)
	}
	var l nodeapi.SwarmTraces
	n.Do("GET", "/swarm/traces", nil).OK(http.StatusOK, &l)
	if len(l.Traces) != 1 || len(l.Traces[0].Pieces) != 1 {
		t.Errorf("traces %+v", l)
	}
}

func TestEvents_NewestFirstAndBounded(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	var s nodeapi.Status
	if n.Do("GET", "/status", nil).OK(http.StatusOK, &s); s.LastEvent != nil {
		t.Errorf("status %+v", s)
	}
	n.events = []nodeapi.Event{{Level: "warn", Kind: "full", Text: "two"}, {Level: "info", Kind: "evicted", Text: "one"}}
	var list nodeapi.EventList
	if n.Do("GET", "/events?n=1", nil).OK(http.StatusOK, &list); len(list.Events) != 1 || list.Events[0].Text != "two" {
		t.Errorf("events %+v", list)
	}
	if n.Do("GET", "/status", nil).OK(http.StatusOK, &s); s.LastEvent == nil || s.LastEvent.Text != "two" {
		t.Errorf("status %+v", s)
	}
	n.Do("GET", "/events?n=0", nil).Refused(http.StatusBadRequest, "n:")
}

func TestDocument_DescribesEveryOperation(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	m, _ := n.image("team/app", "v1", "layer")
	n.Do("GET", "/status", nil).OK(200, nil)
	n.Do("GET", "/cache", nil).OK(200, nil)
	n.Do("GET", explainPath(m), nil).OK(200, nil)
	n.Do("POST", "/cache/gc", nil).OK(200, nil)
	n.Do("PUT", "/pins", nodeapi.PinRequest{Ref: string(m)}).OK(200, nil)
	n.Do("GET", "/pins", nil).OK(200, nil)
	n.Do("DELETE", "/pins?ref="+string(m), nil).OK(204, nil)
	n.Do("GET", "/events", nil).OK(200, nil)
	n.Do("GET", "/runtimes", nil).OK(200, nil)
	n.Do("DELETE", "/runtimes?name=podman", nil).OK(200, nil)
	n.Do("GET", "/limits", nil).OK(200, nil)
	n.Do("PUT", "/limits", `{"margin_bytes":1}`).OK(200, nil)
	n.swarm = &nodeapi.Swarm{Members: []nodeapi.SwarmMember{}, Transfers: []nodeapi.SwarmTransfer{}}
	n.Do("GET", "/swarm", nil).OK(200, nil)
	n.Do("GET", "/swarm/traces", nil).OK(200, nil)
	n.Do("GET", "/openapi.json", nil).OK(200, nil)
	if unseen := n.Unseen(); len(unseen) > 0 {
		t.Errorf("never seen to succeed: %v", unseen)
	}
	if got, want := len(n.Operations()), admin.Operations()+1; got != want {
		t.Errorf("the document has %d operations, the handler %d", got, want)
	}
}

// TestWebPages_ChangeNothing has what a page in the operator's browser could
// send, with the rebinding of a name to this machine.
func TestWebPages_ChangeNothing(t *testing.T) {
	n := serve(t, httpserve.Guard{Loopback: true, Hosts: []string{"node.example"}})
	n.Do("POST", "/cache/gc", nil, "Origin: http://evil.example").Refused(http.StatusForbidden, "origin")
	n.Do("PUT", "/limits", `{"quota_bytes":1}`, "Content-Type: text/plain").Refused(http.StatusUnsupportedMediaType, "application/json")
	n.Do("GET", "/cache", nil, "Host: evil.example").Refused(http.StatusForbidden, "hosts")
	n.Do("GET", "/cache", nil, "Host: node.example:5001").OK(http.StatusOK, nil)
	n.Do("GET", "/nothing", nil).Refused(http.StatusNotFound, "openapi.json")
	if a := n.Do("PATCH", "/pins", nil); a.Header.Get("Allow") != "DELETE, GET, HEAD, PUT" {
		t.Errorf("Allow %q", a.Header.Get("Allow"))
	}
	if a := n.Do("GET", "/cache", nil); a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control %q", a.Header.Get("Cache-Control"))
	}
}

func (n *node) known() nodeapi.KnownRuntime {
	return nodeapi.KnownRuntime{Runtime: nodeapi.Runtime{Name: "podman", Error: "no such file"}, Endpoint: "docker:///run/podman/podman.sock",
		State: nodeapi.RuntimeSilent, SeenAt: &n.clock}
}

func (n *node) forget(_ context.Context, name string) (nodeapi.KnownRuntime, error) {
	if name != "podman" {
		return nodeapi.KnownRuntime{}, fault.New(fault.NotFound, "there is no runtime %q here", name)
	}
	return n.known(), nil
}

// TestRuntimes_ForgettingOneNeedsItsName and leaves a line in the log.
func TestRuntimes_ForgettingOneNeedsItsName(t *testing.T) {
	n := serve(t, httpserve.Guard{})
	n.Do("DELETE", "/runtimes", nil).Refused(http.StatusBadRequest, "name")
	n.Do("DELETE", "/runtimes?name=docker", nil).Refused(http.StatusNotFound, "docker")
	if strings.Contains(n.log.String(), "forget runtime") {
		t.Errorf("the log says that something was forgotten: %s", n.log.String())
	}
	n.Do("DELETE", "/runtimes?name=podman", nil).OK(http.StatusOK, nil)
	if log := n.log.String(); !strings.Contains(log, "forget runtime") || !strings.Contains(log, "podman") {
		t.Errorf("nothing is in the log: %s", log)
	}
}

func (n *node) setLimits(r nodeapi.LimitsRequest) (nodeapi.Limits, error) {
	if r.HighPercent != nil && *r.HighPercent <= n.limits.LowPercent {
		return n.limits, fault.New(fault.Invalid, "the low watermark is above the high one")
	}
	if r.QuotaBytes != nil {
		n.limits.QuotaBytes = *r.QuotaBytes
	}
	if r.Upload != nil {
		n.limits.Swarm = &nodeapi.SwarmLimits{Upload: *r.Upload}
	}
	return n.limits, nil
}

func (n *node) swarmed() (nodeapi.Swarm, error) {
	if n.swarm == nil {
		return nodeapi.Swarm{}, fault.New(fault.NotFound, "this node is in no swarm")
	}
	return *n.swarm, nil
}

func (n *node) traces() (nodeapi.SwarmTraces, error) {
	_, err := n.swarmed()
	return nodeapi.SwarmTraces{Traces: []nodeapi.SwarmTrace{{
		Digest: digest.FromString("x"), SizeBytes: 10, FromPeers: 10, Seconds: 0.5, Sources: []string{"n2"}, Pieces: [][3]int{{7, 0, 0}},
	}}}, err
}

func (n *node) status(context.Context) (nodeapi.Status, error) {
	return nodeapi.Status{Node: "n1", Cache: nodeapi.Cache{QuotaBytes: n.limits.QuotaBytes}}, nil
}

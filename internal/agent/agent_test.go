package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	cfg := Default()
	cfg.Data, cfg.Listen, cfg.Registry, cfg.Name = filepath.Join(t.TempDir(), "n"), "127.0.0.1:0", "", "n1"
	cfg.Runtime = setting.List{"none"}
	return cfg
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs an agent until the test ends, or the function that it returns is
// called.
func start(t *testing.T, cfg Config) (*Agent, func()) {
	t.Helper()
	a, err := Open(t.Context(), cfg, quiet(), "test")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	over := false
	stop := func() {
		if over {
			return
		}
		over = true
		cancel()
		if err := errors.Join(<-ended, a.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return a, stop
}

func (a *Agent) fetchText(t *testing.T, path string) (int, string) {
	t.Helper()
	return get(t, "http://"+a.Addr().String()+path)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// put has the cache hold content that nobody uses, for an hour already.
func put(t *testing.T, a *Agent, content string) oci.Digest {
	t.Helper()
	d := digest.FromString(content)
	if err := a.store.Put(t.Context(), d, []byte(content), piece.Meta{}); err != nil {
		t.Fatal(err)
	}
	return d
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("in time it was not so that %s", what)
}

func TestRun_ServesAndEndsWithNothingLeftOpen(t *testing.T) {
	cfg := testConfig(t)
	a, stop := start(t, cfg)
	for path, want := range map[string]string{"/healthz": "alive", "/readyz": "ready", "/": "Fairway node", "/metrics": "fairway_node_", "/v2/": ""} {
		if status, body := a.fetchText(t, path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %.200q", path, status, body)
		}
	}
	if _, err := Open(t.Context(), cfg, quiet(), "test"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second agent on the same data: %v", err)
	}
	stop()
	if _, err := os.Lstat(cfg.adminSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	again, err := Open(t.Context(), cfg, quiet(), "test")
	if err != nil {
		t.Fatalf("after the end: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestSocket_IsItsUsersAloneAndReplacesWhatAKilledAgentLeft(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	left, err := net.Listen("unix", cfg.adminSocket())
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()

	a, _ := start(t, cfg)
	info, err := os.Stat(cfg.adminSocket())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket %v, %v", info, err)
	}
	c, err := adminclient.New("unix://" + cfg.adminSocket())
	if err != nil {
		t.Fatal(err)
	}
	var s nodeapi.Status
	if err := c.Call(t.Context(), "GET", "/status", nil, &s); err != nil || s.Listen != a.Addr().String() || len(s.Runtimes) != 1 {
		t.Errorf("status %+v, %v", s, err)
	}
	if entries, err := filepath.Glob(filepath.Join(cfg.Data, ".s*")); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %q, %v", entries, err)
	}

	other := testConfig(t)
	other.AdminSocket = cfg.adminSocket()
	if _, err := Open(t.Context(), other, quiet(), "test"); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("another agent with the same socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "something else", "/tmp/" + strings.Repeat("x", 120): "too long"} {
		other.AdminSocket = path
		if _, err := Open(t.Context(), other, quiet(), "test"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("socket at %s: %v", path, err)
		}
	}
}

func TestAdmin_IsNotServedToTheNetwork(t *testing.T) {
	cfg := testConfig(t)
	cfg.Listen = "0.0.0.0:0"
	if _, err := Open(t.Context(), cfg, quiet(), "test"); err == nil {
		t.Fatal("it listens on the network without having been told to")
	}
	cfg.AllowAnyone = true
	a, _ := start(t, cfg)
	_, port, err := net.SplitHostPort(a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	base := "http://127.0.0.1:" + port
	if status, body := get(t, base+"/api/v1/status"); status != http.StatusForbidden || !strings.Contains(body, "socket") {
		t.Errorf("the admin API: %d %s", status, body)
	}
	if status, _ := get(t, base+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	c, err := adminclient.New("unix://" + cfg.adminSocket())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "GET", "/status", nil, nil); err != nil {
		t.Errorf("on the socket: %v", err)
	}
}

// TestAdmin_IsServedOnTheSocketOnly: every user of the machine reaches loopback,
// and only the agent's may see, evict and set limits.
func TestAdmin_IsServedOnTheSocketOnly(t *testing.T) {
	cfg := testConfig(t)
	cfg.DockerListen = "127.0.0.1:0"
	a, _ := start(t, cfg)
	for _, base := range []string{"http://" + a.Addr().String(), "http://" + a.docker.Addr().String()} {
		for _, path := range []string{"/api", "/api/v1/status", "/api/v1/limits", "/api/v1/openapi.json", "/api//v1/limits", "/v2/../api/v1/limits"} {
			req, err := http.NewRequestWithContext(t.Context(), "PUT", base, strings.NewReader(`{"quota_bytes":1}`))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = path
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if named := res.Header.Get(nodeapi.SocketHeader); res.StatusCode < 400 || res.StatusCode == http.StatusForbidden && named != cfg.adminSocket() {
				t.Errorf("PUT %s%s: %d, socket %q", base, path, res.StatusCode, named)
			}
		}
	}
	if got := a.Limits().QuotaBytes; got != int64(cfg.Quota) {
		t.Errorf("the quota is %d now", got)
	}
	// Whoever may use the socket need not know where it is.
	c, err := adminclient.New("http://" + a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	quota := int64(5 << 30)
	for range 2 {
		if err := c.Call(t.Context(), "PUT", "/limits", nodeapi.LimitsRequest{QuotaBytes: &quota}, nil); err != nil || a.Limits().QuotaBytes != quota {
			t.Errorf("by the socket that it names: %v, quota %d", err, a.Limits().QuotaBytes)
		}
	}
	if info, err := os.Stat(cfg.adminSocket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
}

func TestAdmin_APageWhoseNameWasPointedHereIsRefused(t *testing.T) {
	a, _ := start(t, testConfig(t))
	for _, path := range []string{"/api/v1/status", "/v2/", "/metrics"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+a.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "evil.example"
		req.Header.Set("Sec-Fetch-Site", "same-origin")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("GET %s: %d", path, res.StatusCode)
		}
	}
}

// TestN5_AQuotaLoweredAtRunTimeIsKept lowers it below what nobody uses.
func TestN5_AQuotaLoweredAtRunTimeIsKept(t *testing.T) {
	a, _ := start(t, testConfig(t))
	for n := range 20 {
		put(t, a, fmt.Sprintf("%0100000d", n))
	}
	quota := int64(1_000_000)
	l, err := a.SetLimits(nodeapi.LimitsRequest{QuotaBytes: &quota})
	if err != nil || l.QuotaBytes != quota || l.HighPercent != 90 || l.LowPercent != 80 {
		t.Fatalf("limits %+v, %v", l, err)
	}
	// What was put just now is not evicted for a second, so a pass may find no more
	// than takes the cache below the high watermark, and the next has nothing to do.
	eventually(t, "the cache is below its high watermark", func() bool {
		a.evictor.Kick()
		u := a.store.Usage()
		return u.Used-u.Claimed < quota*9/10
	})
	if u := a.store.Usage(); u.Used < quota*6/10 {
		t.Errorf("more went than had to: %d of %d are used", u.Used, quota)
	}
	if list := a.latestEvents(); !slices.ContainsFunc(list, func(e nodeapi.Event) bool { return e.Kind == "evicted" }) {
		t.Errorf("events %+v", list)
	}
	low := 95.0
	if _, err := a.SetLimits(nodeapi.LimitsRequest{LowPercent: &low}); err == nil || !strings.Contains(err.Error(), "low watermark") {
		t.Errorf("a low watermark above the high one: %v", err)
	}
	if a.Limits() != l {
		t.Errorf("a refused change left %+v", a.Limits())
	}
}

// TestQuota_ATinyOneIsWarnedOf: 10 was taken for 10 GB by who wrote it, and for
// 10 bytes here, without a word.
func TestQuota_ATinyOneIsWarnedOf(t *testing.T) {
	warned := func(quota unit.Size) bool {
		cfg := testConfig(t)
		cfg.Quota = quota
		a, _ := start(t, cfg)
		return slices.ContainsFunc(a.latestEvents(), func(e nodeapi.Event) bool {
			return strings.Contains(e.Text, "smaller than most layers") && strings.Contains(e.Text, "16MiB")
		})
	}
	if !warned(10) || warned(1<<30) {
		t.Error("want a warning of 10 bytes, and none of 1 GiB")
	}
}

// TestN5_ANodeStartedOverItsQuotaEvictsAtOnce: it waited for 10 s.
func TestN5_ANodeStartedOverItsQuotaEvictsAtOnce(t *testing.T) {
	cfg := testConfig(t)
	a, stop := start(t, cfg)
	for n := range 20 {
		put(t, a, fmt.Sprintf("%0100000d", n))
	}
	stop()
	<-time.After(1100 * time.Millisecond) // the answer must be newer than they are, by more than clocks may differ
	cfg.Quota, cfg.evictEvery = 1_000_000, time.Hour
	a, _ = start(t, cfg)
	eventually(t, "the cache is below its quota", func() bool { return a.store.Usage().Used < 1_000_000 })
}

// TestN3_ARuntimeThatNeverAnswersKeepsEverything has no runtime at its socket.
func TestN3_ARuntimeThatNeverAnswersKeepsEverything(t *testing.T) {
	cfg := testConfig(t)
	cfg.Runtime = setting.List{"containerd://" + filepath.Join(t.TempDir(), "away.sock")}
	a, _ := start(t, cfg)
	for n := range 4 {
		put(t, a, fmt.Sprintf("%0100000d", n))
	}
	before := a.store.Usage().Used
	// Also before the first pass of the eviction: "in use 0" is no answer then.
	if s, err := a.status(t.Context()); err != nil || s.Cache.ActiveBytes != before {
		t.Errorf("%d bytes are said to be in use, want %d; %v", s.Cache.ActiveBytes, before, err)
	}
	quota := int64(100_000)
	if _, err := a.SetLimits(nodeapi.LimitsRequest{QuotaBytes: &quota}); err != nil {
		t.Fatal(err)
	}
	r, err := a.evictor.Pass(t.Context())
	if err != nil || r.Evicted != 0 || r.Kept["unknown"] != 4 {
		t.Errorf("pass %+v, %v", r, err)
	}
	if got := a.store.Usage().Used; got != before {
		t.Errorf("%d bytes are left of %d", got, before)
	}
	s, err := a.status(t.Context())
	if err != nil || len(s.Runtimes) != 1 || s.Runtimes[0].Answers || s.Runtimes[0].AgeSeconds != -1 {
		t.Errorf("status %+v, %v", s, err)
	}
	if status, _ := a.fetchText(t, "/readyz"); status != http.StatusOK {
		t.Errorf("readyz: %d; what is cached can be pulled", status)
	}
}

// TestDocker_NamesWithoutARegistryAreDockerHubs pulls as Docker does.
func TestDocker_NamesWithoutARegistryAreDockerHubs(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[]}`)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v2/library/busybox/manifests/") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", oci.MediaTypeIndex)
		w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(manifest)))
		_, _ = w.Write(manifest)
	}))
	defer hub.Close()
	cfg := testConfig(t)
	cfg.DockerListen = "127.0.0.1:0"
	cfg.Upstreams = setting.List{"docker.io=" + hub.URL}
	a, _ := start(t, cfg)
	docker := "http://" + a.docker.Addr().String()
	if status, body := get(t, docker+"/v2/library/busybox/manifests/latest"); status != http.StatusOK || body != string(manifest) {
		t.Errorf("on Docker's listener: %d %s", status, body)
	}
	if status, _ := get(t, docker+"/api/v1/status"); status != http.StatusForbidden {
		t.Errorf("the admin API on Docker's listener: %d", status)
	}
	if status, _ := a.fetchText(t, "/v2/library/busybox/manifests/latest?ns=docker.io"); status != http.StatusOK {
		t.Errorf("by its namespace: %d", status)
	}
}

func TestOpen_MistakesNameTheirSetting(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*Config){
		"runtime":     func(c *Config) { c.Runtime = setting.List{"podman:///x.sock"} },
		"credentials": func(c *Config) { c.Credentials = bad },
		"ca":          func(c *Config) { c.CA = bad },
		"margin":      func(c *Config) { c.Margin = unit.Size(1) << 60 },
		"listen":      func(c *Config) { c.Listen = "localhost" },
		"low":         func(c *Config) { c.Low = 95 },
		"upstreams":   func(c *Config) { c.Upstreams = setting.List{"a/b"} },
		"name":        func(c *Config) { c.Name = "a b" },
		"data":        func(c *Config) { c.Data = "" },
		"lease_ttl":   func(c *Config) { c.LeaseTTL = 0 },
		"registry":    func(c *Config) { c.Registry = "http://h/path" },
	} {
		cfg := testConfig(t)
		change(&cfg)
		a, err := Open(t.Context(), cfg, quiet(), "test")
		var wrong *setting.Error
		if !errors.As(err, &wrong) || wrong.Key != key {
			t.Errorf("%s: error %v", key, err)
		}
		if a != nil {
			t.Errorf("%s: an agent was opened", key)
		}
	}
}

// TestConfig_AnUpstreamIsGivenOnce: of two URLs one would be forgotten silently.
func TestConfig_AnUpstreamIsGivenOnce(t *testing.T) {
	for text, ok := range map[string]bool{
		"docker.io=http://a.example,docker.io=http://b.example": false,
		"docker.io,docker.io":                      false,
		"docker.io, Docker.IO=http://b.example":    false,
		"r.example:5000=http://other.example:5000": false,
		"r.example:5000=http://r.example:5000/":    true,
		"docker.io=http://a.example,quay.io":       true,
	} {
		cfg := testConfig(t)
		cfg.Registry, cfg.DockerListen = "http://r.example:5000", "127.0.0.1:0"
		if err := cfg.Upstreams.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		var wrong *setting.Error
		if err := cfg.Validate(); (err == nil) != ok || err != nil && (!errors.As(err, &wrong) || wrong.Key != "upstreams") {
			t.Errorf("%s: %v", text, err)
		}
	}
	cfg := testConfig(t)
	cfg.Runtime = setting.List{"docker:///x.sock", "docker:///x.sock"}
	if err := cfg.Validate(); err == nil {
		t.Error("a runtime is given twice")
	}
}

func TestLimits_OfNoneAreSharesOfTheDisk(t *testing.T) {
	const total = 100 << 30
	l, err := changed(piece.Limits{}, Config{High: 90, Low: 80}.Limits(), total)
	if err != nil || l.Quota != 80*(total/100) || l.MinFree != 64<<20 || l.High != 0.9 || l.Low != 0.8 {
		t.Errorf("limits %+v, %v", l, err)
	}
	small, err := changed(l, Config{High: 90, Low: 80, Quota: 5}.Limits(), 1<<30)
	if err != nil || small.Quota != 5 || small.MinFree != 2*((1<<30)/100) {
		t.Errorf("on a small disk: %+v, %v", small, err)
	}
	quota := int64(7)
	if one, err := changed(l, nodeapi.LimitsRequest{QuotaBytes: &quota}, total); err != nil || one.Quota != 7 || one.MinFree != l.MinFree {
		t.Errorf("only the quota changed: %+v, %v", one, err)
	}
}

func TestEvents_AreTheWarningsOfTheLog(t *testing.T) {
	var out bytes.Buffer
	var e events
	log := slog.New(remembering{Handler: slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelError}), events: &e, kind: "log"})
	log.Info("nothing special")
	log.With("a", 1).WithGroup("g").Warn("the disk is slow", "err", "1 s")
	log.Error("request", "status", 500)
	log.Error("the disk is gone", "error", errors.New("no such device"))
	list := e.latest([]nodeapi.Event{{At: time.Now().Add(-time.Hour), Text: "older"}})
	var texts []string
	for _, ev := range list {
		texts = append(texts, ev.Level+" "+ev.Text)
	}
	if got, want := strings.Join(texts, "|"), "error the disk is gone: no such device|warn the disk is slow: 1 s| older"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	for range 2 * eventsMax {
		log.Warn("again")
	}
	if n := len(e.latest(nil)); n != eventsMax {
		t.Errorf("%d events are remembered", n)
	}
	if strings.Contains(out.String(), "slow") {
		t.Error("a warning was logged below the level")
	}
}

// TestN1_WhatAKillKeptFromTheMapIsLearnedBeforeTheFirstEviction has a config
// whose chain was never noted, as after a kill -9 at that moment.
func TestN1_WhatAKillKeptFromTheMapIsLearnedBeforeTheFirstEviction(t *testing.T) {
	cfg := testConfig(t)
	a, err := Open(t.Context(), cfg, quiet(), "test")
	if err != nil {
		t.Fatal(err)
	}
	layer := digest.FromString("layer")
	config, err := json.Marshal(map[string]any{"rootfs": map[string]any{"type": "layers", "diff_ids": []oci.Digest{layer}}})
	if err != nil {
		t.Fatal(err)
	}
	c := put(t, a, string(config))
	m := put(t, a, "manifest")
	if err := a.index.PutEdges(t.Context(), m, []index.Edge{{Parent: m, Child: c, Role: index.RoleConfig}}); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := start(t, cfg)
	eventually(t, "the chain is known", func() bool {
		found, err := b.index.ConfigsOfChain(t.Context(), layer)
		return err == nil && len(found) == 1 && found[0] == c
	})
}

// TestN5_ALoweredQuotaIsKeptWithoutWaiting for the next pass of the eviction.
func TestN5_ALoweredQuotaIsKeptWithoutWaiting(t *testing.T) {
	cfg := testConfig(t)
	cfg.evictEvery = time.Hour
	a, _ := start(t, cfg)
	for n := range 20 {
		put(t, a, fmt.Sprintf("%0100000d", n))
	}
	quota := int64(1_000_000)
	eventually(t, "the cache is below its quota", func() bool { // what was put just now is not evicted for a second
		if _, err := a.SetLimits(nodeapi.LimitsRequest{QuotaBytes: &quota}); err != nil {
			t.Fatal(err)
		}
		return a.store.Usage().Used < quota
	})
}

// TestLimits_ARefusalOfTheSwarmsChangesNone of the others that came with them.
func TestLimits_ARefusalOfTheSwarmsChangesNone(t *testing.T) {
	a, _ := start(t, testConfig(t))
	before, quota, upload := a.Limits(), int64(1<<30), int64(1<<20)
	r := nodeapi.LimitsRequest{QuotaBytes: &quota, SwarmLimitsRequest: nodeapi.SwarmLimitsRequest{Upload: &upload}}
	if _, err := a.SetLimits(r); !errors.Is(err, fault.Invalid) {
		t.Errorf("a limit of the swarm on a node without one: %v", err)
	}
	if got := a.Limits(); got != before {
		t.Errorf("the limits are %+v, and were %+v", got, before)
	}
}

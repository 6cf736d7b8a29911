package registry

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

func testConfig(t *testing.T) Config {
	cfg := Default()
	cfg.Data, cfg.Listen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0"
	return cfg
}

func open(t *testing.T, cfg Config) (*Registry, error) {
	t.Helper()
	r, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler), adminapi.Version{Version: "test"})
	if err == nil {
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return r, err
}

func mustOpen(t *testing.T, cfg Config) *Registry {
	t.Helper()
	r, err := open(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(r *Registry, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.observer.Wrap(r.handler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
	return w
}

// wantInUse fails unless a registry of cfg is refused with a message that names
// the one that is open.
func wantInUse(t *testing.T, cfg Config, first *Registry) {
	t.Helper()
	_, err := open(t, cfg)
	if !errors.Is(err, disk.ErrInUse) {
		t.Fatalf("error %v, want ErrInUse", err)
	}
	for _, want := range []string{fmt.Sprint("process ", os.Getpid()), "registry on " + first.Addr().String()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
}

func TestR15_TwoServersShareNoDirectory(t *testing.T) {
	for _, c := range []struct {
		name   string
		second func(t *testing.T, first Config, second *Config)
	}{
		{"the data directory", func(_ *testing.T, first Config, second *Config) { second.Data = first.Data }},
		{"the data directory, storage elsewhere", func(t *testing.T, first Config, second *Config) {
			second.Data, second.Storage = first.Data, "file:"+filepath.Join(t.TempDir(), "s")
		}},
		{"the data directory through a link, storage elsewhere", func(t *testing.T, first Config, second *Config) {
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(first.Data, link); err != nil {
				t.Fatal(err)
			}
			second.Data, second.Storage = link, "file:"+filepath.Join(t.TempDir(), "s")
		}},
		{"the database with another data directory", func(_ *testing.T, first Config, second *Config) {
			second.Database = "sqlite:" + filepath.Join(first.Data, "fairway.db")
		}},
		{"the database through a link", func(t *testing.T, first Config, second *Config) {
			link := filepath.Join(t.TempDir(), "link.db")
			if err := os.Symlink(filepath.Join(first.Data, "fairway.db"), link); err != nil {
				t.Fatal(err)
			}
			second.Database = "sqlite:" + link
		}},
		{"the storage with another data directory", func(_ *testing.T, first Config, second *Config) {
			second.Storage = "file:" + first.Data
		}},
		{"the directory of the objects through a link", func(t *testing.T, first Config, second *Config) {
			if err := os.Mkdir(second.Data, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(first.Data, "blobs"), filepath.Join(second.Data, "blobs")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			first, second := testConfig(t), testConfig(t)
			r := mustOpen(t, first)
			c.second(t, first, &second)
			wantInUse(t, second, r)
		})
	}
}

func TestR15_AClosedServerLeavesItsDirectoriesFree(t *testing.T) {
	cfg := testConfig(t)
	cfg.Database = "sqlite:" + filepath.Join(t.TempDir(), "deep", "fairway.db")
	if err := mustOpen(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, cfg)
	if _, err := os.Stat(filepath.Join(cfg.Data, "fairway.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a database in the data directory although it is elsewhere: %v", err)
	}
}

func TestOpen_StorageElsewhere(t *testing.T) {
	cfg := testConfig(t)
	cfg.Storage = "file://" + filepath.Join(t.TempDir(), "blobs-here")
	mustOpen(t, cfg)
	if _, err := os.Stat(filepath.Join(strings.TrimPrefix(cfg.Storage, "file://"), "blobs")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, "fairway.db")); err != nil {
		t.Error(err)
	}
}

func TestOpen_WhatFailsLeavesNothingOpen(t *testing.T) {
	cfg := testConfig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen = ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.Data, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, cfg); err == nil {
		t.Fatal("a file was taken for a data directory")
	}
	if err := os.Remove(cfg.Data); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, cfg)
}

func TestOpen_AddressOfTheNetworkNeedsTheFlag(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", ":0", "[::]:0", "registry.example:0"} {
		cfg := testConfig(t)
		cfg.Listen = listen
		var bad *setting.Error
		if _, err := open(t, cfg); !errors.As(err, &bad) || bad.Key != "listen" || !strings.Contains(bad.Reason, "--allow-anyone-on-the-network") {
			t.Errorf("%s: error %v", listen, err)
		}
	}
	cfg := testConfig(t)
	cfg.Listen, cfg.AllowAnyone = "0.0.0.0:0", true
	mustOpen(t, cfg)
}

func TestReadyz_FollowsTheServer(t *testing.T) {
	r := mustOpen(t, testConfig(t))
	if w := ask(r, "/readyz"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("before Run: status %d", w.Code)
	}
	if w := ask(r, "/healthz"); w.Code != http.StatusOK {
		t.Errorf("healthz before Run: status %d", w.Code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	res, err := http.Get("http://" + r.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	if _ = res.Body.Close(); res.StatusCode != http.StatusOK || string(body) != "ready\n" {
		t.Errorf("while it runs: status %d, %q", res.StatusCode, body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if w := ask(r, "/readyz"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("after Run: status %d", w.Code)
	}
	r.ready.Store(true)
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	if w := ask(r, "/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "database") {
		t.Errorf("with its database gone: status %d, %q", w.Code, w.Body)
	}
}

func TestRun_AnUploadUnderWayMayFinishAfterTheEnd(t *testing.T) {
	r := mustOpen(t, testConfig(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	body, send := io.Pipe()
	const digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.Addr().String()+"/v2/a/blobs/uploads/?digest="+digest, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	answered := make(chan int, 1)
	go func() {
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			answered <- 0
			return
		}
		_ = res.Body.Close()
		answered <- res.StatusCode
	}()
	if _, err := send.Write([]byte("he")); err != nil {
		t.Fatal(err)
	}
	// The server has begun to read it once the metric counts it in flight.
	for deadline := time.Now().Add(time.Minute); !strings.Contains(ask(r, "/metrics").Body.String(), "fairway_http_requests_in_flight 2"); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the upload was not seen in time")
		}
	}
	cancel()
	if _, err := send.Write([]byte("llo")); err != nil {
		t.Fatal(err)
	}
	if err := send.Close(); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != http.StatusCreated {
		t.Errorf("status %d, want 201", status)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestOperations_AreServed(t *testing.T) {
	cfg := testConfig(t)
	r := mustOpen(t, cfg)
	for path, want := range map[string]int{
		"/metrics": 200, "/healthz": 200, "/": 200, "/nothing": 404, "/debug/pprof/": 404, "/api/v1/version": 200,
	} {
		if w := ask(r, path); w.Code != want {
			t.Errorf("GET %s: status %d, want %d", path, w.Code, want)
		}
	}
	for _, metric := range []string{
		"fairway_http_requests_total", "fairway_http_response_bytes_total", "fairway_gc_review_queue_length", "fairway_gc_oldest_review_age_seconds",
		"fairway_gc_freed_bytes_total", "fairway_gc_run_duration_seconds", "process_resident_memory_bytes", "go_goroutines",
	} {
		if !strings.Contains(ask(r, "/metrics").Body.String(), "\n"+metric) {
			t.Errorf("there is no metric %s", metric)
		}
	}
	cfg = testConfig(t)
	cfg.Pprof = true
	if w := ask(mustOpen(t, cfg), "/debug/pprof/"); w.Code != 200 {
		t.Errorf("pprof with its flag: status %d", w.Code)
	}
}

func TestHandler_PathsReachTheOCIFaceAsTheyWereSent(t *testing.T) {
	r := mustOpen(t, testConfig(t))
	for _, path := range []string{"/v2//manifests/x", "/v2/a/../b/manifests/x", "/v2/a//tags/list"} {
		if w := ask(r, path); w.Code >= 300 && w.Code < 400 {
			t.Errorf("GET %s is redirected to %s", path, w.Header().Get("Location"))
		}
	}
	if w := ask(r, "/v2/"); w.Code != 200 {
		t.Errorf("GET /v2/: status %d", w.Code)
	}
}

func TestHandler_APageOfAnotherOriginPushesNothing(t *testing.T) {
	r := mustOpen(t, testConfig(t))
	for header, want := range map[string]int{"Sec-Fetch-Site: cross-site": 403, "Origin: http://evil.example": 403, "Accept: */*": 202} {
		req := httptest.NewRequest(http.MethodPost, "http://localhost/v2/a/blobs/uploads/", nil)
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
		w := httptest.NewRecorder()
		if r.observer.Wrap(r.handler()).ServeHTTP(w, req); w.Code != want || want == 403 && !strings.Contains(w.Body.String(), `"DENIED"`) {
			t.Errorf("%s: status %d, want %d: %s", header, w.Code, want, w.Body)
		}
	}
}

func TestHandler_APageUnderANameThatWasPointedHereDoesNothing(t *testing.T) {
	cfg := testConfig(t)
	cfg.Hosts = setting.HostList{"registry.example"}
	r := mustOpen(t, cfg)
	open := testConfig(t)
	open.Listen, open.AllowAnyone = "0.0.0.0:0", true
	network := mustOpen(t, open)
	browser := "User-Agent: Mozilla/5.0 (X11; Linux x86_64)"
	for _, c := range []struct {
		server             *Registry
		method, path, host string
		header             string
		denied             bool
	}{
		{r, "GET", "/v2/_catalog", "evil.example:5000", browser, true},
		{r, "GET", "/v2/", "evil.example:5000", "Sec-Fetch-Site: same-origin", true},
		{r, "PUT", "/v2/a/manifests/v1", "evil.example:5000", "Origin: http://evil.example:5000", true},
		{r, "DELETE", "/v2/a/manifests/v1", "evil.example:5000", browser, true},
		{r, "GET", "/metrics", "evil.example:5000", browser, true},
		{r, "GET", "/api/v1/version", "evil.example:5000", browser, true},
		// Nothing that a page can choose makes a difference.
		{r, "GET", "/v2/", "evil.example:5000", "User-Agent: containerd/2.0", true},
		{r, "DELETE", "/v2/a/manifests/v1", "evil.example:5000", "User-Agent: ", true},
		{r, "GET", "/v2/", "evil.example:5000", "Accept: */*", true},
		{r, "GET", "/v2/", "", "Accept: */*", false}, // no browser leaves it out
		{r, "GET", "/v2/", "[::1]:5000", browser, false},
		{r, "GET", "/v2/", "127.0.0.1:5000", browser, false},
		{r, "GET", "/v2/", "localhost:5000", browser, false},
		{r, "GET", "/v2/", "registry.example", browser, false},
		{network, "GET", "/v2/", "evil.example:5000", browser, false},
	} {
		req := httptest.NewRequest(c.method, c.path, nil)
		req.Host = c.host
		name, value, _ := strings.Cut(c.header, ": ")
		req.Header.Set(name, value)
		w := httptest.NewRecorder()
		c.server.observer.Wrap(c.server.handler()).ServeHTTP(w, req)
		if denied := w.Code == http.StatusForbidden && (strings.Contains(w.Body.String(), `"code":"DENIED"`) || strings.HasPrefix(c.path, "/api/")); denied != c.denied {
			t.Errorf("%s %s at %s with %s: status %d, want denied %v: %s", c.method, c.path, c.host, c.header, w.Code, c.denied, w.Body)
		}
		if v2 := strings.HasPrefix(c.path, "/v2/"); v2 && w.Header().Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("%s %s at %s: header %v", c.method, c.path, c.host, w.Header())
		}
	}
}

func TestHandler_PagesOfOtherOrigins(t *testing.T) {
	const page = "https://ui.example"
	off, listed, anyone := testConfig(t), testConfig(t), testConfig(t)
	listed.CORSOrigins, anyone.CORSOrigins = setting.OriginList{page}, setting.OriginList{"*"}
	servers := map[string]*Registry{"off": mustOpen(t, off), "listed": mustOpen(t, listed), "anyone": mustOpen(t, anyone)}
	for _, c := range []struct {
		server, method, origin string
		status                 int // of a request for a manifest that is not there
		allowed, methods       string
	}{
		{"off", "GET", page, 404, "", ""},
		{"off", "OPTIONS", page, 405, "", ""},
		{"off", "DELETE", page, 403, "", ""},
		{"listed", "GET", page, 404, page, ""},
		{"listed", "DELETE", page, 404, page, ""},
		{"listed", "OPTIONS", page, 204, page, "GET, HEAD, POST, PUT, PATCH, DELETE"},
		{"listed", "GET", "https://evil.example", 404, "", ""},
		{"listed", "OPTIONS", "https://evil.example", 405, "", ""},
		{"listed", "DELETE", "https://evil.example", 403, "", ""},
		{"anyone", "GET", page, 404, "*", ""},
		{"anyone", "OPTIONS", page, 204, "*", "GET, HEAD"},
		{"anyone", "DELETE", page, 403, "*", ""},
		{"listed", "GET", "", 404, "", ""},
		{"listed", "DELETE", "", 404, "", ""},
	} {
		req := httptest.NewRequest(c.method, "/v2/a/manifests/v1", nil)
		req.Host = "localhost:5000"
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		if c.method == http.MethodOptions {
			req.Header.Set("Access-Control-Request-Method", "DELETE")
		}
		w := httptest.NewRecorder()
		r := servers[c.server]
		r.observer.Wrap(r.handler()).ServeHTTP(w, req)
		h := w.Header()
		if w.Code != c.status || h.Get("Access-Control-Allow-Origin") != c.allowed || h.Get("Access-Control-Allow-Methods") != c.methods {
			t.Errorf("%s: %s from %q: status %d, headers %v; want %d, %q, %q", c.server, c.method, c.origin, w.Code, h, c.status, c.allowed, c.methods)
		}
		if exposed := strings.Contains(h.Get("Access-Control-Expose-Headers"), "Docker-Content-Digest"); exposed != (c.allowed != "") {
			t.Errorf("%s: %s from %q: exposed %q", c.server, c.method, c.origin, h.Get("Access-Control-Expose-Headers"))
		}
		if vary := h.Get("Vary") == "Origin"; vary != (c.server != "off") {
			t.Errorf("%s: %s from %q: Vary %q", c.server, c.method, c.origin, h.Get("Vary"))
		}
	}
}

func TestOpen_MoreThanTheDiskHasIsRefused(t *testing.T) {
	for key, change := range map[string]func(*Config){
		"reserve":  func(c *Config) { c.Reserve = 1 << 62 },
		"min_free": func(c *Config) { c.MinFree = 1 << 62 },
	} {
		cfg := testConfig(t)
		change(&cfg)
		var bad *setting.Error
		if _, err := open(t, cfg); !errors.As(err, &bad) || bad.Key != key || !strings.Contains(bad.Reason, "disk") {
			t.Errorf("%s: error %v", key, err)
		}
	}
}

func TestOpen_ADiskTooFullForUploadsIsWarnedOf(t *testing.T) {
	cfg := testConfig(t)
	var disk unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &disk); err != nil {
		t.Fatal(err)
	}
	cfg.MinFree = unit.Size(int64(disk.Blocks)*disk.Bsize - 1<<20)
	var lines bytes.Buffer
	r, err := Open(t.Context(), cfg, slog.New(slog.NewTextHandler(&lines, nil)), adminapi.Version{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(lines.String(), "level=WARN") || !strings.Contains(lines.String(), "min_free") {
		t.Errorf("log: %s", lines.String())
	}
}

func TestValidate_PortsThatAreNone(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:no such port"} {
		cfg := testConfig(t)
		cfg.Listen = listen
		var bad *setting.Error
		if err := cfg.Validate(); !errors.As(err, &bad) || bad.Key != "listen" {
			t.Errorf("%s: error %v", listen, err)
		}
	}
}

// The machine's clock is three years ahead at one start. Seen from the database
// that is the same as a database whose every time is three years older.
func TestR14_ClockYearsAheadAtOneStartEndsNothing(t *testing.T) {
	const years = 3 * 365 * 24 * time.Hour
	ctx := context.Background()
	cfg := testConfig(t)
	cfg.GC.Interval = 0
	r := mustOpen(t, cfg)
	u, err := r.store.CreateUpload(ctx, "a", "sha256")
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[]}`)
	m, err := oci.ParseManifest("", raw)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(raw)
	if _, err := r.store.PutManifest(ctx, meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: d, Manifest: m, Content: raw}); err != nil {
		t.Fatal(err)
	}
	if err := r.store.DeleteManifest(ctx, "a", d, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.PutLease(ctx, "somebody", []oci.Digest{d}, time.Hour.Milliseconds()); err != nil {
		t.Fatal(err)
	}
	older := func() {
		t.Helper()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("sqlite", filepath.Join(cfg.Data, "fairway.db"))
		if err != nil {
			t.Fatal(err)
		}
		ms := years.Milliseconds()
		for _, q := range []string{
			"UPDATE clock SET seen = seen - ?", "UPDATE uploads SET touched_at = touched_at - ?", "UPDATE trash SET trashed_at = trashed_at - ?",
			"UPDATE manifests SET trashed_at = trashed_at - ?", "UPDATE leases SET expires_at = expires_at - ?", "UPDATE lease_digests SET expires_at = expires_at - ?",
		} {
			if _, err := db.ExecContext(ctx, q, ms); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	collect := func() meta.Run {
		t.Helper()
		run, err := r.collector.Start(ctx, cfg.Policy(), gc.TriggerManual, "test")
		if err != nil {
			t.Fatal(err)
		}
		if run, err = r.collector.Wait(ctx, run.ID); err != nil {
			t.Fatal(err)
		}
		return run
	}
	older()
	var log bytes.Buffer
	if r, err = Open(ctx, cfg, slog.New(slog.NewTextHandler(&log, nil)), adminapi.Version{}); err != nil {
		t.Fatal(err)
	}
	if run := collect(); run.Collected != 0 {
		t.Errorf("the run after the jump collected %d items", run.Collected)
	}
	if _, err := r.store.Upload(ctx, "a", u.ID); err != nil {
		t.Errorf("the upload after the jump: %v", err)
	}
	if ls, _, err := r.store.Leases(ctx, meta.LeasePage{N: 10, Digests: 10}); err != nil || len(ls) != 1 {
		t.Errorf("the leases after the jump: %v, %v", ls, err)
	}
	st, err := r.collector.Status(ctx)
	if err != nil || st.ClockBehindMS < years.Milliseconds()/2 {
		t.Errorf("the status says that the clock is %d ms behind, %v", st.ClockBehindMS, err)
	}
	if !strings.Contains(log.String(), "trust_clock") {
		t.Errorf("the log does not report the jump: %s", log.String())
	}
	if metrics := ask(r, "/metrics").Body.String(); !strings.Contains(metrics, "\nfairway_clock_behind_seconds 9.") {
		t.Error("the metrics do not report the jump")
	}
	if _, err := r.store.Restore(ctx, "a", d, "test"); err != nil {
		t.Errorf("restore after the jump: %v", err)
	}
	if err := r.store.DeleteManifest(ctx, "a", d, "test"); err != nil {
		t.Fatal(err)
	}

	// The server was really down for that long: this is for its operator to say.
	older()
	cfg.TrustClock = true
	if r, err = open(t, cfg); err != nil {
		t.Fatal(err)
	}
	if run := collect(); run.Collected != 2 {
		t.Errorf("a run by a clock that is to be trusted collected %d items, want the manifest and the upload", run.Collected)
	}
}

func TestR14_LongestPeriodIsBelieved(t *testing.T) {
	for what, set := range map[string]func(*GC){
		"window": func(c *GC) { c.Window = unit.Duration(30 * 24 * time.Hour) }, "trash": func(c *GC) { c.Trash = unit.Duration(30 * 24 * time.Hour) },
		"stranded": func(c *GC) { c.Stranded = unit.Duration(30 * 24 * time.Hour) },
		"untagged": func(c *GC) { c.Untagged = unit.Duration(30 * 24 * time.Hour) }, "uploads": func(c *GC) { c.Uploads = unit.Duration(30 * 24 * time.Hour) },
		"node_grace": func(c *GC) { c.Node = unit.Duration(30 * 24 * time.Hour) },
	} {
		c := Default()
		if d := c.jumpMax(); d != 7*24*time.Hour {
			t.Errorf("the longest period of the defaults is %s, want a week", d)
		}
		if set(&c.GC); c.jumpMax() != 30*24*time.Hour {
			t.Errorf("%s of 30 days: the longest period is %s", what, c.jumpMax())
		}
	}
}

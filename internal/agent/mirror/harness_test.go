package mirror_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/mirror"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// node is a mirror over a real cache, in front of upstreams.
type node struct {
	t       testing.TB
	o       nodeOptions
	dir     string
	index   *index.Index
	store   *piece.Store
	fetch   *fetch.Fetcher
	mirror  *mirror.Mirror
	http    *httptest.Server
	metrics *prometheus.Registry
	log     *logBuffer
	clock   *clock
	failing bool // the index, on purpose

	impatient atomic.Bool // waits for no header
}

// hasty is a transport that gives an upstream no time to answer while the test says so.
type hasty struct {
	http.RoundTripper
	now *atomic.Bool
}

type hasteError struct{}

func (hasteError) Error() string { return "no header came" }
func (hasteError) Timeout() bool { return true }

func (h hasty) RoundTrip(r *http.Request) (*http.Response, error) {
	if !h.now.Load() {
		return h.RoundTripper.RoundTrip(r)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	late := time.AfterFunc(200*time.Millisecond, func() { cancel(hasteError{}) })
	defer late.Stop()
	res, err := h.RoundTripper.RoundTrip(r.WithContext(ctx))
	if err != nil && errors.Is(context.Cause(ctx), hasteError{}) {
		return nil, hasteError{}
	}
	return res, err
}

const tagTTL = 30 * time.Second

type nodeOptions struct {
	dir       string // "": a new one
	quota     int64
	creds     ociclient.Credentials
	holders   []fetch.Holder
	linger    time.Duration
	idle      time.Duration
	hold      time.Duration // 0: none
	peers     mirror.Peers
	header    time.Duration
	upstreams []*upstream         // the first is the default
	as        []string            // other names of them
	bases     map[string]*url.URL // where they are instead
}

// clock is what the mirror takes for the time.
type clock struct {
	mu    sync.Mutex
	shift time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.shift)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shift += d
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t testing.TB, o nodeOptions) *node {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	n := &node{t: t, o: o, dir: o.dir, log: &logBuffer{}, clock: &clock{}}
	n.open()
	t.Cleanup(n.close)
	return n
}

func (n *node) open() {
	n.t.Helper()
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.metrics = prometheus.NewRegistry()
	var err error
	if n.index, err = index.Open(ctx, index.Options{Path: filepath.Join(n.dir, "index.db"), Log: log}); err != nil {
		n.t.Fatal(err)
	}
	n.store, err = piece.Open(ctx, piece.Options{Dir: n.dir, Index: n.index, Limits: piece.Limits{Quota: n.o.quota}, Log: log, Metrics: n.metrics})
	if err != nil {
		n.t.Fatal(err)
	}
	bases := map[string]*url.URL{}
	for i, u := range n.o.upstreams {
		name := u.name()
		if i < len(n.o.as) {
			name = n.o.as[i]
		}
		if bases[name], err = url.Parse(u.URL); err != nil {
			n.t.Fatal(err)
		}
	}
	maps.Copy(bases, n.o.bases)
	ups := ociclient.NewUpstreams(ociclient.UpstreamsOptions{
		Bases: bases, Credentials: n.o.creds, Log: log, Idle: n.o.idle, Now: n.clock.now,
		Transport: hasty{ociclient.NewTransport(ociclient.TransportOptions{Header: n.o.header}), &n.impatient},
	})
	up := fetch.NewUpstream(fetch.UpstreamOptions{Upstreams: ups, Idle: n.o.idle, Pause: time.Millisecond, Log: log, Metrics: n.metrics,
		Gave: func(w fetch.Want, anonymous bool) { n.mirror.Gave(w, anonymous) }})
	n.fetch = fetch.New(fetch.Options{
		Store: n.store, Index: n.index, Fillers: []fetch.Filler{up}, Origin: up, Holders: func() []fetch.Holder { return n.o.holders },
		Linger: n.o.linger, Log: log, Metrics: n.metrics,
	})
	observer := httpserve.NewObserver(httpserve.ObserverOptions{Log: log})
	def := ""
	if len(n.o.upstreams) > 0 {
		def = n.o.upstreams[0].name()
		if len(n.o.as) > 0 {
			def = n.o.as[0]
		}
	}
	n.mirror = mirror.New(mirror.Options{
		Upstreams: ups, Default: def, Fetch: n.fetch, Peers: n.o.peers, Store: n.store, Index: n.index,
		Hold: cmp.Or(n.o.hold, -1), TagTTL: tagTTL, StaleMax: 24 * time.Hour, GrantTTL: 5 * time.Minute,
		Log: log, Metrics: n.metrics, Observer: observer, Now: n.clock.now,
	})
	n.http = httptest.NewServer(observer.Wrap(n.mirror))
}

func (n *node) close() {
	n.http.CloseClientConnections()
	n.http.Close()
	n.fetch.Close()
	if err := n.store.Close(); err != nil && !n.failing {
		n.t.Errorf("close the cache: %v", err)
	}
	if err := n.index.Close(); err != nil && !n.failing {
		n.t.Errorf("close the index: %v", err)
	}
}

func (n *node) restart() {
	n.t.Helper()
	n.close()
	n.open()
}

type answer struct {
	t      testing.TB
	what   string
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

func (n *node) do(method, path string, header ...string) *answer {
	n.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, n.http.URL+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := n.http.Client().Do(req)
	if err != nil {
		n.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return &answer{n.t, method + " " + path, res.StatusCode, res.Header, body, err}
}

func (n *node) get(path string, header ...string) *answer {
	n.t.Helper()
	return n.do(http.MethodGet, path, header...)
}

// begin asks for a range, reads the first bytes of the answer and leaves.
func (n *node) begin(path, rng string, first int) *answer {
	n.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, n.http.URL+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	res, err := n.http.Client().Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body := make([]byte, first)
	_, err = io.ReadFull(res.Body, body)
	return &answer{n.t, "GET " + path + " " + rng, res.StatusCode, res.Header, body, err}
}

func (a *answer) want(status int) *answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d; body %.300s", a.what, a.status, status, a.body)
	}
	return a
}

func (a *answer) wantHeader(name, value string) *answer {
	a.t.Helper()
	if got := a.header.Get(name); got != value {
		a.t.Errorf("%s: header %s is %q, want %q", a.what, name, got, value)
	}
	return a
}

func (a *answer) wantBody(want []byte) *answer {
	a.t.Helper()
	if a.err != nil {
		a.t.Fatalf("%s: the body breaks off after %d bytes: %v", a.what, len(a.body), a.err)
	}
	if !bytes.Equal(a.body, want) {
		a.t.Errorf("%s: body has %d bytes %.60q, want %d bytes %.60q", a.what, len(a.body), a.body, len(want), want)
	}
	return a
}

// wantError fails the test unless the answer is an error in the specification's form.
func (a *answer) wantError(status int, code string) *answer {
	a.t.Helper()
	a.want(status)
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &body); err != nil || len(body.Errors) != 1 {
		a.t.Fatalf("%s: no error in the spec's form: %v; %.300s", a.what, err, a.body)
	}
	if body.Errors[0].Code != code || body.Errors[0].Message == "" {
		a.t.Errorf("%s: error %+v, want the code %s", a.what, body.Errors[0], code)
	}
	return a
}

// pull gets an image as a runtime does and checks all of it.
func (n *node) pull(query, name, tag string, i image, header ...string) {
	n.t.Helper()
	base := "/v2/" + name
	m := n.get(base+"/manifests/"+tag+query, header...).want(200).wantBody(i.content).wantHeader("Docker-Content-Digest", string(i.digest))
	_ = m
	n.get(base+"/blobs/"+string(i.config)+query, header...).want(200)
	for k, l := range i.layers {
		n.get(base+"/blobs/"+string(l)+query, header...).want(200).wantBody(i.bytes[k])
	}
}

// metric is the sum of a metric's series whose labels contain all pairs given.
func (n *node) metric(name string, labels ...string) (sum float64) {
	n.t.Helper()
	families, err := n.metrics.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for k := 0; k+1 < len(labels); k += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[k] && l.GetValue() == labels[k+1]
				}
				if !found {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func isBlob(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet
}

// stacks tells what all goroutines do.
func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// find returns the name of a file below dir that contains text, "" if none does.
func find(t testing.TB, dir, text string) (where string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			where = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return where
}

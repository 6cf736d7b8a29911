package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fairway-registry/fairway/internal/daemon"
)

// upstream is a real registry (`fairway serve`) behind a proxy that counts what
// is asked for and, when told, breaks the answers. The runtimes and the agent
// know it by the address of the proxy.
type upstream struct {
	t     testing.TB
	host  string // HOST:PORT of the proxy
	url   string
	data  string // of the registry, if it is the test's own
	admin string // URL of the registry itself

	mu       sync.Mutex
	requests []string
	sent     map[string]int64 // bytes of bodies, by the last element of the path
	fault    fault
	fillers  int // that the test has asked for
}

// fault breaks the answer to a request; it says false when it lets it pass. It
// runs in the proxy, beside the test.
type fault func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool

// shared is the registry behind the proxies of most tests: what one test pushed
// another need not push again.
var shared struct {
	sync.Mutex
	addr string
	proc *daemon.Process
	log  logBuffer
}

// startUpstream gives a test a proxy of its own before the shared registry.
func startUpstream(t testing.TB) *upstream {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.proc == nil {
		shared.addr, shared.proc = serve(t, filepath.Join(scratch, "registry"), &shared.log)
	}
	u := &upstream{t: t, sent: map[string]int64{}, admin: "http://" + shared.addr}
	u.proxy(shared.addr)
	return u
}

// startOwnUpstream starts a registry for one test, which may collect there.
func startOwnUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{t: t, data: t.TempDir(), sent: map[string]int64{}}
	addr, proc := serve(t, u.data, newLog(t, "the registry"))
	t.Cleanup(proc.Kill)
	u.admin = "http://" + addr
	u.proxy(addr)
	return u
}

func serve(t testing.TB, data string, log *logBuffer) (addr string, proc *daemon.Process) {
	t.Helper()
	addr, err := daemon.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	proc, err = daemon.Start(ctx, daemon.Options{
		Path: fairway, Args: []string{"serve", "--data", data, "--listen", addr, "--gc-interval", "0"},
		Log: log, Ready: "http://" + addr + "/readyz",
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return addr, proc
}

func (u *upstream) proxy(addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		u.t.Fatal(err)
	}
	u.host, u.url = l.Addr().String(), "http://"+l.Addr().String()
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	pass.FlushInterval = -1
	pass.ErrorLog = nil
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.requests = append(u.requests, r.Method+" "+r.URL.Path)
		f := u.fault
		u.mu.Unlock()
		w = counted{w, u, path.Base(r.URL.Path)}
		if f == nil || !f(w, r, pass) {
			pass.ServeHTTP(w, r)
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // until it is closed
	}()
	u.t.Cleanup(func() {
		_ = server.Close() // with whatever hangs in it
		<-done
	})
}

// breaks sets the fault, nil for none.
func (u *upstream) breaks(f fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fault = f
}

// asked counts the requests of a method whose path ends so.
func (u *upstream) asked(method, suffix string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, r := range u.requests {
		if strings.HasPrefix(r, method+" ") && strings.HasSuffix(r, suffix) {
			n++
		}
	}
	return n
}

// down is a fault: connections are accepted and closed.
func down(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
	return true
}

// blobFault is a fault of the bodies of blob GETs only.
func blobFault(d digest.Digest, body func(w http.ResponseWriter, r *http.Request, resp *http.Response)) fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+d.String()) {
			return false
		}
		recorded, end := record(r, pass)
		defer end()
		for k, v := range recorded.Header {
			w.Header()[k] = v
		}
		body(w, r, recorded)
		return true
	}
}

// record runs a handler and gives what it writes as a response with a body to
// stream from. end stops it.
func record(r *http.Request, h http.Handler) (resp *http.Response, end func()) {
	ctx, cancel := context.WithCancel(r.Context())
	pr, pw := io.Pipe()
	rec := &recorder{header: http.Header{}, w: pw, began: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }() // the reverse proxy panics with ErrAbortHandler when its reader is gone
		defer rec.once.Do(func() { close(rec.began) })
		h.ServeHTTP(rec, r.WithContext(ctx))
		_ = pw.Close() // never fails
	}()
	<-rec.began
	return &http.Response{StatusCode: rec.status, Header: rec.header, Body: pr}, func() {
		cancel()
		_ = pr.Close() // never fails
		<-done
	}
}

type recorder struct {
	header http.Header
	status int
	w      io.Writer
	once   sync.Once
	began  chan struct{}
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	r.once.Do(func() {
		r.status = status
		r.header = r.header.Clone()
		close(r.began)
	})
}

func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.w.Write(p)
}

// push pushes an image and returns the name that it is pulled by.
func (u *upstream) push(im image) string {
	u.t.Helper()
	run(u.t, "crane", "push", "--insecure", "--index", im.dir, u.host+"/"+im.repo)
	return u.host + "/" + im.repo
}

// fairwayJSON runs a command of fairway with --json and parses what it prints.
func fairwayJSON[T any](t testing.TB, args ...string) T {
	t.Helper()
	out := run(t, fairway, append(args, "--json")...)
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("fairway %s --json: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// collect collects everything that is garbage, without window and trash.
func (u *upstream) collect() {
	u.t.Helper()
	r := fairwayJSON[struct {
		Failed int64 `json:"failed"`
	}](u.t, "gc", "run", "--server", u.admin, "--window", "0", "--trash", "0")
	if r.Failed != 0 {
		u.t.Errorf("the collection failed on %d items", r.Failed)
	}
}

// stores says whether the registry's directory holds the bytes of a blob. Its
// files have names of their own, so the bytes are looked at.
func (u *upstream) stores(want v1.Descriptor) bool {
	u.t.Helper()
	found := false
	err := filepath.WalkDir(filepath.Join(u.data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() != want.Size {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || digest.FromBytes(b) == want.Digest
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.t.Fatal(err)
	}
	return found
}

// repoOf is the repository of an image, without its tag.
func (u *upstream) repoOf(im image) string {
	repo, _, _ := strings.Cut(im.repo, ":")
	return repo
}

// forget drops what has been counted.
func (u *upstream) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.requests, u.sent = nil, map[string]int64{}
}

// bodyBytes is how much of a blob was sent.
func (u *upstream) bodyBytes(d digest.Digest) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent[d.String()]
}

// counted counts what goes to a client, by the last element of the path.
type counted struct {
	http.ResponseWriter
	u   *upstream
	key string
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	c.u.sent[c.key] += int64(n)
	return n, err
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// stallAfter is a fault's body: it sends n bytes, says so, and waits for release
// or for the reader to go. Then the connection breaks.
func stallAfter(n int64, reached chan<- struct{}, release <-chan struct{}) func(http.ResponseWriter, *http.Request, *http.Response) {
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request, resp *http.Response) {
		w.WriteHeader(resp.StatusCode)
		_, _ = io.CopyN(w, resp.Body, n) // the reader may have gone
		_ = http.NewResponseController(w).Flush()
		once.Do(func() { close(reached) })
		select {
		case <-release:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
}

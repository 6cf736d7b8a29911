package httpserve

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairway-registry/fairway/internal/fault"
)

// lines collects log records that were written as JSON.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) all(t *testing.T) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	dec := json.NewDecoder(bytes.NewReader(l.buf.Bytes()))
	for {
		var m map[string]any
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
}

func observe(level Level, reg prometheus.Registerer) (*Observer, *lines) {
	log := &lines{}
	return NewObserver(ObserverOptions{Log: slog.New(slog.NewJSONHandler(log, nil)), Level: level, Metrics: reg}), log
}

// start serves h under observation.
func start(t *testing.T, o *Observer, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(o.Wrap(h))
	t.Cleanup(s.Close)
	return s
}

// send sends a request and returns the answer with its body read.
func send(t *testing.T, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestRequestID_ASaneOneIsKeptAndAnyOtherReplaced(t *testing.T) {
	o, _ := observe(LogNone, nil)
	s := start(t, o, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, RequestID(w)) })
	for given, keep := range map[string]bool{
		"abc-DEF_1.2": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "a b": false, "a\"b": false, "ä": false, "a=b": false,
	} {
		res, body := send(t, "GET", s.URL, nil, "X-Request-Id", given)
		got := res.Header.Get("X-Request-Id")
		if got != body || got == "" || (got == given) != keep {
			t.Errorf("given %q: header %q, handler saw %q; kept should be %v", given, got, body, keep)
		}
	}
}

func TestRequestID_NewOnesDiffer(t *testing.T) {
	a, b := newIDSource(), newIDSource()
	seen := map[string]bool{}
	for range 1000 {
		for _, src := range []idSource{a, b} {
			id := src.of(&http.Request{})
			if seen[id] || !saneID(id) {
				t.Fatalf("id %q: seen before: %v", id, seen[id])
			}
			seen[id] = true
		}
	}
}

func TestAccessLog_LevelsChooseRequests(t *testing.T) {
	type request struct {
		method string
		status int
	}
	all := []request{{"GET", 200}, {"HEAD", 200}, {"GET", 404}, {"PUT", 201}, {"POST", 500}}
	for name, want := range map[string][]request{
		"none":   nil,
		"errors": {{"GET", 404}, {"POST", 500}},
		"writes": {{"GET", 404}, {"PUT", 201}, {"POST", 500}},
		"":       {{"GET", 404}, {"PUT", 201}, {"POST", 500}},
		"all":    all,
	} {
		level, err := ParseLevel(name)
		if err != nil {
			t.Fatal(err)
		}
		o, log := observe(level, nil)
		for _, r := range all {
			w := httptest.NewRecorder()
			o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(r.status) })).
				ServeHTTP(w, httptest.NewRequest(r.method, "/p", nil))
		}
		got := log.all(t)
		if len(got) != len(want) {
			t.Errorf("level %q: %d lines, want %d: %v", name, len(got), len(want), got)
			continue
		}
		for i, w := range want {
			if got[i]["method"] != w.method || got[i]["status"] != float64(w.status) {
				t.Errorf("level %q, line %d: %v, want %+v", name, i, got[i], w)
			}
			if wantLevel := map[bool]string{true: "ERROR", false: "INFO"}[w.status >= 500]; got[i]["level"] != wantLevel {
				t.Errorf("level %q, status %d is logged at %v", name, w.status, got[i]["level"])
			}
		}
	}
	if _, err := ParseLevel("loud"); err == nil {
		t.Error("level loud is accepted")
	}
}

func TestAccessLog_LineTellsWhatHappened(t *testing.T) {
	o, log := observe(LogWrites, nil)
	s := start(t, o, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		Note(w, errors.New("private cause"))
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "four")
	})
	res, _ := send(t, "PUT", s.URL+"/a/b?c=d", strings.NewReader("seven.."))
	eventually(t, func() bool { return len(log.all(t)) > 0 })
	line := log.all(t)[0]
	for key, want := range map[string]any{
		"id": res.Header.Get("X-Request-Id"), "method": "PUT", "path": "/a/b", "query": "c=d", "status": 418.0,
		"received": 7.0, "sent": 4.0, "err": "private cause",
	} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if took, ok := line["took_us"].(float64); !ok || took < 0 || took > float64(time.Minute.Microseconds()) {
		t.Errorf("took_us is %v, want microseconds", line["took_us"])
	}
}

// eventually waits for what another goroutine brings about.
func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("not within 10 s")
		}
		<-tick.C
	}
}

func TestPanic_Is500WithoutTheCauseAndTheServerLives(t *testing.T) {
	o, log := observe(LogNone, nil)
	s := start(t, o, func(http.ResponseWriter, *http.Request) { panic("secret") })
	for range 2 {
		res, body := send(t, "GET", s.URL, nil)
		if res.StatusCode != 500 || strings.Contains(body, "secret") || !strings.Contains(body, `"errors"`) {
			t.Errorf("status %d, body %s", res.StatusCode, body)
		}
	}
	if res, body := send(t, "HEAD", s.URL, nil); res.StatusCode != 500 || body != "" {
		t.Errorf("HEAD: status %d, body %q", res.StatusCode, body)
	}
	got := log.all(t)
	if len(got) != 3 || !strings.Contains(got[0]["err"].(string), "secret") || !strings.Contains(got[0]["err"].(string), "observer_test.go") {
		t.Errorf("the log has no cause with its stack: %v", got)
	}
}

func TestPanic_IsAnsweredByTheFace(t *testing.T) {
	o, log := observe(LogNone, nil)
	s := start(t, o, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/face" {
			OnPanic(w, func(w http.ResponseWriter, err error) {
				if err == nil || !strings.Contains(err.Error(), "secret") {
					t.Errorf("the face is told %v", err)
				}
				w.WriteHeader(500)
				_, _ = io.WriteString(w, "in its own words")
			})
		}
		panic("secret")
	})
	for range 3 { // the pool keeps nothing of one for the other
		for path, want := range map[string]string{"/face": "in its own words", "/": "errors"} {
			if res, body := send(t, "GET", s.URL+path, nil); res.StatusCode != 500 || !strings.Contains(body, want) {
				t.Errorf("%s: status %d, body %q, want %q", path, res.StatusCode, body, want)
			}
		}
	}
	if got := log.all(t); len(got) != 6 || !strings.Contains(got[0]["err"].(string), "secret") {
		t.Errorf("the log has no cause: %v", got)
	}
}

func TestPanic_AfterTheHeaderBreaksTheConnection(t *testing.T) {
	o, _ := observe(LogNone, nil)
	s := start(t, o, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		panic("secret")
	})
	res, err := http.Get(s.URL)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	if err == nil {
		t.Error("the client takes half an answer for a whole one")
	}
}

func TestMetrics_CountByRouteMethodAndCode(t *testing.T) {
	reg := prometheus.NewRegistry()
	o, _ := observe(LogNone, reg)
	route := o.Route("thing")
	s := start(t, o, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/thing" {
			Mark(w, route)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Method == "PUT" {
			w.WriteHeader(201)
		}
		_, _ = io.WriteString(w, "12345")
	})
	send(t, "GET", s.URL+"/thing", nil)
	send(t, "GET", s.URL+"/thing", nil)
	send(t, "PUT", s.URL+"/thing", strings.NewReader("123"))
	send(t, "GET", s.URL+"/else", nil)
	send(t, "BREW", s.URL+"/else", nil)
	scrape := func() string {
		w := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	want := strings.Split(`fairway_http_requests_total{code="200",method="GET",route="other"} 1
fairway_http_requests_total{code="200",method="GET",route="thing"} 2
fairway_http_requests_total{code="200",method="OTHER",route="other"} 1
fairway_http_requests_total{code="201",method="PUT",route="thing"} 1
fairway_http_request_bytes_total{method="PUT",route="thing"} 3
fairway_http_response_bytes_total{method="GET",route="thing"} 10
fairway_http_response_bytes_total{method="OTHER",route="other"} 5
fairway_http_request_duration_seconds_count{method="GET",route="thing"} 2
fairway_http_requests_in_flight 0
`, "\n")
	missing := func() (lines []string) {
		got := scrape()
		for _, line := range want {
			if !strings.Contains(got, line+"\n") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	deadline := time.Now().Add(time.Minute) // the count follows the answer
	for len(missing()) > 0 && time.Now().Before(deadline) {
		<-time.After(time.Millisecond)
	}
	if lines := missing(); len(lines) > 0 {
		t.Errorf("missing %q in\n%s", lines, scrape())
	}
	if got := scrape(); strings.Count(got, "fairway_http_requests_total{") != 4 {
		t.Errorf("more series than requests seen:\n%s", got)
	}
}

func TestStatus_EachKindHasItsOwn(t *testing.T) {
	for kind, want := range map[fault.Kind]int{
		fault.NotFound: 404, fault.Conflict: 409, fault.Invalid: 400, fault.Denied: 403, fault.Busy: 503, fault.Full: 507, fault.Internal: 500,
	} {
		if got := Status(fault.New(kind, "x")); got != want {
			t.Errorf("%s: status %d, want %d", kind, got, want)
		}
	}
	if got := Status(errors.New("x")); got != 500 {
		t.Errorf("an unknown error: status %d, want 500", got)
	}
	if got := Status(&http.MaxBytesError{}); got != 413 {
		t.Errorf("a body that is too large: status %d, want 413", got)
	}
}

// fileConn notes whether the connection is told to send a file by itself.
type fileConn struct {
	*net.TCPConn
	files chan bool
}

func (c *fileConn) ReadFrom(r io.Reader) (int64, error) {
	for {
		l, ok := r.(*io.LimitedReader)
		if !ok {
			break
		}
		r = l.R
	}
	_, ok := r.(*os.File)
	c.files <- ok
	return c.TCPConn.ReadFrom(r)
}

type fileListener struct {
	net.Listener
	files chan bool
}

func (l *fileListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &fileConn{c.(*net.TCPConn), l.files}, nil
}

func TestWrappedResponseKeepsSendfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := strings.Repeat("0123456789", 100_000)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	o, _ := observe(LogNone, nil)
	s := httptest.NewUnstartedServer(o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = f.Close() }()
		http.ServeContent(w, r, "", time.Time{}, f)
	})))
	files := make(chan bool, 1)
	s.Listener = &fileListener{s.Listener, files}
	s.Start()
	defer s.Close()
	if _, body := send(t, "GET", s.URL, nil); body != content {
		t.Errorf("%d bytes arrived, want %d", len(body), len(content))
	}
	select {
	case isFile := <-files:
		if !isFile {
			t.Error("the connection is given something that is not a file")
		}
	default:
		t.Error("the bytes were copied through the handler")
	}
}

func TestWrappedResponseFlushesAndUnwraps(t *testing.T) {
	o, _ := observe(LogNone, nil)
	s := start(t, o, func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Errorf("set a deadline: %v", err)
		}
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "x")
		if f, ok := w.(http.Flusher); !ok {
			t.Error("no Flusher")
		} else {
			f.Flush()
		}
	})
	if res, body := send(t, "GET", s.URL, nil); res.StatusCode != 200 || body != "x" {
		t.Errorf("status %d, body %q", res.StatusCode, body)
	}
}

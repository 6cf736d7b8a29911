package adminapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/nodes"
	"github.com/fairway-registry/fairway/internal/registry/preheat"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// server is the admin API over real HTTP, with a real database and real files.
// Every exchange is held against the OpenAPI document that it serves.
type server struct {
	t         *testing.T
	url       string
	store     *meta.Store
	blobs     *fsblob.Store
	uploads   *upload.Sessions
	collector *gc.Collector
	preheats  *preheat.Preheats
	clock     atomic.Int64 // ms that the database's clock is ahead
	log       *lines
	metrics   *prometheus.Registry
	doc       *openapi3.T
	router    routers.Router
	succeeded map[string]bool // operations that were answered with 2xx
}

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
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

var policy = meta.Policy{Window: meta.Duration(2 * time.Hour), Trash: meta.Duration(24 * time.Hour)}

func serve(t *testing.T) *server { return serveWith(t, adminapi.Options{}) }

// serveWith takes of o what concerns hosts.
func serveWith(t *testing.T, o adminapi.Options) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, log: &lines{}, metrics: prometheus.NewRegistry(), succeeded: map[string]bool{}}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	var err error
	if s.blobs, err = fsblob.Open(dir, fsblob.Options{Reserve: -1, MinFree: -1}); err != nil {
		t.Fatal(err)
	}
	now := func() int64 { return time.Now().UnixMilli() + s.clock.Load() }
	if s.store, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db"), Now: now}); err != nil {
		t.Fatal(err)
	}
	s.uploads = upload.New(s.store, s.blobs, upload.Options{})
	s.collector = gc.New(s.store, s.blobs, gc.Options{Policy: policy, Log: log})
	checker := check.New(s.store, s.blobs, check.Options{Window: 2 * time.Hour, Log: log})
	observer := httpserve.NewObserver(httpserve.ObserverOptions{Log: log, Level: httpserve.LogErrors})
	o.Store, o.Collector, o.Checker, o.Observer, o.Log = s.store, s.collector, checker, observer, log
	o.Nodes = nodes.New(s.store, nodes.Options{Grace: 24 * time.Hour, Metrics: s.metrics})
	s.preheats = preheat.New(s.store, preheat.Options{Log: log})
	o.Preheats = s.preheats
	o.Version = adminapi.Version{Version: "v1", Commit: "c", Go: "go"}
	srv := httptest.NewServer(observer.Wrap(adminapi.New(o)))
	s.url = srv.URL
	t.Cleanup(func() {
		srv.Close()
		s.collector.Close()
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
		if err := s.blobs.Close(); err != nil {
			t.Error(err)
		}
	})
	s.readDocument()
	return s
}

func (s *server) readDocument() {
	s.t.Helper()
	res, err := http.Get(s.url + "/api/v1/openapi.json")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.doc, err = openapi3.NewLoader().LoadFromData(content); err != nil {
		s.t.Fatal(err)
	}
	if err := s.doc.Validate(s.t.Context()); err != nil {
		s.t.Fatalf("openapi.json is not valid: %v", err)
	}
	s.doc.Servers = openapi3.Servers{{URL: s.url + "/api/v1"}}
	if s.router, err = legacy.NewRouter(s.doc); err != nil {
		s.t.Fatal(err)
	}
}

// answer is what came back.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   []byte
	// described tells whether the document allows the request.
	described error
}

// do sends a request. body is a value to encode, a string to send as it is, or
// nil. The answer must be as the document describes it.
func (s *server) do(method, path string, body any, headers ...string) answer {
	s.t.Helper()
	var content []byte
	switch b := body.(type) {
	case nil:
	case string:
		content = []byte(b)
	default:
		var err error
		if content, err = json.Marshal(b); err != nil {
			s.t.Fatal(err)
		}
	}
	req := s.request(method, path, content, headers)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	a := answer{t: s.t, what: method + " " + path, status: res.StatusCode, header: res.Header, body: got}
	s.compare(&a, s.request(method, path, content, headers))
	return a
}

func (s *server) request(method, path string, content []byte, headers []string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+"/api/v1"+path, bytes.NewReader(content))
	if err != nil {
		s.t.Fatal(err)
	}
	if len(content) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		} else if req.Header.Set(name, value); value == "" {
			req.Header.Del(name)
		}
	}
	return req
}

// compare holds an exchange against the document.
func (s *server) compare(a *answer, req *http.Request) {
	s.t.Helper()
	req.Host = req.URL.Host
	route, params, err := s.router.FindRoute(req)
	if err != nil {
		a.described = err
		return
	}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route}
	a.described = openapi3filter.ValidateRequest(s.t.Context(), in)
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: a.status, Header: a.header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true}}
	out.SetBodyBytes(a.body)
	if err := openapi3filter.ValidateResponse(s.t.Context(), out); err != nil {
		s.t.Errorf("%s: the answer is not as the document says: %v\n%s", a.what, err, a.body)
	}
	if a.status < 300 {
		if a.described != nil {
			s.t.Errorf("%s succeeded although the document does not allow the request: %v", a.what, a.described)
		}
		s.succeeded[route.Operation.OperationID] = true
	}
}

// ok demands a status and decodes the body.
func (a answer) ok(status int, into any) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d\n%s", a.what, a.status, status, a.body)
	}
	if into != nil {
		if err := json.Unmarshal(a.body, into); err != nil {
			a.t.Fatalf("%s: %v\n%s", a.what, err, a.body)
		}
	}
	return a
}

// refused demands an error with a status and a text that says parts.
func (a answer) refused(status int, parts ...string) {
	a.t.Helper()
	var e struct {
		Error struct {
			Code, Message string
			RequestID     string `json:"request_id"`
		}
	}
	a.ok(status, &e)
	if e.Error.RequestID == "" || e.Error.RequestID != a.header.Get("X-Request-Id") {
		a.t.Errorf("%s: request id %q in the body, %q in the header", a.what, e.Error.RequestID, a.header.Get("X-Request-Id"))
	}
	for _, p := range parts {
		if !strings.Contains(e.Error.Message, p) {
			a.t.Errorf("%s: message %q does not say %q", a.what, e.Error.Message, p)
		}
	}
}

// push pushes an image with one layer of its own and returns the manifest's
// digest and the layer's.
func (s *server) push(repo oci.Name, tag oci.Tag, layer string) (manifest, blob oci.Digest) {
	s.t.Helper()
	put := func(content string) oci.Digest {
		d := digest.FromString(content)
		_, err := s.uploads.Put(s.t.Context(), repo, d, upload.Chunk{Body: strings.NewReader(content), Length: int64(len(content)), Actor: "test"})
		if err != nil {
			s.t.Fatal(err)
		}
		return d
	}
	const config = "{}"
	c, l := put(config), put(layer)
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	content := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, mediaType, c, len(config), l, len(layer))
	m, err := oci.ParseManifest(mediaType, content)
	if err != nil {
		s.t.Fatal(err)
	}
	d := c.Algorithm().FromBytes(content)
	if _, err := s.store.PutManifest(s.t.Context(), meta.Push{Repo: repo, Tags: []oci.Tag{tag}, Digest: d, Manifest: m, Content: content}); err != nil {
		s.t.Fatal(err)
	}
	return d, l
}

func (s *server) delete(repo oci.Name, d oci.Digest) {
	s.t.Helper()
	if err := s.store.DeleteManifest(s.t.Context(), repo, d, "test"); err != nil {
		s.t.Fatal(err)
	}
}

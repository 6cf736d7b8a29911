package distapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/distapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// server is a registry's OCI face over real HTTP, with a real database and
// real files.
type server struct {
	t       testing.TB
	dir     string
	opts    options
	store   *meta.Store
	files   *fsblob.Store
	uploads *upload.Sessions
	http    *httptest.Server
}

type options struct {
	alone    bool // while no other test runs
	pageMax  int
	listener func(net.Listener) net.Listener
	blobs    func(blob.Store) blob.Store
	now      func() int64 // the database's clock
	log      io.Writer    // nil: nowhere
}

// serve starts a server for a test, which runs beside others from here on:
// most of its time is waiting for the disk.
func serve(t testing.TB) *server { t.Helper(); return serveWith(t, options{}) }

func serveWith(t testing.TB, o options) *server {
	t.Helper()
	if t, ok := t.(*testing.T); ok && !o.alone {
		t.Parallel()
	}
	s := &server{t: t, dir: t.TempDir(), opts: o}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) start() {
	s.t.Helper()
	var err error
	if s.files, err = fsblob.Open(s.dir, fsblob.Options{Reserve: -1, MinFree: -1}); err != nil {
		s.t.Fatal(err)
	}
	if s.store, err = meta.Open(s.t.Context(), meta.Options{Path: filepath.Join(s.dir, "fairway.db"), Now: s.opts.now}); err != nil {
		s.t.Fatal(err)
	}
	var blobs blob.Store = s.files
	if s.opts.blobs != nil {
		blobs = s.opts.blobs(blobs)
	}
	s.uploads = upload.New(s.store, blobs, upload.Options{Wait: 50 * time.Millisecond})
	log := s.opts.log
	if log == nil {
		log = io.Discard
	}
	observer := httpserve.NewObserver(httpserve.ObserverOptions{Log: slog.New(slog.NewTextHandler(log, nil))})
	h := distapi.New(s.store, blobs, s.uploads, distapi.Options{Observer: observer, PageMax: s.opts.pageMax})
	s.http = httptest.NewUnstartedServer(observer.Wrap(h))
	if s.opts.listener != nil {
		s.http.Listener = s.opts.listener(s.http.Listener)
	}
	s.http.Start()
}

func (s *server) stop() {
	if s.http == nil {
		return
	}
	s.http.Close()
	s.http = nil
	if err := s.store.Close(); err != nil {
		s.t.Error(err)
	}
	if err := s.files.Close(); err != nil {
		s.t.Error(err)
	}
}

// restart is what a client sees of a server that was stopped and started.
func (s *server) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

// answer is a response with its body read.
type answer struct {
	t      testing.TB
	what   string
	status int
	header http.Header
	body   []byte
	length int64 // Content-Length
}

// do sends a request. Header values are name, value pairs. A body of type
// []byte or string is sent with its length, an io.Reader without.
func (s *server) do(method, path string, body any, header ...string) *answer {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(b)
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	default:
		s.t.Fatalf("body of type %T", body)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.http.URL+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := s.http.Client().Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatalf("%s %s: read the answer: %v", method, path, err)
	}
	return &answer{s.t, method + " " + path, res.StatusCode, res.Header, content, res.ContentLength}
}

// want fails the test unless the status is the one given.
func (a *answer) want(status int) *answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d; body %.300s", a.what, a.status, status, a.body)
	}
	return a
}

// wantHeader fails the test unless the header has the value given.
func (a *answer) wantHeader(name, value string) *answer {
	a.t.Helper()
	if got := a.header.Get(name); got != value {
		a.t.Errorf("%s: header %s is %q, want %q", a.what, name, got, value)
	}
	return a
}

func (a *answer) wantBody(want []byte) *answer {
	a.t.Helper()
	if !bytes.Equal(a.body, want) {
		a.t.Errorf("%s: body has %d bytes %.80q, want %d bytes %.80q", a.what, len(a.body), a.body, len(want), want)
	}
	return a
}

// wantError fails the test unless the answer is an error in the
// specification's form with this status and code.
func (a *answer) wantError(status int, code string) *answer {
	a.t.Helper()
	a.want(status)
	if got := a.header.Get("Content-Type"); got != "application/json" {
		a.t.Errorf("%s: error of type %q", a.what, got)
	}
	var body struct {
		Errors []struct {
			Code    string
			Message string
			Detail  json.RawMessage
		}
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&body); err != nil || len(body.Errors) == 0 {
		a.t.Fatalf("%s: error is not in the spec's form: %v; body %.300s", a.what, err, a.body)
	}
	if got := body.Errors[0].Code; got != code {
		a.t.Errorf("%s: error code %s, want %s; message %q", a.what, got, code, body.Errors[0].Message)
	}
	if body.Errors[0].Message == "" {
		a.t.Errorf("%s: error %s has no message", a.what, code)
	}
	return a
}

func (a *answer) json(into any) {
	a.t.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		a.t.Fatalf("%s: %v; body %.300s", a.what, err, a.body)
	}
}

// location returns the path of the Location header.
func (a *answer) location() string {
	a.t.Helper()
	l := a.header.Get("Location")
	if !strings.HasPrefix(l, "/v2/") {
		a.t.Fatalf("%s: Location is %q, want a path under /v2/", a.what, l)
	}
	return l
}

func sha256Of(b []byte) oci.Digest { return digest.SHA256.FromBytes(b) }

func sha512Of(b []byte) oci.Digest { return digest.SHA512.FromBytes(b) }

// content makes n bytes that differ by seed.
func content(seed string, n int) []byte {
	b := bytes.Repeat([]byte(seed+"·"), n/(len(seed)+2)+1)
	return b[:n]
}

// begin starts an upload session and returns its location.
func (s *server) begin(repo string) string {
	s.t.Helper()
	return s.do("POST", "/v2/"+repo+"/blobs/uploads/", nil).want(202).location()
}

// push uploads a blob.
func (s *server) push(repo string, b []byte) oci.Digest {
	s.t.Helper()
	d := sha256Of(b)
	s.do("PUT", s.begin(repo)+"?digest="+string(d), b).want(201)
	return d
}

// image is a pushed image manifest.
type image struct {
	content       []byte
	digest        oci.Digest
	config, layer oci.Digest
}

// manifestOf renders an image manifest; extra is spliced in before its end.
func manifestOf(config, layer []byte, extra string) []byte {
	return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]%s}`,
		oci.MediaTypeImage, sha256Of(config), len(config), sha256Of(layer), len(layer), extra))
}

// pushImage pushes config, layer and manifest under ref; "" stands for the digest.
func (s *server) pushImage(repo, ref, seed, extra string) image {
	s.t.Helper()
	config, layer := []byte(`{"seed":"`+seed+`"}`), content(seed, 100)
	i := image{config: s.push(repo, config), layer: s.push(repo, layer)}
	i.content = manifestOf(config, layer, extra)
	i.digest = sha256Of(i.content)
	if ref == "" {
		ref = string(i.digest)
	}
	s.putManifest(repo, ref, oci.MediaTypeImage, i.content).want(201)
	return i
}

func (s *server) putManifest(repo, ref, mediaType string, content []byte) *answer {
	s.t.Helper()
	return s.do("PUT", "/v2/"+repo+"/manifests/"+ref, content, "Content-Type", mediaType)
}

func indexOf(children ...image) []byte {
	var list []string
	for _, c := range children {
		list = append(list, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeImage, c.digest, len(c.content)))
	}
	return []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[` + strings.Join(list, ",") + `]}`)
}

// rangeOf renders a Content-Range as the specification has it.
func rangeOf(first, n int) string { return strconv.Itoa(first) + "-" + strconv.Itoa(first+n-1) }

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

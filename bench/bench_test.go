package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
)

func TestParseAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		head     bool
		status   int
		done     bool
		fails    bool
	}{
		{name: "half a head", in: "HTTP/1.1 200 OK\r\nContent-Le"},
		{name: "a body that is not there yet", in: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", status: 200},
		{name: "a whole answer", in: "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", status: 200, done: true},
		{name: "HEAD has no body", in: "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n", head: true, status: 404, done: true},
		{name: "chunks that go on", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", status: 200},
		{name: "chunks that end", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", status: 200, done: true},
		{name: "no length", in: "HTTP/1.1 200 OK\r\nA: b\r\n\r\n", fails: true},
		{name: "no HTTP", in: "hello world\r\n\r\n", fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, done, err := parseAnswer([]byte(tc.in), tc.head)
			if (err != nil) != tc.fails || done != tc.done || err == nil && status != tc.status {
				t.Errorf("got %d, %v, %v", status, done, err)
			}
		})
	}
}

func TestLoad_CountsWhatTheServerAnswered(t *testing.T) {
	var asked, refused atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1)%10 == 0 {
			refused.Add(1)
			http.Error(w, "no", http.StatusTooManyRequests)
			return
		}
		_, _ = w.Write(bytes.Repeat([]byte("x"), 100_000)) // chunked, and larger than the buffer
	}))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	res, err := load{addr: addr, conns: 4, duration: 100 * time.Millisecond, request: []byte("GET / HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")}.run()
	if err != nil {
		t.Fatal(err)
	}
	// Up to one request a connection was under way at the end.
	if n := int(asked.Load()); res.requests == 0 || res.requests > n || res.requests < n-4 {
		t.Errorf("counted %d, the server saw %d", res.requests, n)
	}
	if n := int(refused.Load()); res.bad > n || res.bad < n-4 {
		t.Errorf("counted %d refusals, the server made %d", res.bad, n)
	}
	if res.perSecond() <= 0 {
		t.Errorf("a rate of %v", res.perSecond())
	}
}

func TestQuantile(t *testing.T) {
	xs := []float64{5, 1, 4, 2, 3}
	if got := median(xs); got != 3 {
		t.Errorf("median is %v", got)
	}
	if got := quantile(xs, 0.99); got != 5 {
		t.Errorf("p99 is %v", got)
	}
	if xs[0] != 5 {
		t.Error("the samples were reordered")
	}
	if got := median(nil); got != 0 {
		t.Errorf("median of nothing is %v", got)
	}
}

func TestThousands(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(in); got != want {
			t.Errorf("%v is %q, want %q", in, got, want)
		}
	}
}

func TestBulk_HasTheDigestItSaysAndAnotherEachTime(t *testing.T) {
	u := newBulk(3 << 20)
	d, err := u.digest()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := u.WriteTo(&b); err != nil || b.Len() != u.size() {
		t.Fatalf("%d bytes, want %d: %v", b.Len(), u.size(), err)
	}
	if got := digest.FromBytes(b.Bytes()); got != d {
		t.Errorf("its bytes have %s, it said %s", got, d)
	}
	u.next()
	if other, err := u.digest(); err != nil || other == d {
		t.Errorf("the next layer is the same: %v", err)
	}
}

func TestNewImage_IsAnImage(t *testing.T) {
	im := newImage(100)
	m, err := oci.ParseManifest(oci.MediaTypeImage, im.manifest)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Blobs) != 2 || m.Blobs[0].Digest != im.configDigest || m.Blobs[1].Digest != im.layerDigest || m.Blobs[1].Size != 100 {
		t.Errorf("its blobs are %v", m.Blobs)
	}
}

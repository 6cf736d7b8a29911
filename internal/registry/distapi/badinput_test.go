package distapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/distapi"
)

// raw opens a connection and sends text as it is.
func (s *server) raw(text string) net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// status reads an answer's status from a connection.
func status(t *testing.T, c net.Conn) int {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("read an answer: %v", err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// announce is the head of a request that announces n bytes.
func announce(method, path string, n int) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", method, path, n)
}

// idle waits until no request works on the session any more.
func (s *server) idle(location string) {
	s.t.Helper()
	id := location[strings.LastIndexByte(location, '/')+1:]
	eventually(s.t, "the request ends", func() bool { return !s.uploads.Busy(id) })
}

func TestBadInput_ClientGoneInMidPatch_ResumesAfterRestart(t *testing.T) {
	s := serve(t)
	b := content("gone", 3<<20)
	loc := s.begin("a")
	c := s.raw(announce("PATCH", loc, len(b)))
	if _, err := c.Write(b[:1<<20]); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	eventually(t, "what arrived is kept", func() bool {
		return s.do("GET", loc, nil).want(204).header.Get("Range") == fmt.Sprintf("0-%d", 1<<20-1)
	})
	s.restart()
	s.do("GET", loc, nil).want(204).wantHeader("Range", fmt.Sprintf("0-%d", 1<<20-1))
	s.do("PATCH", loc, b[1<<20:2<<20], "Content-Range", rangeOf(1<<20, 1<<20)).want(202)
	s.restart()
	s.do("PUT", loc+"?digest="+string(sha256Of(b)), b[2<<20:], "Content-Range", rangeOf(2<<20, 1<<20)).want(201)
	s.do("GET", "/v2/a/blobs/"+string(sha256Of(b)), nil).want(200).wantBody(b)
}

func TestBadInput_ClientGoneInMidPut_LeavesNoBlob(t *testing.T) {
	s := serve(t)
	b := content("gone", 1<<20)
	d := string(sha256Of(b))
	loc := s.begin("a")
	for _, path := range []string{loc + "?digest=" + d, "/v2/a/blobs/uploads/?digest=" + d} {
		method := "PUT"
		if strings.Contains(path, "/?") {
			method = "POST"
		}
		c := s.raw(announce(method, path, len(b)))
		if _, err := c.Write(b[:len(b)/2]); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite() // a client that ends too early, but listens
		if got := status(t, c); got != 400 {
			t.Errorf("%s that ends too early: status %d, want 400", method, got)
		}
	}
	s.do("HEAD", "/v2/a/blobs/"+d, nil).want(404)
	s.idle(loc)
	s.wantUploads(1) // the POST's session is gone, the other can be used again
	s.do("PUT", loc+"?digest="+d, b).want(201)
}

func TestBadInput_ManifestShorterThanAnnounced(t *testing.T) {
	s := serve(t)
	c := s.raw(announce("PUT", "/v2/a/manifests/v1", 1000) + "{}")
	_ = c.(*net.TCPConn).CloseWrite()
	if got := status(t, c); got != 400 {
		t.Errorf("status %d, want 400", got)
	}
}

func TestBadInput_BodyLengthThatDisagreesWithTheRange(t *testing.T) {
	s := serve(t)
	b := content("len", 3000)
	d := string(sha256Of(b))
	loc := s.begin("a")
	for _, header := range []string{rangeOf(0, 2999), rangeOf(0, 3001), rangeOf(0, 1)} {
		for _, body := range []func() any{
			func() any { return b },
			func() any { return io.MultiReader(strings.NewReader(string(b))) }, // of unknown length
		} {
			s.do("PATCH", loc, body(), "Content-Range", header).wantError(400, oci.CodeSizeInvalid)
			s.do("PUT", loc+"?digest="+d, body(), "Content-Range", header).wantError(400, oci.CodeSizeInvalid)
		}
	}
	s.do("GET", loc, nil).want(204).wantHeader("Range", "0-0")
	s.do("HEAD", "/v2/a/blobs/"+d, nil).want(404)
	s.do("PUT", loc+"?digest="+d, b).want(201)
}

func TestBadInput_MalformedChunkedEncoding(t *testing.T) {
	s := serve(t)
	loc := s.begin("a")
	for _, path := range []string{loc, loc + "?digest=" + string(sha256Of([]byte("hello")))} {
		method := "PATCH"
		if strings.Contains(path, "?") {
			method = "PUT"
		}
		c := s.raw(method + " " + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello")
		if got := status(t, c); got != 400 {
			t.Errorf("%s: status %d, want 400", method, got)
		}
		s.idle(loc)
	}
}

func TestBadInput_ZeroByteBlob(t *testing.T) {
	s := serve(t)
	d := string(sha256Of(nil))
	s.do("PUT", s.begin("a")+"?digest="+d, nil).want(201)
	s.do("HEAD", "/v2/a/blobs/"+d, nil).want(200).wantHeader("Content-Length", "0")
	s.do("GET", "/v2/a/blobs/"+d, nil).want(200).wantBody(nil)
}

func TestSpec_PushingBlobsInChunks_SecondRequestAtOnceIs416(t *testing.T) {
	s := serve(t)
	b := content("twice", 100)
	loc := s.begin("a")
	first := s.raw(announce("PATCH", loc, len(b)) + string(b[:50]))
	eventually(t, "the first request is at work", func() bool { return s.uploads.Busy(loc[strings.LastIndexByte(loc, '/')+1:]) })
	s.do("PATCH", loc, b).wantError(416, oci.CodeBlobUploadInvalid).wantHeader("Location", loc)
	s.do("PUT", loc+"?digest="+string(sha256Of(b)), b).wantError(416, oci.CodeBlobUploadInvalid)
	s.do("DELETE", loc, nil).wantError(409, oci.CodeBlobUploadInvalid)
	s.do("GET", loc, nil).want(204)
	if _, err := first.Write(b[50:]); err != nil {
		t.Fatal(err)
	}
	if got := status(t, first); got != 202 {
		t.Errorf("the first request: status %d, want 202", got)
	}
	s.do("PUT", loc+"?digest="+string(sha256Of(b)), nil).want(201)
}

func TestDiskFull_Is507AndReadsGoOn(t *testing.T) {
	var faulty *blobtest.Faulty
	s := serveWith(t, options{blobs: func(b blob.Store) blob.Store { faulty = blobtest.NewFaulty(b); return faulty }})
	old := content("old", 100)
	d := string(s.push("a", old))
	faulty.Plan(blobtest.Always(blobtest.OpWrite, blobtest.Full))
	b := content("new", 32<<20) // the answer comes long before the body's end
	s.do("POST", "/v2/a/blobs/uploads/?digest="+string(sha256Of(b)), b).wantError(507, oci.CodeStorageFull)
	loc := s.begin("a")
	s.do("PATCH", loc, b).wantError(507, oci.CodeStorageFull)
	s.do("GET", "/v2/a/blobs/"+d, nil).want(200).wantBody(old)
	faulty.Plan(nil)
	s.do("PATCH", loc, b).want(202)
	s.do("PUT", loc+"?digest="+string(sha256Of(b)), nil).want(201)
}

func TestInternalErrors_ShowAClientNothing(t *testing.T) {
	var faulty *blobtest.Faulty
	s := serveWith(t, options{blobs: func(b blob.Store) blob.Store { faulty = blobtest.NewFaulty(b); return faulty }})
	b := content("x", 100)
	d := string(s.push("a", b))
	faulty.Plan(func(op blobtest.Op) blobtest.Fate { return blobtest.Fail })
	for _, a := range []*answer{
		s.do("GET", "/v2/a/blobs/"+d, nil),
		s.do("PATCH", s.begin("a"), b),
		s.do("POST", "/v2/a/blobs/uploads/?digest="+string(sha256Of(b)), b),
	} {
		a.wantError(500, oci.CodeUnknown)
		if text := string(a.body); strings.Contains(text, blobtest.ErrFault.Error()) || strings.Contains(text, s.dir) {
			t.Errorf("%s: the answer shows the cause: %s", a.what, text)
		}
		for _, h := range []string{"Docker-Content-Digest", "ETag", "Accept-Ranges"} {
			a.wantHeader(h, "")
		}
	}
}

func TestShutdown_AnUploadThatIsCutCanBeResumed(t *testing.T) {
	s := serve(t)
	b := content("cut", 1<<20)
	loc := s.begin("a")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	served := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	h := httpserve.NewObserver(httpserve.ObserverOptions{Log: log}).Wrap(distapi.New(s.store, s.files, s.uploads, distapi.Options{}))
	go func() {
		served <- httpserve.Serve(ctx, ln, httpserve.Options{Handler: h, Log: log, Grace: 30 * time.Millisecond})
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, announce("PATCH", loc, len(b))+string(b[:300000])); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload is at work", func() bool { return s.uploads.Busy(loc[strings.LastIndexByte(loc, '/')+1:]) })
	end()
	if err := <-served; err != nil {
		t.Fatalf("Serve: %v", err)
	}
	u, err := s.uploads.Status(t.Context(), "a", loc[strings.LastIndexByte(loc, '/')+1:])
	if err != nil || u.Size == 0 || u.Size > 300000 {
		t.Fatalf("after the cut the session stands at %d, error %v; want what had arrived", u.Size, err)
	}
	s.do("PUT", loc+"?digest="+string(sha256Of(b)), b[u.Size:], "Content-Range", rangeOf(int(u.Size), len(b)-int(u.Size))).want(201)
}

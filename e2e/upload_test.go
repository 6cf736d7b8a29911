package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func noise(size int) ([]byte, digest.Digest) {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b, digest.FromBytes(b)
}

// location is where an answer says to go on.
func (s *server) location(resp *http.Response) string {
	s.t.Helper()
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || u.Path == "" {
		s.t.Fatalf("Location is %q, status %s", resp.Header.Get("Location"), resp.Status)
	}
	return u.RequestURI()
}

func (s *server) begin(repo string) string {
	s.t.Helper()
	resp := s.do(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", nil, nil)
	if resp.StatusCode != http.StatusAccepted {
		s.t.Fatalf("begin an upload: %s", resp.Status)
	}
	return s.location(resp)
}

func (s *server) chunk(session string, b []byte, from int) string {
	s.t.Helper()
	resp := s.do(http.MethodPatch, session, http.Header{
		"Content-Type":  {"application/octet-stream"},
		"Content-Range": {fmt.Sprintf("%d-%d", from, from+len(b)-1)},
	}, b)
	if resp.StatusCode != http.StatusAccepted {
		s.t.Fatalf("PATCH at %d: %s %s", from, resp.Status, s.bytes(resp))
	}
	return s.location(resp)
}

// received asks how many bytes of an upload are there.
func (s *server) received(session string) int {
	s.t.Helper()
	resp := s.do(http.MethodGet, session, nil, nil)
	if resp.StatusCode != http.StatusNoContent {
		s.t.Fatalf("status of the upload: %s %s", resp.Status, s.bytes(resp))
	}
	var first, last int
	if resp.Header.Get("Range") == "" {
		return 0
	}
	if _, err := fmt.Sscanf(resp.Header.Get("Range"), "%d-%d", &first, &last); err != nil || first != 0 {
		s.t.Fatalf("Range is %q", resp.Header.Get("Range"))
	}
	if last == 0 {
		return 0
	}
	return last + 1
}

func (s *server) finish(session string, d digest.Digest) {
	s.t.Helper()
	join := "?"
	if strings.Contains(session, "?") {
		join = "&"
	}
	resp := s.do(http.MethodPut, session+join+"digest="+url.QueryEscape(d.String()), nil, nil)
	if resp.StatusCode != http.StatusCreated {
		s.t.Fatalf("finish the upload: %s %s", resp.Status, s.bytes(resp))
	}
}

func (s *server) holds(repo string, d digest.Digest, want []byte) {
	s.t.Helper()
	resp := s.do(http.MethodGet, "/v2/"+repo+"/blobs/"+d.String(), nil, nil)
	if got := s.bytes(resp); resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		s.t.Fatalf("blob %s: %s, %d bytes, want %d", d, resp.Status, len(got), len(want))
	}
}

func TestUpload_ResumesAfterARestart(t *testing.T) {
	s := serve(t)
	b, d := noise(3 << 20)
	session := s.chunk(s.begin("r"), b[:1<<20], 0)
	s.stop()
	s.start()
	if got := s.received(session); got != 1<<20 {
		t.Fatalf("%d bytes are left of an acknowledged chunk of %d", got, 1<<20)
	}
	session = s.chunk(session, b[1<<20:2<<20], 1<<20)
	s.proc.Kill()
	s.start()
	if got := s.received(session); got != 2<<20 {
		t.Fatalf("%d bytes are left after SIGKILL, %d were acknowledged", got, 2<<20)
	}
	s.finish(s.chunk(session, b[2<<20:], 2<<20), d)
	s.proc.Kill()
	s.start()
	s.holds("r", d, b)
}

// slowly is a request body that has sent its first bytes and waits with the rest.
func (s *server) slowly(method, path string, size int, first []byte) (rest io.WriteCloser, answer <-chan *http.Response) {
	s.t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	req.ContentLength = int64(size)
	req.Header.Set("Content-Type", "application/octet-stream")
	answers := make(chan *http.Response, 1)
	transport := &http.Transport{}
	s.t.Cleanup(transport.CloseIdleConnections)
	go func() {
		defer close(answers)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return // the receiver sees a closed channel
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		answers <- resp
	}()
	if _, err := w.Write(first); err != nil {
		s.t.Fatal(err)
	}
	return w, answers
}

func TestUpload_CutOffBySIGKILLResumesWhereTheServerSays(t *testing.T) {
	s := serve(t)
	b, d := noise(8 << 20)
	session := s.begin("r")
	rest, answer := s.slowly(http.MethodPatch, session, len(b), b[:6<<20])
	eventually(t, "bytes of the upload reach the disk", func() bool { size, _ := s.disk(); return size > 1<<20 })
	s.proc.Kill()
	_ = rest.Close() // the transport waits for the body even when the connection is gone
	if resp, ok := <-answer; ok {
		t.Fatalf("a cut-off request was answered %s", resp.Status)
	}
	s.start()
	got := s.received(session)
	if got > 6<<20 {
		t.Fatalf("the server claims %d bytes, %d were sent", got, 6<<20)
	}
	s.finish(s.chunk(session, b[got:], got), d)
	s.holds("r", d, b)
	if size, objects := s.disk(); size != int64(len(b)) || objects != 1 {
		t.Errorf("%d bytes in %d objects are on disk, want the blob alone", size, objects)
	}
}

// TestPush_SIGKILLInMidPush is R7 with a real client: the push fails, nothing
// needs repair, the next push succeeds, and no byte is left behind.
func TestPush_SIGKILLInMidPush(t *testing.T) {
	im, s := theImages(t), serve(t)
	failed := make(chan error, 1)
	go func() {
		_, _, err := try(t, "crane", "push", im.debianPerl, s.host+"/shop/debian:perl")
		failed <- err
	}()
	eventually(t, "the push is under way", func() bool { size, _ := s.disk(); return size > 256<<10 })
	s.proc.Kill()
	s.start()
	<-failed // crane retries, so it may even have succeeded

	run(t, "crane", "push", im.debianPerl, s.host+"/shop/debian:perl")
	run(t, "crane", "push", im.busybox, s.host+"/shop/busybox:1")
	s.deleteAndCollect([]string{"shop/debian:perl"}, []string{"shop/busybox:1"}, s.delete)
}

// TestShutdown_LetsARunningUploadFinish sends SIGTERM in mid-upload: new
// requests are turned away, the upload is answered, the process ends well.
func TestShutdown_LetsARunningUploadFinish(t *testing.T) {
	s := serve(t)
	b, d := noise(4 << 20)
	rest, answer := s.slowly(http.MethodPut, s.begin("r")+"?digest="+d.String(), len(b), b[:2<<20])
	eventually(t, "bytes of the upload reach the disk", func() bool { size, _ := s.disk(); return size > 0 })
	if err := s.proc.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new connections are refused", func() bool {
		conn, err := net.DialTimeout("tcp", s.host, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	if _, err := rest.Write(b[2<<20:]); err != nil {
		t.Fatal(err)
	}
	_ = rest.Close()
	resp, ok := <-answer
	if !ok || resp.StatusCode != http.StatusCreated {
		t.Fatalf("the upload under way was not finished: %v", resp)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.proc.Wait(ctx); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	s.start()
	s.holds("r", d, b)
}

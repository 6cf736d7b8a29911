package distapi_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// stalled sends the head of a request and waits for the response before it sends
// a body.
func (s *server) stalled(method, path, header string) *http.Response {
	s.t.Helper()
	c, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(c, method+" "+path+" HTTP/1.1\r\nHost: localhost\r\n"+header+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatalf("%s %s: no response while the body is awaited: %v", method, path, err)
	}
	_ = res.Body.Close()
	return res
}

func TestR17_RefusedBeforeTheBodyIsRead(t *testing.T) {
	s := serve(t)
	d := "?digest=" + string(sha256Of([]byte("x")))
	open, absent := s.begin("a"), "/v2/a/blobs/uploads/12345678-1234-1234-1234-123456789abc"
	for _, c := range []struct {
		method, path, header string
		status               int
	}{
		{"PUT", absent + d, "", 404},
		{"PATCH", absent, "", 404},
		{"PATCH", "/v2/a/blobs/uploads/nonsense", "", 404},
		{"PATCH", "/v2/UPPER/blobs/uploads/12345678-1234-1234-1234-123456789abc", "", 400},
		{"PUT", open, "", 400},
		{"PUT", open + "?digest=nonsense", "", 400},
		{"PATCH", open, "Content-Range: 7-106\r\n", 416},
		{"PUT", open + d, "Content-Range: 0-7\r\n", 400},
		{"POST", "/v2/UPPER/blobs/uploads/" + d, "", 400},
		{"POST", "/v2/a/blobs/uploads/?digest=nonsense", "", 400},
		{"PUT", "/v2/UPPER/manifests/v1", "", 400},
		{"PUT", "/v2/a/manifests/.bad", "", 400},
		{"PUT", "/v2/a/manifests/v1?" + strings.Repeat("tag=x&", 101), "", 414},
		{"PUT", "/v2/a/manifests/v1", "Content-Length: 5000000\r\n", 413},
		{"PUT", "/v2/a/blobs/" + string(sha256Of(nil)), "", 405},
		{"POST", "/v2/nothing", "", 404},
	} {
		header := c.header
		if !strings.Contains(header, "Content-Length") {
			header += "Content-Length: 100\r\n"
		}
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			if res := s.stalled(c.method, c.path, header+expect); res.StatusCode != c.status || !res.Close {
				t.Errorf("%s %s %q: status %d, closes %v; want %d and the end of the connection", c.method, c.path, expect, res.StatusCode, res.Close, c.status)
			}
		}
	}
	if res := s.stalled("PATCH", open, "Content-Length: 4\r\nExpect: 100-continue\r\n"); res.StatusCode != 100 {
		t.Errorf("a body that is wanted is answered %d, want 100 Continue", res.StatusCode)
	}
}

package mirror_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

func TestR17_MirrorRefusesBeforeTheBodyIsRead(t *testing.T) {
	n := start(t, nodeOptions{})
	for _, path := range []string{"/v2/a/manifests/v1", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/x", "/v2/", "/v2/a/nothing"} {
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			c, err := net.Dial("tcp", n.http.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, "PUT "+path+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"+expect+"\r\n"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("PUT %s %q: no response while the body is awaited: %v", path, expect, err)
			} else if res.StatusCode < 400 || !res.Close {
				t.Errorf("PUT %s %q: status %d, closes %v", path, expect, res.StatusCode, res.Close)
			}
			_ = c.Close()
		}
	}
}

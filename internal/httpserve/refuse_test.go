package httpserve

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// refuser answers without a look at the body.
func refuser(requests *atomic.Int32) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Content-Length", "7")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, "refused")
	})
}

func dial(t *testing.T, addr, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func TestR17_RefusalIsSentBeforeTheBodyAndEndsTheConnection(t *testing.T) {
	for name, request := range map[string]string{
		"expects":         "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n",
		"expects, large":  "Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n",
		"slow":            "Content-Length: 100\r\n\r\nsome",
		"slow, none yet":  "Content-Length: 100\r\n\r\n",
		"slow, large":     "Content-Length: 1000000000\r\n\r\nsome",
		"slow, chunked":   "Transfer-Encoding: chunked\r\n\r\n4\r\nsome",
		"a request in it": "Content-Length: 400000\r\n\r\nGET /other HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone})
			addr, stop, _ := serving(t, o.Wrap(refuser(&requests)), time.Second)
			defer stop()
			_, r := dial(t, addr, "PUT / HTTP/1.1\r\nHost: x\r\n"+request)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("no response: %v", err)
			}
			text, err := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusNotFound || string(text) != "refused" || err != nil {
				t.Errorf("status %d, body %q, error %v", res.StatusCode, text, err)
			}
			if !res.Close {
				t.Error("the response does not say that the connection ends")
			}
			if rest, err := io.ReadAll(r); len(rest) > 0 || errors.Is(err, net.ErrClosed) || isTimeout(err) {
				t.Errorf("after the response: %q, %v; want the end of the connection", rest, err)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("%d requests were seen", n)
			}
		})
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func TestR17_RefusalIsSentBeforeTheRestOfTheBodyIsAwaited(t *testing.T) {
	var requests atomic.Int32
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone})
	o.lingerTime = time.Hour
	addr, stop, _ := serving(t, o.Wrap(refuser(&requests)), time.Millisecond)
	defer stop()
	_, r := dial(t, addr, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome")
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("response %v, error %v", res, err)
	}
	// One that asked first sends nothing now.
	_, r = dial(t, addr, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("a client that waits for 100 Continue: %v; want the end of the connection", err)
	}
}

// A client that reads only when it has sent everything must not lose the
// response to a reset.
func TestR17_RefusalReachesAClientThatSendsFirst(t *testing.T) {
	var requests atomic.Int32
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone})
	addr, stop, _ := serving(t, o.Wrap(refuser(&requests)), time.Second)
	defer stop()
	body := bytes.Repeat([]byte("x"), 8<<20)
	c, r := dial(t, addr, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n")
	if _, err := c.Write(body); err != nil {
		t.Fatalf("send the body: %v", err)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("response %v, error %v", res, err)
	}
}

func TestR17_RefusedClientsThatDoNotLeaveDelayNoShutdown(t *testing.T) {
	var requests atomic.Int32
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone})
	addr, stop, result := serving(t, o.Wrap(refuser(&requests)), 10*time.Minute)
	for _, request := range []string{"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", "Content-Length: 100\r\n\r\nsome", "Content-Length: 1000000\r\n\r\nsome"} {
		_, r := dial(t, addr, "PUT / HTTP/1.1\r\nHost: x\r\n"+request)
		if _, err := http.ReadResponse(r, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the server waits for clients that it refused")
	}
}

func TestBody_ThatWasReadLeavesTheConnectionOpen(t *testing.T) {
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone})
	addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNotFound)
	})), time.Second)
	defer stop()
	c, r := dial(t, addr, "")
	for _, body := range []string{"Content-Length: 4\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n\r\n", "Content-Length: 0\r\n\r\n"} {
		if _, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\n"+body); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.Close {
			t.Fatalf("%q: response %v, error %v; want one that leaves the connection open", body, res, err)
		}
	}
}

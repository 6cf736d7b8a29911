package httpserve

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// serving runs Serve; end ends its context and returns what Serve returned.
func serving(t *testing.T, h http.Handler, grace time.Duration) (addr string, stop func(), result chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	result = make(chan error, 1)
	go func() { result <- Serve(ctx, ln, Options{Handler: h, Grace: grace, Log: quiet()}) }()
	return ln.Addr().String(), cancel, result
}

func TestServe_RunningRequestsFinishAfterTheEnd(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	addr, stop, result := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		if r.Context().Err() != nil {
			t.Error("the request's context ended with the server's")
		}
		_, _ = io.WriteString(w, "done")
	}), time.Minute)
	answer := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + addr)
		if err != nil {
			answer <- err.Error()
			return
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		answer <- string(b)
	}()
	<-entered
	stop()
	eventually(t, func() bool { // it stops accepting at once
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	close(release)
	if got := <-answer; got != "done" {
		t.Errorf("the running request was answered %q", got)
	}
	if err := <-result; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServe_RequestsThatOutliveTheGraceAreCutAndWaitedFor(t *testing.T) {
	entered := make(chan struct{})
	ended := make(chan error, 1)
	addr, stop, result := serving(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		_, err := io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		<-time.After(30 * time.Millisecond) // what is left to put in order takes a while
		ended <- err
	}), 20*time.Millisecond)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome"); err != nil {
		t.Fatal(err)
	}
	<-entered
	stop()
	if err := <-result; err != nil {
		t.Errorf("Serve: %v", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the body of a request that was cut seems whole")
		}
	default:
		t.Error("Serve did not wait for the handler")
	}
}

func TestServe_AListenerThatFailsIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := Serve(t.Context(), ln, Options{Handler: http.NotFoundHandler(), Log: quiet()}); err == nil {
		t.Error("no error")
	}
}

func TestBody_AStalledUploadIsGivenUp(t *testing.T) {
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: 50 * time.Millisecond})
	read := make(chan error, 1)
	addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
	})), time.Second)
	defer stop()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		if err == nil {
			t.Error("a body that stalled seems whole")
		}
	case <-time.After(10 * time.Second):
		t.Error("the connection is held")
	}
}

// trickle brings a byte each time it is asked, after a while.
type trickle struct {
	left int
	wait time.Duration
}

func (r *trickle) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	r.left--
	<-time.After(r.wait) // the pace of a slow client is what is tested
	p[0] = 'x'
	return 1, nil
}

func TestBody_ASlowUploadThatGoesOnIsNot(t *testing.T) {
	const idle = time.Second
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: idle, BodyRate: 1})
	addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || len(b) != 20 {
			t.Errorf("%d bytes arrived, error %v; want 20", len(b), err)
		}
	})), time.Second)
	defer stop()
	res, _ := send(t, "PUT", "http://"+addr, &trickle{20, idle * 6 / 100})
	if res.StatusCode != 200 {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestR17_BodyThatComesTooSlowlyIsGivenUp(t *testing.T) {
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: 200 * time.Millisecond, BodyRate: 1 << 20})
	read := make(chan error, 1)
	addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
	})), time.Second)
	defer stop()
	c, _ := dial(t, addr, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
	go func() {
		for {
			<-time.After(10 * time.Millisecond) // the pace of a slow client is what is tested
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
		}
	}()
	select {
	case err := <-read:
		if !errors.Is(err, errSlow) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v, want that the client is too slow", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a byte now and then holds the connection")
	}
}

func TestBody_TimeThatTheServerTakesIsNotTheClients(t *testing.T) {
	b := &body{idle: time.Minute, rate: 1 << 10}
	for range 1000 { // a megabyte that had arrived whenever it was asked for
		if err := b.pace(1<<10, time.Microsecond); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.pace(1, time.Minute); err != nil {
		t.Errorf("enough has come, but: %v", err)
	}
	if err := b.pace(59<<10, time.Minute); !errors.Is(err, errSlow) {
		t.Errorf("too little in a minute: %v", err)
	}
}

func TestBody_TheDeadlineDoesNotOutliveTheBody(t *testing.T) {
	const idle = 300 * time.Millisecond
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: idle})
	addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = r.Body.Read(make([]byte, 1)) // one that asks again
		select {
		case <-r.Context().Done():
			t.Error("the request was given up after its body had ended")
		case <-time.After(2 * idle): // long after the deadline
		}
	})), time.Second)
	defer stop()
	if res, _ := send(t, "PUT", "http://"+addr, strings.NewReader("body")); res.StatusCode != 200 {
		t.Errorf("status %d", res.StatusCode)
	}
}

// download serves a file of size bytes and asks for it. It returns what the
// handler's write came to.
func download(t *testing.T, idle time.Duration, rate, size int64, tell func(w http.ResponseWriter, f *os.File) error) (c net.Conn, done <-chan error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	part := make([]byte, 1<<20)
	for i := range size >> 20 {
		for j := range part {
			part[j] = byte(int64(j)>>8 + i)
		}
		if _, err := f.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: idle, BodyRate: rate})
	ended := make(chan error, 1)
	addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		ended <- tell(w, f)
	})), time.Second)
	t.Cleanup(func() { stop() })
	if c, err = net.Dial("tcp", addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return c, ended
}

// tellings are the ways in which bytes go out.
var tellings = map[string]func(http.ResponseWriter, *os.File) error{
	"file": func(w http.ResponseWriter, f *os.File) error { _, err := io.Copy(w, f); return err },
	"part": func(w http.ResponseWriter, f *os.File) error { _, err := io.CopyN(w, f, 32<<20); return err },
	"reader": func(w http.ResponseWriter, f *os.File) error {
		_, err := io.Copy(w, struct{ io.Reader }{f})
		return err
	},
	"bytes": func(w http.ResponseWriter, f *os.File) error {
		b, err := io.ReadAll(f)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	},
}

func TestAnswer_AClientThatTakesNothingIsGivenUp(t *testing.T) {
	for name, tell := range tellings {
		_, done := download(t, 50*time.Millisecond, 0, 32<<20, tell)
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: error %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the connection is held", name)
		}
	}
}

func TestR17_ClientThatTakesTooLittleIsGivenUp(t *testing.T) {
	c, done := download(t, 400*time.Millisecond, 1<<40, 32<<20, tellings["part"])
	go func() {
		part := make([]byte, 1<<20)
		for {
			<-time.After(50 * time.Millisecond) // the pace of a slow client is what is tested
			if _, err := io.ReadFull(c, part); err != nil {
				return
			}
		}
	}()
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v, want that the client is too slow", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the connection is held")
	}
}

func TestAnswer_AClientThatIsSlowGetsAll(t *testing.T) {
	const idle = 300 * time.Millisecond
	for _, name := range []string{"file", "part", "reader"} {
		c, done := download(t, idle, 0, 32<<20, tellings[name])
		r := bufio.NewReaderSize(c, 1<<20)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, 1<<20)
		for i := range 32 {
			if _, err := io.ReadFull(res.Body, part); err != nil {
				t.Fatalf("%s: after %d MiB: %v", name, i, err)
			}
			for j, b := range part {
				if b != byte(j>>8+i) {
					t.Fatalf("%s: byte %d of MiB %d is %d", name, j, i, b)
				}
			}
			<-time.After(idle / 10) // the pace of a slow client is what is tested
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

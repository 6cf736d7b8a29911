package httpserve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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
	case <-time.After(time.Minute):
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

// atSomePace runs a test of a client that is slow, but never idle for as long as
// the server allows. A machine whose cores are busy may stop the client for longer:
// such a run proves nothing and is repeated with twice the time. try returns what
// went wrong and for how long the client was stopped.
func atSomePace(t *testing.T, try func(idle time.Duration) (stopped time.Duration, problem error)) {
	t.Helper()
	for idle := 300 * time.Millisecond; ; idle *= 2 {
		stopped, problem := try(idle)
		if problem == nil {
			return
		}
		if stopped < idle/2 || idle > time.Minute {
			t.Errorf("allowed to be idle for %v, and stopped for %v: %v", idle, stopped, problem)
			return
		}
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

func TestBody_ASlowUploadThatGoesOnIsNot(t *testing.T) {
	atSomePace(t, func(idle time.Duration) (time.Duration, error) {
		o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: idle, BodyRate: 1})
		read := make(chan error, 1)
		var longest time.Duration
		addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			last, n := time.Now(), 0
			for p := make([]byte, 1); ; {
				m, err := r.Body.Read(p)
				now := time.Now()
				longest, last = max(longest, now.Sub(last)), now
				if n += m; err == nil {
					continue
				}
				if errors.Is(err, io.EOF) && n == 20 {
					err = nil
				}
				read <- err
				return
			}
		})), time.Second)
		defer stop()
		began := time.Now()
		req, err := http.NewRequest("PUT", "http://"+addr, &trickle{20, idle * 6 / 100})
		if err != nil {
			t.Fatal(err)
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close() // what the handler read is what counts
		}
		err = <-read
		if took := time.Since(began); err == nil && took < idle {
			err = fmt.Errorf("the upload took %v, which is not longer than a client may be idle", took)
		}
		return longest, err
	})
}

func TestBody_TheDeadlineDoesNotOutliveTheBody(t *testing.T) {
	atSomePace(t, func(idle time.Duration) (time.Duration, error) {
		o := NewObserver(ObserverOptions{Log: quiet(), Level: LogNone, BodyIdle: idle})
		ended := make(chan error, 1)
		var stopped time.Duration
		addr, stop, _ := serving(t, o.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			began := time.Now()
			_, err := io.Copy(io.Discard, r.Body)
			stopped = time.Since(began)
			_, _ = r.Body.Read(make([]byte, 1)) // one that asks again
			select {
			case <-r.Context().Done():
				err = errors.Join(err, errors.New("the request was given up after its body had ended"))
			case <-time.After(2 * idle): // long after the deadline
			}
			ended <- err
		})), time.Second)
		defer stop()
		req, err := http.NewRequest("PUT", "http://"+addr, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close() // what the handler saw is what counts
		}
		err = <-ended // first: the handler writes stopped
		return stopped, err
	})
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
		case <-time.After(time.Minute):
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
	for _, name := range []string{"file", "part", "reader"} {
		atSomePace(t, func(idle time.Duration) (time.Duration, error) {
			stopped, problem := slowly(t, idle, name)
			if problem != nil {
				problem = fmt.Errorf("%s: %w", name, problem)
			}
			return stopped, problem
		})
	}
}

// slowly downloads 32 MiB, with a rest after each, so that all of them take longer
// than a client may be idle. It returns the longest time between two of them.
func slowly(t *testing.T, idle time.Duration, name string) (stopped time.Duration, problem error) {
	t.Helper()
	began := time.Now()
	c, done := download(t, idle, 0, 32<<20, tellings[name])
	defer func() { _ = c.Close() }()
	res, err := http.ReadResponse(bufio.NewReaderSize(c, 1<<20), nil)
	last := time.Now()
	if err != nil {
		return last.Sub(began), err
	}
	part := make([]byte, 1<<20)
	for i := range 32 {
		_, err := io.ReadFull(res.Body, part)
		now := time.Now()
		stopped, last = max(stopped, now.Sub(last)), now
		if err != nil {
			return stopped, fmt.Errorf("after %d MiB: %w", i, err)
		}
		for j, b := range part {
			if b != byte(j>>8+i) {
				t.Fatalf("%s: byte %d of MiB %d is %d", name, j, i, b)
			}
		}
		<-time.After(idle / 10) // the pace of a slow client is what is tested
	}
	if took := time.Since(began); took < idle {
		t.Fatalf("%s: it took %v, which is not longer than a client may be idle", name, took)
	}
	return stopped, <-done
}

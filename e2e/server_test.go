package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/daemon"
)

// server is a registry under test: one data directory, one address, any number
// of lives.
type server struct {
	t    *testing.T
	data string
	host string // HOST:PORT
	url  string
	args []string
	log  *syncBuffer
	proc *daemon.Process
}

// serve starts a registry on an empty data directory. It ends with the test.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	addr, err := daemon.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, data: t.TempDir(), host: addr, url: "http://" + addr, args: args, log: &syncBuffer{}}
	t.Cleanup(func() {
		if s.proc != nil {
			s.proc.Kill()
		}
		if t.Failed() {
			log := s.log.String()
			t.Logf("end of the server's log:\n%s", log[max(0, len(log)-8<<10):])
		}
	})
	s.start()
	return s
}

func (s *server) start() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	p, err := daemon.Start(ctx, daemon.Options{
		Path: fairway, Log: s.log, Ready: s.url + "/readyz",
		Args: append([]string{"serve", "--data", s.data, "--listen", s.host}, s.args...),
	})
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.log)
	}
	s.proc = p
}

func (s *server) stop() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if err := s.proc.Stop(ctx); err != nil {
		s.t.Fatalf("stop: %v\n%s", err, s.log)
	}
}

// cli runs a command of fairway against the server and returns its output.
func (s *server) cli(args ...string) string {
	s.t.Helper()
	return run(s.t, fairway, append(args, "--server", s.url)...)
}

// report is what `gc run --json` promises.
type report struct {
	State      string           `json:"state"`
	Examined   int64            `json:"examined"`
	Collected  int64            `json:"collected"`
	Trashed    int64            `json:"trashed"`
	FreedBytes int64            `json:"freed_bytes"`
	Kept       map[string]int64 `json:"kept"`
	Failed     int64            `json:"failed"`
}

// collect collects everything that is garbage, without window and trash.
func (s *server) collect(args ...string) report {
	s.t.Helper()
	out := s.cli(append([]string{"gc", "run", "--window", "0", "--trash", "0", "--json"}, args...)...)
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.t.Fatalf("gc run --json: %v\n%s", err, out)
	}
	if r.Failed != 0 {
		s.t.Errorf("the collection failed on %d items: %s", r.Failed, out)
	}
	return r
}

// disk returns the bytes and the number of the objects on disk. Objects are in
// subdirectories; files beside those belong to the storage itself.
func (s *server) disk() (sizeBytes int64, objects int) {
	s.t.Helper()
	root := filepath.Join(s.data, "blobs")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an upload or a purge went on meanwhile
		}
		if err != nil || d.IsDir() || filepath.Dir(path) == root {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sizeBytes += info.Size()
			objects++
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return sizeBytes, objects
}

// status sends a request without a body and returns the status of the answer.
func (s *server) status(method, path string) int {
	s.t.Helper()
	resp := s.do(method, path, nil, nil)
	return resp.StatusCode
}

// do sends a request; the body of the answer is read and closed.
func (s *server) do(method, path string, header http.Header, body []byte) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	resp.Body = readBody{Reader: bytes.NewReader(b.Bytes())}
	return resp
}

type readBody struct{ *bytes.Reader }

func (readBody) Close() error { return nil }

// syncBuffer is a log that a process writes while a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/daemon"
)

// server is a contestant that runs.
type server struct {
	name string
	addr string // HOST:PORT
	data string
	proc *daemon.Process
	log  *os.File

	again func(*bench) (*server, error) // starts it once more, on the same data
}

func (s *server) url() string { return "http://" + s.addr }

func (s *server) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_ = s.proc.Stop(ctx) // it is ended one way or the other
	_ = s.log.Close()
}

// sample is what some work took, and cost the server.
type sample struct{ took, cpu time.Duration }

// measure runs work that returns how long its measured part took.
func (s *server) measure(work func() (time.Duration, error)) (m sample, err error) {
	before, err := s.proc.Usage()
	if err != nil {
		return m, err
	}
	if m.took, err = work(); err != nil {
		return m, fmt.Errorf("%s: %w", s.name, err)
	}
	after, err := s.proc.Usage()
	m.cpu = after.CPU - before.CPU
	return m, err
}

func (b *bench) start(name, path, ready string, args func(addr, data string) ([]string, error), env ...string) (*server, error) {
	addr, err := daemon.FreeAddr()
	if err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return nil, err
	}
	// Workers of nginx give up root and must still reach their files.
	for _, d := range []string{b.dir, data} {
		if err := os.Chmod(d, 0o755); err != nil {
			return nil, err
		}
	}
	return b.startAt(name, path, ready, addr, data, args, env...)
}

func (b *bench) startAt(name, path, ready, addr, data string, args func(addr, data string) ([]string, error), env ...string) (*server, error) {
	list, err := args(addr, data)
	if err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(filepath.Join(data, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	p, err := daemon.Start(ctx, daemon.Options{Path: path, Args: list, Env: env, Log: logFile, Ready: "http://" + addr + ready})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, read(logFile.Name()))
	}
	// Whoever interrupts the benchmark does not wait: without its server each
	// part fails at once and cleans up.
	context.AfterFunc(b.ctx, p.Kill)
	return &server{name: name, addr: addr, data: data, proc: p, log: logFile, again: func(b *bench) (*server, error) {
		return b.startAt(name, path, ready, addr, data, args, env...)
	}}, nil
}

// startFairway starts Fairway as a user would, but for the background
// collection, which the collector's own parts time.
func (b *bench) startFairway(args ...string) (*server, error) {
	return b.start("fairway", b.fairway, "/readyz", fairwayArgs(args))
}

func fairwayArgs(more []string) func(addr, data string) ([]string, error) {
	return func(addr, data string) ([]string, error) {
		return append([]string{"serve", "--data", data, "--listen", addr, "--gc-interval", "0"}, more...), nil
	}
}

func (b *bench) startDistribution() (*server, error) {
	return b.start("distribution", b.registry, "/", func(addr, data string) ([]string, error) {
		config := filepath.Join(data, "config.yml")
		text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
  cache: {blobdescriptor: inmemory}
  delete: {enabled: true}
catalog: {maxentries: 10000}
http: {addr: %q}
`, data, addr)
		return []string{"serve", config}, os.WriteFile(config, []byte(text), 0o644)
	}, "OTEL_TRACES_EXPORTER=none")
}

// startNginx serves the files in data/www.
func (b *bench) startNginx() (*server, error) {
	return b.start("nginx", b.nginx, "/ready", func(addr, data string) ([]string, error) {
		config := filepath.Join(data, "nginx.conf")
		text := fmt.Sprintf(`daemon off;
worker_processes auto;
pid %[1]s/pid;
error_log %[1]s/error.log crit;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  client_body_temp_path %[1]s/tmp; proxy_temp_path %[1]s/tmp; fastcgi_temp_path %[1]s/tmp; uwsgi_temp_path %[1]s/tmp; scgi_temp_path %[1]s/tmp;
  server { listen %[2]s; root %[1]s/www; }
}
`, data, addr)
		if err := os.MkdirAll(filepath.Join(data, "www"), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(data, "www", "ready"), nil, 0o644); err != nil {
			return nil, err
		}
		return []string{"-c", config}, os.WriteFile(config, []byte(text), 0o644)
	})
}

// startBare serves the files of its data out of memory with net/http alone.
func (b *bench) startBare() (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return b.start("net-http", self, "/", func(addr, data string) ([]string, error) {
		return []string{bareArg, addr, data}, nil
	})
}

// bareArg makes this program the server of startBare.
const bareArg = "serve-bare"

// serveBare serves the files of a directory, each read once.
func serveBare(addr, dir string) error {
	var files sync.Map // path to bytes
	s := &http.Server{Addr: addr, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := files.Load(r.URL.Path)
		if !ok {
			read, err := os.ReadFile(filepath.Join(dir, filepath.Base(r.URL.Path)))
			if err != nil {
				return // the empty answer that start waits for
			}
			content, _ = files.LoadOrStore(r.URL.Path, read)
		}
		h := w.Header()
		h["Content-Type"] = []string{"application/octet-stream"}
		h["Content-Length"] = []string{strconv.Itoa(len(content.([]byte)))}
		if r.Method != http.MethodHead {
			_, _ = w.Write(content.([]byte)) // the client may have gone
		}
	})}
	return s.ListenAndServe()
}

// three starts all contestants, Fairway first.
func (b *bench) three() (servers []*server, stop func(), err error) {
	stop = func() {
		for _, s := range servers {
			s.stop()
			_ = os.RemoveAll(s.data) // the whole tree goes at the end anyway
		}
	}
	for _, start := range []func() (*server, error){
		func() (*server, error) { return b.startFairway() }, b.startDistribution, b.startNginx,
	} {
		s, err := start()
		if err != nil {
			stop()
			return nil, nil, err
		}
		servers = append(servers, s)
	}
	return servers, stop, nil
}

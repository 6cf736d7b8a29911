package crowd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-registry/fairway/internal/daemon"
)

// Origin is a real registry (`fairway serve`) behind a proxy that is its link:
// it sends at a rate, counts what it sends by digest, and asks for a password
// when told.
type Origin struct {
	Host  string // HOST:PORT of the link, which is all that agents know
	URL   string
	Admin string // URL of the registry itself

	o      OriginOptions
	addr   string
	proc   *daemon.Process
	server *http.Server
	served chan struct{}
	link   bucket

	private atomic.Pointer[string] // a password, if one is asked for
	mu      sync.Mutex
	sent    map[string]int64 // bytes of bodies, by the last element of the path
}

// OriginOptions says how to start one.
type OriginOptions struct {
	Fairway string // the binary
	Dir     string
	Rate    int64        // bytes a second; 0: no limit
	Listen  net.Listener // of the link; nil: a free port on loopback
	Log     io.Writer
}

// StartOrigin starts a registry on an empty directory.
func StartOrigin(ctx context.Context, o OriginOptions) (*Origin, error) {
	addr, err := daemon.FreeAddr()
	if err != nil {
		return nil, err
	}
	if o.Listen == nil {
		if o.Listen, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	g := &Origin{
		Host: o.Listen.Addr().String(), URL: "http://" + o.Listen.Addr().String(), Admin: "http://" + addr,
		o: o, addr: addr, link: newBucket(o.Rate), sent: map[string]int64{}, served: make(chan struct{}),
	}
	if err := g.Start(ctx); err != nil {
		return nil, errors.Join(err, o.Listen.Close())
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { cut(w) }
	g.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if want := g.private.Load(); want != nil && strings.HasPrefix(r.URL.Path, "/v2/") {
			if _, got, _ := r.BasicAuth(); got != *want {
				w.Header().Set("WWW-Authenticate", `Basic realm="crowd"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"a password is needed"}]}`, http.StatusUnauthorized)
				return
			}
			r.Header.Del("Authorization")
		}
		proxy.ServeHTTP(&counted{w, r.Context(), g, path.Base(r.URL.Path)}, r)
	})}
	go func() {
		defer close(g.served)
		_ = g.server.Serve(o.Listen) // until it is closed
	}()
	return g, nil
}

// cut closes the connection, as a registry that is down does.
func cut(w http.ResponseWriter) {
	if c, ok := w.(*counted); ok {
		w = c.ResponseWriter
	}
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close() // what was to be done to it
	}
}

// counted is an answer that goes through the link.
type counted struct {
	http.ResponseWriter
	ctx context.Context
	g   *Origin
	key string
}

func (c *counted) Write(p []byte) (int, error) {
	if err := c.g.link.take(c.ctx, len(p)); err != nil {
		return 0, err
	}
	n, err := c.ResponseWriter.Write(p)
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.g.sent[c.key] += int64(n)
	return n, err
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Start starts the registry, the first time or after Kill.
func (g *Origin) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var err error
	g.proc, err = daemon.Start(ctx, daemon.Options{
		Path: g.o.Fairway, Args: []string{"serve", "--data", filepath.Join(g.o.Dir, "registry"), "--listen", g.addr, "--gc-interval", "0"},
		Log: g.o.Log, Ready: g.Admin + "/readyz",
	})
	return err
}

// Kill kills the registry. Whoever asks meets closed connections.
func (g *Origin) Kill() { g.proc.Kill() }

// Close ends the registry and the link.
func (g *Origin) Close() {
	_ = g.server.Close() // with whatever hangs in it
	<-g.served
	g.proc.Kill()
}

// Private makes the registry ask for a password; "" ends that.
func (g *Origin) Private(password string) {
	if password == "" {
		g.private.Store(nil)
		return
	}
	g.private.Store(&password)
}

// Sent returns the bytes of a blob that have left the registry.
func (g *Origin) Sent(digest string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sent[digest]
}

// Forget drops what has been counted.
func (g *Origin) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.sent)
}

// Await polls until ok, for as long as ctx lasts.
func Await(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// secretFile writes the cluster's secret.
func secretFile(dir string) (string, error) {
	path := filepath.Join(dir, "swarm.secret")
	return path, os.WriteFile(path, []byte(Secret+"\n"), 0o600)
}

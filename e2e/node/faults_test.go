package node

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestN7_UpstreamAnswersWrongBytes: what does not have its digest is never given
// out whole, and once the upstream is well again the pull works.
func TestN7_UpstreamAnswersWrongBytes(t *testing.T) {
	u := startUpstream(t)
	a := startAgent(t, u, "--runtime", "none", "--quota", "100MiB")
	for _, tc := range []struct {
		name  string
		wrong func(n int64, p []byte)
	}{
		{"a bit in the first piece", func(n int64, p []byte) { p[100] ^= 1 }},
		{"a bit in the last byte", func(n int64, p []byte) { p[n-1] ^= 1 }},
		{"zeros", func(n int64, p []byte) { clear(p) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a.t = t
			im, _ := u.filler(3)
			l := im.layers[0]
			u.breaks(blobFault(l.Digest, func(w http.ResponseWriter, _ *http.Request, resp *http.Response) {
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					return
				}
				tc.wrong(int64(len(b)), b)
				w.WriteHeader(resp.StatusCode)
				_, _ = w.Write(b) // the reader may have gone
			}))
			resp, got, err := a.get("/v2/" + u.repoOf(im) + "/blobs/" + l.Digest.String())
			if err == nil && resp.StatusCode == http.StatusOK {
				t.Errorf("it served %s as %s, to the end", got, l.Digest)
			}
			if gone := a.missing(l.Digest); len(gone) == 0 {
				t.Error("wrong bytes are in the cache")
			}
			u.breaks(nil)
			a.serves(u.repoOf(im), l.Digest)
		})
	}
	a.t = t
}

// TestN8_UpstreamDown: what is cached is served, by tag too, and says how old it
// is; what is not is refused clearly and at once.
func TestN8_UpstreamDown(t *testing.T) {
	s := newScene(t, "2", "--quota", "100MiB")
	im, ref := s.u.runnable("lib/app:1", 3)
	other, _ := s.u.filler(2)
	s.c.pull(ref)
	s.c.removeImage(ref)
	s.u.breaks(down)
	s.c.pull(ref)
	s.c.run(ref)
	resp, got, err := s.a.get("/v2/lib/app/manifests/1")
	if err != nil || resp.StatusCode != http.StatusOK || got != im.index.Digest {
		t.Fatalf("%v, %v, %s", resp, err, got)
	}
	if resp.Header.Get("Fairway-Stale") == "" {
		t.Error("it does not say that this is the last known")
	}
	began := time.Now()
	resp, _, err = s.a.get("/v2/" + s.u.repoOf(other) + "/blobs/" + other.layers[0].Digest.String())
	if err != nil || resp.StatusCode < 500 {
		t.Errorf("what is nowhere: %v, %v", resp, err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to say so", took)
	}
}

// TestN7_UpstreamCutsConnections: each answer ends after a while, and the pull
// arrives all the same, without starting over.
func TestN7_UpstreamCutsConnections(t *testing.T) {
	s := newScene(t, "2", "--quota", "100MiB")
	im, ref := s.u.filler(8)
	d := im.layers[0].Digest
	var answers atomic.Int64
	s.u.breaks(blobFault(d, func(w http.ResponseWriter, _ *http.Request, resp *http.Response) {
		w.WriteHeader(resp.StatusCode)
		if answers.Add(1) > 3 {
			_, _ = io.Copy(w, resp.Body) // the reader may have gone
			return
		}
		_, _ = io.CopyN(w, resp.Body, 2*mib)
		panic(http.ErrAbortHandler)
	}))
	s.c.pull(ref)
	if n := answers.Load(); n != 4 {
		t.Errorf("it took %d answers, want 3 that were cut and 1", n)
	}
	if sent := s.u.bodyBytes(d); sent > 9*mib {
		t.Errorf("the upstream sent %d bytes for 8 MiB", sent)
	}
	s.a.arrives("pulled", d)
}

// TestN8_UpstreamSlow: the runtime gets the first byte long before the upstream
// has sent the last, and ten pulls are one download.
func TestN8_UpstreamSlow_FirstByteBeforeTheLast_SingleFlight(t *testing.T) {
	u := startUpstream(t)
	a := startAgent(t, u, "--runtime", "none", "--quota", "100MiB")
	im, _ := u.filler(6)
	d := im.layers[0].Digest
	gone := make(chan struct{})
	u.breaks(blobFault(d, func(w http.ResponseWriter, r *http.Request, resp *http.Response) {
		w.WriteHeader(resp.StatusCode)
		_, _ = io.CopyN(w, resp.Body, 3*mib) // the reader may have gone
		_ = http.NewResponseController(w).Flush()
		select {
		case <-gone:
		case <-r.Context().Done():
			return
		}
		_, _ = io.Copy(w, resp.Body)
	}))
	var begun, all sync.WaitGroup
	for range 10 {
		begun.Add(1)
		all.Go(func() {
			var once sync.Once
			defer once.Do(begun.Done)
			resp, err := http.Get(a.url + "/v2/" + u.repoOf(im) + "/blobs/" + d.String() + "?ns=" + u.host)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if _, err := io.CopyN(io.Discard, resp.Body, 2*mib); err != nil {
				t.Error(err)
			}
			once.Do(begun.Done)
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != im.layers[0].Size-2*mib {
				t.Errorf("the rest: %d bytes, %v", n, err)
			}
		})
	}
	begun.Wait() // each has 2 MiB while the upstream holds the last half back
	close(gone)
	all.Wait()
	if n := u.asked("GET", "/blobs/"+d.String()); n != 1 {
		t.Errorf("the upstream was asked %d times for it", n)
	}
}

// TestMirror_PassesAnswersThrough: a runtime has to see what the registry says.
func TestMirror_PassesAnswersThrough(t *testing.T) {
	u := startUpstream(t)
	a := startAgent(t, u, "--runtime", "none")
	// Too many requests come last: until Retry-After has passed, the node answers so itself.
	for _, status := range []int{http.StatusUnauthorized, http.StatusNotFound, http.StatusForbidden, http.StatusTooManyRequests} {
		u.breaks(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.Header().Set("WWW-Authenticate", `Basic realm="theirs"`)
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			return true
		})
		resp, _, err := a.get("/v2/lib/x/manifests/" + strconv.Itoa(status))
		if err != nil || resp.StatusCode != status {
			t.Errorf("%d became %v, %v", status, resp, err)
			continue
		}
		if status == http.StatusUnauthorized && !strings.Contains(resp.Header.Get("WWW-Authenticate"), "theirs") {
			t.Errorf("the challenge is %q", resp.Header)
		}
		if status == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "7" {
			t.Errorf("Retry-After is %q", resp.Header)
		}
	}
}

// TestN8_AgentDown_PullsGoDirectly uses what `fairway node setup` writes.
func TestN8_AgentDown_PullsGoDirectly(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			u, c := startUpstream(t), startContainerd(t, version)
			a := startAgent(t, u, "--runtime", "containerd://"+c.sock, "--quota", "100MiB")
			c.hosts = a.setUp("containerd", "etc", "containerd", "certs.d")
			one, oneRef := u.runnable("lib/one:1", 2)
			_, twoRef := u.runnable("lib/two:1", 2)
			c.pull(oneRef)
			a.arrives("pulled through the agent", one.layers[1].Digest)
			a.stop()
			c.pull(twoRef)
			c.run(twoRef)

			undone := run(t, fairway, "node", "setup", "containerd", "--undo", "--yes", "--root", filepath.Join(a.data, "..", "etc-root"))
			t.Log(undone)
			if _, err := os.Stat(filepath.Join(c.hosts, u.host, "hosts.toml")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after --undo the configuration is there: %v", err)
			}
			c.pull(oneRef)
		})
	}
}

// setUp has `fairway node setup` write a runtime's configuration below a root of
// its own, and returns a path in it.
func (a *agent) setUp(runtime string, path ...string) string {
	a.t.Helper()
	root := filepath.Join(a.data, "..", "etc-root")
	if err := os.MkdirAll(filepath.Join(root, "etc", "containerd"), 0o755); err != nil {
		a.t.Fatal(err)
	}
	a.t.Log(run(a.t, fairway, "node", "setup", runtime, "--yes", "--root", root, "--listen", a.host, "--upstreams", a.u.host+"="+a.u.url))
	return filepath.Join(append([]string{root}, path...)...)
}

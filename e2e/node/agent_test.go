package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/daemon"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// agent is a `fairway node` under test: one data directory, one address, any
// number of lives.
type agent struct {
	t    testing.TB
	u    *upstream
	data string
	host string // HOST:PORT of the mirror
	url  string
	path string // of the program: fairway, or what starts it
	args []string
	log  *logBuffer
	proc *daemon.Process
}

// startAgent starts an agent of a registry. Later arguments win over the
// defaults here, which are those of a user but for the times: what nobody holds
// is cold at once.
func startAgent(t testing.TB, u *upstream, args ...string) *agent {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "n-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, dir) })
	return startAgentIn(t, u, dir, args...)
}

func startAgentIn(t testing.TB, u *upstream, dir string, args ...string) *agent {
	t.Helper()
	a := newAgent(t, u, dir, args...)
	a.start()
	return a
}

// newAgent makes an agent that has not been started.
func newAgent(t testing.TB, u *upstream, dir string, args ...string) *agent {
	t.Helper()
	addr, err := daemon.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, u: u, path: fairway, data: filepath.Join(dir, "node"), host: addr, url: "http://" + addr, log: newLog(t, "the agent")}
	a.args = append([]string{
		"node", "--registry", u.url, "--name", "node-1", "--data", a.data, "--listen", addr, "--warm", "0s", "--tag-ttl", "0s", "--floor", "0",
	}, args...)
	t.Cleanup(func() {
		if a.proc != nil {
			a.proc.Kill()
		}
	})
	return a
}

func (a *agent) start() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer cancel()
	p, err := daemon.Start(ctx, daemon.Options{Path: need(a.t, a.path), Args: a.args, Log: a.log, Ready: a.url + "/healthz"})
	if err != nil {
		a.t.Fatalf("%v\n%s", err, a.log)
	}
	a.proc = p
}

func (a *agent) stop() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if err := a.proc.Stop(ctx); err != nil {
		a.t.Errorf("the agent ended badly: %v", err)
	}
}

// sigkill ends it as a crash does.
func (a *agent) sigkill() { a.proc.Kill() }

func (a *agent) restart(args ...string) {
	a.t.Helper()
	a.stop()
	a.args = append(a.args, args...)
	a.start()
}

// ls is what `fairway cache ls` tells.
func (a *agent) ls() map[digest.Digest]nodeapi.CacheItem {
	a.t.Helper()
	items := map[digest.Digest]nodeapi.CacheItem{}
	for _, i := range fairwayJSON[nodeapi.CacheList](a.t, "cache", "ls", "--node", a.url).Items {
		items[i.Digest] = i
	}
	return items
}

func (a *agent) gc() nodeapi.Evicted {
	a.t.Helper()
	return fairwayJSON[nodeapi.Evicted](a.t, "cache", "gc", "--node", a.url)
}

// file is where the bytes of a blob are.
func (a *agent) file(d digest.Digest) string {
	return filepath.Join(a.data, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// missing lists what of an image is not in the cache, by the word of the agent
// and by the look of the disk: a file that is as long as the blob and has no
// holes.
func (a *agent) missing(digests ...digest.Digest) []string {
	a.t.Helper()
	items := a.ls()
	var gone []string
	for _, d := range digests {
		item, ok := items[d]
		if !ok || item.State != "complete" {
			gone = append(gone, fmt.Sprintf("%s (%q)", d, item.State))
			continue
		}
		var st syscall.Stat_t
		err := syscall.Stat(a.file(d), &st)
		if err != nil || st.Size != item.SizeBytes || st.Blocks*512 < st.Size {
			gone = append(gone, fmt.Sprintf("%s (file of %d bytes in %d blocks: %v)", d, st.Size, st.Blocks, err))
		}
	}
	return gone
}

// keeps fails unless all of it is in the cache, and tells what the agent logged
// of what is not.
func (a *agent) keeps(what string, digests ...digest.Digest) {
	a.t.Helper()
	for _, gone := range a.missing(digests...) {
		a.t.Errorf("%s: lost %s", what, gone)
		d, _, _ := strings.Cut(gone, " ")
		for line := range strings.Lines(a.log.String()) {
			if strings.Contains(line, d) {
				a.t.Log(strings.TrimSpace(line))
			}
		}
	}
}

// arrives waits until all of it is in the cache: a runtime has the last byte a
// moment before the disk has.
func (a *agent) arrives(what string, digests ...digest.Digest) {
	a.t.Helper()
	eventually(a.t, what+" arrives", func() (bool, string) {
		gone := a.missing(digests...)
		return len(gone) == 0, strings.Join(gone, ", ")
	})
}

// loses waits until none of it is left, by the look of the disk.
func (a *agent) loses(what string, digests ...digest.Digest) {
	a.t.Helper()
	eventually(a.t, what+" goes", func() (bool, string) {
		for _, d := range digests {
			if _, err := os.Stat(a.file(d)); !errors.Is(err, fs.ErrNotExist) {
				out, errs, _ := try(a.t, fairway, "cache", "explain", d.String(), "--node", a.url)
				return false, fmt.Sprintf("%s is there (%v): %s%s", d, err, out, errs)
			}
		}
		return true, ""
	})
}

// disk is how much the cache's files take.
func (a *agent) disk() int64 {
	var sum int64
	err := filepath.WalkDir(filepath.Join(a.data, "blobs"), func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was evicted meanwhile
		}
		if err != nil || d.IsDir() || strings.HasSuffix(d.Name(), ".pieces") {
			return err
		}
		if info, err := d.Info(); err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		a.t.Error(err)
	}
	return sum
}

// watchQuota samples the disk until the returned function is called, which
// fails if the quota was ever passed.
func (a *agent) watchQuota(quota int64) (check func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	var most int64
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				most = max(most, a.disk())
			}
		}
	}()
	end := func() {
		if stop != nil {
			close(stop)
			<-done
			stop = nil
		}
	}
	a.t.Cleanup(end)
	return func() {
		a.t.Helper()
		end()
		a.t.Logf("the cache took at most %d of %d bytes", most, quota)
		// A file system allocates in blocks: each file may take one more.
		if slack := int64(256 << 10); most > quota+slack {
			a.t.Errorf("the cache took %d bytes, its quota is %d", most, quota)
		}
	}
}

// get sends a GET to the mirror as a runtime does, and returns the answer's
// status and header, the digest of the body, and how the body ended.
func (a *agent) get(path string, header ...string) (resp *http.Response, body digest.Digest, err error) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+path+"?ns="+a.u.host, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, resp.Body)
	return resp, digest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), err
}

// serves fails unless the mirror gives exactly these bytes.
func (a *agent) serves(repo string, d digest.Digest) {
	a.t.Helper()
	resp, got, err := a.get("/v2/" + repo + "/blobs/" + d.String())
	switch {
	case err != nil:
		a.t.Errorf("GET %s: %v", d, err)
	case resp.StatusCode != http.StatusOK || got != d:
		a.t.Errorf("GET %s: %s, %s", d, resp.Status, got)
	}
}

// metric is the sum of a metric over its labels.
func (a *agent) metric(name string) float64 {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+"/metrics", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if bare, _, _ := strings.Cut(key, "{"); !ok || bare != name {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err != nil {
			a.t.Fatal(err)
		}
		sum, found = sum+v, true
	}
	if !found {
		a.t.Errorf("there is no metric %s", name)
	}
	return sum
}

// digests lists what is in the cache.
func (a *agent) digests() []digest.Digest {
	var ds []digest.Digest
	for d := range a.ls() {
		ds = append(ds, d)
	}
	slices.Sort(ds)
	return ds
}

// hasEvent fails unless the agent has told its owner of something of a kind.
func (a *agent) hasEvent(kind string) {
	a.t.Helper()
	eventually(a.t, "an event "+kind, func() (bool, string) {
		list := fairwayJSON[nodeapi.EventList](a.t, "cache", "events", "--node", a.url)
		return slices.ContainsFunc(list.Events, func(e nodeapi.Event) bool { return e.Kind == kind }), fmt.Sprint(list)
	})
}

func (a *agent) status() nodeapi.Status {
	a.t.Helper()
	return fairwayJSON[nodeapi.Status](a.t, "node", "status", "--node", a.url)
}

// limits changes the limits while the agent runs.
func (a *agent) limits(args ...string) {
	a.t.Helper()
	run(a.t, fairway, append([]string{"cache", "limits", "--node", a.url}, args...)...)
}

package mirror_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

func TestPull_SecondTimeComesFromTheCache(t *testing.T) {
	u := newUpstream(t)
	i := u.push("library/app", "v1", "a", 3<<20, 100)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "library/app", "v1", i)
	before := u.bytes.Load()
	n.pull("", "library/app", "v1", i)
	if now := u.bytes.Load(); now != before {
		t.Errorf("%d bytes of blobs were fetched again", now-before)
	}
	path := "/v2/library/app/blobs/" + string(i.layers[0])
	n.get(path).want(200).wantHeader("Fairway-Source", "cache").wantHeader("Accept-Ranges", "bytes").
		wantHeader("Docker-Content-Digest", string(i.layers[0])).wantHeader("Etag", `"`+string(i.layers[0])+`"`).wantHeader("Content-Length", strconv.Itoa(3<<20))
	n.do("HEAD", path).want(200).wantHeader("Content-Length", strconv.Itoa(3<<20)).wantHeader("Fairway-Source", "cache")
	n.get(path, "If-None-Match", `"`+string(i.layers[0])+`"`).want(304)
	m := "/v2/library/app/manifests/"
	n.do("HEAD", m+"v1").want(200).wantHeader("Content-Length", strconv.Itoa(len(i.content))).wantHeader("Content-Type", oci.MediaTypeImage)
	n.get(m+"v1", "If-None-Match", `"`+string(i.digest)+`"`).want(304)
	n.get(m+string(i.digest)).want(200).wantHeader("Fairway-Source", "cache").wantBody(i.content)
	if got := n.metric("fairway_node_bytes_total", "source", "cache"); got < 6<<20 {
		t.Errorf("%v bytes were counted as from the cache", got)
	}
	for _, want := range []string{"bytes=3145728 cache_bytes=0 peer_bytes=0 upstream_bytes=3145728", "bytes=3145728 cache_bytes=3145728 peer_bytes=0 upstream_bytes=0"} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("no line in the log says %q", want)
		}
	}
	if !strings.Contains(n.log.String(), "ttfb_ms=") {
		t.Error("no line in the log tells of a pull")
	}
}

func TestPull_ByIndexAndDigest(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "amd64", "a", 1000)
	d, c := u.index("app", "v1", i)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1", "Accept", oci.MediaTypeIndex).want(200).wantBody(c).wantHeader("Content-Type", oci.MediaTypeIndex)
	n.pull("", "app", string(i.digest), i)
	u.Close() // what is public and here needs no upstream
	n.get("/v2/app/manifests/" + string(d)).want(200).wantBody(c)
	n.pull("", "app", string(i.digest), i)
	n.restart()
	n.pull("", "app", string(i.digest), i)
	tree, err := n.index.Tree(t.Context(), []oci.Digest{i.config})
	if err != nil || len(tree) != 4 {
		t.Errorf("the config leads to %v, %v; want index, manifest, config and layer", tree, err)
	}
	configs, err := n.index.ConfigsOfChain(t.Context(), i.layers[0]) // of one layer the chain ID is its diff ID
	if err != nil || len(configs) != 1 || configs[0] != i.config {
		t.Errorf("the chain ID leads to %v, %v; want the config", configs, err)
	}
}

func TestN9_TenPullsOfALayerFetchItOnce(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 5<<20+17)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200)
	before := u.bytes.Load()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { n.get("/v2/app/blobs/" + string(i.layers[0])).want(200).wantBody(i.bytes[0]) })
	}
	all.Wait()
	if got := u.bytes.Load() - before; got != int64(len(i.bytes[0])) {
		t.Errorf("ten pulls took %d bytes from the upstream, want %d", got, len(i.bytes[0]))
	}
}

func TestTags_TenAtOnceAskTheUpstreamOnce(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 10)
	waiting := make(chan struct{})
	release := make(chan struct{})
	var first sync.Once
	u.on(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			first.Do(func() { close(waiting) })
			<-release
		}
		return false
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { n.get("/v2/app/manifests/v1").want(200).wantBody(i.content) })
	}
	<-waiting
	eventually(t, "all wait for one question", func() bool {
		// Those who wait, and the one that asks for all.
		return strings.Count(stacks(), "mirror.once[") > 10
	})
	close(release)
	all.Wait()
	if h, g := u.count("HEAD"), u.count("GET"); h != 1 || g != 1 {
		t.Errorf("the upstream was asked %d times for the tag and %d times for the manifest, want once", h, g)
	}
}

func TestPull_FirstByteComesBeforeTheLast(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 4*piece.Size)
	release := make(chan struct{})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:2*piece.Size])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-u.end:
		}
		_, _ = w.Write(i.bytes[0][2*piece.Size:])
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200)
	path := "/v2/app/blobs/" + string(i.layers[0])
	res, err := http.Get(n.http.URL + path) //nolint:noctx // ends with the server
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got := make([]byte, 2*piece.Size)
	if _, err := io.ReadFull(res.Body, got); err != nil || !bytes.Equal(got, i.bytes[0][:len(got)]) {
		t.Fatalf("the first half did not come while the second is missing: %v", err)
	}
	// What is here can be read at once, also by another.
	n.begin(path, "bytes=300000-600000", 10).want(206).wantBody(i.bytes[0][300000:300010]).
		wantHeader("Content-Range", fmt.Sprintf("bytes 300000-600000/%d", len(i.bytes[0]))).wantHeader("Fairway-Source", "upstream")
	close(release)
	rest, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(rest, i.bytes[0][len(got):]) {
		t.Fatalf("the second half: %d bytes, %v", len(rest), err)
	}
	if u.count("GET", "/blobs/") != 1 {
		t.Error("the range was fetched apart from the download under way")
	}
}

// trickle has the upstream send the first n bytes of a layer and no more until
// the channel is closed.
func trickle(u *upstream, i image, n int) (release chan struct{}) {
	release = make(chan struct{})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:n])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-u.end:
		}
		_, _ = w.Write(i.bytes[0][n:])
		return true
	})
	return release
}

func TestPull_FirstByteDoesNotWaitForAWholePiece(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 4*piece.Size)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200)
	release := trickle(u, i, 1000)
	res, err := http.Get(n.http.URL + layerPath(i)) //nolint:noctx // ends with the server
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got := make([]byte, 1000)
	if _, err := io.ReadFull(res.Body, got); err != nil || !bytes.Equal(got, i.bytes[0][:1000]) {
		t.Fatalf("a thousand bytes did not come: %v", err)
	}
	n.begin(layerPath(i), "bytes=990-", 10).want(206).wantBody(i.bytes[0][990:1000])
	close(release)
	rest, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(rest, i.bytes[0][1000:]) {
		t.Fatalf("the rest: %d bytes, %v", len(rest), err)
	}
}

func TestRange(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", piece.Size+500)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200)
	path, all := "/v2/app/blobs/"+string(i.layers[0]), i.bytes[0]
	for _, tc := range []struct {
		header string
		status int
		body   []byte
	}{
		{"bytes=0-0", 206, all[:1]},
		{"bytes=-10", 206, all[len(all)-10:]},
		{"bytes=262100-", 206, all[262100:]},
		{"bytes=5-99999999", 206, all[5:]},
		{"bytes=-99999999", 206, all},
		{"bytes=0-,5-6", 200, all},
		{"lines=0-1", 200, all},
		{"bytes=99999999-", 416, nil},
		{"bytes=5-4", 416, nil},
		{"bytes=-0", 416, nil},
		{"bytes=x-4", 416, nil},
	} {
		a := n.get(path, "Range", tc.header).want(tc.status)
		if tc.status == 416 {
			a.wantHeader("Content-Range", fmt.Sprintf("bytes */%d", len(all))).wantError(416, oci.CodeSizeInvalid)
			continue
		}
		a.wantBody(tc.body)
	}
	n.get(path, "Range", "bytes=0-0", "If-Range", `"other"`).want(200).wantBody(all)
}

func TestPull_AClientThatLeavesDoesNotEndTheDownload(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 3*piece.Size)
	release, begun := make(chan struct{}), make(chan struct{})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			close(begun)
			select {
			case <-release:
			case <-u.end:
			}
		}
		return false
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200)
	path := "/v2/app/blobs/" + string(i.layers[0])
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.http.URL+path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-begun
	leave()
	<-gone
	eventually(t, "the node notices", func() bool { return strings.Contains(n.log.String(), "a client left in the middle of a pull") })
	close(release)
	eventually(t, "the blob is complete although nobody waits", func() bool {
		info, err := n.store.Info(t.Context(), i.layers[0])
		return err == nil && info.State == "complete"
	})
	n.get(path).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "cache")
	if u.count("GET", "/blobs/") != 1 {
		t.Error("it was fetched twice")
	}
}

func TestN7_DownloadThatWasCutIsResumedAfterARestart(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 6*piece.Size+5)
	all := i.bytes[0]
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(all)))
		_, _ = w.Write(all[:3*piece.Size])
		_ = http.NewResponseController(w).Flush()
		<-u.end
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200)
	path := "/v2/app/blobs/" + string(i.layers[0])
	n.begin(path, "bytes=0-", 100).want(206)
	eventually(t, "three pieces are here", func() bool {
		info, err := n.store.Info(t.Context(), i.layers[0])
		return err == nil && info.Present >= 3*piece.Size
	})
	n.restart()
	u.on(nil)
	before := u.bytes.Load()
	n.get(path).want(200).wantBody(all)
	if got, want := u.bytes.Load()-before, int64(len(all)-3*piece.Size); got != want {
		t.Errorf("%d bytes were fetched after the restart, want %d", got, want)
	}
	if u.count("GET", "/blobs/", fmt.Sprintf("bytes=%d-", 3*piece.Size)) != 1 {
		t.Error("it did not go on where it was")
	}
}

func TestNamespace_IsNamedByQueryPrefixOrDefault(t *testing.T) {
	def, hub, other := newUpstream(t), newUpstream(t), newUpstream(t)
	a := def.push("library/app", "v1", "default", 10)
	b := hub.push("library/app", "v1", "hub", 10)
	c := other.push("library/app", "v1", "other", 10)
	n := start(t, nodeOptions{upstreams: []*upstream{def, hub, other}, as: []string{"registry.example", "docker.io", "127.0.0.1:5000"}})
	n.pull("", "library/app", "v1", a)
	n.pull("?ns=docker.io", "library/app", "v1", b)
	n.pull("?ns=registry-1.docker.io", "library/app", "v1", b)
	n.pull("?ns=127.0.0.1%3A5000", "library/app", "v1", c)
	n.pull("", "docker.io/library/app", "v1", b)
	n.pull("", "127.0.0.1_5000/library/app", "v1", c)
	n.pull("", "127.0.0.1:5000/library/app", "v1", c)
	// The query wins, so that containerd can have a repository of any name.
	n.get("/v2/docker.io/library/app/manifests/v1?ns=registry.example").want(404)
	docker := httptest.NewServer(n.mirror.For("docker.io"))
	defer docker.Close()
	n.http, docker = docker, n.http
	n.pull("", "library/app", "v1", b)
	n.http = docker
}

func TestN8_UpstreamThatIsNotAllowedIsRefusedAtOnce(t *testing.T) {
	u := newUpstream(t)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	for _, path := range []string{"/v2/app/manifests/v1?ns=evil.example", "/v2/app/blobs/" + string(sha(nil)) + "?ns=169.254.169.254"} {
		a := n.get(path).wantError(404, oci.CodeNameUnknown)
		if !strings.Contains(string(a.body), "upstreams") {
			t.Errorf("the answer does not name the setting: %s", a.body)
		}
	}
	if len(u.seen) != 0 {
		t.Errorf("the default upstream was asked instead: %v", u.seen)
	}
}

func TestWrites_AreRefused(t *testing.T) {
	n := start(t, nodeOptions{upstreams: []*upstream{newUpstream(t)}})
	for _, tc := range [][2]string{
		{"PUT", "/v2/app/manifests/v1"}, {"DELETE", "/v2/app/manifests/v1"}, {"POST", "/v2/app/blobs/uploads/"},
		{"PATCH", "/v2/app/blobs/uploads/x"}, {"GET", "/v2/app/blobs/uploads/x"}, {"DELETE", "/v2/app/blobs/" + string(sha(nil))}, {"GET", "/v2/_catalog"},
	} {
		n.do(tc[0], tc[1]).wantError(405, oci.CodeUnsupported).wantHeader("Allow", "GET, HEAD")
	}
	n.get("/v2/").want(200).wantBody([]byte("{}"))
	n.do("HEAD", "/v2/").want(200)
	n.get("/v2/nonsense").wantError(404, oci.CodeUnsupported)
	n.get("/v2/App/manifests/v1").wantError(400, oci.CodeNameInvalid)
	n.get("/v2/app/blobs/sha256:12").wantError(400, oci.CodeDigestInvalid)
}

func TestListings_PassThrough(t *testing.T) {
	u := newUpstream(t)
	u.push("app", "a", "a", 1)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/tags/list?n=2").want(200).wantBody([]byte(`{"name":"app","tags":["a","b"]}`)).
		wantHeader("Link", `</v2/app/tags/list?last=b&n=2>; rel="next"`)
	ns := url.QueryEscape(u.name())
	n.get("/v2/app/tags/list?ns="+ns).want(200).wantHeader("Link", `</v2/app/tags/list?last=b&n=2&ns=`+ns+`>; rel="next"`)
	n.get("/v2/app/referrers/" + string(sha(nil))).want(404)
}

package mirror_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// TestN7_NothingOfASmallBlobIsHandedOutUnverified: a runtime that was given 1.8 of
// 2 MB of a source that turned out wrong asked another host for the rest.
func TestN7_NothingOfASmallBlobIsHandedOutUnverified(t *testing.T) {
	for _, size := range []int{1000, 2_000_000, 8 << 20} {
		var wrong atomic.Int64
		wrong.Store(1000)
		n, _, i := faulty(t, nodeOptions{hold: time.Minute}, size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
			if wrong.Add(-1) < 0 {
				return false
			}
			bad := bytes.Clone(i.bytes[0])
			bad[len(bad)-1] ^= 1
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
			return true
		})
		if a := n.get(layerPath(i)).want(502); len(a.body) > 1000 || a.header.Get("Docker-Content-Digest") != "" {
			t.Errorf("%d bytes: %d of them were handed out", size, len(a.body))
		}
		wrong.Store(1)
		n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	}
}

// TestN7_NothingOfASmallStreamIsHandedOutUnverified: as little as of what is kept.
func TestN7_NothingOfASmallStreamIsHandedOutUnverified(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{quota: 300 << 10}, 900_000, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		bad := bytes.Clone(i.bytes[0])
		bad[5] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
		return true
	})
	for _, rng := range []string{"", "bytes=0-99", "bytes=100000-"} {
		n.get(layerPath(i), "Range", rng).want(502)
	}
	u.on(nil)
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	n.get(layerPath(i), "Range", "bytes=100-299999").want(206).wantBody(i.bytes[0][100:300000])
}

// TestN8_ASlowBlobIsNotHeldForEver: a runtime gives up a host that is silent.
func TestN8_ASlowBlobIsNotHeldForEver(t *testing.T) {
	half := make(chan struct{})
	n, _, i := faulty(t, nodeOptions{hold: 50 * time.Millisecond}, 4*piece.Size, func(u *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:2*piece.Size])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-half:
		case <-u.end:
		}
		_, _ = w.Write(i.bytes[0][2*piece.Size:])
		return true
	})
	n.beginWhole(layerPath(i), 2*piece.Size).want(200)
	close(half)
}

// TestN8_APartOfAColdBlobIsNotHeld: whoever asks for one verifies it otherwise.
func TestN8_APartOfAColdBlobIsNotHeld(t *testing.T) {
	end := make(chan struct{})
	n, _, i := faulty(t, nodeOptions{hold: time.Hour}, 4*piece.Size, func(u *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:2*piece.Size])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-end:
		case <-u.end:
		}
		_, _ = w.Write(i.bytes[0][2*piece.Size:])
		return true
	})
	n.begin(layerPath(i), "bytes=0-"+strconv.Itoa(3*piece.Size), 1000).want(206)
	close(end)
}

// beginWhole reads the first bytes of an answer and leaves.
func (n *node) beginWhole(path string, first int) *answer {
	n.t.Helper()
	return n.begin(path, "", first)
}

// TestN11_AManifestWhoseBodyStalls: headers came, and then nothing for a minute.
func TestN11_AManifestWhoseBodyStalls(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}, idle: 50 * time.Millisecond})
	n.pull("", "app", "v1", i)
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", oci.MediaTypeImage)
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(200)
		if r.Method == http.MethodGet {
			_ = http.NewResponseController(w).Flush()
			u.stall(r)
		}
		return true
	})
	n.clock.advance(time.Hour)
	began := time.Now()
	n.get("/v2/app/manifests/v1").want(200).wantBody(i.content).wantHeader("Fairway-Source", "stale")
	n.get("/v2/app/manifests/v2").wantError(504, oci.CodeUnknown)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestSpec_PullingManifests_TheBodySaysItsType: a wrong Content-Type hid what a
// manifest names, so that its layers belonged to no image.
func TestSpec_PullingManifests_TheBodySaysItsType(t *testing.T) {
	for _, said := range []string{"", "text/plain", "application/octet-stream", oci.MediaTypeIndex, oci.MediaTypeDockerImage, "application/json; charset=utf-8"} {
		u := newUpstream(t)
		i := u.push("app", "v1", "a", 1000)
		u.on(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header()["Content-Type"] = nil
			if said != "" {
				w.Header().Set("Content-Type", said)
			}
			w.Header().Set("Docker-Content-Digest", string(i.digest))
			w.Header().Set("Content-Length", strconv.Itoa(len(i.content)))
			if r.Method == http.MethodGet {
				_, _ = w.Write(i.content)
			}
			return true
		})
		n := start(t, nodeOptions{upstreams: []*upstream{u}})
		for range 2 {
			n.get("/v2/app/manifests/v1").want(200).wantHeader("Content-Type", oci.MediaTypeImage).wantBody(i.content)
		}
		tree, err := n.index.Tree(t.Context(), []oci.Digest{i.digest})
		if err != nil || len(tree) != 3 {
			t.Errorf("%q: the manifest leads to %v, %v; want itself, its config and its layer", said, tree, err)
		}
	}
}

// TestN1_AManifestThatCameAsABlobLeadsToItsLayers: its edges are read too.
func TestN1_AManifestThatCameAsABlobLeadsToItsLayers(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	u.repo("app").blobs[i.digest] = i.content
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/blobs/" + string(i.digest)).want(200).wantBody(i.content)
	eventually(t, "its edges are known", func() bool {
		tree, err := n.index.Tree(t.Context(), []oci.Digest{i.digest})
		return err == nil && len(tree) == 3
	})
}

// TestN7_AnUpstreamThatCompressesUnasked: RFC 9110 lets it, and what is served must
// have its digest all the same.
func TestN7_AnUpstreamThatCompressesUnasked(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 2<<20)
	encoding := "gzip"
	squeeze := func(w http.ResponseWriter, r *http.Request, mediaType string, content []byte) {
		var small bytes.Buffer
		z := gzip.NewWriter(&small)
		_, _ = z.Write(content)
		_ = z.Close()
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Encoding", encoding)
		w.Header().Set("Docker-Content-Digest", string(sha(content)))
		w.Header().Set("Content-Length", fmt.Sprint(small.Len()))
		if r.Method == http.MethodGet {
			_, _ = w.Write(small.Bytes())
		}
	}
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		switch rp := u.repos["app"]; {
		case strings.Contains(r.URL.Path, "/manifests/"):
			squeeze(w, r, oci.MediaTypeImage, i.content)
		case strings.Contains(r.URL.Path, "/blobs/"):
			squeeze(w, r, "application/octet-stream", rp.blobs[oci.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])])
		default:
			squeeze(w, r, "application/json", []byte(`{"tags":["v1"]}`))
		}
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	for range 2 {
		n.pull("", "app", "v1", i)
	}
	n.get("/v2/app/tags/list").want(200).wantBody([]byte(`{"tags":["v1"]}`)).wantHeader("Content-Encoding", "")
	other := start(t, nodeOptions{upstreams: []*upstream{u}})
	encoding = "br" // which nobody here can undo
	for _, path := range []string{"manifests/v1", "blobs/" + string(i.layers[0]), "tags/list"} {
		other.get("/v2/app/" + path).want(502)
	}
}

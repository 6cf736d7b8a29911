package mirror_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/oci"
)

// forge pushes a manifest that says of a layer that is there that it has so many
// bytes, which the upstream, unlike a registry, takes as it is.
func (u *upstream) forge(name, tag string, layer oci.Digest, size int64) oci.Digest {
	rp := u.repo(name)
	config := []byte("{}")
	content := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		oci.MediaTypeImage, sha(config), layer, size)
	u.mu.Lock()
	defer u.mu.Unlock()
	d := sha(content)
	rp.blobs[sha(config)] = config
	rp.manifests[d] = stored{oci.MediaTypeImage, content}
	rp.tags[tag] = d
	return d
}

// TestR16_TheUpstreamsSizeIsPreferredToAManifests: a layer of 1 MB was cached as
// one of 2.75 MiB, and could not be cached as what it is any more.
func TestR16_TheUpstreamsSizeIsPreferredToAManifests(t *testing.T) {
	const size, quota = 1_000_000, 3 << 20
	u := newUpstream(t)
	i := u.push("app", "v1", "a", size)
	for _, claim := range []int64{11 << 18, 300_000, 0, 5, 10 << 20, math.MaxInt64 - 300000, -7} {
		for _, forgedFirst := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d bytes, first %v", claim, forgedFirst), func(t *testing.T) {
				u.forge("app", "forged", i.layers[0], claim)
				n := start(t, nodeOptions{quota: quota, upstreams: []*upstream{u}})
				before := u.bytes.Load()
				tags := []string{"v1", "forged"}
				if forgedFirst {
					tags = []string{"forged", "v1"}
				}
				for _, tag := range tags {
					n.get("/v2/app/manifests/" + tag).want(200)
					n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Content-Length", strconv.Itoa(size))
				}
				n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "cache")
				// Whoever breaks an answer off has paid for what is on its way.
				if sent := u.bytes.Load() - before; claim < quota && sent > 2*size {
					t.Errorf("the upstream sent %d bytes", sent)
				}
			})
		}
	}
}

// TestR16_APartOfAnotherSizeIsReplaced: an upstream that states no size broke off
// in the middle, and the claim stayed.
func TestR16_APartOfAnotherSizeIsReplaced(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1_500_000)
	u.forge("app", "forged", i.layers[0], 9<<18)
	n := start(t, nodeOptions{quota: 3 << 20, upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/forged").want(200)
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		if r.Header.Get("Range") != "" {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return true
		}
		w.(http.Flusher).Flush() // chunked
		_, _ = w.Write(i.bytes[0][:1_200_000])
		panic(http.ErrAbortHandler)
	})
	if a := n.get(layerPath(i)); a.err == nil && a.status == 200 {
		t.Fatalf("a whole answer of %d bytes", len(a.body))
	}
	in, err := n.store.Info(t.Context(), i.layers[0])
	if err != nil || in.Size != 9<<18 || in.State != index.Partial {
		t.Fatalf("%+v, %v", in, err)
	}
	u.on(nil)
	n.restart()
	n.get("/v2/app/manifests/v1").want(200)
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	eventually(t, "it is cached as what it is", func() bool {
		in, err := n.store.Info(t.Context(), i.layers[0])
		return err == nil && in.State == index.Complete && in.Size == 1_500_000
	})
}

// The length of a portal's page was taken for that of the blob, and the part of the
// blob that was here was given up for it.
func TestR16_AnAnswerAboutSomethingElseSaysNothingOfTheSize(t *testing.T) {
	const size, part = 1_500_000, 1 << 20
	for name, answer := range map[string]func(http.ResponseWriter){
		"a page": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Content-Length", "700000")
			_, _ = w.Write(make([]byte, 700_000)) // an answer that nobody reads to its end
		},
		"another digest": func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", string(sha([]byte("another"))))
			w.Header().Set("Content-Length", "7")
			_, _ = w.Write([]byte("another"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			i := u.push("app", "v1", "a", size)
			n := start(t, nodeOptions{quota: 8 << 20, upstreams: []*upstream{u}})
			n.get("/v2/app/manifests/v1").want(200)
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) {
					return false
				}
				if r.Header.Get("Range") != "" {
					panic(http.ErrAbortHandler)
				}
				w.Header().Set("Content-Length", strconv.Itoa(size))
				_, _ = w.Write(i.bytes[0][:part])
				panic(http.ErrAbortHandler)
			})
			n.get(layerPath(i))
			before, err := n.store.Info(t.Context(), i.layers[0])
			if err != nil || before.Present == 0 {
				t.Fatalf("%+v, %v", before, err)
			}
			u.on(func(w http.ResponseWriter, _ *http.Request) bool { answer(w); return true })
			if a := n.get(layerPath(i)); a.status == 200 && a.err == nil {
				t.Fatalf("a whole answer of %d bytes", len(a.body))
			}
			after, err := n.store.Info(t.Context(), i.layers[0])
			if err != nil || after.Size != size || after.Present < before.Present {
				t.Errorf("%+v, %v; it was %+v", after, err, before)
			}
			u.on(nil)
			n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
		})
	}
}

// TestN12_DownloadsThatDoNotStartLeaveTheCacheAsItWas: with the registry down,
// with one that stalls before the first byte, and with one that has nothing.
func TestN12_DownloadsThatDoNotStartLeaveTheCacheAsItWas(t *testing.T) {
	const size = 200_000
	for name, serve := range map[string]func(w http.ResponseWriter, r *http.Request){
		"down":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"broken":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"without": func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"stalling": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			cached := u.push("app", "v1", "a", 1<<20, 1<<20)
			absent := u.push("app", "v2", "b", size, size, size, size, size, size, size, size, size, size)
			n := start(t, nodeOptions{quota: 3 << 20, idle: 50 * time.Millisecond, upstreams: []*upstream{u}})
			n.pull("", "app", "v1", cached)
			n.get("/v2/app/manifests/v2").want(200)
			before, err := n.store.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			room := &asked{}
			n.store.SetRoom(room)
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					serve(w, r)
				}
				return isBlob(r)
			})
			for _, d := range absent.layers {
				if a := n.get("/v2/app/blobs/" + string(d)); a.status == 200 && a.err == nil {
					t.Fatalf("%s was given", d)
				}
			}
			eventually(t, "the downloads end", func() bool {
				after, err := n.store.List(t.Context())
				return err == nil && len(after) == len(before) && n.metric("fairway_node_fetches_in_flight") == 0
			})
			if got := room.made.Load(); got != 0 {
				t.Errorf("room was made %d times", got)
			}
			for k, l := range cached.layers {
				n.get("/v2/app/blobs/"+string(l)).want(200).wantBody(cached.bytes[k]).wantHeader("Fairway-Source", "cache")
			}
		})
	}
}

// asked could make any room, and counts how often it is to.
type asked struct{ made atomic.Int64 }

func (*asked) Could(context.Context, int64) bool { return true }

func (a *asked) Make(context.Context, int64) bool { a.made.Add(1); return false }

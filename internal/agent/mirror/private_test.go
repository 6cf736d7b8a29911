package mirror_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Somebody without a right asks, by a manifest of his own, for a private layer whose
// download by somebody else has begun and brought nothing yet.
func TestR12_ADownloadThatHasBroughtNothingYetIsNobodyElses(t *testing.T) {
	for _, size := range []int{1000, 3 << 20} {
		u := newUpstream(t)
		i := u.push("secret", "v1", "s", size)
		u.repo("secret").auth = alice
		forged := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}]}`,
			oci.MediaTypeImage, i.config, 10, i.layers[0], size))
		mine := u.repo("mine")
		mine.manifests[sha(forged)] = stored{oci.MediaTypeImage, forged}
		mine.tags["v1"] = sha(forged)
		n := start(t, nodeOptions{upstreams: []*upstream{u}})
		n.get("/v2/mine/manifests/v1").want(200)
		n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200)
		asked, goOn := make(chan struct{}, 10), make(chan struct{})
		u.on(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/v2/secret/blobs/") && r.Method == http.MethodGet {
				asked <- struct{}{}
				<-goOn // the upstream's latency
			}
			return false
		})
		hers, his := make(chan *answer, 1), make(chan *answer, 1)
		go func() { hers <- n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice) }()
		<-asked
		go func() { his <- n.get("/v2/mine/blobs/" + string(i.layers[0])) }()
		select {
		case a := <-his:
			if a.status == 200 {
				t.Errorf("size %d: he got %d bytes of hers from %q", size, len(a.body), a.header.Get("Fairway-Source"))
			}
		case <-time.After(20 * time.Second):
			t.Errorf("size %d: he waits for her download", size)
		}
		close(goOn)
		(<-hers).want(200).wantBody(i.bytes[0])
	}
}

// An upstream that says yes to everything is asked for a private layer whose download from
// another one has begun and brought nothing yet.
func TestR12_ADownloadThatHasBroughtNothingYetIsOfItsUpstream(t *testing.T) {
	u, yes := newUpstream(t), newUpstream(t)
	i := u.push("secret", "v1", "s", 3<<20)
	u.repo("secret").auth = alice
	asked, goOn := make(chan struct{}, 10), make(chan struct{})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/v2/secret/blobs/") && r.Method == http.MethodGet {
			asked <- struct{}{}
			<-goOn // the upstream's latency
		}
		return false
	})
	yes.on(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(3<<20))
		w.WriteHeader(200)
		if r.Method == http.MethodGet {
			_, _ = w.Write(make([]byte, 3<<20))
		}
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u, yes}})
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200)
	hers, his := make(chan *answer, 1), make(chan *answer, 1)
	go func() { hers <- n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice) }()
	<-asked
	go func() { his <- n.get("/v2/any/blobs/" + string(i.layers[0]) + "?ns=" + yes.name()) }()
	select {
	case a := <-his:
		if a.status == 200 && a.err == nil {
			t.Errorf("he got %d bytes from %q", len(a.body), a.header.Get("Fairway-Source"))
		}
	case <-time.After(20 * time.Second):
		t.Error("he waits for her download")
	}
	close(goOn)
	(<-hers).want(200).wantBody(i.bytes[0])
}

// A client without any right has a public manifest of its own name a private
// manifest's digest as a layer, and asks for that "layer" while somebody pulls it.
func TestR12_APrivateManifestIsNotPutIntoAPublicDownload(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	forged := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}]}`,
		oci.MediaTypeImage, i.digest, len(i.content), i.digest, len(i.content)))
	mine := u.repo("mine")
	mine.manifests[sha(forged)] = stored{oci.MediaTypeImage, forged}
	mine.tags["v1"] = sha(forged)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/mine/manifests/v1").want(200)
	asked, goOn := make(chan struct{}, 10), make(chan struct{})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/v2/mine/blobs/") {
			asked <- struct{}{}
			<-goOn // any latency does
		}
		return false
	})
	waiter := make(chan *answer, 1)
	go func() { waiter <- n.get("/v2/mine/blobs/" + string(i.digest)) }()
	select {
	case <-asked:
	case a := <-waiter:
		t.Fatalf("at once: %d", a.status)
	}
	n.pull("", "secret", "v1", i, "Authorization", alice)
	close(goOn)
	a := <-waiter
	if a.status == 200 {
		t.Errorf("whoever waited got %d bytes: %.60s", len(a.body), a.body)
	}
	u.on(nil)
	if a := n.get("/v2/mine/blobs/" + string(i.digest)); a.status == 200 {
		t.Errorf("and anybody from then on: %d bytes: %.60s", len(a.body), a.body)
	}
	if g, err := n.mirror.Given(t.Context(), u.name(), "mine", i.digest, false); err == nil {
		t.Errorf("and any node: %d bytes, public %v", len(g.Content), g.Public)
	}
}

// A repository that asks for credentials now: what came from it is private, also
// where it is open, or was a moment ago.
func TestN10_WhatBecomesPrivateIsPrivateInMemoryToo(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "s", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	u.repo("app").auth = alice
	n.clock.advance(time.Hour)
	n.get("/v2/app/manifests/v1").want(401)
	row, err := n.index.Blob(t.Context(), i.layers[0])
	if err != nil || !row.Private {
		t.Fatalf("row: private %v, %v", row.Private, err)
	}
	b, err := n.store.Open(t.Context(), i.layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if !b.Private() {
		t.Error("the store hands it to peers as everybody's (swarm.Engine.open goes by Blob.Private)")
	}
	b.Close()
	if g, err := n.mirror.Given(t.Context(), u.name(), "app", i.digest, false); err == nil {
		t.Errorf("a node without a right was given %d bytes of the manifest", len(g.Content))
	}
}

// TestR12_ADownloadDoesNotOpenThePiecesThatWereThere: an upstream that says yes to everything
// is asked by the node itself, as in a preheat, for what another one has brought half of.
func TestR12_ADownloadDoesNotOpenThePiecesThatWereThere(t *testing.T) {
	const size = 4 * piece.Size
	u, yes := newUpstream(t), newUpstream(t)
	i := u.push("secret", "v1", "s", size)
	u.repo("secret").auth = alice
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) || r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = w.Write(i.bytes[0][:2*piece.Size+1])
		panic(http.ErrAbortHandler)
	})
	asked := make(chan struct{}, 10)
	yes.on(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		if r.Method == http.MethodHead {
			return true
		}
		if r.Header.Get("Range") != "" {
			asked <- struct{}{}
			yes.stall(r) // the node's own download
			return true
		}
		_, _ = w.Write(make([]byte, size))
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u, yes}})
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200)
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice)
	eventually(t, "some of it is here, and nobody brings more", func() bool {
		info, err := n.store.Info(t.Context(), i.layers[0])
		return err == nil && info.Present >= 2*piece.Size && info.Writers == 0
	})
	b, err := n.fetch.Get(t.Context(), fetch.Want{Digest: i.layers[0], Size: size, Namespace: yes.name(), Repo: "any", Private: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	<-asked
	a := n.begin("/v2/any/blobs/"+string(i.layers[0])+"?ns="+yes.name(), "", piece.Size)
	if bytes.Equal(a.body, i.bytes[0][:piece.Size]) {
		t.Errorf("he got hers, from %q", a.header.Get("Fairway-Source"))
	}
}

package mirror_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

const (
	alice = "Bearer alice-token"
	bob   = "Bearer bob-token"
)

func TestR12_PrivateContentOfOneClientIsNotAnothers(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	others := [][]string{{}, {"Authorization", bob}}
	refused := func() {
		t.Helper()
		for _, header := range others {
			for _, path := range []string{"manifests/v1", "manifests/" + string(i.digest), "blobs/" + string(i.layers[0]), "blobs/" + string(i.config), "blobs/" + string(i.digest)} {
				n.get("/v2/secret/"+path, header...).wantError(401, oci.CodeUnauthorized).wantHeader("WWW-Authenticate", `Basic realm="upstream"`)
				n.do("HEAD", "/v2/secret/"+path, header...).want(401)
			}
		}
	}
	refused()
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.pull("", "secret", "v1", i, "Authorization", alice)
	refused()
	n.clock.advance(time.Hour)
	refused()
	n.restart()
	refused()
	n.pull("", "secret", "v1", i, "Authorization", alice)
	refused()
}

// TestR12_PrivateContentIsGivenToPeersUnderItsUpstreamOnly: another upstream may say
// that it has any digest, to this node as to the one that asks.
func TestR12_PrivateContentIsGivenToPeersUnderItsUpstreamOnly(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	evil := newUpstream(t)
	evil.push("secret", "v1", "s", 1000)
	evil.repo("secret").auth = alice
	evil.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			w.WriteHeader(500) // it sends nothing
			return true
		}
		return false
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u, evil}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	says := func() {
		t.Helper()
		n.do("HEAD", "/v2/secret/manifests/"+string(i.digest)+"?ns="+evil.name(), "Authorization", alice)
		if !n.mirror.Allowed(evil.name(), i.digest) {
			t.Fatal("the other upstream gave no right, so nothing is shown")
		}
	}
	says()
	if g, err := n.mirror.Given(t.Context(), u.name(), "secret", i.digest, true); err != nil || g.Public {
		t.Errorf("under its own upstream: public %v, %v", g.Public, err)
	}
	if _, err := n.mirror.Given(t.Context(), evil.name(), "secret", i.digest, true); !errors.Is(err, fault.Denied) {
		t.Errorf("under another upstream: %v", err)
	}
	n.clock.advance(time.Hour)
	says()
	if _, err := n.mirror.Given(t.Context(), u.name(), "secret", i.digest, true); !errors.Is(err, fault.Denied) {
		t.Errorf("by a right that another upstream gave: %v", err)
	}
}

func TestR12_WhatOneClientMayNotIsNotLostToAnother(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.get("/v2/secret/manifests/v1", "Authorization", bob).want(401)
	before := u.count("GET")
	n.pull("", "secret", "v1", i, "Authorization", alice)
	if u.count("GET") != before {
		t.Error("alice had to fetch again what bob was refused")
	}
}

func TestR12_KnowingADigestGivesNoAccess(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	pub := u.push("public", "v1", "p", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.pull("", "public", "v1", pub)
	for _, path := range []string{"blobs/" + string(i.layers[0]), "manifests/" + string(i.digest)} {
		n.get("/v2/public/" + path).want(404)
		n.get("/v2/public/"+path, "Authorization", alice).want(404)
	}
	n.get("/v2/secret/blobs/"+string(pub.layers[0]), "Authorization", alice).want(404)
}

func TestR12_AManifestOfOnesOwnMakingOpensNothingPrivate(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	// An upstream that does not look at what a manifest names.
	forged := []byte(strings.Replace(string(i.content), `"schemaVersion":2`, `"schemaVersion":2,"annotations":{"a":"b"}`, 1))
	mine := u.repo("mine")
	mine.manifests[sha(forged)] = stored{oci.MediaTypeImage, forged}
	mine.tags["v1"] = sha(forged)
	n.get("/v2/mine/manifests/v1").want(200).wantBody(forged)
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
}

// forge gives a repository that anybody may read a manifest that names the
// blobs of i, as an upstream would that does not look at what a manifest names.
func forge(u *upstream, repo string, i image) {
	forged := []byte(strings.Replace(string(i.content), `"schemaVersion":2`, `"schemaVersion":2,"annotations":{"a":"`+repo+`"}`, 1))
	mine := u.repo(repo)
	mine.manifests[sha(forged)] = stored{oci.MediaTypeImage, forged}
	mine.tags["v1"] = sha(forged)
}

func TestR12_AManifestOfOnesOwnMakingOpensNothingThatARuntimeHolds(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	forge(u, "mine", i)
	n := start(t, nodeOptions{upstreams: []*upstream{u}, holders: []fetch.Holder{&memory{blobs: map[oci.Digest][]byte{i.layers[0]: i.bytes[0]}}}})
	n.get("/v2/mine/manifests/v1").want(200)
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200)
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "containerd")
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
}

func TestR12_WhoeverAskedFirstDoesNotMakeItPublic(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	forge(u, "mine", i)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/mine/manifests/v1").want(200)
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
	n.restart()
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
	n.pull("", "secret", "v1", i, "Authorization", alice)
}

func TestR12_WhoeverWasRefusedDoesNotReadWhatAnotherFetches(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	forge(u, "mine", i)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/mine/manifests/v1").want(200)
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200)
	release, begun := make(chan struct{}), make(chan struct{})
	u.on(func(_ http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) && strings.Contains(r.URL.Path, "/mine/") {
			close(begun)
			<-release
		}
		return false
	})
	var all sync.WaitGroup
	all.Go(func() { n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404) })
	<-begun
	all.Go(func() {
		n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).wantBody(i.bytes[0])
	})
	eventually(t, "alice waits for the same download", func() bool { return n.metric("fairway_node_fetch_joined_total") > 0 })
	close(release)
	all.Wait()
}

func TestR12_SharedLayerServesARepositoryThatHasItToo(t *testing.T) {
	u := newUpstream(t)
	a := u.push("one", "v1", "same", 3000)
	u.repo("one").auth = alice
	u.push("two", "v1", "same", 3000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "one", "v1", a, "Authorization", alice)
	before := u.bytes.Load()
	n.pull("", "two", "v1", a)
	if got := u.bytes.Load() - before; got != 0 {
		t.Errorf("%d bytes were fetched a second time", got)
	}
}

func TestR12_JoiningADownloadTakesARightToo(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 3000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200)
	release, begun := make(chan struct{}), make(chan struct{})
	u.on(func(_ http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			close(begun)
			<-release
		}
		return false
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).wantBody(i.bytes[0])
	}()
	<-begun
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", bob).want(401)
	n.get("/v2/secret/blobs/" + string(i.layers[0])).want(401)
	close(release)
	<-done
}

func TestCredentials_OfTheNodeAreForThoseWithoutTheirOwn(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = "Basic bm9kZTpodW50ZXIy" // node:hunter2
	n := start(t, nodeOptions{upstreams: []*upstream{u}, creds: func(_ context.Context, host, _ string) (ociclient.Login, error) {
		if host != u.name() {
			return ociclient.Login{}, nil
		}
		return ociclient.Login{User: "node", Pass: "hunter2"}, nil
	}})
	n.pull("", "secret", "v1", i)
	n.pull("", "secret", "v1", i)
	n.get("/v2/secret/manifests/v1", "Authorization", bob).want(401)
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", bob).want(401)
	for _, secret := range []string{"hunter2", "bm9kZTpodW50ZXIy", "bob-token"} {
		if strings.Contains(n.log.String(), secret) {
			t.Errorf("the log tells %q", secret)
		}
	}
	info, err := n.store.Info(t.Context(), i.layers[0])
	if err != nil || !info.Private {
		t.Errorf("what took credentials is marked private = %v, %v", info.Private, err)
	}
}

func TestCredentials_AreNotWrittenIntoTheCache(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.close()
	defer n.open()
	if where := find(t, n.dir, "alice-token"); where != "" {
		t.Errorf("%s holds the client's token", where)
	}
	if strings.Contains(n.log.String(), "alice-token") {
		t.Error("the log holds the client's token")
	}
}

func TestStale_LastKnownDigestWhileTheUpstreamIsDown(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	n.get("/v2/app/manifests/v1").want(200).wantHeader("Fairway-Stale", "")
	broken := func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	u.on(broken)
	n.clock.advance(time.Hour)
	a := n.get("/v2/app/manifests/v1").want(200).wantBody(i.content).wantHeader("Fairway-Source", "stale")
	if age := a.header.Get("Fairway-Stale"); age != "3600" && age != "3601" {
		t.Errorf("its age is given as %q", age)
	}
	if !strings.HasPrefix(a.header.Get("Warning"), "110 ") {
		t.Errorf("Warning is %q", a.header.Get("Warning"))
	}
	if n.metric("fairway_node_stale_answers_total") != 1 {
		t.Error("the stale answer was not counted")
	}
	u.Close()
	n.restart()
	n.pull("", "app", "v1", i)
	n.clock.advance(24 * time.Hour)
	n.get("/v2/app/manifests/v1").wantError(502, oci.CodeUnknown)
}

func TestStale_IsOnlyForWhoMayHaveIt(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "a", 1000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	u.Close()
	n.clock.advance(time.Minute)
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(200).wantHeader("Fairway-Source", "stale")
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).wantBody(i.bytes[0])
	n.get("/v2/secret/manifests/v1", "Authorization", bob).want(502)
	n.get("/v2/secret/manifests/v1").want(502)
	n.get("/v2/secret/blobs/" + string(i.layers[0])).want(502)
	n.clock.advance(time.Hour) // the grant has ended
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(502)
}

func TestTags_AreAskedForAgainAfterAWhile(t *testing.T) {
	u := newUpstream(t)
	a := u.push("app", "v1", "a", 10)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200).wantBody(a.content)
	b := u.push("app", "v1", "b", 10)
	n.get("/v2/app/manifests/v1").want(200).wantBody(a.content)
	n.clock.advance(31 * time.Second)
	n.get("/v2/app/manifests/v1").want(200).wantBody(b.content)
	if u.count("HEAD") != 2 {
		t.Errorf("the tag was asked for %d times, want 2", u.count("HEAD"))
	}
}

func TestDeleted_ImagePasses404AndIsMarked(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 10)
	u.push("copy", "v1", "b", 10)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	rp := u.repo("app")
	u.mu.Lock()
	delete(rp.tags, "v1")
	delete(rp.manifests, i.digest)
	u.mu.Unlock()
	n.clock.advance(time.Minute)
	n.get("/v2/copy/manifests/" + string(i.digest)).want(404)
	if n.marked(i.digest) {
		t.Error("another repository's 404 marked it as deleted")
	}
	n.get("/v2/app/manifests/v1").want(404)
	if !n.marked(i.digest) {
		t.Error("the manifest is not marked as deleted")
	}
	n.get("/v2/app/manifests/" + string(i.digest)).want(404)
	u.push("app", "v1", "a", 10)
	n.get("/v2/app/manifests/v1").want(200)
	if n.marked(i.digest) {
		t.Error("it is there again and still marked as deleted")
	}
}

// marked reports whether the cache takes d's image for deleted.
func (n *node) marked(d oci.Digest) bool {
	n.t.Helper()
	info, err := n.store.Info(n.t.Context(), d)
	if err != nil {
		n.t.Fatal(err)
	}
	return info.DeletedAt != 0
}

func TestDeleted_InOneOfTwoRepositoriesIsNotDeleted(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 10)
	u.push("copy", "v1", "a", 10)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	n.pull("", "copy", "v1", i)
	rp := u.repo("copy")
	u.mu.Lock()
	delete(rp.tags, "v1")
	delete(rp.manifests, i.digest)
	u.mu.Unlock()
	n.clock.advance(time.Minute)
	n.get("/v2/copy/manifests/v1").want(404)
	if n.marked(i.digest) {
		t.Error("the other repository still has it")
	}
	n.pull("", "app", "v1", i)
}

func TestDeleted_IsNotWhatAnotherClientIsTold(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "a", 10)
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == alice {
			return false
		}
		http.NotFound(w, r) // as registries do that tell nobody what exists
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", string(i.digest), i, "Authorization", alice)
	n.get("/v2/secret/manifests/"+string(i.digest), "Authorization", bob).want(404)
	n.get("/v2/secret/manifests/" + string(i.digest)).want(404)
	if n.marked(i.digest) {
		t.Error("it is marked as deleted because somebody may not see it")
	}
}

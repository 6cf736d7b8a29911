package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

func down(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }

// TestN10_OnlyWhatEverybodyMayKnowIsToldOfATag, and only while it may be given after an outage.
func TestN10_OnlyWhatEverybodyMayKnowIsToldOfATag(t *testing.T) {
	u := newUpstream(t)
	open, secret, turned := u.push("app", "v1", "a", 100), u.push("secret", "v1", "s", 100), u.push("turned", "v1", "t", 100)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", open)
	n.pull("", "turned", "v1", turned)
	n.pull("", "secret", "v1", secret, "Authorization", alice)
	if err := n.index.SetPrivate(t.Context(), turned.digest); err != nil {
		t.Fatal(err)
	}
	// Of this one the upstream has said nothing to everybody, though the content is everybody's elsewhere.
	if err := n.index.PutName(t.Context(), u.name(), "never", "v1", open.digest, n.clock.now().UnixMilli()); err != nil {
		t.Fatal(err)
	}
	if name, err := n.mirror.Named(t.Context(), u.name(), "app", "v1"); err != nil || name.Digest != open.digest {
		t.Errorf("a public tag: %+v, %v", name, err)
	}
	for repo, why := range map[oci.Name]string{"secret": "it took credentials", "turned": "it is private in the cache", "never": "nobody was given it"} {
		if name, err := n.mirror.Named(t.Context(), u.name(), repo, "v1"); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s, though %s: %+v, %v", repo, why, name, err)
		}
	}
	n.clock.advance(24*time.Hour + time.Minute)
	if name, err := n.mirror.Named(t.Context(), u.name(), "app", "v1"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a tag of long ago: %+v, %v", name, err)
	}
}

// TestR17_OnlySmallContentThatIsWholeIsGivenInOnePart.
func TestR17_OnlySmallContentThatIsWholeIsGivenInOnePart(t *testing.T) {
	n := start(t, nodeOptions{upstreams: []*upstream{newUpstream(t)}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	small, large, part := content("small", oci.ManifestMax), content("large", oci.ManifestMax+1), content("part", 2*piece.Size)
	for _, c := range [][]byte{small, large} {
		if err := n.store.Put(ctx, sha(c), c, piece.Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := n.store.Create(ctx, sha(part), int64(len(part)), piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.WritePiece(ctx, 0, part[:piece.Size], "test"); err != nil {
		t.Fatal(err)
	}
	if g, err := n.mirror.Given(ctx, "ns", "app", sha(small), false); err != nil || len(g.Content) != len(small) {
		t.Errorf("small content: %d bytes, %v", len(g.Content), err)
	}
	for what, c := range map[string][]byte{"large": large, "a part": part} {
		if g, err := n.mirror.Given(ctx, "ns", "app", sha(c), false); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s: %d bytes, %v", what, len(g.Content), err)
		}
	}
}

// TestN7_APeersManifestIsCheckedHereToo, with the upstream there and while it is away.
func TestN7_APeersManifestIsCheckedHereToo(t *testing.T) {
	u := newUpstream(t)
	i, j := u.push("app", "v1", "a", 100), u.push("app", "v2", "b", 100)
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: &hearsay{tag: i.digest, content: map[oci.Digest][]byte{i.digest: j.content}}})
	n.get("/v2/app/manifests/v1").want(200).wantBody(i.content)

	u = newUpstream(t)
	n = start(t, nodeOptions{upstreams: []*upstream{u}, peers: &hearsay{tag: i.digest, content: map[oci.Digest][]byte{i.digest: j.content}}})
	u.on(down)
	if a := n.get("/v2/app/manifests/" + string(i.digest)); a.status == 200 {
		t.Errorf("%d bytes of another manifest were given out", len(a.body))
	}
}

// TestR16_APeerDoesNotSayWhatAManifestIs where its content does not: the upstream does.
func TestR16_APeerDoesNotSayWhatAManifestIs(t *testing.T) {
	u := newUpstream(t)
	c := []byte(`{"hello":"there"}`)
	u.repo("app").manifests[sha(c)] = stored{"application/vnd.test.thing+json", c}
	u.repo("app").tags["v1"] = sha(c)
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: &hearsay{content: map[oci.Digest][]byte{sha(c): c}}})
	n.get("/v2/app/manifests/v1").want(200).wantBody(c).wantHeader("Content-Type", "application/vnd.test.thing+json")
}

// TestR12_HearsayIsOfWhatEverybodyMayHave: a peer that does not say so opens nothing, and
// neither does one that says so of what is private here.
func TestR12_HearsayIsOfWhatEverybodyMayHave(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 100)
	u.repo("secret").auth = alice
	p := &hearsay{tag: i.digest, content: map[oci.Digest][]byte{i.digest: i.content}, unsure: true}
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: p})
	u.on(down)
	if a := n.get("/v2/secret/manifests/" + string(i.digest)); a.status == 200 {
		t.Error("a peer that does not say who may have it opened it")
	}
	u.on(nil)
	p.content = nil
	n.pull("", "secret", "v1", i, "Authorization", alice)
	p.content, p.unsure = map[oci.Digest][]byte{i.digest: i.content}, false
	u.on(down)
	n.clock.advance(time.Minute)
	if a := n.get("/v2/secret/manifests/" + string(i.digest)); a.status == 200 {
		t.Error("a peer that takes it for public opened what is private here")
	}
}

// TestR12_APeersBytesProveNothingOfAnUpstream that says that it has what is here.
func TestR12_APeersBytesProveNothingOfAnUpstream(t *testing.T) {
	u, yes := newUpstream(t), newUpstream(t)
	i := u.push("secret", "v1", "s", 100)
	u.repo("secret").auth = alice
	p := &hearsay{}
	n := start(t, nodeOptions{upstreams: []*upstream{u, yes}, peers: p})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	p.content = map[oci.Digest][]byte{i.digest: i.content}
	yes.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead {
			return down(w, r)
		}
		w.Header().Set("Content-Type", oci.MediaTypeImage)
		w.Header().Set("Content-Length", fmt.Sprint(len(i.content)))
		return true
	})
	n.get("/v2/any/manifests/"+string(i.digest)+"?ns="+yes.name(), "Authorization", bob)
	if is, err := n.index.IsOrigin(t.Context(), i.digest, yes.name()); err != nil || is {
		t.Errorf("it counts as content of the upstream that sent nothing: %v, %v", is, err)
	}
	if is, err := n.index.IsOrigin(t.Context(), i.digest, u.name()); err != nil || !is {
		t.Errorf("it does not count as content of its own upstream any more: %v, %v", is, err)
	}
}

// TestN8_WhatThisNodeHeardLastCounts: a peer's older word of a tag takes its place only
// where this node has heard nothing.
func TestN8_WhatThisNodeHeardLastCounts(t *testing.T) {
	u := newUpstream(t)
	i, j := u.push("app", "v1", "a", 100), u.push("app", "old", "b", 100)
	p := &hearsay{tag: j.digest, age: time.Hour}
	n := start(t, nodeOptions{upstreams: []*upstream{u}, peers: p})
	n.pull("", "app", "v1", i)
	n.pull("", "app", "old", j)
	u.on(down)
	n.clock.advance(2 * tagTTL)
	n.get("/v2/app/manifests/v1").want(200).wantBody(i.content).wantHeader("Fairway-Source", "stale")
	p.age = 0
	n.clock.advance(2 * tagTTL)
	n.get("/v2/app/manifests/v1").want(200).wantBody(j.content)

	p.content = map[oci.Digest][]byte{j.digest: j.content}
	for age, status := range map[time.Duration]int{23 * time.Hour: 200, 25 * time.Hour: 502} {
		p.age = age
		n = start(t, nodeOptions{upstreams: []*upstream{u}, peers: p})
		if a := n.get("/v2/app/manifests/v1"); a.status != status {
			t.Errorf("a peer's word of %v ago: %d, want %d", age, a.status, status)
		}
	}
}

package preheat_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

const layer = 300_000 // bytes: more than one piece

// TestPreheat_AllNodes has all of it there when the registry is not any more.
func TestPreheat_AllNodes(t *testing.T) {
	w := begin(t)
	a, b := w.node("a", nil), w.node("b", nil)
	i := w.push("team/app", "v1", layer, 10, 2*layer)
	p := w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"}).ID)
	if len(p.Nodes) != 2 {
		t.Fatalf("nodes %+v", p.Nodes)
	}
	for _, n := range p.Nodes {
		if n.DoneBytes < 3*layer || n.DoneBytes != n.TotalBytes || n.StartedAt == nil || n.Error != "" {
			t.Errorf("node %+v", n)
		}
	}
	for _, n := range []*node{a, b} {
		for _, d := range append(i.blobs, i.digest) {
			if tier := n.got(d); tier != nodeapi.TierWarm && tier != nodeapi.TierActive {
				t.Errorf("on %s %s is %q", n.cfg.Name, d, tier)
			}
		}
	}
	before := w.times(i.blobs[1])
	again := w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"}).ID)
	if again.Nodes[0].DoneBytes != p.Nodes[0].TotalBytes || w.times(i.blobs[1]) != before || before != 2 {
		t.Errorf("what was there: %+v; the layer was asked for %d and %d times", again.Nodes[0], before, w.times(i.blobs[1]))
	}
	w.target.Store(nil)
	a.pulls(i)
	b.pulls(i)
}

func TestPreheat_Label(t *testing.T) {
	w := begin(t)
	labelled := func(label string) func(*agent.Config) {
		return func(c *agent.Config) { c.Labels = setting.List{label, "disk=ssd"} }
	}
	a, b := w.node("a", labelled("zone=a")), w.node("b", labelled("zone=b"))
	i := w.push("team/app", "v1", layer)
	p := w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", Nodes: "zone=b,disk=ssd"}).ID)
	if len(p.Nodes) != 1 || p.Nodes[0].Node != "b" || b.got(i.blobs[1]) == "" || a.has(i.blobs[1]) != "" {
		t.Errorf("nodes %+v", p.Nodes)
	}
}

func TestPreheat_Share(t *testing.T) {
	w := begin(t)
	nodes := map[string]*node{"a": w.node("a", nil), "b": w.node("b", nil), "c": w.node("c", nil)}
	i := w.push("team/app", "v1", layer)
	p := w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", Share: 34}).ID)
	if len(p.Nodes) != 2 || w.times(i.blobs[1]) != 2 || nodes[p.Nodes[0].Node].got(i.blobs[1]) == "" {
		t.Errorf("nodes %+v, asked %d times", p.Nodes, w.times(i.blobs[1]))
	}
}

// TestPreheat_QuotaTooSmall has a cache that is full of what was used just now.
func TestPreheat_QuotaTooSmall(t *testing.T) {
	w := begin(t)
	small := w.node("small", func(c *agent.Config) { c.Quota, c.High, c.Low = 1<<20, 90, 50 })
	warm, i := w.push("team/warm", "v1", 2*layer), w.push("team/app", "v1", layer, layer)
	small.pulls(warm)
	w.until("it is warm, and could go", func() bool { return small.has(warm.blobs[1]) == nodeapi.TierWarm })
	p := w.over(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"}).ID)
	if n := p.Nodes[0]; p.State != meta.PreheatFailed || n.State != nodeapi.TaskSkipped || !strings.Contains(n.Error, "no room") || n.TotalBytes < 2*layer {
		t.Errorf("preheat %+v", p)
	}
	for _, d := range append(warm.blobs, warm.digest) {
		if small.has(d) == "" {
			t.Errorf("%s of what is warm has made way", d)
		}
	}
	if w.times(i.blobs[1]) > 0 {
		t.Error("a part of it was fetched")
	}
	// What a runtime asks for still gets in, at the cost of what is warm.
	w.until("a pull is cached", func() bool { small.pulls(i); return small.has(i.blobs[1]) != "" })
}

func TestPreheat_RegistryRestartedInMidPreheat(t *testing.T) {
	w := begin(t)
	a := w.node("a", nil)
	i := w.push("team/app", "v1", layer, layer, layer)
	release := w.hold(i.blobs[3])
	p := w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	w.until("a part of it is there", func() bool { return a.has(i.blobs[1]) != "" && w.times(i.blobs[3]) > 0 })
	w.target.Store(nil)
	w.stop()
	release()
	w.until("the node has noticed", func() bool { return w.times(i.blobs[3]) > 1 })
	w.start()
	done := w.done(p.ID)
	if done.Nodes[0].DoneBytes < 3*layer || w.times(i.blobs[1]) != 1 {
		t.Errorf("node %+v; the first layer was asked for %d times", done.Nodes[0], w.times(i.blobs[1]))
	}
}

func TestPreheat_NodeRestarted(t *testing.T) {
	w := begin(t)
	a := w.node("a", nil)
	i := w.push("team/app", "v1", layer, layer, layer)
	release := w.hold(i.blobs[3])
	p := w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	w.until("a part of it is there", func() bool { return a.has(i.blobs[1]) != "" && w.times(i.blobs[3]) > 0 })
	a.stop()
	release()
	a.start()
	w.done(p.ID)
	if w.times(i.blobs[1]) != 1 || a.got(i.blobs[3]) == "" {
		t.Errorf("the first layer was asked for %d times", w.times(i.blobs[1]))
	}
}

func TestPreheat_EndsWhenItIsDeleted(t *testing.T) {
	w := begin(t)
	w.node("a", nil)
	i, next := w.push("team/app", "v1", layer), w.push("team/app", "v2", layer)
	release := w.hold(i.blobs[1])
	defer release()
	p := w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	w.until("it is under way", func() bool { return w.times(i.blobs[1]) > 0 })
	if err := w.client.Call(t.Context(), "DELETE", fmt.Sprintf("/preheats/%d", p.ID), nil, nil); err != nil {
		t.Fatal(err)
	}
	w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app@" + string(next.digest)}).ID)
}

func TestPreheat_RuleOnPush(t *testing.T) {
	w := begin(t)
	a := w.node("a", nil)
	if err := w.client.Call(t.Context(), "POST", "/preheat-rules", adminapi.PreheatRuleRequest{Repository: "team/*", Tag: "v*"}, nil); err != nil {
		t.Fatal(err)
	}
	i := w.push("team/app", "v1", layer)
	w.until("it is there", func() bool { return a.has(i.blobs[1]) != "" })
	var list adminapi.PreheatList
	if err := w.client.Call(t.Context(), "GET", "/preheats", nil, &list); err != nil || len(list.Preheats) != 1 || list.Preheats[0].Rule == 0 {
		t.Fatalf("preheats %+v, %v", list, err)
	}
	w.done(list.Preheats[0].ID)
}

func TestPreheat_UnknownRef(t *testing.T) {
	w := begin(t)
	w.node("a", nil)
	w.push("team/app", "v1", layer)
	if err := w.client.Call(t.Context(), "POST", "/preheats", adminapi.PreheatRequest{Reference: "team/app:v2"}, nil); err == nil || !strings.Contains(err.Error(), "v2") {
		t.Errorf("an image that is not there: %v", err)
	}
	// Of other registries only the node can tell.
	p := w.over(w.preheat(adminapi.PreheatRequest{Reference: "other.example/app:v1"}).ID)
	if n := p.Nodes[0]; n.State != nodeapi.TaskFailed || !strings.Contains(n.Error, "upstreams") {
		t.Errorf("a registry that the node does not mirror: %+v", n)
	}
}

func TestPreheat_OnlyThePlatformOfTheNode(t *testing.T) {
	w := begin(t)
	a := w.node("a", func(c *agent.Config) { c.Quota = unit.Size(1 << 30) })
	other, own := w.push("team/app", "other", layer), w.push("team/app", "own", layer)
	index := w.pushIndex("team/app", "v1", map[string]image{otherArch(): other, runtime.GOARCH: own})
	w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"}).ID)
	if a.got(index.digest) == "" || a.got(own.digest) == "" || a.got(own.blobs[1]) == "" || a.has(other.blobs[1]) != "" || a.has(other.digest) != "" {
		t.Error("not the image of this platform, or not it alone")
	}
	w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", AllPlatforms: true}).ID)
	if a.got(other.blobs[1]) == "" || a.got(other.digest) == "" {
		t.Error("the other platform's is not there")
	}
	alien := w.pushIndex("team/app", "v2", map[string]image{otherArch(): other})
	p := w.over(w.preheat(adminapi.PreheatRequest{Reference: "team/app@" + string(alien.digest)}).ID)
	if n := p.Nodes[0]; n.State != nodeapi.TaskFailed || !strings.Contains(n.Error, "platform") {
		t.Errorf("node %+v", n)
	}
}

// TestPreheat_ABuildCache: BuildKit's index names layers and the cache's
// configuration, none of which is a manifest.
func TestPreheat_ABuildCache(t *testing.T) {
	w := begin(t)
	a := w.node("a", nil)
	cache := w.pushBuildCache("team/app", "cache", layer, 2*layer)
	p := w.done(w.preheat(adminapi.PreheatRequest{Reference: "team/app:cache"}).ID)
	if n := p.Nodes[0]; n.DoneBytes < 3*layer || n.DoneBytes != n.TotalBytes {
		t.Errorf("node %+v", n)
	}
	for _, d := range append(cache.blobs, cache.digest) {
		if a.got(d) == "" {
			t.Errorf("%s is not there", d)
		}
	}
}

package adminapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// agent reports as an agent does.
type agent struct {
	*server
	r nodeapi.Report
}

const nodeTTL = 5 * time.Minute

func (s *server) agent(name string) *agent {
	return &agent{s, nodeapi.Report{Node: name, Instance: "i-" + name, Version: "v1", Complete: true, TTLSeconds: int64(nodeTTL / time.Second),
		Runtimes: []nodeapi.Runtime{{Name: "containerd", Answers: true, Containers: 1}}, Cache: nodeapi.Cache{UsedBytes: 5, QuotaBytes: 10}, Swarm: "10.0.0.1:7946"}}
}

// runs reports that the node runs the images, and nothing else.
func (a *agent) runs(images ...oci.Digest) nodeapi.Accepted {
	a.t.Helper()
	a.r.InUse = []nodeapi.InUse{}
	for _, d := range images {
		a.r.InUse = append(a.r.InUse, nodeapi.InUse{Digests: []digest.Digest{d}, Image: "app", Containers: 1, ForSeconds: 60})
	}
	return a.report()
}

func (a *agent) report() (got nodeapi.Accepted) {
	a.t.Helper()
	a.r.Seq++
	a.do("PUT", "/nodes/"+a.r.Node, a.r).ok(200, &got)
	return got
}

func (s *server) pass(d time.Duration) { s.clock.Add(d.Milliseconds()) }

// collect is a run that time protects nothing from.
func (s *server) collect() meta.Run {
	s.t.Helper()
	return s.run("/gc/runs", `{"window":0,"trash":0,"untagged":"1s"}`)
}

// has demands that a layer's bytes and row are there, or not.
func (s *server) has(layer oci.Digest, want bool) {
	s.t.Helper()
	_, id, err := s.store.FindLinks(s.t.Context(), "", layer, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	if (id != 0) != want {
		s.t.Fatalf("blob %s is here: %t, want %t", layer, id != 0, want)
	}
}

func (s *server) explained(subject string, parts ...string) gc.Explanation {
	s.t.Helper()
	var x gc.Explanation
	s.do("GET", "/explain?subject="+subject, nil).ok(200, &x)
	var texts []string
	for _, r := range x.Reasons {
		if r.Code == gc.KeptLease {
			texts = append(texts, strings.Join(r.Path, " → ")+": "+r.Text)
		}
	}
	for _, p := range parts {
		if !strings.Contains(strings.Join(texts, "\n"), p) {
			s.t.Errorf("explain %s does not say %q:\n%+v", subject, p, x)
		}
	}
	return x
}

func TestR1_NodeDeletedImageOfARunningContainerStaysUntilItStops(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	other, otherLayer := s.push("team/app", "v2", "layer two")
	node := s.agent("a")
	node.runs(m)
	s.delete("team/app", m)
	s.delete("team/app", other)

	run := s.collect()
	if run.Kept[gc.KeptLease] == 0 {
		t.Errorf("the run kept nothing by the lease: %+v", run.Counts)
	}
	s.has(layer, true)
	s.has(otherLayer, false)
	s.explained("team/app@"+string(m), "node a", "running on node a since")
	var restored meta.Restored
	s.do("POST", "/trash/restore", adminapi.ItemRequest{Repository: "team/app", Digest: string(m)}).ok(200, &restored)
	if !slices.Equal(restored.Tags, []string{"v1"}) {
		t.Errorf("restored %+v", restored)
	}
	s.delete("team/app", m)

	node.runs() // the container stops
	if run := s.collect(); run.Kept[gc.KeptLease] != 0 {
		t.Errorf("a stopped container keeps its image: %+v", run.Counts)
	}
	s.has(layer, false)
}

func TestR3_NodeEndOfUseBeginsTheWindow(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	node := s.agent("a")
	node.runs(m)
	s.delete("team/app", m)
	s.pass(3 * time.Hour)
	node.runs()
	s.run("/gc/runs", `{"trash":0}`)
	s.has(layer, true)
	s.pass(3 * time.Hour)
	s.run("/gc/runs", `{"trash":0}`)
	s.run("/gc/runs", `{"trash":0,"window":0}`)
	s.has(layer, false)
}

func TestR1_NodeUntaggedImageInUseStays(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	s.push("team/app", "v1", "layer two") // the tag moves
	node := s.agent("a")
	node.runs(m)
	s.pass(time.Hour)
	if run := s.collect(); run.Trashed != 0 || run.Kept[gc.KeptLease] == 0 {
		t.Errorf("untagged and in use: %+v", run.Counts)
	}
	s.has(layer, true)
	node.runs()
	s.pass(time.Minute)
	s.collect()
	s.has(layer, false)
}

func TestR14_NodeThatVanishesKeepsWhatItRanForTheGrace(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	a := s.agent("a").runs(m)
	s.delete("team/app", m)
	state := func(want string) nodeapi.Node {
		t.Helper()
		var n nodeapi.Node
		s.do("GET", "/nodes/a", nil).ok(200, &n)
		if n.State != want {
			t.Errorf("the node is %s, want %s: %+v", n.State, want, n)
		}
		return n
	}
	state(nodeapi.StateFresh)
	s.pass(nodeTTL + 24*time.Hour)
	n := state(nodeapi.StateLate)
	s.collect()
	s.has(layer, true)
	s.explained("team/app@"+string(m), "a was last heard of on", "stays until")
	if !n.KeptUntil.Equal(a.KeptUntil) || n.Digests != 1 {
		t.Errorf("kept until %s, promised %s; %d digests", n.KeptUntil, a.KeptUntil, n.Digests)
	}
	s.pass(4 * time.Hour)
	state(nodeapi.StateGone)
	s.collect()
	s.has(layer, false)
	s.pass(31 * 24 * time.Hour)
	s.collect()
	s.do("GET", "/nodes/a", nil).refused(404, "a")
}

func TestNodes_AnAgentMayAskForItsGrace(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	node := s.agent("a")
	node.r.GraceSeconds = 60
	node.runs(m)
	s.delete("team/app", m)
	s.pass(nodeTTL + 59*time.Second)
	s.collect()
	s.has(layer, true)
	s.pass(30 * time.Second)
	s.collect()
	s.has(layer, false)
}

func TestR10_NodeExplainNamesAllNodesForManifestChildAndBlob(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	child, err := s.store.Manifest(t.Context(), "team/app", oci.Reference{Digest: m})
	if err != nil {
		t.Fatal(err)
	}
	index := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, oci.MediaTypeIndex, oci.MediaTypeImage, m, len(child.Content)))
	parsed, err := oci.ParseManifest(oci.MediaTypeIndex, index)
	if err != nil {
		t.Fatal(err)
	}
	i := digest.FromBytes(index)
	if _, err := s.store.PutManifest(t.Context(), meta.Push{Repo: "team/app", Digest: i, Manifest: parsed, Content: index}); err != nil {
		t.Fatal(err)
	}
	s.agent("b").runs(i)
	a := s.agent("a")
	a.r.InUse = []nodeapi.InUse{{Digests: []digest.Digest{m, i}, Containers: 2, ForSeconds: 3600}}
	a.report()
	since := meta.Time(s.store.Now()).Add(-time.Hour).Format("2006-01-02 15:")
	s.explained("team/app@"+string(i), "running on nodes a, b since "+since)
	s.explained("team/app@"+string(m), "running on nodes a, b since "+since)
	s.explained(string(layer), "running on nodes a, b", "nodes a, b → team/app@"+string(m)+" → blob")

	a.runs()
	if x := s.explained("team/app@"+string(m), "what is above it is running on node b"); x.Verdict != gc.VerdictKept {
		t.Errorf("verdict %s", x.Verdict)
	}
	s.agent("c").do("PUT", "/nodes/c", nodeapi.Report{Node: "c", Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60,
		InUse: []nodeapi.InUse{{Digests: []digest.Digest{m}, Pinned: true}}}).ok(200, nil)
	s.do("DELETE", "/nodes/b", nil).ok(204, nil)
	s.explained("team/app@"+string(m), "needed on node c")
}

func TestN3_NodeIncompleteReportTakesNothingAway(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	n, _ := s.push("team/app", "v2", "layer two")
	node := s.agent("a")
	node.runs(m)
	s.delete("team/app", m)
	node.r.Complete = false
	if a := node.runs(n); a.Digests != 2 {
		t.Errorf("%d digests stay, want 2", a.Digests)
	}
	s.collect()
	s.has(layer, true)
	var got nodeapi.Node
	s.do("GET", "/nodes/a", nil).ok(200, &got)
	if got.Complete || len(got.Runs) != 2 {
		t.Errorf("the node is %+v", got)
	}
	node.r.Complete = true
	if a := node.runs(n); a.Digests != 1 {
		t.Errorf("%d digests stay, want 1", a.Digests)
	}
	s.collect()
	s.has(layer, false)
}

func TestNodes_OlderReportsAreRefused(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	node := s.agent("a")
	node.runs(m)
	late := node.r
	s.do("PUT", "/nodes/a", late).refused(409, "not newer")
	s.delete("team/app", m)

	reinstalled := s.agent("a")
	reinstalled.r.Instance = "another"
	reinstalled.runs()
	node.r.Seq = 100
	s.do("PUT", "/nodes/a", node.r).refused(409, "another installation")
	// Whether the node was reinstalled or has a twin is not known: what the former
	// one ran stays for its grace.
	s.collect()
	s.has(layer, true)
	s.explained("team/app@"+string(m), "another installation reports as a")
	reinstalled.runs()
	s.collect()
	s.has(layer, true)
	s.pass(nodeTTL + 28*time.Hour)
	s.collect()
	s.has(layer, false)
}

func TestNodes_ForgottenNodeLetsGoAndMayComeBack(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	node := s.agent("a")
	node.runs(m)
	node.r.Instance = "another" // of both installations
	node.runs(m)
	s.do("DELETE", "/nodes/a", nil).ok(204, nil)
	s.do("DELETE", "/nodes/a", nil).refused(404, "a")
	s.delete("team/app", m)
	s.collect()
	s.has(layer, false)
	node.runs(m)
	var list nodeapi.NodeList
	s.do("GET", "/nodes", nil).ok(200, &list)
	if len(list.Nodes) != 1 || list.Nodes[0].Name != "a" || list.Nodes[0].Images != 1 || list.Nodes[0].Runs[0].Digests[0] != m {
		t.Errorf("nodes %+v", list)
	}
	s.do("GET", "/nodes?state=late", nil).refused(400, "state")
}

func TestNodes_RenewalKeepsAtLeastTheGraceAndRarelyWritesDigests(t *testing.T) {
	s := serve(t)
	m, _ := s.push("team/app", "v1", "layer one")
	node := s.agent("a")
	ends := map[time.Time]bool{}
	for range 100 {
		a := node.runs(m)
		ends[a.KeptUntil] = true
		if kept := a.KeptUntil.Sub(meta.Time(s.store.Now())); kept < nodeTTL+24*time.Hour-time.Second || kept > nodeTTL+27*time.Hour {
			t.Fatalf("it is kept for %s", kept)
		}
		s.pass(nodeTTL / 3)
	}
	if len(ends) > 3 {
		t.Errorf("the lease was written %d times in 100 renewals", len(ends))
	}
	if audits := strings.Count(s.log.String(), "verb=node.report"); audits != 1 {
		t.Errorf("%d lines of audit for one change", audits)
	}
}

func TestNodes_ALargeNodeIsTakenIn(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	node := s.agent("big")
	var all []oci.Digest
	for i := range 8000 {
		all = append(all, digest.FromString(fmt.Sprint(i)))
	}
	all = append(all, m)
	if a := node.runs(all...); a.Digests != int64(len(all)) {
		t.Errorf("%d digests stay, want %d", a.Digests, len(all))
	}
	s.delete("team/app", m)
	if a := node.runs(all[4000:]...); a.Digests != int64(len(all)-4000) {
		t.Errorf("%d digests stay, want %d", a.Digests, len(all)-4000)
	}
	s.collect()
	s.has(layer, true)
	if a := node.runs(all[:10]...); a.Digests != 10 {
		t.Errorf("%d digests stay, want 10", a.Digests)
	}
	s.collect()
	s.has(layer, false)
}

func TestR11_NodeSinceIsByTheDatabasesClock(t *testing.T) {
	s := serve(t)
	s.pass(-5 * 365 * 24 * time.Hour)
	m, _ := s.push("team/app", "v1", "layer one")
	s.agent("a").runs(m)
	var n nodeapi.Node
	s.do("GET", "/nodes/a", nil).ok(200, &n)
	if age := n.SeenAt.Sub(n.Runs[0].Since); age < 59*time.Second || age > 61*time.Second || time.Since(n.SeenAt) < 4*365*24*time.Hour {
		t.Errorf("seen at %s, runs since %s", n.SeenAt, n.Runs[0].Since)
	}
}

func TestNodes_Metrics(t *testing.T) {
	s := serve(t)
	m, _ := s.push("team/app", "v1", "layer one")
	s.agent("a").runs(m)
	s.pass(time.Hour)
	s.agent("b").runs(m)
	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, v := range f.GetMetric() {
			name := f.GetName()
			for _, l := range v.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = v.GetGauge().GetValue() + v.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{"fairway_nodes fresh": 1, "fairway_nodes late": 1, "fairway_nodes gone": 0, "fairway_nodes_in_use_digests": 1, "fairway_nodes_reports_total changed": 2} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestNodes_RefuseWhatCannotBeRead(t *testing.T) {
	s := serve(t)
	long := strings.Repeat("a", 201)
	for name, c := range map[string]struct {
		node, body string
		want       string
	}{
		"no instance":                    {"a", `{"seq":1,"ttl_seconds":60}`, "instance"},
		"no seq":                         {"a", `{"instance":"i","ttl_seconds":60}`, "seq"},
		"no ttl":                         {"a", `{"instance":"i","seq":1}`, "ttl_seconds"},
		"nothing in use said by silence": {"a", `{"instance":"i","seq":1,"ttl_seconds":60,"complete":true}`, "in_use"},
		"a long ttl":                     {"a", `{"instance":"i","seq":1,"ttl_seconds":86401}`, "ttl_seconds"},
		"a long grace":                   {"a", `{"instance":"i","seq":1,"ttl_seconds":60,"grace_seconds":9223372036854775807}`, "grace_seconds"},
		"another name":                   {"a", `{"node":"b","instance":"i","seq":1,"ttl_seconds":60}`, "path"},
		"no digest":                      {"a", `{"instance":"i","seq":1,"ttl_seconds":60,"in_use":[{"digests":[]}]}`, "no digest"},
		"a digest that's not":            {"a", `{"instance":"i","seq":1,"ttl_seconds":60,"in_use":[{"digests":["sha256:1"]}]}`, "digest"},
		"a wrong type":                   {"a", `{"instance":"i","seq":"1","ttl_seconds":60}`, "seq"},
		"no JSON":                        {"a", `{`, "JSON"},
		"a name that's not":              {"-a", `{"instance":"i","seq":1,"ttl_seconds":60,"in_use":[]}`, "node"},
		"a long name":                    {long, `{"instance":"i","seq":1,"ttl_seconds":60,"in_use":[]}`, "node"},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.do("PUT", "/nodes/"+c.node, c.body)
			a.t = t
			a.refused(http.StatusBadRequest, c.want)
		})
	}
	s.do("PUT", "/nodes/a", `{"instance":"i","seq":1,"ttl_seconds":60,"in_use":[],"from_the_future":true,"version":"v\u001b[31m"}`).ok(200, nil)
	var n nodeapi.Node
	s.do("GET", "/nodes/a", nil).ok(200, &n)
	if n.Version != "v[31m" {
		t.Errorf("version %q", n.Version)
	}
	s.do("GET", "/nodes/-a", nil).refused(400, "node")
	s.do("DELETE", "/nodes/-a", nil).refused(400, "node")
}

func TestLeases_OfNodesAreChangedByTheirReportsOnly(t *testing.T) {
	s := serve(t)
	m, _ := s.push("team/app", "v1", "layer one")
	s.agent("a").runs(m)
	s.do("PUT", "/leases/node:a", `{"digests":["`+string(m)+`"],"ttl":1}`).refused(400, "node")
	s.do("DELETE", "/leases/node:a", nil).refused(400, "node")
	var l meta.Lease
	s.do("GET", "/leases/node:a", nil).ok(200, &l)
	if len(l.Digests) != 1 {
		t.Errorf("lease %+v", l)
	}
}

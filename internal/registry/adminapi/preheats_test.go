package adminapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// preheatOperations has each operation succeed once. Node a has reported and
// team/app:v2 is there.
func (s *server) preheatOperations() {
	s.t.Helper()
	p := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v2"})
	at := fmt.Sprintf("/preheats/%d", p.ID)
	s.do("GET", "/nodes/a/tasks?wait=1s", nil).ok(200, nil)
	s.do("PUT", fmt.Sprintf("/nodes/a/tasks/%d", p.ID), nodeapi.Progress{State: nodeapi.TaskDone, Error: "none"}).ok(204, nil)
	s.do("GET", at+"?wait=1s", nil).ok(200, nil)
	s.do("GET", "/preheats", nil).ok(200, nil)
	s.do("DELETE", at, nil).ok(204, nil)
	var r meta.PreheatRule
	s.do("POST", "/preheat-rules", adminapi.PreheatRuleRequest{Repository: "team/none", Tag: "v*", Share: 50}).ok(201, &r)
	s.do("GET", "/preheat-rules", nil).ok(200, nil)
	s.do("DELETE", fmt.Sprintf("/preheat-rules/%d", r.ID), nil).ok(204, nil)
}

func (s *server) preheat(req adminapi.PreheatRequest) (p meta.Preheat) {
	s.t.Helper()
	s.do("POST", "/preheats", req).ok(202, &p)
	return p
}

// labelled reports a node that runs nothing and has labels.
func (s *server) labelled(name string, pairs ...string) *agent {
	s.t.Helper()
	a := s.agent(name)
	a.r.Labels = map[string]string{}
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		a.r.Labels[key] = value
	}
	a.runs()
	return a
}

func (a *agent) task() (t nodeapi.Task, ok bool) {
	a.t.Helper()
	var list nodeapi.TaskList
	a.do("GET", "/nodes/"+a.r.Node+"/tasks", nil).ok(200, &list)
	if len(list.Tasks) == 0 {
		return t, false
	}
	return list.Tasks[0], true
}

func (a *agent) progress(id int64, p nodeapi.Progress) answer {
	a.t.Helper()
	return a.do("PUT", fmt.Sprintf("/nodes/%s/tasks/%d", a.r.Node, id), p)
}

func namesOf(p meta.Preheat) string {
	var names []string
	for _, n := range p.Nodes {
		names = append(names, n.Node)
	}
	return strings.Join(names, " ")
}

func TestPreheat_ChoosesFreshNodesByLabelNameAndShare(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	s.labelled("gone", "zone=a")
	s.pass(nodeTTL + time.Second)
	s.labelled("web-1", "zone=a", "disk=ssd", "no label=x")
	s.labelled("web-2", "zone=b", "disk=ssd")
	s.labelled("db-1", "zone=a")
	for choice, want := range map[string]string{
		"": "db-1 web-1 web-2", "zone=a": "db-1 web-1", "zone=a,disk=ssd": "web-1", "web-*": "web-1 web-2", "web-?,zone=b": "web-2", "db-1": "db-1",
	} {
		if got := namesOf(s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", Nodes: choice})); got != want {
			t.Errorf("nodes %q: %q, want %q", choice, got, want)
		}
	}
	half := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", Share: 50})
	again := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", Share: 50})
	if len(half.Nodes) != 2 || namesOf(half) != namesOf(again) {
		t.Errorf("half of three, twice: %q and %q", namesOf(half), namesOf(again))
	}
	var n nodeapi.Node
	s.do("GET", "/nodes/web-1", nil).ok(200, &n)
	if fmt.Sprint(n.Labels) != "map[disk:ssd zone:a]" {
		t.Errorf("labels %v", n.Labels)
	}
	s.do("POST", "/preheats", adminapi.PreheatRequest{Reference: "team/app:v1", Nodes: "zone=c"}).refused(404, "no node")
	for _, bad := range []adminapi.PreheatRequest{{Reference: "team/app:v1", Nodes: "["}, {Reference: "team/app:v1", Nodes: "a b=c"}, {Reference: "team/app:v1", Nodes: "a,"}, {Reference: "Team/App"}} {
		s.do("POST", "/preheats", bad).ok(400, nil)
	}
	s.do("POST", "/preheats", `{"reference":"team/app:v1","share":"101%"}`).refused(400, "share")
}

func TestPreheat_UnknownRef(t *testing.T) {
	s := serve(t)
	m, _ := s.push("team/app", "v1", "layer one")
	s.labelled("a")
	s.do("POST", "/preheats", adminapi.PreheatRequest{Reference: "team/app:v2"}).refused(404, "has no manifest v2")
	s.do("POST", "/preheats", adminapi.PreheatRequest{Reference: "team/other"}).refused(404, "team/other")
	s.do("POST", "/preheats", `{}`).refused(400, "reference")
	host := strings.TrimPrefix(s.url, "http://")
	for ref, want := range map[string]nodeapi.Task{
		"team/app:v1":                {Repository: "team/app", Tag: "v1", Digest: m},
		"team/app@" + string(m):      {Repository: "team/app", Digest: m},
		host + "/team/app:v1":        {Repository: "team/app", Tag: "v1", Digest: m},
		"docker.io/library/alpine":   {Upstream: "docker.io", Repository: "library/alpine", Tag: "latest"},
		"reg.example:5000/app:v1":    {Upstream: "reg.example:5000", Repository: "app", Tag: "v1"},
		"localhost/app@" + string(m): {Upstream: "localhost", Repository: "app", Digest: m},
	} {
		p := s.preheat(adminapi.PreheatRequest{Reference: ref})
		got, ok := s.agent("a").task()
		want.ID = p.ID
		if !ok || got != want {
			t.Errorf("%s: task %+v, want %+v", ref, got, want)
		}
		s.do("DELETE", fmt.Sprintf("/preheats/%d", p.ID), nil).ok(204, nil)
	}
}

// TestPreheat_TasksOneAfterAnother is a node's whole life with tasks.
func TestPreheat_TasksOneAfterAnother(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	a, b := s.labelled("a"), s.labelled("b")
	first := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	second := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1", Nodes: "a"})
	for range 2 { // an answer that was lost, or a node that was started anew
		if got, _ := a.task(); got.ID != first.ID {
			t.Fatalf("task %+v, want that of preheat %d", got, first.ID)
		}
		a.progress(first.ID, nodeapi.Progress{State: nodeapi.TaskRunning, DoneBytes: 3, TotalBytes: 9}).ok(204, nil)
	}
	a.progress(first.ID, nodeapi.Progress{State: nodeapi.TaskDone, DoneBytes: 9, TotalBytes: 9}).ok(204, nil)
	a.progress(first.ID, nodeapi.Progress{State: nodeapi.TaskFailed}).refused(409, "over: done")
	if got, _ := a.task(); got.ID != second.ID {
		t.Errorf("task %+v, want that of preheat %d", got, second.ID)
	}
	s.do("DELETE", fmt.Sprintf("/preheats/%d", second.ID), nil).ok(204, nil)
	a.progress(second.ID, nodeapi.Progress{State: nodeapi.TaskRunning}).refused(404, "no task")
	a.progress(first.ID, nodeapi.Progress{State: "odd"}).ok(400, nil)
	if _, ok := a.task(); ok {
		t.Error("there is a task of a preheat that was deleted")
	}
	b.progress(first.ID, nodeapi.Progress{State: nodeapi.TaskSkipped, Error: "no\x1b room"}).ok(204, nil)
	var p meta.Preheat
	for p.State == "" || p.State == meta.PreheatRunning {
		s.do("GET", fmt.Sprintf("/preheats/%d?wait=20s", first.ID), nil).ok(200, &p)
	}
	if p.State != meta.PreheatFailed || p.FinishedAt == nil || p.Nodes[0].State != nodeapi.TaskDone || p.Nodes[1].Error != "no room" {
		t.Errorf("preheat %+v", p)
	}
}

// TestPreheat_WaitsForATask is answered when there is one, and not before.
func TestPreheat_WaitsForATask(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	s.labelled("a")
	began := s.store.PreheatBegun()
	got := make(chan nodeapi.TaskList, 1)
	go func() {
		list, err := s.preheats.Task(t.Context(), "a", time.Minute)
		if err != nil {
			t.Error(err)
		}
		got <- list
	}()
	s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	if list := <-got; len(list.Tasks) != 1 {
		t.Errorf("tasks %+v", list)
	}
	select {
	case <-began:
	default:
		t.Error("nobody was woken")
	}
}

func TestPreheat_ExpiresWhatNobodyTakesUp(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	a := s.labelled("a")
	s.labelled("b")
	first := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	second := s.preheat(adminapi.PreheatRequest{Reference: "team/app:v1"})
	sweep := func() {
		t.Helper()
		if err := s.preheats.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	states := func(id int64) (list []string) {
		t.Helper()
		var p meta.Preheat
		s.do("GET", fmt.Sprintf("/preheats/%d", id), nil).ok(200, &p)
		for _, n := range p.Nodes {
			list = append(list, n.State)
		}
		return list
	}
	s.pass(10 * time.Minute)
	a.progress(first.ID, nodeapi.Progress{State: nodeapi.TaskRunning}).ok(204, nil)
	sweep()
	s.pass(10 * time.Minute)
	sweep()
	// a is at the first, so that the second only has to wait for it.
	if got := append(states(first.ID), states(second.ID)...); !slices.Equal(got, []string{"running", "failed", "waiting", "failed"}) {
		t.Errorf("states %v", got)
	}
	s.pass(16 * time.Minute)
	sweep()
	if got := append(states(first.ID), states(second.ID)...); slices.Contains(got, "running") || slices.Contains(got, "waiting") {
		t.Errorf("states %v", got)
	}
	s.pass(31 * 24 * time.Hour)
	sweep()
	s.do("GET", fmt.Sprintf("/preheats/%d", first.ID), nil).refused(404, "no preheat")
}

func TestPreheat_RuleOnPush(t *testing.T) {
	s := serve(t)
	a := s.labelled("a", "zone=a")
	s.labelled("b")
	rule := func(r adminapi.PreheatRuleRequest) (got meta.PreheatRule) {
		t.Helper()
		s.do("POST", "/preheat-rules", r).ok(201, &got)
		return got
	}
	mine := rule(adminapi.PreheatRuleRequest{Repository: "team/**", Tag: "v*", Nodes: "zone=a"})
	rule(adminapi.PreheatRuleRequest{Repository: "team/app", Tag: "v1", Nodes: "zone=none"})
	if mine.Share != 100 || mine.Actor == "" {
		t.Errorf("rule %+v", mine)
	}
	s.push("team/app", "latest", "another tag")
	s.push("other/app", "v1", "another repository")
	m, _ := s.push("team/app", "v1", "layer one")
	s.push("team/app", "v1", "layer one") // again, while it is under way
	var list adminapi.PreheatList
	s.do("GET", "/preheats", nil).ok(200, &list)
	if len(list.Preheats) != 1 || list.Preheats[0].Rule != mine.ID || list.Preheats[0].Digest != m || namesOf(list.Preheats[0]) != "a" {
		t.Fatalf("preheats %+v", list.Preheats)
	}
	got, _ := a.task()
	if want := (nodeapi.Task{ID: list.Preheats[0].ID, Repository: "team/app", Tag: "v1", Digest: m}); got != want {
		t.Errorf("task %+v, want %+v", got, want)
	}
	a.progress(got.ID, nodeapi.Progress{State: nodeapi.TaskDone}).ok(204, nil)
	s.do("DELETE", fmt.Sprintf("/preheat-rules/%d", mine.ID), nil).ok(204, nil)
	s.do("DELETE", fmt.Sprintf("/preheat-rules/%d", mine.ID), nil).refused(404, "no rule")
	s.push("team/app", "v2", "layer two")
	s.do("GET", "/preheats", nil).ok(200, &list)
	if len(list.Preheats) != 1 {
		t.Errorf("a rule that was removed began %+v", list.Preheats[0])
	}
	for _, bad := range []adminapi.PreheatRuleRequest{{Tag: "v*"}, {Repository: "[", Tag: "v"}, {Repository: "a", Tag: "["}, {Repository: "a", Tag: "v", Nodes: "["}} {
		s.do("POST", "/preheat-rules", bad).ok(400, nil)
	}
}

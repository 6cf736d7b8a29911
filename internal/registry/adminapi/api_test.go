package adminapi_test

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// run starts a collection, waits for its end and returns it.
func (s *server) run(path string, body any) meta.Run {
	s.t.Helper()
	var r meta.Run
	a := s.do("POST", path, body).ok(http.StatusAccepted, &r)
	at := fmt.Sprintf("/gc/runs/%d", r.ID)
	if got := a.header.Get("Location"); got != "/api/v1"+at {
		s.t.Errorf("Location %q, want /api/v1%s", got, at)
	}
	for r.FinishedAt == nil { // on a busy machine one wait may be too short
		s.do("GET", at+"?wait=20s", nil).ok(http.StatusOK, &r)
	}
	if r.State != meta.RunDone {
		s.t.Fatalf("run %d is %s: %s", r.ID, r.State, r.Error)
	}
	return r
}

// checked waits for the end of a check, for as long as the machine needs.
func (s *server) checked(r *check.Report) {
	s.t.Helper()
	for at := fmt.Sprintf("/checks/%d?wait=20s", r.ID); r.State == check.StateRunning; {
		s.do("GET", at, nil).ok(http.StatusOK, r)
	}
}

func TestRuns_CollectAndAreRemembered(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	s.delete("team/app", m)

	kept := s.run("/gc/runs", adminapi.RunRequest{})
	if kept.Collected != 0 || kept.Trigger != "manual" || kept.Policy.Window != policy.Window {
		t.Errorf("a run with the server's policy: %+v", kept)
	}
	r := s.run("/gc/runs", `{"window":"0","trash":0,"repository":"team/*"}`)
	if r.Collected == 0 || r.Policy.Window != 0 || r.Policy.Trash != 0 || r.Policy.Repository != "team/*" {
		t.Errorf("a run with an empty window and trash: %+v", r)
	}

	var list adminapi.RunList
	s.do("GET", "/gc/runs?n=1", nil).ok(200, &list)
	if len(list.Runs) != 1 || list.Runs[0].ID != r.ID {
		t.Errorf("the newest of the history is %+v, want run %d", list.Runs, r.ID)
	}
	s.do("GET", fmt.Sprintf("/gc/runs?before=%d", r.ID), nil).ok(200, &list)
	if len(list.Runs) != 1 || list.Runs[0].ID != kept.ID {
		t.Errorf("before run %d there is %+v, want run %d", r.ID, list.Runs, kept.ID)
	}
	var gone adminapi.DeletionList
	s.do("GET", fmt.Sprintf("/gc/runs/%d/deletions", r.ID), nil).ok(200, &gone)
	if !slices.ContainsFunc(gone.Deletions, func(d meta.Deletion) bool {
		return d.Digest == string(layer) && d.RunID == r.ID && strings.HasPrefix(d.Actor, "anonymous@")
	}) {
		t.Errorf("the run's log of deletions does not name the layer: %+v", gone)
	}
	var all adminapi.DeletionList
	s.do("GET", "/deletions?"+url.Values{"digest": {string(layer)}, "run": {fmt.Sprint(r.ID)}}.Encode(), nil).ok(200, &all)
	if len(all.Deletions) == 0 || len(all.Deletions) >= len(gone.Deletions) {
		t.Errorf("filtered by digest and run there are %d records, of %d of the run", len(all.Deletions), len(gone.Deletions))
	}
	var events adminapi.EventList
	s.do("GET", fmt.Sprintf("/gc/runs/%d/events", r.ID), nil).ok(200, &events)
	if events.Events == nil {
		t.Error("the events are null")
	}
}

func TestRuns_DryRunPredictsAndChangesNothing(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	s.delete("team/app", m)
	req := `{"window":0,"trash":0,"dry_run":true}`
	var first, second adminapi.DryRun
	s.do("POST", "/gc/runs", req).ok(200, &first)
	s.do("POST", "/gc/runs", req).ok(200, &second)
	if first.Collected == 0 || first.Collected != second.Collected || !first.DryRun || first.ID != 0 {
		t.Errorf("two dry runs: %+v and %+v", first, second)
	}
	if !slices.ContainsFunc(first.Items, func(d meta.Deletion) bool { return d.Digest == string(layer) && d.Kind == "blob" }) || first.ItemsTruncated {
		t.Errorf("the items do not name the layer: %+v", first.Items)
	}
	happened := s.run("/gc/runs", `{"window":0,"trash":0}`)
	if happened.Collected != first.Collected || happened.FreedBytes != first.FreedBytes {
		t.Errorf("predicted %+v, happened %+v", first.Counts, happened.Counts)
	}
	var list adminapi.RunList
	if s.do("GET", "/gc/runs", nil).ok(200, &list); len(list.Runs) != 1 {
		t.Errorf("the history has %d runs, want the real one only", len(list.Runs))
	}
}

func TestRuns_StopAnswersWithTheEnd(t *testing.T) {
	s := serve(t)
	r := s.run("/gc/runs", nil)
	var stopped meta.Run
	s.do("POST", fmt.Sprintf("/gc/runs/%d/stop", r.ID), nil).ok(200, &stopped)
	if stopped.ID != r.ID || stopped.State != meta.RunDone {
		t.Errorf("stopping a run that is over gave %+v", stopped)
	}
	var status gc.Status
	s.do("GET", "/gc/status", nil).ok(200, &status)
	if status.Last == nil || status.Last.ID != r.ID || len(status.Running) != 0 {
		t.Errorf("status %+v", status)
	}
}

func TestTrash_RestoreBringsTheTagBack(t *testing.T) {
	s := serve(t)
	m, _ := s.push("team/app", "v1", "layer one")
	s.delete("team/app", m)
	var trash adminapi.TrashList
	s.do("GET", "/trash?repository=team/*", nil).ok(200, &trash)
	if len(trash.Items) != 1 || trash.Items[0].Digest != m || !slices.Equal(trash.Items[0].Tags, []string{"v1"}) || trash.Items[0].Actor != "test" {
		t.Fatalf("trash %+v", trash)
	}
	var status gc.Status
	s.do("GET", "/gc/status", nil).ok(200, &status)
	if got := trash.Items[0].ExpiresAt.Sub(trash.Items[0].TrashedAt); got <= 0 || got != time.Duration(status.Policy.Trash) {
		t.Errorf("it expires after %s, the policy is %s", got, time.Duration(status.Policy.Trash))
	}
	var r meta.Restored
	s.do("POST", "/trash/restore", adminapi.ItemRequest{Repository: "team/app", Digest: string(m)}).ok(200, &r)
	if r.Digest != m || !slices.Equal(r.Tags, []string{"v1"}) {
		t.Errorf("restored %+v", r)
	}
	s.do("GET", "/trash", nil).ok(200, &trash)
	if len(trash.Items) != 0 {
		t.Errorf("the trash still has %+v", trash.Items)
	}
	s.do("POST", "/trash/restore", adminapi.ItemRequest{Repository: "team/app", Digest: string(m)}).refused(404)
}

func TestTrash_PurgeKeepsTheWindow(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	s.delete("team/app", m)
	r := s.run("/trash/purge", adminapi.PurgeRequest{Repository: "team/app"})
	if r.Policy.Trash != 0 || r.Policy.Window != policy.Window || r.Collected != 1 {
		t.Errorf("purge %+v", r)
	}
	var e gc.Explanation
	s.do("GET", "/explain?"+url.Values{"subject": {"team/app@" + string(layer)}}.Encode(), nil).ok(200, &e)
	if e.Verdict != gc.VerdictWaiting || e.GoesAt == nil {
		t.Errorf("the layer is %+v, want one that waits for its window", e)
	}
}

func TestExplain_TheTagThatKeepsALayer(t *testing.T) {
	s := serve(t)
	_, layer := s.push("team/app", "v1", "layer one")
	var e gc.Explanation
	s.do("GET", "/explain?"+url.Values{"subject": {string(layer)}}.Encode(), nil).ok(200, &e)
	if e.Verdict != gc.VerdictKept || len(e.Reasons) == 0 || !strings.Contains(strings.Join(e.Reasons[0].Path, " "), "team/app:v1") {
		t.Errorf("explanation %+v", e)
	}
	s.do("GET", "/explain", nil).refused(400, "subject")
	s.do("GET", "/explain?subject=no/such", nil).refused(404, "no/such")
	s.do("GET", "/explain?subject=%21", nil).refused(400)
}

func TestLeases_KeepWhatIsDeleted(t *testing.T) {
	s := serve(t)
	m, _ := s.push("team/app", "v1", "layer one")
	var l meta.Lease
	s.do("PUT", "/leases", map[string]any{"holder": "node/1", "digests": []string{string(m)}, "ttl": "1d"}).ok(200, &l)
	if l.Holder != "node/1" || !slices.Contains(l.Digests, m) || time.Until(l.ExpiresAt) < 23*time.Hour {
		t.Errorf("lease %+v", l)
	}
	s.delete("team/app", m)
	if r := s.run("/gc/runs", `{"window":0,"trash":0}`); r.Collected != 0 {
		t.Errorf("the leased image was collected: %+v", r)
	}
	s.do("PUT", "/leases/node%2F1", map[string]any{"digests": []string{string(m)}, "ttl": 60}).ok(200, &l)
	if d := time.Until(l.ExpiresAt); d > time.Minute {
		t.Errorf("renewed for 60 seconds, the lease lasts %s", d)
	}
	s.do("GET", "/leases/node%2F1", nil).ok(200, &l)
	var list adminapi.LeaseList
	for path, want := range map[string]int{"/leases": 1, "/leases?holder=node/1": 1, "/leases?holder=other": 0} {
		if s.do("GET", path, nil).ok(200, &list); len(list.Leases) != want {
			t.Errorf("GET %s: %d leases, want %d", path, len(list.Leases), want)
		}
	}
	s.do("DELETE", "/leases/node%2F1", nil).ok(204, nil)
	s.do("GET", "/leases/node%2F1", nil).refused(404, "node/1")
	if r := s.run("/gc/runs", `{"window":0,"trash":0}`); r.Collected == 0 {
		t.Errorf("nothing was collected after the end of the lease: %+v", r)
	}
}

func TestSchedules_KeepThePolicyOfTheirDay(t *testing.T) {
	s := serve(t)
	var added meta.Schedule
	s.do("POST", "/gc/schedules", `{"cron":"30 3 * * *","untagged":"30d","repository":"team/*"}`).ok(201, &added)
	if added.Policy.Window != policy.Window || time.Duration(added.Policy.Untagged) != 720*time.Hour || added.Policy.Repository != "team/*" {
		t.Errorf("schedule %+v", added)
	}
	var list adminapi.ScheduleList
	if s.do("GET", "/gc/schedules", nil).ok(200, &list); len(list.Schedules) != 1 || list.Schedules[0].ID != added.ID {
		t.Errorf("schedules %+v", list)
	}
	s.do("DELETE", fmt.Sprintf("/gc/schedules/%d", added.ID), nil).ok(204, nil)
	s.do("DELETE", fmt.Sprintf("/gc/schedules/%d", added.ID), nil).refused(404)
	s.do("POST", "/gc/schedules", `{"cron":"whenever"}`).refused(400, "whenever")
}

func TestChecks_AreStartedWatchedAndRemembered(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	var r check.Report
	a := s.do("POST", "/checks", `{"deep":true,"grace":0,"objects_per_second":0}`).ok(202, &r)
	if r.Request.Grace > 0 || r.Request.ObjectsPerSecond > 0 || r.Request.BytesPerSecond <= 0 {
		t.Errorf("asked for no grace and no limit of objects, it goes by %+v", r.Request)
	}
	at := fmt.Sprintf("/checks/%d", r.ID)
	if got := a.header.Get("Location"); got != "/api/v1"+at {
		t.Errorf("Location %q", got)
	}
	s.checked(&r)
	if !r.Clean() || r.BytesHashed == 0 || r.Blobs != 2 {
		t.Errorf("check %+v", r)
	}
	var list adminapi.CheckList
	if s.do("GET", "/checks", nil).ok(200, &list); len(list.Checks) != 1 || list.Checks[0].ID != r.ID {
		t.Errorf("checks %+v", list)
	}
	s.do("POST", at+"/stop", nil).ok(200, &r)
	s.do("GET", "/checks/99", nil).refused(404)
}

func TestVersion(t *testing.T) {
	var v adminapi.Version
	if serve(t).do("GET", "/version", nil).ok(200, &v); v.Version != "v1" || v.Commit != "c" {
		t.Errorf("version %+v", v)
	}
}

func TestAudit_EveryVerbLeavesALineWithItsEnd(t *testing.T) {
	s := serve(t)
	s.do("POST", "/gc/runs", `{"repository":"team/*"}`, "X-Request-Id: r-77").ok(202, nil)
	s.do("DELETE", "/gc/schedules/7", nil).refused(404)
	var audit []string
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "msg=audit") {
			audit = append(audit, line)
		}
	}
	if len(audit) != 2 {
		t.Fatalf("audit lines %q", audit)
	}
	for i, parts := range [][]string{
		{"verb=gc.run", "target=team/*", "actor=anonymous@127.0.0.1", "request=r-77", "outcome=done"},
		{"verb=schedule.delete", "target=7", "outcome=refused", `why="there is no schedule 7"`, "level=WARN"},
	} {
		for _, p := range parts {
			if !strings.Contains(audit[i], p) {
				t.Errorf("audit line %q does not say %s", audit[i], p)
			}
		}
	}
}

// TestOpenAPI_EveryOperationIsServedAndEveryRouteDescribed asks each operation
// of the document with a method that the handler must know, and finds each
// route that the handler knows in the document.
func TestOpenAPI_EveryOperationIsServedAndEveryRouteDescribed(t *testing.T) {
	s := serve(t)
	described := map[string]bool{}
	for path, item := range s.doc.Paths.Map() {
		for method := range item.Operations() {
			described[method+" "+path] = true
		}
	}
	served := map[string]bool{}
	for _, r := range adminapi.Routes() {
		served[r] = true
		if !described[r] {
			t.Errorf("%s is served and not described", r)
		}
	}
	for r := range described {
		if !served[r] {
			t.Errorf("%s is described and not served", r)
		}
	}
	for path, item := range s.doc.Paths.Map() {
		concrete := strings.NewReplacer("{id}", "1", "{holder}", "h").Replace(path)
		for _, method := range []string{"GET", "PUT", "POST", "DELETE", "PATCH"} {
			if got := s.do(method, concrete, nil).status; (got == 405) == (item.GetOperation(method) != nil) {
				t.Errorf("%s %s: status %d, described: %t", method, path, got, item.GetOperation(method) != nil)
			}
		}
	}
}

// TestOpenAPI_EveryOperationSucceedsAsDescribed leaves no operation whose good
// answer was never held against the document.
func TestOpenAPI_EveryOperationSucceedsAsDescribed(t *testing.T) {
	s := serve(t)
	m, layer := s.push("team/app", "v1", "layer one")
	kept, _ := s.push("team/app", "v2", "layer two")
	var sched meta.Schedule
	s.do("POST", "/gc/schedules", `{"cron":"@daily"}`).ok(201, &sched)
	s.do("GET", "/gc/schedules", nil).ok(200, nil)
	s.do("DELETE", fmt.Sprintf("/gc/schedules/%d", sched.ID), nil).ok(204, nil)
	lease := map[string]any{"holder": "n", "digests": []string{string(kept)}, "ttl": "1h"}
	s.do("PUT", "/leases", lease).ok(200, nil)
	s.do("PUT", "/leases/n", lease).ok(200, nil)
	s.do("GET", "/leases", nil).ok(200, nil)
	s.do("GET", "/leases/n", nil).ok(200, nil)
	s.agent("a").runs(kept)
	s.do("GET", "/nodes", nil).ok(200, nil)
	s.do("GET", "/nodes/a", nil).ok(200, nil)
	s.do("GET", "/explain?subject=team/app:v2", nil).ok(200, nil)
	s.preheatOperations()
	s.do("DELETE", "/nodes/a", nil).ok(204, nil)
	s.do("GET", "/explain?subject=team/app", nil).ok(200, nil)
	s.delete("team/app", m)
	s.do("GET", "/explain?"+url.Values{"subject": {string(m)}}.Encode(), nil).ok(200, nil)
	s.do("GET", "/trash", nil).ok(200, nil)
	s.do("POST", "/trash/restore", adminapi.ItemRequest{Repository: "team/app", Digest: string(m)}).ok(200, nil)
	s.delete("team/app", m)
	s.do("POST", "/gc/runs", `{"dry_run":true,"window":0,"trash":0}`).ok(200, nil)
	s.run("/trash/purge", nil)
	r := s.run("/gc/runs", `{"window":0,"trash":"0"}`)
	at := fmt.Sprintf("/gc/runs/%d", r.ID)
	s.do("GET", at+"/events", nil).ok(200, nil)
	s.do("GET", at+"/deletions", nil).ok(200, nil)
	s.do("POST", at+"/stop", nil).ok(200, nil)
	s.do("GET", "/gc/runs", nil).ok(200, nil)
	s.do("GET", "/gc/status", nil).ok(200, nil)
	s.do("GET", "/deletions", nil).ok(200, nil)
	s.do("GET", "/explain?"+url.Values{"subject": {string(layer)}}.Encode(), nil).ok(200, nil)
	var c check.Report
	s.do("POST", "/checks", `{"repair":true}`).ok(202, &c)
	s.checked(&c)
	s.do("GET", "/checks", nil).ok(200, nil)
	s.do("POST", fmt.Sprintf("/checks/%d/stop", c.ID), nil).ok(200, nil)
	s.do("DELETE", "/leases/n", nil).ok(204, nil)
	s.do("GET", "/version", nil).ok(200, nil)
	s.do("GET", "/openapi.json", nil).ok(200, nil)
	for path, item := range s.doc.Paths.Map() {
		for method, op := range item.Operations() {
			if !s.succeeded[op.OperationID] {
				t.Errorf("%s %s (%s) was never seen to succeed", method, path, op.OperationID)
			}
		}
	}
}

// TestChecks_WhatIsWrongIsDescribedToo shows the document what a check reports
// and logs when there is something to report.
func TestChecks_WhatIsWrongIsDescribedToo(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	shard := filepath.Join(s.blobs.Dir(), "blobs", "aa")
	if err := os.MkdirAll(shard, 0o700); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(filepath.Dir(shard), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Dir(path) == filepath.Dir(shard) {
			return err // what is not in a shard is not an object
		}
		return os.Rename(path, filepath.Join(shard, uuid(filepath.Base(path))))
	})
	if err != nil {
		t.Fatal(err)
	}
	var r check.Report
	s.do("POST", "/checks", `{"repair":true,"grace":0}`).ok(202, &r)
	s.checked(&r)
	if r.LostCount != 2 || r.Orphans.Count != 2 || len(r.Lost) != 2 || len(r.Lost[0].Affected) == 0 {
		t.Errorf("check %+v", r)
	}
	var log adminapi.DeletionList
	s.do("GET", "/deletions", nil).ok(200, &log)
	if len(log.Deletions) < 4 {
		t.Errorf("the log of deletions has %+v", log.Deletions)
	}
	s.do("GET", "/explain?subject=team/app:v1", nil).ok(200, nil)
	s.do("GET", "/explain?"+url.Values{"subject": {string(r.Lost[0].Digest)}}.Encode(), nil).ok(200, nil)
}

// uuid makes of an object's name another one that begins with aa.
func uuid(name string) string { return "aa" + name[2:] }

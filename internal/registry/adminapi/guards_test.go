package adminapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// TestR17_EveryPageIsBounded: and so is what a request may send.
func TestR17_EveryPageIsBounded(t *testing.T) {
	s := serve(t)
	s.do("POST", "/gc/runs", `{}`).ok(http.StatusAccepted, nil)
	for path, most := range map[string]int{"/gc/runs": 1000, "/gc/runs/1/deletions": 1000, "/deletions": 1000, "/checks": 1000, "/leases": 1000, "/preheats": 1000, "/trash": 10_000, "/nodes": 10_000} {
		s.do("GET", fmt.Sprintf("%s?n=%d", path, most), nil).ok(http.StatusOK, nil)
		s.do("GET", fmt.Sprintf("%s?n=%d", path, most+1), nil).refused(http.StatusBadRequest, "n:", fmt.Sprint(most))
	}
	for _, after := range []string{"x.1", "1.x", "1", "-1.1", "1.0", "1.-1", "."} {
		s.do("GET", "/trash?after="+after, nil).refused(http.StatusBadRequest, "after")
	}
	s.do("PUT", "/nodes/n/tasks/1", `{"state":"`+strings.Repeat("x", 16<<10)+`"}`).refused(http.StatusRequestEntityTooLarge)
}

// TestTrash_PagesEnd: the last one names no other.
func TestTrash_PagesEnd(t *testing.T) {
	s := serve(t)
	for _, tag := range []oci.Tag{"v1", "v2", "v3"} {
		m, _ := s.push("team/app", tag, "layer "+string(tag))
		s.delete("team/app", m)
	}
	var all, page adminapi.TrashList
	if s.do("GET", "/trash", nil).ok(http.StatusOK, &all); len(all.Items) != 3 || all.Next != "" {
		t.Errorf("%d items, next %q", len(all.Items), all.Next)
	}
	seen := 0
	for next := "start"; next != ""; next = page.Next {
		path := "/trash?n=2"
		if seen > 0 {
			path += "&after=" + next
		}
		page = adminapi.TrashList{}
		s.do("GET", path, nil).ok(http.StatusOK, &page)
		if seen += len(page.Items); seen > 3 || len(page.Items) == 0 {
			t.Fatalf("%d items, of which %d on the last page", seen, len(page.Items))
		}
	}
	if seen != 3 {
		t.Errorf("%d items", seen)
	}
}

// TestR17_AListShowsSomeOfALeasesDigests: a node's may be thousands. The lease itself shows all.
func TestR17_AListShowsSomeOfALeasesDigests(t *testing.T) {
	s := serve(t)
	var digests []string
	for n := range 150 {
		digests = append(digests, string(digest.FromString(fmt.Sprint(n))))
	}
	s.do("PUT", "/leases", map[string]any{"holder": "h", "digests": digests, "ttl": 60}).ok(http.StatusOK, nil)
	var list adminapi.LeaseList
	if s.do("GET", "/leases", nil).ok(http.StatusOK, &list); len(list.Leases) != 1 || len(list.Leases[0].Digests) != 100 {
		t.Errorf("%+v", list)
	}
	var one meta.Lease
	if s.do("GET", "/leases/h", nil).ok(http.StatusOK, &one); len(one.Digests) != 150 {
		t.Errorf("%d digests", len(one.Digests))
	}
}

// TestR17_ADryRunListsSoMany: and says that there are more, and counts all.
func TestR17_ADryRunListsSoMany(t *testing.T) {
	s := serve(t)
	var all sync.WaitGroup
	for worker := range 34 {
		all.Go(func() {
			for n := range 15 { // each is one item in its repository, and one as such
				content := fmt.Sprintf("blob %d of %d", n, worker)
				if _, err := s.uploads.Put(t.Context(), "app", digest.FromString(content), upload.Chunk{Body: strings.NewReader(content), Length: int64(len(content)), Actor: "test"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	var dry adminapi.DryRun
	if s.do("POST", "/gc/runs", `{"window":0,"trash":0,"dry_run":true}`).ok(http.StatusOK, &dry); len(dry.Items) != 1000 || !dry.ItemsTruncated || dry.Collected != 510 {
		t.Errorf("%d items, truncated %v, %+v", len(dry.Items), dry.ItemsTruncated, dry.Counts)
	}
}

// TestR10_ACheckDoesWhatItWasAskedTo: above all it repairs nothing unasked.
func TestR10_ACheckDoesWhatItWasAskedTo(t *testing.T) {
	s := serve(t)
	s.push("team/app", "v1", "layer one")
	for body, want := range map[string]check.Request{
		`{}`:                         {Grace: meta.Duration(2 * time.Hour), ObjectsPerSecond: 5000, BytesPerSecond: 200 << 20},
		`{"repair":true}`:            {Repair: true, Grace: meta.Duration(2 * time.Hour), ObjectsPerSecond: 5000, BytesPerSecond: 200 << 20},
		`{"deep":true,"grace":"3h"}`: {Deep: true, Grace: meta.Duration(3 * time.Hour), ObjectsPerSecond: 5000, BytesPerSecond: 200 << 20},
		`{"grace":0,"objects_per_second":7,"bytes_per_second":0}`: {Grace: -1, ObjectsPerSecond: 7, BytesPerSecond: -1},
	} {
		var r check.Report
		s.do("POST", "/checks", body).ok(http.StatusAccepted, &r)
		if r.Request != want {
			t.Errorf("%s: %+v, want %+v", body, r.Request, want)
		}
		s.checked(&r)
	}
	// A stopped one is gone on with if that is asked for.
	var r, again check.Report
	s.do("POST", "/checks", `{"deep":true,"objects_per_second":0.001}`).ok(http.StatusAccepted, &r)
	s.do("POST", fmt.Sprintf("/checks/%d/stop", r.ID), nil).ok(http.StatusOK, &r)
	if r.State != check.StateStopped {
		t.Fatalf("%+v", r)
	}
	if s.do("POST", "/checks", `{"resume":true}`).ok(http.StatusAccepted, &again); again.ID != r.ID || !again.Request.Deep {
		t.Errorf("%+v was to be gone on with: %+v", r, again)
	}
	s.checked(&again)
}

package nodes_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/nodes"
)

func open(t *testing.T, path string) (*nodes.Nodes, *meta.Store) {
	t.Helper()
	s, err := meta.Open(t.Context(), meta.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // a test may have closed it
	return nodes.New(s, nodes.Options{Grace: time.Hour}), s
}

func reportOf(n, each int) nodeapi.Report {
	r := nodeapi.Report{Node: "n", Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{}}
	for i := range n {
		u := nodeapi.InUse{Containers: 1}
		for j := range each {
			u.Digests = append(u.Digests, digest.FromString(fmt.Sprint(i, j)))
		}
		r.InUse = append(r.InUse, u)
	}
	return r
}

func TestReport_StrangeTextsAreMendedAndNotRefused(t *testing.T) {
	n, _ := open(t, filepath.Join(t.TempDir(), "fairway.db"))
	r := reportOf(1, 1)
	r.InUse[0].Image = "app\x1b[31m\xff:v1" + strings.Repeat("x", 10_000)
	r.InUse[0].Containers, r.InUse[0].ForSeconds = -5, -1<<62
	r.Swarm = "worker-1:7946" // a name is none that others can join from everywhere
	r.Runtimes = []nodeapi.Runtime{{Name: "a\nb", Error: strings.Repeat("é", 10_000)}}
	if _, _, err := n.Report(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	got, err := n.Get(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	if run := got.Runs[0]; !strings.HasPrefix(run.Image, "app[31m:v1x") || len(run.Image) > nodes.TextMax+3 || run.Containers != 0 || run.Since.After(got.SeenAt) {
		t.Errorf("runs %+v", run)
	}
	if got.Swarm != "" {
		t.Errorf("swarm %q", got.Swarm)
	}
	if rt := got.Runtimes[0]; rt.Name != "ab" || len(rt.Error) > nodes.TextMax+3 {
		t.Errorf("runtime %+v", rt)
	}
}

func TestReport_TellsOthersWhereTheSwarmIs(t *testing.T) {
	n, _ := open(t, filepath.Join(t.TempDir(), "fairway.db"))
	for i, c := range []struct{ told, want string }{
		{"10.0.0.1:7946", "10.0.0.1:7946"}, {"[fd00::1]:7946", "[fd00::1]:7946"}, {"", ""},
		{"10.0.0.1", ""}, {"10.0.0.1:0", ""}, {"0.0.0.0:7946", ""}, {"[::]:7946", ""}, {"http://10.0.0.1:7946", ""}, {strings.Repeat("1", 10_000), ""},
	} {
		r := reportOf(1, 1)
		r.Seq, r.Swarm = int64(i+1), c.told
		if _, _, err := n.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if list, _, err := n.List(t.Context(), "", 100); err != nil || list[0].Swarm != c.want {
			t.Errorf("%.40q is told as %q, want %q (%v)", c.told, list[0].Swarm, c.want, err)
		}
	}
}

func TestReport_IsBounded(t *testing.T) {
	n, _ := open(t, filepath.Join(t.TempDir(), "fairway.db"))
	one := reportOf(1, 1).InUse[0]
	tooMany := reportOf(0, 0)
	for range nodes.ImagesMax + 1 {
		tooMany.InUse = append(tooMany.InUse, one)
	}
	runtimes := reportOf(0, 0)
	runtimes.Runtimes = make([]nodeapi.Runtime, nodes.RuntimesMax+1)
	for name, r := range map[string]nodeapi.Report{"images": tooMany, "digests": reportOf(51, 1000), "runtimes": runtimes} {
		if _, _, err := n.Report(t.Context(), r); !errors.Is(err, fault.Invalid) {
			t.Errorf("too many %s: %v", name, err)
		}
	}
	if list, _, err := n.List(t.Context(), "", 100); err != nil || len(list) != 0 {
		t.Errorf("a refused report left %+v, %v", list, err)
	}
}

// TestR5_ALargeReportLetsOthersWrite: pushes waited for up to 2.6 s while one with
// 20,000 digests was written.
func TestR5_ALargeReportLetsOthersWrite(t *testing.T) {
	n, s := open(t, filepath.Join(t.TempDir(), "fairway.db"))
	const digests = 10_000
	reported := make(chan error, 1)
	go func() {
		_, _, err := n.Report(t.Context(), reportOf(1, digests))
		reported <- err
	}()
	began, longest := 0, time.Duration(0)
	for over := false; !over; began++ {
		at := time.Now()
		if _, err := s.CreateUpload(t.Context(), "team/app", "sha256"); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(at))
		select {
		case err := <-reported:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		default:
		}
	}
	t.Logf("%d uploads began meanwhile, and waited for %v at most", began, longest)
	if began < digests/200 { // one in each rest, at least
		t.Errorf("only %d uploads could begin while the report was written", began)
	}
	if got, err := n.Get(t.Context(), "n"); err != nil || len(got.Runs) != 1 || len(got.Runs[0].Digests) != digests {
		t.Errorf("the node: %v", err)
	}
}

func TestReport_SurvivesARestartOfTheRegistry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fairway.db")
	n, s := open(t, path)
	if _, changed, err := n.Report(t.Context(), reportOf(2, 2)); err != nil || !changed {
		t.Fatal(changed, err)
	}
	before, err := n.Get(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	n, _ = open(t, path)
	after, err := n.Get(t.Context(), "n")
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) || after.Digests != 4 {
		t.Errorf("after the restart %+v, %v; before %+v", after, err, before)
	}
	if _, _, err := n.Report(t.Context(), reportOf(2, 2)); !errors.Is(err, fault.Conflict) {
		t.Errorf("an old report after the restart: %v", err)
	}
}

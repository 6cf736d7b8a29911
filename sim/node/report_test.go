package node_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

func TestR1_ImageDeletedAndCollectedWhileAContainerRunsStaysUntilItStops(t *testing.T) {
	w := newWorld(t)
	running, idle := w.push("running"), w.push("idle")
	a := newAgent(w, "n1").run()
	a.knows(running)
	a.starts("c1", running.config) // as CRI names it
	eventually(t, "the registry hears of it", func() bool { return w.names("n1", running.manifest) })

	w.deleteAndCollect(running, idle)
	if w.restorable(idle) {
		t.Error("what runs nowhere was kept")
	}
	if !w.restorable(running) {
		t.Fatal("the image of a running container is gone")
	}
	for _, state := range []inuse.State{inuse.Paused, inuse.Created, inuse.Exited} {
		a.runtime.SetState("c1", state)
		eventually(t, "another report", func() bool { n, _ := w.node("n1"); return n.Runtimes[0].Containers == 1 })
		w.deleteAndCollect(running)
		if !w.restorable(running) {
			t.Fatalf("the image of a container that is %s is gone", state)
		}
	}

	a.runtime.RemoveContainer("c1")
	eventually(t, "the registry hears that it stopped", func() bool { n, _ := w.node("n1"); return n.Digests == 0 })
	w.deleteAndCollect(running)
	if w.restorable(running) {
		t.Error("an image stays after its container")
	}
}

func TestReport_NamesTheIndexThatTheImageCameThrough(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	a.knows(i)
	top := digest.FromString("an index")
	if err := a.index.PutEdges(t.Context(), top, []index.Edge{{Parent: top, Child: i.manifest, Role: index.RoleManifest}}); err != nil {
		t.Fatal(err)
	}
	chain := digest.FromString("a chain")
	if err := a.index.SetChain(t.Context(), i.config, chain); err != nil {
		t.Fatal(err)
	}
	a.runtime.SetContainer(inuse.Container{Runtime: "containerd", ID: "c1", State: inuse.Running, ChainIDs: []oci.Digest{chain}})
	eventually(t, "index and manifest are named", func() bool { return w.names("n1", top) && w.names("n1", i.manifest) })
	if w.names("n1", chain) {
		t.Error("a chain ID was reported, which is no content")
	}
}

func TestReport_RegistryAwayHearsWhatIsSoWhenItIsBack(t *testing.T) {
	w := newWorld(t)
	one, two := w.push("one"), w.push("two")
	a := newAgent(w, "n1").run()
	a.starts("c1", one.manifest)
	eventually(t, "the first is known", func() bool { return w.names("n1", one.manifest) })
	for range 3 {
		w.stop()
		a.starts("c2", two.manifest)
		a.runtime.RemoveContainer("c1")
		eventually(t, "the agent notices", func() bool { st := a.reporter.Status(); return st.Pending && st.Error != "" })
		w.start()
		eventually(t, "the second is known", func() bool { return w.names("n1", two.manifest) && !w.names("n1", one.manifest) })
		a.runtime.RemoveContainer("c2")
		a.starts("c1", one.manifest)
		eventually(t, "the first is known again", func() bool { return w.names("n1", one.manifest) && !w.names("n1", two.manifest) })
	}
	if st := a.reporter.Status(); st.Error != "" || st.AcceptedAt == nil || st.KeptUntil == nil {
		t.Errorf("status %+v", st)
	}
	if got := strings.Count(a.log.String(), "does not know what is in use"); got > 9 {
		t.Errorf("%d warnings for three absences:\n%s", got, a.log)
	}
}

func TestN3_RestartedAgentKeepsWhatItReportedWhileTheRuntimeDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	a.knows(i)
	a.starts("c1", i.config)
	eventually(t, "it is known", func() bool { return w.names("n1", i.manifest) })
	before, _ := w.node("n1")

	a.stop()
	if n, _ := w.node("n1"); n.Digests != before.Digests {
		t.Fatalf("the end of the agent let go what runs: %+v", n)
	}
	a.runtime.Kill()
	a.run()
	eventually(t, "the agent reports again", func() bool { n, _ := w.node("n1"); return n.Seq > before.Seq+1 })
	after, _ := w.node("n1")
	if after.Instance != before.Instance || !after.Complete || !w.names("n1", i.manifest) || after.Runtimes[0].Answers {
		t.Errorf("after the restart: %+v", after)
	}
	w.deleteAndCollect(i)
	if !w.restorable(i) {
		t.Error("the image is gone")
	}

	a.runtime.RemoveContainer("c1")
	a.runtime.Restart()
	eventually(t, "the runtime's answer counts", func() bool { return !w.names("n1", i.manifest) })
}

func TestN3_RuntimeThatStopsAnsweringKeepsWhatItLastSaid(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	a.starts("c1", i.manifest)
	eventually(t, "it is known", func() bool { return w.names("n1", i.manifest) })
	a.runtime.Kill()
	a.runtime.RemoveContainer("c1")
	eventually(t, "the registry knows that it is silent", func() bool { n, _ := w.node("n1"); return !n.Runtimes[0].Answers })
	if !w.names("n1", i.manifest) {
		t.Error("what a silent runtime ran was let go")
	}
	a.runtime.Restart()
	eventually(t, "it is let go", func() bool { return !w.names("n1", i.manifest) })
}

func TestN3_AgentThatHasLostAllDoesNotSayThatNothingRuns(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	a.starts("c1", i.manifest)
	eventually(t, "it is known", func() bool { return w.names("n1", i.manifest) })
	a.stop()
	a.dir = t.TempDir()
	a.runtime.Kill()
	a.run()
	eventually(t, "the new installation is known", func() bool { n, _ := w.node("n1"); return !n.Complete })
	w.deleteAndCollect(i)
	if !w.restorable(i) {
		t.Error("the image is gone")
	}
	a.runtime.Restart()
	eventually(t, "it is known again", func() bool { n, _ := w.node("n1"); return n.Complete && w.names("n1", i.manifest) })
}

func TestReport_LostIndexIsNotALossOfWhatWasKnown(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	a.knows(i)
	a.starts("c1", i.config)
	eventually(t, "it is known", func() bool { return w.names("n1", i.manifest) })
	a.stop()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(a.dir, "node.db"+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	before, _ := w.node("n1")
	a.run()
	eventually(t, "the runtime has answered often", func() bool { n, _ := w.node("n1"); return n.Seq > before.Seq+3 && n.Runtimes[0].Answers })
	if !w.names("n1", i.manifest) {
		t.Error("the manifest of a running container was forgotten with the index")
	}
}

func TestReport_PinsStay(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	if err := a.index.Pin(t.Context(), "app:v1", []oci.Digest{i.manifest}); err != nil {
		t.Fatal(err)
	}
	a.reporter.Poke()
	eventually(t, "the pin is known", func() bool { n, _ := w.node("n1"); return len(n.Runs) == 1 && n.Runs[0].Pinned })
	if err := a.index.Unpin(t.Context(), "app:v1"); err != nil {
		t.Fatal(err)
	}
	a.reporter.Poke()
	eventually(t, "it is taken away", func() bool { n, _ := w.node("n1"); return len(n.Runs) == 0 })
}

// cutting loses the answers of requests that the registry has carried out.
type cutting struct{ left atomic.Int64 }

var errCut = errors.New("connection reset by peer")

func (c *cutting) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(req)
	if err == nil && c.left.Add(-1) >= 0 {
		return nil, errors.Join(errCut, res.Body.Close())
	}
	return res, err
}

func TestReport_LostAnswersDoNoHarm(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1")
	cut := &cutting{}
	cut.left.Store(5)
	a.client = &http.Client{Transport: cut}
	a.starts("c1", i.manifest)
	a.run()
	eventually(t, "an answer arrives", func() bool { return a.reporter.Status().AcceptedAt != nil })
	if n, _ := w.node("n1"); !w.names("n1", i.manifest) || n.Seq < 6 {
		t.Errorf("node %+v", n)
	}
}

func TestReport_ManyChangesAreOneReport(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	eventually(t, "it is known", func() bool { n, _ := w.node("n1"); return n.Complete })
	before, _ := w.node("n1")
	for c := range 300 {
		a.starts(fmt.Sprint(c), i.manifest)
	}
	eventually(t, "all are known", func() bool { n, _ := w.node("n1"); return len(n.Runs) == 1 && n.Runs[0].Containers == 300 })
	if after, _ := w.node("n1"); after.Seq-before.Seq > 60 {
		t.Errorf("%d reports of 300 changes", after.Seq-before.Seq)
	}
}

func TestReport_OldCopyOfTheDataDirectoryGoesOnAsANewInstallation(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1").run()
	a.starts("c1", i.manifest)
	eventually(t, "it is known", func() bool { return w.names("n1", i.manifest) })
	old, err := os.ReadFile(filepath.Join(a.dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := w.node("n1")
	eventually(t, "newer reports", func() bool { n, _ := w.node("n1"); return n.Seq > before.Seq+3 })
	a.stop()
	if err := os.WriteFile(filepath.Join(a.dir, "report.json"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	a.run()
	eventually(t, "it is accepted", func() bool { return a.reporter.Status().AcceptedAt != nil })
	if n, _ := w.node("n1"); n.Instance == before.Instance || !w.names("n1", i.manifest) {
		t.Errorf("node %+v", n)
	}
}

func TestReport_TwoNodesOfOneNameAreBothHeard(t *testing.T) {
	w := newWorld(t)
	one, two := w.push("one"), w.push("two")
	a, b := newAgent(w, "n1"), newAgent(w, "n1")
	a.starts("c1", one.manifest)
	b.starts("c2", two.manifest)
	a.run()
	eventually(t, "the first is known", func() bool { return w.names("n1", one.manifest) })
	b.run()
	eventually(t, "the second is known", func() bool { return w.names("n1", two.manifest) })
	eventually(t, "the first has another name and says so", func() bool {
		return a.reporter.Status().Error == "" && strings.Contains(a.log.String(), "give each node a name of its own")
	})
	w.deleteAndCollect(one, two)
	if !w.restorable(one) || !w.restorable(two) {
		t.Error("an image of one of the two is gone")
	}
	a.stop()
	a.run()
	eventually(t, "it has that name after a restart", func() bool { return a.reporter.Status().AcceptedAt != nil })
	if strings.Count(a.log.String(), "give each node a name of its own") != 1 || !w.names("n1", two.manifest) {
		t.Errorf("after a restart:\n%s", a.log)
	}
}

func TestReport_DirectoryThatCannotBeWrittenStopsNothing(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	a := newAgent(w, "n1")
	if err := os.Mkdir(filepath.Join(a.dir, "report.json"), 0o700); err != nil { // nothing can be renamed to it
		t.Fatal(err)
	}
	a.starts("c1", i.manifest)
	a.run()
	eventually(t, "it is known", func() bool { return w.names("n1", i.manifest) })
	if !strings.Contains(a.log.String(), "could not be written down") {
		t.Errorf("nothing is said of it:\n%s", a.log)
	}
	if left, err := filepath.Glob(filepath.Join(a.dir, ".report-*")); err != nil || len(left) > 1 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestReport_DamagedFileIsTheSameAsNone(t *testing.T) {
	w := newWorld(t)
	i := w.push("app")
	for name, content := range map[string]string{"empty": "", "cut": `{"format":1,"instance":"x","uses":[{"sou`, "newer": `{"format":99,"instance":"x"}`, "none": `{}`} {
		a := newAgent(w, "n-"+name)
		if err := os.WriteFile(filepath.Join(a.dir, "report.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		a.starts("c1", i.manifest)
		a.run()
		eventually(t, "it is known", func() bool { return w.names("n-"+name, i.manifest) })
		a.stop()
	}
}

func TestReport_WhatIsNoFairwayRegistryIsTold(t *testing.T) {
	w := newWorld(t)
	other := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	a := newAgent(w, "n1")
	ln := listen(t)
	go func() { _ = other.Serve(ln) }() // which ends with ErrServerClosed
	t.Cleanup(func() { _ = other.Shutdown(context.Background()) })
	a.url = "http://" + ln.Addr().String()
	a.run()
	eventually(t, "the status says it", func() bool { return strings.Contains(a.reporter.Status().Error, "is it a Fairway registry") })
}

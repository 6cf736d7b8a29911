package report

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

func named(c string) oci.Digest { return oci.Digest("sha256:" + strings.Repeat(c, 64)) }

// The image was pulled past the agent, so only the runtime knew what it is. It is
// removed while its container runs, and the agent is restarted.
func TestGather_AContainerKeepsItsImageAfterTheRuntimeHasForgottenIt(t *testing.T) {
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	c := inuse.Container{Runtime: "containerd", ID: "abc", State: inuse.Running, Digests: []oci.Digest{named("a"), named("c")}, ChainIDs: []oci.Digest{named("d")}}
	known := map[string]use{}
	look := func() []use {
		t.Helper()
		g, err := gather(t.Context(), &inuse.Usage{Containers: []inuse.Container{c}}, x, known, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		known = map[string]use{}
		for _, u := range g.uses {
			known[u.key()] = u
		}
		return g.uses
	}
	look()
	c.Digests = nil
	for range 2 {
		if uses := look(); len(uses) != 1 || !slices.Equal(uses[0].Digests, []oci.Digest{named("a"), named("c")}) {
			t.Errorf("in use: %+v", uses)
		}
	}
	c.ChainIDs = []oci.Digest{named("e")}
	if uses := look(); len(uses) != 0 {
		t.Errorf("another container's: %+v", uses)
	}
}

// TestN13_AGuessIsNotAllThatIsInUse: the registry must not take a report for
// complete where nobody can say what a container runs.
func TestN13_AGuessIsNotAllThatIsInUse(t *testing.T) {
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	source := inuse.SourceStatus{Name: "containerd", Up: true, Answered: time.Now()}
	for name, tc := range map[string]struct {
		c    inuse.Container
		want bool
	}{
		"traced":  {inuse.Container{State: inuse.Running, Digests: []oci.Digest{named("a")}}, true},
		"guessed": {inuse.Container{State: inuse.Running, Image: "app:1", Blobs: []oci.Digest{named("a")}}, false},
		"unknown": {inuse.Container{State: inuse.Running, Image: "app:1"}, false},
		"exited":  {inuse.Container{State: inuse.Exited, Image: "app:1"}, true},
		"of none": {inuse.Container{State: inuse.Running, Imageless: true}, true},
	} {
		r := &Reporter{o: Options{Index: x}, metrics: newMetrics(nil), answers: map[string]*answered{}}
		r.look(t.Context(), &inuse.Usage{Containers: []inuse.Container{tc.c}, Sources: []inuse.SourceStatus{source}})
		if r.complete != tc.want {
			t.Errorf("%s: the report is complete: %v", name, r.complete)
		}
	}
}

func TestN3_AReportFitsAndKeepsWhatRunsFirst(t *testing.T) {
	digests := func(n, from int) (ds []oci.Digest) {
		for i := range n {
			ds = append(ds, oci.Digest(fmt.Sprintf("sha256:%064x", from+i)))
		}
		return ds
	}
	var uses []use
	for i := range 30_000 {
		uses = append(uses, use{Source: "docker", Digests: digests(2, 10*i), Containers: 1, carried: true})
	}
	pin := use{Source: sourcePins, Digests: digests(1, 1_000_001)}
	running := use{Source: "containerd", Digests: digests(3, 1_000_011), Containers: 1}
	kept, cut := fit(append(uses, pin, running))
	if len(kept)+cut != 30_002 || len(kept) > nodeapi.ImagesMax || !slices.Equal(kept[0].Digests, running.Digests) || !slices.Equal(kept[1].Digests, pin.Digests) {
		t.Errorf("%d kept and %d left out; the first are %.200v", len(kept), cut, kept[:2])
	}
	if kept, cut := fit([]use{{Digests: digests(nodeapi.DigestsMax+1, 0)}, running}); len(kept) != 1 || cut != 1 {
		t.Errorf("too many digests: %d kept, %d left out", len(kept), cut)
	}
	for i := range uses {
		uses[i].Image = strings.Repeat("x", 4096)
	}
	kept, _ = fit(uses)
	body, err := json.Marshal(inUse(kept, time.Now()))
	if err != nil || len(body) > nodeapi.BodyMax*3/4 {
		t.Errorf("the report has %d bytes, %v", len(body), err)
	}
	// Two sources that name the same image take room once.
	if kept, cut := fit([]use{{Source: "a", Digests: digests(30_000, 0)}, {Source: "b", Digests: digests(30_000, 0)}}); len(kept) != 2 || cut != 0 {
		t.Errorf("one image of two sources: %d kept, %d left out", len(kept), cut)
	}
}

func TestN3_AReportThatLeavesSomethingOutIsNotComplete(t *testing.T) {
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	r, err := Open(Options{Node: "n", Dir: t.TempDir(), Index: x, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	usage := &inuse.Usage{Sources: []inuse.SourceStatus{{Name: "containerd", Up: true, Answered: time.Now()}}}
	for i := range nodeapi.ImagesMax {
		usage.Containers = append(usage.Containers, inuse.Container{Runtime: "containerd", ID: fmt.Sprint(i), State: inuse.Running, Digests: []oci.Digest{oci.Digest(fmt.Sprintf("sha256:%064x", i))}})
	}
	r.look(t.Context(), usage)
	if !r.complete || len(r.last) != nodeapi.ImagesMax {
		t.Fatalf("as many as a report may name: %d, complete: %v", len(r.last), r.complete)
	}
	usage.Containers = append(usage.Containers, inuse.Container{Runtime: "containerd", ID: "more", State: inuse.Running, Digests: []oci.Digest{named("f")}})
	r.look(t.Context(), usage)
	if r.complete || len(r.last) != nodeapi.ImagesMax {
		t.Errorf("more than a report may name: %d, complete: %v", len(r.last), r.complete)
	}
}

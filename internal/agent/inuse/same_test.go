package inuse_test

import (
	"slices"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/oci"
)

// full is a belief with something in each field.
func full() *inuse.Usage {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	status := inuse.SourceStatus{Name: "a", Up: true, Answered: at}
	return &inuse.Usage{
		At: at, Seq: 7, Busy: []oci.Digest{one}, Sources: []inuse.SourceStatus{status}, Unknown: []inuse.SourceStatus{{Name: "b", Error: "refused"}},
		Containers: []inuse.Container{{Runtime: "a", Namespace: "n", ID: "x", Name: "web", State: inuse.Running, Image: "nginx",
			Digests: []oci.Digest{one, two}, ChainIDs: []oci.Digest{one, two}, Blobs: []oci.Digest{one, two}, Since: at}},
		Images: []inuse.Image{{Runtime: "a", Namespace: "n", Name: "nginx", Digests: []oci.Digest{one, two}, Blobs: []oci.Digest{one, two}, SizeBytes: 1}},
	}
}

// TestN4_ARealChangeOfTheBeliefIsOne, whatever it is in.
func TestN4_ARealChangeOfTheBeliefIsOne(t *testing.T) {
	for name, change := range map[string]func(u *inuse.Usage){
		"a container appears":          func(u *inuse.Usage) { u.Containers = append(u.Containers, container("y", one)) },
		"a container disappears":       func(u *inuse.Usage) { u.Containers = nil },
		"runtime of a container":       func(u *inuse.Usage) { u.Containers[0].Runtime = "b" },
		"namespace of a container":     func(u *inuse.Usage) { u.Containers[0].Namespace = "m" },
		"ID of a container":            func(u *inuse.Usage) { u.Containers[0].ID = "y" },
		"name of a container":          func(u *inuse.Usage) { u.Containers[0].Name = "db" },
		"state of a container":         func(u *inuse.Usage) { u.Containers[0].State = inuse.Exited },
		"image of a container":         func(u *inuse.Usage) { u.Containers[0].Image = "redis" },
		"digests of a container":       func(u *inuse.Usage) { u.Containers[0].Digests = []oci.Digest{one} },
		"chain IDs of a container":     func(u *inuse.Usage) { u.Containers[0].ChainIDs = []oci.Digest{two} },
		"blobs of a container":         func(u *inuse.Usage) { u.Containers[0].Blobs = nil },
		"a container is without image": func(u *inuse.Usage) { u.Containers[0].Imageless = true },
		"a container is a sandbox":     func(u *inuse.Usage) { u.Containers[0].Sandbox = true },
		"a container is another":       func(u *inuse.Usage) { u.Containers[0].Since = u.At.Add(1) },
		"an image appears":             func(u *inuse.Usage) { u.Images = append(u.Images, inuse.Image{Name: "redis"}) },
		"an image disappears":          func(u *inuse.Usage) { u.Images = nil },
		"runtime of an image":          func(u *inuse.Usage) { u.Images[0].Runtime = "b" },
		"namespace of an image":        func(u *inuse.Usage) { u.Images[0].Namespace = "m" },
		"name of an image":             func(u *inuse.Usage) { u.Images[0].Name = "redis" },
		"digests of an image":          func(u *inuse.Usage) { u.Images[0].Digests = []oci.Digest{two} },
		"blobs of an image":            func(u *inuse.Usage) { u.Images[0].Blobs = []oci.Digest{one} },
		"size of an image":             func(u *inuse.Usage) { u.Images[0].SizeBytes = 2 },
		"another pull":                 func(u *inuse.Usage) { u.Busy = []oci.Digest{one, two} },
		"pulls are hidden":             func(u *inuse.Usage) { u.PullsUnseen = true },
		"a runtime answers":            func(u *inuse.Usage) { u.Unknown = nil },
		"another runtime is silent":    func(u *inuse.Usage) { u.Unknown[0].Name = "a" },
		"a runtime appears":            func(u *inuse.Usage) { u.Sources = append(u.Sources, inuse.SourceStatus{Name: "c"}) },
	} {
		u := full()
		u.Seq++
		change(u)
		if u.Same(full()) || full().Same(u) {
			t.Errorf("%s: the belief is said to be the same", name)
		}
	}
}

// TestN4_AReadingThatChangesNothingIsNone: times, numbers and the order of digests
// are not what a judgement rests on.
func TestN4_AReadingThatChangesNothingIsNone(t *testing.T) {
	for name, change := range map[string]func(u *inuse.Usage){
		"a later reading": func(u *inuse.Usage) {
			u.At = u.At.Add(time.Minute)
			u.Sources[0].Answered = u.At
		},
		"another error of the same runtime": func(u *inuse.Usage) { u.Unknown[0].Error = "reset" },
		"another time zone":                 func(u *inuse.Usage) { u.Containers[0].Since = u.At.In(time.FixedZone("x", 3600)) },
		"another order": func(u *inuse.Usage) {
			c, i := &u.Containers[0], &u.Images[0]
			for _, list := range [][]oci.Digest{c.Digests, c.ChainIDs, c.Blobs, i.Digests, i.Blobs} {
				slices.Reverse(list)
			}
		},
		"a digest twice": func(u *inuse.Usage) { u.Containers[0].Blobs = []oci.Digest{two, one, two} },
	} {
		u := full()
		u.Seq++
		change(u)
		if !u.Same(full()) || !full().Same(u) {
			t.Errorf("%s: the belief is said to have changed", name)
		}
	}
	a, b := full(), full()
	a.Busy, b.Busy, a.Containers[0].Blobs, b.Containers[0].Blobs = nil, []oci.Digest{}, nil, []oci.Digest{}
	if b.Seq++; !a.Same(b) {
		t.Error("an empty list is said to be another than none")
	}
}

// TestN4_ReadingsOfOneRuntimeAreTheSameUntilItChanges.
func TestN4_ReadingsOfOneRuntimeAreTheSameUntilItChanges(t *testing.T) {
	f := inusetest.NewFake("a")
	f.SetContainer(container("x", one))
	tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
	before := ask(t, tracker)
	if u := ask(t, tracker); !u.Same(before) || u.Seq == before.Seq {
		t.Errorf("a second reading of the same: %+v, want the same as %+v", u, before)
	}
	f.SetContainer(container("y", two))
	if u := ask(t, tracker); u.Same(before) {
		t.Error("a container was started, and the belief is said to be the same")
	}
}

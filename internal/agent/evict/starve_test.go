package evict

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// parts is a cache of which one pass removes more than one part, each in a
// transaction of its own. meanwhile is called when the first is gone.
func parts(t *testing.T, c choice, meanwhile func(h *house, all []image)) *house {
	t.Helper()
	c.limits = piece.Limits{Quota: mib}
	h := open(t, c)
	l := h.store.Limits()
	h.store.SetLimits(piece.Limits{Quota: 1 << 40, High: 0.9, Low: 0.8})
	var all []image
	for n := range 50 {
		h.later(90 * time.Minute)
		all = append(all, h.pull(fmt.Sprint(n), nil, 40_000))
	}
	h.later(3 * time.Hour)
	h.store.SetLimits(l)
	var once sync.Once
	h.o.Evicted = func(oci.Digest) { once.Do(func() { meanwhile(h, all) }) }
	return h
}

func (h *house) asks() {
	h.t.Helper()
	if _, err := h.tracker.Ask(context.Background()); err != nil {
		h.t.Error(err)
	}
}

// TestN5_ReadingsThatChangeNothingDoNotStopAnEviction: on a busy node they come all the
// time. The runtimes are asked twice, for the judgement and for the batch, and for
// nothing else but what the test itself asks.
func TestN5_ReadingsThatChangeNothingDoNotStopAnEviction(t *testing.T) {
	h := parts(t, choice{}, func(h *house, all []image) {
		h.asks()
		h.asks()
	})
	h.run(image{name: "other", manifest: blobName(5)}, "abc", inuse.Exited)
	h.asks() // the first answer is a double one
	before := h.runtime.Readings()
	r := h.evicts()
	if asked := h.runtime.Readings() - before; asked != 4 || r.Evicted <= removeMax {
		t.Errorf("the runtime was asked %d times, want 4, for %d blobs: readings that changed nothing had the rest judged again", asked, r.Evicted)
	}
}

// TestN4_AnyChangeOfTheBeliefStopsAnEviction and has the rest judged by a new answer.
func TestN4_AnyChangeOfTheBeliefStopsAnEviction(t *testing.T) {
	for name, change := range map[string]func(h *house, all []image){
		"a container starts":      func(h *house, all []image) { h.run(all[25], "new", inuse.Running) },
		"a container comes alive": func(h *house, _ []image) { h.runtime.SetState("exited", inuse.Running) },
		"a container changes": func(h *house, all []image) {
			h.runtime.SetContainer(inuse.Container{Runtime: "containerd", Namespace: "k8s.io", ID: "exited", State: inuse.Exited, Digests: []oci.Digest{all[25].manifest}})
		},
		"an image comes": func(h *house, all []image) {
			h.runtime.SetImage(inuse.Image{Name: "it", Digests: []oci.Digest{all[25].manifest}})
		},
		"a pull begins":         func(h *house, all []image) { h.runtime.SetBusy(all[25].manifest) },
		"pulls are not shown":   func(h *house, _ []image) { h.runtime.HidePulls() },
		"the runtime goes away": func(h *house, _ []image) { h.runtime.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			h := parts(t, choice{}, func(h *house, all []image) {
				change(h, all)
				h.asks()
			})
			h.run(image{name: "other", manifest: blobName(5)}, "exited", inuse.Exited)
			h.asks()
			before := h.runtime.Readings()
			r := h.evicts()
			if asked := h.runtime.Readings() - before; asked < 4 {
				t.Errorf("the runtime was asked %d times, want once more after the change: %+v", asked, r)
			}
		})
	}
}

// TestN13_ARuntimeThatAppearsDuringARemovalStopsIt, also if it is away.
func TestN13_ARuntimeThatAppearsDuringARemovalStopsIt(t *testing.T) {
	var places appearing
	c := choice{finder: &places}
	h := parts(t, c, func(h *house, _ []image) {
		other := inusetest.NewFake("podman")
		other.Kill()
		places.add(other)
		h.tracker.Look()
	})
	if r := h.evicts(); r.Evicted > removeMax {
		t.Errorf("%d blobs were evicted though a runtime that nobody knows had appeared", r.Evicted)
	}
}

// TestMakeRoom_WhatFailedJustNowIsNotTriedAgain: each layer of a pull would otherwise
// have all runtimes asked.
func TestMakeRoom_WhatFailedJustNowIsNotTriedAgain(t *testing.T) {
	h := open(t, quota(4*mib))
	for _, i := range h.fill(5, 600_000) {
		h.run(i, i.name, inuse.Running)
	}
	h.asks()
	if h.MakeRoom(t.Context(), 2*mib) {
		t.Fatal("there is room beside what runs")
	}
	before := h.runtime.Readings()
	if h.MakeRoom(t.Context(), 2*mib) || h.runtime.Readings() != before {
		t.Errorf("the runtimes were asked %d times more for what failed a moment ago", h.runtime.Readings()-before)
	}
	for n := range 5 {
		h.runtime.RemoveContainer(fmt.Sprintf("filler-%d", n))
	}
	h.asks()
	h.asks() // a second answer confirms the loss
	if !h.MakeRoom(t.Context(), 2*mib) {
		t.Error("the containers are gone, and there is no room")
	}
}

package evict

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

func (h *house) explain(d oci.Digest) Verdict {
	h.t.Helper()
	v, err := h.Explain(h.t.Context(), d)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// wait polls until ok.
func (h *house) wait(what string, ok func() bool) {
	h.t.Helper()
	deadline, again := time.After(30*time.Second), time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-deadline:
			h.t.Fatal("waited in vain: " + what)
		case <-again.C:
		}
	}
}

// runs has Run look at the watermarks all the time, until the test is over, and
// counts its looks.
func (h *house) runs() (looks func(n int64)) {
	h.t.Helper()
	var count atomic.Int64
	now := h.o.Now
	h.o.Every = time.Millisecond
	h.o.Now = func() time.Time { count.Add(1); return now() }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	return func(n int64) {
		h.t.Helper()
		until := count.Load() + n
		h.wait("looks at the watermarks", func() bool { return count.Load() >= until })
	}
}

func TestClock_ASmallDifferenceIsNoJump(t *testing.T) {
	at := time.Now()
	for _, by := range []int64{-stepMS, -1, 0, 1, stepMS} {
		var c clock
		c.look(noon, at, 0)
		if stepped, steps := c.look(noon+hour+by, at.Add(time.Hour), 0); stepped || len(steps) > 0 {
			t.Errorf("a difference of %d ms: jump %v, %v", by, stepped, steps)
		}
	}
}

// TestClock_AJumpBackIsSeenUntilAPassIsOver: it makes nothing older, so that no step
// is remembered.
func TestClock_AJumpBackIsSeenUntilAPassIsOver(t *testing.T) {
	at := time.Now()
	var c clock
	c.look(noon, at, 0)
	for n := range 2 {
		if stepped, steps := c.look(noon-day, at, 0); !stepped || len(steps) > 0 {
			t.Errorf("look %d: jump %v, %v", n, stepped, steps)
		}
	}
	c.seen()
	if stepped, _ := c.look(noon-day, at, 0); stepped {
		t.Error("it is seen after the pass")
	}
}

func TestClock_AnEmptyCacheIsNoJump(t *testing.T) {
	var c clock
	if stepped, steps := c.look(noon, time.Now(), 0); stepped || len(steps) > 0 {
		t.Errorf("jump %v, %v", stepped, steps)
	}
}

// TestClock_TimeBeforeTheFirstPassOfAProcessDoesNotCount: nobody could use anything
// while no agent ran, so what was warm then still is, and what was deleted upstream has
// its time once more. What was not deleted is not deleted by that.
func TestClock_TimeBeforeTheFirstPassOfAProcessDoesNotCount(t *testing.T) {
	for _, last := range []string{"gone", "kept"} { // the image that was used last, whichever comes last in the cache
		for _, used := range []bool{false, true} { // or one that was used later than it was put
			t.Run(fmt.Sprint(last, " ", used), func(t *testing.T) {
				c := quota(40 * mib)
				c.options.DeletedTTL = 24 * time.Hour
				h := open(t, c)
				gone, kept := h.pull("gone", nil, 100_000), h.pull("kept", nil, 100_000)
				images := map[string]image{"gone": gone, "kept": kept}
				if used {
					h.later(3 * 24 * time.Hour)
				} else {
					h.later(time.Second)
				}
				for _, d := range images[last].all() {
					h.read(d)
				}
				if err := h.index.SetDeleted(t.Context(), []oci.Digest{gone.manifest}, h.index.Now()); err != nil {
					t.Fatal(err)
				}
				h.later(10 * 24 * time.Hour)
				if v := h.explain(images[last].layers[0]); v.Tier != Warm {
					t.Errorf("what was in use when the agent ended is %+v", v)
				}
				h.evicts()
				h.stays(gone, "in the first pass")
				if v := h.explain(images[last].layers[0]); v.Why != Recent {
					t.Errorf("after the first pass: %+v", v)
				}
				h.later(23 * time.Hour)
				h.evicts()
				h.stays(gone, "a day has not passed since the first pass")
				h.later(2 * time.Hour)
				if r := h.evicts(); r.Evicted != len(gone.all()) {
					t.Errorf("a day after the first pass: %+v", r)
				}
				h.later(30 * 24 * time.Hour)
				h.evicts()
				h.stays(kept, "it was not deleted")
			})
		}
	}
}

// TestDeleted_TheLastImageCounts: a layer of two images that were deleted one after the
// other goes when the second one does, and a signature, which was not deleted, keeps neither.
func TestDeleted_TheLastImageCounts(t *testing.T) {
	for _, first := range []int{0, 1} {
		c := quota(40 * mib)
		c.options.DeletedTTL, c.options.Warm = time.Hour, 24*time.Hour
		h := open(t, c)
		a := h.pull("a", nil, 200_000)
		both := []image{a, h.pull("b", a.layers, 100_000)}
		signature := h.pull("signature", nil, 1000)
		if err := h.index.PutEdges(t.Context(), signature.manifest, []index.Edge{
			{Parent: signature.manifest, Child: signature.config, Role: index.RoleConfig}, {Parent: signature.manifest, Child: signature.layers[0], Role: index.RoleLayer},
			{Parent: signature.manifest, Child: a.manifest, Role: index.RoleSubject}}); err != nil {
			t.Fatal(err)
		}
		h.later(2 * time.Second)
		for _, i := range []image{both[first], both[1-first]} {
			if err := h.index.SetDeleted(t.Context(), []oci.Digest{i.manifest}, h.index.Now()); err != nil {
				t.Fatal(err)
			}
			h.later(40 * time.Minute)
		}
		for d, want := range map[oci.Digest]string{a.layers[0]: Recent, both[first].manifest: Expired, both[1-first].manifest: Recent} {
			if v := h.explain(d); v.Why != want {
				t.Errorf("after the time of the first: %+v, want %s", v, want)
			}
		}
		h.later(30 * time.Minute)
		if r := h.evicts(); r.Evicted != 6 || h.has(a.layers[0]) {
			t.Errorf("after the time of the second: %+v, the layer is there: %v", r, h.has(a.layers[0]))
		}
		h.stays(signature, "it was not deleted")
	}
}

func TestNew_Defaults(t *testing.T) {
	h := open(t, quota(4*mib))
	o := Options{Store: h.store, Index: h.index, Tracker: h.tracker}
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if l := e.limits(); l.Warm != DefaultWarm || l.Abandoned != DefaultAbandoned || e.o.Every != everyDefault {
		t.Errorf("%+v, every %v", l, e.o.Every)
	}
	if now := e.o.Now(); time.Since(now) > time.Hour {
		t.Errorf("its time is %v", now)
	}
	o.Warm, o.Abandoned, o.Every = time.Minute, time.Second, time.Millisecond
	if e, err = New(o); err != nil {
		t.Fatal(err)
	}
	if l := e.limits(); l.Warm != o.Warm || l.Abandoned != o.Abandoned || e.o.Every != o.Every {
		t.Errorf("what was set is %+v, every %v", l, e.o.Every)
	}
}

func TestLimits_NoDurationIsNegative(t *testing.T) {
	for _, l := range []Limits{{Warm: -1}, {DeletedTTL: -1}, {Abandoned: -1}} {
		l.High, l.Low = 0.9, 0.8
		if l.Validate() == nil {
			t.Errorf("%+v", l)
		}
	}
}

// TestLimits_OfWhatNobodyWaitsFor: it stays below the high watermarks of both.
func TestLimits_OfWhatNobodyWaitsFor(t *testing.T) {
	for name, tt := range map[string]struct {
		in    Limits
		total int64
		want  Limits
	}{
		"quota":               {Limits{Quota: 1000, High: 0.8, Low: 0.4}, 0, Limits{Quota: 799, High: 1, Low: 0.5}},
		"disk":                {Limits{MinFree: 10, High: 0.8, Low: 0.4}, 1000, Limits{MinFree: 201, High: 1, Low: 0.5}},
		"disk, larger margin": {Limits{MinFree: 300, High: 0.8, Low: 0.4}, 1000, Limits{MinFree: 300, High: 1, Low: 0.5}},
		"neither":             {Limits{MinFree: 10, High: 0.8, Low: 0.4}, 0, Limits{MinFree: 10, High: 1, Low: 0.5}},
	} {
		if got := tt.in.spare(tt.total); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// TestN5_TheMarginOfTheDiskLeavesRoomForMore: what is made free beyond the margin is what
// the watermarks are apart, or what is admitted if that is more.
func TestN5_TheMarginOfTheDiskLeavesRoomForMore(t *testing.T) {
	for name, tt := range map[string]struct {
		quota, free, need, want int64
	}{
		"of the quota":                        {quota: 1000, free: 90, want: 100 + 250 - 90},
		"of the disk":                         {free: 90, want: 100 + 2500 - 90},
		"a large admission":                   {quota: 1000, free: 90, need: 300, want: 100 + 300 - 90},
		"a small admission":                   {quota: 1000, free: 90, need: 3, want: 100 + 250 - 90},
		"enough is free":                      {quota: 1000, free: 101, want: 0},
		"enough is free for an admission":     {quota: 1000, free: 400, need: 300, want: 0},
		"not enough is free for an admission": {quota: 1000, free: 399, need: 300, want: 1},
	} {
		l := Limits{Quota: tt.quota, High: 1, Low: 0.75, MinFree: 100}
		bytes, why := l.diskExcess(Usage{FSTotal: 10_000}, tt.free, tt.need)
		if bytes != tt.want || (why != "") != (tt.want > 0) {
			t.Errorf("%s: %d bytes, want %d; %q", name, bytes, tt.want, why)
		}
	}
}

// TestN13_ARuntimeThatIsThereAllTheSameIsAsked: that there is none was a mistake of the
// configuration.
func TestN13_ARuntimeThatIsThereAllTheSameIsAsked(t *testing.T) {
	c := quota(4 * mib)
	c.options.NoRuntimes = true
	h := open(t, c)
	h.fill(8, 400_000)
	h.later(3 * time.Hour)
	h.runtime.Kill()
	h.overfill(4)
	if r := h.evicts(); r.Evicted > 0 || r.Kept[Unknown] == 0 {
		t.Errorf("beside a runtime that does not answer: %+v", r)
	}
}

// TestN1_ContainersOfWhichOnlyBlobsAreKnown: each has its own, though the runtime names
// an image for none.
func TestN1_ContainersOfWhichOnlyBlobsAreKnown(t *testing.T) {
	h := open(t, quota(4*mib))
	orphan, _ := h.put(h.bytes(300_000), "application/octet-stream")
	for n := range 3 {
		i := h.pull(fmt.Sprint(n), nil, 300_000)
		h.runtime.SetContainer(inuse.Container{Runtime: "docker", ID: fmt.Sprint(n), State: inuse.Running, Imageless: true, Blobs: i.all()})
		defer h.stays(i, "a container runs it")
	}
	h.overfill(12)
	if r := h.evicts(); r.Evicted == 0 {
		t.Errorf("what is of no container does not go: %+v", r)
	}
	if h.has(orphan) {
		t.Errorf("their blobs are known, and what nobody knows stays: %+v", h.explain(orphan))
	}
}

// TestN4_AContainerOfAnImageThatARuntimeHad: the image was looked up for the first
// judgement, and kept nothing then but in its order.
func TestN4_AContainerOfAnImageThatARuntimeHad(t *testing.T) {
	h := open(t, quota(4*mib))
	all := h.overfill(12)
	for _, i := range all {
		h.runtime.SetImage(inuse.Image{Runtime: "containerd", Name: i.name, Digests: []oci.Digest{i.manifest}})
	}
	h.asks()
	h.whenClaimed(func() {
		for n := range 3 {
			h.run(all[n], fmt.Sprint("new", n), inuse.Created)
		}
	})
	r := h.evicts()
	if r.Evicted == 0 || r.Raced == 0 {
		t.Errorf("%+v", r)
	}
	for n := range 3 {
		h.stays(all[n], "its container started between judgement and removal")
	}
}

// TestN3_BesideAContainerThatIsTracedOrphansGo: only one that leads nowhere keeps what
// nobody knows.
func TestN3_BesideAContainerThatIsTracedOrphansGo(t *testing.T) {
	h := open(t, quota(4*mib))
	orphan, _ := h.put(h.bytes(300_000), "application/octet-stream")
	i := h.pull("image", nil, 100_000)
	h.run(i, "web", inuse.Running)
	h.runtime.SetImage(inuse.Image{Runtime: "containerd", Name: "other", Digests: []oci.Digest{blobName(1)}})
	h.overfill(12)
	h.evicts()
	h.stays(i, "it runs")
	if h.has(orphan) {
		t.Errorf("the orphan stays: %+v", h.explain(orphan))
	}
}

func TestExplain_WhatIsOpenAndWhatIsNotWhole(t *testing.T) {
	c := quota(4 * mib)
	c.options.Warm = 24 * time.Hour
	h := open(t, c)
	i := h.pull("image", nil, 300_000)
	content := h.bytes(2 * piece.Size)
	d := digest.FromBytes(content)
	b, err := h.store.Create(t.Context(), d, int64(len(content)), piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.WritePiece(t.Context(), 0, content[:piece.Size], "test"); err != nil {
		t.Fatal(err)
	}
	r, err := h.store.Open(t.Context(), i.layers[0])
	if err != nil {
		t.Fatal(err)
	}
	h.later(30 * time.Minute)
	for _, open := range []oci.Digest{d, i.layers[0]} {
		if v := h.explain(open); v.Why != Open || v.Tier != Active {
			t.Errorf("%+v", v)
		}
	}
	if v := h.explain(i.config); v.Why != Recent {
		t.Errorf("%+v", v)
	}
	r.Close()
	b.Close()
	if v := h.explain(d); v.Why != Recent {
		t.Errorf("half an hour after its last piece: %+v", v)
	}
	h.later(2 * time.Hour)
	if v := h.explain(d); v.Why != Partial || v.Tier != Cold {
		t.Errorf("hours after its last piece: %+v", v)
	}
	if v := h.explain(i.config); v.Why != Recent {
		t.Errorf("what is whole: %+v", v)
	}
	all, errs := h.store.ClaimAll(t.Context(), []piece.Judged{{Digest: i.config, Version: must(h.store.Info(t.Context(), i.config)).Version}})
	if errs[0] != nil {
		t.Fatal(errs[0])
	}
	if v := h.explain(i.config); v.Why != Claimed {
		t.Errorf("%+v", v)
	}
	if err := h.store.Unclaim(t.Context(), all[0]); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestN5_WhatNoOtherNodeHasStaysLonger: of two that are alike otherwise.
func TestN5_WhatNoOtherNodeHasStaysLonger(t *testing.T) {
	for rare := range 2 {
		c := quota(4 * mib)
		var mine atomic.Value
		mine.Store(oci.Digest(""))
		c.options.Rare = func(d oci.Digest) bool { return d == mine.Load() }
		h := open(t, c)
		var layers []oci.Digest
		for n := range 2 {
			layers = append(layers, h.pull(fmt.Sprint(n), nil, 1_900_000).layers[0])
		}
		mine.Store(layers[rare])
		h.later(2 * time.Hour)
		if r := h.evicts(); r.Evicted != 1 || !h.has(layers[rare]) {
			t.Errorf("%+v; what no other node has is here: %v", r, h.has(layers[rare]))
		}
	}
}

// TestMakeRoom_WithoutATurnThereIsNoRoom: a pass that takes long goes on for those who
// come later.
func TestMakeRoom_WithoutATurnThereIsNoRoom(t *testing.T) {
	h := open(t, quota(4*mib))
	h.fill(8, 400_000)
	h.later(3 * time.Hour)
	if err := h.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.patience = time.Millisecond
	if h.MakeRoom(t.Context(), 2*mib) || h.CouldMakeRoom(t.Context(), 2*mib) {
		t.Error("there is room though nobody has made any")
	}
	h.give()
	h.patience = time.Minute
	if !h.MakeRoom(t.Context(), 2*mib) {
		t.Error("there is none though there is a turn")
	}
}

// TestMakeRoom_WhatFailedJustNowDoesNotWait: not even for its turn.
func TestMakeRoom_WhatFailedJustNowDoesNotWait(t *testing.T) {
	for name, ask := range map[string]func(h *house) bool{
		"room":           func(h *house) bool { return h.MakeRoom(h.t.Context(), 2*mib) },
		"room for later": func(h *house) bool { return h.CouldMakeRoom(h.t.Context(), 2*mib) },
	} {
		h := open(t, quota(4*mib))
		for _, i := range h.fill(5, 600_000) {
			h.run(i, i.name, inuse.Running)
		}
		h.asks()
		if ask(h) {
			t.Fatalf("%s: there is room beside what runs", name)
		}
		if err := h.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.patience = 10 * time.Minute
		before := h.runtime.Readings()
		answer := make(chan bool, 1)
		go func() { answer <- ask(h) }()
		select {
		case ok := <-answer:
			if ok || h.runtime.Readings() != before {
				t.Errorf("%s: %v, after %d more questions", name, ok, h.runtime.Readings()-before)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: it waits for its turn", name)
		}
		h.give()
	}
}

// TestMakeRoom_ThoseWhoWaitLearnOfTheOthersPass: that there is room by now, or that
// there is none.
func TestMakeRoom_ThoseWhoWaitLearnOfTheOthersPass(t *testing.T) {
	for _, room := range []bool{true, false} {
		h := open(t, quota(4*mib))
		images := h.fill(8, 400_000)
		h.later(3 * time.Hour)
		if !room {
			for _, i := range images {
				h.run(i, i.name, inuse.Running)
			}
		}
		h.asks()
		var others sync.WaitGroup
		const n = 8
		var got [n]bool
		before := 0
		h.whenAsked(func() {
			for i := range n {
				others.Go(func() { got[i] = h.MakeRoom(context.Background(), 2*mib) })
			}
			time.Sleep(50 * time.Millisecond) // whoever comes later is not waiting, which is as well
			before = h.runtime.Readings()
		})
		if ok := h.MakeRoom(t.Context(), 2*mib); ok != room {
			t.Errorf("room: %v, want %v", ok, room)
		}
		others.Wait()
		for _, ok := range got {
			if ok != room {
				t.Errorf("one who waited: %v, want %v", ok, room)
			}
		}
		// The judgement, and the batch if something goes.
		if n, most := h.runtime.Readings()-before, map[bool]int{false: 2, true: 4}[room]; n > most {
			t.Errorf("room %v: the runtimes were asked %d times", room, n)
		}
	}
}

// TestRun_LooksAreNoPasses: the cache is not read, nor the runtimes asked, every few
// seconds for nothing.
func TestRun_LooksAreNoPasses(t *testing.T) {
	for _, full := range []bool{false, true} {
		h := open(t, quota(4*mib))
		images := h.pull("image", nil, 3_900_000)
		if full {
			h.run(images, "runs", inuse.Running)
		} else {
			h.store.SetLimits(piece.Limits{Quota: 40 * mib, High: 0.9, Low: 0.8})
		}
		h.later(3 * time.Hour)
		looks := h.runs()
		h.wait("the first pass", func() bool { return h.Last().Examined > 0 && h.Last().Short > 0 == full })
		looks(3)
		before := h.runtime.Readings()
		looks(20)
		if n := h.runtime.Readings() - before; n != 0 {
			t.Errorf("full %v: the runtimes were asked %d times in 20 looks", full, n)
		}
		if !full {
			continue
		}
		h.Kick()
		h.wait("a pass for a kick", func() bool { return h.runtime.Readings() > before })
		looks(3)
		h.runtime.RemoveContainer("runs")
		h.asks()
		h.asks() // a second answer confirms the loss
		h.wait("a pass for news of the runtime", func() bool { return !h.has(images.layers[0]) })
	}
}

// TestRun_WhatHasExpiredGoesWithoutPressure: once in a while, though no watermark is passed.
func TestRun_WhatHasExpiredGoesWithoutPressure(t *testing.T) {
	c := quota(40 * mib)
	c.options.DeletedTTL = time.Minute
	h := open(t, c)
	gone := h.pull("gone", nil, 100_000)
	looks := h.runs()
	h.wait("the first pass", func() bool { return h.Last().Examined > 0 })
	if err := h.index.SetDeleted(t.Context(), []oci.Digest{gone.manifest}, h.index.Now()); err != nil {
		t.Fatal(err)
	}
	looks(3)
	h.later(sweepEvery)
	h.wait("it goes", func() bool { return !h.has(gone.layers[0]) && !h.has(gone.manifest) })
}

// TestRun_ALookDoesNotWaitForARuntimeThatHangs: while a pass has the turn, others wait for it.
func TestRun_ALookDoesNotWaitForARuntimeThatHangs(t *testing.T) {
	c := quota(4 * mib)
	c.askTimeout = 10 * time.Minute
	h := open(t, c)
	h.fill(8, 400_000)
	h.later(3 * time.Hour)
	h.asks()
	h.runtime.Kill()
	h.asks()
	h.wait("the runtime is known not to answer", h.silent)
	h.runtime.Restart()
	h.runtime.Hang()
	defer h.runtime.Unhang()
	h.store.SetLimits(piece.Limits{Quota: 2 * mib, High: 0.9, Low: 0.8})
	done := make(chan Result, 1)
	go func() {
		r, err := h.look(context.Background())
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	select {
	case r := <-done:
		if r.Evicted > 0 || r.Short == 0 {
			t.Errorf("%+v", r)
		}
	case <-time.After(time.Minute):
		t.Error("it waits")
	}
}

// TestN3_AManifestAloneIsNoTrace: of what a container runs the cache has an index and a
// manifest, which lead nowhere.
func TestN3_AManifestAloneIsNoTrace(t *testing.T) {
	h := open(t, quota(4*mib))
	orphan, _ := h.put(h.bytes(300_000), "application/octet-stream")
	top, _ := h.put(h.bytes(500), oci.MediaTypeIndex)
	child, _ := h.put(h.bytes(500), "application/vnd.oci.image.manifest.v1+json")
	if err := h.index.PutEdges(t.Context(), top, []index.Edge{{Parent: top, Child: child, Role: index.RoleManifest}}); err != nil {
		t.Fatal(err)
	}
	h.runtime.SetContainer(inuse.Container{Runtime: "containerd", ID: "abc", Name: "web", State: inuse.Running, Digests: []oci.Digest{top}})
	h.overfill(12)
	if r := h.evicts(); r.Evicted == 0 || !h.has(orphan) {
		t.Errorf("%+v; the orphan is there: %v", r, h.has(orphan))
	}
}

// TestN2_TheStrongestReferenceCounts: an image of an exited container goes under pressure,
// unless it is pinned or being pulled as well.
func TestN2_TheStrongestReferenceCounts(t *testing.T) {
	h := open(t, quota(4*mib))
	pinned, pulled := h.pull("pinned", nil, 300_000), h.pull("pulled", nil, 300_000)
	for _, i := range []image{pinned, pulled} {
		h.run(i, i.name, inuse.Exited)
	}
	if err := h.index.Pin(t.Context(), "pinned", []oci.Digest{pinned.manifest}); err != nil {
		t.Fatal(err)
	}
	h.runtime.SetBusy(pulled.manifest)
	for range 2 {
		h.overfill(12)
		h.evicts()
	}
	h.stays(pinned, "it is pinned")
	h.stays(pulled, "it is being pulled")
}

func (h *house) opens(d oci.Digest) (end func()) {
	h.t.Helper()
	b, err := h.store.Open(h.t.Context(), d)
	if err != nil {
		h.t.Fatal(err)
	}
	return b.Close
}

// TestN1_WhatIsAPull: where the runtime does not report pulls, requests and their times decide.
func TestN1_WhatIsAPull(t *testing.T) {
	pulled := func(h *house, i image) bool { return h.explain(i.config).Why == Pull }
	for name, tt := range map[string]struct {
		do   func(h *house, i image) // a minute after the image was pulled, long ago
		want bool
	}{
		"nothing":                   {func(*house, image) {}, false},
		"the manifest":              {func(h *house, i image) { h.read(i.manifest); h.later(29 * time.Second) }, true},
		"the manifest, and no more": {func(h *house, i image) { h.read(i.manifest); h.later(31 * time.Second) }, false},
		"some":                      {func(h *house, i image) { h.read(i.manifest); h.read(i.layers[0]); h.later(4 * time.Minute) }, true},
		"some, and no more":         {func(h *house, i image) { h.read(i.manifest); h.read(i.layers[0]); h.later(6 * time.Minute) }, false},
		"some, just before the manifest": {func(h *house, i image) {
			h.read(i.layers[0])
			h.later(time.Second)
			h.read(i.manifest)
			h.later(time.Minute)
		}, false},
		"all": {func(h *house, i image) {
			for _, d := range i.all() {
				h.read(d)
			}
		}, false},
		"all, of which one is read": {func(h *house, i image) {
			for _, d := range i.all() {
				h.read(d)
			}
			h.t.Cleanup(h.opens(i.layers[0]))
		}, true},
		"one that is read for an hour":     {func(h *house, i image) { h.read(i.manifest); h.t.Cleanup(h.opens(i.layers[0])); h.later(time.Hour) }, true},
		"one that is read for three hours": {func(h *house, i image) { h.read(i.manifest); h.t.Cleanup(h.opens(i.layers[0])); h.later(3 * time.Hour) }, false},
		"all, and the subject is not here": {func(h *house, i image) {
			for _, d := range i.all() {
				h.read(d)
			}
			edges, err := h.index.Children(h.t.Context(), i.manifest)
			if err == nil {
				err = h.index.PutEdges(h.t.Context(), i.manifest, append(edges, index.Edge{Parent: i.manifest, Child: blobName(3), Role: index.RoleSubject}))
			}
			if err != nil {
				h.t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, quota(40*mib))
			h.runtime.HidePulls()
			i := h.pull("image", nil, 100_000, 100_000)
			h.later(24 * time.Hour)
			tt.do(h, i)
			if got := pulled(h, i); got != tt.want {
				t.Errorf("pulled %v, want %v: %+v", got, tt.want, h.explain(i.config))
			}
		})
	}
	// Whichever blob it is that has not come yet.
	for n := range 6 {
		h := open(t, quota(40*mib))
		h.runtime.HidePulls()
		i := h.pull("image", nil, 100_000, 100_000)
		edges, err := h.index.Children(t.Context(), i.manifest)
		if err == nil {
			err = h.index.PutEdges(t.Context(), i.manifest, append(edges, index.Edge{Parent: i.manifest, Child: digest.FromString(fmt.Sprint(n)), Role: index.RoleLayer}))
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.later(time.Minute); !pulled(h, i) {
			t.Errorf("blob %d is missing: %+v", n, h.explain(i.config))
		}
	}
}

// TestR16_WhatWasEvictedIsRememberedForAPull: for no longer than a pull may take, and only
// where pulls are not seen.
func TestR16_WhatWasEvictedIsRememberedForAPull(t *testing.T) {
	for _, hidden := range []bool{true, false} {
		h := open(t, quota(4*mib))
		if hidden {
			h.runtime.HidePulls()
		}
		h.overfill(12)
		if r := h.evicts(); r.Evicted == 0 || len(h.gone) != map[bool]int{true: r.Evicted}[hidden] {
			t.Errorf("pulls hidden %v: %d of %d are remembered", hidden, len(h.gone), r.Evicted)
		}
		h.later(pullMax*time.Millisecond + time.Second)
		if h.evicts(); len(h.gone) != 0 {
			t.Errorf("pulls hidden %v: %d are remembered for ever", hidden, len(h.gone))
		}
	}
}

// TestR9_WhatCannotBeRemovedIsNoSuccess: it is counted as failed, and stops no other.
func TestR9_WhatCannotBeRemovedIsNoSuccess(t *testing.T) {
	h := open(t, quota(4*mib))
	stuck := h.pull("stuck", nil, 300_000)
	h.overfill(12)
	var files []string
	if err := filepath.WalkDir(h.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(path, stuck.layers[0].Encoded()) {
			files = append(files, path)
		}
		return err
	}); err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "full"), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	before := h.store.Usage().Used
	r := h.evicts()
	if r.Failed != 1 || r.Evicted == 0 || r.Raced > 0 || r.Freed == 0 || r.Freed > before-h.store.Usage().Used {
		t.Errorf("%+v, of %d bytes %d are left", r, before, h.store.Usage().Used)
	}
	if n := h.metric("fairway_node_evicted_bytes_total"); int64(n) != r.Freed {
		t.Errorf("%v bytes were evicted, by the metric", n)
	}
}

// TestN2_AReaderThatComesBetweenJudgementAndClaimWins, and the eviction does not count as failed.
func TestN2_AReaderThatComesBetweenJudgementAndClaimWins(t *testing.T) {
	c := quota(4 * mib)
	var do atomic.Pointer[func(oci.Digest)]
	c.options.Rare = func(d oci.Digest) bool {
		if f := do.Load(); f != nil {
			(*f)(d)
		}
		return false
	}
	h := open(t, c)
	all := h.overfill(12)
	first, last := all[0].layers[0], all[0].layers[0]
	for _, i := range all {
		for _, d := range i.all() {
			last = max(last, d)
		}
	}
	if first == last {
		first = all[1].layers[0]
	}
	f := func(d oci.Digest) {
		if d == last { // all others are read by now
			do.Store(nil)
			b, err := h.store.Open(context.Background(), first)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(b.Close)
		}
	}
	do.Store(&f)
	if r := h.evicts(); r.Raced != 1 || r.Failed != 0 || r.Evicted == 0 || !h.has(first) {
		t.Errorf("%+v; what is read is there: %v", r, h.has(first))
	}
}

// TestDeleted_ACircleEnds: what an upstream has said may be anything.
func TestDeleted_ACircleEnds(t *testing.T) {
	c := quota(40 * mib)
	c.options.DeletedTTL = time.Hour
	h := open(t, c)
	a, b := h.pull("a", nil, 1000), h.pull("b", nil, 1000)
	for _, e := range [][2]oci.Digest{{a.manifest, b.manifest}, {b.manifest, a.manifest}} {
		if err := h.index.PutEdges(t.Context(), e[0], []index.Edge{{Parent: e[0], Child: e[1], Role: index.RoleManifest}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.index.SetDeleted(t.Context(), []oci.Digest{a.manifest, b.manifest}, h.index.Now()); err != nil {
		t.Fatal(err)
	}
	h.later(2 * time.Hour)
	if r := h.evicts(); r.Failed != 0 || r.Examined != 6 {
		t.Errorf("%+v", r)
	}
}

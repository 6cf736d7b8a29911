package evict

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

func quota(n int64) choice { return choice{limits: piece.Limits{Quota: n}} }

// fill pulls images, an hour and more apart, until far past the quota.
func (h *house) fill(n int, layer int) (all []image) {
	h.t.Helper()
	for i := range n {
		h.later(90 * time.Minute)
		all = append(all, h.pull(fmt.Sprintf("filler-%d", i), nil, layer))
	}
	return all
}

// The story: a small quota, BusyBox running, pulls of several images until far
// past the quota.
func TestN1_TheStory(t *testing.T) {
	for _, state := range []inuse.State{inuse.Running, inuse.Paused, inuse.Created, inuse.Unsure} {
		t.Run(string(state), func(t *testing.T) {
			const limit = 4 * mib
			h := open(t, quota(limit))
			busybox := h.pull("busybox", nil, 500_000, 300_000)
			h.run(busybox, "abc", state)
			all := h.fill(13, 400_000)
			if used := h.store.Usage().Used; used > limit {
				t.Errorf("the cache holds %s", size(used))
			}
			h.stays(busybox, "after the pulls")
			if h.whole(all[0]) == len(all[0].all()) || h.whole(all[12]) != len(all[12].all()) {
				t.Errorf("%d blobs of the oldest image are left, %d of the youngest", h.whole(all[0]), h.whole(all[12]))
			}
			if h.metric("fairway_node_evicted_bytes_total") == 0 || h.told(EventEvicted, "quota") == 0 {
				t.Error("nothing was told of the eviction")
			}
			h.runtime.RemoveContainer("abc")
			h.fill(13, 400_000)
			if h.whole(busybox) == len(busybox.all()) {
				t.Error("its data stays though the container is gone")
			}
		})
	}
}

func TestN1_ASharedLayerStaysWhileOneOfTwoContainersRuns(t *testing.T) {
	h := open(t, quota(4*mib))
	a := h.pull("a", nil, 500_000, 100_000)
	b := h.pull("b", a.layers[:1], 100_000)
	h.run(a, "a", inuse.Running)
	h.run(b, "b", inuse.Running)
	h.fill(10, 400_000)
	h.runtime.RemoveContainer("a")
	h.fill(13, 400_000)
	h.stays(b, "after the other one has gone")
	if h.has(a.layers[1]) {
		t.Error("the layer of the container that has gone is still there")
	}
	h.runtime.SetState("b", inuse.Exited)
	h.fill(13, 400_000)
	h.stays(b, "exited, while there is cold data")
	h.runtime.RemoveContainer("b")
	h.fill(13, 400_000)
	if h.whole(b) == len(b.all()) {
		t.Error("the image stays though both containers have gone")
	}
}

func TestN1_RootsThatRuntimesName(t *testing.T) {
	for _, c := range []struct {
		name string
		of   func(i image) inuse.Container
	}{
		{"config, as CRI", func(i image) inuse.Container { return inuse.Container{Digests: []oci.Digest{i.config}} }},
		{"chain ID, as a snapshot", func(image) inuse.Container { return inuse.Container{ChainIDs: []oci.Digest{blobName(99)}} }},
		{"index", func(image) inuse.Container { return inuse.Container{Digests: []oci.Digest{blobName(77)}} }},
		{"blobs", func(i image) inuse.Container { return inuse.Container{Blobs: i.all()} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := open(t, quota(4*mib))
			i := h.pull("busybox", nil, 500_000)
			if err := errors.Join(h.index.SetChain(t.Context(), i.config, blobName(99)),
				h.index.PutEdges(t.Context(), blobName(77), []index.Edge{{Parent: blobName(77), Child: i.manifest, Role: index.RoleManifest}})); err != nil {
				t.Fatal(err)
			}
			container := c.of(i)
			container.Runtime, container.ID, container.State = "containerd", "abc", inuse.Running
			h.runtime.SetContainer(container)
			h.fill(13, 400_000)
			h.stays(i, "named by "+c.name)
		})
	}
}

func TestN2_PinsAndPullsStay(t *testing.T) {
	h := open(t, quota(4*mib))
	pinned, pulled := h.pull("pinned", nil, 300_000), h.pull("pulled", nil, 300_000)
	if err := h.index.Pin(t.Context(), "docker.io/library/pinned:1", []oci.Digest{pinned.manifest}); err != nil {
		t.Fatal(err)
	}
	h.runtime.SetBusy(pulled.manifest)
	h.fill(13, 400_000)
	h.stays(pinned, "pinned")
	h.stays(pulled, "being pulled")
	if v, err := h.Explain(t.Context(), pinned.layers[0]); err != nil || v.Why != Pin || !strings.Contains(v.Reason, "docker.io/library/pinned:1") {
		t.Errorf("%+v, %v", v, err)
	}
}

// over fills the cache with cold data over the high watermark, without a room
// maker, so that the next pass has something to do.
func (h *house) overfill(n int) []image {
	h.t.Helper()
	l := h.store.Limits()
	wide := l
	wide.Quota = 1 << 40
	h.store.SetLimits(wide)
	all := h.fill(n, 400_000)
	h.later(3 * time.Hour)
	h.store.SetLimits(l)
	return all
}

func TestN4_AContainerStartedBetweenJudgementAndRemoval(t *testing.T) {
	h := open(t, quota(4*mib))
	all := h.overfill(12)
	h.whenClaimed(func() { h.run(all[0], "abc", inuse.Created) })
	r := h.evicts()
	h.stays(all[0], "of the container that has just started")
	if r.Raced == 0 || r.Evicted == 0 || h.metric("fairway_node_evictions_refused_total") == 0 {
		t.Errorf("%+v", r)
	}
	if c := h.store.Usage().Claimed; c != 0 {
		t.Errorf("%d bytes are still claimed", c)
	}
	i, err := h.store.Info(t.Context(), all[0].layers[0])
	if err != nil || i.State != index.Complete {
		t.Errorf("the layer is %s, %v", i.State, err)
	}
}

func TestN4_AnImageThatComesIntoARuntimeMeanwhileIsNoLongerCold(t *testing.T) {
	h := open(t, quota(4*mib))
	all := h.overfill(12)
	h.whenClaimed(func() {
		h.runtime.SetImage(inuse.Image{Runtime: "containerd", Name: "x", Digests: []oci.Digest{all[0].manifest}})
	})
	h.evicts()
	h.stays(all[0], "present in a runtime by now")
}

func TestN3_ARuntimeGoesAwayBetweenClaimAndRemoval(t *testing.T) {
	h := open(t, quota(4*mib))
	all := h.overfill(12)
	h.whenClaimed(func() {
		h.runtime.Kill()
	})
	if r := h.evicts(); r.Evicted != 0 || r.Raced == 0 {
		t.Errorf("%+v", r)
	}
	for _, i := range all {
		h.stays(i, "while the runtime is away")
	}
	if r := h.evicts(); r.Evicted != 0 || h.told(EventFull, "containerd cannot be asked") != 1 {
		t.Errorf("%+v, events %+v", r, h.Events())
	}
	h.runtime.Restart()
	if r := h.evicts(); r.Evicted == 0 {
		t.Errorf("nothing goes though the runtime is back: %+v", r)
	}
}

func TestN3_NoRuntimeKnownIsNotNoneThere(t *testing.T) {
	c := quota(4 * mib)
	c.noRuntimes = true
	h := open(t, c)
	h.overfill(12)
	if r := h.evicts(); r.Evicted != 0 || r.Kept[Unknown] == 0 {
		t.Errorf("%+v", r)
	}
	h.o.NoRuntimes = true
	if r := h.evicts(); r.Evicted == 0 {
		t.Errorf("%+v", r)
	}
}

func TestN3_WhatIsNewerThanTheAnswerStays(t *testing.T) {
	h := open(t, quota(4*mib))
	h.overfill(9) // there is room below the quota for what comes meanwhile
	var young image
	h.whenAsked(func() {
		h.later(5 * time.Second)
		young = h.pull("young", nil)
	})
	h.evicts()
	h.stays(young, "put after the question")
	if v, err := h.Explain(t.Context(), young.manifest); err != nil || v.Tier != Warm && v.Tier != Active {
		t.Errorf("%+v %v", v, err)
	}
}

func TestN3_AContainerThatCannotBeTracedKeepsWhatNobodyKnows(t *testing.T) {
	h := open(t, quota(4*mib))
	orphan, _ := h.put(h.bytes(300_000), "application/octet-stream")
	for name, c := range map[string]inuse.Container{
		"no image": {Imageless: true}, "a digest nobody knows": {Digests: []oci.Digest{blobName(1)}}, "the config, which nothing names": {},
	} {
		if strings.Contains(name, "config") {
			d, _ := h.put(h.bytes(100), "application/vnd.oci.image.config.v1+json")
			c.Digests, c.Blobs = []oci.Digest{d}, []oci.Digest{d}
		}
		c.Runtime, c.ID, c.Name, c.State = "containerd", "abc", "odd", inuse.Running
		h.runtime.SetContainer(c)
		h.overfill(10)
		if r := h.evicts(); r.Evicted == 0 || !h.has(orphan) {
			t.Errorf("%s: the orphan is there: %v, %+v", name, h.has(orphan), r)
		}
		if v, err := h.Explain(t.Context(), orphan); err != nil || v.Why != Untraced || !strings.Contains(v.Reason, "container odd") {
			t.Errorf("%s: %+v %v", name, v, err)
		}
	}
	h.runtime.RemoveContainer("abc")
	_, _ = h.tracker.Ask(t.Context()) // a loss is believed when a second reading agrees
	h.overfill(10)
	h.evicts()
	if h.has(orphan) {
		t.Error("the orphan stays for ever")
	}
}

// TestN13_AGuessOnlyProtects: the container's snapshot is gone from the runtime's
// records, and its tag leads to another image now. What it runs may be any image
// of the cache, also one whose manifest is known.
func TestN13_AGuessOnlyProtects(t *testing.T) {
	h := open(t, quota(4*mib))
	orphan, _ := h.put(h.bytes(100_000), "application/octet-stream")
	before, now := h.pull("app:1 before", nil, 300_000), h.pull("app:1 now", nil, 300_000)
	c := inuse.Container{Runtime: "containerd", ID: "abc", Name: "web", State: inuse.Running, Image: "app:1", Blobs: now.all()}
	h.runtime.SetContainer(c)
	h.overfill(12)
	r := h.evicts()
	if r.Evicted != 0 || r.Kept[Untraced] == 0 || !h.has(orphan) {
		t.Errorf("beside a container of who knows what: %+v, the orphan is there: %v", r, h.has(orphan))
	}
	h.stays(before, "it may run that")
	h.stays(now, "it may run that")
	if v, err := h.Explain(t.Context(), before.layers[0]); err != nil || v.Why != Untraced || !strings.Contains(v.Reason, "container web") {
		t.Errorf("%+v %v", v, err)
	}
	c.State = inuse.Exited
	h.runtime.SetContainer(c)
	h.overfill(12)
	if r := h.evicts(); r.Evicted == 0 {
		t.Errorf("it has exited, and nothing goes: %+v", r)
	}
}

// appearing is a finder to which runtimes are added.
type appearing struct {
	mu    sync.Mutex
	fresh []inuse.Source
}

func (a *appearing) add(s inuse.Source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fresh = append(a.fresh, s)
}

func (a *appearing) Find() []inuse.Source {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.fresh
	a.fresh = nil
	return found
}

func (a *appearing) Answered(inuse.Source) {}

func (a *appearing) Forget(inuse.Source) error { return nil }

// TestN13_ARuntimeThatAppearsBetweenJudgementAndRemoval uses what was about to go.
func TestN13_ARuntimeThatAppearsBetweenJudgementAndRemoval(t *testing.T) {
	for name, silent := range map[string]bool{"answers": false, "is silent": true} {
		var places appearing
		c := quota(4 * mib)
		c.finder = &places
		h := open(t, c)
		all := h.overfill(12)
		other := inusetest.NewFake("podman")
		other.SetContainer(inuse.Container{ID: "1", State: inuse.Running, Digests: []oci.Digest{all[0].manifest}})
		if silent {
			other.Kill()
		}
		h.whenClaimed(func() { places.add(other) })
		r := h.evicts()
		if silent && r.Evicted != 0 {
			t.Errorf("a runtime that appeared %s: %+v", name, r)
		}
		h.stays(all[0], "a runtime that appeared "+name)
		if silent {
			other.Restart()
			if r := h.evicts(); r.Evicted == 0 {
				t.Errorf("it answers now, and nothing goes: %+v", r)
			}
			h.stays(all[0], "it has answered")
		}
	}
}

func TestN2_AReaderThatComesBetweenClaimAndRemovalWins(t *testing.T) {
	h := open(t, quota(4*mib))
	all := h.overfill(12)
	victim := all[0].layers[0]
	var b *piece.Blob
	h.whenClaimed(func() {
		var err error
		if b, err = h.store.Open(context.Background(), victim); err != nil {
			t.Error(err)
		}
	})
	r := h.evicts()
	if !h.has(victim) || r.Raced == 0 {
		t.Errorf("there: %v, %+v", h.has(victim), r)
	}
	if b != nil {
		b.Close()
	}
}

func TestN5_ASecondPassTakesNothingMore(t *testing.T) {
	h := open(t, quota(4*mib))
	h.overfill(12)
	if r := h.evicts(); r.Evicted == 0 || r.Used > 4*mib*8/10 || r.Short != 0 {
		t.Errorf("first pass: %+v", r)
	}
	if r := h.evicts(); r.Evicted != 0 || r.Trigger != "" {
		t.Errorf("second pass: %+v", r)
	}
}

func TestN5_APlanIsWhatAPassDoesAndChangesNothing(t *testing.T) {
	h := open(t, quota(4*mib))
	h.overfill(12)
	before, err := h.store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after, err := h.store.List(t.Context())
	if err != nil || !slices.Equal(before, after) {
		t.Fatalf("the plan changed the cache: %v", err)
	}
	h.evicts()
	var gone, planned []oci.Digest
	for _, i := range before {
		if !h.has(i.Digest) {
			gone = append(gone, i.Digest)
		}
	}
	for _, i := range p.Victims {
		planned = append(planned, p.Verdicts[i].Digest)
	}
	slices.Sort(planned)
	if !slices.Equal(gone, planned) || len(gone) == 0 {
		t.Errorf("%d were planned, %d have gone", len(planned), len(gone))
	}
}

func TestN5_OnlyTheFileSystemLimitsAndTheFloorStays(t *testing.T) {
	h := open(t, choice{options: Options{Floor: mib}})
	h.disk.total.Store(20 * mib)
	h.overfill(10)
	if r := h.evicts(); r.Evicted != 0 {
		t.Fatalf("with most of the disk free: %+v", r)
	}
	h.disk.others.Store(14 * mib)
	r := h.evicts()
	if used := h.disk.others.Load() + r.Used; r.Evicted == 0 || used > 16*mib || r.Used < mib {
		t.Errorf("the disk is filled with %s: %+v", size(used), r)
	}
	h.disk.others.Store(19 * mib)
	if r = h.evicts(); r.Used < mib || r.Used > 2*mib {
		t.Errorf("others fill the disk, and %s are left", size(r.Used))
	}
	if h.metric("fairway_node_over_quota") != 0 && r.Short == 0 {
		t.Error("over quota")
	}
}

func TestN5_QuotaLoweredWhileItRuns(t *testing.T) {
	h := open(t, quota(20*mib))
	h.fill(13, 400_000)
	h.later(3 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.store.SetLimits(piece.Limits{Quota: 4 * mib, High: 0.9, Low: 0.8})
	h.Kick()
	deadline, again := time.After(20*time.Second), time.NewTicker(5*time.Millisecond)
	defer again.Stop()
	for h.store.Usage().Used > 4*mib*8/10 {
		select {
		case <-deadline:
			t.Fatalf("the cache still holds %s", size(h.store.Usage().Used))
		case <-again.C:
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestN5_WhatWasNewAtTheLastPassGoesSoon: a quota was lowered right after a burst
// of pulls, when all was newer than the runtimes' answer. Nothing happens since but
// that time goes by.
func TestN5_WhatWasNewAtTheLastPassGoesSoon(t *testing.T) {
	h := open(t, quota(20*mib))
	for range 13 {
		h.put(h.bytes(400_000), "")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.store.SetLimits(piece.Limits{Quota: 4 * mib, High: 0.9, Low: 0.8})
	h.Kick()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	wait := func(what string, ok func() bool) {
		deadline := time.After(20 * time.Second)
		for !ok() {
			select {
			case <-deadline:
				t.Fatalf("waited in vain: %s; the cache holds %s", what, size(h.store.Usage().Used))
			case <-again.C:
			}
		}
	}
	wait("a pass that can evict nothing", func() bool { return h.Last().Short > 0 })
	h.later(3 * time.Second)
	wait("what was new goes", func() bool { return h.store.Usage().Used <= 4*mib*8/10 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestN6_AllActiveAndOverQuota(t *testing.T) {
	h := open(t, quota(4*mib))
	var all []image
	for n := range 8 {
		i := h.pull(fmt.Sprint(n), nil, 440_000)
		h.run(i, fmt.Sprint(n), inuse.Running)
		all = append(all, i)
	}
	for range 3 {
		if _, ok := h.put(h.bytes(500_000), ""); ok {
			t.Error("what does not fit is admitted")
		}
		h.later(time.Minute)
	}
	h.evicts()
	for _, i := range all {
		h.stays(i, "all are active")
	}
	if h.metric("fairway_node_evicted_bytes_total") != 0 || h.metric("fairway_node_over_quota") != 1 {
		t.Errorf("evicted %v, over quota %v", h.metric("fairway_node_evicted_bytes_total"), h.metric("fairway_node_over_quota"))
	}
	if n := h.told(EventFull, "active"); n != 1 {
		t.Errorf("it was told %d times: %+v", n, h.Events())
	}
	for n := range 8 {
		h.runtime.RemoveContainer(fmt.Sprint(n))
	}
	h.later(3 * time.Hour)
	h.evicts() // a loss is believed when a second reading agrees
	if _, ok := h.put(h.bytes(500_000), ""); !ok || h.metric("fairway_node_over_quota") != 0 || h.told(EventRoom) != 1 {
		t.Errorf("when all have stopped: admitted: %v, %+v", ok, h.Events())
	}
}

func TestMakeRoom_ManyAdmissionsAtOnce(t *testing.T) {
	h := open(t, quota(8*mib))
	h.fill(15, 400_000)
	h.later(3 * time.Hour)
	var contents [][]byte
	for range 24 {
		contents = append(contents, h.bytes(200_000))
	}
	var wg sync.WaitGroup
	for _, c := range contents {
		wg.Go(func() { h.put(c, "") })
	}
	wg.Wait()
	if u := h.store.Usage(); u.Used > 8*mib || u.Claimed != 0 {
		t.Errorf("%+v", u)
	}
	if n := h.metric("fairway_node_eviction_passes_total"); n > 12 {
		t.Errorf("24 admissions took %v passes", n)
	}
}

func TestMakeRoom_WhatIsLargerThanTheCacheMovesNothing(t *testing.T) {
	h := open(t, quota(4*mib))
	all := h.fill(5, 400_000)
	h.later(3 * time.Hour)
	if h.MakeRoom(t.Context(), 5*mib) {
		t.Error("there is room for more than the quota")
	}
	for _, i := range all {
		h.stays(i, "after what could not fit")
	}
}

func TestPass_CancelledGivesItsClaimsBack(t *testing.T) {
	h := open(t, quota(4*mib))
	h.overfill(12)
	ctx, cancel := context.WithCancel(t.Context())
	h.whenClaimed(func() {
		cancel()
	})
	if _, err := h.Pass(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	list, err := h.store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if i.State == index.Claimed {
			t.Errorf("%s is still claimed", i.Digest)
		}
	}
	if r := h.evicts(); r.Evicted == 0 {
		t.Errorf("the next pass: %+v", r)
	}
}

func TestDeleted_ALayerSharedWithALivingImageStays(t *testing.T) {
	c := quota(40 * mib)
	c.options.DeletedTTL = time.Hour
	h := open(t, c)
	gone := h.pull("gone", nil, 200_000, 200_000)
	alive := h.pull("alive", gone.layers[:1], 100_000)
	h.later(2 * time.Second)
	if err := h.index.SetDeleted(t.Context(), []oci.Digest{gone.manifest}, h.index.Now()); err != nil {
		t.Fatal(err)
	}
	h.later(59 * time.Minute)
	if r := h.evicts(); r.Evicted != 0 {
		t.Errorf("before its time: %+v", r)
	}
	h.later(2 * time.Minute)
	if r := h.evicts(); r.Evicted != 3 {
		t.Errorf("after its time: %+v", r)
	}
	h.stays(alive, "of a living image")
	if h.has(gone.manifest) || h.has(gone.config) || h.has(gone.layers[1]) {
		t.Error("something of the deleted image is left")
	}
}

func TestClock_AJumpWhileItRunsExpiresNothing(t *testing.T) {
	c := quota(40 * mib)
	c.options.DeletedTTL = time.Hour
	h := open(t, c)
	i := h.pull("gone", nil, 200_000)
	h.later(2 * time.Second)
	if err := h.index.SetDeleted(t.Context(), i.all(), h.index.Now()); err != nil {
		t.Fatal(err)
	}
	h.evicts()
	// The index's clock jumps by years; the other one does not.
	still := h.o.Now()
	h.o.Now = func() time.Time { return still }
	h.later(5 * 365 * 24 * time.Hour)
	h.evicts()
	h.evicts()
	h.stays(i, "after a jump by years")
}

func TestExplain(t *testing.T) {
	h := open(t, quota(4*mib))
	i := h.pull("docker.io/library/nginx:1", nil, 1000)
	h.run(i, "abcdef0123456789", inuse.Running)
	h.runtime.SetImage(inuse.Image{Runtime: "containerd", Name: i.name, Digests: []oci.Digest{i.manifest}})
	h.later(3 * time.Hour)
	v, err := h.Explain(t.Context(), i.layers[0])
	if want := "container web (k8s.io/abcdef012345, running) of docker.io/library/nginx:1"; err != nil || v.Tier != Active || v.Reason != want {
		t.Errorf("%+v, %v; want %q", v, err, want)
	}
	h.runtime.SetState("abcdef0123456789", inuse.Exited)
	if v, err = h.Explain(t.Context(), i.layers[0]); err != nil || v.Tier != Warm || v.Why != Image {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err = h.Explain(t.Context(), blobName(5)); fault.KindOf(err) != fault.NotFound {
		t.Errorf("what is not there: %v", err)
	}
}

func TestEvents_TheNewestFirstAndNotMoreThanSoMany(t *testing.T) {
	e := events{now: time.Now}
	for n := range eventsMax + 5 {
		e.add("info", EventEvicted, fmt.Sprint(n))
	}
	all := e.list()
	if len(all) != eventsMax || all[0].Text != fmt.Sprint(eventsMax+4) || all[eventsMax-1].Text != "5" {
		t.Errorf("%d events from %s to %s", len(all), all[0].Text, all[len(all)-1].Text)
	}
}

func TestNew_RefusesWatermarksThatWouldFlap(t *testing.T) {
	h := open(t, quota(4*mib))
	h.store.SetLimits(piece.Limits{Quota: mib, High: 0.8, Low: 0.8})
	if _, err := New(Options{Store: h.store, Index: h.index, Tracker: h.tracker}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("error %v", err)
	}
	h.fillNothing()
}

// fillNothing checks that a pass refuses as well, and changes nothing.
func (h *house) fillNothing() {
	h.t.Helper()
	if r, err := h.Pass(h.t.Context()); err == nil {
		h.t.Errorf("a pass with such limits: %+v", r)
	}
	if len(maps.Collect(maps.All(h.Last().Kept))) != 0 {
		h.t.Error("it judged all the same")
	}
}

func TestMakeRoom_ARuntimeThatHangsDelaysOneAdmissionOnly(t *testing.T) {
	h := open(t, quota(4*mib))
	h.fill(13, 400_000)
	h.later(3 * time.Hour)
	h.runtime.Kill()
	if _, ok := h.put(h.bytes(1_900_000), ""); ok {
		t.Fatal("there is room though nothing may go")
	}
	asked := h.runtime.Readings()
	for range 5 {
		h.later(time.Second)
		// The tracker goes on trying, which is no news.
		if _, err := h.tracker.Ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := h.put(h.bytes(2_500_000), ""); ok {
			t.Fatal("there is room though nothing may go")
		}
	}
	if n := h.runtime.Readings() - asked; n != 5 {
		t.Errorf("five admissions asked the runtime %d times", n-5)
	}
	h.runtime.Restart()
	if _, err := h.tracker.Ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := h.put(h.bytes(1_900_000), ""); !ok {
		t.Error("there is no room though the runtime answers again")
	}
}

// TestPlan_DoesNotWaitForARuntimeThatHangs: people who looked waited for 5 s.
func TestPlan_DoesNotWaitForARuntimeThatHangs(t *testing.T) {
	c := quota(4 * mib)
	c.askTimeout = 2 * time.Minute
	h := open(t, c)
	h.fill(3, 400_000)
	h.evicts()
	h.patience = 10 * time.Millisecond
	h.runtime.Hang()
	defer h.runtime.Unhang()
	began := time.Now()
	p, err := h.Plan(t.Context())
	if err != nil || len(p.Verdicts) < 3 {
		t.Fatalf("%d verdicts, %v", len(p.Verdicts), err)
	}
	if took := time.Since(began); took > time.Minute { // the tracker waits for two
		t.Errorf("the plan took %v", took)
	}
	if p.Answered.IsZero() {
		t.Error("nobody can tell how old the answer is that it goes by")
	}
}

// TestMakeRoom_NoAdmissionWaitsForARuntimeThatHangs: each layer that was not
// cached waited for 5 to 10 s for its first byte.
func TestMakeRoom_NoAdmissionWaitsForARuntimeThatHangs(t *testing.T) {
	c := quota(4 * mib)
	c.askTimeout = 2 * time.Minute
	h := open(t, c)
	h.fill(13, 400_000)
	h.later(3 * time.Hour)
	h.patience = time.Millisecond
	h.runtime.Hang()
	began := time.Now()
	if _, ok := h.put(h.bytes(1_900_000), ""); ok {
		t.Fatal("there is room though nothing is known of the runtime")
	}
	if took := time.Since(began); took > time.Minute { // the tracker waits for two
		t.Errorf("the admission waited for %v", took)
	}
	h.runtime.Unhang() // the pass goes on, and is for whoever comes next
	h.patience = time.Minute
	if _, ok := h.put(h.bytes(1_900_000), ""); !ok {
		t.Error("there is no room though the runtime answers again")
	}
	h.runtime.Kill()
	if _, err := h.tracker.Ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked := h.runtime.Readings()
	for range 5 {
		h.later(time.Minute)
		if _, ok := h.put(h.bytes(2_500_000), ""); ok {
			t.Fatal("there is room though nothing may go")
		}
	}
	if n := h.runtime.Readings() - asked; n != 0 {
		t.Errorf("a runtime that is known not to answer was asked %d times", n)
	}
}

// TestN12_AClaimEvictsNothing: a manifest that claimed 3 MB for a layer emptied the
// cache before a byte of it had come.
func TestN12_AClaimEvictsNothing(t *testing.T) {
	h := open(t, quota(4*mib))
	cold := h.pull("cold", nil, 1_700_000, 1_700_000)
	h.later(3 * time.Hour)
	content := h.bytes(3_000_000)
	b, err := h.store.Create(t.Context(), digest.FromBytes(content), int64(len(content)), piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	h.stays(cold, "for a claim")
	if r := h.evicts(); r.Evicted != 0 {
		t.Errorf("a pass evicted for a claim: %+v", r)
	}
	b.Close()
	h.stays(cold, "after a download that did not start")
	if b, err = h.store.Create(t.Context(), digest.FromBytes(content), int64(len(content)), piece.Meta{}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	write := func(i int) {
		t.Helper()
		if err := b.WritePiece(t.Context(), i, content[i*piece.Size:min(len(content), (i+1)*piece.Size)], "test"); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	h.stays(cold, "while what has come fits")
	write(1)
	write(2)
	write(3)
	if !h.has(cold.layers[0]) && !h.has(cold.layers[1]) {
		t.Error("both layers went for 1 MiB")
	}
	for i := 4; i < b.Pieces(); i++ {
		write(i)
	}
	if !b.Complete() || h.store.Usage().Used > 4*mib {
		t.Errorf("complete %v, %+v", b.Complete(), h.store.Usage())
	}
}

// TestN6_WhatHasNoRoomAsAWholeEvictsNothing: a part of it would find room.
func TestN6_WhatHasNoRoomAsAWholeEvictsNothing(t *testing.T) {
	h := open(t, quota(4*mib))
	cold := h.pull("cold", nil, 1_000_000)
	active := h.pull("active", nil, 2_000_000)
	h.run(active, "abc", inuse.Running)
	h.later(3 * time.Hour)
	content := h.bytes(3_000_000)
	if _, err := h.store.Create(t.Context(), digest.FromBytes(content), int64(len(content)), piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
		t.Errorf("admitted: %v", err)
	}
	h.stays(cold, "for what cannot fit as a whole")
	if h.told(EventFull) != 1 {
		t.Errorf("events %+v", h.Events())
	}
}

// TestN4_NewsOfTheRuntimesDuringARemovalHaveTheRestJudgedAgain: many are removed
// in one transaction, before whose end a container may have started.
func TestN4_NewsOfTheRuntimesDuringARemovalHaveTheRestJudgedAgain(t *testing.T) {
	h := open(t, quota(mib))
	l := h.store.Limits()
	h.store.SetLimits(piece.Limits{Quota: 1 << 40, High: 0.9, Low: 0.8})
	var all []image
	for n := range 60 {
		h.later(90 * time.Minute)
		all = append(all, h.pull(fmt.Sprint(n), nil, 40_000))
	}
	h.later(3 * time.Hour)
	h.store.SetLimits(l)
	late := all[30] // of a later part than the first
	var once sync.Once
	h.o.Evicted = func(d oci.Digest) {
		once.Do(func() {
			if slices.Contains(late.all(), d) {
				t.Error("it went with the first part")
			}
			h.run(late, "abc", inuse.Running)
			if _, err := h.tracker.Ask(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	r := h.evicts()
	h.stays(late, "started while others were removed")
	if r.Evicted <= removeMax || r.Failed != 0 || h.store.Usage().Claimed != 0 {
		t.Errorf("%+v, %+v", r, h.store.Usage())
	}
}

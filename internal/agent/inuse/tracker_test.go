package inuse_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/oci"
)

var (
	one = digest.FromString("one")
	two = digest.FromString("two")
)

func container(id string, d ...oci.Digest) inuse.Container {
	return inuse.Container{ID: id, State: inuse.Running, Digests: d}
}

// run runs a tracker in the bubble and lets it make its first readings.
func run(t *testing.T, o inuse.Options, sources ...inuse.Source) *inuse.Tracker {
	t.Helper()
	tracker := inuse.NewTracker(sources, o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- tracker.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return tracker
}

func ids(u *inuse.Usage) string {
	var all []string
	for _, c := range u.Containers {
		all = append(all, c.ID)
	}
	return strings.Join(all, ",")
}

// after lets virtual time pass. It is no wait for something to happen: in a
// bubble it ends exactly then.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func ask(t *testing.T, tracker *inuse.Tracker) *inuse.Usage {
	t.Helper()
	u, err := tracker.Ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestN3_NeverAnsweredIsUnknownAndNotEmpty(t *testing.T) {
	f := inusetest.NewFake("a")
	f.Kill()
	tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
	if u := tracker.Usage(); len(u.Unknown) != 1 || !u.At.IsZero() {
		t.Errorf("before it was asked: %+v, want it unknown and no time", u)
	}
	if u := ask(t, tracker); len(u.Unknown) != 1 || !u.At.IsZero() || u.Unknown[0].Error == "" {
		t.Errorf("down since the start: %+v, want it unknown, why, and no time", u)
	}
}

func TestN3_NoSourceIsUnknown(t *testing.T) {
	if u := ask(t, inuse.NewTracker(nil, inuse.Options{})); len(u.Unknown) != 1 {
		t.Errorf("Unknown is %v, want an entry that says that there is no source", u.Unknown)
	}
	if u := ask(t, inuse.NewTracker([]inuse.Source{inuse.None{}}, inuse.Options{})); len(u.Unknown) != 0 || u.At.IsZero() {
		t.Errorf("told that there is no runtime: %+v, want a known nothing", u)
	}
}

func TestN3_UnreachableKeepsWhatItSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := inusetest.NewFake("a"), inusetest.NewFake("b")
		a.SetContainer(container("x", one))
		b.SetContainer(container("y", two))
		tracker := run(t, inuse.Options{}, a, b)
		if u := tracker.Usage(); ids(u) != "x,y" || len(u.Unknown) != 0 {
			t.Fatalf("at the start: %s, unknown %v", ids(u), u.Unknown)
		}
		after(40 * time.Second)
		killed := time.Now()
		a.Kill()
		after(time.Hour)
		u := tracker.Usage()
		if ids(u) != "x,y" || len(u.Unknown) != 1 || u.Unknown[0].Name != "a" {
			t.Errorf("an hour after a went away: %s, unknown %v, want x,y and a", ids(u), u.Unknown)
		}
		if u.At.After(killed) || u.At.Before(killed.Add(-30*time.Second)) {
			t.Errorf("At is %v, want when a, killed at %v, was asked last with success", u.At, killed)
		}
		a.Restart()
		after(11 * time.Second)
		if u := tracker.Usage(); len(u.Unknown) != 0 || time.Since(u.At) > 30*time.Second {
			t.Errorf("11 s after a is back: unknown %v, At %v", u.Unknown, u.At)
		}
	})
}

func TestN3_SuddenLossIsBelievedOnlyTwice(t *testing.T) {
	for name, lie := range map[string]inuse.Snapshot{
		"empty list": {},
		"half list":  {Containers: []inuse.Container{container("x", one)}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := inusetest.NewFake("a")
				f.SetContainer(container("x", one))
				f.SetContainer(container("y", two))
				f.SetImage(inuse.Image{Name: "i", Digests: []oci.Digest{one}})
				f.SetBusy(two)
				tracker := run(t, inuse.Options{}, f)
				f.Lie(lie)
				if u := ask(t, tracker); ids(u) != "x,y" || len(u.Images) != 1 || len(u.Busy) != 1 {
					t.Errorf("after one %s: %s, %d images, %d busy, want all as it was", name, ids(u), len(u.Images), len(u.Busy))
				}
				if u := ask(t, tracker); ids(u) != "x,y" || len(u.Images) != 1 || len(u.Busy) != 1 {
					t.Errorf("after the truth: %s, %d images, %d busy", ids(u), len(u.Images), len(u.Busy))
				}
				after(45 * time.Second) // between two readings of its own
				f.Lie(lie)
				ask(t, tracker)
				f.Lie(lie)
				if u := ask(t, tracker); ids(u) != "x,y" {
					t.Errorf("after two readings at once: %s, want x,y: a half answer may outlast both", ids(u))
				}
				after(600 * time.Millisecond) // before the tracker asks by itself
				f.Lie(lie)
				if u := ask(t, tracker); ids(u) == "x,y" || len(u.Images) != 0 || len(u.Busy) != 0 {
					t.Errorf("after two readings that agree: %s, %d images, %d busy, want the loss believed", ids(u), len(u.Images), len(u.Busy))
				}
			})
		})
	}
}

// TestN3_LossAroundAnOutageIsNotConfirmed: a runtime that fades out and comes
// back half awake answers too little twice, but not twice in a row.
func TestN3_LossAroundAnOutageIsNotConfirmed(t *testing.T) {
	f := inusetest.NewFake("a")
	f.SetContainer(container("x", one))
	tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
	ask(t, tracker)
	f.Lie(inuse.Snapshot{})
	ask(t, tracker)
	f.Kill()
	ask(t, tracker)
	f.Restart()
	f.Lie(inuse.Snapshot{})
	if u := ask(t, tracker); ids(u) != "x" {
		t.Errorf("an empty list before and one after an outage: %q, want x", ids(u))
	}
}

func TestN3_FirstAnswerCountsWithASecond(t *testing.T) {
	f := inusetest.NewFake("a")
	f.SetContainer(container("x", one))
	f.Lie(inuse.Snapshot{})
	if u := ask(t, inuse.NewTracker([]inuse.Source{f}, inuse.Options{})); ids(u) != "x" {
		t.Errorf("the first answer ever was an empty list: %q, want x", ids(u))
	}
}

func TestTracker_LossIsConfirmedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		f.SetContainer(container("x", one))
		tracker := run(t, inuse.Options{}, f)
		f.RemoveContainer("x")
		after(500 * time.Millisecond)
		if u := tracker.Usage(); ids(u) != "x" {
			t.Errorf("after the first reading without it: %q, want x still", ids(u))
		}
		after(2 * time.Second)
		if u := tracker.Usage(); ids(u) != "" {
			t.Errorf("after the second: %q, want none", ids(u))
		}
	})
}

func TestTracker_MovedTagKeepsTheOldImageForAReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		f.SetImage(inuse.Image{Name: "i", Digests: []oci.Digest{one}})
		tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
		ask(t, tracker)
		f.SetImage(inuse.Image{Name: "i", Digests: []oci.Digest{two}})
		if u := ask(t, tracker); len(u.Images) != 2 {
			t.Errorf("images after the move: %v, want both targets", u.Images)
		}
		after(time.Second)
		if u := ask(t, tracker); len(u.Images) != 1 || u.Images[0].Digests[0] != two {
			t.Errorf("images after another reading: %v, want the new target", u.Images)
		}
	})
}

func TestTracker_AContainerNeverLosesWhatItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		f.SetContainer(container("x", one))
		tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
		ask(t, tracker)
		c := container("x") // the runtime has lost the image's manifest
		c.ChainIDs = []oci.Digest{two}
		f.SetContainer(c)
		for range 3 {
			u := ask(t, tracker)
			if got := u.Containers[0]; len(got.Digests) != 1 || got.Digests[0] != one || len(got.ChainIDs) != 1 {
				t.Errorf("the container has %v and %v, want what was known before too", got.Digests, got.ChainIDs)
			}
		}
		c = container("x", two) // another one under the same ID
		c.ChainIDs, c.Since = nil, time.Unix(1, 0)
		f.SetContainer(c)
		ask(t, tracker)
		after(time.Second)
		if u := ask(t, tracker); len(u.Containers) != 1 || len(u.Containers[0].Digests) != 1 || u.Containers[0].Digests[0] != two {
			t.Errorf("made anew under the same ID: %+v, want only what the new one runs", u.Containers)
		}
	})
}

func TestTracker_OneSourceTracesForAnother(t *testing.T) {
	id := strings.Repeat("ab", 32)
	moby, docker := inusetest.NewFake("containerd"), inusetest.NewFake("docker")
	moby.SetContainer(container(id))
	moby.SetContainer(container("short"))
	docker.SetContainer(container(id, one))
	docker.SetContainer(container("short", two))
	for _, c := range ask(t, inuse.NewTracker([]inuse.Source{moby, docker}, inuse.Options{})).Containers {
		if c.ID == id && (len(c.Digests) != 1 || c.Digests[0] != one) {
			t.Errorf("%s of %s runs %v, want what docker knows", c.ID[:4], c.Runtime, c.Digests)
		}
		if c.ID == "short" && c.Runtime == "containerd" && len(c.Digests) != 0 {
			t.Errorf("a name given by hand was taken for a proof: %v", c.Digests)
		}
	}
}

func TestTracker_EventsCauseAReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		tracker := run(t, inuse.Options{}, f)
		after(time.Second)
		changed, before := tracker.Changed(), f.Readings()
		for range 100 {
			f.SetContainer(container("x", one))
		}
		after(300 * time.Millisecond)
		if u := tracker.Usage(); ids(u) != "x" {
			t.Errorf("300 ms after the event: %q, want x", ids(u))
		}
		if n := f.Readings() - before; n != 1 {
			t.Errorf("100 events at once caused %d readings, want 1", n)
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told of the change")
		}
		after(time.Minute)
		select {
		case <-changed:
			t.Error("a full list without news was told as a change")
		default:
		}
	})
}

func TestTracker_LostEventsAreMadeUpByTheFullList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		f.Mute()
		tracker := run(t, inuse.Options{Every: 10 * time.Second}, f)
		f.SetContainer(container("x", one))
		after(11 * time.Second)
		if u := tracker.Usage(); ids(u) != "x" {
			t.Errorf("after a full list: %q, want x", ids(u))
		}
	})
}

func TestTracker_ReadsAfterEachReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		tracker := run(t, inuse.Options{Every: time.Hour}, f)
		f.Kill()
		after(time.Second)
		if u := tracker.Usage(); len(u.Unknown) != 1 {
			t.Errorf("a second after the connection was lost it is not unknown: %+v", u.Sources)
		}
		f.SetContainer(container("x", one)) // nobody hears of it
		f.Restart()
		after(11 * time.Second)
		if u := tracker.Usage(); ids(u) != "x" || len(u.Unknown) != 0 {
			t.Errorf("after the reconnect: %q, unknown %v", ids(u), u.Unknown)
		}
	})
}

func TestN4_AskBeginsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
		ask(t, tracker)
		f.Hang()
		var wg sync.WaitGroup
		got := make([]*inuse.Usage, 11)
		start := func(i int) {
			wg.Go(func() { got[i] = ask(t, tracker) })
			synctest.Wait()
		}
		f.Lie(inuse.Snapshot{}) // what the hanging reading will say
		start(0)
		f.SetContainer(container("x", one))
		for i := 1; i < len(got); i++ {
			start(i)
		}
		if n := f.Readings(); n != 3 {
			t.Errorf("%d readings began while one hangs, want that one and the two at the start", n)
		}
		f.Unhang()
		wg.Wait()
		if n := f.Readings(); n != 4 {
			t.Errorf("%d readings in all, want one more for the ten who asked meanwhile", n)
		}
		for i, u := range got[1:] {
			if ids(u) != "x" {
				t.Errorf("asker %d got a reading that began before it asked", i+1)
			}
		}
	})
}

func TestN4_AnAnswerThatIsNotTheLatestShows(t *testing.T) {
	f := inusetest.NewFake("a")
	tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
	u := ask(t, tracker)
	if u.Seq != tracker.Usage().Seq {
		t.Errorf("the answer is number %d, the belief %d", u.Seq, tracker.Usage().Seq)
	}
	f.SetContainer(container("x", one))
	f.HidePulls()
	if v := ask(t, tracker); v.Seq <= u.Seq || tracker.Usage().Seq <= u.Seq || !v.PullsUnseen {
		t.Errorf("after a newer one: %d, %d, %d, %v", u.Seq, v.Seq, tracker.Usage().Seq, v.PullsUnseen)
	}
}

func TestN3_AskDoesNotWaitForARuntimeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := inusetest.NewFake("a"), inusetest.NewFake("b")
		f.SetContainer(container("x", one))
		tracker := inuse.NewTracker([]inuse.Source{f, g}, inuse.Options{AskTimeout: 5 * time.Second})
		ask(t, tracker)
		f.Hang()
		began := time.Now()
		u := ask(t, tracker)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if ids(u) != "x" || len(u.Unknown) != 1 || u.Unknown[0].Name != "a" {
			t.Errorf("the answer: %s, unknown %v, want x and a", ids(u), u.Unknown)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tracker.Ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("asked with a second to live: %v", err)
		}
		f.Unhang()
		synctest.Wait()
	})
}

func TestTracker_NamesAreUnique(t *testing.T) {
	a, b := inusetest.NewFake("docker"), inusetest.NewFake("docker")
	b.SetContainer(container("x", one))
	u := ask(t, inuse.NewTracker([]inuse.Source{a, b}, inuse.Options{}))
	if u.Sources[1].Name != "docker-2" || u.Containers[0].Runtime != "docker-2" {
		t.Errorf("sources %v, container of %q", u.Sources, u.Containers[0].Runtime)
	}
}

func TestTracker_LogsTransitionsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := inusetest.NewFake("a")
		run(t, inuse.Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, f)
		f.Kill()
		after(time.Hour)
		f.Restart()
		after(time.Hour)
		if away, back := strings.Count(log.String(), "cannot be asked"), strings.Count(log.String(), "answers"); away != 1 || back != 2 {
			t.Errorf("%d lines that it is away and %d that it answers, want 1 and 2:\n%s", away, back, log.String())
		}
	})
}

func TestTracker_Metrics(t *testing.T) {
	now := time.Unix(1000, 0)
	f := inusetest.NewFake("a")
	f.SetContainer(container("x", one))
	pause := container("pod", two)
	pause.Sandbox = true
	f.SetContainer(pause)
	reg := prometheus.NewPedanticRegistry()
	tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{Metrics: reg, Now: func() time.Time { return now }})
	ask(t, tracker)
	f.Kill()
	ask(t, tracker)
	now = now.Add(7 * time.Second)
	want := `
# HELP fairway_node_runtime_answer_age_seconds Age of the runtime's last full answer; absent before the first.
# TYPE fairway_node_runtime_answer_age_seconds gauge
fairway_node_runtime_answer_age_seconds{runtime="a"} 7
# HELP fairway_node_runtime_containers Containers that the runtime has, in any state.
# TYPE fairway_node_runtime_containers gauge
fairway_node_runtime_containers{runtime="a"} 1
# HELP fairway_node_runtime_images Images that the runtime has.
# TYPE fairway_node_runtime_images gauge
fairway_node_runtime_images{runtime="a"} 0
# HELP fairway_node_runtime_up Whether the container runtime answered the last request.
# TYPE fairway_node_runtime_up gauge
fairway_node_runtime_up{runtime="a"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// finder hands out what a test puts in.
type finder struct {
	mu       sync.Mutex
	fresh    []inuse.Source
	answered []string
	keeps    error // why it forgets nothing
}

func (f *finder) Forget(inuse.Source) error { return f.keeps }

func (f *finder) appear(s ...inuse.Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fresh = append(f.fresh, s...)
}

func (f *finder) Find() []inuse.Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := f.fresh
	f.fresh = nil
	return found
}

func (f *finder) Answered(s inuse.Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answered = append(f.answered, s.Name())
}

func TestN13_ARuntimeThatAppearsIsUnknownUntilItAnswers(t *testing.T) {
	var f finder
	a, b := inusetest.NewFake("a"), inusetest.NewFake("a")
	f.appear(a)
	tracker := inuse.NewTracker(nil, inuse.Options{Finder: &f})
	if u := ask(t, tracker); len(u.Unknown) != 0 || len(u.Sources) != 1 {
		t.Fatalf("one that was there at the start: %+v", u)
	}
	changed, before := tracker.Changed(), tracker.Usage().Seq
	b.SetContainer(container("x", one))
	b.Kill()
	f.appear(b)
	tracker.Look()
	u := tracker.Usage()
	if len(u.Unknown) != 1 || u.Unknown[0].Name != "a-2" || !u.At.IsZero() || u.Seq == before {
		t.Errorf("one has appeared: %+v, want it unknown, no time, and another number than %d", u, before)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of it")
	}
	if u := ask(t, tracker); len(u.Unknown) != 1 {
		t.Errorf("it does not answer: unknown %v", u.Unknown)
	}
	b.Restart()
	if u := ask(t, tracker); len(u.Unknown) != 0 || ids(u) != "x" || u.Containers[0].Runtime != "a-2" {
		t.Errorf("it answers: %+v, want its container", u)
	}
	ask(t, tracker)
	if got := strings.Join(f.answered, ","); got != "a,a" {
		t.Errorf("the finder was told that %q answered, want each once", got)
	}
}

// TestN13_EachQuestionLooksFirst: what appears between two questions is in the
// answer to the second, or unknown in it.
func TestN13_EachQuestionLooksFirst(t *testing.T) {
	var f finder
	tracker := inuse.NewTracker([]inuse.Source{inusetest.NewFake("a")}, inuse.Options{Finder: &f})
	ask(t, tracker)
	b := inusetest.NewFake("b")
	b.SetContainer(container("x", one))
	f.appear(b)
	if u := ask(t, tracker); ids(u) != "x" || len(u.Unknown) != 0 {
		t.Errorf("asked after b had appeared: %s, unknown %v, want its container", ids(u), u.Unknown)
	}
}

func TestN13_ARuntimeThatAppearsIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f finder
		tracker := run(t, inuse.Options{Finder: &f, Every: time.Hour})
		b := inusetest.NewFake("b")
		f.appear(b)
		tracker.Look()
		synctest.Wait()
		if u := tracker.Usage(); len(u.Unknown) != 0 {
			t.Errorf("it was not asked: %+v", u)
		}
		b.SetContainer(container("x", one))
		after(time.Second)
		if u := tracker.Usage(); ids(u) != "x" {
			t.Errorf("after an event of it: %q, want x", ids(u))
		}
	})
}

// TestN13_ARuntimeThatDisappearsIsUnknownAndNotGone for whatever time.
func TestN13_ARuntimeThatDisappearsIsUnknownAndNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f finder
		b := inusetest.NewFake("b")
		b.SetContainer(container("x", one))
		f.appear(b)
		tracker := run(t, inuse.Options{Finder: &f})
		b.Kill()
		after(30 * 24 * time.Hour)
		if u := ask(t, tracker); ids(u) != "x" || len(u.Unknown) != 1 {
			t.Errorf("a month later: %s, unknown %v, want x and b", ids(u), u.Unknown)
		}
	})
}

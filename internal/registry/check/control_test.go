package check_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// checkEnv makes the test binary a server that does nothing but check the
// directory named by it, slowly, and tells how far it is, until it is killed.
const checkEnv = "CHECK_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(checkEnv); dir != "" {
		if err := checkUntilKilled(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func checkUntilKilled(dir string) error {
	ctx := context.Background()
	blobs, err := fsblob.Open(dir, fsblob.Options{Reserve: 1 << 20, MinFree: -1})
	if err != nil {
		return err
	}
	store, err := meta.Open(ctx, meta.Options{Path: filepath.Join(dir, "fairway.db")})
	if err != nil {
		return err
	}
	c := check.New(store, blobs, check.Options{})
	// Each repair is a write, so the progress of each object is on disk.
	rep, err := c.Start(ctx, check.Request{Repair: true, Deep: true, ObjectsPerSecond: 2000, BytesPerSecond: 1 << 20})
	if err != nil {
		return err
	}
	for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
		if rep, err = c.Get(ctx, rep.ID); err != nil {
			return err
		}
		fmt.Println(rep.Phase, rep.Objects, rep.Blobs, rep.State)
	}
}

func TestR7_KilledCheckGoesOnWhereItWasAndCountsNothingTwice(t *testing.T) {
	for _, phase := range []string{check.PhaseStorage, check.PhaseBlobs} {
		t.Run(phase, func(t *testing.T) {
			const orphans, blobs, lost = 700, 6, 3
			w := newWorld(t)
			for i := range orphans {
				path := w.path(blobtest.Key(i))
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				w.age(blobtest.Key(i), 3*time.Hour)
			}
			var bs []meta.Blob
			for i := range blobs {
				bs = append(bs, w.upload("app", blobtest.Bytes(i, 256<<10)))
			}
			for _, b := range bs[:lost] {
				damage(t, w, b, "flipped")
			}
			if err := errors.Join(w.meta.Close(), w.blobs.Close()); err != nil {
				t.Fatal(err)
			}
			killDuring(t, w.dir, phase)

			w = openWorld(t, w.dir, 0)
			c := check.New(w.meta, w.blobs, check.Options{})
			before, err := c.Get(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if before.State != check.StateInterrupted || before.Phase != phase {
				t.Fatalf("after the kill: %s", text(before))
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := c.Run(ctx, 0); err != nil {
					t.Error(err)
				}
			})
			var rep check.Report
			eventually(t, "the check to be over", func() bool {
				if rep, err = c.Get(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				return rep.State == check.StateDone
			})
			cancel()
			wg.Wait()
			if rep.Orphans.Count != orphans || rep.Orphans.Bytes != orphans || rep.Objects != orphans+blobs || rep.Blobs != blobs ||
				rep.LostCount != lost || rep.Repaired != orphans+lost || rep.BytesHashed != blobs*256<<10 || rep.Failed != 0 {
				t.Fatal(text(rep))
			}
			st, err := w.meta.Stats(t.Context())
			if err != nil || st.Purges != orphans {
				t.Fatalf("%d objects wait for purge, want %d, %v", st.Purges, orphans, err)
			}
		})
	}
}

// killDuring runs a check in a process of its own and kills it with SIGKILL in
// mid phase, after the phase's first progress was written.
func killDuring(t *testing.T, dir, phase string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), checkEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait() // it was killed
	}()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) != 4 || f[3] != check.StateRunning {
			t.Fatalf("the other process says %q", lines.Text())
		}
		objects, _ := strconv.Atoi(f[1])
		blobs, _ := strconv.Atoi(f[2])
		if f[0] == phase && (phase == check.PhaseStorage && objects > 0 || blobs > 1) {
			return
		}
		if f[0] != phase && blobs > 0 {
			t.Fatalf("phase %s was over too soon", phase)
		}
	}
	t.Fatal("the other process ended by itself")
}

// gated is a store whose objects are opened only when the test lets them.
type gated struct {
	blob.Store
	at   chan string // an object is about to be opened
	pass chan struct{}
	free atomic.Bool // from now on all pass
}

func gate(s blob.Store) *gated {
	return &gated{Store: s, at: make(chan string), pass: make(chan struct{})}
}

func (g *gated) Open(ctx context.Context, key string) (blob.Reader, error) {
	if !g.free.Load() {
		select {
		case g.at <- key:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		select {
		case <-g.pass:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.Store.Open(ctx, key)
}

func TestStopKeepsTheCountsAndResumeTakesTheRest(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.upload("app", blobtest.Bytes(i, 100))
	}
	g := gate(w.blobs)
	c := check.New(w.meta, g, check.Options{})
	rep, err := c.Start(t.Context(), check.Request{Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-g.at
		g.pass <- struct{}{}
	}
	<-g.at // the fourth is being looked at
	if _, err := c.Start(t.Context(), check.Request{}); !errors.Is(err, fault.Busy) || !strings.Contains(err.Error(), fmt.Sprint("check ", rep.ID)) {
		t.Fatalf("a second check: %v", err)
	}
	rep, err = c.Stop(t.Context(), rep.ID)
	if err != nil || rep.State != check.StateStopped || rep.Blobs != 3 || rep.Objects != 5 || rep.Failed != 0 || rep.FinishedAt == nil {
		t.Fatalf("%s %v", text(rep), err)
	}
	g.free.Store(true)
	if old, err := c.Get(t.Context(), rep.ID); err != nil || text(old) != text(rep) {
		t.Fatalf("what is kept differs from what was told:\n%s\n%s %v", text(old), text(rep), err)
	}
	again := finish(t, c, check.Request{Resume: true})
	if again.ID != rep.ID || again.Blobs != 5 || again.Objects != 5 || again.BytesHashed != 500 || !again.Request.Deep {
		t.Fatal(text(again))
	}
	if fresh := finish(t, c, check.Request{Resume: true}); fresh.ID == rep.ID || fresh.Request.Deep {
		t.Fatalf("resume with nothing to go on with: %s", text(fresh))
	}
}

func TestStopDoesNotWaitForARate(t *testing.T) {
	w := newWorld(t)
	w.upload("app", blobtest.Bytes(1, 10<<20))
	c := check.New(w.meta, w.blobs, check.Options{})
	rep, err := c.Start(t.Context(), check.Request{Deep: true, BytesPerSecond: 1000}) // hours
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the blobs phase", func() bool {
		rep, err = c.Get(t.Context(), rep.ID)
		return err != nil || rep.Phase == check.PhaseBlobs
	})
	start := time.Now()
	if rep, err = c.Stop(t.Context(), rep.ID); err != nil || rep.State != check.StateStopped || time.Since(start) > time.Minute {
		t.Fatalf("after %s: %s, %v", time.Since(start), text(rep), err)
	}
}

func TestHistoryIsNewestFirstAndPaged(t *testing.T) {
	w := newWorld(t)
	c := check.New(w.meta, w.blobs, check.Options{})
	for range 5 {
		finish(t, c, check.Request{})
	}
	for _, tt := range []struct {
		before int64
		n      int
		want   []int64
	}{{0, 10, []int64{5, 4, 3, 2, 1}}, {0, 2, []int64{5, 4}}, {4, 2, []int64{3, 2}}, {1, 2, nil}} {
		reps, err := c.History(t.Context(), tt.before, tt.n)
		if err != nil || len(reps) != len(tt.want) {
			t.Fatalf("before %d, %d: %d reports, %v", tt.before, tt.n, len(reps), err)
		}
		for i, rep := range reps {
			if rep.ID != tt.want[i] || rep.State != check.StateDone {
				t.Errorf("before %d, %d: %s", tt.before, tt.n, text(rep))
			}
		}
	}
	for name, ask := range map[string]func(context.Context, int64) (check.Report, error){"Get": c.Get, "Wait": c.Wait, "Stop": c.Stop} {
		if _, err := ask(t.Context(), 99); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s of a check that never was: %v", name, err)
		}
	}
}

// background runs the checker until the test ends and returns the first
// check in the background that is done.
func background(t *testing.T, c *check.Checker, interval time.Duration) check.Report {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx, interval); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	var first check.Report
	eventually(t, "a check in the background", func() bool {
		reps, err := c.History(t.Context(), 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, rep := range reps {
			if rep.Trigger == check.TriggerBackground && rep.State == check.StateDone {
				first = rep
				return true
			}
		}
		return false
	})
	return first
}

func TestR7_BackgroundFindsAndPurgesOrphansInTheEnd(t *testing.T) {
	w := openWorld(t, t.TempDir(), 25*time.Hour)
	b := w.upload("app", []byte("layer"))
	damage(t, w, b, "missing")
	key := w.plant(1, 10, 0)
	rep := background(t, check.New(w.meta, w.blobs, check.Options{Window: 2 * time.Hour}), 24*time.Hour)
	if rep.Orphans.Count != 1 || rep.Repaired != 1 || rep.LostCount != 1 || rep.Lost[0].Repaired {
		t.Fatal(text(rep))
	}
	if keys := w.mustPurge(); len(keys) != 1 || keys[0] != key {
		t.Fatalf("purged %q", keys)
	}
	if _, err := w.meta.ConfirmBlob(t.Context(), "app", b.Digest); err != nil {
		t.Fatalf("a check in the background stopped a blob from being served: %v", err)
	}
}

func TestR14_BackgroundLeavesAloneWhatIsOlderThanTheDatabase(t *testing.T) {
	w := openWorld(t, t.TempDir(), 25*time.Hour)
	w.plant(1, 10, time.Hour) // before the database was made: as if it had been lost, and a new one begun
	rep := background(t, check.New(w.meta, w.blobs, check.Options{}), 24*time.Hour)
	if rep.Orphans.Count != 1 || rep.Orphans.Older != 1 || rep.Repaired != 0 {
		t.Fatal(text(rep))
	}
	if keys := w.mustPurge(); len(keys) != 0 {
		t.Fatalf("purged %q", keys)
	}
	if rep := w.check(check.Request{Repair: true}); rep.Repaired != 1 {
		t.Fatalf("asked to: %s", text(rep))
	}
}

// lines is a log that a test reads.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default: // nobody reads any more
	}
	return len(p), nil
}

func TestBackgroundWaitsForItsInterval(t *testing.T) {
	for ahead, wait := range map[time.Duration]string{time.Hour: "22h", 23 * time.Hour: "59m"} {
		w := openWorld(t, t.TempDir(), ahead)
		log := make(lines, 100)
		c := check.New(w.meta, w.blobs, check.Options{Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- c.Run(ctx, 24*time.Hour) }()
		if line := <-log; !strings.Contains(line, "no check in the background is due") || !strings.Contains(line, "next_in="+wait) {
			t.Errorf("%s after the database was made: %s", ahead, line)
		}
		cancel()
		if err := <-over; err != nil {
			t.Fatal(err)
		}
		if reps, err := c.History(t.Context(), 0, 10); err != nil || len(reps) != 0 {
			t.Fatalf("%d checks, %v", len(reps), err)
		}
	}
}

func TestBackgroundCountsTheIntervalFromTheLastOneAcrossRestarts(t *testing.T) {
	w := openWorld(t, t.TempDir(), 100*time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	first := background(t, check.New(w.meta, w.blobs, check.Options{}), 24*time.Hour)
	log := make(lines, 100)
	c := check.New(w.meta, w.blobs, check.Options{Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	over := make(chan error)
	go func() { over <- c.Run(ctx, 24*time.Hour) }()
	if line := <-log; !strings.Contains(line, "next_in=23h59m") {
		t.Errorf("right after %s: %s", text(first), line)
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
}

func TestBackgroundMakesWayAndGoesOnLater(t *testing.T) {
	w := openWorld(t, t.TempDir(), 25*time.Hour)
	for i := range 3 {
		w.upload("app", blobtest.Bytes(i, 100))
	}
	g := gate(w.blobs)
	c := check.New(w.meta, g, check.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- c.Run(ctx, 24*time.Hour) }()
	<-g.at
	g.pass <- struct{}{}
	<-g.at // the second is being looked at
	g.free.Store(true)
	if rep := finish(t, c, check.Request{}); rep.Trigger != check.TriggerManual || rep.Blobs != 3 {
		t.Fatal(text(rep))
	}
	first, err := c.Get(t.Context(), 1)
	if err != nil || first.Trigger != check.TriggerBackground || first.State != check.StateInterrupted || first.Blobs != 1 {
		t.Fatalf("%s %v", text(first), err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	done := background(t, check.New(w.meta, w.blobs, check.Options{}), 24*time.Hour)
	if done.ID != 1 || done.Blobs != 3 || done.Objects != 3 {
		t.Fatal(text(done))
	}
}

func TestEndOfRunInterruptsAndRefusesNewOnes(t *testing.T) {
	w := newWorld(t)
	w.upload("app", blobtest.Bytes(1, 10<<20))
	c := check.New(w.meta, w.blobs, check.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- c.Run(ctx, 0) }()
	rep, err := c.Start(t.Context(), check.Request{Deep: true, BytesPerSecond: 1000})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	if rep, err = c.Get(t.Context(), rep.ID); err != nil || rep.State != check.StateInterrupted || rep.FinishedAt != nil {
		t.Fatalf("%s %v", text(rep), err)
	}
	if _, err := c.Start(t.Context(), check.Request{}); !errors.Is(err, fault.Busy) {
		t.Fatalf("start after the end: %v", err)
	}
}

func TestDatabaseErrorFailsTheCheckAndTellsNoInternals(t *testing.T) {
	w := newWorld(t)
	w.upload("app", []byte("layer"))
	h := &hooked{Store: w.blobs, walk: func(func(blob.Info) error) error {
		return w.tryExec("ALTER TABLE blobs RENAME TO gone")
	}}
	c := check.New(w.meta, h, check.Options{})
	rep, err := c.Start(t.Context(), check.Request{Repair: true})
	if err != nil {
		t.Fatal(err)
	}
	if rep, err = c.Wait(t.Context(), rep.ID); err != nil || rep.State != check.StateFailed || rep.Error == "" || strings.Contains(rep.Error, "gone") || strings.Contains(rep.Error, "SELECT") {
		t.Fatalf("%s %v", text(rep), err)
	}
}

func TestMetricsCountWhatACompleteCheckFound(t *testing.T) {
	w := newWorld(t)
	w.plant(1, 123, 3*time.Hour)
	damage(t, w, w.upload("app", []byte("layer")), "missing")
	reg := prometheus.NewRegistry()
	finish(t, check.New(w.meta, w.blobs, check.Options{Metrics: reg}), check.Request{})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
	}
	if got["fairway_check_last_done_timestamp_seconds"] < 1 {
		t.Error("no time of the last check")
	}
	delete(got, "fairway_check_last_done_timestamp_seconds")
	want := map[string]float64{"fairway_check_lost_blobs": 1, "fairway_check_orphans_total": 1, "fairway_check_orphan_bytes_total": 123, "fairway_check_failed_total": 0}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A check whose end cannot be recorded is interrupted, as after a crash: whoever
// waited for it would wait without end.
func TestR7_ACheckIsOverAlsoWhereNoRowCanSaySo(t *testing.T) {
	w := newWorld(t)
	w.upload("app", []byte("layer"))
	c := check.New(w.meta, w.blobs, check.Options{})
	if err := w.tryExec("CREATE TRIGGER full BEFORE UPDATE ON checks BEGIN SELECT raise(ABORT, 'full'); END"); err != nil {
		t.Fatal(err)
	}
	rep, err := c.Start(t.Context(), check.Request{})
	if err != nil {
		t.Fatal(err)
	}
	id := rep.ID
	_, _ = c.Wait(t.Context(), id)
	if rep, err = c.Get(t.Context(), id); err == nil && rep.State == check.StateRunning {
		t.Fatalf("a check that is over is running: %s", text(rep))
	}
	if err := w.tryExec("DROP TRIGGER full"); err != nil {
		t.Fatal(err)
	}
	if rep, err = c.Get(t.Context(), id); err != nil || rep.State != check.StateInterrupted {
		t.Errorf("the check: %s, %v", text(rep), err)
	}
	// One that is running meanwhile is not taken for another.
	if rep, err = c.Start(t.Context(), check.Request{}); err != nil {
		t.Fatal(err)
	}
	if rep, err = c.Wait(t.Context(), rep.ID); err != nil || rep.State != check.StateDone {
		t.Errorf("the next check: %s, %v", text(rep), err)
	}
}

// The end of a check that made way could not be recorded, and the check that took its
// place was written down as interrupted too, while it ran.
func TestR7_ACheckThatRunsIsNotTakenForAnInterruptedOne(t *testing.T) {
	w := openWorld(t, t.TempDir(), 25*time.Hour)
	for i := range 3 {
		w.upload("app", blobtest.Bytes(i, 100))
	}
	g := gate(w.blobs)
	c := check.New(w.meta, g, check.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- c.Run(ctx, 24*time.Hour) }()
	<-g.at // the first in the background looks at a blob
	w.exec("CREATE TRIGGER full BEFORE UPDATE ON checks WHEN old.id = 1 BEGIN SELECT raise(ABORT, 'full'); END")
	rep, err := c.Start(t.Context(), check.Request{})
	if err != nil {
		t.Fatal(err)
	}
	<-g.at // it runs
	w.exec("DROP TRIGGER full")
	if first, err := c.Get(t.Context(), 1); err != nil || first.State != check.StateInterrupted {
		t.Errorf("the first check: %s, %v", text(first), err)
	}
	if row, err := w.meta.Check(t.Context(), rep.ID); err != nil || row.State != check.StateRunning {
		t.Errorf("the row of the check that runs: %s, %v", row.State, err)
	}
	g.free.Store(true)
	g.pass <- struct{}{}
	if rep, err = c.Wait(t.Context(), rep.ID); err != nil || rep.State != check.StateDone || rep.Blobs != 3 {
		t.Errorf("%s, %v", text(rep), err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
}

package inusetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// patience is how long a real runtime may take to show what was done to it.
const patience = time.Minute

// Run runs the suite. Each part leaves the runtime as it found it.
func Run(t *testing.T, r Runtime) {
	t.Run("TracesAContainerToItsContent", r.tracesAContainer)
	t.Run("StatesOfAContainer", r.states)
	t.Run("AnExitedContainerStillHasItsImage", r.exited)
	t.Run("AnImageWithoutContainers", r.image)
	t.Run("WatchTellsOfChanges", r.watchTells)
	t.Run("SnapshotsAtOnce", r.concurrent)
	t.Run("ACancelledSnapshotEnds", r.cancelled)
	if r.Move != nil {
		t.Run("RunsUnderATagThatHasMoved", r.movedTag)
	}
	if r.Move != nil && r.LoseSnapshot != nil {
		t.Run("AGuessOnlyProtects", r.guess)
	}
	if r.RemoveImage != nil {
		t.Run("RunsAfterItsImageWasRemoved", r.removedImage)
	}
	if r.Elsewhere != nil {
		t.Run("SeesOtherNamespaces", r.elsewhere)
	}
	if r.Sandbox != nil {
		t.Run("ASandboxIsNoContainer", r.sandbox)
	}
	if r.Kill != nil {
		t.Run("UnreachableIsAnErrorAndNotEmpty", r.unreachable)
	}
}

func snapshot(t testing.TB, s inuse.Source) inuse.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := s.Snapshot(ctx)
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return got
}

// eventually reads until want has nothing to complain about.
func eventually(t testing.TB, s inuse.Source, want func(inuse.Snapshot) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var complaint error
	for {
		got, err := s.Snapshot(ctx)
		if err == nil {
			err = want(got)
		}
		if err == nil {
			return
		}
		if ctx.Err() == nil || complaint == nil {
			complaint = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("after %v: %v", patience, complaint)
		}
	}
}

// find finds a container by its ID or by its name, which is where runtimes
// that give IDs themselves keep what it was called.
func find(s inuse.Snapshot, name string) (inuse.Container, bool) {
	i := slices.IndexFunc(s.Containers, func(c inuse.Container) bool {
		return c.ID == name || c.Name == name || len(c.Name) > len(name) && c.Name[len(c.Name)-len(name)-1:] == "/"+name
	})
	if i < 0 {
		return inuse.Container{}, false
	}
	return s.Containers[i], true
}

// traced complains unless c is known to run what content is.
func traced(c inuse.Container, content Content) error {
	if slices.Contains(c.Digests, content.Manifest) || slices.Contains(c.Digests, content.Config) || slices.Contains(c.ChainIDs, content.ChainID) {
		return nil
	}
	return fmt.Errorf("container %s has digests %v and chain IDs %v: none leads to manifest %s, config %s or chain %s",
		c.ID, c.Digests, c.ChainIDs, content.Manifest, content.Config, content.ChainID)
}

// foreign complains if c is said to run what only content has.
func foreign(c inuse.Container, content Content) error {
	for _, d := range []oci.Digest{content.Manifest, content.Config, content.ChainID} {
		if slices.Contains(c.Digests, d) || slices.Contains(c.ChainIDs, d) {
			return fmt.Errorf("container %s is said to run %s of %s", c.ID, d, content.Name)
		}
	}
	return nil
}

// has returns what complains unless the container is in this state and runs
// this content.
func has(name string, state inuse.State, content Content) func(inuse.Snapshot) error {
	return func(s inuse.Snapshot) error {
		c, ok := find(s, name)
		if !ok {
			return fmt.Errorf("there is no container %s", name)
		}
		if c.State != state {
			return fmt.Errorf("container %s is %s, want %s", name, c.State, state)
		}
		return traced(c, content)
	}
}

func gone(name string) func(inuse.Snapshot) error {
	return func(s inuse.Snapshot) error {
		if c, ok := find(s, name); ok {
			return fmt.Errorf("container %s is still there: %+v", name, c)
		}
		return nil
	}
}

// scene has One pulled and a container of it created, and clears up.
func (r Runtime) scene(t *testing.T, container string) inuse.Source {
	t.Helper()
	s := r.Open(t)
	r.Pull(t, r.One.Name)
	r.Create(t, container, r.One.Name)
	t.Cleanup(func() {
		if _, ok := find(snapshotForCleanup(s), container); ok {
			r.Remove(t, container)
		}
	})
	return s
}

func snapshotForCleanup(s inuse.Source) inuse.Snapshot {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got, _ := s.Snapshot(ctx) // nothing to remove then, or the test has failed already
	return got
}

func (r Runtime) tracesAContainer(t *testing.T) {
	s := r.scene(t, "traced")
	r.Start(t, "traced")
	eventually(t, s, has("traced", inuse.Running, r.One))
	got := snapshot(t, s)
	c, _ := find(got, "traced")
	if err := foreign(c, r.Two); err != nil {
		t.Error(err)
	}
	if c.Runtime != s.Name() {
		t.Errorf("it is of runtime %q, want %q", c.Runtime, s.Name())
	}
	if c.Since.IsZero() || time.Since(c.Since) > time.Hour || time.Until(c.Since) > time.Minute {
		t.Errorf("it is said to exist since %v", c.Since)
	}
	if r.ListsBlobs {
		for _, l := range append(slices.Clone(r.One.Layers), r.One.Config) {
			if !slices.Contains(c.Blobs, l) {
				t.Errorf("blob %s is missing in %v", l, c.Blobs)
			}
		}
		if !slices.Contains(c.Digests, r.One.Manifest) {
			t.Errorf("manifest %s is missing in %v", r.One.Manifest, c.Digests)
		}
		if r.One.Index != "" && !slices.Contains(c.Digests, r.One.Index) {
			t.Errorf("index %s is missing in %v", r.One.Index, c.Digests)
		}
	}
}

func (r Runtime) states(t *testing.T) {
	s := r.scene(t, "states")
	eventually(t, s, has("states", inuse.Created, r.One))
	r.Start(t, "states")
	eventually(t, s, has("states", inuse.Running, r.One))
	if r.Pause != nil {
		paused := inuse.Paused
		if r.NoPaused {
			paused = inuse.Running
		}
		r.Pause(t, "states")
		eventually(t, s, has("states", paused, r.One))
		r.Resume(t, "states")
		eventually(t, s, has("states", inuse.Running, r.One))
	}
	r.Stop(t, "states")
	eventually(t, s, has("states", inuse.Exited, r.One))
	r.Remove(t, "states")
	eventually(t, s, gone("states"))
}

func (r Runtime) exited(t *testing.T) {
	s := r.scene(t, "exited")
	r.Start(t, "exited")
	r.Stop(t, "exited")
	eventually(t, s, has("exited", inuse.Exited, r.One))
}

func (r Runtime) image(t *testing.T) {
	s := r.Open(t)
	r.Pull(t, r.One.Name)
	r.Pull(t, r.Two.Name)
	for _, content := range []Content{r.One, r.Two} {
		eventually(t, s, func(got inuse.Snapshot) error {
			for _, i := range got.Images {
				if !slices.Contains(i.Digests, content.Manifest) && !slices.Contains(i.Digests, content.Config) {
					continue
				}
				for _, l := range content.Layers {
					if r.ListsBlobs && !slices.Contains(i.Blobs, l) {
						return fmt.Errorf("image %s lists %v, without layer %s", i.Name, i.Blobs, l)
					}
				}
				return nil
			}
			return fmt.Errorf("no image has manifest %s or config %s: %+v", content.Manifest, content.Config, got.Images)
		})
	}
}

func (r Runtime) movedTag(t *testing.T) {
	s := r.scene(t, "moved")
	r.Start(t, "moved")
	r.Pull(t, r.Two.Name)
	r.Move(t, r.One, r.Two)
	t.Cleanup(func() { r.Pull(t, r.One.Name) })
	// A source opened now has never seen where the tag led to before.
	for _, s := range []inuse.Source{s, r.Open(t)} {
		eventually(t, s, has("moved", inuse.Running, r.One))
		c, _ := find(snapshot(t, s), "moved")
		if err := foreign(c, r.Two); err != nil {
			t.Error(err)
		}
	}
}

// guess: where the root file system does not tell what a container runs, its
// image's name does not either. What that leads to is kept, and no more is said.
func (r Runtime) guess(t *testing.T) {
	s := r.scene(t, "lost")
	r.Pull(t, r.Two.Name)
	r.LoseSnapshot(t, "lost")
	t.Cleanup(func() { r.Pull(t, r.One.Name) })
	for _, moved := range []bool{false, true} {
		want := r.One
		if moved {
			want = r.Two
			r.Move(t, r.One, r.Two)
		}
		// A source opened now has never seen the snapshot.
		eventually(t, r.Open(t), func(got inuse.Snapshot) error {
			c, ok := find(got, "lost")
			switch {
			case !ok:
				return errors.New("the container is gone")
			case len(c.Digests)+len(c.ChainIDs) > 0 || c.Imageless:
				return fmt.Errorf("it is said to run %v and %v, of no image: %v", c.Digests, c.ChainIDs, c.Imageless)
			case !slices.Contains(c.Blobs, want.Layers[len(want.Layers)-1]):
				return fmt.Errorf("what its name leads to is not kept: %v", c.Blobs)
			}
			return nil
		})
	}
	c, _ := find(snapshot(t, s), "lost")
	if err := foreign(c, r.Two); err != nil {
		t.Error(err)
	}
}

func (r Runtime) removedImage(t *testing.T) {
	s := r.scene(t, "orphan")
	r.Start(t, "orphan")
	r.RemoveImage(t, r.One.Name)
	t.Cleanup(func() { r.Pull(t, r.One.Name) })
	for _, s := range []inuse.Source{s, r.Open(t)} {
		eventually(t, s, has("orphan", inuse.Running, r.One))
	}
}

func (r Runtime) elsewhere(t *testing.T) {
	e := *r.Elsewhere
	s := r.Open(t)
	e.Pull(t, e.One.Name)
	e.Create(t, "elsewhere", e.One.Name)
	t.Cleanup(func() { e.Remove(t, "elsewhere") })
	e.Start(t, "elsewhere")
	eventually(t, s, has("elsewhere", inuse.Running, e.One))
}

func (r Runtime) sandbox(t *testing.T) {
	s := r.Open(t)
	before := count(snapshot(t, s))
	remove := r.Sandbox(t)
	defer remove()
	if n := count(snapshot(t, s)); n != before {
		t.Errorf("a pod without containers made %d containers of %d", n, before)
	}
}

func count(s inuse.Snapshot) (n int) {
	for _, c := range s.Containers {
		if !c.Sandbox {
			n++
		}
	}
	return n
}

func (r Runtime) watchTells(t *testing.T) {
	s := r.scene(t, "watched")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed := make(chan struct{}, 1000)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(ctx, func() { changed <- struct{}{} }) }()
	if r.NoEvents {
		if err := await(t, ended); !errors.Is(err, inuse.ErrNoEvents) {
			t.Errorf("Watch: %v, want ErrNoEvents", err)
		}
		return
	}
	await(t, changed) // it listens
	quiet(changed)
	r.Start(t, "watched")
	await(t, changed)
	quiet(changed)
	r.Stop(t, "watched")
	await(t, changed)
	cancel()
	if err := await(t, ended); err == nil {
		t.Error("Watch returned nil")
	}
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing came within %v", patience)
		panic("unreachable")
	}
}

// quiet takes events until none has come for a while: what comes then is of
// something new.
func quiet(c <-chan struct{}) {
	for {
		select {
		case <-c:
		case <-time.After(500 * time.Millisecond):
			return
		}
	}
}

func (r Runtime) concurrent(t *testing.T) {
	s := r.scene(t, "concurrent")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := has("concurrent", inuse.Created, r.One)(snapshot(t, s)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func (r Runtime) cancelled(t *testing.T) {
	s := r.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if _, err := s.Snapshot(ctx); err == nil {
		t.Error("a cancelled Snapshot succeeded")
	}
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v", took)
	}
}

func (r Runtime) unreachable(t *testing.T) {
	s := r.scene(t, "survivor")
	r.Start(t, "survivor")
	eventually(t, s, has("survivor", inuse.Running, r.One))
	ended := make(chan error, 1)
	listens := make(chan struct{}, 1000)
	go func() { ended <- s.Watch(t.Context(), func() { listens <- struct{}{} }) }()
	if !r.NoEvents {
		await(t, listens)
	}
	r.Kill(t)
	if err := await(t, ended); err == nil {
		t.Error("Watch returned nil when the runtime was killed")
	}
	for _, s := range []inuse.Source{s, r.Open(t)} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if got, err := s.Snapshot(ctx); err == nil {
			t.Errorf("a runtime that is away answered: %+v", got)
		} else if ctx.Err() != nil {
			t.Errorf("it hung until the deadline: %v", err)
		}
		cancel()
	}
	r.Restart(t)
	eventually(t, s, has("survivor", inuse.Running, r.One))
}

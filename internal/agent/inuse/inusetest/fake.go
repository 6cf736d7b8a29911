// Package inusetest owns the conformance suite of inuse.Source and an honest
// fake of one. Run checks what a driver says against what was really done to a
// runtime; the fake passes the same suite and can besides be made to fail, to
// hang and to lie once, so that tests of the packages above can be about
// moments that a real runtime reaches seldom.
package inusetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// ErrDown is what a Fake answers while it is down.
var ErrDown = errors.New("connection refused")

// Fake is a runtime in memory. Its methods may be called concurrently.
type Fake struct {
	name string

	mu         sync.Mutex
	containers map[string]inuse.Container
	images     map[string]inuse.Image
	busy       []oci.Digest
	down       error
	hang       chan struct{} // closed by Unhang; nil: answers at once
	lies       []inuse.Snapshot
	readings   int
	watchers   map[*watcher]bool
	noEvents   bool
	unseen     bool
}

type watcher struct {
	changed func()
	lost    chan error // buffered
}

// NewFake returns a runtime that is up and empty.
func NewFake(name string) *Fake {
	return &Fake{name: name, containers: map[string]inuse.Container{}, images: map[string]inuse.Image{}, watchers: map[*watcher]bool{}}
}

// Name is the source's.
func (f *Fake) Name() string { return f.name }

// Close forgets nothing: the runtime lives on.
func (f *Fake) Close() error { return nil }

// Snapshot is the source's. What it answers is what the runtime has when the
// answer is given, unless Lie said otherwise.
func (f *Fake) Snapshot(ctx context.Context) (inuse.Snapshot, error) {
	f.mu.Lock()
	f.readings++
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return inuse.Snapshot{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return inuse.Snapshot{}, f.down
	}
	if len(f.lies) > 0 {
		lie := f.lies[0]
		f.lies = f.lies[1:]
		return lie, nil
	}
	return f.truth(), nil
}

func (f *Fake) truth() inuse.Snapshot {
	s := inuse.Snapshot{Busy: slices.Clone(f.busy), PullsUnseen: f.unseen}
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		s.Containers = append(s.Containers, f.containers[id])
	}
	for _, name := range slices.Sorted(maps.Keys(f.images)) {
		s.Images = append(s.Images, f.images[name])
	}
	return s
}

// Watch is the source's.
func (f *Fake) Watch(ctx context.Context, changed func()) error {
	w := &watcher{changed: changed, lost: make(chan error, 1)}
	f.mu.Lock()
	if f.down != nil || f.noEvents {
		defer f.mu.Unlock()
		if f.noEvents {
			return inuse.ErrNoEvents
		}
		return f.down
	}
	f.watchers[w] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
	}()
	changed()
	select {
	case err := <-w.lost:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// change does what alters the runtime and tells those who watch.
func (f *Fake) change(do func()) {
	f.mu.Lock()
	do()
	all := slices.Collect(maps.Keys(f.watchers))
	f.mu.Unlock()
	for _, w := range all {
		w.changed()
	}
}

// SetContainer adds a container or replaces the one with its namespace and ID.
func (f *Fake) SetContainer(c inuse.Container) {
	f.change(func() { f.containers[c.Namespace+"/"+c.ID] = c })
}

// SetState changes the state of the container with this ID in every namespace.
func (f *Fake) SetState(id string, s inuse.State) {
	f.change(func() {
		for k, c := range f.containers {
			if c.ID == id {
				c.State = s
				f.containers[k] = c
			}
		}
	})
}

// RemoveContainer removes the container with this ID in every namespace.
func (f *Fake) RemoveContainer(id string) {
	f.change(func() { maps.DeleteFunc(f.containers, func(_ string, c inuse.Container) bool { return c.ID == id }) })
}

// SetImage adds an image or replaces the one with its namespace and name.
func (f *Fake) SetImage(i inuse.Image) {
	f.change(func() { f.images[i.Namespace+"/"+i.Name] = i })
}

// RemoveImage removes the image with this name in every namespace.
func (f *Fake) RemoveImage(name string) {
	f.change(func() { maps.DeleteFunc(f.images, func(_ string, i inuse.Image) bool { return i.Name == name }) })
}

// SetBusy says what is being pulled.
func (f *Fake) SetBusy(digests ...oci.Digest) {
	f.change(func() { f.busy = slices.Clone(digests) })
}

// HidePulls makes it one that does not tell what is being pulled.
func (f *Fake) HidePulls() {
	f.change(func() { f.unseen = true })
}

// Lie makes the next readings answer these snapshots, one each, without an
// event. What the runtime has is as it was.
func (f *Fake) Lie(answers ...inuse.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lies = append(f.lies, answers...)
}

// Mute makes the runtime one without events; those who watch are cut off.
func (f *Fake) Mute() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noEvents = true
	f.cut(inuse.ErrNoEvents)
}

// Kill makes it unreachable: readings fail and those who watch are cut off.
func (f *Fake) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = ErrDown
	f.cut(ErrDown)
}

func (f *Fake) cut(err error) {
	for w := range f.watchers {
		w.lost <- err
		delete(f.watchers, w)
	}
}

// Restart makes it reachable again, with all it had.
func (f *Fake) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = nil
}

// Hang makes readings wait for their context, or for Unhang.
func (f *Fake) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hang == nil {
		f.hang = make(chan struct{})
	}
}

// Unhang lets all waiting readings answer.
func (f *Fake) Unhang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hang != nil {
		close(f.hang)
		f.hang = nil
	}
}

// Readings is how often it was asked.
func (f *Fake) Readings() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readings
}

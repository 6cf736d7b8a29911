package inusetest_test

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/oci"
)

func content(name string) inusetest.Content {
	d := func(part string) oci.Digest { return digest.FromString(name + part) }
	return inusetest.Content{
		Name: name, Index: d("index"), Manifest: d("manifest"), Config: d("config"), ChainID: d("chain"),
		Layers: []oci.Digest{digest.FromString("base"), d("layer")},
	}
}

// TestFake holds the fake to what real runtimes are held to.
func TestFake(t *testing.T) {
	f := inusetest.NewFake("fake")
	inusetest.Run(t, runtime(f, ""))
}

func runtime(f *inusetest.Fake, namespace string) inusetest.Runtime {
	r := inusetest.Runtime{One: content("one"), Two: content("two"), ListsBlobs: true}
	images := map[string]inusetest.Content{"one": r.One, "two": r.Two}
	at := func(c inusetest.Content) inuse.Image {
		return inuse.Image{
			Runtime: "fake", Namespace: namespace, Name: c.Name,
			Digests: []oci.Digest{c.Index, c.Manifest, c.Config}, Blobs: append([]oci.Digest{c.Config}, c.Layers...),
		}
	}
	state := func(s inuse.State) func(testing.TB, string) {
		return func(_ testing.TB, id string) { f.SetState(id, s) }
	}
	r.Open = func(testing.TB) inuse.Source { return f }
	r.Pull = func(_ testing.TB, name string) { f.SetImage(at(images[name])) }
	r.RemoveImage = func(_ testing.TB, name string) { f.RemoveImage(name) }
	r.Move = func(_ testing.TB, from, to inusetest.Content) {
		i := at(to)
		i.Name = from.Name
		f.SetImage(i)
	}
	r.Create = func(_ testing.TB, id, name string) {
		i, c := at(images[name]), images[name]
		f.SetContainer(inuse.Container{
			Runtime: "fake", Namespace: namespace, ID: id, Image: name, State: inuse.Created, Since: time.Now(),
			Digests: i.Digests, Blobs: i.Blobs, ChainIDs: []oci.Digest{c.ChainID},
		})
	}
	lost := map[string]string{} // images of containers without a snapshot
	r.LoseSnapshot = func(_ testing.TB, id string) {
		lost[id] = r.One.Name
		f.SetContainer(inuse.Container{
			Runtime: "fake", Namespace: namespace, ID: id, Image: r.One.Name, State: inuse.Created, Since: time.Now(), Blobs: at(r.One).Blobs,
		})
	}
	move := r.Move
	r.Move = func(t testing.TB, from, to inusetest.Content) {
		move(t, from, to)
		for id, name := range lost {
			if name == from.Name {
				f.SetContainer(inuse.Container{
					Runtime: "fake", Namespace: namespace, ID: id, Image: name, State: inuse.Created, Since: time.Now(), Blobs: at(to).Blobs,
				})
			}
			delete(lost, id)
		}
	}
	r.Start, r.Resume = state(inuse.Running), state(inuse.Running)
	r.Pause, r.Stop = state(inuse.Paused), state(inuse.Exited)
	r.Remove = func(_ testing.TB, id string) { f.RemoveContainer(id) }
	r.Kill = func(testing.TB) { f.Kill() }
	r.Restart = func(testing.TB) { f.Restart() }
	r.Sandbox = func(testing.TB) func() {
		f.SetContainer(inuse.Container{Runtime: "fake", ID: "pod", State: inuse.Running, Sandbox: true})
		return func() { f.RemoveContainer("pod") }
	}
	if namespace == "" {
		e := runtime(f, "elsewhere")
		r.Elsewhere = &e
	}
	return r
}

// TestFake_Mute is the fake as a runtime without events.
func TestFake_Mute(t *testing.T) {
	f := inusetest.NewFake("fake")
	f.Mute()
	r := runtime(f, "")
	r.NoEvents = true
	inusetest.Run(t, r)
}

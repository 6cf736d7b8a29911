package inusetest

import (
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Content is what one image truly consists of.
type Content struct {
	Name     string     // as it is pulled, such as 127.0.0.1:5000/one:1
	Index    oci.Digest // "" where the name leads to a manifest
	Manifest oci.Digest
	Config   oci.Digest
	Layers   []oci.Digest
	ChainID  oci.Digest // of all layers
}

// Runtime is a runtime that the suite drives. Its functions do to the runtime
// itself what they say, past the Source, and return when it is done; a nil one
// is an act that this runtime does not know, and what needs it is not run.
// The runtime is the test's own: everything the suite makes it removes.
type Runtime struct {
	// Open makes another source of the runtime.
	Open func(t testing.TB) inuse.Source
	// One and Two can be pulled. They share at least their first layer, and
	// their top layers differ.
	One, Two Content

	Pull        func(t testing.TB, name string)
	RemoveImage func(t testing.TB, name string)
	// Move lets the name of image from lead to what the image to is, as a pull
	// of a tag that has moved does.
	Move func(t testing.TB, from, to Content)

	Create func(t testing.TB, container, image string)
	Start  func(t testing.TB, container string) // a process that lives until Stop
	Pause  func(t testing.TB, container string)
	Resume func(t testing.TB, container string)
	Stop   func(t testing.TB, container string) // its process ends, the container stays
	Remove func(t testing.TB, container string) // also while it runs

	// LoseSnapshot removes what the runtime knows of the root file system of a
	// container that was never started.
	LoseSnapshot func(t testing.TB, container string)

	Kill    func(t testing.TB) // the runtime's daemon; containers live on
	Restart func(t testing.TB) // after Kill; returns when it answers

	// Elsewhere is the same runtime in another namespace.
	Elsewhere *Runtime
	// Sandbox makes a pod without containers, and returns how to remove it.
	Sandbox func(t testing.TB) (remove func())

	ListsBlobs bool // its Source can tell the layers of images
	NoEvents   bool // Watch returns ErrNoEvents
	NoPaused   bool // it can pause, but its Source sees a running container (CRI)
}

package inuse

import (
	"context"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// State is what a container does.
type State string

const (
	Running State = "running"
	Paused  State = "paused"
	// Created is a container that was never started, or has no process now but
	// may be given one at any moment.
	Created State = "created"
	// Exited is a container whose process is over. It still has its image.
	Exited State = "exited"
	// Unsure is a state that the runtime did not name or that is not known
	// here. It counts as running.
	Unsure State = "unknown"
)

// Active reports whether the container's data must stay at any pressure (N1).
// Everything but Exited is, a state that is not known here too.
func (s State) Active() bool { return s != Exited }

// Container is one container of one runtime.
type Container struct {
	Runtime   string // the Source's name
	Namespace string // containerd's or Kubernetes' namespace, "" where there is none
	ID        string
	Name      string
	State     State
	Image     string // as the runtime names it; for people only
	// Digests are of indexes, manifests and configs that the container is
	// known to run. A tag's present target is in it only where the container's
	// own root file system shows the same content: a guess may only protect (N13).
	Digests []oci.Digest
	// ChainIDs are the top chain IDs of the root file system (image-spec,
	// config.md §Layer ChainID). A container with neither Digests nor ChainIDs
	// cannot be traced to any content, and may use any, unless it is Imageless.
	ChainIDs []oci.Digest
	// Imageless says that it is certain to use no image: the runtime itself says that
	// it was made of none, or it has no root file system. What is merely not known does not count.
	Imageless bool
	// Blobs are configs and layers, where the runtime can list them. Where the
	// content could not be traced, those that the image's name leads to now are
	// here: to be kept on doubt, not known to be what runs.
	Blobs []oci.Digest
	// Sandbox is what holds a pod's namespaces (pause). It uses its image as any
	// container does, but is not counted as one.
	Sandbox bool
	Since   time.Time // when it was created; zero if unknown
}

// Image is an image that is present in a runtime.
type Image struct {
	Runtime   string
	Namespace string
	Name      string
	Digests   []oci.Digest // of indexes, manifests and configs
	Blobs     []oci.Digest // configs and layers, where the runtime can list them
	SizeBytes int64        // as the runtime counts, 0 if it does not say
}

// Snapshot is one full answer of one source.
type Snapshot struct {
	Containers []Container
	Images     []Image
	Busy       []oci.Digest // what is being pulled, and what is leased
	// PullsUnseen says that the runtime does not tell what is being pulled, so
	// that an image which it has not yet may be one.
	PullsUnseen bool
}

// Source is one container runtime. Its methods may be called concurrently.
// Drivers are checked by inusetest.
type Source interface {
	// Name is for people and labels of metrics, such as "containerd". It is
	// unique among the sources of a Tracker.
	Name() string
	// Snapshot asks the runtime for everything. An answer that may not be
	// complete is an error, never a shorter list.
	Snapshot(ctx context.Context) (Snapshot, error)
	// Watch calls changed whenever anything that Snapshot shows may have
	// changed, and once when it has begun to listen, until the connection is
	// lost or ctx is done; it never returns nil. It returns ErrNoEvents at once
	// where the runtime has no events, so that only full lists are left.
	Watch(ctx context.Context, changed func()) error
	Close() error
}

// SourceStatus is how a source answers.
type SourceStatus struct {
	Name       string
	Up         bool      // the last request was answered
	Answered   time.Time // when the last answer that was received had been asked for; zero for never
	Since      time.Time // since when Up is what it is
	Error      string    // why it is not up, for operators
	Containers int
	Images     int
}

// Usage is what was known at one moment. It is immutable.
type Usage struct {
	// At is when the oldest answer in it was asked for; zero while a source has
	// never answered, and where there is no source.
	At         time.Time
	Containers []Container
	Images     []Image
	Busy       []oci.Digest
	// PullsUnseen says that there are runtimes whose pulls are not in Busy.
	PullsUnseen bool
	// Seq grows with each reading that has come in, whether or not it changed
	// anything: see Same. What Ask returns has that of the belief it is.
	Seq     uint64
	Unknown []SourceStatus // sources that could not be asked; what they said last is still above
	Sources []SourceStatus // all of them
}

// None is the source of a node that has no container runtime: it answers that
// there is nothing, which is different from not answering.
type None struct{}

// Name says so.
func (None) Name() string { return "none" }

// Snapshot is empty.
func (None) Snapshot(context.Context) (Snapshot, error) { return Snapshot{}, nil }

// Watch waits for ctx.
func (None) Watch(ctx context.Context, changed func()) error {
	changed()
	<-ctx.Done()
	return ctx.Err()
}

// Close does nothing.
func (None) Close() error { return nil }

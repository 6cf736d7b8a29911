package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// reading is one reading of one namespace.
type reading struct {
	*Source
	namespace string
	documents *generation
	graph     *graph
	byName    map[string]*imagesapi.Image
	rootless  map[string]bool // by ID of containers
}

// snapshot asks for what is under way first and for what is there after it,
// so that a pull that ends meanwhile is seen in one place at least.
func (r *reading) snapshot(ctx context.Context) (inuse.Snapshot, error) {
	var s inuse.Snapshot
	busy, err := r.busy(ctx)
	if err != nil {
		return s, err
	}
	if r.graph, err = r.readGraph(ctx); err != nil {
		return s, err
	}
	if s.Images, err = r.readImages(ctx); err != nil {
		return s, err
	}
	if err := r.graph.learnConfigs(ctx); err != nil {
		return s, err
	}
	if s.Containers, err = r.readContainers(ctx); err != nil {
		return s, err
	}
	for d := range busy {
		tree, err := r.graph.below(ctx, d)
		if err != nil {
			return s, err
		}
		for _, d := range tree.all() {
			busy[d] = true
		}
	}
	s.Busy = slices.Sorted(maps.Keys(busy))
	return s, nil
}

var digestInText = regexp.MustCompile(`sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}`)

// busy are the digests of ingests, which are named in their references by all
// known clients, and what leases hold: content, and snapshots by chain ID.
func (r *reading) busy(ctx context.Context) (map[oci.Digest]bool, error) {
	busy := map[oci.Digest]bool{}
	ingests, err := r.content.ListStatuses(ctx, &contentapi.ListStatusesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list ingests: %w", err)
	}
	for _, st := range ingests.GetStatuses() {
		for _, d := range digestInText.FindAllString(st.GetRef()+" "+st.GetExpected(), -1) {
			busy[oci.Digest(d)] = true
		}
	}
	leases, err := r.leases.List(ctx, &leasesapi.ListRequest{})
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	for _, l := range leases.GetLeases() {
		held, err := r.leases.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: l.GetID()})
		if isNotFound(err) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list what lease %s holds: %w", l.GetID(), err)
		}
		for _, resource := range held.GetResources() {
			if d, err := oci.ParseDigest(resource.GetID()); err == nil {
				busy[d] = true
			}
		}
	}
	return busy, nil
}

func (r *reading) readImages(ctx context.Context) ([]inuse.Image, error) {
	list, err := r.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	r.byName = make(map[string]*imagesapi.Image, len(list.GetImages()))
	var all []inuse.Image
	for _, i := range list.GetImages() {
		r.byName[i.GetName()] = i
		target, err := oci.ParseDigest(i.GetTarget().GetDigest())
		if err != nil {
			continue // an algorithm that cannot be in the cache either
		}
		t, err := r.graph.below(ctx, target)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.GetName(), err)
		}
		all = append(all, inuse.Image{
			Runtime: r.name, Namespace: r.namespace, Name: i.GetName(),
			Digests: t.digests(), Blobs: t.blobs(), SizeBytes: t.sizeBytes,
		})
	}
	return all, nil
}

func (r *reading) readContainers(ctx context.Context) ([]inuse.Container, error) {
	list, err := r.listContainers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	// Tasks come after containers: one that was started in between is running.
	tasks, err := r.tasks.List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	states := map[string]inuse.State{}
	for _, t := range tasks.GetTasks() {
		states[t.GetID()] = stateOf(t.GetStatus())
	}
	if err := r.askCRI(ctx, list, states); err != nil {
		return nil, err
	}
	var all []inuse.Container
	for _, c := range list {
		one, err := r.container(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.GetID(), err)
		}
		one.State = inuse.Created
		state, ok := states[c.GetID()]
		if ok {
			one.State = state
			delete(states, c.GetID())
		}
		one.Imageless = !ok && r.rootless[c.GetID()]
		all = append(all, one)
	}
	for _, id := range slices.Sorted(maps.Keys(states)) {
		// A process whose container's record is gone runs all the same.
		all = append(all, inuse.Container{Runtime: r.name, Namespace: r.namespace, ID: id, Name: id, State: states[id]})
	}
	return all, nil
}

func (r *reading) listContainers(ctx context.Context) ([]*containersapi.Container, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.containers.ListStream(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	var all []*containersapi.Container
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		c := m.GetContainer()
		if rootless(c) {
			r.rootless[c.GetID()] = true
		}
		c.Spec, c.Extensions = nil, nil // the larger part of it, of no use from here on
		all = append(all, c)
	}
}

// rootless reports that a container has no root file system before a task gives it
// one: no snapshot, and in its spec the directory of the task's bundle. While there is
// no task it is certain that it uses no image. With one nothing is certain: the root
// that BuildKit, and Docker with a namespace of its own, give a task is made of images
// that containerd does not name, and a directory elsewhere may be an image that
// somebody mounted.
func rootless(c *containersapi.Container) bool {
	if c.GetImage() != "" || c.GetSnapshotKey() != "" {
		return false
	}
	var spec struct {
		Root struct {
			Path *string `json:"path"`
		} `json:"root"`
	}
	if err := json.Unmarshal(c.GetSpec().GetValue(), &spec); err != nil || spec.Root.Path == nil {
		return false
	}
	return *spec.Root.Path == bundleRoot
}

// bundleRoot is where a bundle's root file system is mounted, relative to it.
const bundleRoot = "rootfs"

func stateOf(s task.Status) inuse.State {
	switch s {
	case task.Status_CREATED:
		return inuse.Created
	case task.Status_RUNNING:
		return inuse.Running
	case task.Status_PAUSED, task.Status_PAUSING:
		return inuse.Paused
	case task.Status_STOPPED:
		return inuse.Exited
	default:
		return inuse.Unsure
	}
}

// dockerNamespace is where Docker has its containers.
const dockerNamespace = "moby"

// Labels of the CRI plugin.
const (
	criKind       = "io.cri-containerd.kind"
	criNamespace  = "k8s.io"
	criName       = "io.kubernetes.container.name"
	criPod        = "io.kubernetes.pod.name"
	kindContainer = "container"
	kindSandbox   = "sandbox"
)

// askCRI adds the states of CRI's containers that have no task. Where the
// plugin does not answer, they stay without one, which counts as Created.
func (r *reading) askCRI(ctx context.Context, list []*containersapi.Container, states map[string]inuse.State) error {
	untold := func(c *containersapi.Container) bool {
		_, told := states[c.GetID()]
		return !told && c.GetLabels()[criKind] == kindContainer
	}
	if r.namespace != criNamespace || !slices.ContainsFunc(list, untold) {
		return nil
	}
	answer, err := r.cri.ListContainers(ctx, &criapi.ListContainersRequest{})
	if err != nil {
		r.log.Debug("containerd's CRI plugin does not tell the states of its containers", "runtime", r.name, "err", err)
		return ctx.Err()
	}
	ended := map[string]bool{}
	for _, c := range answer.GetContainers() {
		ended[c.GetId()] = c.GetState() == criapi.ContainerState_CONTAINER_EXITED
	}
	for _, c := range list {
		if untold(c) && ended[c.GetID()] {
			states[c.GetID()] = inuse.Exited
		}
	}
	return nil
}

func (r *reading) container(ctx context.Context, c *containersapi.Container) (inuse.Container, error) {
	labels := c.GetLabels()
	one := inuse.Container{
		Runtime: r.name, Namespace: r.namespace, ID: c.GetID(), Name: c.GetID(), Image: c.GetImage(),
		Sandbox: labels[criKind] == kindSandbox,
	}
	if name := labels[criName]; name != "" {
		one.Name = labels[criPod] + "/" + name
	}
	if at := c.GetCreatedAt(); at != nil {
		one.Since = at.AsTime()
	}
	chain, err := r.chainOf(ctx, c.GetSnapshotter(), c.GetSnapshotKey())
	if err != nil {
		return one, err
	}
	if chain == "" {
		return one, r.guess(ctx, c, &one)
	}
	one.ChainIDs = []oci.Digest{chain}
	t, err := r.graph.above(ctx, chain)
	one.Digests, one.Blobs = t.digests(), t.blobs()
	return one, err
}

// depthMax bounds the walk up a container's own snapshots: the one for its
// writes and one with mapped owners.
const depthMax = 8

// chainOf finds the nearest snapshot above key that is named by a chain ID; ""
// if there is none.
func (r *reading) chainOf(ctx context.Context, snapshotter, key string) (oci.Digest, error) {
	if snapshotter == "" || key == "" {
		return "", nil
	}
	for range depthMax {
		st, err := r.snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: key})
		switch status.Code(err) {
		case codes.OK:
		case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
			return "", fmt.Errorf("snapshot %s of %s: %w", key, snapshotter, err)
		default:
			// It is gone, or its snapshotter is no longer installed: that one
			// container cannot be traced, the others can.
			r.log.Debug("a container's snapshot cannot be looked up", "runtime", r.name, "namespace", r.namespace, "snapshot", key, "err", err)
			return "", nil
		}
		key = st.GetInfo().GetParent()
		if d, err := oci.ParseDigest(key); err == nil {
			return d, nil
		}
		if key == "" {
			return "", nil
		}
	}
	return "", nil
}

// guess is for a container whose snapshot does not tell what it runs. What its
// image's name leads to now is to be kept, and no more: the name may have moved,
// and no time in the records excludes that, since clocks are set back.
func (r *reading) guess(ctx context.Context, c *containersapi.Container, one *inuse.Container) error {
	if r.namespace == dockerNamespace {
		return nil // Docker keeps names and snapshots to itself, and can trace it
	}
	image := r.byName[c.GetImage()]
	target, err := oci.ParseDigest(image.GetTarget().GetDigest())
	if err != nil {
		return nil //nolint:nilerr // no such image, or no digest: nothing to guess by
	}
	t, err := r.graph.below(ctx, target)
	one.Blobs = t.all()
	return err
}

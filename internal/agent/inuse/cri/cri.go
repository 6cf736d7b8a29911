// Package cri asks a runtime over the Kubernetes Container Runtime Interface,
// version v1: CRI-O, or containerd where its own API is not to be had.
//
// The CRI names a container's image by what the runtime calls its ID: the
// config's digest, with or without "sha256:", or a repository with a digest.
// What is known of that image (manifest and index digests, chain ID) is added
// from the list of images. A tag in a container's description is what somebody
// once asked for and is never looked up.
//
// The CRI tells neither layers nor what is being pulled, and sees one
// containerd namespace only. Sandboxes are no containers; while there are some
// ready, the images that the runtime has pinned, which is what it makes
// sandboxes of, count as used by them.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Options of a Source.
type Options struct {
	Path string       // of the socket
	Name string       // "cri" if empty
	Log  *slog.Logger // may be nil
}

// Source is one runtime. It implements inuse.Source.
type Source struct {
	name    string
	log     *slog.Logger
	conn    *grpc.ClientConn
	runtime criapi.RuntimeServiceClient
	images  criapi.ImageServiceClient

	mu     sync.Mutex
	chains map[string]oci.Digest // by image ID, of the last reading; "" where the runtime does not tell
}

// New returns the source of the runtime at a socket, which need not exist.
func New(o Options) (*Source, error) {
	if o.Name == "" {
		o.Name = "cri"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	conn, err := inuse.Dial(o.Path)
	if err != nil {
		return nil, fmt.Errorf("CRI at %s: %w", o.Path, err)
	}
	return &Source{
		name: o.Name, log: o.Log, conn: conn,
		runtime: criapi.NewRuntimeServiceClient(conn), images: criapi.NewImageServiceClient(conn),
	}, nil
}

// Name is of inuse.Source.
func (s *Source) Name() string { return s.name }

// Close ends the connection.
func (s *Source) Close() error { return s.conn.Close() }

// Probe reports whether the CRI answers at this socket.
func (s *Source) Probe(ctx context.Context) error {
	_, err := s.runtime.Version(ctx, &criapi.VersionRequest{})
	return err
}

// Snapshot is of inuse.Source.
func (s *Source) Snapshot(ctx context.Context) (inuse.Snapshot, error) {
	images, err := s.images.ListImages(ctx, &criapi.ListImagesRequest{})
	if err != nil {
		return inuse.Snapshot{}, fmt.Errorf("list images of the CRI: %w", err)
	}
	containers, err := s.runtime.ListContainers(ctx, &criapi.ListContainersRequest{})
	if err != nil {
		return inuse.Snapshot{}, fmt.Errorf("list containers of the CRI: %w", err)
	}
	sandboxes, err := s.runtime.ListPodSandbox(ctx, &criapi.ListPodSandboxRequest{})
	if err != nil {
		return inuse.Snapshot{}, fmt.Errorf("list sandboxes of the CRI: %w", err)
	}
	known := s.learn(ctx, images.GetImages())
	all := inuse.Snapshot{PullsUnseen: true}
	for _, i := range images.GetImages() {
		all.Images = append(all.Images, s.image(i)...)
	}
	for _, c := range containers.GetContainers() {
		all.Containers = append(all.Containers, s.container(c, known))
	}
	all.Containers = append(all.Containers, s.sandboxes(sandboxes.GetItems(), images.GetImages())...)
	return all, ctx.Err()
}

// content is what is known of an image.
type content struct {
	digests []oci.Digest
	chain   oci.Digest
}

// learn collects what is known of each image, by every digest it has.
func (s *Source) learn(ctx context.Context, images []*criapi.Image) map[oci.Digest]content {
	s.mu.Lock()
	before := s.chains
	s.mu.Unlock()
	chains := make(map[string]oci.Digest, len(images))
	known := map[oci.Digest]content{}
	for _, i := range images {
		chain, ok := before[i.GetId()]
		if !ok {
			if chain, ok = s.askChain(ctx, i.GetId()); !ok {
				continue // asked again in the next reading
			}
		}
		chains[i.GetId()] = chain
	}
	for _, i := range images {
		c := content{digests: digestsOf(i), chain: chains[i.GetId()]}
		for _, d := range c.digests {
			known[d] = c
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains = chains
	return known
}

// askChain computes the chain ID from what both CRI-O and containerd add to a
// verbose status. It is one more way to trace a container and no more, so a
// runtime that does not tell it is well without.
func (s *Source) askChain(ctx context.Context, id string) (chain oci.Digest, ok bool) {
	st, err := s.images.ImageStatus(ctx, &criapi.ImageStatusRequest{Image: &criapi.ImageSpec{Image: id}, Verbose: true})
	if err != nil {
		s.log.Debug("the CRI does not tell an image's status", "runtime", s.name, "image", id, "err", err)
		return "", false
	}
	var info struct {
		ImageSpec struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			} `json:"rootfs"`
		} `json:"imageSpec"`
	}
	if json.Unmarshal([]byte(st.GetInfo()["info"]), &info) != nil {
		return "", true
	}
	var diffs []oci.Digest
	for _, text := range info.ImageSpec.RootFS.DiffIDs {
		d, err := oci.ParseDigest(text)
		if err != nil {
			return "", true
		}
		diffs = append(diffs, d)
	}
	if len(diffs) == 0 {
		return "", true
	}
	return identity.ChainID(diffs), true
}

// digestIn finds the digest in an image ID or reference: "sha256:HEX", bare
// hex as CRI-O writes it, or "repository@sha256:HEX".
func digestIn(text string) (oci.Digest, bool) {
	if _, after, ok := strings.Cut(text, "@"); ok {
		text = after
	} else if len(text) == 64 && !strings.Contains(text, ":") {
		text = "sha256:" + text
	}
	d, err := oci.ParseDigest(text)
	return d, err == nil
}

func digestsOf(i *criapi.Image) []oci.Digest {
	all := map[oci.Digest]bool{}
	for _, text := range append([]string{i.GetId()}, i.GetRepoDigests()...) {
		if d, ok := digestIn(text); ok {
			all[d] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (s *Source) image(i *criapi.Image) (all []inuse.Image) {
	names := i.GetRepoTags()
	if len(names) == 0 {
		names = append(names, i.GetRepoDigests()...)
	}
	if len(names) == 0 {
		names = append(names, i.GetId())
	}
	for _, name := range names {
		all = append(all, inuse.Image{Runtime: s.name, Name: name, Digests: digestsOf(i), SizeBytes: int64(min(i.GetSize(), 1<<62))})
	}
	return all
}

func (s *Source) container(c *criapi.Container, known map[oci.Digest]content) inuse.Container {
	one := inuse.Container{
		Runtime: s.name, Namespace: c.GetLabels()["io.kubernetes.pod.namespace"],
		ID: c.GetId(), Name: c.GetMetadata().GetName(), Image: c.GetImage().GetUserSpecifiedImage(),
		State: stateOf(c.GetState()), Since: time.Unix(0, c.GetCreatedAt()),
	}
	if one.Image == "" {
		one.Image = c.GetImage().GetImage()
	}
	if pod := c.GetLabels()["io.kubernetes.pod.name"]; pod != "" {
		one.Name = pod + "/" + one.Name
	}
	digests, chains := map[oci.Digest]bool{}, map[oci.Digest]bool{}
	for _, text := range []string{c.GetImageId(), c.GetImageRef(), c.GetImage().GetImage()} {
		d, ok := digestIn(text)
		if !ok {
			continue
		}
		digests[d] = true
		for _, d := range known[d].digests {
			digests[d] = true
		}
		if chain := known[d].chain; chain != "" {
			chains[chain] = true
		}
	}
	one.Digests, one.ChainIDs = slices.Sorted(maps.Keys(digests)), slices.Sorted(maps.Keys(chains))
	return one
}

func stateOf(s criapi.ContainerState) inuse.State {
	switch s {
	case criapi.ContainerState_CONTAINER_CREATED:
		return inuse.Created
	case criapi.ContainerState_CONTAINER_RUNNING:
		return inuse.Running
	case criapi.ContainerState_CONTAINER_EXITED:
		return inuse.Exited
	default:
		return inuse.Unsure
	}
}

// sandboxes returns those that are ready, as users of the pinned images. A
// runtime that pins none does not tell what sandboxes are made of; naming them
// without it would only make them containers that cannot be traced.
func (s *Source) sandboxes(list []*criapi.PodSandbox, images []*criapi.Image) (all []inuse.Container) {
	pinned := map[oci.Digest]bool{}
	for _, i := range images {
		if i.GetPinned() {
			for _, d := range digestsOf(i) {
				pinned[d] = true
			}
		}
	}
	if len(pinned) == 0 {
		return nil
	}
	for _, p := range list {
		if p.GetState() != criapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		all = append(all, inuse.Container{
			Runtime: s.name, Namespace: p.GetMetadata().GetNamespace(), ID: p.GetId(), Name: p.GetMetadata().GetName(),
			State: inuse.Running, Digests: slices.Sorted(maps.Keys(pinned)), Sandbox: true, Since: time.Unix(0, p.GetCreatedAt()),
		})
	}
	return all
}

// Watch is of inuse.Source. Runtimes before Kubernetes 1.26, and CRI-O unless
// it is told to, send no events; none at all are sent of images.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	stream, err := s.runtime.GetContainerEvents(ctx, &criapi.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("ask for the CRI's events: %w", err)
	}
	// Neither the server nor the first event says that it listens or that it
	// does not, so this is told before it is certain.
	changed()
	for {
		_, err := stream.Recv()
		switch {
		case err == nil:
			changed()
		case status.Code(err) == codes.Unimplemented:
			return inuse.ErrNoEvents
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the CRI's events: %w", io.ErrUnexpectedEOF)
		default:
			return fmt.Errorf("the CRI's events: %w", err)
		}
	}
}

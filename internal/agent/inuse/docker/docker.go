// Package docker asks an engine over the Docker Engine API: Docker, or
// Podman's service, which speaks it too.
//
// A container's image is its image ID, which is the config's digest or, with
// Docker's containerd image store, the digest of an index or manifest. What the
// list and the inspection of images tell of that ID (repository digests, layer
// diff IDs) is added; a container's image name is never looked up. The engine
// tells neither the digests of layers nor what is being pulled.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/client"
	"github.com/opencontainers/image-spec/identity"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Options of a Source.
type Options struct {
	Path string       // of the socket
	Name string       // "docker" if empty
	Log  *slog.Logger // may be nil
}

// Source is one engine. It implements inuse.Source.
type Source struct {
	name      string
	log       *slog.Logger
	client    *client.Client
	transport *http.Transport

	mu     sync.Mutex
	chains map[string]oci.Digest // by image ID, of the last reading
}

// New returns the source of the engine at a socket, which need not exist.
func New(o Options) (*Source, error) {
	if o.Name == "" {
		o.Name = "docker"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dialer := net.Dialer{Timeout: 10 * time.Second}
	transport := &http.Transport{
		MaxIdleConns: 6, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", o.Path)
		},
	}
	c, err := client.New(client.WithHost("unix://"+o.Path),
		client.WithHTTPClient(&http.Client{Transport: bounding{transport}, CheckRedirect: client.CheckRedirect}))
	if err != nil {
		return nil, fmt.Errorf("the Docker API at %s: %w", o.Path, err)
	}
	return &Source{name: o.Name, log: o.Log, client: c, transport: transport}, nil
}

// answerMax bounds an answer, in bytes: the socket may be one of a user. A list
// that is larger is an error, not a shorter list.
const answerMax = 32 << 20

// bounding has the reading of an answer fail beyond answerMax. Events have no end.
type bounding struct{ *http.Transport }

// RoundTrip is of http.RoundTripper.
func (b bounding) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.Transport.RoundTrip(req)
	if err == nil && !strings.HasSuffix(req.URL.Path, "/events") {
		res.Body = &bounded{ReadCloser: res.Body, left: answerMax}
	}
	return res, err
}

type bounded struct {
	io.ReadCloser
	left int
}

// Read is of io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("the engine's answer is larger than %d bytes", answerMax)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Name is of inuse.Source.
func (s *Source) Name() string { return s.name }

// Close ends idle connections.
func (s *Source) Close() error {
	s.transport.CloseIdleConnections()
	return s.client.Close()
}

// Probe reports whether the Docker API answers at this socket.
func (s *Source) Probe(ctx context.Context) error {
	_, err := s.client.Ping(ctx, client.PingOptions{})
	return err
}

// Snapshot is of inuse.Source.
func (s *Source) Snapshot(ctx context.Context) (inuse.Snapshot, error) {
	images, err := s.client.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return inuse.Snapshot{}, fmt.Errorf("list the engine's images: %w", err)
	}
	containers, err := s.client.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return inuse.Snapshot{}, fmt.Errorf("list the engine's containers: %w", err)
	}
	known := map[string][]oci.Digest{}
	all := inuse.Snapshot{PullsUnseen: true}
	for _, i := range images.Items {
		known[i.ID] = digestsOf(i)
		all.Images = append(all.Images, s.image(i)...)
	}
	chains, err := s.learn(ctx, images.Items, containers.Items)
	if err != nil {
		return inuse.Snapshot{}, err
	}
	for _, c := range containers.Items {
		all.Containers = append(all.Containers, s.container(c, known, chains))
	}
	return all, nil
}

// learn finds the chain IDs of the images that containers are made of. What an
// image ID consists of never changes, so it is asked once.
func (s *Source) learn(ctx context.Context, images []image.Summary, containers []container.Summary) (map[string]oci.Digest, error) {
	s.mu.Lock()
	before := s.chains
	s.mu.Unlock()
	chains := map[string]oci.Digest{}
	for _, c := range containers {
		id := c.ImageID
		if _, ok := chains[id]; ok || id == "" {
			continue
		}
		if chain, ok := before[id]; ok {
			chains[id] = chain
			continue
		}
		inspected, err := s.client.ImageInspect(ctx, id)
		if errdefs.IsNotFound(err) {
			continue // removed by force; the ID is all that is known
		}
		if err != nil {
			return nil, fmt.Errorf("inspect image %s: %w", id, err)
		}
		chains[id] = chainOf(inspected.RootFS.Layers)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains = chains
	return chains, nil
}

func chainOf(layers []string) oci.Digest {
	var diffs []oci.Digest
	for _, text := range layers {
		d, err := oci.ParseDigest(text)
		if err != nil {
			return ""
		}
		diffs = append(diffs, d)
	}
	if len(diffs) == 0 {
		return ""
	}
	return identity.ChainID(diffs)
}

// digestIn finds the digest in an image ID, which Podman may write as bare
// hex, or in "repository@sha256:HEX".
func digestIn(text string) (oci.Digest, bool) {
	if _, after, ok := strings.Cut(text, "@"); ok {
		text = after
	} else if len(text) == 64 && !strings.Contains(text, ":") {
		text = "sha256:" + text
	}
	d, err := oci.ParseDigest(text)
	return d, err == nil
}

func digestsOf(i image.Summary) []oci.Digest {
	all := map[oci.Digest]bool{}
	for _, text := range append([]string{i.ID}, i.RepoDigests...) {
		if d, ok := digestIn(text); ok {
			all[d] = true
		}
	}
	if i.Descriptor != nil {
		if d, err := oci.ParseDigest(string(i.Descriptor.Digest)); err == nil {
			all[d] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (s *Source) image(i image.Summary) (all []inuse.Image) {
	names := i.RepoTags
	if len(names) == 0 {
		names = i.RepoDigests
	}
	if len(names) == 0 {
		names = []string{i.ID}
	}
	for _, name := range names {
		all = append(all, inuse.Image{Runtime: s.name, Name: name, Digests: digestsOf(i), SizeBytes: i.Size})
	}
	return all
}

func (s *Source) container(c container.Summary, known map[string][]oci.Digest, chains map[string]oci.Digest) inuse.Container {
	one := inuse.Container{
		Runtime: s.name, ID: c.ID, Image: c.Image, State: stateOf(c.State), Since: time.Unix(c.Created, 0),
		Imageless: c.ImageID == "" && c.Image == "", // Podman's --rootfs
	}
	if len(c.Names) > 0 {
		one.Name = strings.TrimPrefix(c.Names[0], "/")
	}
	digests := map[oci.Digest]bool{}
	if d, ok := digestIn(c.ImageID); ok {
		digests[d] = true
	}
	if m := c.ImageManifestDescriptor; m != nil {
		if d, err := oci.ParseDigest(string(m.Digest)); err == nil {
			digests[d] = true
		}
	}
	for _, d := range known[c.ImageID] {
		digests[d] = true
	}
	one.Digests = slices.Sorted(maps.Keys(digests))
	if chain := chains[c.ImageID]; chain != "" {
		one.ChainIDs = []oci.Digest{chain}
	}
	return one
}

func stateOf(s container.ContainerState) inuse.State {
	switch s {
	case container.StateRunning, container.StateRestarting:
		return inuse.Running
	case container.StatePaused:
		return inuse.Paused
	case container.StateCreated:
		return inuse.Created
	case container.StateExited, container.StateDead, "stopped": // the last is Podman's
		return inuse.Exited
	default:
		return inuse.Unsure
	}
}

// since is how far back events are asked for, so that none is missed between
// the call and the engine's listening.
const since = 2 * time.Second

// Watch is of inuse.Source.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.Probe(ctx); err != nil {
		return fmt.Errorf("ask for the engine's events: %w", err)
	}
	stream := s.client.Events(ctx, client.EventsListOptions{
		Since:   strconv.FormatInt(time.Now().Add(-since).Unix(), 10),
		Filters: make(client.Filters).Add("type", "container", "image"),
	})
	changed()
	for {
		select {
		case m := <-stream.Messages:
			if !strings.HasPrefix(string(m.Action), "exec_") { // health checks, often
				changed()
			}
		case err := <-stream.Err:
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the engine's events: %w", err)
		}
	}
}

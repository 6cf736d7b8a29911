// Package containerd asks containerd, 1.6 and later, over its gRPC API: all
// its namespaces, since CRI, ctr, nerdctl and Docker have one each.
//
// What a container runs is found from its snapshot, not from its image's name:
// the snapshot's parent is named by a chain ID, the configs with that chain ID
// are in the content store, and so are the manifests that name these configs.
// Where the store does not have them any more only the chain ID is known.
//
// A container without a task is Created: it may be given a task at any moment.
// The CRI deletes the task of a container that has ended, so the states of its
// containers without a task are asked for there.
//
// Nothing is ever written to containerd; no lease is taken.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
)

// Options of a Source.
type Options struct {
	Path string       // of the socket
	Name string       // "containerd" if empty
	Log  *slog.Logger // may be nil
}

// Source is one containerd. It implements inuse.Source.
type Source struct {
	name string
	log  *slog.Logger
	conn *grpc.ClientConn

	namespaces namespacesapi.NamespacesClient
	containers containersapi.ContainersClient
	tasks      tasksapi.TasksClient
	images     imagesapi.ImagesClient
	content    contentapi.ContentClient
	leases     leasesapi.LeasesClient
	snapshots  snapshotsapi.SnapshotsClient
	events     eventsapi.EventsClient
	cri        criapi.RuntimeServiceClient

	documents documents
}

// New returns the source of the containerd at a socket, which need not exist.
func New(o Options) (*Source, error) {
	if o.Name == "" {
		o.Name = "containerd"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	conn, err := inuse.Dial(o.Path)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", o.Path, err)
	}
	return &Source{
		name: o.Name, log: o.Log, conn: conn,
		namespaces: namespacesapi.NewNamespacesClient(conn),
		containers: containersapi.NewContainersClient(conn),
		tasks:      tasksapi.NewTasksClient(conn),
		images:     imagesapi.NewImagesClient(conn),
		content:    contentapi.NewContentClient(conn),
		leases:     leasesapi.NewLeasesClient(conn),
		snapshots:  snapshotsapi.NewSnapshotsClient(conn),
		events:     eventsapi.NewEventsClient(conn),
		cri:        criapi.NewRuntimeServiceClient(conn),
	}, nil
}

// Name is of inuse.Source.
func (s *Source) Name() string { return s.name }

// Close ends the connection.
func (s *Source) Close() error { return s.conn.Close() }

// Probe reports whether containerd's own API answers at this socket.
func (s *Source) Probe(ctx context.Context) error {
	_, err := s.namespaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	return err
}

// Snapshot is of inuse.Source.
func (s *Source) Snapshot(ctx context.Context) (inuse.Snapshot, error) {
	names, err := s.listNamespaces(ctx)
	if err != nil {
		return inuse.Snapshot{}, err
	}
	var all inuse.Snapshot
	read := s.documents.begin()
	for _, name := range names {
		r := &reading{Source: s, namespace: name, documents: read, rootless: map[string]bool{}}
		one, err := r.snapshot(within(ctx, name))
		if err != nil {
			return inuse.Snapshot{}, fmt.Errorf("containerd namespace %s: %w", name, err)
		}
		all.Containers = append(all.Containers, one.Containers...)
		all.Images = append(all.Images, one.Images...)
		all.Busy = append(all.Busy, one.Busy...)
	}
	s.documents.end(read)
	return all, nil
}

func (s *Source) listNamespaces(ctx context.Context) ([]string, error) {
	list, err := s.namespaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, n := range list.GetNamespaces() {
		names = append(names, n.GetName())
	}
	return names, nil
}

// within returns a context for calls in a namespace.
func within(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

// topics are the events that change what Snapshot shows. Processes that are
// executed in a container besides its own, as health checks are, come often
// and change nothing.
var topics = []string{
	`topic~="^/(containers|images|namespaces)/"`,
	`topic~="^/tasks/(create|start|exit|delete|paused|resumed|oom)$"`,
}

// Watch is of inuse.Source.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	stream, err := s.events.Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: topics})
	if err != nil {
		return fmt.Errorf("subscribe to containerd's events: %w", err)
	}
	changed()
	for {
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("containerd's events: %w", lost(err))
		}
		changed()
	}
}

// lost keeps a stream that ended in good order from looking like a success.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

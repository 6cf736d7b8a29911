package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// readAll reads content of a known size.
func (s *Source) readAll(ctx context.Context, d oci.Digest, size int64) ([]byte, error) {
	p := make([]byte, size)
	n, err := s.readAt(ctx, d, p, 0)
	if err != nil && n < len(p) {
		return nil, err
	}
	return p, nil
}

// readAt fills p from off on, with the contract of io.ReaderAt.
func (s *Source) readAt(ctx context.Context, d oci.Digest, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.content.Read(ctx, &contentapi.ReadContentRequest{Digest: string(d), Offset: off, Size: int64(len(p))})
	if err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return n, io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, err
		}
		n += copy(p[n:], m.GetData())
	}
	return n, nil
}

// ContentStore offers the blobs in the store of a containerd, of all its
// namespaces. It does not verify them; that is for whoever hands them out.
type ContentStore struct{ source *Source }

// Content returns the content store, on the source's connection.
func (s *Source) Content() *ContentStore { return &ContentStore{source: s} }

// Name is for logs.
func (c *ContentStore) Name() string { return c.source.name }

// Blob is an open blob of a containerd.
type Blob struct {
	source *Source
	ctx    context.Context // of the namespace that has it
	stop   context.CancelFunc
	file   *os.File // nil: read through the API
	digest oci.Digest
	size   int64
	labels map[string]string
}

// sourceLabel is set by containerd on what it pulls: the registry, as the image's
// name has it, and as the value the repositories.
const sourceLabel = "containerd.io/distribution.source."

// Origins are the registries that containerd pulled the blob from.
func (b *Blob) Origins() (all []string) {
	for key := range b.labels {
		if host, ok := strings.CutPrefix(key, sourceLabel); ok {
			all = append(all, strings.ToLower(host))
		}
	}
	return all
}

// Open opens d in the first namespace that has it, or answers NotFound. Where
// containerd's files can be read they are, and an open file outlives its
// removal; else each ReadAt is a request, and fails once containerd has
// collected the blob. ctx bounds the opening only.
func (c *ContentStore) Open(ctx context.Context, d oci.Digest) (*Blob, error) {
	names, err := c.source.listNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		info, err := c.source.content.Info(within(ctx, name), &contentapi.InfoRequest{Digest: string(d)})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("containerd namespace %s: look up %s: %w", name, d, err)
		}
		life, stop := context.WithCancel(within(context.WithoutCancel(ctx), name))
		b := &Blob{source: c.source, ctx: life, stop: stop, digest: d, size: info.GetInfo().GetSize(), labels: info.GetInfo().GetLabels()}
		b.file = c.source.openFile(ctx, d, b.size)
		return b, nil
	}
	return nil, fault.New(fault.NotFound, "containerd has no blob %s", d)
}

// Size is in bytes.
func (b *Blob) Size() int64 { return b.size }

// ReadAt is of io.ReaderAt.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if b.file != nil {
		return b.file.ReadAt(p, off)
	}
	want := p
	if rest := max(b.size-off, 0); int64(len(p)) > rest {
		want = p[:rest]
	}
	n, err := b.source.readAt(b.ctx, b.digest, want, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// Close ends all reading.
func (b *Blob) Close() error {
	b.stop()
	if b.file != nil {
		return b.file.Close()
	}
	return nil
}

// openFile opens the blob's file, or returns nil where containerd's directory
// is not to be seen from here, as in a container of one's own.
func (s *Source) openFile(ctx context.Context, d oci.Digest, size int64) *os.File {
	root, err := s.contentRoot(ctx)
	if err != nil || root == "" {
		return nil
	}
	f, err := os.Open(filepath.Join(root, "blobs", d.Algorithm().String(), d.Encoded()))
	if err != nil {
		return nil
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != size {
		_ = f.Close()
		return nil
	}
	return f
}

// contentRoot asks where the content store's directory is.
func (s *Source) contentRoot(ctx context.Context) (string, error) {
	answer, err := introspectionapi.NewIntrospectionClient(s.conn).Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{"type==io.containerd.content.v1"}})
	if err != nil {
		return "", err
	}
	for _, p := range answer.GetPlugins() {
		if root := p.GetExports()["root"]; root != "" {
			return root, nil
		}
	}
	return "", nil
}

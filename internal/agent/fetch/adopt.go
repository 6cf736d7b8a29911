package fetch

import (
	"context"
	"errors"
	"strings"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Edges says what a manifest is, and what it needs. One that cannot be read
// needs nothing that this node knows of, and is handed on all the same.
func Edges(d oci.Digest, mediaType string, content []byte) (string, []index.Edge) {
	parsed, err := oci.ReadManifest(mediaType, content)
	wrong := err != nil
	if wrong {
		// What it names is needed all the same, by whoever runs it. How large that is
		// it cannot be believed.
		parsed = oci.Salvage(content)
	}
	var edges []index.Edge
	add := func(child oci.Descriptor, role string) {
		if wrong {
			child.Size = -1
		}
		edges = append(edges, index.Edge{Parent: d, Child: child.Digest, Role: role, Size: child.Size, MediaType: child.MediaType})
	}
	for _, c := range parsed.Children {
		add(c, index.RoleManifest)
	}
	image := parsed.MediaType == oci.MediaTypeImage || parsed.MediaType == oci.MediaTypeDockerImage
	for i, c := range parsed.Blobs {
		if i == 0 && image || wrong && strings.Contains(c.MediaType, ".config.") || wrong && c.MediaType == dockerConfig {
			add(c, index.RoleConfig) // ReadManifest puts it first
			continue
		}
		add(c, index.RoleLayer)
	}
	if parsed.Subject != "" {
		add(oci.Descriptor{Digest: parsed.Subject}, index.RoleSubject)
	}
	if wrong {
		return "", edges
	}
	return parsed.MediaType, edges
}

const dockerConfig = "application/vnd.docker.container.image.v1+json"

// readopt finds the manifests among the blobs that were taken back without an
// index, and what they need. Without that nobody knows what a container uses.
func (f *Fetcher) readopt(ctx context.Context) error {
	found := f.o.Store.TakenBack()
	if len(found) == 0 {
		return f.o.Index.Adopted(ctx)
	}
	manifests := 0
	for _, d := range found {
		info, err := f.o.Store.Info(ctx, d)
		if err == nil && info.Size <= oci.ManifestMax {
			var is bool
			if is, err = f.recognise(ctx, d); is {
				manifests++
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f.o.Log.Warn("a blob that was taken back cannot be read", "digest", d, "err", err)
		}
	}
	f.o.Log.Warn("rebuilt the cache's index from its files", "blobs", len(found), "manifests", manifests)
	return f.o.Index.Adopted(ctx)
}

// recognise notes what a small blob needs, if it is a manifest.
func (f *Fetcher) recognise(ctx context.Context, d oci.Digest) (is bool, err error) {
	b, err := f.o.Store.Open(ctx, d)
	if err != nil {
		return false, err
	}
	defer b.Close()
	if !b.Complete() {
		return false, nil // it was being fetched, or is damaged
	}
	content, err := whole(b)
	if err != nil {
		return false, err
	}
	mediaType, edges := Edges(d, "", content)
	if mediaType == "" || len(edges) == 0 {
		return false, nil
	}
	if err := f.o.Index.SetMediaType(ctx, d, mediaType); err != nil {
		return false, err
	}
	return true, f.o.Index.PutEdges(ctx, d, edges)
}

// Verify looks at what was taken back without an index and is not known to be
// right yet, so that it need not be when somebody waits for it.
func (f *Fetcher) Verify(ctx context.Context) {
	for _, d := range f.o.Store.TakenBack() {
		if ctx.Err() != nil {
			return
		}
		b, err := f.o.Store.Open(ctx, d)
		if err == nil {
			b.Close()
		} else if !errors.Is(err, fault.NotFound) && ctx.Err() == nil {
			f.o.Log.Warn("a blob that was taken back cannot be opened", "digest", d, "err", err)
		}
	}
}

package mirror

import (
	"context"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Ahead is a manifest that the node wants before anybody asks for it.
type Ahead struct {
	Namespace string // the upstream that it came from
	Digest    oci.Digest
	MediaType string
	Content   []byte
	Private   bool // not everybody may have it
}

// Ahead gets a manifest as if a client without credentials asked for it, and
// notes that such may have it and what it names. "" is the default upstream. A
// tag that comes with a digest is asked for too, so that it is known when the
// upstream is down; the digest decides.
func (m *Mirror) Ahead(ctx context.Context, upstream string, repo oci.Name, ref oci.Reference) (got Ahead, err error) {
	if upstream == "" {
		upstream = m.o.Default
	}
	ns, ok := m.known(upstream)
	if !ok {
		return got, notConfigured(upstream)
	}
	a := access{ns: ns, repo: repo, ahead: true}
	d := ref.Digest
	if ref.Tag != "" {
		found, _, err := m.resolve(ctx, a, ref.Tag, manifestTypes)
		switch {
		case d != "":
			// Where it has moved, or is gone, the digest may still be there.
		case err != nil:
			return got, err
		default:
			d = found.digest
		}
	}
	doc, err := m.document(ctx, a, d, manifestTypes)
	if err != nil {
		return got, err
	}
	may, _, _, err := m.rights.about(ctx, a, d)
	return Ahead{Namespace: ns, Digest: d, MediaType: doc.mediaType, Content: doc.content, Private: !may.public}, err
}

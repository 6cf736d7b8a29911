package admin

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

func (a *API) pins(c *jsonface.Call) (any, error) {
	pins, err := a.Index.Pins(c.Context())
	list := make([]nodeapi.Pin, 0, len(pins))
	for _, p := range pins {
		list = append(list, pinOf(p))
	}
	return nodeapi.PinList{Pins: list}, err
}

func pinOf(p index.Pin) nodeapi.Pin {
	return nodeapi.Pin{Ref: p.Ref, Digests: jsonface.List(p.Roots), At: time.UnixMilli(p.CreatedAt).UTC()}
}

func (a *API) pin(c *jsonface.Call) (any, error) {
	var req nodeapi.PinRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	ref, err := parseRef(req.Ref, a.Namespace)
	if err != nil {
		return nil, err
	}
	d, err := a.resolve(c.Context(), ref)
	if err != nil {
		return nil, err
	}
	roots := []oci.Digest{d}
	if err := a.Index.Pin(c.Context(), ref.String(), roots); err != nil {
		return nil, err
	}
	a.Pinned()
	a.audit(c, "pin", ref.String())
	return nodeapi.Pin{Ref: ref.String(), Digests: roots, At: time.UnixMilli(a.Index.Now()).UTC()}, nil
}

func (a *API) unpin(c *jsonface.Call) (any, error) {
	q := c.Query("ref")
	if q.Err == nil && q.Text("ref") == "" {
		q.Failf("ref: it is missing; want for example docker.io/library/busybox:latest")
	}
	if q.Err != nil {
		return nil, q.Err
	}
	ref, err := parseRef(q.Text("ref"), a.Namespace)
	if err != nil {
		return nil, err
	}
	if err := a.Index.Unpin(c.Context(), ref.String()); err != nil {
		return nil, err
	}
	a.Pinned()
	a.audit(c, "unpin", ref.String())
	return nil, nil
}

// resolve finds what ref names on this machine. It asks no upstream: what is
// not here cannot be kept here.
func (a *API) resolve(ctx context.Context, ref reference) (oci.Digest, error) {
	d := ref.digest
	if d == "" {
		n, err := a.Index.ResolveName(ctx, ref.namespace, ref.repo, ref.tag)
		if errors.Is(err, fault.NotFound) {
			return "", fault.New(fault.NotFound, "%s was never pulled through this node; pull it once, and then pin it", ref)
		}
		if err != nil {
			return "", err
		}
		d = n.Digest
	}
	_, err := a.Store.Info(ctx, d)
	if errors.Is(err, fault.NotFound) {
		return "", fault.New(fault.NotFound, "the cache has no %s; pull it through this node, and then pin it", d)
	}
	return d, err
}

// reference is an image as a runtime names it, or a bare digest.
type reference struct {
	namespace string
	repo      oci.Name // "": a bare digest
	tag       oci.Tag
	digest    oci.Digest
}

// String is what the reference is pinned as.
func (r reference) String() string {
	switch {
	case r.repo == "":
		return string(r.digest)
	case r.digest != "":
		return r.namespace + "/" + string(r.repo) + "@" + string(r.digest)
	}
	return r.namespace + "/" + string(r.repo) + ":" + string(r.tag)
}

const tagDefault oci.Tag = "latest"

// parseRef reads [REGISTRY/]REPOSITORY[:TAG][@DIGEST] or DIGEST. The first part
// is a registry if it has a dot or a port, or is localhost. A digest wins over a
// tag, as it does in every runtime.
func parseRef(text, namespace string) (reference, error) {
	if strings.HasPrefix(text, "sha256:") || strings.HasPrefix(text, "sha512:") {
		d, err := oci.ParseDigest(text)
		return reference{digest: d}, err
	}
	r := reference{namespace: namespace, tag: tagDefault}
	rest, digest, pinned := strings.Cut(text, "@")
	if first, after, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		r.namespace, rest = strings.ToLower(first), after
	}
	if r.namespace == "" {
		return r, fault.New(fault.Invalid, "ref: %q names no registry; want for example docker.io/library/busybox:latest", jsonface.Clip(text))
	}
	name, tag, tagged := strings.Cut(rest, ":")
	var err error
	if r.repo, err = oci.ParseName(name); err != nil {
		return r, err
	}
	if tagged {
		if r.tag, err = oci.ParseTag(tag); err != nil {
			return r, err
		}
	}
	if pinned {
		r.digest, err = oci.ParseDigest(digest)
	}
	return r, err
}

package preheat

import (
	"context"
	"errors"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

const tagDefault oci.Tag = "latest"

// resolve finds the image that text means. Its first part is another registry
// if it has a dot or a port, or is localhost, and this one has no such
// repository.
func (p *Preheats) resolve(ctx context.Context, text, host string) (image meta.PreheatImage, err error) {
	name, ref, err := split(text)
	if err != nil {
		return image, err
	}
	first, rest, ok := strings.Cut(name, "/")
	if ok && host != "" && strings.EqualFold(first, host) {
		return p.own(ctx, rest, ref)
	}
	if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" {
		return p.own(ctx, name, ref)
	}
	if !strings.Contains(first, ":") {
		if image, err = p.own(ctx, name, ref); err == nil || !errors.Is(err, fault.NotFound) {
			return image, err
		}
	}
	repo, err := oci.ParseName(rest)
	if err != nil {
		return image, err
	}
	return meta.PreheatImage{Upstream: strings.ToLower(first), Repo: repo, Tag: ref.Tag, Digest: ref.Digest}, nil
}

// own finds an image of this registry.
func (p *Preheats) own(ctx context.Context, name string, ref oci.Reference) (image meta.PreheatImage, err error) {
	repo, err := oci.ParseName(name)
	if err != nil {
		return image, err
	}
	tag := ref.Tag
	if ref.Digest != "" {
		ref.Tag = "" // a digest wins over a tag, as it does in every runtime
	}
	m, err := p.store.Manifest(ctx, repo, ref)
	if err != nil {
		return image, err
	}
	return meta.PreheatImage{Repo: repo, Tag: tag, Digest: m.Digest}, nil
}

// split takes NAME[:TAG][@DIGEST] apart. Without a tag and a digest it is the
// tag that runtimes take.
func split(text string) (name string, ref oci.Reference, err error) {
	if text == "" {
		return "", ref, fault.New(fault.Invalid, "reference: it is missing; want for example team/app:v1")
	}
	name, digest, pinned := strings.Cut(text, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		if ref.Tag, err = oci.ParseTag(name[i+1:]); err != nil {
			return "", ref, err
		}
		name = name[:i]
	}
	if pinned {
		ref.Digest, err = oci.ParseDigest(digest)
	} else if ref.Tag == "" {
		ref.Tag = tagDefault
	}
	return name, ref, err
}

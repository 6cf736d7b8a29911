package distapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// tagsMax bounds the tag parameters of one manifest PUT (dist-spec §Pushing
// Manifests asks for at least 10).
const tagsMax = 100

// getManifest is dist-spec §Pulling manifests and §Checking if content exists.
// The Accept header is not consulted: what was pushed is what is returned.
func (h *Handler) getManifest(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	ref, err := pullReference(name, last)
	if err != nil {
		return err
	}
	m, err := h.store.Manifest(r.Context(), name, ref)
	if err != nil {
		return manifestUnknown(err, name, last)
	}
	digest := string(m.Digest)
	// One array for four header values: this path is a registry's hottest.
	v := &[4]string{digest, `"` + digest + `"`, m.MediaType, ""}
	header := w.Header()
	header["Docker-Content-Digest"] = v[0:1:1]
	header["Etag"] = v[1:2:2]
	if ref.Digest != "" {
		header["Cache-Control"] = immutable
	}
	if none := r.Header["If-None-Match"]; len(none) > 0 && etagIn(none, v[1]) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	v[3] = strconv.Itoa(len(m.Content))
	header["Content-Type"] = v[2:3:3]
	header["Content-Length"] = v[3:4:4]
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(m.Content) // a client that is gone needs no answer
	}
	return nil
}

// pullReference reads the reference of a request for what may exist: that
// there is no manifest is the answer to a name that no tag can have.
func pullReference(name oci.Name, s string) (oci.Reference, error) {
	ref, err := oci.ParseReference(s)
	var e *fault.Error
	if errors.As(err, &e) && e.Code == oci.CodeTagInvalid {
		return ref, noManifest(name, s)
	}
	return ref, err
}

func noManifest(name oci.Name, s string) error {
	return fault.New(fault.NotFound, "repository %s has no manifest %.128q", name, s).WithCode(oci.CodeManifestUnknown)
}

// manifestUnknown is the error of a request for a manifest. A repository that
// does not exist has no manifests: clients (containers/image) take nothing but
// MANIFEST_UNKNOWN for an absent one.
func manifestUnknown(err error, name oci.Name, s string) error {
	var e *fault.Error
	if errors.As(err, &e) && e.Code == oci.CodeNameUnknown {
		return noManifest(name, s)
	}
	return err
}

// putManifest is dist-spec §Pushing Manifests.
func (h *Handler) putManifest(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	ref, err := oci.ParseReference(last)
	if err != nil {
		return err
	}
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	tags, err := pushTags(ref, query["tag"])
	if err != nil {
		return err
	}
	content, release, err := h.readManifest(r)
	defer release()
	if err != nil {
		return err
	}
	d := ref.Digest
	if d == "" {
		d = digest.SHA256.FromBytes(content)
	} else if found := d.Algorithm().FromBytes(content); found != d {
		return fault.New(fault.Invalid, "the manifest has the digest %s, not %s", found, d).WithCode(oci.CodeDigestInvalid)
	}
	m, err := parseManifest(r.Header["Content-Type"], content)
	if err != nil {
		return err
	}
	if _, err := h.store.PutManifest(r.Context(), meta.Push{Repo: name, Tags: tags, Digest: d, Manifest: m, Content: content}); err != nil {
		return err
	}
	header := w.Header()
	header["Location"] = []string{"/v2/" + string(name) + "/manifests/" + string(d)}
	header["Docker-Content-Digest"] = []string{string(d)}
	if m.Subject != "" {
		header["Oci-Subject"] = []string{string(m.Subject)}
	}
	if len(query["tag"]) > 0 {
		header["Oci-Tag"] = query["tag"]
	}
	empty(w, http.StatusCreated)
	return nil
}

// parseManifest reads what a client pushes with these Content-Type headers.
func parseManifest(contentType []string, content []byte) (oci.Manifest, error) {
	var given string
	for i, t := range contentType {
		if i > 0 && t != given {
			return oci.Manifest{}, fault.New(fault.Invalid, "more than one Content-Type header").WithCode(oci.CodeManifestInvalid)
		}
		given = t
	}
	m, err := oci.ParseManifest(given, content)
	if err == nil && oci.IsSchema1(m.MediaType) {
		return m, fault.New(fault.Invalid, "Docker image manifests of schema 1 are not supported: push the image again with a client that writes schema 2 or OCI manifests").WithCode(oci.CodeManifestInvalid)
	}
	return m, err
}

// pushTags returns the tags that a manifest PUT names, each once.
func pushTags(ref oci.Reference, params []string) ([]oci.Tag, error) {
	if len(params) > tagsMax {
		return nil, &longError{fault.New(fault.Invalid, "%d tag parameters, at most %d are allowed", len(params), tagsMax).WithCode(oci.CodeTagInvalid)}
	}
	tags := make([]oci.Tag, 0, len(params)+1)
	seen := make(map[oci.Tag]bool, len(params)+1)
	if ref.Tag != "" {
		tags, seen[ref.Tag] = append(tags, ref.Tag), true
	}
	for _, p := range params {
		t, err := oci.ParseTag(p)
		if err != nil {
			return nil, err
		}
		if !seen[t] {
			tags, seen[t] = append(tags, t), true
		}
	}
	return tags, nil
}

// Buffers of manifests grow with what arrives, since a stated length is a claim.
// What they take beyond manifestSmall comes out of a budget of all requests.
const (
	manifestSmall  = 64 << 10 // bytes
	manifestBudget = 64 << 20 // bytes
	// manifestWait is how long a request waits for a part of the budget.
	manifestWait = 5 * time.Second
)

// readManifest reads the body of a manifest PUT. release gives back its part of
// the budget; it must be called.
func (h *Handler) readManifest(r *http.Request) (content []byte, release func(), err error) {
	tooLarge := &largeError{fault.New(fault.Invalid, "the manifest is larger than the %d bytes allowed", oci.ManifestMax).WithCode(oci.CodeManifestInvalid)}
	var taken int64
	release = func() { h.manifests.Release(taken) }
	if r.ContentLength > oci.ManifestMax {
		return nil, release, tooLarge
	}
	limit := int64(oci.ManifestMax + 1)
	if r.ContentLength >= 0 {
		limit = r.ContentLength
	}
	content = make([]byte, 0, min(limit, 4<<10))
	for {
		if len(content) == cap(content) && int64(len(content)) < limit {
			size := min(2*int64(cap(content)), limit)
			if size > manifestSmall {
				if err := h.takeBudget(r.Context(), size-taken); err != nil {
					return nil, release, err
				}
				taken = size
			}
			content = append(make([]byte, 0, size), content...)
		}
		n, err := r.Body.Read(content[len(content):min(int64(cap(content)), limit)])
		content = content[:len(content)+n]
		switch {
		case len(content) > oci.ManifestMax:
			return nil, release, tooLarge
		case int64(len(content)) == r.ContentLength, errors.Is(err, io.EOF) && r.ContentLength < 0:
			return content, release, nil
		case err != nil:
			return nil, release, fault.Wrap(fault.Invalid, err, "the manifest broke off before its end").WithCode(oci.CodeManifestInvalid)
		}
	}
}

func (h *Handler) takeBudget(ctx context.Context, n int64) error {
	if h.manifests.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.manifestWait)
	defer cancel()
	if err := h.manifests.Acquire(ctx, n); err != nil {
		return fault.Wrap(fault.Busy, err, "too many large manifests are being pushed at once; try again")
	}
	return nil
}

// deleteManifest is dist-spec §Deleting tags and §Deleting Manifests.
func (h *Handler) deleteManifest(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	ref, err := pullReference(name, last)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		err = h.store.DeleteManifest(r.Context(), name, ref.Digest, h.actor(r))
	} else {
		err = h.store.DeleteTag(r.Context(), name, ref.Tag, h.actor(r))
	}
	if err != nil {
		return manifestUnknown(err, name, last)
	}
	empty(w, http.StatusAccepted)
	return nil
}

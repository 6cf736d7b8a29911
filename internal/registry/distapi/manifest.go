package distapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
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

// The memory of manifests goes by what arrives, since a stated length is a claim, and
// not by the pace of clients: up to manifestSmall a body is read into a buffer that
// grows. One with more is kept on the disk until it is whole, and then in memory while
// it is stored, out of a budget of all requests. So no client that sends slowly, or
// not at all, keeps others from pushing (R17).
const (
	manifestSmall  = 64 << 10 // bytes
	manifestBudget = 64 << 20 // bytes
	// manifestWait is how long a request waits for a part of the budget.
	manifestWait = 5 * time.Second
)

// readManifest reads the body of a manifest PUT. release gives back its part of
// the budget; it must be called.
func (h *Handler) readManifest(r *http.Request) (content []byte, release func(), err error) {
	release = func() {}
	if r.ContentLength > oci.ManifestMax {
		return nil, release, manifestTooLarge()
	}
	b := manifestBody{r.Body, r.ContentLength}
	content = make([]byte, 0, 4<<10)
	for len(content) < manifestSmall {
		if len(content) == cap(content) {
			content = append(make([]byte, 0, 2*cap(content)), content...)
		}
		n, whole, err := b.read(content[len(content):cap(content)], len(content))
		if content = content[:len(content)+n]; err != nil || whole {
			return content, release, err
		}
	}
	return h.spoolManifest(r.Context(), b, content)
}

// spoolManifest reads the rest of a large manifest, of which head has come.
func (h *Handler) spoolManifest(ctx context.Context, b manifestBody, head []byte) (content []byte, release func(), err error) {
	release = func() {}
	f, err := h.spool()
	if err != nil {
		return nil, release, spoolError(err)
	}
	defer func() { _ = f.Close() }() // what was written to it is not kept
	if _, err := f.Write(head); err != nil {
		return nil, release, spoolError(err)
	}
	size := len(head)
	for whole := false; !whole; {
		n, end, err := b.read(head[:cap(head)], size)
		if err != nil {
			return nil, release, err
		}
		if _, err := f.Write(head[:n]); err != nil {
			return nil, release, spoolError(err)
		}
		size, whole = size+n, end
	}
	if err := h.takeBudget(ctx, int64(size)); err != nil {
		return nil, release, err
	}
	release = func() { h.manifests.Release(int64(size)) }
	content = make([]byte, size)
	if _, err := f.ReadAt(content, 0); err != nil {
		return nil, release, spoolError(err)
	}
	return content, release, nil
}

// manifestBody is a body of a stated length, or of -1.
type manifestBody struct {
	io.Reader
	length int64
}

// read reads on after so many bytes. whole reports that it was the end.
func (b manifestBody) read(p []byte, after int) (n int, whole bool, err error) {
	if b.length >= 0 {
		p = p[:min(int64(len(p)), b.length-int64(after))]
	}
	n, err = b.Read(p)
	switch {
	case after+n > oci.ManifestMax:
		return n, false, manifestTooLarge()
	case int64(after+n) == b.length, errors.Is(err, io.EOF) && b.length < 0:
		return n, true, nil
	case err != nil:
		return n, false, fault.Wrap(fault.Invalid, err, "the manifest broke off before its end").WithCode(oci.CodeManifestInvalid)
	}
	return n, false, nil
}

func manifestTooLarge() error {
	return &largeError{fault.New(fault.Invalid, "the manifest is larger than the %d bytes allowed", oci.ManifestMax).WithCode(oci.CodeManifestInvalid)}
}

// spoolError is of the disk that a large manifest is kept on.
func spoolError(err error) error {
	err = fmt.Errorf("keep a large manifest: %w", err)
	if errors.Is(err, blob.ErrFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.Wrap(fault.Full, err, "the registry's disk is full: delete images that are not needed and run a collection, or add space, then try again").WithCode(oci.CodeStorageFull)
	}
	return err
}

// systemTemp makes a nameless file.
func systemTemp() (*os.File, error) {
	f, err := os.CreateTemp("", "fairway-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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

package distapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// headBlob is dist-spec §Checking if content exists: an answer that a client
// relies on, so it counts as a confirmation (R3).
func (h *Handler) headBlob(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	d, err := oci.ParseDigest(last)
	if err != nil {
		return err
	}
	b, err := h.store.ConfirmBlob(r.Context(), name, d)
	if err != nil {
		return err
	}
	v := blobHeader(w, d)
	if notModified(w, r, v[1]) {
		return nil
	}
	v[2] = strconv.FormatInt(b.Size, 10)
	w.Header()["Content-Length"] = v[2:3:3]
	w.WriteHeader(http.StatusOK)
	return nil
}

// blobHeader sets what answers about a blob have in common. Of the array it
// returns, the second is the ETag and the third is free.
func blobHeader(w http.ResponseWriter, d oci.Digest) *[3]string {
	v := &[3]string{string(d), `"` + string(d) + `"`, ""}
	header := w.Header()
	header["Docker-Content-Digest"] = v[0:1:1]
	header["Etag"] = v[1:2:2]
	header["Content-Type"] = typeBytes
	header["Accept-Ranges"] = acceptBytes
	header["Cache-Control"] = immutable
	return v
}

func notModified(w http.ResponseWriter, r *http.Request, etag string) bool {
	none := r.Header["If-None-Match"]
	if len(none) == 0 || !etagIn(none, etag) {
		return false
	}
	delete(w.Header(), "Content-Type")
	w.WriteHeader(http.StatusNotModified)
	return true
}

// filer is a blob.Reader whose bytes are a file that the kernel can send.
type filer interface{ File() *os.File }

// getBlob is dist-spec §Pulling blobs, with ranges and conditions of RFC 9110.
func (h *Handler) getBlob(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	d, err := oci.ParseDigest(last)
	if err != nil {
		return err
	}
	b, err := h.store.Blob(r.Context(), name, d)
	if err != nil {
		return err
	}
	etag := `"` + string(d) + `"`
	if match := r.Header["If-Match"]; len(match) > 0 && !etagIn(match, etag) {
		return &stateError{fault.New(fault.Conflict, "the blob has the ETag %s", etag).WithCode(oci.CodeUnsupported)}
	}
	blobHeader(w, d)
	if notModified(w, r, etag) {
		return nil
	}
	ranges, err := rangesOf(w, r, etag, b.Size)
	if err != nil {
		return err
	}
	bytes, err := h.open(r.Context(), name, b)
	if err != nil {
		for _, key := range []string{"Docker-Content-Digest", "Etag", "Accept-Ranges", "Cache-Control"} {
			w.Header().Del(key)
		}
		return err
	}
	defer func() { _ = bytes.Close() }() // nothing was written
	var content io.ReadSeeker = bytes
	if f, ok := bytes.(filer); ok {
		content = f.File() // bare, so that io.Copy becomes sendfile
	}
	err = httpserve.SendContent(w, r, b.Size, ranges, func(w io.Writer, part httpserve.Range) error {
		if part.First > 0 || len(ranges) > 1 {
			if _, err := content.Seek(part.First, io.SeekStart); err != nil {
				return err
			}
		}
		_, err := io.CopyN(w, content, part.Length)
		return err
	})
	if err != nil {
		// The client, if it is still there, sees by the length that this is not all.
		httpserve.Note(w, fmt.Errorf("send blob %s: %w", d, err))
	}
	return nil
}

// open opens the bytes of a blob that was looked up. Should it be collected or
// replaced in between, another look tells so, or finds the bytes that were
// pushed since. Bytes of another size than the blob's are never served: a
// length that fits its header would make them look whole.
func (h *Handler) open(ctx context.Context, name oci.Name, b meta.Blob) (blob.Reader, error) {
	for {
		bytes, err := h.blobs.Open(ctx, b.Key)
		if err != nil && !errors.Is(err, blob.ErrNotFound) {
			return nil, fmt.Errorf("open blob %s: %w", b.Digest, err)
		}
		if err == nil {
			if bytes.Size() == b.Size {
				return bytes, nil
			}
			err = fmt.Errorf("the object has %d bytes", bytes.Size())
			_ = bytes.Close() // nothing was written
		}
		again, lerr := h.store.Blob(ctx, name, b.Digest)
		if lerr != nil {
			return nil, lerr
		}
		if again.Key == b.Key {
			return nil, damaged(b, err)
		}
		b = again
	}
}

// damaged is the answer to a client that asks for bytes which are not as they
// were pushed. Only the log names the key.
func damaged(b meta.Blob, cause error) error {
	return fault.Wrap(fault.Internal, fmt.Errorf("look for %d bytes under %s: %w", b.Size, b.Key, cause), fmt.Sprintf(
		"the bytes of blob %s are damaged in the registry's storage; once an administrator has run `fairway check --repair`, pushing the image again mends it", b.Digest))
}

// rangesOf returns the ranges that are asked for of a blob; none: the whole.
func rangesOf(w http.ResponseWriter, r *http.Request, etag string, size int64) ([]httpserve.Range, error) {
	asked := r.Header["Range"]
	if ifRange := r.Header.Get("If-Range"); len(asked) == 0 || ifRange != "" && ifRange != etag {
		return nil, nil
	}
	ranges, err := httpserve.ParseRanges(asked, size)
	if err != nil {
		header := w.Header()
		header.Del("Etag")
		header.Del("Cache-Control")
		header.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		return nil, &rangeError{fault.New(fault.Invalid, "range %.64q cannot be satisfied: %w; the blob has %d bytes", asked[0], err, size).WithCode(oci.CodeSizeInvalid)}
	}
	return ranges, nil
}

// deleteBlob is dist-spec §Deleting Blobs.
func (h *Handler) deleteBlob(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	d, err := oci.ParseDigest(last)
	if err != nil {
		return err
	}
	err = h.store.DeleteBlob(r.Context(), name, d, h.actor(r))
	if errors.Is(err, fault.Conflict) {
		w.Header().Set("Allow", "GET, HEAD")
		return &methodError{err}
	}
	if err != nil {
		return err
	}
	empty(w, http.StatusAccepted)
	return nil
}

package distapi

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// startUpload is dist-spec §Pushing a blob monolithically, §Pushing a blob in
// chunks and §Mounting a blob from another repository.
func (h *Handler) startUpload(w http.ResponseWriter, r *http.Request, name oci.Name, _ string) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	if query.Has("mount") {
		mounted, err := h.mount(w, r, name, query.Get("mount"), query.Get("from"))
		if mounted || err != nil {
			return err
		}
	} else if query.Has("digest") {
		return h.putWhole(w, r, name, query.Get("digest"))
	}
	u, err := h.uploads.Start(r.Context(), name, query.Get("digest-algorithm"))
	if err != nil {
		return err
	}
	uploadHeader(w, u)
	empty(w, http.StatusAccepted)
	return nil
}

// mount answers if the blob could be mounted. If not, an upload session is the
// answer (dist-spec §Mounting a blob from another repository).
func (h *Handler) mount(w http.ResponseWriter, r *http.Request, name oci.Name, rawDigest, rawFrom string) (mounted bool, err error) {
	d, err := oci.ParseDigest(rawDigest)
	if err != nil {
		return false, err
	}
	var from oci.Name
	if rawFrom != "" {
		if from, err = oci.ParseName(rawFrom); err != nil {
			return false, err
		}
	}
	if _, err := h.store.MountBlob(r.Context(), name, from, d); errors.Is(err, fault.NotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	created(w, name, d)
	return true, nil
}

// putWhole is dist-spec §Single POST.
func (h *Handler) putWhole(w http.ResponseWriter, r *http.Request, name oci.Name, rawDigest string) error {
	d, err := oci.ParseDigest(rawDigest)
	if err != nil {
		return err
	}
	c, err := h.chunk(r)
	if err != nil {
		return err
	}
	if _, err := h.uploads.Put(r.Context(), name, d, c); err != nil {
		return err
	}
	created(w, name, d)
	return nil
}

// appendUpload is the PATCH of dist-spec §Pushing a blob in chunks.
func (h *Handler) appendUpload(w http.ResponseWriter, r *http.Request, name oci.Name, id string) error {
	c, err := h.chunk(r)
	if err != nil {
		return err
	}
	u, err := h.uploads.Append(r.Context(), name, id, c)
	if err != nil {
		h.offerResume(w, r, name, id, err)
		return err
	}
	uploadHeader(w, u)
	empty(w, http.StatusAccepted)
	return nil
}

// finishUpload is the PUT that closes a session.
func (h *Handler) finishUpload(w http.ResponseWriter, r *http.Request, name oci.Name, id string) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	if !query.Has("digest") {
		return fault.New(fault.Invalid, "the digest parameter is missing").WithCode(oci.CodeDigestInvalid)
	}
	d, err := oci.ParseDigest(query.Get("digest"))
	if err != nil {
		return err
	}
	c, err := h.chunk(r)
	if err != nil {
		return err
	}
	if _, err := h.uploads.Finish(r.Context(), name, id, d, c); err != nil {
		h.offerResume(w, r, name, id, err)
		return err
	}
	created(w, name, d)
	return nil
}

// offerResume adds to the answer 416 where the session stands, so that a
// client need not ask.
func (h *Handler) offerResume(w http.ResponseWriter, r *http.Request, name oci.Name, id string, err error) {
	if !errors.Is(err, upload.ErrOffset) {
		return
	}
	if u, err := h.uploads.Status(r.Context(), name, id); err == nil {
		uploadHeader(w, u)
	}
}

// uploadStatus is the GET of dist-spec §Pushing a blob in chunks.
func (h *Handler) uploadStatus(w http.ResponseWriter, r *http.Request, name oci.Name, id string) error {
	u, err := h.uploads.Status(r.Context(), name, id)
	if err != nil {
		return err
	}
	uploadHeader(w, u)
	empty(w, http.StatusNoContent)
	return nil
}

// cancelUpload is dist-spec §Cancel a blob upload.
func (h *Handler) cancelUpload(w http.ResponseWriter, r *http.Request, name oci.Name, id string) error {
	if err := h.uploads.Cancel(r.Context(), name, id, h.actor(r)); err != nil {
		return err
	}
	empty(w, http.StatusNoContent)
	return nil
}

// chunk reads what the request says about its body.
func (h *Handler) chunk(r *http.Request) (upload.Chunk, error) {
	c := upload.Chunk{Body: r.Body, Length: r.ContentLength, Actor: h.actor(r)}
	switch ranges := r.Header["Content-Range"]; len(ranges) {
	case 0:
		return c, nil
	case 1:
		var err error
		if c.First, c.Last, err = contentRange(ranges[0]); err != nil {
			return c, &rangeError{err}
		}
		c.Ranged = true
		return c, nil
	}
	return c, &rangeError{fault.New(fault.Invalid, "more than one Content-Range header").WithCode(oci.CodeBlobUploadInvalid)}
}

// uploadHeader tells where a session is and where it stands. Nothing received
// is told as 0-0, which a client cannot tell from one byte; it is what
// Distribution answers and clients expect.
func uploadHeader(w http.ResponseWriter, u meta.Upload) {
	header := w.Header()
	header["Location"] = []string{"/v2/" + string(u.Repo) + "/blobs/uploads/" + u.ID}
	header["Range"] = []string{"0-" + strconv.FormatInt(max(u.Size-1, 0), 10)}
	header["Docker-Upload-Uuid"] = []string{u.ID}
}

// created answers that the blob is here.
func created(w http.ResponseWriter, name oci.Name, d oci.Digest) {
	header := w.Header()
	header["Location"] = []string{"/v2/" + string(name) + "/blobs/" + string(d)}
	header["Docker-Content-Digest"] = []string{string(d)}
	empty(w, http.StatusCreated)
}

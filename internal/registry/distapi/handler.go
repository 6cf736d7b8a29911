package distapi

import (
	"context"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// Options tunes a Handler.
type Options struct {
	// Actor names who sends a request, for the deletion log. nil: anonymous@ and
	// the remote host.
	Actor func(*http.Request) string
	// Observer counts requests by endpoint; nil: nobody does.
	Observer *httpserve.Observer
	// PageMax bounds a page of a listing whose request says how long it is to
	// be, and of the catalog and the referrers always; 0 = 1000.
	PageMax int
	// Spool makes a nameless file for the body of a large manifest that is on its way;
	// nil: in the system's directory for temporary files.
	Spool func() (*os.File, error)
}

// Handler serves /v2/. Give it every path that begins with /v2, as the client
// sent it: a mux that cleans paths would answer with redirects.
type Handler struct {
	store   *meta.Store
	blobs   blob.Store
	uploads *upload.Sessions
	actor   func(*http.Request) string
	pageMax int
	routes  [endpoints]*httpserve.Route

	spool        func() (*os.File, error)
	manifests    *semaphore.Weighted // bytes of large manifests that have come, and are being stored
	manifestWait time.Duration
}

const pageMaxDefault = 1000

// New returns the handler of the OCI face.
func New(store *meta.Store, blobs blob.Store, uploads *upload.Sessions, o Options) *Handler {
	h := &Handler{
		store: store, blobs: blobs, uploads: uploads, actor: o.Actor, pageMax: o.PageMax, spool: o.Spool,
		manifests: semaphore.NewWeighted(manifestBudget), manifestWait: manifestWait,
	}
	if h.actor == nil {
		h.actor = anonymous
	}
	if h.spool == nil {
		h.spool = systemTemp
	}
	if h.pageMax <= 0 {
		h.pageMax = pageMaxDefault
	}
	if o.Observer != nil {
		for e, name := range names {
			h.routes[e] = o.Observer.Route(name)
		}
	}
	return h
}

func anonymous(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return "anonymous@" + host
}

// Header values that never change, shared by all answers.
var (
	nosniff     = []string{"nosniff"}
	typeJSON    = []string{"application/json"}
	typeIndex   = []string{oci.MediaTypeIndex}
	typeBytes   = []string{"application/octet-stream"}
	acceptBytes = []string{"bytes"}
	apiVersion  = []string{"registry/2.0"}
	zeroLength  = []string{"0"}
	immutable   = []string{"max-age=31536000, immutable"} // what a digest names never changes
)

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e, rawName, last := split(r.URL.Path)
	httpserve.Mark(w, h.routes[e])
	w.Header()["X-Content-Type-Options"] = nosniff
	Announce(w)
	if e == noEndpoint {
		h.fail(w, r, fault.New(fault.NotFound, "the API has no such path").WithCode(oci.CodeUnsupported))
		return
	}
	var name oci.Name
	if e != apiBase && e != apiCatalog {
		var err error
		if name, err = oci.ParseName(rawName); err != nil {
			h.fail(w, r, err)
			return
		}
	}
	act := h.act(e, r.Method)
	if act == nil {
		w.Header().Set("Allow", allow[e])
		h.fail(w, r, &methodError{fault.New(fault.Invalid, "%.16s is not supported here", r.Method).WithCode(oci.CodeUnsupported)})
		return
	}
	if err := act(h, w, r, name, last); err != nil {
		h.fail(w, r, err)
	}
}

// action answers a request, or returns an error and has written nothing.
type action func(h *Handler, w http.ResponseWriter, r *http.Request, name oci.Name, last string) error

func (h *Handler) act(e endpoint, method string) action {
	read := method == http.MethodGet || method == http.MethodHead
	switch {
	case e == apiManifest && read:
		return (*Handler).getManifest
	case e == apiBlob && method == http.MethodHead:
		return (*Handler).headBlob
	case e == apiBlob && method == http.MethodGet:
		return (*Handler).getBlob
	case e == apiBase && read:
		return (*Handler).base
	case e == apiTags && read:
		return (*Handler).tags
	case e == apiReferrer && read:
		return (*Handler).referrers
	case e == apiCatalog && read:
		return (*Handler).catalog
	case e == apiUpload && read:
		return (*Handler).uploadStatus
	case e == apiUploads && method == http.MethodPost:
		return (*Handler).startUpload
	case e == apiUpload && method == http.MethodPatch:
		return (*Handler).appendUpload
	case e == apiUpload && method == http.MethodPut:
		return (*Handler).finishUpload
	case e == apiUpload && method == http.MethodDelete:
		return (*Handler).cancelUpload
	case e == apiManifest && method == http.MethodPut:
		return (*Handler).putManifest
	case e == apiManifest && method == http.MethodDelete:
		return (*Handler).deleteManifest
	case e == apiBlob && method == http.MethodDelete:
		return (*Handler).deleteBlob
	}
	return nil
}

// Announce sets the header by which clients recognise a registry. It belongs to
// every response of /v2/, refusals included.
func Announce(w http.ResponseWriter) { w.Header()["Docker-Distribution-Api-Version"] = apiVersion }

// base is dist-spec §Determining Support.
func (h *Handler) base(w http.ResponseWriter, r *http.Request, _ oci.Name, _ string) error {
	writeJSON(w, r, typeJSON, []byte("{}"))
	return nil
}

// gone reports that an error is but the echo of a client that has left.
func gone(r *http.Request) bool { return r.Context().Err() == context.Canceled }

package distapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/upload"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Errors whose status is not that of their kind.
type (
	methodError struct{ error } // 405
	largeError  struct{ error } // 413
	longError   struct{ error } // 414
	rangeError  struct{ error } // 416
	stateError  struct{ error } // 412
)

func (e *methodError) Unwrap() error { return e.error }
func (e *largeError) Unwrap() error  { return e.error }
func (e *longError) Unwrap() error   { return e.error }
func (e *rangeError) Unwrap() error  { return e.error }
func (e *stateError) Unwrap() error  { return e.error }

// statusClientGone is what nginx calls it; nobody reads it but the log.
const statusClientGone = 499

func (h *Handler) status(r *http.Request, err error) int {
	var (
		method *methodError
		large  *largeError
		long   *longError
		rng    *rangeError
		state  *stateError
	)
	switch {
	case errors.As(err, &method):
		return http.StatusMethodNotAllowed
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &long):
		return http.StatusRequestURITooLong
	case errors.As(err, &rng), errors.Is(err, upload.ErrOffset):
		return http.StatusRequestedRangeNotSatisfiable
	case errors.As(err, &state):
		return http.StatusPreconditionFailed
	}
	status := httpserve.Status(err)
	if status == http.StatusInternalServerError && gone(r) {
		return statusClientGone
	}
	return status
}

type errorBody struct {
	Errors []errorItem `json:"errors"`
}

type errorItem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// fail answers with an error in the specification's form (dist-spec §Error
// Codes). An answer to HEAD has no body.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	httpserve.Note(w, err)
	if sqldb.IsFull(err) {
		err = fault.Wrap(fault.Full, err, "the registry's disk is full: delete images that are not needed and run a collection, or add space, then try again").WithCode(oci.CodeStorageFull)
	}
	status := h.status(r, err)
	public := fault.Public(err)
	code := public.Code
	if code == "" {
		code = codeOf(public.Kind)
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	body, jerr := json.Marshal(errorBody{[]errorItem{{Code: code, Message: public.Public, Detail: public.Detail}}})
	if jerr != nil { // a detail that is no JSON is a mistake of ours
		body, _ = json.Marshal(errorBody{[]errorItem{{Code: code, Message: public.Public}}})
	}
	header := w.Header()
	header["Content-Type"] = typeJSON
	if r.Method == http.MethodHead {
		delete(header, "Content-Type")
		w.WriteHeader(status)
		return
	}
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

func codeOf(k fault.Kind) string {
	switch k {
	case fault.Denied:
		return oci.CodeDenied
	case fault.Busy:
		return oci.CodeTooManyRequests
	case fault.Full:
		return oci.CodeStorageFull
	case fault.Invalid, fault.Conflict, fault.NotFound:
		return oci.CodeUnsupported
	}
	return oci.CodeUnknown
}

func writeJSON(w http.ResponseWriter, r *http.Request, contentType []string, body []byte) {
	header := w.Header()
	header["Content-Type"] = contentType
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that is gone needs no answer
	}
}

// empty answers with a status and no body.
func empty(w http.ResponseWriter, status int) {
	if status != http.StatusNoContent {
		w.Header()["Content-Length"] = zeroLength
	}
	w.WriteHeader(status)
}

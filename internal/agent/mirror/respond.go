package mirror

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// statusClientGone is what nginx calls it; nobody reads it but the log.
const statusClientGone = 499

// rangeError is 416, methodError 405.
type (
	rangeError  struct{ error }
	methodError struct{ error }
)

func (e *rangeError) Unwrap() error  { return e.error }
func (e *methodError) Unwrap() error { return e.error }

type errorBody struct {
	Errors []errorItem `json:"errors"`
}

type errorItem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// fail answers with an error in the form of dist-spec v1.1 §Error Codes. What an
// upstream refuses is handed on with its status and its own words.
func (m *Mirror) fail(w http.ResponseWriter, r *http.Request, err error) {
	httpserve.Note(w, err)
	for _, key := range []string{"Docker-Content-Digest", "Etag", "Accept-Ranges", "Content-Length", headerSource} {
		w.Header().Del(key)
	}
	var refusal *ociclient.StatusError
	if errors.As(err, &refusal) && refusal.Status >= 400 && refusal.Status < 500 && refusal.At == "" && !ownHeaders(refusal.Status) {
		handOn(w, r, refusal)
		return
	}
	status, code, message := m.explain(r, err)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	if refusal != nil && refusal.Header.Get("Retry-After") != "" {
		w.Header().Set("Retry-After", refusal.Header.Get("Retry-After"))
	}
	writeError(w, r, status, code, message)
}

// ownHeaders reports whether a status is about headers of the node's question that the
// client may not have sent: the node asks for the rest of a blob by a range of its own, and
// the client's range was checked here. Such an upstream has failed.
func ownHeaders(status int) bool {
	switch status {
	case http.StatusRequestedRangeNotSatisfiable, http.StatusPreconditionFailed, http.StatusExpectationFailed:
		return true
	}
	return false
}

// explain chooses the answer to an error of this node or of what is behind it.
func (m *Mirror) explain(r *http.Request, err error) (status int, code, message string) {
	var (
		refusal *ociclient.StatusError
		method  *methodError
		rng     *rangeError
		late    interface{ Timeout() bool }
	)
	public := fault.Public(err)
	code, message = public.Code, public.Public
	if code == "" {
		code = oci.CodeUnknown
	}
	switch {
	case errors.As(err, &method):
		return http.StatusMethodNotAllowed, code, message
	case errors.As(err, &rng):
		return http.StatusRequestedRangeNotSatisfiable, code, message
	case r.Context().Err() != nil:
		return statusClientGone, code, message
	case errors.Is(err, fetch.ErrClosing):
		return http.StatusServiceUnavailable, code, message
	case errors.As(err, &refusal):
		return http.StatusBadGateway, code, refusal.Error() + ", which is its own trouble; try again later"
	case fetch.IsWrongContent(err):
		return http.StatusBadGateway, code, "the upstream sends something else than what was asked for"
	case errors.As(err, &late) && late.Timeout(), fetch.IsStalled(err):
		return http.StatusGatewayTimeout, code, message
	case errors.Is(err, fault.Busy):
		return http.StatusBadGateway, code, message
	}
	return httpserve.Status(err), code, message
}

// handOn answers as the upstream did.
func handOn(w http.ResponseWriter, r *http.Request, refusal *ociclient.StatusError) {
	header := w.Header()
	for key, values := range refusal.Header {
		header[key] = values
	}
	header.Set(headerSource, sourceUpstream)
	if len(refusal.Body) > 0 && strings.Contains(header.Get("Content-Type"), "json") {
		header.Set("Content-Length", strconv.Itoa(len(refusal.Body)))
		w.WriteHeader(refusal.Status)
		_, _ = w.Write(refusal.Body) // a client that is gone needs no answer
		return
	}
	code := oci.CodeUnknown
	switch refusal.Status {
	case http.StatusUnauthorized:
		code = oci.CodeUnauthorized
	case http.StatusForbidden:
		code = oci.CodeDenied
	case http.StatusNotFound:
		if code = oci.CodeBlobUnknown; strings.Contains(r.URL.Path, "/manifests/") {
			code = oci.CodeManifestUnknown
		}
	case http.StatusTooManyRequests:
		code = oci.CodeTooManyRequests
	}
	writeError(w, r, refusal.Status, code, refusal.Error())
}

func writeError(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	body, err := json.Marshal(errorBody{[]errorItem{{Code: code, Message: message}}})
	if err != nil { // two strings are always JSON
		body = nil
	}
	header := w.Header()
	if r.Method == http.MethodHead {
		header.Del("Content-Type")
		header.Del("Content-Length")
		w.WriteHeader(status)
		return
	}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

// etagIn reports whether one of the entity tags of an If-None-Match header is
// etag, or a star (RFC 9110 §13.1.2).
func etagIn(header []string, etag string) bool {
	for _, line := range header {
		for one := range strings.SplitSeq(line, ",") {
			if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == etag {
				return true
			}
		}
	}
	return false
}

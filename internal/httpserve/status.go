package httpserve

import (
	"errors"
	"net/http"

	"github.com/fairway-registry/fairway/internal/fault"
)

// Status is the status code that answers err. It goes by the kind alone; a
// face that knows better for one of its codes says so itself.
func Status(err error) int {
	switch fault.KindOf(err) {
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Denied:
		return http.StatusForbidden
	case fault.Busy:
		return http.StatusServiceUnavailable
	case fault.Full:
		return http.StatusInsufficientStorage
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusInternalServerError
}

package ociclient

import (
	"net/http"
	"strconv"
	"strings"
)

// Total is the size of the whole that an answer is, or is a part of, in bytes, as
// the upstream says: by its Content-Length, or by the Content-Range of a part or
// of a 416 (RFC 9110 §14.4). −1 if it does not say, or is about something else.
func (r *Response) Total() int64 {
	if r.odd != "" {
		return -1
	}
	switch r.Status {
	case http.StatusOK:
		return max(r.Size, -1)
	case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		text, ok := strings.CutPrefix(r.Header.Get("Content-Range"), "bytes ")
		_, total, slash := strings.Cut(text, "/")
		if n, err := strconv.ParseInt(strings.TrimSpace(total), 10, 64); ok && slash && err == nil && n >= 0 {
			return n
		}
	}
	return -1
}

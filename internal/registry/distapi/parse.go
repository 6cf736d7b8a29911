package distapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// etagIn reports whether one of the entity tags of an If-Match or
// If-None-Match header is etag, or a star. A weak tag matches too: the content
// of a digest never changes (RFC 9110 §13.1).
func etagIn(header []string, etag string) bool {
	for _, line := range header {
		for line != "" {
			var one string
			one, line, _ = strings.Cut(line, ",") // digests contain no comma
			one = strings.TrimSpace(one)
			if one == "*" || strings.TrimPrefix(one, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// number reads decimal digits, which ParseInt alone does not insist on.
func number(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// contentRange reads the Content-Range of a chunk: first-last, inclusive
// (dist-spec §Pushing a blob in chunks). The form of RFC 9110 is understood
// too, because clients send it.
func contentRange(s string) (first, last int64, err error) {
	bare := strings.TrimSpace(strings.TrimPrefix(s, "bytes "))
	bare, _, _ = strings.Cut(bare, "/")
	a, b, ok := strings.Cut(bare, "-")
	if ok {
		var okFirst, okLast bool
		first, okFirst = number(a)
		last, okLast = number(b)
		ok = okFirst && okLast && first <= last && last-first+1 > 0
	}
	if !ok {
		return 0, 0, fault.New(fault.Invalid, "invalid Content-Range %.64q: want first-last, in bytes", s).WithCode(oci.CodeBlobUploadInvalid)
	}
	return first, last, nil
}

// parseQuery reads the query, which net/http's own accessor cuts short in
// silence where it is malformed.
func parseQuery(r *http.Request) (url.Values, error) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the query is malformed").WithCode(oci.CodeUnsupported)
	}
	return q, nil
}

// page is what a listing's request asks for.
type page struct {
	n    int // −1: did not say
	last string
}

func parsePage(q url.Values, max int) (page, error) {
	p := page{n: -1, last: q.Get("last")}
	if q.Get("n") == "" { // Distribution's clients send "n="
		return p, nil
	}
	n, ok := number(q.Get("n"))
	if !ok {
		return p, fault.New(fault.Invalid, "invalid page size n=%.32q: want a number that is not negative", q.Get("n")).WithCode(oci.CodePaginationNumberInvalid)
	}
	p.n = int(min(n, int64(max)))
	return p, nil
}

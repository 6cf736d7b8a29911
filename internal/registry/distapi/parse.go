package distapi

import (
	"errors"
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

var (
	errRangeUnit   = errors.New("its unit is not bytes")
	errRangeForm   = errors.New("it is not of the form first-last, first- or -length")
	errRangeBeyond = errors.New("it is beyond the end")
)

// rangesMax bounds the ranges in one request; more are an attack (RFC 9110 §14.2).
const rangesMax = 32

// satisfiable checks a Range header against content of size bytes (RFC 9110
// §14.1.2). At least one of the ranges must overlap it.
func satisfiable(header []string, size int64) error {
	unit, set, ok := strings.Cut(header[0], "=")
	if !ok {
		return errRangeForm
	}
	if !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return errRangeUnit
	}
	if len(header) > 1 || unit != "bytes" { // net/http knows it in lower case only
		return errRangeForm
	}
	overlap, count := false, 0
	for part := range strings.SplitSeq(set, ",") {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue // a list may have empty elements (RFC 9110 §5.6.1)
		}
		if count++; count > rangesMax {
			return errRangeForm
		}
		hit, err := overlaps(part, size)
		if err != nil {
			return err
		}
		overlap = overlap || hit
	}
	switch {
	case count == 0:
		return errRangeForm
	case !overlap:
		return errRangeBeyond
	}
	return nil
}

func overlaps(part string, size int64) (bool, error) {
	first, last, ok := strings.Cut(part, "-")
	if !ok {
		return false, errRangeForm
	}
	if first == "" {
		n, ok := number(last)
		if !ok {
			return false, errRangeForm
		}
		return n > 0 && size > 0, nil
	}
	a, ok := number(first)
	if !ok {
		return false, errRangeForm
	}
	if last != "" {
		if b, ok := number(last); !ok || b < a {
			return false, errRangeForm
		}
	}
	return a < size, nil
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
	if !q.Has("n") {
		return p, nil
	}
	n, ok := number(q.Get("n"))
	if !ok {
		return p, fault.New(fault.Invalid, "invalid page size n=%.32q: want a number that is not negative", q.Get("n")).WithCode(oci.CodeUnsupported)
	}
	p.n = int(min(n, int64(max)))
	return p, nil
}

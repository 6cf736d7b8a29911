package httpserve

import (
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// Range is a part of some content, in bytes.
type Range struct{ First, Length int64 }

// ContentRange renders the range of content of size bytes (RFC 9110 §14.4).
func (r Range) ContentRange(size int64) string {
	return "bytes " + strconv.FormatInt(r.First, 10) + "-" + strconv.FormatInt(r.First+r.Length-1, 10) + "/" + strconv.FormatInt(size, 10)
}

// Errors of ParseRanges, both of which are answered with 416.
var (
	ErrRangeForm   = errors.New("it is not of the form first-last, first- or -length")
	ErrRangeBeyond = errors.New("it is beyond the end")
)

// rangesMax is how many ranges are served in parts. Whoever asks for more gets
// the whole.
const rangesMax = 1024

// ParseRanges reads a request's Range header against content of size bytes (RFC
// 9110 §14.2). No ranges without an error mean the whole: the header is absent,
// its unit is not known, or the ranges overlap to more than the whole has, or are
// very many. Ranges keep their order; those beyond the end are left out.
func ParseRanges(header []string, size int64) ([]Range, error) {
	if len(header) == 0 || len(header) == 1 && header[0] == "" {
		return nil, nil
	}
	unit, set, ok := strings.Cut(header[0], "=")
	if !ok || len(header) > 1 {
		return nil, ErrRangeForm
	}
	if !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, nil
	}
	var (
		ranges []Range
		count  int
		total  int64
	)
	for part := range strings.SplitSeq(set, ",") {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue // a list may have empty elements (RFC 9110 §5.6.1)
		}
		count++
		one, err := parseRange(part, size)
		if errors.Is(err, ErrRangeBeyond) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(ranges) <= rangesMax {
			ranges = append(ranges, one)
			total += one.Length // at most rangesMax times size, or negative
		}
	}
	switch {
	case count == 0:
		return nil, ErrRangeForm
	case len(ranges) == 0:
		return nil, ErrRangeBeyond
	case len(ranges) > rangesMax, len(ranges) > 1 && (total > size || total < 0):
		return nil, nil
	}
	return ranges, nil
}

func parseRange(part string, size int64) (Range, error) {
	first, last, ok := strings.Cut(part, "-")
	if !ok {
		return Range{}, ErrRangeForm
	}
	if first == "" {
		n, ok := position(last)
		if !ok {
			return Range{}, ErrRangeForm
		}
		if n = min(n, size); n == 0 {
			return Range{}, ErrRangeBeyond
		}
		return Range{size - n, n}, nil
	}
	from, ok := position(first)
	to := int64(math.MaxInt64)
	if ok && last != "" {
		to, ok = position(last)
	}
	switch {
	case !ok || to < from:
		return Range{}, ErrRangeForm
	case from >= size:
		return Range{}, ErrRangeBeyond
	}
	return Range{from, min(to, size-1) - from + 1}, nil
}

// position reads decimal digits. What no content can reach is the largest number.
func position(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return math.MaxInt64, true
	}
	return n, true
}

// SendContent answers a GET or HEAD with the whole of size bytes, or with ranges
// of it that ParseRanges returned. The Content-Type header must be set; send
// writes one range to w. After an error the response is incomplete, which the
// client sees by its length.
func SendContent(w http.ResponseWriter, r *http.Request, size int64, ranges []Range, send func(w io.Writer, part Range) error) error {
	header, head := w.Header(), r.Method == http.MethodHead
	if len(ranges) > 1 {
		return sendParts(w, head, size, ranges, send)
	}
	status, whole := http.StatusOK, Range{0, size}
	if len(ranges) == 1 {
		status, whole = http.StatusPartialContent, ranges[0]
		header["Content-Range"] = []string{whole.ContentRange(size)}
	}
	header["Content-Length"] = []string{strconv.FormatInt(whole.Length, 10)}
	w.WriteHeader(status)
	if head || whole.Length == 0 {
		return nil
	}
	return send(w, whole)
}

// sendParts answers with multipart/byteranges (RFC 9110 §14.6).
func sendParts(w http.ResponseWriter, head bool, size int64, ranges []Range, send func(w io.Writer, part Range) error) error {
	header := w.Header()
	frame := NewParts(ranges, size, header.Get("Content-Type"))
	header.Set("Content-Type", frame.Type())
	header.Set("Content-Length", strconv.FormatInt(frame.Length(), 10))
	w.WriteHeader(http.StatusPartialContent)
	if head {
		return nil
	}
	for i, part := range ranges {
		if _, err := w.Write(frame.Head(i)); err != nil {
			return err
		}
		if err := send(w, part); err != nil {
			return err
		}
	}
	_, err := w.Write(frame.Tail())
	return err
}

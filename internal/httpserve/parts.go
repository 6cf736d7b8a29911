package httpserve

import (
	"io"
	"mime/multipart"
)

// Parts are the frame of an answer of several ranges (RFC 9110 §14.6), for whoever
// hands them out piece by piece. SendContent is for the others.
type Parts struct {
	Ranges      []Range
	size        int64 // of the whole
	contentType string
	boundary    string
}

// NewParts returns the frame of ranges of content of size bytes.
func NewParts(ranges []Range, size int64, contentType string) *Parts {
	return &Parts{Ranges: ranges, size: size, contentType: contentType, boundary: multipart.NewWriter(io.Discard).Boundary()}
}

// Type is the answer's Content-Type.
func (p *Parts) Type() string { return "multipart/byteranges; boundary=" + p.boundary }

// Head is what precedes the bytes of part i.
func (p *Parts) Head(i int) []byte {
	before := ""
	if i > 0 {
		before = "\r\n"
	}
	return []byte(before + "--" + p.boundary + "\r\nContent-Range: " + p.Ranges[i].ContentRange(p.size) + "\r\nContent-Type: " + p.contentType + "\r\n\r\n")
}

// Tail ends the answer.
func (p *Parts) Tail() []byte { return []byte("\r\n--" + p.boundary + "--\r\n") }

// Length is the answer's Content-Length.
func (p *Parts) Length() int64 {
	n := int64(len(p.Tail()))
	for i, r := range p.Ranges {
		n += int64(len(p.Head(i))) + r.Length
	}
	return n
}

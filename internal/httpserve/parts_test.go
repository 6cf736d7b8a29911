package httpserve

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"slices"
	"testing"
)

// TestSpec_MultipartByteranges is RFC 9110 §14.6.
func TestSpec_MultipartByteranges(t *testing.T) {
	content := []byte("0123456789")
	p := NewParts([]Range{{7, 3}, {0, 1}}, 10, "application/octet-stream")
	var b bytes.Buffer
	for i, r := range p.Ranges {
		b.Write(p.Head(i))
		b.Write(content[r.First : r.First+r.Length])
	}
	b.Write(p.Tail())
	if int64(b.Len()) != p.Length() {
		t.Errorf("%d bytes, and %d are announced", b.Len(), p.Length())
	}
	_, params, err := mime.ParseMediaType(p.Type())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := multipart.NewReader(&b, params["boundary"]); ; {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part.Header.Get("Content-Range")+" "+part.Header.Get("Content-Type")+" "+string(text))
	}
	if want := []string{"bytes 7-9/10 application/octet-stream 789", "bytes 0-0/10 application/octet-stream 0"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestParseRanges_AnEmptyHeaderIsNone(t *testing.T) {
	if got, err := ParseRanges([]string{""}, 8); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

package httpserve

import (
	"errors"
	"io"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseRanges(t *testing.T) {
	for header, want := range map[string]struct {
		ranges []Range
		err    error
	}{
		"bytes=0-0":                             {[]Range{{0, 1}}, nil},
		"bytes=0-":                              {[]Range{{0, 8}}, nil},
		"bytes=-3":                              {[]Range{{5, 3}}, nil},
		"bytes=-99999999999999999999":           {[]Range{{0, 8}}, nil},
		"bytes=2-99999999999999999999":          {[]Range{{2, 6}}, nil},
		"bytes=2-9223372036854775807":           {[]Range{{2, 6}}, nil},
		" BYTES =1-2":                           {[]Range{{1, 2}}, nil},
		"bytes= 4-5 ,, 0-1,":                    {[]Range{{4, 2}, {0, 2}}, nil},
		"bytes=0-1,9-":                          {[]Range{{0, 2}}, nil},
		"bytes=0-7,0-0":                         {nil, nil},
		"pages=1-2":                             {nil, nil},
		"bytes=8-":                              {nil, ErrRangeBeyond},
		"bytes=-0":                              {nil, ErrRangeBeyond},
		"bytes=99999999999999999999-":           {nil, ErrRangeBeyond},
		"bytes":                                 {nil, ErrRangeForm},
		"bytes=":                                {nil, ErrRangeForm},
		"bytes=,":                               {nil, ErrRangeForm},
		"bytes=5-1":                             {nil, ErrRangeForm},
		"bytes=99999999999999999999-1":          {nil, ErrRangeForm},
		"bytes=0-0-0":                           {nil, ErrRangeForm},
		"bytes=+1-2":                            {nil, ErrRangeForm},
		"bytes=1":                               {nil, ErrRangeForm},
		"bytes=0-1,x":                           {nil, ErrRangeForm},
		"bytes=" + strings.Repeat("0-,", 1<<16): {nil, nil},
	} {
		got, err := ParseRanges([]string{header}, 8)
		if !slices.Equal(got, want.ranges) || !errors.Is(err, want.err) {
			t.Errorf("%.64q: %v, %v; want %v, %v", header, got, err, want.ranges, want.err)
		}
	}
	if _, err := ParseRanges([]string{"bytes=0-0", "bytes=1-1"}, 8); !errors.Is(err, ErrRangeForm) {
		t.Errorf("two headers: %v", err)
	}
	if _, err := ParseRanges([]string{"bytes=0-"}, 0); !errors.Is(err, ErrRangeBeyond) {
		t.Errorf("no content: %v", err)
	}
}

// FuzzRanges checks that whatever ParseRanges returns can be sent.
func FuzzRanges(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-1", "bytes=1-2,5-6", "bytes=,", "bytes= 1-2 , 3-", "bytes=9-", "bytes=1-2,9-", "Bytes=0-1", "pages=1", "bytes", "bytes=0-0-0", "bytes=-99999999999999999999", "bytes=0-99999999999999999999", " bytes=0-1"} {
		f.Add(s, int64(8))
	}
	f.Add("bytes=0-", int64(0))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		size = max(max(size, -size)%4096, 0)
		ranges, err := ParseRanges([]string{header}, size)
		if err != nil && (len(ranges) > 0 || !errors.Is(err, ErrRangeForm) && !errors.Is(err, ErrRangeBeyond)) {
			t.Errorf("%q of %d bytes: %v, %v", header, size, ranges, err)
		}
		var sum int64
		for _, r := range ranges {
			if r.First < 0 || r.Length <= 0 || r.First+r.Length > size {
				t.Errorf("%q of %d bytes: %+v", header, size, r)
			}
			sum += r.Length
		}
		if sum > size {
			t.Errorf("%q of %d bytes: %d bytes to send", header, size, sum)
		}
		w, content := httptest.NewRecorder(), strings.Repeat("x", int(size))
		err = SendContent(w, httptest.NewRequest("GET", "/", nil), size, ranges, func(w io.Writer, part Range) error {
			_, err := io.WriteString(w, content[part.First:part.First+part.Length])
			return err
		})
		if got := w.Header().Get("Content-Length"); err != nil || got != "" && got != strconv.Itoa(w.Body.Len()) {
			t.Errorf("%q of %d bytes: %v; stated length %s, sent %d", header, size, err, got, w.Body.Len())
		}
	})
}

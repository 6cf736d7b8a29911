package distapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

func TestSplit_ReadsFromTheEnd(t *testing.T) {
	d := "sha256:" + hex64
	for path, want := range map[string]struct {
		e          endpoint
		name, last string
	}{
		"/v2/":                                      {apiBase, "", ""},
		"/v2":                                       {apiBase, "", ""},
		"/v2/_catalog":                              {apiCatalog, "", ""},
		"/v2/a/b/c/manifests/v1":                    {apiManifest, "a/b/c", "v1"},
		"/v2/a/manifests/" + d:                      {apiManifest, "a", d},
		"/v2/a/blobs/" + d:                          {apiBlob, "a", d},
		"/v2/a/blobs/uploads/":                      {apiUploads, "a", ""},
		"/v2/a/blobs/uploads":                       {apiUploads, "a", ""},
		"/v2/a/blobs/uploads/id":                    {apiUpload, "a", "id"},
		"/v2/a/tags/list":                           {apiTags, "a", ""},
		"/v2/a/referrers/" + d:                      {apiReferrer, "a", d},
		"/v2/manifests/manifests/manifests":         {apiManifest, "manifests", "manifests"},
		"/v2/blobs/uploads/blobs/uploads/":          {apiUploads, "blobs/uploads", ""},
		"/v2/a/blobs/uploads/manifests/v1":          {apiManifest, "a/blobs/uploads", "v1"},
		"/v2/a/tags/list/tags/list":                 {apiTags, "a/tags/list", ""},
		"/v2/a/manifests/list":                      {apiManifest, "a", "list"},
		"/v2/referrers/blobs/uploads/id":            {apiUpload, "referrers", "id"},
		"/v2/manifests/v1":                          {apiManifest, "", "v1"},
		"/v2/a":                                     {noEndpoint, "", ""},
		"/v2/a/tags/other":                          {noEndpoint, "", ""},
		"/v2/a/uploads/id":                          {noEndpoint, "", ""},
		"/":                                         {noEndpoint, "", ""},
		"/v2x/a/tags/list":                          {noEndpoint, "", ""},
		"/v2/a/blobs/uploads/id/more":               {noEndpoint, "", ""},
		"/v2/a/b/blobs/uploads/manifests/tags/list": {apiTags, "a/b/blobs/uploads/manifests", ""},
	} {
		e, name, last := split(path)
		if e != want.e || name != want.name || last != want.last {
			t.Errorf("split(%q) = %s, %q, %q; want %s, %q, %q", path, names[e], name, last, names[want.e], want.name, want.last)
		}
	}
}

// FuzzSplit checks that what split finds, put together again, is the path.
func FuzzSplit(f *testing.F) {
	for _, p := range []string{"/v2/", "/v2/a/b/manifests/v1", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/x", "/v2/a/tags/list", "/v2//manifests/", "/v2/a/referrers/x", "v2", "/v2/_catalog"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		e, name, last := split(path)
		var again []string
		switch e {
		case noEndpoint:
			return
		case apiBase:
			again = []string{"/v2/", "/v2"}
		case apiCatalog:
			again = []string{"/v2/_catalog"}
		case apiUploads:
			again = []string{"/v2/" + name + "/blobs/uploads/", "/v2/" + name + "/blobs/uploads", "/v2/blobs/uploads"}
		case apiUpload:
			again = []string{"/v2/" + name + "/blobs/uploads/" + last}
		case apiTags:
			again = []string{"/v2/" + name + "/tags/list", "/v2/tags/list"}
		case apiManifest:
			again = []string{"/v2/" + name + "/manifests/" + last, "/v2/manifests/" + last}
		case apiBlob:
			again = []string{"/v2/" + name + "/blobs/" + last, "/v2/blobs/" + last}
		case apiReferrer:
			again = []string{"/v2/" + name + "/referrers/" + last, "/v2/referrers/" + last}
		}
		for _, a := range again {
			if a == path {
				return
			}
		}
		t.Errorf("split(%q) = %s, %q, %q", path, names[e], name, last)
	})
}

var specChunkRange = regexp.MustCompile(`^[0-9]+-[0-9]+$`)

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"0-0", "0-4", "5-0", "", "-", "0-", "-5", "bytes 0-4/5", "bytes 0-4/*", "0-9223372036854775807", "9223372036854775807-9223372036854775807", "99999999999999999999-0", "+1-2", " 1-2", "1-2 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, err := contentRange(s)
		if err != nil {
			var e *fault.Error
			if !errors.As(err, &e) || e.Kind != fault.Invalid || e.Code != oci.CodeBlobUploadInvalid {
				t.Errorf("contentRange(%q): error %v is not Invalid", s, err)
			}
			return
		}
		if first < 0 || last < first || last-first+1 <= 0 {
			t.Errorf("contentRange(%q) = %d, %d", s, first, last)
		}
		if specChunkRange.MatchString(s) {
			a, b, _ := strings.Cut(s, "-")
			if x, _ := strconv.ParseInt(a, 10, 64); x != first {
				t.Errorf("contentRange(%q): first is %d", s, first)
			}
			if x, _ := strconv.ParseInt(b, 10, 64); x != last {
				t.Errorf("contentRange(%q): last is %d", s, last)
			}
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "n=1", "n=0", "n=-1", "n=x&last=y", "n=99999999999999999999", "%zz", "a;b", "last=a&last=b", "n=1&n=2", "artifactType=a%2Fb", "mount=sha256:x&from=y", "tag=a&tag=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		q, err := parseQuery(&http.Request{URL: &url.URL{RawQuery: query}})
		if err == nil {
			var p page
			if p, err = parsePage(q, 100); err == nil {
				if p.n < -1 || p.n > 100 || (p.n == -1) != (q.Get("n") == "") {
					t.Errorf("page of %q is %+v", query, p)
				}
				return
			}
		}
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("query %q: error %v is not Invalid", query, err)
		}
	})
}

func FuzzETag(f *testing.F) {
	f.Add(`"a"`, "a")
	f.Add(`W/"a", "b"`, "b")
	f.Add(`*`, "x")
	f.Add(`"a`, "a")
	f.Add(`,,`, "")
	f.Fuzz(func(t *testing.T, header, tag string) {
		if strings.ContainsAny(tag, `",`) || strings.TrimSpace(tag) != tag {
			return
		}
		etag := `"` + tag + `"`
		if etagIn([]string{header}, etag) && !strings.Contains(header, "*") && !strings.Contains(header, etag) {
			t.Errorf("%q is found in %q", etag, header)
		}
		if !etagIn([]string{"\"x\", W/" + etag}, etag) {
			t.Errorf("%q is not found in a list with it", etag)
		}
	})
}

// FuzzRequest sends requests of any shape to the whole handler: no answer may
// be a 5xx, and every error is in the specification's form.
func FuzzRequest(f *testing.F) {
	d := "sha256:" + hex64
	for _, r := range []struct{ method, path, query, header, body string }{
		{"GET", "/v2/", "", "", ""},
		{"GET", "/v2/a/manifests/v1", "", "", ""},
		{"PUT", "/v2/a/manifests/v1", "tag=x", oci.MediaTypeImage, "{}"},
		{"PUT", "/v2/a/manifests/v1", "", "application/x", "{}"},
		{"PUT", "/v2/a/manifests/" + d, "", oci.MediaTypeIndex, `{"schemaVersion":2,"manifests":[]}`},
		{"POST", "/v2/a/blobs/uploads/", "digest=" + d, "", "x"},
		{"POST", "/v2/a/blobs/uploads/", "mount=" + d + "&from=b", "", ""},
		{"PATCH", "/v2/a/blobs/uploads/00000000-0000-0000-0000-000000000000", "", "0-0", "x"},
		{"PUT", "/v2/a/blobs/uploads/00000000-0000-0000-0000-000000000000", "digest=" + d, "0-0", "x"},
		{"GET", "/v2/a/tags/list", "n=1&last=x", "", ""},
		{"GET", "/v2/a/referrers/" + d, "artifactType=x&n=1&last=" + d, "", ""},
		{"GET", "/v2/_catalog", "n=1", "", ""},
		{"DELETE", "/v2/a/manifests/v1", "", "", ""},
		{"DELETE", "/v2/a/blobs/" + d, "", "", ""},
		{"BREW", "/v2/a/manifests/v1\x00", "%zz", "\n", ""},
	} {
		f.Add(r.method, r.path, r.query, r.header, r.body)
	}
	dir, err := os.MkdirTemp("", "distapi-fuzz") // f.TempDir is not shared with the targets
	if err != nil {
		f.Fatal(err)
	}
	files, err := fsblob.Open(dir, fsblob.Options{Reserve: -1, MinFree: -1})
	if err != nil {
		f.Fatal(err)
	}
	store, err := meta.Open(f.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db")})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		_ = errors.Join(store.Close(), files.Close(), os.RemoveAll(dir)) // a temporary directory
	})
	h := New(store, files, upload.New(store, files, upload.Options{}), Options{})
	code := regexp.MustCompile(`^\{"errors":\[\{"code":"[A-Z_]+","message":".+`)
	f.Fuzz(func(t *testing.T, method, path, query, header, body string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), RemoteAddr: "192.0.2.1:1"}
		if header != "" {
			r.Header = http.Header{"Content-Type": {header}, "Content-Range": {header}, "Range": {header}, "If-None-Match": {header}}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch {
		case w.Code >= 500:
			t.Errorf("%s %q?%q: status %d, %s", method, path, query, w.Code, w.Body)
		case w.Code >= 400 && method != "HEAD" && !code.MatchString(w.Body.String()):
			t.Errorf("%s %q?%q: status %d with body %s", method, path, query, w.Code, w.Body)
		}
	})
}

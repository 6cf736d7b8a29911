package distapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func TestSpec_DeterminingSupport_BaseIs200(t *testing.T) {
	s := serve(t)
	for _, path := range []string{"/v2/", "/v2"} {
		s.do("GET", path, nil).want(200).wantHeader("Docker-Distribution-Api-Version", "registry/2.0").wantBody([]byte("{}"))
	}
}

func TestSpec_PullingManifests_ByTagAndByDigest(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a/b", "v1", "one", "")
	for _, ref := range []string{"v1", string(i.digest)} {
		s.do("GET", "/v2/a/b/manifests/"+ref, nil).want(200).
			wantBody(i.content).
			wantHeader("Content-Type", oci.MediaTypeImage).
			wantHeader("Content-Length", strconv.Itoa(len(i.content))).
			wantHeader("Docker-Content-Digest", string(i.digest)).
			wantHeader("ETag", `"`+string(i.digest)+`"`).
			wantHeader("X-Content-Type-Options", "nosniff")
	}
}

func TestSpec_PullingManifests_ContentTypeHasNoParametersAndIsThePushedOne(t *testing.T) {
	s := serve(t)
	body := []byte(`any bytes at all`)
	s.putManifest("a", "x", "application/vnd.example.thing; charset=utf-8", body).want(201)
	s.do("GET", "/v2/a/manifests/x", nil).want(200).wantHeader("Content-Type", "application/vnd.example.thing").wantBody(body)
}

func TestSpec_PullingManifests_AcceptDoesNotChangeTheAnswer(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	s.do("GET", "/v2/a/manifests/v1", nil, "Accept", "application/vnd.docker.distribution.manifest.v2+json").want(200).
		wantHeader("Content-Type", oci.MediaTypeImage).wantBody(i.content)
}

func TestSpec_PullingManifests_UnknownIs404(t *testing.T) {
	s := serve(t)
	s.pushImage("a", "v1", "one", "")
	absent := string(sha256Of([]byte("absent")))
	for _, c := range []struct{ path, code string }{
		{"/v2/a/manifests/v2", oci.CodeManifestUnknown},
		{"/v2/a/manifests/" + absent, oci.CodeManifestUnknown},
		{"/v2/a/manifests/.no-tag-can-be-this", oci.CodeManifestUnknown},
		{"/v2/nobody/manifests/v1", oci.CodeManifestUnknown},
	} {
		s.do("GET", c.path, nil).wantError(404, c.code)
		if a := s.do("HEAD", c.path, nil).want(404); len(a.body) > 0 {
			t.Errorf("HEAD %s: error has a body", c.path)
		}
	}
}

func TestSpec_PullingManifests_MalformedDigestIs400(t *testing.T) {
	s := serve(t)
	s.do("GET", "/v2/a/manifests/sha256:baddigeststring", nil).wantError(400, oci.CodeDigestInvalid)
}

func TestSpec_PullingManifests_NameMustMatchTheGrammar(t *testing.T) {
	s := serve(t)
	for _, name := range []string{"UPPER", "-a", "a-", "a__-b", "a..b", "a___b", "a//b", "/a", "a/", "ü", "a b", "_catalog/x", "%2e%2e", "a%00", strings.Repeat("a", 256)} {
		s.do("GET", "/v2/"+strings.ReplaceAll(name, " ", "%20")+"/manifests/v1", nil).wantError(400, oci.CodeNameInvalid)
	}
}

func TestSpec_PullingManifests_PercentEncodedPathIsTheDecodedOne(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a/b", "v1", "one", "")
	s.do("GET", "/v2/a%2Fb/manifests/"+strings.Replace(string(i.digest), ":", "%3A", 1), nil).want(200).wantBody(i.content)
}

func TestRFC9110_ManifestIfNoneMatchIs304(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	etag := `"` + string(i.digest) + `"`
	for _, match := range []string{etag, "W/" + etag, "*", `"other", ` + etag} {
		for _, method := range []string{"GET", "HEAD"} {
			a := s.do(method, "/v2/a/manifests/v1", nil, "If-None-Match", match).want(304).wantHeader("ETag", etag)
			if len(a.body) > 0 {
				t.Errorf("%s with If-None-Match %s: 304 has a body", method, match)
			}
		}
	}
	s.do("GET", "/v2/a/manifests/v1", nil, "If-None-Match", `"other"`).want(200).wantBody(i.content)
}

func TestSpec_PullingBlobs_GetIs200WithDigest(t *testing.T) {
	s := serve(t)
	b := content("blob", 5000)
	d := s.push("a", b)
	s.do("GET", "/v2/a/blobs/"+string(d), nil).want(200).wantBody(b).
		wantHeader("Docker-Content-Digest", string(d)).
		wantHeader("Content-Length", "5000").
		wantHeader("Content-Type", "application/octet-stream").
		wantHeader("ETag", `"`+string(d)+`"`).
		wantHeader("Accept-Ranges", "bytes")
}

func TestCacheControl_WhatADigestNamesIsImmutable(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	const immutable = "max-age=31536000, immutable"
	layer, digest := "/v2/a/blobs/"+string(i.layer), "/v2/a/manifests/"+string(i.digest)
	for _, method := range []string{"GET", "HEAD"} {
		s.do(method, layer, nil).want(200).wantHeader("Cache-Control", immutable)
		s.do(method, digest, nil).want(200).wantHeader("Cache-Control", immutable)
		s.do(method, "/v2/a/manifests/v1", nil).want(200).wantHeader("Cache-Control", "")
		s.do(method, "/v2/a/manifests/"+string(i.layer), nil).want(404).wantHeader("Cache-Control", "")
		s.do(method, "/v2/a/blobs/"+string(i.digest), nil).want(404).wantHeader("Cache-Control", "")
	}
	s.do("GET", layer, nil, "Range", "bytes=0-1").want(206).wantHeader("Cache-Control", immutable)
	s.do("GET", layer, nil, "If-None-Match", "*").want(304).wantHeader("Cache-Control", immutable)
	s.do("GET", layer, nil, "Range", "bytes=9999-").want(416).wantHeader("Cache-Control", "")
	b, err := s.store.Blob(t.Context(), "a", i.layer)
	if err == nil {
		_, err = s.files.Delete(t.Context(), b.Key)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.do("GET", layer, nil).want(500).wantHeader("Cache-Control", "")
}

func TestAPIVersion_IsInEveryResponse(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	for _, c := range []struct{ method, path string }{
		{"GET", "/v2/"}, {"GET", "/v2"}, {"GET", "/v2/nothing"}, {"POST", "/v2/"}, {"GET", "/v2/_catalog"}, {"GET", "/v2/a/tags/list"},
		{"GET", "/v2/a/manifests/v1"}, {"HEAD", "/v2/a/manifests/v2"}, {"GET", "/v2/a/blobs/" + string(i.layer)}, {"GET", "/v2/UPPER/tags/list"},
		{"POST", "/v2/a/blobs/uploads/"}, {"DELETE", "/v2/a/manifests/v1"}, {"GET", "/v2/a/referrers/" + string(i.digest)},
	} {
		s.do(c.method, c.path, nil).wantHeader("Docker-Distribution-Api-Version", "registry/2.0")
	}
}

func TestSpec_PullingBlobs_UnknownIs404(t *testing.T) {
	s := serve(t)
	d := s.push("a", []byte("x"))
	absent := sha256Of([]byte("absent"))
	s.do("GET", "/v2/a/blobs/"+string(absent), nil).wantError(404, oci.CodeBlobUnknown)
	s.do("GET", "/v2/nobody/blobs/"+string(d), nil).want(404)
}

func TestSpec_PullingBlobs_MalformedDigestIs400(t *testing.T) {
	s := serve(t)
	for _, d := range []string{"sha256:xyz", "md5:d41d8cd98f00b204e9800998ecf8427e", "latest", "sha256:" + strings.Repeat("A", 64)} {
		for _, method := range []string{"GET", "DELETE"} {
			s.do(method, "/v2/a/blobs/"+d, nil).wantError(400, oci.CodeDigestInvalid)
		}
		s.do("HEAD", "/v2/a/blobs/"+d, nil).want(400)
	}
}

func TestR12_ARepositoryServesOnlyBlobsLinkedToIt(t *testing.T) {
	s := serve(t)
	d := s.push("a", []byte("secret"))
	s.pushImage("b", "v1", "one", "")
	s.do("GET", "/v2/b/blobs/"+string(d), nil).wantError(404, oci.CodeBlobUnknown)
	s.do("HEAD", "/v2/b/blobs/"+string(d), nil).want(404)
	i := s.pushImage("a", "v1", "two", "")
	s.do("GET", "/v2/b/manifests/"+string(i.digest), nil).wantError(404, oci.CodeManifestUnknown)
}

func TestSpec_PullingBlobs_Range(t *testing.T) {
	s := serve(t)
	b := content("range", 2048)
	path := "/v2/a/blobs/" + string(s.push("a", b))
	for _, c := range []struct {
		header, contentRange string
		want                 []byte
	}{
		{"bytes=500-1499", "bytes 500-1499/2048", b[500:1500]},
		{"bytes=500-", "bytes 500-2047/2048", b[500:]},
		{"bytes=-500", "bytes 1548-2047/2048", b[1548:]},
		{"bytes=-5000", "bytes 0-2047/2048", b},
		{"bytes=2000-5000", "bytes 2000-2047/2048", b[2000:]},
		{"bytes=0-0", "bytes 0-0/2048", b[:1]},
		{"bytes=2000-99999999999999999999", "bytes 2000-2047/2048", b[2000:]},
		{"bytes=-99999999999999999999", "bytes 0-2047/2048", b},
		{"Bytes=0-0", "bytes 0-0/2048", b[:1]},
		{"bytes=5-5,4096-", "bytes 5-5/2048", b[5:6]},
	} {
		s.do("GET", path, nil, "Range", c.header).want(206).wantBody(c.want).
			wantHeader("Content-Range", c.contentRange).
			wantHeader("Content-Length", strconv.Itoa(len(c.want)))
	}
}

func TestRFC9110_AnyNumberOfRanges(t *testing.T) {
	s := serve(t)
	b := content("range", 8192)
	path := "/v2/a/blobs/" + string(s.push("a", b))
	for _, n := range []int{2, 32, 33, 500, 1024} {
		first := func(i int) int { // not in order, and the last from the beginning
			if i == n-1 {
				return 0
			}
			return 8191 - 7*i - 2
		}
		set := make([]string, n)
		for i := range set {
			set[i] = fmt.Sprintf("%d-%d", first(i), first(i)+2)
		}
		a := s.do("GET", path, nil, "Range", "bytes="+strings.Join(set, ", ")).want(206).wantHeader("Docker-Content-Digest", string(sha256Of(b)))
		kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if err != nil || kind != "multipart/byteranges" || a.length != int64(len(a.body)) {
			t.Fatalf("%d ranges: type %q, error %v, length %d of %d", n, kind, err, a.length, len(a.body))
		}
		parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
		for i := range n {
			part, err := parts.NextPart()
			if err != nil {
				t.Fatalf("part %d of %d: %v", i, n, err)
			}
			got, err := io.ReadAll(part)
			first := first(i)
			if err != nil || !bytes.Equal(got, b[first:first+3]) || part.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/8192", first, first+2) ||
				part.Header.Get("Content-Type") != "application/octet-stream" {
				t.Fatalf("part %d of %d: %q, header %v, error %v", i, n, got, part.Header, err)
			}
		}
		if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
			t.Errorf("after %d parts: %v", n, err)
		}
	}
	// More, or more than the whole in sum, get the whole.
	s.do("GET", path, nil, "Range", "bytes="+strings.Repeat("0-0,", 1025)).want(200).wantBody(b)
	s.do("GET", path, nil, "Range", "bytes=0-8191,0-0").want(200).wantBody(b)
	s.do("GET", path, nil, "Range", "bytes="+strings.Repeat("0-,", 1024)).want(200).wantBody(b)
}

func TestSpec_PullingBlobs_RangeThatCannotBeSatisfiedIs416(t *testing.T) {
	s := serve(t)
	path := "/v2/a/blobs/" + string(s.push("a", content("range", 2048)))
	for _, header := range []string{"bytes=500-0", "bytes=5000-10000", "bytes=-0", "bytes=2048-", "bytes=", "bytes=x-y", "bytes=1-2-3", "bytes=+1-2", "bytes 0-1", "bytes=99999999999999999999-", "bytes=5000-,6000-99999999999999999999"} {
		s.do("GET", path, nil, "Range", header).wantError(416, oci.CodeSizeInvalid).wantHeader("Content-Range", "bytes */2048")
	}
	empty := "/v2/a/blobs/" + string(s.push("a", nil))
	s.do("GET", empty, nil, "Range", "bytes=0-").wantError(416, oci.CodeSizeInvalid)
	s.do("GET", empty, nil).want(200).wantBody(nil)
}

func TestRFC9110_UnknownRangeUnitIsIgnored(t *testing.T) {
	s := serve(t)
	b := content("range", 2048)
	path := "/v2/a/blobs/" + string(s.push("a", b))
	s.do("GET", path, nil, "Range", "pages=1-2").want(200).wantBody(b)
}

func TestRFC9110_BlobConditions(t *testing.T) {
	s := serve(t)
	b := content("cond", 300)
	d := string(s.push("a", b))
	path, etag := "/v2/a/blobs/"+d, `"`+d+`"`
	for _, method := range []string{"GET", "HEAD"} {
		s.do(method, path, nil, "If-None-Match", etag).want(304).wantBody(nil).wantHeader("ETag", etag)
		s.do(method, path, nil, "If-None-Match", `"other"`).want(200)
	}
	s.do("GET", path, nil, "If-Match", `"other"`).wantError(412, oci.CodeUnsupported)
	s.do("GET", path, nil, "If-Match", etag).want(200)
	s.do("GET", path, nil, "If-Range", etag, "Range", "bytes=0-9").want(206).wantBody(b[:10])
	s.do("GET", path, nil, "If-Range", `"other"`, "Range", "bytes=0-9").want(200).wantBody(b)
	s.do("GET", path, nil, "If-Range", `"other"`, "Range", "bytes=9999-").want(200).wantBody(b)
	s.do("GET", path, nil, "If-None-Match", etag, "Range", "bytes=9999-").want(304)
}

func TestSpec_CheckingIfContentExists_Head(t *testing.T) {
	s := serve(t)
	b := content("head", 1234)
	d := s.push("a", b)
	i := s.pushImage("a", "v1", "one", "")
	s.do("HEAD", "/v2/a/blobs/"+string(d), nil).want(200).
		wantHeader("Docker-Content-Digest", string(d)).wantHeader("Content-Length", "1234")
	for _, ref := range []string{"v1", string(i.digest)} {
		s.do("HEAD", "/v2/a/manifests/"+ref, nil).want(200).wantBody(nil).
			wantHeader("Docker-Content-Digest", string(i.digest)).
			wantHeader("Content-Type", oci.MediaTypeImage).
			wantHeader("Content-Length", strconv.Itoa(len(i.content)))
	}
	absent := string(sha256Of([]byte("absent")))
	if a := s.do("HEAD", "/v2/a/blobs/"+absent, nil).want(404); len(a.body) > 0 || a.header.Get("Content-Type") != "" {
		t.Errorf("the error of a HEAD has a body or a type")
	}
}

func TestSpec_Endpoints_UnknownPathIs404(t *testing.T) {
	s := serve(t)
	for _, path := range []string{"/v2/a", "/v2/a/b", "/v2/a/blobs/uploads/x/y", "/v2/a/tags/other", "/v2/_catalog/", "/v2/a/uploads/x"} {
		s.do("GET", path, nil).wantError(404, oci.CodeUnsupported)
	}
}

func TestSpec_Endpoints_WrongMethodIs405WithAllow(t *testing.T) {
	s := serve(t)
	d := string(sha256Of(nil))
	for _, c := range []struct{ method, path, allow string }{
		{"POST", "/v2/", "GET, HEAD"},
		{"PUT", "/v2/a/blobs/" + d, "GET, HEAD, DELETE"},
		{"POST", "/v2/a/manifests/v1", "GET, HEAD, PUT, DELETE"},
		{"GET", "/v2/a/blobs/uploads/", "POST"},
		{"POST", "/v2/a/blobs/uploads/0123", "GET, HEAD, PATCH, PUT, DELETE"},
		{"DELETE", "/v2/a/tags/list", "GET, HEAD"},
		{"DELETE", "/v2/a/referrers/" + d, "GET, HEAD"},
		{"PATCH", "/v2/_catalog", "GET, HEAD"},
	} {
		s.do(c.method, c.path, nil).wantError(405, oci.CodeUnsupported).wantHeader("Allow", c.allow)
	}
}

// collectedBefore is a store in which something happens before an object is
// opened, once.
type collectedBefore struct {
	blob.Store
	first chan func(key string)
}

func (c *collectedBefore) Open(ctx context.Context, key string) (blob.Reader, error) {
	select {
	case fn := <-c.first:
		fn(key)
	default:
	}
	return c.Store.Open(ctx, key)
}

func TestR5_PullOfABlobThatIsCollectedMeanwhileIs404(t *testing.T) {
	first := make(chan func(key string), 1)
	s := serveWith(t, options{blobs: func(b blob.Store) blob.Store { return &collectedBefore{b, first} }})
	b := content("collected", 5000)
	d := s.push("a", b)
	path := "/v2/a/blobs/" + string(d)
	all, err := s.store.RepoScope(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	due := meta.Due{Before: meta.NoLimit, Scope: all, Limit: 10}
	remove := func(key string) {
		if _, err := s.files.Delete(context.Background(), key); err != nil {
			t.Error(err)
		}
	}
	collect := func(key string) {
		ctx := context.Background()
		work := meta.Work{Actor: "test"}
		links, err := s.store.Links(ctx, due)
		for _, l := range links {
			work.Unlink = append(work.Unlink, meta.Claim{ID: l.ID, Version: l.Version, Before: meta.NoLimit})
		}
		_, uerr := s.store.Collect(ctx, work)
		blobs, berr := s.store.Blobs(ctx, due)
		work = meta.Work{Actor: "test"}
		for _, b := range blobs {
			work.Collect = append(work.Collect, meta.Claim{ID: b.ID, Version: b.Version, Before: meta.NoLimit})
		}
		done, cerr := s.store.Collect(ctx, work)
		if err := errors.Join(err, uerr, berr, cerr); err != nil || done.Collected != 1 {
			t.Errorf("%d links, %d blobs, %d collected: %v", len(links), len(blobs), done.Collected, err)
		}
		remove(key)
	}

	first <- collect
	a := s.do("GET", path, nil).wantError(404, oci.CodeBlobUnknown)
	for _, h := range []string{"Docker-Content-Digest", "ETag", "Accept-Ranges"} {
		a.wantHeader(h, "")
	}

	s.push("a", b)
	first <- func(key string) { collect(key); s.push("a", b) }
	s.do("GET", path, nil).want(200).wantBody(b)

	first <- remove // bytes that the database counts on are missing, which is no 404
	s.do("GET", path, nil).wantError(500, oci.CodeUnknown)
}

func TestPull_DamagedBytesAreNeverServedAndAPushMendsThem(t *testing.T) {
	log := &bytes.Buffer{}
	s := serveWith(t, options{log: log})
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 100) },
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"longer":  func(path string) error { return os.Truncate(path, 6000) },
	} {
		b := content(name, 5000)
		d := s.push("a", b)
		row, err := s.store.Blob(t.Context(), "a", d)
		if err != nil {
			t.Fatal(err)
		}
		path := "/v2/a/blobs/" + string(d)
		s.do("GET", path, nil).want(200).wantBody(b)
		if err := damage(filepath.Join(s.dir, filepath.FromSlash(row.Key))); err != nil {
			t.Fatal(err)
		}
		for _, header := range [][]string{nil, {"Range", "bytes=50-59"}, {"Range", "bytes=4000-"}} {
			a := s.do("GET", path, nil, header...).wantError(500, oci.CodeUnknown)
			for _, h := range []string{"Docker-Content-Digest", "ETag", "Accept-Ranges", "Content-Range"} {
				a.wantHeader(h, "")
			}
			if text := string(a.body); !strings.Contains(text, string(d)+" are damaged") || strings.Contains(text, row.Key) {
				t.Errorf("%s: the answer is %s; want it to name the damage and the digest, and no key", name, text)
			}
		}
		s.do("POST", "/v2/b/blobs/uploads/?digest="+string(d), b).want(201)
		s.do("GET", path, nil).want(200).wantBody(b)
		s.do("GET", path, nil, "Range", "bytes=4000-").want(206).wantBody(b[4000:])
	}
	s.stop() // the log's lines are written
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "status=500") && !(strings.Contains(line, "level=ERROR") && strings.Contains(line, "sha256:") &&
			strings.Contains(line, "blobs/") && strings.Contains(line, "fairway check --repair")) {
			t.Errorf("the log has %s; want an error that names the digest, the key and what to do", line)
		}
	}
	if n := strings.Count(log.String(), "bytes under blobs/"); n != 12 {
		t.Errorf("the log names a damaged key %d times, want 12", n)
	}
}

func TestPull_DamagedBytesThatAreReplacedMeanwhileAreLookedUpAgain(t *testing.T) {
	first := make(chan func(key string), 1)
	s := serveWith(t, options{blobs: func(b blob.Store) blob.Store { return &collectedBefore{b, first} }})
	b := content("replaced", 5000)
	d := s.push("a", b)
	first <- func(key string) {
		if err := os.Truncate(filepath.Join(s.dir, filepath.FromSlash(key)), 100); err != nil {
			t.Error(err)
		}
		s.push("a", b)
	}
	s.do("GET", "/v2/a/blobs/"+string(d), nil).want(200).wantBody(b)
}

func TestPull_TheKernelSendsTheFile(t *testing.T) {
	spy := &spyListener{}
	s := serveWith(t, options{listener: spy.wrap})
	b := content("sendfile", 3<<20)
	path := "/v2/a/blobs/" + string(s.push("a", b))
	s.do("GET", path, nil).want(200).wantBody(b)
	s.do("GET", path, nil, "Range", "bytes=1048576-").want(206).wantBody(b[1<<20:])
	if files, other := spy.counts(); files != 2 || other != 0 {
		t.Errorf("the connection was given %d files and %d other readers, want 2 and 0", files, other)
	}
}

package distapi_test

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fairway-registry/fairway/internal/oci"
)

type tagList struct {
	Name string   `json:"name"`
	Tags []string `json:"tags"`
}

var nextLink = regexp.MustCompile(`^<(/v2/[^>]*)>; rel="next"$`)

// next returns the path of the Link header, "" for none.
func (a *answer) next() string {
	a.t.Helper()
	l := a.header.Get("Link")
	if l == "" {
		return ""
	}
	m := nextLink.FindStringSubmatch(l)
	if m == nil {
		a.t.Fatalf("%s: Link %q is not of the form of RFC 5988", a.what, l)
	}
	return m[1]
}

func (s *server) tagged(tags ...string) {
	i := s.pushImage("a/b", "", "one", "")
	for _, tag := range tags {
		s.putManifest("a/b", tag, oci.MediaTypeImage, i.content).want(201)
	}
}

func TestSpec_ListingTags_WholeListInASCIIOrder(t *testing.T) {
	s := serve(t)
	s.tagged("b", "a", "B", "1.0", "_x", "a-b", "a.b")
	a := s.do("GET", "/v2/a/b/tags/list", nil).want(200).wantHeader("Content-Type", "application/json")
	var got tagList
	a.json(&got)
	want := []string{"1.0", "B", "_x", "a", "a-b", "a.b", "b"}
	if got.Name != "a/b" || !slices.Equal(got.Tags, want) || a.next() != "" {
		t.Errorf("got %+v with Link %q, want name a/b, tags %v, no Link", got, a.next(), want)
	}
}

func TestSpec_ListingTags_EmptyListIsAnEmptyArray(t *testing.T) {
	s := serve(t)
	s.pushImage("a/b", "", "one", "")
	s.do("GET", "/v2/a/b/tags/list", nil).want(200).wantBody([]byte(`{"name":"a/b","tags":[]}`))
}

func TestSpec_ListingTags_UnknownRepositoryIs404(t *testing.T) {
	s := serve(t)
	s.do("GET", "/v2/nobody/tags/list", nil).wantError(404, oci.CodeNameUnknown)
	s.do("GET", "/v2/nobody/tags/list?n=0", nil).wantError(404, oci.CodeNameUnknown)
}

func TestSpec_ListingTags_PagesByLinkCoverAll(t *testing.T) {
	s := serve(t)
	s.tagged("a", "b", "c", "d", "e")
	var all []string
	pages := 0
	for path := "/v2/a/b/tags/list?n=2"; path != ""; pages++ {
		a := s.do("GET", path, nil).want(200)
		var got tagList
		a.json(&got)
		all = append(all, got.Tags...)
		if path = a.next(); path != "" && len(got.Tags) != 2 {
			t.Errorf("a page that is not the last has %d tags, want 2", len(got.Tags))
		}
	}
	if want := []string{"a", "b", "c", "d", "e"}; !slices.Equal(all, want) || pages != 3 {
		t.Errorf("%d pages gave %v, want 3 and %v", pages, all, want)
	}
}

func TestSpec_ListingTags_NAndLast(t *testing.T) {
	s := serve(t)
	s.tagged("a", "b", "c", "d")
	for _, c := range []struct {
		query string
		want  []string
		link  bool
	}{
		{"n=0", nil, false},
		{"n=0&last=a", nil, false},
		{"n=2", []string{"a", "b"}, true},
		{"n=4", []string{"a", "b", "c", "d"}, false},
		{"n=99999999999", []string{"a", "b", "c", "d"}, false},
		{"last=b", []string{"c", "d"}, false},
		{"last=bb", []string{"c", "d"}, false},
		{"last=d", nil, false},
		{"n=1&last=b", []string{"c"}, true},
	} {
		a := s.do("GET", "/v2/a/b/tags/list?"+c.query, nil).want(200)
		var got tagList
		a.json(&got)
		if !slices.Equal(got.Tags, c.want) || got.Tags == nil || (a.next() != "") != c.link {
			t.Errorf("?%s gave %v, Link %q; want %v, Link %v", c.query, got.Tags, a.next(), c.want, c.link)
		}
	}
}

func TestBadInput_ListingParameters(t *testing.T) {
	s := serve(t)
	s.tagged("a")
	d := string(sha256Of(nil))
	for _, path := range []string{"/v2/a/b/tags/list", "/v2/_catalog", "/v2/a/b/referrers/" + d} {
		for _, query := range []string{"n=-1", "n=x", "n=1.5", "n=%2B1", "n=99999999999999999999"} {
			s.do("GET", path+"?"+query, nil).wantError(400, oci.CodePaginationNumberInvalid)
		}
		for _, query := range []string{"n=1;last=2", "%zz=1"} {
			s.do("GET", path+"?"+query, nil).wantError(400, oci.CodeUnsupported)
		}
		whole := s.do("GET", path, nil).want(200)
		for _, query := range []string{"n=", "n", "n=&last="} {
			s.do("GET", path+"?"+query, nil).want(200).wantBody(whole.body)
		}
	}
	s.do("GET", "/v2/a/b/tags/list?last=.bad", nil).wantError(400, oci.CodeTagInvalid)
	s.do("GET", "/v2/a/b/referrers/"+d+"?last=x", nil).wantError(400, oci.CodeDigestInvalid)
	s.do("GET", "/v2/_catalog?last="+strings.Repeat("a", 256), nil).wantError(400, oci.CodeNameInvalid)
}

func TestCatalog_PagesByLinkCoverAll(t *testing.T) {
	s := serveWith(t, options{pageMax: 2})
	want := []string{"a", "a/b", "b", "c/d", "e"}
	for _, name := range want {
		s.pushImage(name, "v1", "one", "")
	}
	var all []string
	for path := "/v2/_catalog"; path != ""; {
		a := s.do("GET", path, nil).want(200).wantHeader("Content-Type", "application/json")
		var got struct{ Repositories []string }
		a.json(&got)
		if len(got.Repositories) > 2 {
			t.Errorf("a page has %d names, want at most 2", len(got.Repositories))
		}
		all = append(all, got.Repositories...)
		path = a.next()
	}
	if !slices.Equal(all, want) {
		t.Errorf("got %v, want %v", all, want)
	}
	a := s.do("GET", "/v2/_catalog?n=0", nil).want(200).wantBody([]byte(`{"repositories":[]}`))
	if a.next() != "" {
		t.Errorf("n=0 has Link %q", a.next())
	}
}

// referrers follows Link headers and returns all descriptors.
func (s *server) referrers(path string) (all []v1.Descriptor, pages int) {
	s.t.Helper()
	for ; path != ""; pages++ {
		a := s.do("GET", path, nil).want(200).wantHeader("Content-Type", oci.MediaTypeIndex)
		var index v1.Index
		a.json(&index)
		if index.SchemaVersion != 2 || index.MediaType != oci.MediaTypeIndex || index.Manifests == nil {
			s.t.Errorf("%s is not an index: %.200s", a.what, a.body)
		}
		all = append(all, index.Manifests...)
		path = a.next()
	}
	return all, pages
}

func subjectOf(i image, extra string) string {
	return fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d}%s`, oci.MediaTypeImage, i.digest, len(i.content), extra)
}

func TestSpec_ListingReferrers_DescriptorsHaveTypeAndAnnotations(t *testing.T) {
	s := serve(t)
	subject := s.pushImage("a", "v1", "subject", "")
	typed := s.pushImage("a", "", "typed", subjectOf(subject, `,"artifactType":"application/x.sbom","annotations":{"k":"v<&>"}`))
	untyped := s.pushImage("a", "", "untyped", subjectOf(subject, ""))
	index := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[]%s}`, oci.MediaTypeIndex, subjectOf(subject, "")))
	s.putManifest("a", "idx", oci.MediaTypeIndex, index).want(201).wantHeader("OCI-Subject", string(subject.digest))

	path := "/v2/a/referrers/" + string(subject.digest)
	if a := s.do("GET", path, nil); strings.Contains(string(a.body), `"artifactType":""`) {
		t.Errorf("an artifact type that is not there must be omitted: %s", a.body)
	}
	got, _ := s.referrers(path)
	byDigest := map[oci.Digest]v1.Descriptor{}
	for _, d := range got {
		byDigest[d.Digest] = d
	}
	if len(byDigest) != 3 || len(got) != 3 {
		t.Fatalf("%d referrers, want 3: %+v", len(got), got)
	}
	if d := byDigest[typed.digest]; d.ArtifactType != "application/x.sbom" || d.Annotations["k"] != "v<&>" || d.Size != int64(len(typed.content)) || d.MediaType != oci.MediaTypeImage {
		t.Errorf("with an artifactType: %+v", d)
	}
	if d := byDigest[untyped.digest]; d.ArtifactType != "application/vnd.oci.image.config.v1+json" {
		t.Errorf("without one the config's media type counts: %+v", d)
	}
	if d := byDigest[sha256Of(index)]; d.ArtifactType != "" || d.MediaType != oci.MediaTypeIndex {
		t.Errorf("an index without one has none: %+v", d)
	}
}

func TestSpec_ListingReferrers_NeverIs404(t *testing.T) {
	s := serve(t)
	s.pushImage("a", "v1", "one", "")
	for _, repo := range []string{"a", "nobody"} {
		got, _ := s.referrers("/v2/" + repo + "/referrers/" + string(sha256Of([]byte("absent"))))
		if len(got) != 0 {
			t.Errorf("repository %s: %d referrers of nothing", repo, len(got))
		}
	}
}

func TestSpec_ListingReferrers_MalformedDigestIs400(t *testing.T) {
	s := serve(t)
	s.do("GET", "/v2/a/referrers/sha256:xyz", nil).wantError(400, oci.CodeDigestInvalid)
	s.do("GET", "/v2/a/referrers/latest", nil).wantError(400, oci.CodeDigestInvalid)
}

func TestSpec_ListingReferrers_FilterByArtifactType(t *testing.T) {
	s := serve(t)
	subject := s.pushImage("a", "v1", "subject", "")
	want := s.pushImage("a", "", "1", subjectOf(subject, `,"artifactType":"application/x.one"`))
	s.pushImage("a", "", "2", subjectOf(subject, `,"artifactType":"application/x.two"`))
	path := "/v2/a/referrers/" + string(subject.digest)
	s.do("GET", path, nil).want(200).wantHeader("OCI-Filters-Applied", "")
	filtered := path + "?artifactType=" + url.QueryEscape("application/x.one")
	s.do("GET", filtered, nil).want(200).wantHeader("OCI-Filters-Applied", "artifactType")
	got, _ := s.referrers(filtered)
	if len(got) != 1 || got[0].Digest != want.digest {
		t.Errorf("filtered: %+v, want only %s", got, want.digest)
	}
	if got, _ := s.referrers(path + "?artifactType=other"); len(got) != 0 {
		t.Errorf("filtered by a type that none has: %+v", got)
	}
}

func TestSpec_ListingReferrers_PagesByLinkCoverAll(t *testing.T) {
	s := serveWith(t, options{pageMax: 2})
	subject := s.pushImage("a", "v1", "subject", "")
	want := map[oci.Digest]bool{}
	for n := range 5 {
		want[s.pushImage("a", "", fmt.Sprint(n), subjectOf(subject, `,"artifactType":"application/x.one"`)).digest] = true
	}
	check := func(query string, wantPages int) {
		t.Helper()
		got, pages := s.referrers("/v2/a/referrers/" + string(subject.digest) + query)
		seen := map[oci.Digest]bool{}
		for _, d := range got {
			seen[d.Digest] = want[d.Digest]
		}
		if pages != wantPages || len(got) != 5 || len(seen) != 5 {
			t.Errorf("%q: %d pages with %d descriptors, %d of them different; want %d, 5, 5", query, pages, len(got), len(seen), wantPages)
		}
	}
	check("?n=2", 3)
	check("", 1)       // many clients read only the first page
	for n := range 5 { // the filter holds on all pages
		s.pushImage("a", "", fmt.Sprint("other", n), subjectOf(subject, `,"artifactType":"application/x.two"`))
	}
	check("?n=2&artifactType=application%2Fx.one", 3)
	check("?artifactType=application%2Fx.one", 1)
}

// TestR17_ReferrersWithLargeAnnotationsAreStreamed: the response has room for one
// of them, so the rest may cost no memory.
func TestR17_ReferrersWithLargeAnnotationsAreStreamed(t *testing.T) {
	s := serveWith(t, options{alone: true}) // what others allocate counts too
	subject := s.pushImage("a", "v1", "subject", "")
	const few, more, size = 3, 6, 5 << 19
	push := func(i int) {
		s.pushImage("a", "", fmt.Sprint(i), subjectOf(subject, fmt.Sprintf(`,"annotations":{"n":"%d%s"}`, i, strings.Repeat("x", size))))
	}
	allocated := func() uint64 {
		least := uint64(math.MaxUint64) // of several: whatever else runs allocates too
		for range 5 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s.do("GET", "/v2/a/referrers/"+string(subject.digest), nil).want(200)
			runtime.ReadMemStats(&after)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
		}
		return least
	}
	for i := range few {
		push(i)
	}
	base := allocated()
	for i := range more {
		push(few + i)
	}
	if got := allocated(); got > base+more*size/2 {
		t.Errorf("a listing of %d referrers with %d bytes of annotations each allocates %d bytes, one of %d allocates %d", few+more, size, got, few, base)
	}
}

func TestSpec_ListingReferrers_ListLargerThanAManifestIsSplit(t *testing.T) {
	s := serve(t)
	subject := s.pushImage("a", "v1", "subject", "")
	for n := range 3 {
		s.pushImage("a", "", fmt.Sprint(n), subjectOf(subject, fmt.Sprintf(`,"annotations":{"n":"%d%s"}`, n, strings.Repeat("x", 2<<20))))
	}
	path := "/v2/a/referrers/" + string(subject.digest)
	if a := s.do("GET", path, nil).want(200); len(a.body) > oci.ManifestMax {
		t.Errorf("a page has %d bytes, more than a manifest may have", len(a.body))
	}
	if got, pages := s.referrers(path); len(got) != 3 || pages != 3 {
		t.Errorf("%d descriptors on %d pages, want 3 on 3", len(got), pages)
	}
}

// TestR17_APageIsBoundedWhateverIsAskedFor: and the last one names no other.
func TestR17_APageIsBoundedWhateverIsAskedFor(t *testing.T) {
	s := serveWith(t, options{pageMax: 2})
	for _, repo := range []string{"a", "b", "c", "d"} {
		s.pushImage(repo, "v1", repo, "")
	}
	for _, first := range []string{"/v2/_catalog", "/v2/_catalog?n=1000", "/v2/_catalog?n=9223372036854775807"} {
		path, pages, got := first, 0, 0
		for ; path != ""; pages++ {
			var list struct{ Repositories []string }
			a := s.do("GET", path, nil).want(200)
			a.json(&list)
			if got += len(list.Repositories); len(list.Repositories) > 2 {
				t.Errorf("%s: a page of %d", path, len(list.Repositories))
			}
			path = a.next()
		}
		if pages != 2 || got != 4 {
			t.Errorf("%s: %d repositories on %d pages", first, got, pages)
		}
	}
}

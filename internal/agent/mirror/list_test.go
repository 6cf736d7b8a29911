package mirror_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// pages lists tags through the mirror as a client does, following Link.
func (n *node) pages(path string) (tags []string, pages int) {
	n.t.Helper()
	for ; path != ""; pages++ {
		if pages > 10 {
			n.t.Fatalf("the list never ends: %s", path)
		}
		a := n.get(path).want(200)
		if a.err != nil {
			n.t.Fatal(a.err)
		}
		var body struct{ Tags []string }
		if err := json.Unmarshal(a.body, &body); err != nil {
			n.t.Fatalf("%v: %s", err, a.body)
		}
		tags = append(tags, body.Tags...)
		path = ""
		if link := a.header.Get("Link"); link != "" {
			target, rel, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
			if !ok || rel != `; rel="next"` || !strings.HasPrefix(target, "/v2/") {
				n.t.Fatalf("Link %q", link)
			}
			path = target
		}
	}
	return tags, pages
}

// TestSpec_ListingTags_LinksOfAnyForm: some forms were left out, and a client
// took the first page for all.
func TestSpec_ListingTags_LinksOfAnyForm(t *testing.T) {
	for name, link := range map[string]string{
		"as the spec has it":    `</v2/some/app/tags/list?last=b&n=2>; rel="next"`,
		"a query only":          `<?last=b&n=2>; rel="next"`,
		"relative":              `<list?last=b&n=2>; rel="next"`,
		"absolute":              `<SELF/v2/some/app/tags/list?last=b&n=2>; rel="next"`,
		"absolute, another":     `<https://registry.internal/v2/some/app/tags/list?last=b&n=2>; rel="next"`,
		"without a scheme":      `<//registry.internal/v2/some/app/tags/list?last=b&n=2>; rel="next"`,
		"below a path":          `</prefix/v2/some/app/tags/list?last=b&n=2>; rel="next"`,
		"two links":             `</v2/some/app/tags/list?n=2>; rel="prev", </v2/some/app/tags/list?last=b&n=2>; rel="next"`,
		"two links, next first": `</v2/some/app/tags/list?last=b&n=2>; rel="next", </v2/some/app/tags/list?n=2>; rel="first"`,
		"two lines":             "</v2/some/app/tags/list?n=2>; rel=\"first\"\n</v2/some/app/tags/list?last=b&n=2>; rel=\"next\"",
		"no quotes":             `</v2/some/app/tags/list?last=b&n=2>;rel=next`,
		"several relations":     `</v2/some/app/tags/list?last=b&n=2>; title="a, \"b\"; <x>" ; REL="last Next"`,
		"no relation":           `</v2/some/app/tags/list?last=b&n=2>`,
		"an encoded query":      `</v2/some/app/tags/list?last=%62&n=2>; rel="next"`,
	} {
		for _, form := range []string{"/v2/some/app/tags/list?ns=NS&n=2", "/v2/NS/some/app/tags/list?n=2", "/v2/some/app/tags/list?n=2"} {
			u := newUpstream(t)
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("ns") != "" {
					t.Errorf("the upstream was asked for %s", r.URL)
				}
				if r.URL.Path != "/v2/some/app/tags/list" {
					return false
				}
				if r.URL.Query().Get("last") != "b" {
					for line := range strings.SplitSeq(strings.ReplaceAll(link, "SELF", u.URL), "\n") {
						w.Header().Add("Link", line)
					}
					_, _ = io.WriteString(w, `{"tags":["a","b"]}`)
					return true
				}
				_, _ = io.WriteString(w, `{"tags":["c"]}`)
				return true
			})
			n := start(t, nodeOptions{upstreams: []*upstream{u}})
			tags, pages := n.pages(strings.ReplaceAll(form, "NS", u.name()))
			if got := strings.Join(tags, ""); got != "abc" || pages != 2 {
				t.Errorf("%s, %s: %q in %d pages", name, form, got, pages)
			}
			n.do("HEAD", strings.ReplaceAll(form, "NS", u.name())).want(200)
		}
	}
}

// TestSpec_ListingTags_BelowAPath: an upstream whose API is below a path of its host.
func TestSpec_ListingTags_BelowAPath(t *testing.T) {
	u := newUpstream(t)
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/below/v2/app/tags/list" {
			return false
		}
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `<list?last=a>; rel="next"`)
		}
		_, _ = io.WriteString(w, `{"tags":["a"]}`)
		return true
	})
	at, err := url.Parse(u.URL + "/below")
	if err != nil {
		t.Fatal(err)
	}
	n := start(t, nodeOptions{upstreams: []*upstream{u}, bases: map[string]*url.URL{u.name(): at}})
	if tags, pages := n.pages("/v2/app/tags/list"); len(tags) != 2 || pages != 2 {
		t.Errorf("%v in %d pages", tags, pages)
	}
}

// TestSpec_ListingReferrers_ThroughTheMirrorIsComplete: referrers have pages too.
func TestSpec_ListingReferrers_ThroughTheMirrorIsComplete(t *testing.T) {
	u := newUpstream(t)
	d := sha([]byte("subject"))
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/app/referrers/"+string(d) || r.URL.Query().Get("artifactType") != "a/b+c" {
			return false
		}
		w.Header().Set("Content-Type", oci.MediaTypeIndex)
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		w.Header().Set("Link", `<?artifactType=a%2Fb%2Bc&page=2>; rel="next"`)
		_, _ = io.WriteString(w, `{}`)
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/referrers/"+string(d)+"?artifactType=a%2Fb%2Bc").want(200).wantHeader("OCI-Filters-Applied", "artifactType").
		wantHeader("Content-Type", oci.MediaTypeIndex).
		wantHeader("Link", `</v2/app/referrers/`+string(d)+`?artifactType=a%2Fb%2Bc&page=2>; rel="next"`)
}

// TestSpec_ListingTags_HalfAListIsAnError: it would look complete.
func TestSpec_ListingTags_HalfAListIsAnError(t *testing.T) {
	for name, serve := range map[string]func(u *upstream, w http.ResponseWriter, r *http.Request){
		"a page elsewhere": func(_ *upstream, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `</v2/other/tags/list?last=b>; rel="next"`)
			_, _ = io.WriteString(w, `{}`)
		},
		"a page that is not a URL": func(_ *upstream, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `<:%zz>; rel="next"`)
			_, _ = io.WriteString(w, `{}`)
		},
		"a malformed query": func(_ *upstream, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `<?a=%zz>; rel="next"`)
			_, _ = io.WriteString(w, `{}`)
		},
		"too large": func(_ *upstream, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 17<<20)) },
		"cut": func(_ *upstream, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{`)
			panic(http.ErrAbortHandler)
		},
		"stalled": func(u *upstream, w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{`)
			_ = http.NewResponseController(w).Flush()
			u.stall(r)
		},
	} {
		u := newUpstream(t)
		u.on(func(w http.ResponseWriter, r *http.Request) bool { serve(u, w, r); return true })
		n := start(t, nodeOptions{upstreams: []*upstream{u}, idle: 50 * time.Millisecond})
		if a := n.get("/v2/app/tags/list"); a.status != 502 && a.status != 504 {
			t.Errorf("%s: status %d", name, a.status)
		}
	}
}

// TestN11_TheRefusalOfAListEndsRightsToo: lists are judged by the same table.
func TestN11_TheRefusalOfAListEndsRightsToo(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	u.repo("app").auth = alice
	n.get("/v2/app/tags/list").want(401)
	n.get("/v2/app/blobs/" + string(i.layers[0])).want(401)
}

package ociclient

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// trip answers requests by what it is.
type trip func(*http.Request) (status int, header http.Header)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) {
	status, h := f(r)
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader("{}")), ContentLength: 2, Request: r}, nil
}

func TestN11_OnlyWhatTheRegistryItselfLedToIsItsAnswer(t *testing.T) {
	const realm = `Bearer realm="https://thief.example/token"`
	d := oci.Digest("sha256:" + strings.Repeat("a", 64))
	path := "/v2/team/app/blobs/" + string(d)
	for name, c := range map[string]struct {
		base string
		hops map[string]string // URL → where it redirects to
		own  bool
	}{
		"the registry":                      {"http://reg.example:5000", nil, true},
		"upgraded":                          {"http://reg.example:5000", map[string]string{"http://reg.example:5000" + path: "https://reg.example" + path}, true},
		"another path of the registry":      {"https://reg.example", map[string]string{"https://reg.example" + path: "https://reg.example/x" + path}, true},
		"downgraded":                        {"https://reg.example", map[string]string{"https://reg.example" + path: "http://reg.example" + path}, false},
		"a storage of the same host":        {"http://reg.example:5000", map[string]string{"http://reg.example:5000" + path: "https://reg.example:9000/bucket/a"}, false},
		"by another host, and back":         {"https://reg.example", map[string]string{"https://reg.example" + path: "https://cdn.example/a", "https://cdn.example/a": "https://reg.example/v2/other/app/blobs/" + string(d)}, false},
		"by another host to an upgrade":     {"http://reg.example:5000", map[string]string{"http://reg.example:5000" + path: "http://cdn.example" + path, "http://cdn.example" + path: "https://reg.example" + path}, false},
		"another port of the same host":     {"https://reg.example", map[string]string{"https://reg.example" + path: "https://reg.example:8443" + path}, false},
		"another host with the same path":   {"https://reg.example", map[string]string{"https://reg.example" + path: "https://cdn.example" + path}, false},
		"upgraded at a name of another one": {"http://reg.example:5000", map[string]string{"http://reg.example:5000" + path: "https://a.reg.example" + path}, false},
	} {
		t.Run(name, func(t *testing.T) {
			u, _ := url.Parse(c.base)
			client := New(Options{Base: u, Transport: trip(func(r *http.Request) (int, http.Header) {
				if strings.HasPrefix(r.URL.Host, "thief") {
					t.Errorf("the thief is asked with %q", r.Header.Get("Authorization"))
				}
				if to := c.hops[r.URL.String()]; to != "" {
					return 307, http.Header{"Location": {to}}
				}
				if c.own {
					return 403, http.Header{}
				}
				return 401, http.Header{"Www-Authenticate": {realm}}
			})})
			res, err := client.Blob(t.Context(), "team/app", d, nil, "", false)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			want := Failed
			if c.own {
				want = Denied
			}
			if res.Outcome != want || res.Header.Get("Www-Authenticate") != "" {
				t.Errorf("%s with the challenge %q, want %s", res.Outcome, res.Header.Get("Www-Authenticate"), want)
			}
		})
	}
}

func TestR17_SlowRedirectsEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, _ := url.Parse("https://reg.example")
		client := New(Options{Base: u, Transport: trip(func(r *http.Request) (int, http.Header) {
			time.Sleep(headerDefault - time.Second)
			return 307, http.Header{"Location": {r.URL.Path}}
		})})
		start := time.Now()
		res, err := client.Get(t.Context(), "team/app", "tags/list", "", false)
		if err == nil {
			_ = res.Body.Close()
		}
		if took := time.Since(start); took > 2*headerDefault || OutcomeOf(err) != Stalled {
			t.Errorf("%s after %s (%v), want stalled after %s", OutcomeOf(err), took, err, 2*headerDefault)
		}
	})
}

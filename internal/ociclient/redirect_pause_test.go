package ociclient

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/oci"
)

func TestRetryAfter_OfARedirectTargetIsNotTheRegistrys(t *testing.T) {
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "300")
		w.WriteHeader(503)
	}))
	defer cdn.Close()
	a, b := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, a) {
			http.Redirect(w, r, cdn.URL+"/x", http.StatusTemporaryRedirect)
			return
		}
		_, _ = w.Write([]byte("hello"))
	}))
	defer reg.Close()
	u, _ := url.Parse(reg.URL)
	c := New(Options{Base: u})
	r1, err := c.Blob(t.Context(), "evil/app", oci.Digest(a), nil, "", false)
	if err != nil {
		t.Fatal(err)
	}
	_ = r1.Body.Close()
	r2, err := c.Blob(t.Context(), "other/app", oci.Digest(b), nil, "", false)
	if err != nil {
		t.Fatal(err)
	}
	_ = r2.Body.Close()
	if r2.Status != 200 {
		t.Error("another repository's blob is not asked for, since one redirect's target is busy")
	}
}

package ociclient_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

const d1 = oci.Digest("sha256:1111111111111111111111111111111111111111111111111111111111111111")

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, base string, creds ociclient.Credentials) *ociclient.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return ociclient.New(ociclient.Options{Base: u, Credentials: creds, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

func login(user, pass string) ociclient.Credentials {
	return func(context.Context, string, string) (ociclient.Login, error) {
		return ociclient.Login{User: user, Pass: pass}, nil
	}
}

func get(t *testing.T, c *ociclient.Client, authorization string) (*ociclient.Response, string) {
	t.Helper()
	res, err := c.Blob(t.Context(), "some/repo", d1, nil, authorization, false)
	if err != nil {
		t.Fatalf("Blob: %v", err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// guarded is a registry with a token service: it lets in who has the token that
// the service gives for the account.
type guarded struct {
	*httptest.Server
	tokens atomic.Int64
	last   atomic.Pointer[http.Request] // to the token service
}

// newGuarded gives a token to who shows user and pass; a user "" lets everybody
// have one.
func newGuarded(t *testing.T, user, pass string) *guarded {
	t.Helper()
	g := &guarded{}
	g.Server = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			_ = r.ParseForm()
			g.last.Store(r)
			u, p, _ := r.BasicAuth()
			if user == ociclient.TokenUser {
				u, p = ociclient.TokenUser, r.PostForm.Get("refresh_token")
			}
			if user != "" && (u != user || p != pass) {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, _ = fmt.Fprintf(w, `{"token":"t%d","expires_in":300}`, g.tokens.Add(1))
			return
		}
		if r.Header.Get("Authorization") != fmt.Sprintf("Bearer t%d", max(g.tokens.Load(), 1)) || g.tokens.Load() == 0 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+g.URL+`/token",service="reg",scope="repository:some/repo:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, "who are you?")
			return
		}
		_, _ = io.WriteString(w, "content")
	})
	return g
}

func TestToken_IsFetchedForAnybodyAndUsedAgain(t *testing.T) {
	g := newGuarded(t, "", "")
	c := client(t, g.URL, nil)
	for range 3 {
		res, body := get(t, c, "")
		if res.Status != 200 || body != "content" || !res.Anonymous {
			t.Fatalf("status %d, anonymous %v, body %q; want 200, true", res.Status, res.Anonymous, body)
		}
	}
	if n := g.tokens.Load(); n != 1 {
		t.Errorf("%d tokens were fetched, want 1", n)
	}
	q := g.last.Load().Form
	if q.Get("service") != "reg" || q.Get("scope") != "repository:some/repo:pull" {
		t.Errorf("the token was asked for with %v", q)
	}
}

func TestToken_ThatEndedIsReplaced(t *testing.T) {
	g := newGuarded(t, "", "")
	c := client(t, g.URL, nil)
	get(t, c, "")
	g.tokens.Add(1) // the registry takes another one now
	res, _ := get(t, c, "")
	if res.Status != 200 || g.tokens.Load() != 3 {
		t.Errorf("status %d after %d tokens, want 200 after 3", res.Status, g.tokens.Load())
	}
}

func TestToken_WithCredentialsIsNotAnonymous(t *testing.T) {
	for _, tc := range []struct{ user, pass string }{{"me", "secret"}, {ociclient.TokenUser, "identity"}} {
		g := newGuarded(t, tc.user, tc.pass)
		res, body := get(t, client(t, g.URL, login(tc.user, tc.pass)), "")
		if res.Status != 200 || body != "content" || res.Anonymous {
			t.Errorf("as %s: status %d, anonymous %v; want 200, false", tc.user, res.Status, res.Anonymous)
		}
	}
}

func TestChallenge_OfAnUpstreamThatLetsNobodyInPassesThrough(t *testing.T) {
	g := newGuarded(t, "me", "secret")
	for name, creds := range map[string]ociclient.Credentials{"none": nil, "wrong": login("me", "guess")} {
		res, body := get(t, client(t, g.URL, creds), "")
		if res.Status != 401 || !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Bearer realm=") || body != "who are you?" {
			t.Errorf("%s: status %d, challenge %q, body %q; want the upstream's own answer", name, res.Status, res.Header.Get("WWW-Authenticate"), body)
		}
	}
}

func TestAuthorization_OfTheAskerIsUsedAsItIs(t *testing.T) {
	g := newGuarded(t, "", "")
	c := client(t, g.URL, login("node", "secret"))
	res, _ := get(t, c, "Bearer mine")
	if res.Status != 401 || g.tokens.Load() != 0 || res.Anonymous {
		t.Errorf("status %d after %d tokens, anonymous %v: the node's credentials were used for a client with its own", res.Status, g.tokens.Load(), res.Anonymous)
	}
}

func TestBasic_IsAnsweredFromTheConfig(t *testing.T) {
	refused := atomic.Int64{}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "pa:ss" {
			refused.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		_, _ = io.WriteString(w, "content")
	})
	c := client(t, s.URL, login("me", "pa:ss"))
	for range 2 {
		if res, body := get(t, c, ""); res.Status != 200 || body != "content" || res.Anonymous {
			t.Errorf("status %d, anonymous %v", res.Status, res.Anonymous)
		}
	}
	if refused.Load() != 1 {
		t.Errorf("it was refused %d times, want once", refused.Load())
	}
}

func TestRedirect_ToAnotherHostGetsNoAuthorization(t *testing.T) {
	var seen atomic.Pointer[http.Header]
	cdn := serve(t, func(w http.ResponseWriter, r *http.Request) {
		h := r.Header.Clone()
		seen.Store(&h)
		_, _ = io.WriteString(w, "content")
	})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, cdn.URL+"/elsewhere?signature=x", http.StatusTemporaryRedirect)
	})
	// The same host name, another port: net/http would keep the header.
	res, err := client(t, s.URL, nil).Blob(t.Context(), "some/repo", d1, &ociclient.Range{First: 2, Last: 4}, "Bearer secret", false)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	got := *seen.Load()
	if got.Get("Authorization") != "" || got.Get("Referer") != "" {
		t.Errorf("the other host was sent %v", got)
	}
	if got.Get("Range") != "bytes=2-4" {
		t.Errorf("the range became %q on the way", got.Get("Range"))
	}
}

func TestUnreachable_IsBusyAndSaysNothingOfTheQuery(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, dead.URL+"/x?signature=hush", http.StatusTemporaryRedirect)
	})
	for _, base := range []string{dead.URL, s.URL} {
		_, err := client(t, base, nil).Blob(t.Context(), "r", d1, nil, "", false)
		if !errors.Is(err, fault.Busy) {
			t.Errorf("%s: %v, want busy", base, err)
		}
		if strings.Contains(fmt.Sprint(err), "hush") {
			t.Errorf("the error tells a signature: %v", err)
		}
	}
}

func TestTimeout_OfTheHeaderIsToldAsOne(t *testing.T) {
	end := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { <-end })
	t.Cleanup(func() { close(end) })
	u, _ := url.Parse(s.URL)
	c := ociclient.New(ociclient.Options{
		Base: u, Log: slog.New(slog.DiscardHandler),
		Transport: ociclient.NewTransport(ociclient.TransportOptions{Header: 20 * time.Millisecond}),
	})
	_, err := c.Blob(context.Background(), "r", d1, nil, "", false)
	if !errors.Is(err, fault.Busy) || !strings.Contains(fault.Public(err).Public, "does not answer in time") {
		t.Errorf("got %v", err)
	}
}

func TestResponse_Offset(t *testing.T) {
	for _, tc := range []struct {
		status int
		header string
		want   int64
		bad    bool
	}{
		{200, "bytes 5-9/10", 0, false},
		{206, "bytes 5-9/10", 5, false},
		{206, "bytes 0-9/*", 0, false},
		{206, "", 0, true},
		{206, "bytes x-9/10", 0, true},
		{206, "bytes -9/10", 0, true},
	} {
		r := &ociclient.Response{Status: tc.status, Header: http.Header{"Content-Range": {tc.header}}}
		got, err := r.Offset()
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%d %q: %d, %v", tc.status, tc.header, got, err)
		}
	}
}

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]string{
		"docker.io":                  "docker.io https://registry-1.docker.io",
		"ghcr.io":                    "ghcr.io https://ghcr.io",
		"127.0.0.1:5000":             "127.0.0.1:5000 http://127.0.0.1:5000",
		"localhost":                  "localhost http://localhost",
		"[::1]:5000":                 "[::1]:5000 http://[::1]:5000",
		"Quay.io=http://10.0.0.1:80": "quay.io http://10.0.0.1:80",
		"":                           "!", "a/b": "!", "x=ftp://y": "!", "x=http://u:p@y": "x http://u:p@y", "x=http://": "!",
	} {
		name, u, err := ociclient.ParseUpstream(in)
		got := "!"
		if err == nil {
			got = name + " " + u.String()
		}
		if got != want {
			t.Errorf("%q: %s (%v), want %s", in, got, err, want)
		}
	}
}

func TestDockerConfig_ErrorsTellNoSecret(t *testing.T) {
	for _, bad := range []string{
		`{"auths":{"a":{"auth":"hunter2!"}}}`,
		`{"auths":{"a":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("hunter2!")) + `"}}}`,
		`{"auths":{"a":{"auth":{"x":"hunter2!"}}}}`, `hunter2!`,
	} {
		_, err := ociclient.ParseDockerConfig([]byte(bad))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

package ociclient_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// impatient is a client that gives up a body or token after a moment, and logs to log.
func impatient(t *testing.T, base string, log io.Writer) *ociclient.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return ociclient.New(ociclient.Options{
		Base: u, Idle: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
}

func TestOutcome_OfAStatus(t *testing.T) {
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var code int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &code)
		w.Header().Set("WWW-Authenticate", `Basic realm="other"`)
		w.WriteHeader(code)
	})
	code, away := 0, false
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if away {
			http.Redirect(w, r, fmt.Sprintf("%s/%d", other.URL, code), http.StatusTemporaryRedirect)
			return
		}
		w.WriteHeader(code)
	})
	c := client(t, s.URL, nil)
	for status, want := range map[int][2]ociclient.Outcome{
		200: {ociclient.OK, ociclient.OK}, 206: {ociclient.Failed, ociclient.Failed}, // of what was asked for as a whole
		401: {ociclient.Denied, ociclient.Failed}, 403: {ociclient.Denied, ociclient.Failed}, 451: {ociclient.Denied, ociclient.Failed},
		404: {ociclient.NotFound, ociclient.Failed}, 410: {ociclient.NotFound, ociclient.Failed},
		429: {ociclient.RateLimited, ociclient.RateLimited},
		204: {ociclient.Failed, ociclient.Failed}, 400: {ociclient.Failed, ociclient.Failed}, 406: {ociclient.Failed, ociclient.Failed},
		500: {ociclient.Failed, ociclient.Failed}, 503: {ociclient.Failed, ociclient.Failed},
	} {
		for k, redirected := range []bool{false, true} {
			code, away = status, redirected
			res, _ := get(t, c, "")
			if res.Outcome != want[k] {
				t.Errorf("%d, redirected %v: %s, want %s", status, redirected, res.Outcome, want[k])
			}
			if redirected && res.Header.Get("WWW-Authenticate") != "" {
				t.Errorf("%d: the challenge of another host is handed on", status)
			}
			if refusal := c.Refusal(res); !res.OK() && (refusal.Outcome() != want[k] || ociclient.OutcomeOf(refusal) != want[k] || redirected != (refusal.At != "")) {
				t.Errorf("%d, redirected %v: the refusal is %s of %q", status, redirected, refusal.Outcome(), refusal.At)
			}
		}
	}
}

// A 200 is no verdict if it shows that it is not about what was asked for, such
// as that of a portal in between that has everybody log in first.
func TestN11_AYesThatIsAboutSomethingElseIsNoVerdict(t *testing.T) {
	d, other := digest.FromString("it"), digest.FromString("another")
	for _, c := range []struct {
		name, kind string
		digest     oci.Digest
		status     int
		want       ociclient.Outcome
	}{
		{"a page", "text/html; charset=utf-8", "", 200, ociclient.Failed},
		{"content that is HTML", "text/html", d, 200, ociclient.OK},
		{"another digest", "application/octet-stream", other, 200, ociclient.Failed},
		{"another algorithm", "application/octet-stream", digest.SHA512.FromString("it"), 200, ociclient.OK},
		{"no digest and no type", "", "", 200, ociclient.OK},
		{"the range", "application/octet-stream", "", 206, ociclient.OK},
	} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{c.kind}
			if c.digest != "" {
				w.Header().Set("Docker-Content-Digest", string(c.digest))
			}
			w.WriteHeader(c.status)
		})
		for _, head := range []bool{false, true} {
			var rng *ociclient.Range
			if c.status == 206 {
				rng = &ociclient.Range{First: 1, Last: 2}
			}
			res, err := client(t, s.URL, nil).Blob(t.Context(), "app", d, rng, "", head)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.Outcome != c.want {
				t.Errorf("%s: %s, want %s", c.name, res.Outcome, c.want)
			}
		}
		if c.status == 200 {
			res, err := client(t, s.URL, nil).Manifest(t.Context(), "app", string(d), nil, "", true)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.Outcome != c.want {
				t.Errorf("a manifest by digest, %s: %s, want %s", c.name, res.Outcome, c.want)
			}
			if res, err = client(t, s.URL, nil).Manifest(t.Context(), "app", "v1", nil, "", true); err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if html := c.name == "a page"; html != (res.Outcome != ociclient.OK) {
				t.Errorf("a manifest by tag, %s: %s", c.name, res.Outcome)
			}
		}
	}
}

func TestOutcome_OfAConnection(t *testing.T) {
	end := make(chan struct{})
	hangs := serve(t, func(http.ResponseWriter, *http.Request) { <-end })
	breaks := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	t.Cleanup(func() { close(end) })
	for base, want := range map[string]ociclient.Outcome{
		hangs.URL: ociclient.Stalled, breaks.URL: ociclient.Unreachable, "http://no-such-host.invalid": ociclient.Unreachable,
	} {
		u, _ := url.Parse(base)
		c := ociclient.New(ociclient.Options{Base: u, Transport: ociclient.NewTransport(ociclient.TransportOptions{Header: 50 * time.Millisecond})})
		_, err := c.Blob(t.Context(), "r", d1, nil, "", false)
		if got := ociclient.OutcomeOf(err); got != want || !errors.Is(err, fault.Busy) {
			t.Errorf("%s: %s (%v), want %s", base, got, err, want)
		}
	}
}

// TestOutcome_OfATokenService: whatever keeps a token service from answering is no
// denial by the registry.
func TestOutcome_OfATokenService(t *testing.T) {
	end := make(chan struct{})
	var service atomic.Pointer[http.HandlerFunc]
	g := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			(*service.Load())(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	t.Cleanup(func() { close(end) })
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, tc := range map[string]struct {
		service http.HandlerFunc
		want    ociclient.Outcome
	}{
		"401": {status(401), ociclient.Denied}, "403": {status(403), ociclient.Denied},
		"429": {status(429), ociclient.RateLimited}, "503": {status(503), ociclient.Failed}, "404": {status(404), ociclient.Failed},
		"no token": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, ociclient.Failed},
		"hangs":    {func(http.ResponseWriter, *http.Request) { <-end }, ociclient.Stalled},
		"breaks":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ociclient.Unreachable},
		"stalls": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"token":`)
			_ = http.NewResponseController(w).Flush()
			<-end
		}, ociclient.Stalled},
		"a token that does not help": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"token":"x"}`) }, ociclient.Denied},
	} {
		service.Store(&tc.service)
		res, _ := get(t, impatient(t, g.URL, io.Discard), "")
		if res.Status != 401 || res.Outcome != tc.want || res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: status %d, %s; want 401 with its challenge, %s", name, res.Status, res.Outcome, tc.want)
		}
	}
}

func TestRetryAfter_IsForOneKindOfQuestionOfOneAsker(t *testing.T) {
	var asked atomic.Int64
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Retry-After", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat))
		w.WriteHeader(503)
	})
	u, _ := url.Parse(s.URL)
	shift := time.Duration(0)
	c := ociclient.New(ociclient.Options{Base: u, Now: func() time.Time { return time.Now().Add(shift) }})
	ask := func(authorization string, want int64) {
		t.Helper()
		before := asked.Load()
		res, _ := get(t, c, authorization)
		if got := asked.Load() - before; got != want || res.Status != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("asked %d times, want %d; status %d, Retry-After %q", got, want, res.Status, res.Header.Get("Retry-After"))
		}
	}
	ask("", 1)
	ask("", 0)
	ask("Bearer x", 1)
	ask("Bearer x", 0)
	if res, err := c.Manifest(t.Context(), "r", "v1", nil, "", false); err != nil || asked.Load() != 3 {
		t.Errorf("manifests are limited apart: %v", err)
	} else {
		_ = res.Body.Close()
	}
	shift = 2 * time.Minute
	ask("", 1)
	shift = -time.Hour // the clock was set back: it must not wait for that long
	ask("", 1)
}

func TestRedirect_ChallengeOfItsTargetGetsNoCredentials(t *testing.T) {
	var leaked atomic.Pointer[string]
	note := func(r *http.Request) {
		if h := r.Header.Get("Authorization"); h != "" {
			leaked.Store(&h)
		}
	}
	thief := serve(t, func(w http.ResponseWriter, r *http.Request) { note(r); _, _ = io.WriteString(w, `{"token":"x"}`) })
	for _, challenge := range []string{`Bearer realm="` + thief.URL + `/token",service="reg"`, `Basic realm="x"`} {
		target := serve(t, func(w http.ResponseWriter, r *http.Request) {
			note(r)
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(401)
		})
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, target.URL+r.URL.Path, http.StatusTemporaryRedirect)
		})
		c := client(t, s.URL, login("me", "secret"))
		for range 2 {
			res, _ := get(t, c, "")
			if res.Outcome != ociclient.Failed {
				t.Errorf("%s: %s, want failed", challenge, res.Outcome)
			}
		}
	}
	if h := leaked.Load(); h != nil {
		t.Errorf("another host was sent %q", *h)
	}
}

func TestToken_LoginStaysWithTheService(t *testing.T) {
	var body atomic.Pointer[string]
	thief := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		text := string(b) + r.Header.Get("Authorization")
		body.Store(&text)
		_, _ = io.WriteString(w, `{"token":"x"}`)
	})
	var g http.HandlerFunc = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, thief.URL+"/token", http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
		w.WriteHeader(401)
	}
	s := serve(t, g)
	for _, user := range []string{ociclient.TokenUser, "me"} {
		if res, _ := get(t, client(t, s.URL, login(user, "hush")), ""); res.Outcome != ociclient.Unreachable {
			t.Errorf("%s: %s", user, res.Outcome)
		}
	}
	if b := body.Load(); b != nil {
		t.Errorf("another host was sent %q", *b)
	}
}

func TestToken_LoginThatIsRefusedDoesNotKeepFromWhatIsPublic(t *testing.T) {
	bearer := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _, login := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && login:
			w.WriteHeader(401)
		case r.URL.Path == "/token":
			_, _ = io.WriteString(w, `{"token":"anybody"}`)
		case r.Header.Get("Authorization") != "Bearer anybody":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
			w.WriteHeader(401)
		default:
			_, _ = io.WriteString(w, "content")
		}
	})
	res, body := get(t, client(t, bearer.URL, login("me", "expired")), "")
	if res.Status != 200 || body != "content" || !res.Anonymous {
		t.Errorf("bearer: status %d, anonymous %v", res.Status, res.Anonymous)
	}
	basic := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		_, _ = io.WriteString(w, "content")
	})
	u, _ := url.Parse(strings.Replace(basic.URL, "://", "://me:expired@", 1))
	res, body = get(t, ociclient.New(ociclient.Options{Base: u}), "")
	if res.Status != 200 || body != "content" || !res.Anonymous {
		t.Errorf("basic: status %d, anonymous %v", res.Status, res.Anonymous)
	}
}

// TestUserInURL_IsUsedAndNotShown: https://user:password@host was sent by net/http
// itself, so that what it fetched counted as everybody's.
func TestUserInURL_IsUsedAndNotShown(t *testing.T) {
	const secret = "hunter2"
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != secret {
			w.WriteHeader(404) // as registries do that tell nobody what exists
			return
		}
		_, _ = io.WriteString(w, "content")
	})
	with := func(base string) string { return strings.Replace(base, "://", "://me:"+secret+"@", 1) }
	var log bytes.Buffer
	c := impatient(t, with(s.URL), &log)
	if res, body := get(t, c, ""); res.Status != 200 || body != "content" || res.Anonymous {
		t.Errorf("status %d, anonymous %v; want 200, false", res.Status, res.Anonymous)
	}
	// In a redirect it is the target's, and what it brings is not for everybody.
	away := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, with(s.URL)+r.URL.Path, http.StatusTemporaryRedirect)
	})
	if res, body := get(t, client(t, away.URL, nil), ""); res.Status != 200 || body != "content" || res.Anonymous {
		t.Errorf("redirected: status %d, anonymous %v; want 200, false", res.Status, res.Anonymous)
	}
	// In a realm it is nobody's.
	var sent atomic.Pointer[string]
	var realm http.HandlerFunc = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			h := r.Header.Get("Authorization")
			sent.Store(&h)
			_, _ = io.WriteString(w, `{"token":"x"}`)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+with("http://"+r.Host)+`/token"`)
		w.WriteHeader(401)
	}
	get(t, impatient(t, serve(t, realm).URL, &log), "")
	if h := sent.Load(); h == nil || *h != "" {
		t.Errorf("the token service was sent %v", h)
	}
	shown := []string{c.Host(), log.String()}
	dead := serve(t, func(http.ResponseWriter, *http.Request) {})
	dead.Close()
	_, err := impatient(t, with(dead.URL), &log).Blob(t.Context(), "r", d1, nil, "", false)
	shown = append(shown, fmt.Sprint(err), fault.Public(err).Public)
	for _, bad := range []string{"x=http://me:" + secret + "@", "x=ftp://me:" + secret + "@y", "me:" + secret + "@y", "x=http://me:" + secret + "@y/?q", "x=http://me:" + secret + "@a b", "x=me:" + secret + "@y", "http://me:" + secret + "@y"} {
		_, _, err := ociclient.ParseUpstream(bad)
		if err == nil {
			t.Errorf("%s is accepted", bad)
		}
		shown = append(shown, fmt.Sprint(err))
	}
	for _, text := range shown {
		if strings.Contains(text, secret) {
			t.Errorf("the password is shown: %s", text)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:p@h/x": "https://…@h/x", "x=https://u:p@q@h": "x=https://…@h", "u:p@h": "…@h", "https://h": "https://h", "": "", "x=u:p@h": "x=…@h",
	} {
		if got := ociclient.Redact(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestEncoding_IsUndoneOrRefused: RFC 9110 lets an upstream compress without being asked.
func TestEncoding_IsUndoneOrRefused(t *testing.T) {
	text := strings.Repeat("content ", 1000)
	var small bytes.Buffer
	z := gzip.NewWriter(&small)
	_, _ = io.WriteString(z, text)
	_ = z.Close()
	var encoding atomic.Pointer[string]
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("%s %s asks for %q", r.Method, r.URL.Path, got)
		}
		w.Header().Set("Content-Encoding", *encoding.Load())
		w.Header().Set("Content-Length", fmt.Sprint(small.Len()))
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", small.Len()-1, small.Len()))
			w.WriteHeader(206)
		}
		_, _ = w.Write(small.Bytes())
	})
	c := client(t, s.URL, nil)
	ask := map[string]func(head bool) (*ociclient.Response, error){
		"manifest": func(head bool) (*ociclient.Response, error) { return c.Manifest(t.Context(), "r", "v1", nil, "", head) },
		"blob":     func(head bool) (*ociclient.Response, error) { return c.Blob(t.Context(), "r", d1, nil, "", head) },
		"list":     func(head bool) (*ociclient.Response, error) { return c.Get(t.Context(), "r", "tags/list", "", head) },
	}
	for name, question := range ask {
		for _, enc := range []string{"gzip", "x-gzip", "GZIP"} {
			encoding.Store(&enc)
			for _, head := range []bool{false, true} {
				res, err := question(head)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				want := text
				if head {
					want, err = "", nil
				}
				if err != nil || string(body) != want || res.Size != -1 || res.Header.Get("Content-Length")+res.Header.Get("Content-Encoding") != "" {
					t.Errorf("%s, %s, HEAD %v: %d bytes, %v, size %d, %v", name, enc, head, len(body), err, res.Size, res.Header)
				}
			}
		}
		for _, enc := range []string{"br", "zstd", "gzip, gzip", "deflate", "nonsense"} {
			encoding.Store(&enc)
			if res, err := question(false); !errors.Is(err, fault.Busy) || !strings.Contains(fault.Public(err).Public, "Content-Encoding") {
				t.Errorf("%s, %s: %v, %v; want a refusal", name, enc, res, err)
			}
		}
	}
	gz := "gzip"
	encoding.Store(&gz)
	if _, err := c.Blob(t.Context(), "r", d1, &ociclient.Range{First: 0, Last: 9}, "", false); !errors.Is(err, fault.Busy) {
		t.Errorf("a part of what is compressed: %v", err)
	}
}

// TestStall_OfABodyCostsAMoment: headers came, and then nothing.
func TestStall_OfABodyCostsAMoment(t *testing.T) {
	end := make(chan struct{})
	var code atomic.Int64
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(int(code.Load()))
		_, _ = io.WriteString(w, "a part")
		_ = http.NewResponseController(w).Flush()
		<-end
	})
	t.Cleanup(func() { close(end) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := impatient(t, s.URL, io.Discard)
	for _, status := range []int64{200, 404, 503} {
		code.Store(status)
		res, err := c.Manifest(ctx, "r", "v1", nil, "", false)
		if err != nil {
			t.Fatal(err)
		}
		if status != 200 {
			if refusal := c.Refusal(res); refusal.Status != int(status) || string(refusal.Body) != "a part" {
				t.Errorf("%d: %d %q", status, refusal.Status, refusal.Body)
			}
			continue
		}
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		if ociclient.OutcomeOf(err) != ociclient.Stalled || !errors.Is(err, fault.Busy) {
			t.Errorf("%v is %s, want stalled", err, ociclient.OutcomeOf(err))
		}
	}
	code.Store(503)
	res, err := c.Blob(ctx, "r", d1, nil, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if refusal := c.Refusal(res); refusal.Status != 503 {
		t.Errorf("%v", refusal)
	}
	code.Store(401) // to which an answer is known, that does not help
	if _, err := ociclient.New(ociclient.Options{Base: mustParse(t, s.URL), Credentials: login("me", "x")}).Blob(ctx, "r", d1, nil, "", false); err != nil {
		t.Error(err)
	}
	if ctx.Err() != nil {
		t.Error("it took too long")
	}
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

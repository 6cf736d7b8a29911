package mirror_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// stall keeps a request until the test ends.
func (u *upstream) stall(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-u.end:
	}
}

// troubles are ways in which an upstream decides nothing. Each answers a request.
func troubles(u *upstream) map[string]func(http.ResponseWriter, *http.Request) {
	challenge := func(realm string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	dead := newUpstream(u.t)
	dead.Close()
	half := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(code)
			_ = http.NewResponseController(w).Flush()
			u.stall(r)
		}
	}
	return map[string]func(http.ResponseWriter, *http.Request){
		"429":                     status(429),
		"429 with Retry-After":    status(429, "Retry-After", "60"),
		"503":                     status(503),
		"503 with Retry-After":    status(503, "Retry-After", "60"),
		"400":                     status(400),
		"a 503 whose body stalls": half(503),
		"a 404 of another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, newMissing(u), http.StatusTemporaryRedirect)
		},
		"a page of HTML": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, "<html>log in first</html>")
		},
		"a page of another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.Replace(u.URL, "127.0.0.1", "localhost", 1)+"/elsewhere/page", http.StatusFound)
		},
		"a 206 for the whole": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-1/2")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "{}")
		},
		"a page without a type": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "please log in first")
		},
		"no header":                      func(_ http.ResponseWriter, r *http.Request) { u.stall(r) },
		"a broken connection":            func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a realm that is down":           challenge(dead.URL + "/token"),
		"a realm that does not resolve":  challenge("http://no-such-host.invalid/token"),
		"a realm that is not a URL":      challenge("::"),
		"a token service that has 503":   challenge(u.URL + "/token/503"),
		"a token service that has 429":   challenge(u.URL + "/token/429"),
		"a token service that hangs":     challenge(u.URL + "/token/hang"),
		"a token service that stalls":    challenge(u.URL + "/token/stall"),
		"a token service without tokens": challenge(u.URL + "/token/empty"),
	}
}

// newMissing is a URL at another host that answers 404.
func newMissing(u *upstream) string {
	return strings.Replace(u.URL, "127.0.0.1", "localhost", 1) + "/elsewhere/404"
}

// tokens answers for the token services of troubles.
func (u *upstream) tokens(w http.ResponseWriter, r *http.Request) bool {
	switch r.URL.Path {
	case "/token/503":
		w.WriteHeader(503)
	case "/token/429":
		w.WriteHeader(429)
	case "/token/hang":
		u.stall(r)
	case "/token/stall":
		_, _ = io.WriteString(w, `{"token":`)
		_ = http.NewResponseController(w).Flush()
		u.stall(r)
	case "/token/empty":
		_, _ = io.WriteString(w, `{}`)
	case "/elsewhere/page":
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>log in first</html>")
	case "/elsewhere/404":
		w.WriteHeader(404)
	default:
		return false
	}
	return true
}

// TestN11_AnOutageIsNotAVerdict: each of these failed pulls of what is cached and
// public, and some took the right to it away for good.
func TestN11_AnOutageIsNotAVerdict(t *testing.T) {
	names := troubles(newUpstream(t))
	for name := range names {
		for _, part := range []string{"/manifests/", "/blobs/", "/"} {
			t.Run(name+" for "+part, func(t *testing.T) {
				t.Parallel()
				u := newUpstream(t)
				i := u.push("app", "v1", "a", 1000)
				n := start(t, nodeOptions{upstreams: []*upstream{u}, idle: time.Second})
				n.pull("", "app", "v1", i)
				trouble := troubles(u)[name]
				u.on(func(w http.ResponseWriter, r *http.Request) bool {
					if u.tokens(w, r) {
						return true
					}
					if !strings.Contains(r.URL.Path, part) {
						return false
					}
					trouble(w, r)
					return true
				})
				n.impatient.Store(true)
				n.clock.advance(time.Hour) // every right is to be confirmed
				n.pull("", "app", "v1", i)
				n.pull("", "app", string(i.digest), i)
				for range 2 {
					n.get("/v2/app/blobs/" + string(i.layers[0])).want(200).wantBody(i.bytes[0])
				}
				if part != "/blobs/" {
					n.clock.advance(time.Minute)
					n.get("/v2/app/manifests/v1").want(200).wantHeader("Fairway-Source", "stale")
				}
				if _, ok, err := n.index.Public(t.Context(), u.name(), "app", i.digest); err != nil || !ok {
					t.Errorf("the right is lost: %v, %v", ok, err)
				}
				n.restart()
				n.clock.advance(time.Hour)
				n.pull("", "app", string(i.digest), i)
				// What is not here fails, and decides nothing either.
				if a := n.get("/v2/app/blobs/" + string(sha([]byte("absent")))); part != "/manifests/" && a.status < 400 {
					t.Errorf("status %d for what nobody has", a.status)
				}
			})
		}
	}
}

// TestN11_ADenialIsAVerdict: all that is not an outage ends rights, and at once.
func TestN11_ADenialIsAVerdict(t *testing.T) {
	for _, code := range []int{401, 403, 404, 410, 451} {
		u := newUpstream(t)
		i := u.push("app", "v1", "a", 1000)
		n := start(t, nodeOptions{upstreams: []*upstream{u}})
		n.pull("", "app", "v1", i)
		n.clock.advance(time.Hour)
		u.on(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			return true
		})
		for _, path := range []string{"manifests/v1", "manifests/" + string(i.digest), "blobs/" + string(i.layers[0])} {
			n.get("/v2/app/" + path).want(code)
		}
		u.on(nil)
		u.Close() // now it does not come back by an outage
		n.clock.advance(time.Minute)
		n.get("/v2/app/manifests/" + string(i.digest)).want(502)
		n.get("/v2/app/blobs/" + string(i.layers[0])).want(502)
	}
}

// TestN11_RetryAfterIsHonoured: an upstream that limits the rate was asked again
// by every request.
func TestN11_RetryAfterIsHonoured(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	n.clock.advance(time.Hour)
	u.on(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(429)
		return true
	})
	before := u.count("")
	absent := "/v2/app/blobs/" + string(sha([]byte("absent")))
	for range 5 {
		n.get("/v2/app/manifests/v1").want(200).wantHeader("Fairway-Source", "stale")
		n.get("/v2/app/blobs/" + string(i.layers[0])).want(200)
		n.get(absent).want(429).wantHeader("Retry-After", "60")
		n.get("/v2/app/manifests/v2").want(429).wantHeader("Retry-After", "60")
	}
	if got := u.count("") - before; got > 3 {
		t.Errorf("it was asked %d times, want once for each kind of question: %v", got, u.seen[before:])
	}
	n.get(absent, "Authorization", alice).want(429) // whose limit is another
	if got := u.count("") - before; got > 4 {
		t.Errorf("it was asked %d times", got)
	}
	u.on(nil)
	n.clock.advance(61 * time.Second)
	n.get("/v2/app/manifests/v1").want(200).wantHeader("Fairway-Source", "cache")
	n.get(absent).want(404)
}

// TestR12_AForgedManifestAndAnOutageOpenNothing: one 503 was enough.
func TestR12_AForgedManifestAndAnOutageOpenNothing(t *testing.T) {
	for name := range troubles(newUpstream(t)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUpstream(t)
			i := u.push("secret", "v1", "s", 1000)
			u.repo("secret").auth = alice
			forge(u, "mine", i)
			n := start(t, nodeOptions{upstreams: []*upstream{u}, idle: time.Second})
			n.pull("", "secret", "v1", i, "Authorization", alice)
			n.get("/v2/mine/manifests/v1").want(200)
			trouble := troubles(u)[name]
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				if !u.tokens(w, r) {
					trouble(w, r)
				}
				return true
			})
			n.impatient.Store(true)
			for range 2 {
				for _, d := range []oci.Digest{i.layers[0], i.config} {
					if a := n.get("/v2/mine/blobs/" + string(d)); a.status < 400 {
						t.Errorf("status %d with %d bytes that are private", a.status, len(a.body))
					}
					if a := n.get("/v2/mine/blobs/"+string(d), "Authorization", bob); a.status < 400 {
						t.Errorf("status %d with %d bytes that are not bob's", a.status, len(a.body))
					}
				}
			}
			// Whoever was given them still has them.
			n.pull("", "secret", "v1", i, "Authorization", alice)
		})
	}
}

// A portal that answers 200 to every request made private content readable for
// every client.
func TestR12_AYesThatIsNotAboutTheDigestOpensNothing(t *testing.T) {
	t.Run("of what is complete", func(t *testing.T) { opensNothing(t, false) })
	t.Run("before the index says so", func(t *testing.T) { opensNothing(t, true) })
}

func opensNothing(t *testing.T, late bool) {
	for name, header := range map[string][2]string{
		"another size":   {"Content-Length", "7"},
		"no content":     {"Content-Length", "0"},
		"another digest": {"Docker-Content-Digest", string(sha([]byte("another")))},
		"a page":         {"Content-Type", "text/html"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			i := u.push("secret", "v1", "s", 1000)
			u.repo("secret").auth = alice
			n := start(t, nodeOptions{upstreams: []*upstream{u}})
			n.pull("", "secret", "v1", i, "Authorization", alice)
			for _, d := range []oci.Digest{i.layers[0], i.digest} {
				eventually(t, "it is complete", func() bool { b, err := n.index.Blob(t.Context(), d); return err == nil && b.State == index.Complete })
				if late {
					if err := n.index.Become(t.Context(), d, index.Partial, 0, ""); err != nil {
						t.Fatal(err)
					}
				}
			}
			content := map[string][]byte{string(i.layers[0]): i.bytes[0], string(i.digest): u.repo("secret").manifests[i.digest].content}
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				d := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Header().Set("Content-Length", strconv.Itoa(len(content[d])))
				w.Header().Set(header[0], header[1])
				if r.Method == http.MethodGet {
					panic(http.ErrAbortHandler)
				}
				return true
			})
			for d := range content {
				kind := "blobs/"
				if d == string(i.digest) {
					kind = "manifests/"
				}
				for range 2 {
					if a := n.get("/v2/secret/" + kind + d); a.status < 500 {
						t.Errorf("%s: status %d with %d bytes that are private", kind, a.status, len(a.body))
					}
				}
			}
			n.pull("", "secret", string(i.digest), i, "Authorization", alice)
		})
	}
}

// A tag that named a manifest which nobody has was remembered, and could not be
// pulled until that was forgotten.
func TestN8_ATagWhoseManifestCannotBeHadIsAskedAgain(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead {
			return false
		}
		w.Header().Set("Docker-Content-Digest", string(sha([]byte("gone"))))
		return true
	})
	n.get("/v2/app/manifests/v1").want(404)
	u.on(nil)
	n.pull("", "app", "v1", i)
}

// TestR12_AnUpstreamThatSaysYesToAllOpensNothing: what is cached from one was
// served under another that has not got it.
func TestR12_AnUpstreamThatSaysYesToAllOpensNothing(t *testing.T) {
	u, yes := newUpstream(t), newUpstream(t)
	i := u.push("secret", "v1", "s", 3<<20)
	u.repo("secret").auth = alice
	blobs, manifests := u.repo("secret").blobs, u.repo("secret").manifests
	yes.on(func(w http.ResponseWriter, r *http.Request) bool {
		d := oci.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
		size := len(blobs[d]) + len(manifests[d].content)
		w.Header().Set("Content-Length", strconv.Itoa(size))
		w.WriteHeader(200)
		if r.Method == http.MethodGet {
			_, _ = w.Write(make([]byte, size))
		}
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u, yes}})
	refused := func() {
		t.Helper()
		for _, path := range []string{"blobs/" + string(i.layers[0]), "blobs/" + string(i.config), "blobs/" + string(i.digest), "manifests/" + string(i.digest)} {
			for _, header := range [][]string{{}, {"Authorization", bob}, {"Range", "bytes=0-9"}} {
				a := n.get("/v2/any/"+path+"?ns="+yes.name(), header...)
				if a.status < 300 && a.err == nil || strings.Contains(string(a.body), string(i.bytes[0][:100])) {
					t.Errorf("%s: status %d with %d bytes", path, a.status, len(a.body))
				}
			}
		}
	}
	refused() // whoever asked first does not make it this upstream's
	n.pull("", "secret", "v1", i, "Authorization", alice)
	refused()
	n.restart()
	refused()
	n.pull("", "secret", "v1", i, "Authorization", alice)
	if got := n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).header.Get("Fairway-Source"); got != "cache" {
		t.Errorf("alice's came from %q", got)
	}
}

// TestR12_AnUpstreamThatHasItIsBelieved: what one has proved to have comes from
// the cache from then on.
func TestR12_AnUpstreamThatHasItIsBelieved(t *testing.T) {
	a, b := newUpstream(t), newUpstream(t)
	i := a.push("secret", "v1", "s", 1000)
	a.repo("secret").auth = alice
	b.push("copy", "v1", "s", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{a, b}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	query := "?ns=" + b.name()
	n.pull(query, "copy", "v1", i)
	before := b.bytes.Load()
	n.pull(query, "copy", "v1", i)
	if got := b.bytes.Load() - before; got != 0 {
		t.Errorf("%d bytes came from it a second time", got)
	}
}

// TestR12_PublicRightsAreConfirmedAgain: a repository that became private was
// served to everybody a month later.
func TestR12_PublicRightsAreConfirmedAgain(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	forge(u, "mine", i)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	before := u.count("HEAD")
	n.get("/v2/app/blobs/" + string(i.layers[0])).want(200)
	if got := u.count("HEAD") - before; got != 0 {
		t.Errorf("it was asked %d times within the time that its word counts", got)
	}
	u.repo("app").auth = alice
	for range 2 {
		n.clock.advance(30 * 24 * time.Hour)
		for _, path := range []string{"blobs/" + string(i.layers[0]), "blobs/" + string(i.config), "manifests/" + string(i.digest), "manifests/v1"} {
			n.get("/v2/app/" + path).want(401)
			n.get("/v2/app/"+path, "Authorization", bob).want(401)
		}
		n.restart()
	}
	n.pull("", "app", "v1", i, "Authorization", alice)
	// What was everybody's is private wherever a manifest names it.
	n.get("/v2/mine/manifests/v1").want(200)
	n.get("/v2/mine/blobs/" + string(i.layers[0])).want(404)
}

// TestR12_OneRefusalEndsARepositoryAtOnce: the tag's 401 says what that of each
// digest would.
func TestR12_OneRefusalEndsARepositoryAtOnce(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	u.push("app", "v2", "b", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	u.repo("app").auth = alice
	n.get("/v2/app/manifests/v2").want(401)
	for _, path := range []string{"blobs/" + string(i.layers[0]), "manifests/" + string(i.digest)} {
		n.get("/v2/app/" + path).want(401)
	}
}

// TestR12_OneClientsRefusalIsItsOwn: it took from all what the node exchanges
// with others, and what everybody may have.
func TestR12_OneClientsRefusalIsItsOwn(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	pub := u.push("app", "v1", "p", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.pull("", "app", "v1", pub)
	if !n.mirror.Allowed(u.name(), i.layers[0]) || n.mirror.Allowed(u.name(), pub.layers[0]) {
		t.Fatalf("alice's is exchanged: %v; what took no credentials is said to have taken some: %v", n.mirror.Allowed(u.name(), i.layers[0]), n.mirror.Allowed(u.name(), pub.layers[0]))
	}
	for _, path := range []string{"blobs/" + string(i.layers[0]), "manifests/" + string(i.digest), "manifests/v1"} {
		n.get("/v2/secret/"+path, "Authorization", bob).want(401)
		n.get("/v2/secret/" + path).want(401)
	}
	if !n.mirror.Allowed(u.name(), i.layers[0]) || !n.mirror.Allowed(u.name(), i.digest) {
		t.Error("bob's refusal took alice's right away")
	}
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != bob {
			return false
		}
		w.WriteHeader(401)
		return true
	})
	n.clock.advance(time.Minute)
	n.get("/v2/app/manifests/v1", "Authorization", bob).want(401)
	u.Close()
	n.pull("", "app", string(pub.digest), pub)
	n.pull("", "secret", string(i.digest), i, "Authorization", alice)
	n.clock.advance(time.Hour)
	if n.mirror.Allowed(u.name(), i.layers[0]) {
		t.Error("alice's right never ends")
	}
}

// TestR12_WhoeverIsRefusedIsNotAllowedAnyMore: a right that is taken back leaves
// nothing behind, neither in the index nor in memory.
func TestR12_WhoeverIsRefusedIsNotAllowedAnyMore(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 1000)
	u.repo("secret").auth = alice
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "secret", "v1", i, "Authorization", alice)
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(403)
		return true
	})
	n.clock.advance(time.Minute)
	n.get("/v2/secret/manifests/v1", "Authorization", alice).want(403)
	if n.mirror.Allowed(u.name(), i.digest) {
		t.Error("what alice is refused is still exchanged with others")
	}
	n.get("/v2/secret/manifests/"+string(i.digest), "Authorization", alice).want(403)
}

// TestR12_ASubjectGivesNoRight: a signature that anybody may read names an image
// that not everybody may.
func TestR12_ASubjectGivesNoRight(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	sig := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeImage + `","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` + string(sha([]byte("{}"))) +
		`","size":2},"layers":[],"subject":{"mediaType":"` + oci.MediaTypeImage + `","digest":"` + string(i.digest) + `","size":1000}}`)
	rp := u.repo("app")
	rp.manifests[sha(sig)] = stored{oci.MediaTypeImage, sig}
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i) // the content is here, and public
	n.restart()
	n.get("/v2/app/manifests/" + string(sha(sig))).want(200)
	if err := n.index.RevokePublic(t.Context(), u.name(), "app", i.digest); err != nil {
		t.Fatal(err)
	}
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(503)
		return true
	})
	for _, path := range []string{"manifests/" + string(i.digest), "blobs/" + string(i.layers[0])} {
		n.get("/v2/app/" + path).want(502)
	}
}

// TestR12_InDoubtItIsPrivate: an index that cannot say gives nothing away.
func TestR12_InDoubtItIsPrivate(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1000)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	if _, err := n.mirror.Named(t.Context(), u.name(), "app", "v1"); err != nil {
		t.Fatalf("what everybody may have: %v", err)
	}
	n.failing = true
	if err := n.index.Close(); err != nil {
		t.Fatal(err)
	}
	if named, err := n.mirror.Named(t.Context(), u.name(), "app", "v1"); err == nil {
		t.Errorf("an index that is closed says %v", named)
	} else if fault.KindOf(err) == fault.NotFound {
		t.Errorf("it is said not to be there: %v", err)
	}
}

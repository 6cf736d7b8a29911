package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// faulty is a node in front of an upstream with an image of one layer, whose
// blob requests are answered by serve; the manifest is here already.
func faulty(t *testing.T, o nodeOptions, size int, serve func(u *upstream, i image, w http.ResponseWriter, r *http.Request) bool) (*node, *upstream, image) {
	t.Helper()
	u := newUpstream(t)
	i := u.push("app", "v1", "a", size)
	o.upstreams = []*upstream{u}
	n := start(t, o)
	n.get("/v2/app/manifests/v1").want(200)
	u.on(func(w http.ResponseWriter, r *http.Request) bool { return isBlob(r) && serve(u, i, w, r) })
	return n, u, i
}

func layerPath(i image) string { return "/v2/app/blobs/" + string(i.layers[0]) }

func TestN7_WrongBytesAreNeverHandedOutWhole(t *testing.T) {
	for _, size := range []int{1000, 3 * piece.Size} {
		n, u, i := faulty(t, nodeOptions{}, size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
			bad := bytes.Clone(i.bytes[0])
			bad[len(bad)-1] ^= 1
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
			return true
		})
		a := n.get(layerPath(i))
		if a.status == 200 && a.err == nil {
			t.Errorf("%d bytes: a whole answer of %d bytes, that are not the blob", size, len(a.body))
		}
		if size < piece.Size {
			a.wantError(502, oci.CodeUnknown)
		}
		if len(a.body) > 0 && a.status == 200 && len(a.body) > size-1 {
			t.Errorf("the last byte was handed out")
		}
		u.on(nil)
		n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	}
}

// TestN7_RangeThatNeedsAllOfWrongBytesIsNeverAnsweredWhole: a part that needs every
// piece of the blob can be verified, and is. One that needs less is what the
// upstream sent, and is not kept.
func TestN7_RangeThatNeedsAllOfWrongBytesIsNeverAnsweredWhole(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{}, 5*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		bad := bytes.Clone(i.bytes[0])
		bad[0] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
		return true
	})
	for _, rng := range []string{"0-", "5-1310718", "262143-1048576"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.http.URL+layerPath(i), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes="+rng)
		res, err := n.http.Client().Do(req)
		if err != nil {
			continue // the connection was broken before the header had left
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode < 400 && err == nil {
			t.Errorf("%s: a whole answer of %d bytes, that are not the blob's", rng, len(body))
		}
	}
	u.on(nil)
	// Until then it hands on what the upstream has sent.
	eventually(t, "the download finds out and ends", func() bool { return n.metric("fairway_node_fetches_in_flight") == 0 })
	n.get(layerPath(i), "Range", "bytes=0-999").want(206).wantBody(i.bytes[0][:1000])
}

func TestN7_WrongBytesOnceAreFetchedAgain(t *testing.T) {
	var lied atomic.Bool
	n, _, i := faulty(t, nodeOptions{}, 1000, func(_ *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		if lied.Swap(true) {
			return false
		}
		_, _ = w.Write(make([]byte, len(i.bytes[0])))
		return true
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	if n.metric("fairway_node_upstream_errors_total", "kind", "mismatch") != 1 {
		t.Error("the lie was not counted")
	}
}

func TestN7_PieceThatComesOtherwiseThanItBeganBreaksTheConnection(t *testing.T) {
	var lied atomic.Bool
	seen := make(chan struct{})
	n, _, i := faulty(t, nodeOptions{}, 3*piece.Size, func(u *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		if lied.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(make([]byte, 10_000))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-seen:
		case <-u.end:
		}
		panic(http.ErrAbortHandler)
	})
	res, err := http.Get(n.http.URL + layerPath(i)) //nolint:noctx // ends with the server
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.ReadFull(res.Body, make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	close(seen)
	if rest, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("%d more bytes and a clean end after wrong ones", len(rest))
	}
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
}

func TestUpstream_ThatCutsIsResumedByRange(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{}, 8*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:3*piece.Size+1000])
		panic(http.ErrAbortHandler)
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	if u.count("GET", "/blobs/", "bytes="+strconv.Itoa(3*piece.Size)+"-") != 1 {
		t.Errorf("it was not resumed: %v", u.seen)
	}
}

func TestUpstream_ThatIgnoresTheRangeOfAResumeIsReadAllTheSame(t *testing.T) {
	var cut atomic.Bool
	n, _, i := faulty(t, nodeOptions{}, 4*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		if !cut.Swap(true) {
			_, _ = w.Write(i.bytes[0][:2*piece.Size])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(i.bytes[0])
		return true
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
}

func TestUpstream_ThatStallsIsAskedAgain(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{idle: 100 * time.Millisecond}, 4*piece.Size, func(u *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:piece.Size])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-u.end:
		}
		return true
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	if n.metric("fairway_node_upstream_errors_total", "kind", "stalled", "upstream", u.name()) != 1 {
		t.Error("the stall was not counted")
	}
}

func TestUpstream_ThatIsSlowButSteadyIsNotGivenUp(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{idle: time.Second}, 7*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for k := range 7 {
			_, _ = w.Write(i.bytes[0][k*piece.Size : (k+1)*piece.Size])
			_ = http.NewResponseController(w).Flush()
			<-tick.C
		}
		return true
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	if n.metric("fairway_node_upstream_errors_total") != 0 {
		t.Error("it was given up although bytes came all the time")
	}
}

func TestUpstream_ThatStallsForGoodIs504(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{idle: 50 * time.Millisecond}, 4*piece.Size, func(u *upstream, _ image, w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-u.end:
		}
		return true
	})
	n.get(layerPath(i)).wantError(504, oci.CodeUnknown)
}

func TestUpstream_ThatAcceptsAndHangsFailsFast(t *testing.T) {
	u := newUpstream(t)
	u.on(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-r.Context().Done():
		case <-u.end:
		}
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}, header: 50 * time.Millisecond})
	n.get("/v2/app/manifests/v1").wantError(504, oci.CodeUnknown)
	n.get("/v2/app/blobs/"+string(sha(nil))).wantError(504, oci.CodeUnknown)
	if got := u.count("HEAD"); got != 2 {
		t.Errorf("an upstream that hangs was asked %d times, want once for each request", got)
	}
}

func TestUpstream_WrongLengthIsAnError(t *testing.T) {
	for name, serve := range map[string]func(b []byte, w http.ResponseWriter){
		"short, and says so": func(b []byte, w http.ResponseWriter) { _, _ = w.Write(b[:len(b)-7]) },
		"long, and says so": func(b []byte, w http.ResponseWriter) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)+7))
			_, _ = w.Write(append(bytes.Clone(b), "and mor"...))
		},
		"short, without a length": func(b []byte, w http.ResponseWriter) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(b[:len(b)-7])
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, _, i := faulty(t, nodeOptions{}, 1000, func(_ *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
				serve(i.bytes[0], w)
				return true
			})
			n.get(layerPath(i)).wantError(502, oci.CodeUnknown)
		})
	}
}

func TestUpstream_WithoutContentLength(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{}, 2*piece.Size+9, func(_ *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(i.bytes[0])
		return true
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Content-Length", strconv.Itoa(len(i.bytes[0])))
	// A blob that no manifest names, whose size nobody tells: it is streamed through.
	b := content("nobody's", 300_000)
	d := sha(b)
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, string(d)) {
			return false
		}
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		if r.Method == http.MethodGet {
			_, _ = w.Write(b)
		}
		return true
	})
	n.get("/v2/app/blobs/" + string(d)).want(200).wantBody(b)
	n.get("/v2/app/blobs/"+string(d), "Range", "bytes=5-9").want(200).wantBody(b)
	b[len(b)-1] ^= 1
	if a := n.get("/v2/app/blobs/" + string(d)); a.err == nil {
		t.Errorf("wrong bytes of no known length were handed out to a clean end: %d of them", len(a.body))
	}
}

func TestUpstream_RedirectsToAnotherHost(t *testing.T) {
	cdn := httptest.NewServer(nil)
	t.Cleanup(cdn.Close)
	n, _, i := faulty(t, nodeOptions{}, 2*piece.Size, func(_ *upstream, _ image, w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, cdn.URL+"/bytes", http.StatusTemporaryRedirect)
		return true
	})
	cdn.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other host was sent an Authorization")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(i.bytes[0]))
	})
	n.get(layerPath(i), "Authorization", "Bearer secret").want(200).wantBody(i.bytes[0])
}

func TestUpstream_RefusalsPassThrough(t *testing.T) {
	for _, kind := range []string{"manifests/v1", "blobs/" + string(sha([]byte("x"))), "tags/list"} {
		u := newUpstream(t)
		n := start(t, nodeOptions{upstreams: []*upstream{u}})
		u.on(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "17")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		n.get("/v2/app/"+kind).wantError(429, oci.CodeTooManyRequests).wantHeader("Retry-After", "17")
		n.clock.advance(18 * time.Second) // until then it is left alone
		u.on(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.example/token",service="s"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"the upstream's own words"}]}`)
			return true
		})
		a := n.get("/v2/app/"+kind).wantError(401, oci.CodeUnauthorized).
			wantHeader("WWW-Authenticate", `Bearer realm="https://auth.example/token",service="s"`)
		if kind == "tags/list" && !strings.Contains(string(a.body), "own words") {
			t.Errorf("the upstream's words are lost: %s", a.body)
		}
		u.on(nil)
		n.get("/v2/app/" + kind).want(404)
		u.on(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		})
		n.get("/v2/app/"+kind).wantError(502, oci.CodeUnknown)
	}
}

func TestUpstream_RefusalOfABlobInTheMiddleOfAPull(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{}, 1000, func(_ *upstream, _ image, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	n.get(layerPath(i)).wantError(429, oci.CodeTooManyRequests).wantHeader("Retry-After", "5")
}

func TestUpstream_Down(t *testing.T) {
	u := newUpstream(t)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	u.Close()
	n.get("/v2/app/manifests/v1").wantError(502, oci.CodeUnknown)
	n.get("/v2/app/blobs/"+string(sha(nil))).wantError(502, oci.CodeUnknown)
	n.do("HEAD", "/v2/app/manifests/v1").want(502).wantBody(nil)
}

func TestUpstream_ManifestThatIsNotItsDigest(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 1)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return false
		}
		w.Header().Set("Content-Type", oci.MediaTypeImage)
		w.Header().Set("Docker-Content-Digest", string(i.digest))
		_, _ = io.WriteString(w, strings.Replace(string(i.content), "2", "3", 1))
		return true
	})
	n.get("/v2/app/manifests/v1").wantError(502, oci.CodeUnknown)
	n.get("/v2/app/manifests/"+string(i.digest)).wantError(502, oci.CodeUnknown)
}

func TestManifest_WithoutItsDigestInTheHeaderAndOfAnUnknownType(t *testing.T) {
	u := newUpstream(t)
	c := []byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":"` + string(sha(nil)) + `"}]}`)
	const mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Length", strconv.Itoa(len(c)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(c)
		}
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1").want(200).wantBody(c).wantHeader("Docker-Content-Digest", string(sha(c))).wantHeader("Content-Type", mediaType)
	n.get("/v2/app/manifests/"+string(sha(c))).want(200).wantBody(c).wantHeader("Content-Type", mediaType).wantHeader("Fairway-Source", "cache")
}

func TestAccept_OfTheRuntimeReachesTheUpstream(t *testing.T) {
	u := newUpstream(t)
	u.push("app", "v1", "a", 1)
	var seen atomic.Pointer[http.Header]
	u.on(func(_ http.ResponseWriter, r *http.Request) bool {
		h := r.Header.Clone()
		seen.Store(&h)
		return false
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/app/manifests/v1", "Accept", "application/x.one", "Accept", "application/x.two").want(200)
	if got := seen.Load().Values("Accept"); strings.Join(got, ",") != "application/x.one,application/x.two" {
		t.Errorf("the upstream was asked for %q", got)
	}
}

// TestN8_AnIndexThatFailsIsPassedBy: all was answered with 500 until a restart.
func TestN8_AnIndexThatFailsIsPassedBy(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{}, 4<<20, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	n.get(layerPath(i)).want(200)
	if err := n.index.Close(); err != nil {
		t.Fatal(err)
	}
	n.failing = true
	n.clock.advance(time.Hour) // what is remembered is not enough
	n.get("/v2/app/manifests/v1").want(200)
	n.get("/v2/app/manifests/" + string(i.digest)).want(200)
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	n.get(layerPath(i), "Range", "bytes=100-299999").want(206).wantBody(i.bytes[0][100:300000])
	if n.metric("fairway_node_around_cache_total") == 0 {
		t.Error("nobody can see it")
	}
	if got := strings.Count(n.log.String(), "pulls go around it"); got != 1 {
		t.Errorf("told %d times", got)
	}
	n.get("/v2/app/blobs/sha256:" + strings.Repeat("0", 64)).want(404)
}

// TestN6_ABlobLargerThanTheCacheIsToldOfOnce: the owner heard nothing of it, and
// every pull was one at the upstream.
func TestN6_ABlobLargerThanTheCacheIsToldOfOnce(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{quota: 2 << 20}, 4<<20, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	const text = "larger than the whole cache"
	for range 3 {
		n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	}
	if got := strings.Count(n.log.String(), text); got != 1 {
		t.Errorf("told %d times of one episode", got)
	}
	n.clock.advance(2 * time.Hour)
	n.get(layerPath(i)).want(200)
	if got := strings.Count(n.log.String(), text); got != 2 {
		t.Errorf("told %d times of two episodes", got)
	}
	if got := n.metric("fairway_node_oversized_total"); got != 4 {
		t.Errorf("%v were counted of 4", got)
	}
}

func TestN6_BlobWithoutRoomIsStreamedThroughVerified(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{quota: 2 << 20}, 4<<20, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	for range 2 {
		n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "upstream").wantHeader("Content-Length", strconv.Itoa(4<<20))
	}
	n.get(layerPath(i), "Range", "bytes=100-299999").want(206).wantBody(i.bytes[0][100:300000])
	if _, err := n.store.Info(t.Context(), i.layers[0]); err == nil {
		t.Error("it was kept")
	}
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) {
			return false
		}
		bad := bytes.Clone(i.bytes[0])
		bad[5] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
		return true
	})
	for _, rng := range []string{"", "bytes=0-", "bytes=100-4194303"} { // which need every piece
		if a := n.get(layerPath(i), "Range", rng); a.err == nil && a.status < 300 {
			t.Errorf("range %q: wrong bytes were streamed through to the end: status %d, %d bytes", rng, a.status, len(a.body))
		}
	}
	var cut atomic.Bool
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) || cut.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:1<<20])
		panic(http.ErrAbortHandler)
	})
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
}

func TestN7_CorruptPieceInTheCacheIsFetchedAgainInMidRead(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{}, 5*piece.Size, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	n.get(layerPath(i)).want(200)
	hex := i.layers[0].Encoded()
	path := filepath.Join(n.dir, "blobs", "sha256", hex[:2], hex)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("bit rot"), 2*piece.Size+77); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	before := u.bytes.Load()
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
	if got := u.bytes.Load() - before; got != piece.Size {
		t.Errorf("%d bytes were fetched again, want one piece", got)
	}
}

// TestN7_ManyCorruptPiecesAreFetchedAgainWithinOnePull: each of these cut the
// pull off after a few pieces, again and again.
func TestN7_ManyCorruptPiecesAreFetchedAgainWithinOnePull(t *testing.T) {
	const size = 40*piece.Size + 9
	for name, damage := range map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 13*piece.Size+5) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"removed":   os.Remove,
		"zeroed, every other piece": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			for i := 0; i < 40 && err == nil; i += 2 {
				_, err = f.WriteAt(make([]byte, 999), int64(i)*piece.Size+7)
			}
			return errors.Join(err, f.Close())
		},
	} {
		for _, restart := range []bool{false, true} {
			n, u, i := faulty(t, nodeOptions{}, size, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
			n.get(layerPath(i)).want(200)
			hex := i.layers[0].Encoded()
			if err := damage(filepath.Join(n.dir, "blobs", "sha256", hex[:2], hex)); err != nil {
				t.Fatal(err)
			}
			if restart {
				n.restart()
			}
			before := u.bytes.Load()
			if a := n.get(layerPath(i)).want(200); a.err != nil || !bytes.Equal(a.body, i.bytes[0]) {
				t.Errorf("%s, restart %v: %d bytes, %v", name, restart, len(a.body), a.err)
			}
			if got := u.bytes.Load() - before; got > size {
				t.Errorf("%s, restart %v: %d bytes were fetched again, want %d at the most", name, restart, got, size)
			}
		}
	}
}

// memory is a Holder of content that lies in memory.
type memory struct {
	blobs map[oci.Digest][]byte
	asked atomic.Int64
	hang  bool
}

type memoryContent struct{ *bytes.Reader }

func (memoryContent) Close() error  { return nil }
func (c memoryContent) Size() int64 { return c.Reader.Size() }
func (m *memory) Name() string      { return "containerd" }
func (m *memory) Open(ctx context.Context, d oci.Digest) (fetch.Content, error) {
	m.asked.Add(1)
	if m.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	b, ok := m.blobs[d]
	if !ok {
		return nil, fault.New(fault.NotFound, "no %s", d)
	}
	return memoryContent{bytes.NewReader(b)}, nil
}

func TestHolder_ServesWithoutASecondCopy(t *testing.T) {
	h := &memory{blobs: map[oci.Digest][]byte{}}
	n, u, i := faulty(t, nodeOptions{holders: []fetch.Holder{h}}, 3*piece.Size, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	h.blobs[i.layers[0]] = i.bytes[0]
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "containerd")
	n.get(layerPath(i), "Range", "bytes=10-19").want(206).wantBody(i.bytes[0][10:20])
	if u.count("GET", "/blobs/") != 0 {
		t.Error("the upstream was asked")
	}
	if _, err := n.store.Info(t.Context(), i.layers[0]); err == nil {
		t.Error("there is a second copy")
	}
}

func TestN7_HolderWhoseContentIsWrongIsNotAskedTwice(t *testing.T) {
	h := &memory{blobs: map[oci.Digest][]byte{}}
	n, _, i := faulty(t, nodeOptions{holders: []fetch.Holder{h}}, 5*piece.Size, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	bad := bytes.Clone(i.bytes[0])
	bad[9] ^= 1
	h.blobs[i.layers[0]] = bad
	// Not one of its bytes is handed out.
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "upstream")
	if got := n.metric("fairway_node_fetch_failures_total", "source", "containerd", "kind", "mismatch"); got != 1 {
		t.Errorf("the lie was counted %v times", got)
	}
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "cache")
}

func TestHolder_ThatHangsOrBreaksCostsNoPull(t *testing.T) {
	for _, size := range []int{1000, 3 * piece.Size} {
		h := &memory{blobs: map[oci.Digest][]byte{}, hang: true}
		n, _, i := faulty(t, nodeOptions{holders: []fetch.Holder{h}}, size, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
		asked := h.asked.Load()
		n.get(layerPath(i)).want(200).wantBody(i.bytes[0])
		n.get("/v2/app/blobs/" + string(i.config)).want(200)
		if got := h.asked.Load() - asked; got > 1 {
			t.Errorf("a holder that hangs was asked %d times", got)
		}
	}
	h := &memory{blobs: map[oci.Digest][]byte{}}
	n, _, i := faulty(t, nodeOptions{holders: []fetch.Holder{h}}, 1000, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	h.blobs[i.layers[0]] = make([]byte, 1000)
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "upstream")
}

// TestN8_AFileThatCannotBeOpenedFailsNoPull: the blob passes through, and nothing is removed.
func TestN8_AFileThatCannotBeOpenedFailsNoPull(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{}, 3*piece.Size, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	n.get(layerPath(i)).want(200)
	d := i.layers[0]
	eventually(t, "its files are closed", func() bool {
		info, err := n.store.Info(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		c, err := n.store.Claim(t.Context(), d, info.Version)
		return err == nil && n.store.Unclaim(t.Context(), c) == nil
	})
	path := filepath.Join(n.dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
	aside := filepath.Join(t.TempDir(), "aside")
	if err := errors.Join(os.Rename(path, aside), os.Symlink(path, path)); err != nil { // a loop of links
		t.Fatal(err)
	}
	for range 2 {
		n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "upstream")
	}
	if err := errors.Join(os.Remove(path), os.Rename(aside, path)); err != nil {
		t.Fatal(err)
	}
	n.get(layerPath(i)).want(200).wantBody(i.bytes[0]).wantHeader("Fairway-Source", "cache")
}

// TestN8_ADirectoryThatCannotBeWrittenFailsNoPull: whatever the disk said was taken for an
// upstream's timeout, since errors of the system have a method of that name.
func TestN8_ADirectoryThatCannotBeWrittenFailsNoPull(t *testing.T) {
	for name, spoil := range map[string]func(blobs string) error{
		"removed":              os.RemoveAll,
		"another in its place": func(blobs string) error { return errors.Join(os.RemoveAll(blobs), os.Mkdir(blobs, 0o700)) },
		"a file in its place":  func(blobs string) error { return errors.Join(os.RemoveAll(blobs), os.WriteFile(blobs, nil, 0o600)) },
		"a file for its subtree": func(blobs string) error {
			return errors.Join(os.RemoveAll(filepath.Join(blobs, "sha256")), os.WriteFile(filepath.Join(blobs, "sha256"), nil, 0o600))
		},
		"a loop of links": func(blobs string) error { return errors.Join(os.RemoveAll(blobs), os.Symlink(blobs, blobs)) },
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			first, second := u.push("app", "v1", "a", piece.Size), u.push("app", "v2", "b", 2*piece.Size)
			n := start(t, nodeOptions{upstreams: []*upstream{u}})
			n.pull("", "app", "v1", first)
			n.failing = true
			if err := spoil(filepath.Join(n.dir, "blobs")); err != nil {
				t.Fatal(err)
			}
			n.pull("", "app", "v2", second)
			n.get("/v2/app/manifests/" + string(second.digest)).want(200).wantBody(second.content)
			n.get(layerPath(second), "Range", "bytes=100-299999").want(206).wantBody(second.bytes[0][100:300000])
			n.pull("", "app", "v1", first)
			n.get("/v2/app/blobs/sha256:" + strings.Repeat("0", 64)).want(404)
		})
	}
}

// TestN8_AnUpstreamThatBreaksOffIsNoTroubleOfTheCache, so it is not asked all over again for that.
func TestN8_AnUpstreamThatBreaksOffIsNoTroubleOfTheCache(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{}, 2*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return false
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(i.bytes[0])) // a client that is gone
		_ = conn.(*net.TCPConn).SetLinger(0)                                                       // it is reset
		_ = conn.Close()
		return true
	})
	if a := n.get(layerPath(i)); a.status < 500 {
		t.Errorf("status %d", a.status)
	}
	if got := n.metric("fairway_node_around_cache_total"); got != 0 {
		t.Errorf("%v requests went around the cache", got)
	}
}

// TestN8_ADirectoryThatCannotBeWrittenCutsNoPull: some of the first piece is handed out
// before it turns out that it cannot be written.
func TestN8_ADirectoryThatCannotBeWrittenCutsNoPull(t *testing.T) {
	shown := make(chan struct{})
	n, _, i := faulty(t, nodeOptions{}, 2*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return false
		}
		select {
		case <-shown:
			return false
		default:
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:piece.Size/2]) // a client that is gone
		_ = http.NewResponseController(w).Flush()
		select {
		case <-shown:
		case <-r.Context().Done():
		}
		_, _ = w.Write(i.bytes[0][piece.Size/2:])
		return true
	})
	n.failing = true
	if err := os.RemoveAll(filepath.Join(n.dir, "blobs", "sha256")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "blobs", "sha256"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.http.URL+layerPath(i), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	first := make([]byte, 1)
	_, err = io.ReadFull(res.Body, first)
	close(shown)
	rest, err2 := io.ReadAll(res.Body)
	if err := errors.Join(err, err2); err != nil || first[0] != i.bytes[0][0] || !bytes.Equal(rest, i.bytes[0][1:]) {
		t.Errorf("%d bytes of %d: %v", len(rest)+1, len(i.bytes[0]), err)
	}
}

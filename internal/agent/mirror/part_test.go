package mirror_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// wantParts checks an answer of several parts of content.
func (a *answer) wantParts(content []byte, ranges ...[2]int) {
	a.t.Helper()
	a.want(206)
	kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || a.err != nil || a.header.Get("Content-Length") != strconv.Itoa(len(a.body)) {
		a.t.Fatalf("%s: type %q, length %s, %d bytes, %v", a.what, a.header.Get("Content-Type"), a.header.Get("Content-Length"), len(a.body), errors.Join(err, a.err))
	}
	r := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	for _, want := range ranges {
		part, err := r.NextPart()
		if err != nil {
			a.t.Fatalf("%s: %v, want bytes %v", a.what, err, want)
		}
		got, err := io.ReadAll(part)
		if err != nil || !bytes.Equal(got, content[want[0]:want[1]+1]) || part.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", want[0], want[1], len(content)) {
			a.t.Errorf("%s: %d bytes as %s, want bytes %v: %v", a.what, len(got), part.Header.Get("Content-Range"), want, err)
		}
	}
	if _, err := r.NextPart(); !errors.Is(err, io.EOF) {
		a.t.Errorf("%s: there are more parts: %v", a.what, err)
	}
}

func headerOf(ranges ...[2]int) string {
	var all []string
	for _, r := range ranges {
		all = append(all, fmt.Sprintf("%d-%d", r[0], r[1]))
	}
	return "bytes=" + strings.Join(all, ", ")
}

// TestSpec_PullingBlobs_SeveralRanges is RFC 9110 §14: podman's partial pulls ask
// for more than a hundred at once.
func TestSpec_PullingBlobs_SeveralRanges(t *testing.T) {
	u := newUpstream(t)
	i := u.push("app", "v1", "a", 3*piece.Size+77)
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.pull("", "app", "v1", i)
	all := i.bytes[0]
	var many [][2]int
	for k := range 150 {
		many = append(many, [2]int{5000 * k, 5000*k + 100})
	}
	for _, ranges := range [][][2]int{{{0, 0}, {9, 9}}, {{piece.Size - 5, piece.Size + 5}, {0, 10}, {3 * piece.Size, 3*piece.Size + 76}}, many} {
		n.get(layerPath(i), "Range", headerOf(ranges...)).wantHeader("Fairway-Source", "cache").wantParts(all, ranges...)
	}
	n.get(layerPath(i), "Range", "bytes=5-9223372036854775807").want(206).wantBody(all[5:])
	n.get(layerPath(i), "Range", "bytes=5-99999999999999999999999").want(206).wantBody(all[5:])
	n.get(layerPath(i), "Range", "bytes=0-,0-").want(200).wantBody(all)
}

// TestSpec_RangeOfAColdBlob_IsAnsweredWhenItsPiecesHaveArrived: 1 KiB took as long
// as all of it.
func TestSpec_RangeOfAColdBlob_IsAnsweredWhenItsPiecesHaveArrived(t *testing.T) {
	release := make(chan struct{})
	n, u, i := faulty(t, nodeOptions{}, 40*piece.Size, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Accept-Ranges", "bytes")
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0][:piece.Size])
		w.(http.Flusher).Flush()
		<-release
		_, _ = w.Write(i.bytes[0][piece.Size:])
		return true
	})
	all := i.bytes[0]
	n.get(layerPath(i), "Range", "bytes=3000000-3001023").want(206).wantBody(all[3000000:3001024]).wantHeader("Content-Range", fmt.Sprintf("bytes 3000000-3001023/%d", len(all)))
	n.get(layerPath(i), "Range", "bytes=-47").want(206).wantBody(all[len(all)-47:])
	ranges := [][2]int{{8000000, 8000999}, {0, 9}, {len(all) - 5, len(all) - 1}}
	n.get(layerPath(i), "Range", headerOf(ranges...)).wantParts(all, ranges...)
	if sent := u.bytes.Load(); sent > 10_000 {
		t.Errorf("the upstream sent %d bytes beside the download", sent)
	}
	close(release)
	n.get(layerPath(i)).want(200).wantBody(all)
	n.get(layerPath(i), "Range", "bytes=0-99").want(206).wantBody(all[:100]).wantHeader("Fairway-Source", "cache")
}

// TestN8_ARangeFollowsTheDownloadIfTheUpstreamGivesNoParts of it.
func TestN8_ARangeFollowsTheDownloadIfTheUpstreamGivesNoParts(t *testing.T) {
	n, _, i := faulty(t, nodeOptions{}, 10*piece.Size, func(_ *upstream, _ image, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") == "" {
			return false
		}
		http.Error(w, "no parts", http.StatusInternalServerError)
		return true
	})
	n.get(layerPath(i), "Range", "bytes=1000000-1000999").want(206).wantBody(i.bytes[0][1000000:1001000])
	n.get(layerPath(i), "Range", "bytes=0-9,20-29").wantParts(i.bytes[0], [2]int{0, 9}, [2]int{20, 29})
}

// TestN6_RangesOfABlobThatIsNotKeptCostWhatTheyAre: eight ranges of 8 MiB cost the
// upstream 64 MiB.
func TestN6_RangesOfABlobThatIsNotKeptCostWhatTheyAre(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{quota: 2 << 20}, 8<<20, func(*upstream, image, http.ResponseWriter, *http.Request) bool { return false })
	var all sync.WaitGroup
	for k := range 8 {
		all.Go(func() {
			from, to := k<<20, (k+1)<<20-1
			n.get(layerPath(i), "Range", headerOf([2]int{from, to})).want(206).wantBody(i.bytes[0][from : to+1])
		})
	}
	all.Wait()
	ranges := [][2]int{{1, 2}, {4 << 20, 4<<20 + 100}}
	n.get(layerPath(i), "Range", headerOf(ranges...)).wantParts(i.bytes[0], ranges...)
	if sent := u.bytes.Load(); sent > 9<<20 {
		t.Errorf("the upstream sent %d bytes for ranges of %d", sent, 8<<20)
	}
}

// TestSpec_Range_ABrokenPartGoesOn where it broke.
func TestSpec_Range_ABrokenPartGoesOn(t *testing.T) {
	var broken sync.Once
	n, _, i := faulty(t, nodeOptions{quota: 2 << 20}, 8<<20, func(_ *upstream, i image, w http.ResponseWriter, r *http.Request) bool {
		cut := false
		broken.Do(func() { cut = true })
		if !cut {
			return false
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 100-2000099/%d", 8<<20))
		w.Header().Set("Content-Length", "2000000")
		w.WriteHeader(206)
		_, _ = w.Write(i.bytes[0][100:1_000_000])
		panic(http.ErrAbortHandler)
	})
	n.get(layerPath(i), "Range", "bytes=100-2000099").want(206).wantBody(i.bytes[0][100:2000100])
}

// TestN7_APartOfAnUpstreamThatIgnoresRangesIsVerified: all of it is read anyway.
func TestN7_APartOfAnUpstreamThatIgnoresRangesIsVerified(t *testing.T) {
	for _, quota := range []int64{0, 2 << 20} {
		n, _, i := faulty(t, nodeOptions{quota: quota}, 4<<20, func(_ *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
			_, _ = w.Write(make([]byte, len(i.bytes[0])))
			return true
		})
		if a := n.get(layerPath(i), "Range", "bytes=1000-1009"); a.status < 400 && a.err == nil {
			t.Errorf("quota %d: %d bytes of another content", quota, len(a.body))
		}
	}
}

// TestN9_APartIsNotAskedForInVain at an upstream that has not said that it answers
// ranges, where the download is about to bring it.
func TestN9_APartIsNotAskedForInVain(t *testing.T) {
	n, u, i := faulty(t, nodeOptions{}, 4<<20, func(_ *upstream, i image, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(i.bytes[0])))
		_, _ = w.Write(i.bytes[0])
		return true
	})
	n.get(layerPath(i), "Range", "bytes=1000-1009").want(206).wantBody(i.bytes[0][1000:1010])
	if got := u.count("GET", "/blobs/"+string(i.layers[0])); got != 1 {
		t.Errorf("the upstream was asked %d times", got)
	}
}

// TestN8_ARangeThatTheUpstreamRefusesIsItsFailure: it breaks off and refuses the range by
// which the node goes on, or a part that it has. The client's request was right.
func TestN8_ARangeThatTheUpstreamRefusesIsItsFailure(t *testing.T) {
	for _, status := range []int{http.StatusRequestedRangeNotSatisfiable, http.StatusPreconditionFailed, http.StatusExpectationFailed} {
		for name, o := range map[string]nodeOptions{"kept": {hold: time.Minute}, "streamed through": {quota: 1 << 20}} {
			const size = 3 << 20
			u := newUpstream(t)
			i := u.push("app", "v1", "a", size, 1000)
			o.upstreams = []*upstream{u}
			n := start(t, o)
			n.get("/v2/app/manifests/v1").want(200)
			u.on(func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) || r.Method != http.MethodGet {
					return false
				}
				if r.Header.Get("Range") != "" {
					w.WriteHeader(status)
					return true
				}
				body := i.bytes[0]
				if !strings.HasSuffix(r.URL.Path, string(i.layers[0])) {
					body = i.bytes[1]
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				_, _ = w.Write(body[:len(body)/2])
				panic(http.ErrAbortHandler)
			})
			for at, all := range i.bytes[:2] {
				path := "/v2/app/blobs/" + string(i.layers[at])
				for _, rng := range []string{"", "bytes=100-199"} {
					a := n.get(path, "Range", rng)
					switch {
					case a.status == http.StatusPartialContent && a.err == nil:
						a.wantBody(all[100:200]) // the download had brought it
					case name == "kept" && rng == "" || a.status >= 300:
						a.wantError(502, oci.CodeUnknown)
					case a.err == nil:
						t.Errorf("%d, %s, %q: %d bytes as if that were all", status, name, rng, len(a.body))
					}
				}
			}
		}
	}
}

package mirror_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
)

// upstream is a registry that can be read, and that misbehaves on demand.
type upstream struct {
	*httptest.Server
	t     testing.TB
	mu    sync.Mutex
	repos map[string]*repo
	hook  func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	seen  []string
	bytes atomic.Int64 // of blobs, sent
	end   chan struct{}
}

type repo struct {
	auth      string // the Authorization that lets in; "": none is needed
	blobs     map[oci.Digest][]byte
	manifests map[oci.Digest]stored
	tags      map[string]oci.Digest
}

type stored struct {
	mediaType string
	content   []byte
}

func newUpstream(t testing.TB) *upstream {
	u := &upstream{t: t, repos: map[string]*repo{}, end: make(chan struct{})}
	u.Server = httptest.NewServer(u)
	t.Cleanup(func() {
		close(u.end)
		u.CloseClientConnections()
		u.Close()
	})
	return u
}

// name is what runtimes call it.
func (u *upstream) name() string {
	parsed, err := url.Parse(u.URL)
	if err != nil {
		u.t.Fatal(err)
	}
	return parsed.Host
}

func (u *upstream) repo(name string) *repo {
	u.mu.Lock()
	defer u.mu.Unlock()
	r, ok := u.repos[name]
	if !ok {
		r = &repo{blobs: map[oci.Digest][]byte{}, manifests: map[oci.Digest]stored{}, tags: map[string]oci.Digest{}}
		u.repos[name] = r
	}
	return r
}

// on has hook look at each request first.
func (u *upstream) on(hook func(w http.ResponseWriter, r *http.Request) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hook = hook
}

// count is how many requests were seen that contain all of parts.
func (u *upstream) count(parts ...string) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
next:
	for _, line := range u.seen {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		n++
	}
	return n
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	hook := u.hook
	u.seen = append(u.seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
	u.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	i := strings.LastIndexByte(path, '/')
	path, last := path[:i], path[i+1:]
	i = strings.LastIndexByte(path, '/')
	name, kind := path[:i], path[i+1:]
	u.mu.Lock()
	rp, ok := u.repos[name]
	u.mu.Unlock()
	if ok && rp.auth != "" && r.Header.Get("Authorization") != rp.auth {
		w.Header().Set("WWW-Authenticate", `Basic realm="upstream"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch {
	case ok && kind == "manifests":
		u.manifest(w, r, rp, last)
	case ok && kind == "blobs":
		u.blob(w, r, rp, last)
	case ok && kind == "tags":
		w.Header().Set("Link", `</v2/`+name+`/tags/list?last=b&n=2>; rel="next"`)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"name":"`+name+`","tags":["a","b"]}`)
	default:
		http.NotFound(w, r)
	}
}

func (u *upstream) manifest(w http.ResponseWriter, r *http.Request, rp *repo, ref string) {
	u.mu.Lock()
	d, ok := rp.tags[ref]
	if !ok {
		d = oci.Digest(ref)
	}
	m, ok := rp.manifests[d]
	u.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Docker-Content-Digest", string(d))
	w.Header().Set("Content-Length", strconv.Itoa(len(m.content)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(m.content)
	}
}

func (u *upstream) blob(w http.ResponseWriter, r *http.Request, rp *repo, last string) {
	u.mu.Lock()
	b, ok := rp.blobs[oci.Digest(last)]
	u.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Docker-Content-Digest", last)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&counted{w, &u.bytes}, r, "", time.Time{}, bytes.NewReader(b))
}

type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

// Write counts first, so that nobody has bytes that are not counted yet.
func (c *counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n - len(p)))
	return n, err
}

// image is an image that an upstream has.
type image struct {
	digest, config oci.Digest
	content        []byte
	layers         []oci.Digest
	bytes          [][]byte // of the layers
}

// push puts an image with layers of these sizes into a repository.
func (u *upstream) push(name, tag, seed string, sizes ...int) image {
	rp := u.repo(name)
	var i image
	type descriptor struct {
		MediaType string     `json:"mediaType"`
		Digest    oci.Digest `json:"digest"`
		Size      int        `json:"size"`
	}
	m := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: oci.MediaTypeImage}
	var diffs []string
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, size := range sizes {
		b := content(seed+strconv.Itoa(k), size)
		d := sha(b)
		rp.blobs[d] = b
		i.layers, i.bytes = append(i.layers, d), append(i.bytes, b)
		diffs = append(diffs, string(d))
		m.Layers = append(m.Layers, descriptor{"application/vnd.oci.image.layer.v1.tar", d, size})
	}
	config, err := json.Marshal(map[string]any{"seed": seed, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	if err != nil {
		u.t.Fatal(err)
	}
	i.config = sha(config)
	rp.blobs[i.config] = config
	m.Config = descriptor{"application/vnd.oci.image.config.v1+json", i.config, len(config)}
	if i.content, err = json.Marshal(m); err != nil {
		u.t.Fatal(err)
	}
	i.digest = sha(i.content)
	rp.manifests[i.digest] = stored{oci.MediaTypeImage, i.content}
	rp.tags[tag] = i.digest
	return i
}

// index puts an index of images into a repository.
func (u *upstream) index(name, tag string, images ...image) (oci.Digest, []byte) {
	var list []string
	for _, i := range images {
		list = append(list, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeImage, i.digest, len(i.content)))
	}
	c := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[` + strings.Join(list, ",") + `]}`)
	rp := u.repo(name)
	u.mu.Lock()
	defer u.mu.Unlock()
	rp.manifests[sha(c)] = stored{oci.MediaTypeIndex, c}
	rp.tags[tag] = sha(c)
	return sha(c), c
}

func sha(b []byte) oci.Digest { return digest.SHA256.FromBytes(b) }

// content makes n bytes that differ by seed and do not repeat.
func content(seed string, n int) []byte {
	b := make([]byte, 0, n+32)
	key := sha256.Sum256([]byte(seed))
	for i := uint64(0); len(b) < n; i++ {
		binary.LittleEndian.PutUint64(key[:8], i)
		block := sha256.Sum256(key[:])
		b = append(b, block[:]...)
	}
	return b[:n]
}

// Proxies answer HEAD with a Content-Length of 0, which is that of the body that they
// send and not of the content.
func TestN8_AHEADWithALengthOfZeroSaysNothingOfTheSize(t *testing.T) {
	u := newUpstream(t)
	i := u.push("secret", "v1", "s", 100_000)
	u.repo("secret").auth = alice
	u.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead || r.Header.Get("Authorization") != alice {
			return false
		}
		last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if last == "v1" {
			last = string(i.digest)
		}
		w.Header().Set("Docker-Content-Digest", last)
		w.Header().Set("Content-Length", "0")
		return true
	})
	n := start(t, nodeOptions{upstreams: []*upstream{u}})
	n.get("/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).wantBody(i.bytes[0])
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.clock.advance(time.Hour) // the grants are to be confirmed
	n.pull("", "secret", "v1", i, "Authorization", alice)
	n.do(http.MethodHead, "/v2/secret/blobs/"+string(i.layers[0]), "Authorization", alice).want(200).wantHeader("Content-Length", "100000")
	n.restart()
	n.pull("", "secret", string(i.digest), i, "Authorization", alice)
}

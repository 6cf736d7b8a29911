package node

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// bulk is a large layer that is made as it is read: one random block, with its
// number stamped into each copy.
type bulk struct {
	block  []byte
	blocks int64
	at     int64
}

func newBulk(mibs int64) *bulk {
	b := &bulk{block: make([]byte, mib), blocks: mibs}
	_, _ = rand.Read(b.block) // never fails
	return b
}

func (b *bulk) size() int64 { return b.blocks * mib }

func (b *bulk) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.size()
	}
	if b.at = offset; offset < 0 {
		return 0, errors.New("before the start")
	}
	return offset, nil
}

func (b *bulk) Read(p []byte) (int, error) {
	if b.at >= b.size() {
		return 0, io.EOF
	}
	in := b.at % mib
	binary.LittleEndian.PutUint64(b.block, uint64(b.at/mib))
	n := copy(p, b.block[in:])
	b.at += int64(n)
	return n, nil
}

func (b *bulk) digest(t testing.TB) digest.Digest {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, &bulk{block: bytes.Clone(b.block), blocks: b.blocks}); err != nil {
		t.Fatal(err)
	}
	return digest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// TestMemory_IdleBelow40MiB_FlatWhileALargeLayerStreams pulls 1 GiB into the
// cache, again out of it, and once past it.
func TestMemory_IdleBelow40MiB_FlatWhileALargeLayerStreams(t *testing.T) {
	big := newBulk(1024)
	d := big.digest(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+d.String()) {
			w.WriteHeader(http.StatusOK) // for /v2/
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Docker-Content-Digest", d.String())
		http.ServeContent(w, r, "", time.Time{}, &bulk{block: bytes.Clone(big.block), blocks: big.blocks})
	}))
	defer server.Close()
	u := startUpstream(t)
	a := startAgent(t, u, "--runtime", "none", "--quota", "2GiB", "--upstreams", "big.test="+server.URL)
	path := a.url + "/v2/lib/big/blobs/" + d.String() + "?ns=big.test"

	idle := a.rss()
	t.Logf("idle: %.1f MiB", float64(idle)/mib)
	if idle >= 40*mib {
		t.Errorf("idle it takes %d bytes, want < 40 MiB", idle)
	}
	for _, way := range []string{"into the cache", "out of the cache"} {
		peak := a.pullBig(path, d)
		t.Logf("%s: at most %.1f MiB", way, float64(peak)/mib)
		if peak > idle+40*mib {
			t.Errorf("%s: %d bytes, idle it was %d", way, peak, idle)
		}
	}
	a.restart("--quota", "100MiB")
	peak := a.pullBig(path, d)
	t.Logf("past the cache: at most %.1f MiB", float64(peak)/mib)
	if peak > idle+40*mib {
		t.Errorf("past the cache: %d bytes, idle it was %d", peak, idle)
	}
}

func (a *agent) rss() int64 {
	a.t.Helper()
	u, err := a.proc.Usage()
	if err != nil {
		a.t.Fatal(err)
	}
	return u.RSS
}

// pullBig pulls a blob and returns the most memory that the agent had meanwhile.
func (a *agent) pullBig(url string, want digest.Digest) (peak int64) {
	a.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	h, buf := sha256.New(), make([]byte, mib)
	for {
		n, err := resp.Body.Read(buf)
		h.Write(buf[:n])
		peak = max(peak, a.rss())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			a.t.Fatal(err)
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.Encoded() {
		a.t.Errorf("it served %s", got)
	}
	return peak
}

package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// source is a Filler made of a function.
type source struct {
	name string
	fill func(ctx context.Context, w fetch.Want, b *piece.Blob) error
	runs atomic.Int64
}

func (s *source) Name() string { return s.name }

func (s *source) Fill(ctx context.Context, w fetch.Want, b *piece.Blob) error {
	s.runs.Add(1)
	return s.fill(ctx, w, b)
}

// write puts the pieces first to last of content into b.
func write(ctx context.Context, b *piece.Blob, content []byte, first, last int, from string) error {
	for i := first; i <= last; i++ {
		if err := b.WritePiece(ctx, i, content[i*piece.Size:min(len(content), (i+1)*piece.Size)], from); err != nil {
			return err
		}
	}
	return nil
}

// honest brings all of content.
func honest(name string, content []byte) *source {
	return &source{name: name, fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		return write(ctx, b, content, 0, b.Pieces()-1, name)
	}}
}

type scene struct {
	*fetch.Fetcher
	t     *testing.T
	dir   string
	store *piece.Store
	index *index.Index
	reg   *prometheus.Registry
}

func open(t *testing.T, o fetch.Options) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{t: t, dir: dir, reg: prometheus.NewRegistry()}
	var err error
	if s.index, err = index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db")}); err != nil {
		t.Fatal(err)
	}
	if s.store, err = piece.Open(t.Context(), piece.Options{Dir: dir, Index: s.index}); err != nil {
		t.Fatal(err)
	}
	o.Store, o.Index, o.Log, o.Metrics = s.store, s.index, slog.New(slog.DiscardHandler), s.reg
	s.Fetcher = fetch.New(o)
	t.Cleanup(func() {
		s.Close()
		if err := errors.Join(s.store.Close(), s.index.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func content(n int) []byte {
	b := bytes.Repeat([]byte("fairway "), n/8+1)[:n]
	for i := 0; i < n; i += 4096 {
		b[i] = byte(i >> 12)
	}
	return b
}

func want(b []byte) fetch.Want {
	return fetch.Want{Digest: digest.SHA256.FromBytes(b), Size: int64(len(b)), Namespace: "up", Repo: "app"}
}

// read gets a blob and reads all of it.
func (s *scene) read(ctx context.Context, w fetch.Want) ([]byte, error) {
	b, err := s.Get(ctx, w)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	var all bytes.Buffer
	_, err = s.Copy(ctx, &all, b, 0, -1)
	return all.Bytes(), err
}

// patience is far more than anything here takes on a machine that is busy.
const patience = time.Minute

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func TestN9_TenPullsCostTheUpstreamOneCopy(t *testing.T) {
	all := content(6*piece.Size + 77)
	var sent atomic.Int64
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(&counting{w, &sent}, r, "", time.Time{}, bytes.NewReader(all))
	}))
	defer up.Close()
	s := open(t, fetch.Options{Fillers: []fetch.Filler{upstream(t, up.URL)}})
	var readers sync.WaitGroup
	for range 10 {
		readers.Go(func() {
			if got, err := s.read(t.Context(), want(all)); err != nil || !bytes.Equal(got, all) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	readers.Wait()
	if sent.Load() != int64(len(all)) {
		t.Errorf("the upstream sent %d bytes for ten pulls of %d", sent.Load(), len(all))
	}
	// Readers have the last byte a moment before the index knows.
	eventually(t, "the index has it complete, from the upstream", func() bool {
		row, err := s.index.Blob(t.Context(), want(all).Digest)
		return err == nil && row.State == index.Complete && row.Source == "upstream"
	})
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func upstream(t *testing.T, base string) *fetch.Upstream {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	ups := ociclient.NewUpstreams(ociclient.UpstreamsOptions{Bases: map[string]*url.URL{"up": u}, Log: log})
	return fetch.NewUpstream(fetch.UpstreamOptions{Upstreams: ups, Pause: time.Millisecond, Log: log})
}

func TestSources_AreTriedInOrderAndGoOnWhereTheOneBeforeEnded(t *testing.T) {
	all := content(5 * piece.Size)
	half := &source{name: "swarm", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		return errors.Join(write(ctx, b, all, 0, 2, "swarm"), errors.New("the peers left"))
	}}
	var ranges []string
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	defer up.Close()
	s := open(t, fetch.Options{Fillers: []fetch.Filler{half, upstream(t, up.URL)}})
	if got, err := s.read(t.Context(), want(all)); err != nil || !bytes.Equal(got, all) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if len(ranges) != 1 || ranges[0] != "bytes=786432-1310719" {
		t.Errorf("the upstream was asked for %q", ranges)
	}
}

func TestN7_SourceThatLiesIsFollowedByAnother(t *testing.T) {
	all := content(300) // one piece, so that nothing of it is handed out before it is verified
	liar := honest("swarm", bytes.Repeat([]byte("x"), len(all)))
	s := open(t, fetch.Options{Fillers: []fetch.Filler{liar, honest("upstream", all)}})
	if got, err := s.read(t.Context(), want(all)); err != nil || !bytes.Equal(got, all) {
		t.Fatalf("%q, %v", got, err)
	}
	expect := `
# HELP fairway_node_fetch_failures_total Sources that could not bring a blob.
# TYPE fairway_node_fetch_failures_total counter
fairway_node_fetch_failures_total{kind="mismatch",source="swarm"} 1
`
	if err := testutil.GatherAndCompare(s.reg, strings.NewReader(expect), "fairway_node_fetch_failures_total"); err != nil {
		t.Error(err)
	}
}

func TestN7_SourceThatSaysItIsDoneAndIsNot(t *testing.T) {
	all := content(300)
	lazy := &source{name: "swarm", fill: func(context.Context, fetch.Want, *piece.Blob) error { return nil }}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{lazy}})
	if got, err := s.read(t.Context(), want(all)); err == nil {
		t.Errorf("%d bytes and no error", len(got))
	}
}

func TestJoin_ARefusalOfOneRepositoryIsNotAnothers(t *testing.T) {
	all := content(300)
	joined := make(chan struct{})
	first := true
	up := &source{name: "upstream"}
	up.fill = func(ctx context.Context, w fetch.Want, b *piece.Blob) error {
		if first {
			first = false
			<-joined
		}
		if w.Repo != "good" || w.Authorization != "good token" {
			return &ociclient.StatusError{Status: 403}
		}
		return write(ctx, b, all, 0, 0, "upstream")
	}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	bad, good := want(all), want(all)
	bad.Repo, good.Repo, good.Authorization = "bad", "good", "good token"
	var both sync.WaitGroup
	begin := func(w fetch.Want) {
		b, err := s.Get(t.Context(), w)
		if err != nil {
			t.Error(err)
			return
		}
		both.Go(func() {
			defer b.Close()
			if err := b.Wait(t.Context(), 0); err != nil {
				t.Errorf("%s: %v", w.Repo, err)
			}
		})
	}
	begin(bad)
	begin(good)
	close(joined)
	both.Wait()
	if up.runs.Load() != 2 {
		t.Errorf("the source was asked %d times, want 2", up.runs.Load())
	}
}

func TestFailure_IsToldAndTheNextGetTriesAgain(t *testing.T) {
	all := content(300)
	up := &source{name: "upstream"}
	up.fill = func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		if up.runs.Load() == 1 {
			return fault.New(fault.Busy, "the upstream is down")
		}
		return write(ctx, b, all, 0, 0, "upstream")
	}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	if _, err := s.read(t.Context(), want(all)); !errors.Is(err, fault.Busy) {
		t.Errorf("got %v, want the upstream's error", err)
	}
	if got, err := s.read(t.Context(), want(all)); err != nil || !bytes.Equal(got, all) {
		t.Errorf("the second time: %d bytes, %v", len(got), err)
	}
}

// blocked is a source that brings nothing until its context ends.
func blocked() (*source, chan error) {
	ended := make(chan error, 1)
	return &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}, ended
}

func TestLinger_DownloadThatNobodyWaitsForEnds(t *testing.T) {
	up, ended := blocked()
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}, Linger: 10 * time.Millisecond})
	ctx, leave := context.WithCancel(t.Context())
	b, err := s.Get(ctx, want(content(300)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if err := b.Wait(t.Context(), 0); !errors.Is(err, fault.Busy) {
		t.Errorf("who comes late hears %v", err)
	}
}

func TestLinger_SomebodyWhoComesBackKeepsIt(t *testing.T) {
	all := content(300)
	release := make(chan struct{})
	up := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		select {
		case <-release:
			return write(ctx, b, all, 0, 0, "upstream")
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}, Linger: time.Hour})
	ctx, leave := context.WithCancel(t.Context())
	b, err := s.Get(ctx, want(all))
	if err != nil {
		t.Fatal(err)
	}
	leave()
	b.Close()
	b, err = s.Get(t.Context(), want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	close(release)
	if err := b.Wait(t.Context(), 0); err != nil || up.runs.Load() != 1 {
		t.Errorf("%v after %d downloads, want one", err, up.runs.Load())
	}
}

func TestClose_EndsDownloadsAndKeepsWhatIsThere(t *testing.T) {
	all := content(3 * piece.Size)
	up := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		if err := write(ctx, b, all, 0, 1, "upstream"); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	b, err := s.Get(t.Context(), want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	eventually(t, "two pieces are here", func() bool { return b.Has(0) && b.Has(1) })
	s.Close()
	if err := b.Wait(t.Context(), 2); err == nil {
		t.Error("a piece that never came was there")
	}
	if !b.Has(1) {
		t.Error("what was there is gone")
	}
	if _, err := s.Get(t.Context(), want(all)); !errors.Is(err, fetch.ErrClosing) {
		t.Errorf("a closed fetcher begins a download: %v", err)
	}
}

func TestGet_AnotherSizeThanTheDownloadsIsRefused(t *testing.T) {
	up, _ := blocked()
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	w := want(content(300))
	b, err := s.Get(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	w.Size++
	if _, err := s.Get(t.Context(), w); !errors.Is(err, fetch.ErrWrongLength) {
		t.Errorf("got %v", err)
	}
}

func TestConfig_ItsLayersAreNoted(t *testing.T) {
	layer := digest.SHA256.FromString("layer")
	config := []byte(`{"rootfs":{"type":"layers","diff_ids":["` + string(layer) + `"]}}`)
	w := want(config)
	s := open(t, fetch.Options{Fillers: []fetch.Filler{honest("upstream", config)}})
	manifest := digest.SHA256.FromString("manifest")
	if err := s.index.PutEdges(t.Context(), manifest, []index.Edge{{Parent: manifest, Child: w.Digest, Role: index.RoleConfig}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the chain ID leads to the config", func() bool {
		found, err := s.index.ConfigsOfChain(t.Context(), layer)
		return err == nil && len(found) == 1 && found[0] == w.Digest
	})
}

func TestVerified_HoldsTheEndBackUntilTheDigestMatches(t *testing.T) {
	all := content(1 << 20)
	var answer atomic.Pointer[[]byte]
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(*answer.Load()))
	}))
	defer up.Close()
	origin := upstream(t, up.URL)
	s := open(t, fetch.Options{Fillers: []fetch.Filler{origin}, Origin: origin})
	bad := bytes.Clone(all)
	bad[len(bad)-1] ^= 1
	for _, part := range [][2]int64{{0, -1}, {0, 10}, {100, 300_000}, {1<<20 - 1, 1}, {5, 0}} {
		end := int64(len(all))
		if part[1] >= 0 {
			end = part[0] + part[1]
		}
		for _, sent := range [][]byte{all, bad} {
			answer.Store(&sent)
			v, err := s.Stream(t.Context(), want(all))
			if err != nil {
				t.Fatal(err)
			}
			v.Slice(part[0], part[1])
			var got bytes.Buffer
			n, err := v.WriteTo(&got)
			if closeErr := v.Close(); closeErr != nil {
				t.Error(closeErr)
			}
			switch right := &sent[0] == &all[0]; {
			case right && (err != nil || !bytes.Equal(got.Bytes(), all[part[0]:end])):
				t.Errorf("%v: %d bytes, %v", part, n, err)
			case !right && (!errors.Is(err, fetch.ErrMismatch) || n >= end-part[0] && n > 0):
				t.Errorf("%v: %d of %d wrong bytes were handed out, %v", part, n, end-part[0], err)
			}
		}
	}
}

func TestOrigin_RangeFailsWhereFewerBytesCome(t *testing.T) {
	all := content(1000)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all[:900]))
	}))
	defer up.Close()
	rc, err := upstream(t, up.URL).Range(t.Context(), want(all), 100, 950)
	if err == nil {
		_, err = io.ReadAll(rc)
		_ = rc.Close()
	}
	if err == nil {
		t.Error("a range that is too short is taken for whole")
	}
	w := want(all[:900])
	rc, err = upstream(t, up.URL).Range(t.Context(), w, 100, 200)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rc.Close() }()
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, all[100:200]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestN7_ManifestThatLiesAboutASizeIsNoEndlessDownload(t *testing.T) {
	all := content(300)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	defer up.Close()
	for _, size := range []int64{0, 299, 301} {
		s := open(t, fetch.Options{Fillers: []fetch.Filler{upstream(t, up.URL)}})
		w := want(all)
		w.Size = size
		if got, err := s.read(t.Context(), w); err == nil {
			t.Errorf("size %d: %d bytes and no error", size, len(got))
		}
	}
}

func TestLinger_SomebodyWhoComesJustWhenItIsGivenUpIsServed(t *testing.T) {
	all := content(300)
	ending, goOn := make(chan struct{}), make(chan struct{})
	up := &source{name: "upstream"}
	up.fill = func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		if up.runs.Load() > 1 {
			return write(ctx, b, all, 0, 0, "upstream")
		}
		<-ctx.Done()
		close(ending)
		<-goOn
		return ctx.Err()
	}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}, Linger: time.Millisecond})
	ctx, leave := context.WithCancel(t.Context())
	first, err := s.Get(ctx, want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	leave()
	<-ending
	b, err := s.Get(t.Context(), want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	close(goOn)
	if err := b.Wait(t.Context(), 0); err != nil {
		t.Errorf("who came late hears %v", err)
	}
}

// TestR12_WhoWasRefusedSeesNothingOfTheNextDownloadsBeginning has a reader come
// to it when another's download of the same, private blob is under way.
func TestR12_WhoWasRefusedSeesNothingOfTheNextDownloadsBeginning(t *testing.T) {
	all := content(3 * piece.Size)
	stay := make(chan struct{})
	f := &source{name: "upstream", fill: func(ctx context.Context, w fetch.Want, b *piece.Blob) error {
		if w.Authorization == "" {
			return &ociclient.StatusError{Status: http.StatusUnauthorized}
		}
		w.Show(0, all[:1000])
		defer w.Hide()
		select {
		case <-stay:
		case <-ctx.Done():
			return ctx.Err()
		}
		return write(ctx, b, all, 0, b.Pieces()-1, "upstream")
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{f}})
	refused, err := s.Get(t.Context(), want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	if err := refused.Wait(t.Context(), 0); err == nil {
		t.Fatal("the download without credentials did not fail")
	}
	alice := want(all)
	alice.Authorization, alice.Private = "alice", true
	hers, err := s.Get(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	defer hers.Close()
	first := make(firstWrite)
	end := make(chan error, 1)
	go func() {
		_, err := s.Copy(t.Context(), first, hers, 0, -1)
		end <- err
	}()
	<-first // the beginning is there to be seen
	var got bytes.Buffer
	if _, err := s.Copy(t.Context(), &got, refused, 0, -1); err == nil || got.Len() > 0 {
		t.Errorf("whoever was refused reads %d bytes, %v", got.Len(), err)
	}
	close(stay)
	if err := <-end; err != nil {
		t.Error(err)
	}
}

// firstWrite is closed when something was written.
type firstWrite chan struct{}

func (f firstWrite) Write(p []byte) (int, error) {
	select {
	case <-f:
	default:
		close(f)
	}
	return len(p), nil
}

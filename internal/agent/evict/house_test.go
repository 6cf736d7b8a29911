package evict

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// house is a cache with a real store and index, beside a runtime that is a fake
// of inusetest. One clock goes for all of them.
type house struct {
	*Evictor
	t       testing.TB
	store   *piece.Store
	index   *index.Index
	runtime *runtime
	tracker *inuse.Tracker
	metrics *prometheus.Registry
	disk    disk
	random  *rand.ChaCha8
	ms      atomic.Int64
	dir     string // of the store
}

// disk is the file system as the store is told of it: what others use of it,
// and the size; 0 is unlimited.
type disk struct{ others, total atomic.Int64 }

// runtime is a fake that tells of a question before it answers.
type runtime struct {
	*inusetest.Fake
	asked atomic.Pointer[func() bool]
}

func (r *runtime) Snapshot(ctx context.Context) (inuse.Snapshot, error) {
	if f := r.asked.Load(); f != nil && (*f)() {
		r.asked.Store(nil)
	}
	return r.Fake.Snapshot(ctx)
}

// whenAsked has do called before the next answer.
func (h *house) whenAsked(do func()) {
	f := func() bool { do(); return true }
	h.runtime.asked.Store(&f)
}

// whenClaimed has do called before the first answer that is given while victims
// are claimed: between judgement and removal.
func (h *house) whenClaimed(do func()) {
	f := func() bool {
		if h.store.Usage().Claimed == 0 {
			return false
		}
		do()
		return true
	}
	h.runtime.asked.Store(&f)
	h.t.Cleanup(func() {
		if h.runtime.asked.Load() == &f {
			h.t.Error("the runtimes were not asked while anything was claimed")
		}
	})
}

type choice struct {
	limits     piece.Limits
	options    Options
	noRuntimes bool
	askTimeout time.Duration   // of the tracker; 0: its default
	finder     inuse.Finder    // nil: no other runtime appears
	disk       *sqldbtest.Disk // below the index; nil: one that is never full
}

func open(t testing.TB, c choice) *house {
	t.Helper()
	h := &house{t: t, runtime: &runtime{Fake: inusetest.NewFake("containerd")}, metrics: prometheus.NewPedanticRegistry(), random: rand.NewChaCha8([32]byte{1})}
	h.ms.Store(noon)
	now := func() time.Time { return time.UnixMilli(h.ms.Load()) }
	dir := t.TempDir()
	var err error
	io := index.Options{Path: filepath.Join(dir, "index.db"), Now: h.ms.Load}
	if c.disk != nil {
		io.Driver = c.disk.Driver()
	}
	if h.index, err = index.Open(t.Context(), io); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.index.Close() })
	if c.limits.High == 0 {
		c.limits.High, c.limits.Low = 0.9, 0.8
	}
	h.dir = filepath.Join(dir, "cache")
	h.store, err = piece.Open(t.Context(), piece.Options{Dir: h.dir, Index: h.index, Limits: c.limits, Free: h.free})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.store.Close() })
	sources := []inuse.Source{h.runtime}
	if c.noRuntimes {
		sources = nil
	}
	h.tracker = inuse.NewTracker(sources, inuse.Options{Now: now, Confirm: 1, AskTimeout: c.askTimeout, Finder: c.finder})
	o := c.options
	o.Store, o.Index, o.Tracker, o.Now, o.Metrics, o.Log = h.store, h.index, h.tracker, now, h.metrics, slog.New(slog.DiscardHandler)
	if o.Warm == 0 {
		o.Warm = time.Hour
	}
	if h.Evictor, err = New(o); err != nil {
		t.Fatal(err)
	}
	h.patience = time.Minute
	return h
}

func (h *house) free() (int64, int64, error) {
	total := h.disk.total.Load()
	if total == 0 {
		return 1 << 50, 1 << 51, nil
	}
	var own int64
	err := filepath.WalkDir(h.dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			i, err := e.Info()
			if err == nil {
				own += (i.Size() + 4095) / 4096 * 4096
			}
		}
		return nil // a file that has just gone is of no account
	})
	return total - h.disk.others.Load() - own, total, err
}

func (h *house) later(d time.Duration) { h.ms.Add(d.Milliseconds()) }

// image is what was put into the cache for one.
type image struct {
	name             string
	manifest, config oci.Digest
	layers           []oci.Digest
}

func (i image) all() []oci.Digest { return append([]oci.Digest{i.manifest, i.config}, i.layers...) }

// bytes makes content that nothing else has.
func (h *house) bytes(n int) []byte {
	b := make([]byte, n)
	_, _ = h.random.Read(b) // never fails
	return b
}

// put stores content and returns its digest; ErrNoRoom is no failure.
func (h *house) put(content []byte, mediaType string) (oci.Digest, bool) {
	h.t.Helper()
	d := digest.FromBytes(content)
	err := h.store.Put(h.t.Context(), d, content, piece.Meta{MediaType: mediaType})
	if err != nil && !errors.Is(err, fault.Full) {
		h.t.Fatal(err)
	}
	return d, err == nil
}

// pull caches an image of layers of some bytes each, on top of shared ones.
func (h *house) pull(name string, shared []oci.Digest, layers ...int) image {
	h.t.Helper()
	i := image{name: name, layers: slices.Clone(shared)}
	i.manifest, _ = h.put(h.bytes(600), "application/vnd.oci.image.manifest.v1+json")
	i.config, _ = h.put(h.bytes(800), "application/vnd.oci.image.config.v1+json")
	edges := []index.Edge{{Parent: i.manifest, Child: i.config, Role: index.RoleConfig}}
	for _, n := range layers {
		d, _ := h.put(h.bytes(n), "application/vnd.oci.image.layer.v1.tar+gzip")
		i.layers = append(i.layers, d)
	}
	for _, d := range i.layers {
		edges = append(edges, index.Edge{Parent: i.manifest, Child: d, Role: index.RoleLayer})
	}
	if err := h.index.PutEdges(h.t.Context(), i.manifest, edges); err != nil {
		h.t.Fatal(err)
	}
	return i
}

func (h *house) has(d oci.Digest) bool {
	h.t.Helper()
	_, err := h.store.Info(h.t.Context(), d)
	if err != nil && !errors.Is(err, fault.NotFound) {
		h.t.Fatal(err)
	}
	return err == nil
}

// whole tells how many of the image's blobs are cached.
func (h *house) whole(i image) (n int) {
	for _, d := range i.all() {
		if h.has(d) {
			n++
		}
	}
	return n
}

func (h *house) stays(i image, when string) {
	h.t.Helper()
	if n := h.whole(i); n != len(i.all()) {
		h.t.Errorf("%s: %d of the %d blobs of %s are left", when, n, len(i.all()), i.name)
	}
}

func (h *house) run(i image, id string, s inuse.State) {
	h.runtime.SetContainer(inuse.Container{Runtime: "containerd", Namespace: "k8s.io", ID: id, Name: "web", State: s, Image: i.name, Digests: []oci.Digest{i.manifest}})
}

func (h *house) evicts() Result {
	h.t.Helper()
	r, err := h.Pass(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// metric returns the sum over a metric's labels, as the text of its value.
func (h *house) metric(name string) float64 {
	h.t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	var v float64
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				v += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return v
}

// told counts the events of a kind whose text has all of the words.
func (h *house) told(kind string, words ...string) (n int) {
	for _, v := range h.Events() {
		ok := v.Kind == kind
		for _, w := range words {
			ok = ok && strings.Contains(v.Text, w)
		}
		if ok {
			n++
		}
	}
	return n
}

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Want says which blob is wanted, and on whose behalf.
type Want struct {
	Digest        oci.Digest
	Size          int64 // bytes; −1: unknown
	MediaType     string
	Namespace     string // the upstream, as runtimes call it
	Repo          oci.Name
	Authorization string // the asker's; for the upstream only, never stored
	Private       bool   // not everybody may have it
	Background    bool   // nobody waits for it, and nothing warm makes way for it

	// Unchecked has Stream ask nobody but the upstream, which decides who may have
	// what: nobody here knows.
	Unchecked bool

	head *head // shows readers how a download begins; nil: nobody looks
}

// Filler brings the missing pieces of b from one kind of place. It returns nil
// only when b is complete; what it has brought until an error stays in b.
type Filler interface {
	Name() string
	Fill(ctx context.Context, w Want, b *piece.Blob) error
}

// Origin reads a blob's bytes from (inclusive) to (exclusive; −1: the end) at
// the upstream. The reader fails if fewer come.
type Origin interface {
	Range(ctx context.Context, w Want, from, to int64) (io.ReadCloser, error)
}

// Content is a whole blob that somebody else keeps on this machine.
type Content interface {
	io.ReaderAt
	Size() int64
	Close() error
}

// Sourced is a Content that knows from which upstreams it came.
type Sourced interface {
	Origins() []string
}

// Holder has whole blobs on this machine that need no second copy. An error of
// the kind fault.NotFound says that it has not this one. The context bounds the
// opening only.
type Holder interface {
	Name() string
	Open(ctx context.Context, d oci.Digest) (Content, error)
}

// Options is what a Fetcher needs.
type Options struct {
	Store   *piece.Store
	Index   *index.Index
	Fillers []Filler // in the order of their cost; the upstream comes last
	// Rest are asked when all of these have failed, and the upstream gave no answer.
	Rest   []Filler
	Origin Origin // for what is streamed through
	// Near is asked for that before Origin, and Last when Origin gave no answer; nil: nobody.
	Near, Last Origin
	Holders    func() []Holder // on this machine, at the moment; nil: none
	// Linger is how long a download goes on when nobody waits for it any more; 0 = 10 min.
	Linger time.Duration
	// LingerIdle is for how long it may bring nothing meanwhile; 0 = 5 s.
	LingerIdle time.Duration
	// Fetched is told of each blob that is here now; nil: nobody.
	Fetched func(d oci.Digest, size int64)
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
	Now     func() time.Time      // nil: time.Now
}

const (
	lingerDefault     = 10 * time.Minute
	lingerIdleDefault = 5 * time.Second
)

// Fetcher runs downloads. It is safe for concurrent use.
type Fetcher struct {
	o       Options
	metrics *metrics
	ctx     context.Context // of all downloads
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	flights map[oci.Digest]*flight
	bad     map[holding]bool
	silent  map[string]time.Time // holders that did not answer, and when
}

// New returns a Fetcher; Close ends it.
func New(o Options) *Fetcher {
	if o.Linger <= 0 {
		o.Linger = lingerDefault
	}
	if o.Holders == nil {
		o.Holders = func() []Holder { return nil }
	}
	if o.LingerIdle <= 0 {
		o.LingerIdle = lingerIdleDefault
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Fetched == nil {
		o.Fetched = func(oci.Digest, int64) {}
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Fetcher{
		o: o, metrics: newMetrics(o.Metrics), ctx: ctx, stop: stop,
		flights: map[oci.Digest]*flight{}, bad: map[holding]bool{}, silent: map[string]time.Time{},
	}
}

// Close ends all downloads and waits for them. What they have brought stays, so
// that another can go on from there.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.running.Wait()
}

// Get returns a handle of the blob, from which can be read at once. If it is not
// complete, the one download of it has begun or goes on, at least until ctx
// ends. fault.Full: the cache has no room, Stream has. The caller closes the
// handle. w.Size must be known unless some of the blob is here. Where the upstream
// states another size, this or reading ends with an error that SizeOf knows.
func (f *Fetcher) Get(ctx context.Context, w Want) (*piece.Blob, error) {
	b, err := f.open(ctx, w)
	if err != nil || b.Complete() {
		return b, err
	}
	if w.Size >= 0 && w.Size != b.Size() {
		// Some manifest said otherwise before.
		err := f.settle(ctx, w, b)
		if err != nil || b.Superseded() {
			b.Close()
			if err == nil {
				b, err = f.create(ctx, w)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if !w.Background {
		b.Urgent()
	}
	if err := f.join(ctx, w, b); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (f *Fetcher) open(ctx context.Context, w Want) (*piece.Blob, error) {
	b, err := f.o.Store.Open(ctx, w.Digest)
	if err == nil && b.Superseded() {
		b.Close()
		return f.create(ctx, w)
	}
	if err == nil && w.Private && !b.Private() && !b.Complete() {
		// Somebody began it in the belief that everybody may have it, and was
		// refused: what comes now is not everybody's.
		if err := b.MarkPrivate(ctx); err != nil {
			b.Close()
			return nil, err
		}
	}
	if err == nil || !errors.Is(err, fault.NotFound) {
		return b, err
	}
	return f.create(ctx, w)
}

func (f *Fetcher) create(ctx context.Context, w Want) (*piece.Blob, error) {
	if w.Size < 0 {
		return nil, fmt.Errorf("fetch %s: its size is not known", w.Digest)
	}
	b, err := f.o.Store.Create(ctx, w.Digest, w.Size, piece.Meta{MediaType: w.MediaType, Private: w.Private, Spare: w.Background})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", w.Digest, err)
	}
	return b, nil
}

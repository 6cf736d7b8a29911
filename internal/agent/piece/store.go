package piece

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Store is the cache. All methods may be called at once.
type Store struct {
	dir      string // of the blobs
	index    *index.Index
	log      *slog.Logger
	metrics  *metrics
	fsSpace  func() (free, total int64, err error)
	now      func() time.Time
	lock     *disk.Lock
	step     func(string) // called between any two changes of the disk; see export_test.go
	buffers  sync.Pool    // of *[Size]byte
	identity identity     // of the directory, since it was opened
	astray   atomic.Bool  // the last look at the mark found another, or none
	// takenBack is written by recover only.
	takenBack []oci.Digest

	mu     sync.Mutex // guards what follows, and refs, busy and idleAt of entries
	closed bool
	limits Limits
	room   Room
	spare  Room // for what is admitted below the watermarks only
	open   map[oci.Digest]*entry
	idle   *list.List // of *entry without handles, the one that was left last in front
	// kept is how many pieces the idle entries have together.
	kept    int
	totals  Usage // Used, Claimed and Blobs; see room.go, also for the next three
	writing int64
	// promised is the sum of the entries' promises.
	promised int64
	partial  map[oci.Digest]held
	touched  map[oci.Digest]index.Use
	// unnoted has the versions of blobs whose claims a full disk keeps out of their
	// rows, and void those of claims that are over though it keeps them in: see void.go.
	unnoted, void map[oci.Digest]int64

	// flushMu is held while uses are being written, and by claims, so that no use
	// of a blob slips between the two.
	flushMu sync.Mutex
	stop    chan struct{}
	done    sync.WaitGroup
}

const (
	flushEvery = 2 * time.Second // how long a use may go unwritten
	idleMax    = 128             // entries whose files stay open without handles; two files each
	idlePieces = 1 << 18         // and how many pieces these may have together: 64 GiB
)

// Open opens the cache and puts in order what the last process left.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		dir: filepath.Join(o.Dir, "blobs"), index: o.Index, log: o.Log, fsSpace: o.Free, now: o.Now, limits: o.Limits,
		step: func(string) {}, open: map[oci.Digest]*entry{}, idle: list.New(),
		partial: map[oci.Digest]held{}, touched: map[oci.Digest]index.Use{}, unnoted: map[oci.Digest]int64{}, void: map[oci.Digest]int64{}, stop: make(chan struct{}),
	}
	s.buffers.New = func() any { return new([Size]byte) }
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.fsSpace == nil {
		s.fsSpace = func() (int64, int64, error) { return diskSpace(s.dir) }
	}
	if s.now == nil {
		s.now = func() time.Time { return time.UnixMilli(s.index.Now()) }
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	var err error
	if s.lock, err = index.LockDir(s.dir, o.Owner); err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(o.Metrics, s); err == nil {
		if err = s.pair(ctx); err == nil {
			err = s.recover(ctx)
		}
	}
	if err != nil {
		s.metrics.unregister()
		return nil, errors.Join(fmt.Errorf("open the cache: %w", err), s.lock.Close())
	}
	s.done.Go(s.flushLoop)
	s.done.Go(s.markLoop)
	return s, nil
}

// Close writes what is known of uses and lets another process have the
// directory. What is still open then fails.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	var idle []*entry
	for s.idle.Len() > 0 {
		idle = append(idle, s.takeIdle(s.idle.Back().Value.(*entry)))
	}
	s.mu.Unlock()
	s.done.Wait()
	err := s.flush(context.Background())
	for _, e := range idle {
		err = errors.Join(err, s.settle(e))
	}
	s.metrics.unregister()
	return errors.Join(err, s.lock.Close())
}

// SetLimits changes the limits at once. It removes nothing: the judge does.
func (s *Store) SetLimits(l Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = l
}

// Limits returns the limits as they are.
func (s *Store) Limits() Limits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limits
}

// SetRoom says who is asked when something does not fit.
func (s *Store) SetRoom(r Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = r
}

// SetSpareRoom says who is asked when something with Meta.Spare does not fit. It
// is given the whole size of that, and not how much of it is lacking.
func (s *Store) SetSpareRoom(r Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare = r
}

// Usage tells what the cache takes. FSFree and FSTotal are zero where the file
// system does not tell.
func (s *Store) Usage() Usage {
	free, total, err := s.fsSpace()
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.totals
	u.Quota = s.limits.Quota
	if err == nil {
		u.FSFree, u.FSTotal = max(0, free-s.writing), total
	}
	return u
}

// touch counts a use of a blob. It is written later, all of them together.
func (s *Store) touch(d oci.Digest) {
	at := s.now().UnixMilli()
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.touched[d]
	s.touched[d] = index.Use{Digest: d, At: at, Uses: u.Uses + 1}
}

// flush writes the uses that are waiting.
func (s *Store) flush(ctx context.Context) error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	return s.flushLocked(ctx)
}

func (s *Store) flushLocked(ctx context.Context) error {
	// The uses of now and no later ones, since a use raises the version by which the end
	// of a claim is noted: a claim that a use has ended is void before that is counted.
	s.mu.Lock()
	uses := make([]index.Use, 0, len(s.touched))
	for _, u := range s.touched {
		uses = append(uses, u)
	}
	clear(s.touched)
	s.mu.Unlock()
	err := s.noteVoid(ctx)
	if err == nil {
		err = s.index.Touch(ctx, uses)
	}
	if err != nil {
		s.untouched(uses)
	}
	return err
}

// untouched takes uses back that could not be written. Until they are, they keep
// their blobs from being claimed.
func (s *Store) untouched(uses []index.Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range uses {
		later := s.touched[u.Digest]
		s.touched[u.Digest] = index.Use{Digest: u.Digest, At: max(u.At, later.At), Uses: u.Uses + later.Uses}
	}
}

func (s *Store) flushLoop() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.flush(context.Background()); err != nil {
				s.log.Warn("uses of cached blobs were not noted", "error", err)
			}
		case <-s.stop:
			return
		}
	}
}

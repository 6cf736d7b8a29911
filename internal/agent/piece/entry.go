package piece

import (
	"container/list"
	"context"
	"errors"
	"hash"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// entry is a blob that is open, or was a short while ago: all handles on it
// share it.
type entry struct {
	d         oci.Digest
	size      int64
	mediaType string
	files     files

	// Guarded by Store.mu.
	refs     int
	busy     chan struct{} // not nil while it is being loaded, closed, claimed or removed
	gone     chan struct{} // closed when it is not in memory any more
	idleAt   *list.Element // its place in Store.idle
	admitted bool          // it was admitted, and has been open since
	promise  int64         // bytes of disk that it was admitted for and does not take yet
	writes   int64         // bytes that are being written

	// made says that the row and the files exist; making, that a writer is making
	// them. Until then nothing on disk knows of the blob. Both are guarded by mu.
	made, making bool
	// spare is Meta.Spare; guarded by mu.
	spare bool

	mu       sync.Mutex // guards what follows; never held across disk or database
	changed  chan struct{}
	private  bool
	pieces   sidecar
	checked  bitmap // pieces found right since the file was like stamp
	stamp    stamp
	writing  map[int]bool // pieces that somebody writes, or drops, right now
	complete bool
	verified bool  // it was complete at some time: what was handed out then was right
	gen      int   // counts the times that what was handed out turned out wrong
	wrong    error // why gen was counted up last
	failed   error // who brings the rest has given up
	failures int   // downloads that failed
	failure  error // the last of these
	doomed   error // nothing more comes, say because the disk is full; it goes with its last handle
	// superseded says that doomed is because of its size.
	superseded bool
	// resets counts the times that all pieces were thrown away, each the end of a round, and mismatched is
	// why that was so the last time.
	resets     int
	mismatched error
	filling    bool
	began      time.Time // when the filling began
	from       []uint16  // piece → index in sources
	sources    []string
	past       provenance // of the pieces of the last download that was found right

	// inspecting: somebody looks at all pieces of it, since one was wrong.
	inspecting bool

	// hash covers the pieces before frontier. It belongs to whoever set hashing;
	// a raised epoch tells that one to begin anew.
	hash     hash.Hash
	frontier int
	hashing  bool
	epoch    int
}

// wake tells everybody who waits that something changed. e.mu is held.
func (e *entry) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *entry) count() int { return pieces(e.size) }

// acquire returns the entry of a blob with a handle counted on it. load fills an
// entry that is not in memory yet, while whoever else wants it waits.
func (s *Store) acquire(ctx context.Context, d oci.Digest, load func(*entry) error) (*entry, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		e := s.open[d]
		if e == nil {
			e = s.occupy(d)
			s.mu.Unlock()
			err := load(e)
			s.mu.Lock()
			if err == nil {
				e.refs = 1
			} else {
				delete(s.open, d)
			}
			s.vacate(e)
			s.mu.Unlock()
			return e, err
		}
		if e.busy == nil {
			e.refs++
			s.unidle(e)
			s.mu.Unlock()
			return e, nil
		}
		busy := e.busy
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// occupy puts an entry in the place of a blob that is not in memory, so that
// nobody opens it meanwhile. s.mu is held, as for the next four.
func (s *Store) occupy(d oci.Digest) *entry {
	e := &entry{d: d, busy: make(chan struct{}), gone: make(chan struct{}), changed: make(chan struct{}), writing: map[int]bool{}}
	s.open[d] = e
	return e
}

func (s *Store) vacate(e *entry) {
	close(e.busy)
	e.busy = nil
}

func (s *Store) unidle(e *entry) {
	if e.idleAt != nil {
		s.idle.Remove(e.idleAt)
		e.idleAt = nil
		s.kept -= e.count()
	}
}

// takeIdle occupies an idle entry in order to settle it.
func (s *Store) takeIdle(e *entry) *entry {
	s.unidle(e)
	e.busy = make(chan struct{})
	return e
}

// overIdle returns the entry to settle next, if there are too many.
func (s *Store) overIdle() *entry {
	if s.idle.Len() <= idleMax && s.kept <= idlePieces && !s.closed || s.idle.Len() == 0 {
		return nil
	}
	return s.takeIdle(s.idle.Back().Value.(*entry))
}

// release gives back a handle's count. The last one leaves the entry idle, so
// that what was checked and hashed need not be again for the next one.
func (s *Store) release(e *entry) {
	s.mu.Lock()
	e.refs--
	var over *entry
	if e.refs == 0 {
		e.admitted = false
		s.setPromise(e)
		e.mu.Lock()
		ends := e.doomed != nil || !e.made
		e.mu.Unlock()
		e.idleAt = s.idle.PushFront(e)
		s.kept += e.count()
		if over = e; ends {
			s.takeIdle(e)
		} else {
			over = s.overIdle()
		}
	}
	s.mu.Unlock()
	for over != nil {
		if err := s.settle(over); err != nil {
			s.log.Error("a cached blob was not closed well", "digest", over.d, "error", err)
		}
		s.mu.Lock()
		over = s.overIdle()
		s.mu.Unlock()
	}
}

// settle closes an entry that takeIdle has occupied, and removes what cannot come
// to an end.
func (s *Store) settle(e *entry) error {
	err := e.files.close()
	if e.made && e.doomed != nil {
		err = errors.Join(err, s.discard(e.d, e.size))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !e.made {
		s.unmade(e.d)
	}
	delete(s.open, e.d)
	close(e.gone)
	s.vacate(e)
	return err
}

// discard removes a blob that nobody has open and nobody judged: what is left of
// a download that failed. The row goes first.
func (s *Store) discard(d oci.Digest, size int64) error {
	if err := s.paired(); err != nil {
		return err
	}
	ctx := context.Background() // whoever asked may be gone; the space must be given back all the same
	if err := s.index.Forget(ctx, d); err != nil {
		return err
	}
	if err := s.removeFiles(d); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreserve(d, size)
	return nil
}

// noRoomFor says that a blob is not to be cached, for the disk is full or not there.
func noRoomFor(err error) error {
	if errors.Is(err, fault.Full) || errors.Is(err, ErrMismatch) {
		return errors.Join(ErrNoRoom, err)
	}
	return err
}

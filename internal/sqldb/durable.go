package sqldb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/fairway-registry/fairway/internal/disk"
)

// The writer's commits do not wait for the disk. A second goroutine syncs the WAL, and
// a write that promises durability returns after a sync that began after its commit.
// So the writer serves other writes during a sync, and one sync serves all commits
// made before it. Commits reach the disk in their order, because the WAL is one file
// that SQLite reads up to the first frame that is not whole.

// syncer makes commits durable.
type syncer struct {
	wal  *os.File
	dir  string // of wal: its name in it is synced first
	sync func(*os.File) error

	// Numbers of commits.
	promised  atomic.Uint64 // the latest that a reader may have seen and a caller waits for
	committed atomic.Uint64 // the latest that is over
	durable   atomic.Uint64 // the latest that is on the disk for sure

	// distrusted says that the kernel may have failed to write some of the WAL, and take
	// it for written from now on: another sync of it would prove nothing.
	distrusted atomic.Bool
	patience   atomic.Int64 // ms to wait for readers when all of the WAL must be moved
	moving     sync.Mutex   // held by a checkpoint: SQLite refuses a second one at once

	mu      sync.Mutex
	waiting []*op
	closed  bool
	wake    chan struct{}
}

func newSyncer(path string, sync func(*os.File) error) (*syncer, error) {
	if sync == nil {
		sync = (*os.File).Sync
	}
	f, err := os.Open(path + "-wal")
	if err != nil {
		return nil, err
	}
	s := &syncer{wal: f, dir: filepath.Dir(path), sync: sync, wake: make(chan struct{}, 1)}
	// A former process may have been killed before its last commits were on the disk.
	s.promised.Store(1)
	s.committed.Store(1)
	s.patience.Store(10_000)
	return s, nil
}

// add has ops finished when their commits are durable.
func (s *syncer) add(ops ...*op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.waiting = append(s.waiting, ops...)
	s.signal()
	return nil
}

// over notes that commit seq is over, whether it succeeded or not, for who waits for it.
func (s *syncer) over(seq uint64) {
	s.committed.Store(seq)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) > 0 {
		s.signal()
	}
}

func (s *syncer) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take removes and returns the ops whose commits are not after last.
func (s *syncer) take(last uint64) (ops []*op) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.waiting[:0]
	for _, o := range s.waiting {
		if o.commit <= last {
			ops = append(ops, o)
		} else {
			rest = append(rest, o)
		}
	}
	clear(s.waiting[len(rest):])
	s.waiting = rest
	return ops
}

// shut refuses further ops if none waits.
func (s *syncer) shut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = len(s.waiting) == 0
	return s.closed
}

// errDeleted ends all promises: nobody finds again what is written to a file without a name.
var errDeleted = errors.New("the database's file or its log was deleted while the database is open; what is written now would be lost at the next start")

// syncLoop serves what waits until the writer has ended and nobody waits any more.
func (db *DB) syncLoop(writer <-chan struct{}) {
	defer db.done.Done()
	s := db.syncer
	c, err := newConn(context.Background(), db.pool, nil)
	if err == nil {
		defer c.close()
	}
	named := false
	for {
		select {
		case <-s.wake:
		case <-writer:
			if s.shut() {
				return
			}
		}
		last := s.committed.Load()
		ops := s.take(last)
		if len(ops) == 0 {
			continue
		}
		var err error
		if !named {
			// The name of a file that is new is not on the disk with its content.
			err = s.syncDir()
			named = err == nil
		}
		if err == nil && s.durable.Load() < last {
			switch {
			case db.lock.Deleted() || disk.Nameless(s.wal):
				err = errDeleted
			case s.distrusted.Load():
				err = s.moveAll(c)
			default:
				if err = s.sync(s.wal); err != nil {
					s.distrusted.Store(true)
				}
			}
			if err == nil {
				s.durable.Store(last)
			}
		}
		for _, o := range ops {
			if err != nil {
				o.err = fmt.Errorf("have a commit on the disk: %w", err)
			}
			close(o.done)
		}
	}
}

func (s *syncer) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(s.sync(d), d.Close())
}

// moveAll moves all of the WAL into the database file, syncs that and cuts the WAL off:
// so a commit becomes durable whose sync has failed. The WAL must be empty and that on the
// disk before it is trusted again. Otherwise later commits would come after what the disk
// does not have, where SQLite stops to read after a crash.
func (s *syncer) moveAll(c *conn) error {
	if c == nil {
		return errors.New("a former sync of the database's log has failed, and there is no connection to check the log")
	}
	if _, err := c.exec(fmt.Sprintf("PRAGMA busy_timeout = %d", s.patience.Load())); err != nil {
		return err
	}
	s.moving.Lock()
	defer s.moving.Unlock()
	var busy bool
	var log, moved int
	if err := c.row("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &moved); err != nil {
		return err
	}
	if busy || moved < log {
		return errors.New("a former sync of the database's log has failed, and the log could not be moved into the database yet")
	}
	if err := s.sync(s.wal); err != nil {
		return err
	}
	s.distrusted.Store(false)
	return nil
}

// Seen is the number up to which commits must be durable before anything that a read
// has returned may be promised. It is taken after the read. Commits that nobody waits
// for, such as of Note, do not count: nothing is promised by them.
func (db *DB) Seen() uint64 { return db.syncer.promised.Load() }

// Durable returns when the commit of that number, and so all before it, are on the
// disk: what a reader sees may be lost with the machine's power until then.
func (db *DB) Durable(ctx context.Context, seq uint64) error {
	if db.syncer.durable.Load() >= seq {
		return nil
	}
	o := &op{commit: seq, done: make(chan struct{})}
	if err := db.syncer.add(o); err != nil {
		return err
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Sync returns when all that was committed before it is durable.
func (db *DB) Sync(ctx context.Context) error { return db.Durable(ctx, db.syncer.committed.Load()) }

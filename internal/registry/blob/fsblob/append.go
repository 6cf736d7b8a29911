package fsblob

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/fairway-registry/fairway/internal/registry/blob"
)

// Append implements blob.Store.
func (s *Store) Append(_ context.Context, key string, offset int64) (blob.Appender, error) {
	path, sh, err := s.path(key)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("append to %s: offset %d", key, offset)
	}
	f, room, err := s.openAt(path, offset)
	if err != nil {
		return nil, fmt.Errorf("append to %s: %w", key, full(missing(err)))
	}
	// Counted after the file is there, so that an fsync of the directory that
	// covers this number covers the name.
	name := sh.count(offset == 0)
	return &appender{s: s, f: f, key: key, sh: sh, name: name, shName: s.root.count(false), end: offset, started: offset, room: offset + min(room, lookEvery)}, nil
}

// openAt creates the file of a new object, or cuts an old one at offset, and
// returns how many bytes there is room for. It cuts even if there is none: that
// gives some back.
func (s *Store) openAt(path string, offset int64) (f *os.File, room int64, err error) {
	room, noRoom := s.room()
	if offset == 0 && noRoom == nil {
		const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
		f, err := os.OpenFile(path, flags, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			if err = s.makeShard(filepath.Dir(path)); err == nil {
				f, err = os.OpenFile(path, flags, 0o600)
			}
		}
		if !errors.Is(err, os.ErrExist) {
			return f, room, err
		}
		// An earlier request of the same upload session made it and came to nothing.
	}
	f, err = os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil && offset == 0 && noRoom != nil {
		return nil, 0, noRoom
	}
	if err != nil {
		return nil, 0, err
	}
	if err := errors.Join(cutAt(f, offset), noRoom); err != nil {
		_ = f.Close() // nothing was written
		return nil, 0, err
	}
	return f, room, nil
}

func cutAt(f *os.File, offset int64) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < offset {
		return fmt.Errorf("has %d bytes, cannot go on at %d", fi.Size(), offset)
	}
	if fi.Size() > offset {
		if err := f.Truncate(offset); err != nil {
			return err
		}
	}
	_, err = f.Seek(offset, 0)
	return err
}

type appender struct {
	s    *Store
	f    *os.File // nil when closed
	key  string
	sh   *names
	name uint64 // what the directory must be synced up to
	// shName is the same for the directory's own name in the one above.
	shName uint64

	end     int64 // of the file, bytes
	started int64 // writeback was asked for up to here
	room    int64 // there was room up to here when the disk was last looked at
	err     error // of the first Write that failed, for good
}

// Announce implements blob.Appender.
func (a *appender) Announce(n int64) error {
	if a.end+n <= a.room {
		return nil
	}
	room, err := a.s.room()
	if err == nil && room < n {
		err = fmt.Errorf("%w: %d bytes are free to be written, %d are announced", blob.ErrFull, room, n)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", a.key, err)
	}
	return nil
}

// Write implements io.Writer.
func (a *appender) Write(p []byte) (int, error) {
	if a.f == nil {
		return 0, fmt.Errorf("write %s: %w", a.key, os.ErrClosed)
	}
	if a.err != nil {
		return 0, a.err
	}
	written := 0
	for written < len(p) {
		n, err := a.write(p[written:min(len(p), written+lookEvery)])
		written += n
		if err != nil {
			a.err = fmt.Errorf("write %s: %w", a.key, full(err))
			return written, a.err
		}
	}
	return written, nil
}

// write writes no more than lookEvery.
func (a *appender) write(p []byte) (int, error) {
	if need := int64(len(p)); a.end+need > a.room {
		room, err := a.s.room()
		if err != nil {
			return 0, err
		}
		if room < need {
			return 0, fmt.Errorf("%w: %d bytes are free to be written, %d were sent", blob.ErrFull, room, need)
		}
		a.room = a.end + min(room, lookEvery)
	}
	n, err := a.f.Write(p)
	a.end += int64(n)
	if err == nil && a.end-a.started >= writebackEvery {
		// The disk works while the client sends and the hash runs, so that the
		// fsync in Commit has little left to wait for.
		startWriteback(a.f, a.started, a.end-a.started)
		a.started = a.end
	}
	return n, err
}

// Commit implements blob.Appender.
func (a *appender) Commit() error {
	if a.f == nil {
		return fmt.Errorf("commit %s: %w", a.key, os.ErrClosed)
	}
	f := a.f
	a.f = nil
	err := a.err
	if err == nil {
		err = a.s.syncFile(f)
	}
	shard := filepath.Dir(f.Name())
	if err == nil {
		err = a.sh.sync(a.name, func() error { return a.s.syncDir(shard) })
	}
	if err == nil {
		err = a.s.root.sync(a.shName, func() error { return a.s.syncDir(filepath.Dir(shard)) })
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("commit %s: %w", a.key, full(err))
	}
	return nil
}

// Close implements blob.Appender.
func (a *appender) Close() error {
	if a.f == nil {
		return nil
	}
	f := a.f
	a.f = nil
	return f.Close()
}

func (s *Store) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(s.syncFile(d), d.Close())
}

// names counts the names created in one directory, so that an fsync of the
// directory is shared by all who wait for one and left out where an earlier
// one did the work.
type names struct {
	mu      sync.Mutex
	created uint64   // names so far
	synced  uint64   // of those, durable
	running *dirSync // nil for none
}

type dirSync struct {
	covers uint64
	err    error
	done   chan struct{}
}

// count notes a new name if there is one and returns the number to sync up to.
func (n *names) count(created bool) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if created {
		n.created++
	}
	return n.created
}

// create makes a name and counts it. Whoever finds the name there and then
// asks for the count gets one that covers it.
func (n *names) create(mk func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := mk()
	if err == nil {
		n.created++
	}
	return err
}

// sync returns when an fsync that began after the name was counted has
// succeeded, or with the error of one that failed.
func (n *names) sync(name uint64, fsync func() error) error {
	for {
		n.mu.Lock()
		if n.synced >= name {
			n.mu.Unlock()
			return nil
		}
		if run := n.running; run != nil {
			n.mu.Unlock()
			<-run.done
			if run.covers >= name {
				return run.err
			}
			continue
		}
		run := &dirSync{covers: n.created, done: make(chan struct{})}
		n.running = run
		n.mu.Unlock()

		run.err = fsync()

		n.mu.Lock()
		if run.err == nil {
			n.synced = run.covers
		}
		n.running = nil
		n.mu.Unlock()
		close(run.done)
		return run.err
	}
}

package fsblob

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fairway-registry/fairway/internal/registry/blob"
)

// Release gives the reserve back to the disk, so that the database can write
// where it could not. It returns true if that freed something. An upload puts
// the reserve back before it writes anything.
func (s *Store) Release() bool {
	if s.reserve <= 0 {
		return false
	}
	s.reserveMu.Lock()
	defer s.reserveMu.Unlock()
	s.ready.Store(false)
	if err := os.Remove(s.reservePath()); err != nil {
		return false // not there: released before
	}
	// Some file systems hand freed blocks out again only after a commit of their
	// journal, which this forces. Without it the second try might come too early,
	// no worse.
	_ = s.syncDir(s.dir)
	return true
}

// Replenish makes the reserve whole if there is room for it and for what must
// stay free besides; otherwise its error is blob.ErrFull. It costs one stat
// where nothing is to be done.
func (s *Store) Replenish() error {
	if s.reserve <= 0 {
		return nil
	}
	s.reserveMu.Lock()
	defer s.reserveMu.Unlock()
	path := s.reservePath()
	if s.whole(path) {
		s.ready.Store(true)
		return nil
	}
	s.ready.Store(false)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("renew the reserve: %w", err)
	}
	free, _, err := diskSpace(s.dir)
	if err != nil {
		return fmt.Errorf("renew the reserve: %w", err)
	}
	if need := s.reserve + s.minFree; free < need {
		return fmt.Errorf("renew the reserve: %w: %d bytes free on the disk of %s, %d needed", blob.ErrFull, free, s.dir, need)
	}
	if err := s.fill(path); err != nil {
		_ = os.Remove(path) // the error below is the one that matters; the next call looks again
		return fmt.Errorf("renew the reserve: %w", full(err))
	}
	s.ready.Store(true)
	return nil
}

func (s *Store) reservePath() string { return filepath.Join(s.dir, "reserve") }

// whole reports that the reserve has its size, and the disk blocks for it: a
// sparse file, as a careless copy makes one, would reserve nothing.
func (s *Store) whole(path string) bool {
	fi, err := os.Lstat(path)
	if err != nil || fi.Size() != s.reserve {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Blocks*512 >= s.reserve
}

func (s *Store) fill(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// The blocks are taken when allocate returns. Whether they still are after a
	// crash is looked at by the next Open, so there is nothing to sync.
	err = allocate(f, s.reserve)
	if errors.Is(err, errors.ErrUnsupported) {
		// Random, because a file system that compresses would keep nothing of zeros.
		if _, err = io.CopyN(f, rand.Reader, s.reserve); err == nil {
			err = s.syncFile(f)
		}
	}
	return errors.Join(err, f.Close())
}

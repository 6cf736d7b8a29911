package piece

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/fault"
)

// ErrMismatch reports an index and a directory of pieces that do not belong together.
var ErrMismatch = errors.New("the cache's index and its directory of pieces do not belong together")

// markFile has the identity of the cache and the last run, as index.Pair.
const markFile = "identity"

// identity is the content of the mark, or the zero value if there is no valid one.
type identity struct{ cache, run string }

func (i identity) String() string { return i.cache + " " + i.run + "\n" }

func (s *Store) markPath() string { return filepath.Join(s.dir, markFile) }

// readMark reads the directory's mark. An error means that its presence is unknown.
func (s *Store) readMark() (identity, error) {
	content, err := os.ReadFile(s.markPath())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return identity{}, nil
	}
	if err != nil {
		return identity{}, err
	}
	if f := strings.Fields(string(content)); len(f) == 2 {
		return identity{f[0], f[1]}, nil
	}
	return identity{}, nil
}

// pair checks that the index and the directory belong together (R15) before either is
// changed. Another cache's directory is ErrMismatch. If one of the two is an older copy,
// such as a restored backup, the index is rebuilt from the files, and none is removed
// because the index lacks it.
func (s *Store) pair(ctx context.Context) error {
	own, err := s.index.Pair(ctx)
	if err != nil {
		return err
	}
	found, err := s.readMark()
	if err != nil {
		return fmt.Errorf("%w: its mark cannot be read: %w", ErrMismatch, err)
	}
	switch {
	case found.cache == "":
		err = s.adoptable(ctx)
	case found.cache == own.Identity && (found.run == own.Run || found.run == own.Next):
	case found.cache == own.Identity, own.Identity == "":
		s.log.Error("the cache's index and its pieces are of different times, as after a backup was restored; the index is rebuilt from the files", "dir", s.dir)
		err = s.index.Distrust(ctx)
	default:
		err = s.unpaired("it belongs to the cache " + found.cache + ", and the index to " + own.Identity)
	}
	if err != nil {
		return err
	}
	own.Identity = firstOf(found.cache, own.Identity, rand.Text())
	return s.begin(ctx, own, found)
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

func (s *Store) unpaired(why string) error {
	return fmt.Errorf("%w: %s: %s. Nothing was changed. Mount the right disk, or restore the index of these pieces, "+
		"or move index.db away, to have the index rebuilt from these pieces", ErrMismatch, s.dir, why)
}

// begin records a new run on both sides, so that an older copy of either is recognized
// later. The index records it first, as the next run: a start after a crash in between
// accepts both. On a full disk the last run stays.
func (s *Store) begin(ctx context.Context, own index.Pair, found identity) error {
	s.identity = found
	if found.run != "" {
		own.Run = found.run
	}
	own.Next = rand.Text()
	err := s.index.SetPair(ctx, own)
	next := identity{own.Identity, own.Next}
	if err == nil {
		if err = full(disk.Replace(s.markPath(), []byte(next.String()), 0o600)); err == nil {
			s.identity = next
			own.Run, own.Next = own.Next, ""
			err = s.index.SetPair(ctx, own)
		}
	}
	if errors.Is(err, fault.Full) {
		return nil
	}
	return err
}

// probeMax is how many rows of an index are looked for in a directory without a mark.
const probeMax = 100

var errEnough = errors.New("enough")

// adoptable checks a directory without a mark: it was written by an earlier version, is
// new, or its disk is not mounted. If the directory has files and the index has blobs, at
// least one of the blobs must be there.
func (s *Store) adoptable(ctx context.Context) error {
	files, err := s.anyFile()
	if err != nil {
		return err
	}
	rows, known := 0, false
	err = s.index.Blobs(ctx, func(b index.Blob) error {
		rows++
		if _, err := os.Lstat(s.path(b.Digest)); err == nil {
			known = true
		}
		if known || rows == probeMax {
			return errEnough
		}
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errEnough):
		return err
	case known:
		return nil
	case !files:
		if rows > 0 {
			s.log.Error("the directory of the cache's pieces is empty, though its index knows some: they are lost, or their disk is not mounted", "dir", s.dir)
		}
		return nil
	case rows == 0:
		return s.index.TakeBack()
	}
	return s.unpaired(fmt.Sprintf("it has no identity, and none of %d blobs of the index that were looked for is there", rows))
}

// anyFile reports whether there is a file of any blob.
func (s *Store) anyFile() (bool, error) {
	for _, alg := range algorithms {
		found, err := filepath.Glob(filepath.Join(s.dir, alg, "??", "*"))
		if err != nil {
			return false, err
		}
		for _, p := range found {
			if st, err := os.Lstat(p); err == nil && st.Mode().IsRegular() {
				return true, nil
			}
		}
	}
	return false, nil
}

// paired returns an error if the directory is not the one that was opened: its disk is
// gone, or another one is mounted there. Files that are missing then are not lost, and
// files that are there must not be removed.
func (s *Store) paired() error {
	if s.identity == (identity{}) {
		return nil // it could not be marked
	}
	found, err := s.readMark()
	if err == nil && found != s.identity {
		err = fmt.Errorf("its mark was %q and is %q", s.identity, found)
	}
	if err != nil {
		return fmt.Errorf("%w: %s has changed since the start: %w; mount the right disk again", ErrMismatch, s.dir, err)
	}
	return nil
}

const markEvery = 10 * time.Second // how often the mark is looked at while nothing is removed

// markLoop looks at the mark now and then, so that a disk that was exchanged is reported
// before anything is removed or made.
func (s *Store) markLoop() {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.strayed()
		case <-s.stop:
			return
		}
	}
}

// strayed reports whether the directory is not the one that was opened, and logs it when
// that begins and when it ends.
func (s *Store) strayed() bool {
	err := s.paired()
	if was := s.astray.Swap(err != nil); was == (err != nil) {
		return was
	}
	if err != nil {
		s.log.Error("the directory of the cache's pieces is not the one that was opened; nothing is cached or removed", "dir", s.dir, "error", err)
		return true
	}
	s.log.Info("the directory of the cache's pieces is there again", "dir", s.dir)
	return false
}

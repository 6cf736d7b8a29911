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

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/fault"
)

// ErrMismatch says that an index and a directory of pieces do not belong together.
var ErrMismatch = errors.New("the cache's index and its directory of pieces do not belong together")

// markFile has the identity of the cache and the last run, as index.Pair.
const markFile = "identity"

// identity is what the directory says, the zero value if nothing that can be read.
type identity struct{ cache, run string }

func (i identity) String() string { return i.cache + " " + i.run + "\n" }

func (s *Store) markPath() string { return filepath.Join(s.dir, markFile) }

// readMark is an error if it cannot be found out whether there is a mark.
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

// pair sees to it that the index and the directory belong together (R15), before
// anything of either is changed. Another cache's directory is ErrMismatch. Where one of
// the two is of another time, as after a backup was restored, the index is begun anew
// and the files are taken back: none is removed because the index does not know it.
func (s *Store) pair(ctx context.Context) error {
	own, err := s.index.Pair(ctx)
	if err != nil {
		return err
	}
	found, err := s.readMark()
	if err != nil {
		return fmt.Errorf("%w, as far as can be seen: %w", ErrMismatch, err)
	}
	switch {
	case found.cache == "":
		err = s.adoptable(ctx)
	case found.cache == own.Identity && (found.run == own.Run || found.run == own.Next):
	case found.cache == own.Identity, own.Identity == "":
		s.log.Error("the cache's index is new, or of another time than its pieces, as after a backup was restored: it is begun anew, and what is cached is taken back from its files", "dir", s.dir)
		err = s.index.Distrust(ctx)
	default:
		err = s.unpaired("it is of the cache " + found.cache + ", and the index of " + own.Identity)
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
	return fmt.Errorf("%w: %s: %s. Mount the right disk, or restore the index of these pieces. Nothing was changed. "+
		"Or move index.db away: then the index is begun anew, and what is cached here is taken back", ErrMismatch, s.dir, why)
}

// begin notes a new run on both sides, so that a copy of either is recognized later. The
// index knows it before the directory has it: a crash in between is gone on with. On
// a full disk the last run goes on.
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

// kin is how many rows are looked for, and how many files.
const kin = 100

var errEnough = errors.New("enough")

// adoptable looks at a directory without a mark: one of a former version, a new one, or
// one whose disk is not mounted. An index that has blobs must find one of them where
// there are any.
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
		if known || rows == kin {
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

// paired is an error if the directory is not the one that was opened: its disk is gone,
// or another one is mounted there. What is missing in it then is not lost, and what is
// there is not ours to remove.
func (s *Store) paired() error {
	if s.identity == (identity{}) {
		return nil // it could not be marked
	}
	found, err := s.readMark()
	if err == nil && found != s.identity {
		err = fmt.Errorf("its mark was %q and is %q", s.identity, found)
	}
	if err != nil {
		return fmt.Errorf("%w any more: %s: %w; mount the right disk again", ErrMismatch, s.dir, err)
	}
	return nil
}

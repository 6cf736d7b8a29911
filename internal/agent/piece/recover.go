package piece

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// recover makes rows and files agree: whoever claimed blobs is gone, a row
// without files is of a blob that never began or whose files somebody took, and
// files without a row are of one whose removal, or whose making, was cut off. It
// goes through the 256 directories of each algorithm one by one, so that it
// never holds more than a small part of the names.
func (s *Store) recover(ctx context.Context) error {
	if err := s.unclaimAll(ctx); err != nil {
		return err
	}
	for _, alg := range algorithms {
		for b := range 256 {
			if err := s.recoverShard(ctx, alg, fmt.Sprintf("%02x", b)); err != nil {
				return err
			}
		}
	}
	if len(s.takenBack) == 0 {
		return s.index.Adopted(ctx)
	}
	return nil
}

// algorithms are the directories of blobs.
var algorithms = []string{"sha256", "sha512"}

// unclaimAll ends all claims: whoever held them is gone with the last process.
func (s *Store) unclaimAll(ctx context.Context) error {
	err := s.index.UnclaimAll(ctx)
	if !errors.Is(err, fault.Full) {
		return err
	}
	return s.index.Blobs(ctx, func(b index.Blob) error {
		if b.State == index.Claimed {
			s.void[b.Digest] = b.Version
		}
		return nil
	})
}

// found says which files of a blob are there.
type found struct{ data, side bool }

func (s *Store) recoverShard(ctx context.Context, alg, shard string) error {
	dir := filepath.Join(s.dir, alg, shard)
	there, err := s.scan(dir, alg)
	if err != nil {
		return err
	}
	var lost []index.Blob
	anew := s.index.Anew()
	err = s.index.BlobsFrom(ctx, alg+":"+shard, func(b index.Blob) error {
		if f := there[b.Digest]; !f.data || !f.side || b.Size < 0 || b.Size > SizeMax {
			lost = append(lost, b) // files that are there go below
			return nil
		}
		delete(there, b.Digest)
		s.adopt(b)
		if anew {
			s.takenBack = append(s.takenBack, b.Digest) // by a start that was cut off
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, b := range lost {
		if b.State == index.Complete {
			s.corrupt(b.Digest, pieces(min(max(b.Size, 0), SizeMax)), "its files are gone")
		}
		err := s.index.Forget(ctx, b.Digest)
		if errors.Is(err, fault.Full) && b.Size >= 0 && b.Size <= SizeMax {
			s.adopt(b) // until there is room: a start must succeed, or nothing would ever be freed
			continue
		}
		if err != nil {
			return err
		}
	}
	for d, f := range there {
		if anew && f.data && f.side {
			err := s.takeBack(ctx, d)
			if errors.Is(err, fault.Full) || errors.Is(err, errUnopened) {
				// A start must succeed, or nothing would ever be freed.
				s.log.Error("a file of the cache is not taken back before the next start", "digest", d, "error", err)
				s.index.LeftOut()
			} else if err != nil {
				return err
			}
			continue
		}
		s.log.Info("removing files that belong to no cached blob", "digest", d)
		if err := s.removeFiles(d); err != nil {
			s.log.Error("files that belong to no cached blob stay where they are", "digest", d, "error", err)
		}
	}
	return nil
}

// takeBack makes a row for files that have lost theirs with the index. What they
// are worth shows when they are opened: a partial blob is checked then, piece by
// piece and against its digest. Nobody knows any more who may have it, so it
// counts as private.
func (s *Store) takeBack(ctx context.Context, d oci.Digest) error {
	head := make([]byte, headerLen)
	f, err := os.Open(s.path(d) + sidecarSuffix)
	if err == nil {
		_, err = io.ReadFull(f, head)
		err = errors.Join(err, f.Close())
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("take %s back: %w: %w", d, errUnopened, err)
	}
	size, ok := sizeIn(head)
	if !ok || err != nil || size > SizeMax {
		s.corrupt(d, 0, "neither the index nor its file of checksums says what it is")
		return s.removeFiles(d)
	}
	row, err := s.index.PutBlob(ctx, index.Blob{Digest: d, Size: size, State: index.Partial, Private: true})
	if err != nil {
		return err
	}
	s.adopt(row)
	s.takenBack = append(s.takenBack, d)
	return nil
}

// TakenBack lists the blobs whose files were found without an index. Opening one
// verifies it.
func (s *Store) TakenBack() []oci.Digest { return s.takenBack }

// adopt counts a blob that has its files.
func (s *Store) adopt(b index.Blob) {
	var partial held
	if b.State != index.Complete {
		partial = s.heldOnDisk(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Blobs++
	if b.State != index.Complete {
		s.partial[b.Digest] = partial
	}
	s.totals.Used += s.takes(b.Digest, b.Size)
}

// heldOnDisk is how much of a partial blob its sidecar says to be here. Of one that
// is damaged nothing is; opening the blob looks closer. One that cannot be read says
// nothing, but what the blob takes on disk counts as used all the same.
func (s *Store) heldOnDisk(b index.Blob) held {
	var sc sidecar
	f, err := os.Open(s.path(b.Digest) + sidecarSuffix)
	if err == nil {
		sc, err = files{side: f}.readSidecar(b.Size)
		_ = f.Close() // it was only read
	}
	switch {
	case err == nil:
		present := sc.present(b.Size)
		return held{present: present, cost: cost(b.Size, present)}
	case errors.Is(err, errSidecar):
		return held{cost: cost(b.Size, 0)}
	}
	s.log.Error("the checksums of a cached blob cannot be read; how much of it is here is not known", "digest", b.Digest, "error", err)
	return held{cost: min(max(s.onDisk(b.Digest), cost(b.Size, 0)), cost(b.Size, b.Size))}
}

// scan finds the files of blobs in a directory. It leaves alone what it would
// not have made.
func (s *Store) scan(dir, alg string) (map[oci.Digest]found, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, s.clear(filepath.Dir(dir))
	}
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); errors.Is(err, syscall.ENOTDIR) {
		return nil, s.clear(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	there := map[oci.Digest]found{}
	for _, entry := range entries {
		name := entry.Name()
		hex, isSide := strings.CutSuffix(name, sidecarSuffix)
		d, err := oci.ParseDigest(alg + ":" + hex)
		if err != nil || hex[:2] != filepath.Base(dir) {
			s.log.Warn("a file in the cache's directory is not of the cache", "path", filepath.Join(dir, name))
			continue
		}
		if !entry.Type().IsRegular() {
			// To open a pipe would wait for whoever is at its other end.
			if err := s.clear(filepath.Join(dir, name)); err != nil {
				return nil, err
			}
			continue
		}
		has := there[d]
		has.data, has.side = has.data || !isSide, has.side || isSide
		there[d] = has
	}
	return there, nil
}

// clear moves aside what stands where only the cache's own files and directories
// may: nobody can tell what it is, and nothing could be cached in its place.
func (s *Store) clear(path string) error {
	for n := 1; ; n++ {
		aside := filepath.Join(s.dir, fmt.Sprintf("%s.moved-%d", filepath.Base(path), n))
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		s.log.Warn("something in the cache's directory is not of the cache, and is moved aside", "path", path, "moved_to", aside)
		return os.Rename(path, aside)
	}
}

package piece

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/oci"
)

// recover makes rows and files agree: whoever claimed blobs is gone, a row
// without files is of a blob that never began or whose files somebody took, and
// files without a row are of one whose removal, or whose making, was cut off. It
// goes through the 256 directories of each algorithm one by one, so that it
// never holds more than a small part of the names.
func (s *Store) recover(ctx context.Context) error {
	if err := s.index.UnclaimAll(ctx); err != nil {
		return err
	}
	for _, alg := range []string{"sha256", "sha512"} {
		for b := range 256 {
			if err := s.recoverShard(ctx, alg, fmt.Sprintf("%02x", b)); err != nil {
				return err
			}
		}
	}
	return nil
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
	err = s.index.BlobsFrom(ctx, alg+":"+shard, func(b index.Blob) error {
		if f := there[b.Digest]; !f.data || !f.side {
			lost = append(lost, b)
			return nil
		}
		delete(there, b.Digest)
		s.adopt(b)
		return nil
	})
	if err != nil {
		return err
	}
	for _, b := range lost {
		if b.State == index.Complete {
			s.corrupt(b.Digest, pieces(b.Size), "its files are gone")
		}
		if err := s.index.Forget(ctx, b.Digest); err != nil {
			return err
		}
	}
	for d := range there {
		s.log.Info("removing files that belong to no cached blob", "digest", d)
		if err := s.removeFiles(d); err != nil {
			s.log.Error("files that belong to no cached blob stay where they are", "digest", d, "error", err)
		}
	}
	return nil
}

// adopt counts a blob that has its files.
func (s *Store) adopt(b index.Blob) {
	var present int64
	if b.State != index.Complete {
		present = s.presentOnDisk(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Used += cost(b.Size)
	s.totals.Blobs++
	if b.State == index.Complete {
		return
	}
	s.partial[b.Digest] = present
	s.pending += b.Size - present
}

// presentOnDisk is how much of a partial blob its sidecar says to be here. What
// cannot be read counts as nothing; opening the blob looks closer.
func (s *Store) presentOnDisk(b index.Blob) int64 {
	content, err := os.ReadFile(s.path(b.Digest) + sidecarSuffix)
	if err != nil {
		return 0
	}
	sc, err := parseSidecar(content, b.Size)
	if err != nil {
		return 0
	}
	return sc.present(b.Size)
}

// scan finds the files of blobs in a directory. It leaves alone what it would
// not have made.
func (s *Store) scan(dir, alg string) (map[oci.Digest]found, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	there := map[oci.Digest]found{}
	for _, name := range names {
		hex, isSide := strings.CutSuffix(name, sidecarSuffix)
		d, err := oci.ParseDigest(alg + ":" + hex)
		if err != nil || hex[:2] != filepath.Base(dir) {
			s.log.Warn("a file in the cache's directory is not of the cache", "path", filepath.Join(dir, name))
			continue
		}
		has := there[d]
		has.data, has.side = has.data || !isSide, has.side || isSide
		there[d] = has
	}
	return there, nil
}

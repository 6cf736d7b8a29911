package piece

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

const (
	block         = 4096 // what a file system gives at least, in bytes
	sidecarSuffix = ".pieces"
)

// cost is what a blob of size bytes takes on disk when present bytes of it are
// here: both files are sparse. It grows with present.
func cost(size, present int64) int64 {
	return rounded(present) + min(rounded(sidecarLen(size)), block*int64(1+pieces(present)))
}

func rounded(n int64) int64 { return (n + block - 1) / block * block }

// path is where the bytes of a blob are. Digests are of oci.ParseDigest's form.
func (s *Store) path(d oci.Digest) string {
	hex := d.Encoded()
	return filepath.Join(s.dir, string(d.Algorithm()), hex[:2], hex)
}

// files are the two open files of a blob.
type files struct {
	data, side *os.File
}

// openFiles opens what is there; fs.ErrNotExist if one of them is not.
func (s *Store) openFiles(d oci.Digest) (f files, err error) {
	path := s.path(d)
	if f.data, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return files{}, err
	}
	if f.side, err = os.OpenFile(path+sidecarSuffix, os.O_RDWR, 0); err != nil {
		return files{}, errors.Join(err, f.data.Close())
	}
	return f, nil
}

// makeFiles makes both files afresh. The sidecar comes first: bytes without one
// would say nothing about themselves.
func (s *Store) makeFiles(d oci.Digest, size int64) (f files, err error) {
	path := s.path(d)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return files{}, err
	}
	const flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC
	if f.side, err = os.OpenFile(path+sidecarSuffix, flags, 0o600); err != nil {
		return files{}, err
	}
	if err = f.reset(size); err == nil {
		s.step("sidecar made")
		f.data, err = os.OpenFile(path, flags, 0o600)
	}
	if err == nil {
		err = f.data.Truncate(size)
	}
	if err != nil {
		return files{}, errors.Join(err, f.close(), s.removeFiles(d))
	}
	s.step("data made")
	return f, nil
}

// reset makes the sidecar say that nothing is here.
func (f files) reset(size int64) error {
	if err := f.side.Truncate(0); err != nil {
		return err
	}
	if _, err := f.side.WriteAt(header(size), 0); err != nil {
		return err
	}
	return f.side.Truncate(sidecarLen(size))
}

func (f files) close() error {
	var err error
	for _, file := range []*os.File{f.data, f.side} {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
	}
	return err
}

// sync makes both files durable.
func (f files) sync() error {
	return errors.Join(f.data.Sync(), f.side.Sync())
}

// readSidecar reads what the sidecar says; errSidecar if it says nothing.
func (f files) readSidecar(size int64) (sidecar, error) {
	b, err := io.ReadAll(io.NewSectionReader(f.side, 0, sidecarLen(size)))
	if err != nil {
		return newSidecar(size), err
	}
	return parseSidecar(b, size)
}

// removeFiles removes what there is of a blob's files, bytes first: a sidecar
// alone says nothing that could be taken for a blob.
func (s *Store) removeFiles(d oci.Digest) error {
	path := s.path(d)
	err := unlink(path)
	s.step("data removed")
	return errors.Join(err, unlink(path+sidecarSuffix))
}

func unlink(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// onDisk is how much disk the files of a blob take.
func (s *Store) onDisk(d oci.Digest) (total int64) {
	path := s.path(d)
	for _, p := range []string{path, path + sidecarSuffix} {
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			total += st.Blocks * 512
		}
	}
	return total
}

// diskSpace returns the bytes that this process may still write to the file
// system of dir, and its size.
func diskSpace(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(dir, &st)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// full gives an error for the lack of space its kind.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return fault.Wrap(fault.Full, err, "the disk of the node's cache is full")
	}
	return err
}

// stamp tells whether a file may have changed since it was looked at.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, fmt.Errorf("fstat %s: %w", f.Name(), err)
	}
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

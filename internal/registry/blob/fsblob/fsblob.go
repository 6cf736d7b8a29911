// Package fsblob keeps blobs as files in a local directory, which may be the one
// that the database lives in.
//
// It owns
//
//	DIR/blobs/identity        the mark of this storage
//	DIR/blobs/ab/<id>         the objects, in up to 256 directories made when needed
//	DIR/lock, DIR/blobs/lock  held (flock) by the one process that uses DIR
//	DIR/reserve               disk space held back for the database
//
// What Commit acknowledged survives a loss of power: the bytes and the name
// are on disk. A Delete is not forced to disk: after a loss of power an object
// may be back, without a row that names it, and reconciliation finds it.
//
// A disk that fills up stops uploads first: they end with blob.ErrFull while
// there are still MinFree bytes, which the database may use. Should those be
// gone too, Release frees the reserve for the writes by which the collector
// makes room. The next upload puts it back, or is refused as long as there is
// no room for that.
//
// It refuses: keys that are not of the form above, a second process on DIR,
// and to call durable what an fsync has not confirmed.
package fsblob

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/registry/blob"
)

// Options tunes a Store. The zero value is the default.
type Options struct {
	// Reserve is how many bytes are held back for the database. 0 = 16 MiB or a
	// sixteenth of the disk, the lesser; < 0 = none.
	Reserve int64
	// MinFree is how many bytes must be free on the disk for uploads to go on.
	// 0 = 64 MiB or 2 % of the disk, the lesser; < 0 = none.
	MinFree int64
	// FillLater leaves the reserve to the first Replenish or upload, for a caller
	// that is not yet sure of the directory.
	FillLater bool
	// Owner is what opens the store, for the message to whoever is refused meanwhile.
	Owner string
}

const (
	defaultReserve = 16 << 20
	defaultMinFree = 64 << 20
	shards         = 256
	lookEvery      = 1 << 20 // bytes written between two looks at the free space
	writebackEvery = 8 << 20 // bytes written between two calls to begin writeback
)

// Store is a data directory. It implements blob.Store.
type Store struct {
	dir     string
	locks   []*disk.Lock
	reserve int64
	minFree int64
	// fillLater is Options.FillLater.
	fillLater bool
	root      names         // of the shards in DIR/blobs
	shards    [shards]names // of the objects in each

	identityMu sync.Mutex // held while the mark is made

	reserveMu sync.Mutex  // held while the reserve is looked at or changed
	ready     atomic.Bool // the reserve is whole

	syncFile func(*os.File) error
}

// Open takes dir, making it (mode 0700) where it is missing. The error is
// disk.ErrInUse where another process has it.
func Open(dir string, o Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	s := &Store{dir: dir, reserve: o.Reserve, minFree: o.MinFree, fillLater: o.FillLater, syncFile: (*os.File).Sync}
	if err := os.MkdirAll(s.objects(), 0o700); err != nil {
		return nil, dirError(dir, err)
	}
	if err := s.lockDir(o.Owner); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) prepare() error {
	_, total, err := diskSpace(s.dir)
	if err != nil {
		return dirError(s.dir, err)
	}
	if s.reserve == 0 {
		s.reserve = min(defaultReserve, total/16)
	}
	if s.minFree == 0 {
		s.minFree = min(defaultMinFree, total/50)
	}
	s.reserve, s.minFree = max(s.reserve, 0), max(s.minFree, 0)
	// Names that a process now dead created may not be on disk yet: the first
	// Commit in each directory makes sure.
	s.root.created = 1
	for i := range s.shards {
		s.shards[i].created = 1
	}
	if err := s.makeRoot(); err != nil {
		return dirError(s.dir, err)
	}
	s.ready.Store(s.reserve == 0)
	if s.fillLater {
		return nil
	}
	// A full disk must not keep the server, and with it the collector, from starting.
	if err := s.Replenish(); err != nil && !errors.Is(err, blob.ErrFull) {
		return dirError(s.dir, err)
	}
	return nil
}

// makeRoot makes the directory of the objects and has it on disk before it is
// used. The shards in it are made as they are needed, so that a first start is
// as quick as any; what would keep them from being made or used is found here.
func (s *Store) makeRoot() error {
	root := s.objects()
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	there, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	used := false
	for _, e := range there {
		switch {
		case !isShard(e.Name()):
		case !e.IsDir():
			return &os.PathError{Op: "use", Path: filepath.Join(root, e.Name()), Err: syscall.ENOTDIR}
		default:
			used = true
		}
	}
	if err := writable(root); err != nil || used {
		return err // a shard is not made before the syncs below
	}
	for _, d := range []string{s.dir, filepath.Dir(s.dir)} {
		// A parent that may not be opened was not made here.
		if err := s.syncDir(d); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return nil
}

// makeShard makes a missing shard. Its name is on disk when the first Commit
// in it returns, whichever of the writers that need it made it.
func (s *Store) makeShard(dir string) error {
	err := s.root.create(func() error { return os.Mkdir(dir, 0o700) })
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// Close gives the directory to the next process.
func (s *Store) Close() error {
	var err error
	for _, l := range s.locks {
		err = errors.Join(err, l.Close())
	}
	return err
}

// objects is the directory of the objects.
func (s *Store) objects() string { return filepath.Join(s.dir, "blobs") }

// Dir is the data directory, absolute.
func (s *Store) Dir() string { return s.dir }

// Space is how much room there is.
type Space struct {
	Free    int64 // bytes this process may still write to the disk
	Total   int64 // bytes of the disk
	MinFree int64 // bytes below which uploads are refused
	Reserve int64 // bytes held back, 0 while they are released
}

// Space looks at the disk.
func (s *Store) Space() (Space, error) {
	free, total, err := diskSpace(s.dir)
	sp := Space{Free: free, Total: total, MinFree: s.minFree}
	if s.ready.Load() {
		sp.Reserve = s.reserve
	}
	return sp, err
}

// room is how many bytes uploads may write before the database might soon be
// short of disk. The error is blob.ErrFull where that is so now.
func (s *Store) room() (int64, error) {
	if !s.ready.Load() {
		if err := s.Replenish(); err != nil {
			return 0, fmt.Errorf("the space reserved for the database is in use: %w", err)
		}
	}
	free, _, err := diskSpace(s.dir)
	if err != nil {
		return 0, err
	}
	if free < s.minFree {
		return 0, fmt.Errorf("%w: %d bytes free, %d to be kept", blob.ErrFull, free, s.minFree)
	}
	return free - s.minFree, nil
}

// Temp makes a file for bytes that need not outlive the process. It has no name, so
// nothing is left of it when it is closed, or after a crash. The error is blob.ErrFull
// where an upload would be refused.
func (s *Store) Temp() (*os.File, error) {
	if _, err := s.room(); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.dir, "temp-*")
	if err != nil {
		return nil, full(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// full turns the system's words for a full disk into blob.ErrFull.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	return err
}

func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return blob.ErrNotFound
	}
	return err
}

// path returns the file of key and its shard, or an error for what is no key.
func (s *Store) path(key string) (string, *names, error) {
	i, ok := parseKey(key)
	if !ok {
		return "", nil, fmt.Errorf("%q is not a key of the blob store", key)
	}
	return filepath.Join(s.dir, filepath.FromSlash(key)), &s.shards[i], nil
}

const (
	prefix = "blobs/"
	idMax  = 128 // characters of the last part of a key
)

// parseKey returns the number of the shard of a well-formed key.
func parseKey(key string) (shard int, ok bool) {
	const head = len(prefix) + len("ab/")
	if len(key) <= head || key[:len(prefix)] != prefix || key[head-1] != '/' {
		return 0, false
	}
	hi, lo := hexDigit(key[len(prefix)]), hexDigit(key[len(prefix)+1])
	return hi<<4 | lo, hi >= 0 && lo >= 0 && validID(key[head:])
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

func validID(id string) bool {
	for _, c := range []byte(id) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return id != "" && id[0] != '.' && len(id) <= idMax
}

func shardName(i int) string { return fmt.Sprintf("%02x", i) }

func isShard(name string) bool {
	return len(name) == 2 && hexDigit(name[0]) >= 0 && hexDigit(name[1]) >= 0
}

// Open implements blob.Store.
func (s *Store) Open(_ context.Context, key string) (blob.Reader, error) {
	path, _, err := s.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", key, missing(err))
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("open %s: %w", key, err)
	}
	return &reader{f: f, size: fi.Size()}, nil
}

type reader struct {
	f    *os.File
	size int64
}

func (r *reader) Read(p []byte) (int, error)                { return r.f.Read(p) }
func (r *reader) Seek(off int64, whence int) (int64, error) { return r.f.Seek(off, whence) }
func (r *reader) Close() error                              { return r.f.Close() }
func (r *reader) Size() int64                               { return r.size }

// File is for net/http, which hands files to the kernel.
func (r *reader) File() *os.File { return r.f }

// Delete implements blob.Store.
func (s *Store) Delete(_ context.Context, key string) (int64, error) {
	path, _, err := s.path(key)
	if err != nil {
		return 0, err
	}
	fi, err := os.Lstat(path)
	if err == nil && fi.IsDir() {
		err = errors.New("a directory, not an object")
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return 0, fmt.Errorf("delete %s: %w", key, missing(err))
	}
	return fi.Size(), nil
}

// Walk implements blob.Store. It holds the names of one of the
// directories at a time. Files whose names are no keys are not objects and are
// passed over.
func (s *Store) Walk(ctx context.Context, after string, fn func(blob.Info) error) error {
	for i := range shards {
		dir := prefix + shardName(i) + "/"
		if dir+"\xff" <= after {
			continue
		}
		if err := s.walkShard(ctx, dir, after, fn); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) walkShard(ctx context.Context, dir, after string, fn func(blob.Info) error) error {
	d, err := os.Open(filepath.Join(s.dir, filepath.FromSlash(dir)))
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing was ever kept there
	}
	if err != nil {
		return fmt.Errorf("walk %s: %w", dir, err)
	}
	names, err := d.Readdirnames(-1)
	_ = d.Close() // nothing was written
	if err != nil {
		return fmt.Errorf("walk %s: %w", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		key := dir + name
		if key <= after || !validID(name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		fi, err := os.Lstat(filepath.Join(s.dir, filepath.FromSlash(key)))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return fmt.Errorf("walk: %w", err)
		}
		if !fi.Mode().IsRegular() {
			continue
		}
		if err := fn(blob.Info{Key: key, Size: fi.Size(), Modified: fi.ModTime().UnixMilli()}); err != nil {
			return err
		}
	}
	return nil
}

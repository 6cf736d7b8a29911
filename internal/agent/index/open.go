package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Open opens the index and brings its schema up to date. A database that is
// corrupt is moved aside, to PATH.corrupt-N, and rebuilt, as is one that is
// missing: see Anew. Pins are read back from their copy.
func Open(ctx context.Context, o Options) (*Index, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Dir(o.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the cache's index: %w", err)
	}
	lock, err := LockDir(dir, o.Owner)
	if err != nil {
		return nil, err
	}
	x := &Index{lock: lock, reserve: newReserve(o.Path + ".reserve"), log: o.Log, anew: o.Path + ".anew", pins: filepath.Join(dir, pinsFile)}
	if _, err := os.Lstat(o.Path); errors.Is(err, fs.ErrNotExist) {
		if err := x.beginAnew(); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	err = x.openDB(ctx, o)
	if isCorrupt(err) {
		aside, moveErr := "", x.beginAnew()
		if moveErr == nil {
			aside, moveErr = moveAside(o.Path)
		}
		if moveErr != nil {
			return nil, errors.Join(err, moveErr, lock.Close())
		}
		o.Log.Error("the cache's index was corrupt; it is rebuilt from the cached files", "path", o.Path, "moved_to", aside, "error", err)
		err = x.openDB(ctx, o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache's index: %w", err), lock.Close())
	}
	if err := x.sanitize(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache's index: %w", err), x.Close())
	}
	if err := x.recallPins(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache's index: %w", err), x.Close())
	}
	x.reserve.replenish()
	return x, nil
}

// check reads all of the database, since a page that is broken would otherwise
// be met in the middle of something.
func (x *Index) check(ctx context.Context) error {
	return x.db.Read(ctx, func(tx *sqldb.Tx) error {
		var said string
		if err := tx.Row("PRAGMA quick_check(1)").Scan(&said); err != nil {
			return err
		}
		if said != "ok" {
			return fmt.Errorf("%w: %s", errBroken, said)
		}
		return nil
	})
}

var errBroken = errors.New("the database is corrupt")

// isCorrupt tells a database that nothing can be done with from one that cannot
// be opened for another reason, which is somebody's to repair.
func isCorrupt(err error) bool {
	if errors.Is(err, errBroken) || errors.Is(err, sqldb.ErrNotDatabase) {
		return true
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

// moveAside gives the database and its companions a name that is free. The log
// goes first: without it the database is an older one, and with the database
// gone the log would be taken for that of the new one.
func moveAside(path string) (aside string, err error) {
	for n := 1; ; n++ {
		aside = fmt.Sprintf("%s.corrupt-%d", path, n)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	for _, suffix := range []string{"-wal", "-shm", ""} {
		err := os.Rename(path+suffix, aside+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("move a corrupt index aside: %w", err)
		}
	}
	return aside, nil
}

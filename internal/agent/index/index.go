package index

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Options says what to open.
type Options struct {
	Path   string       // SQLite file; its directory is locked, and made if missing
	Log    *slog.Logger // nil: none
	Now    func() int64 // ms since the Unix epoch; nil: the database's own clock
	Driver string       // database/sql driver; "" = sqlite
	Owner  string       // what opens it, for the message to whoever is refused meanwhile

	// Sync is the fsync of the database's log. See sqldb.Options.
	Sync func(*os.File) error
}

// Index is the open database. All methods may be called at once.
type Index struct {
	db      *sqldb.DB
	lock    *disk.Lock
	reserve *reserve
	log     *slog.Logger
	anew    string // path of the mark that it was begun anew
	pins    string // path of the copy of the pins
	saving  sync.Mutex
	leftOut atomic.Bool // see LeftOut
}

// Close closes the database and lets another process have the directory.
func (x *Index) Close() error {
	return errors.Join(x.db.Close(), x.lock.Close())
}

// Now is the database's clock, in milliseconds since the Unix epoch. It never
// goes back and does not jump with the machine's.
func (x *Index) Now() int64 { return x.db.Now() }

func (x *Index) openDB(ctx context.Context, o Options) error {
	root, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	x.db, err = sqldb.Open(ctx, sqldb.Options{Path: o.Path, Migrations: root, Driver: o.Driver, Now: o.Now, Release: x.reserve.release, Owner: o.Owner, Sync: o.Sync})
	if err != nil {
		return err
	}
	if err := x.check(ctx); err != nil {
		return errors.Join(err, x.db.Close())
	}
	return nil
}

// told says in words that the disk is full, where that is what err is about.
func told(err error) error {
	if !sqldb.IsFull(err) {
		return err
	}
	return fault.Wrap(fault.Full, err, "the disk of the node's cache is full")
}

// note writes what may be lost with the machine's power, but not when the
// process is killed. That is all that the rows of a cache need: whatever a
// power failure leaves is put in order at the next start.
func (x *Index) note(ctx context.Context, op string, fn func(*sqldb.Tx) error) error {
	if err := x.db.Note(ctx, fn); err != nil {
		return fmt.Errorf("%s: %w", op, told(err))
	}
	return nil
}

// relieve is note for what frees space, so it must work on a full disk.
func (x *Index) relieve(ctx context.Context, op string, fn func(*sqldb.Tx) error) error {
	err := x.db.Note(ctx, fn)
	if sqldb.IsFull(err) {
		err = x.db.Relieve(ctx, fn)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, told(err))
	}
	return nil
}

func (x *Index) read(ctx context.Context, op string, fn func(*sqldb.Tx) error) error {
	if err := x.db.Read(ctx, fn); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func digests(tx *sqldb.Tx, query string, args ...any) (found []oci.Digest, err error) {
	err = tx.All(func(rows *sql.Rows) error {
		var d oci.Digest
		if err := rows.Scan(&d); err != nil {
			return err
		}
		found = append(found, d)
		return nil
	}, query, args...)
	return found, err
}

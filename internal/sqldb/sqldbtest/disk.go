// Package sqldbtest owns faults of the disk below a database, for the tests of
// packages that keep one. It wraps the real driver and injects errors: that of a full
// disk, which SQLite itself has returned, and those that a test chooses. It never
// changes what is written.
package sqldbtest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"testing"

	"modernc.org/sqlite"
)

// Disk is the disk below a database. While it is full no commit succeeds that has
// changed anything, and nothing of its transaction is kept.
type Disk struct {
	driver string
	real   driver.Driver
	err    error // SQLite's own for a full disk
	full   atomic.Bool
	failed atomic.Pointer[func()]
	breaks atomic.Pointer[func(query string) error]
}

var disks atomic.Int64 // database/sql never forgets a driver, so each has a name of its own

// NewDisk registers a driver for a disk that has room.
func NewDisk(t testing.TB) *Disk {
	t.Helper()
	d := &Disk{driver: fmt.Sprintf("sqlite-disk-%d", disks.Add(1)), real: &sqlite.Driver{}}
	if d.err = fullError(d.real); d.err == nil {
		t.Fatal("a database of one page took a table")
	}
	sql.Register(d.driver, d)
	return d
}

// fullError has SQLite run out of room in memory.
func fullError(real driver.Driver) error {
	c, err := real.Open(":memory:")
	if err != nil {
		return err
	}
	for _, query := range []string{"PRAGMA max_page_count = 1", "CREATE TABLE t (a)"} {
		if _, err = c.(driver.ExecerContext).ExecContext(context.Background(), query, nil); err != nil {
			break
		}
	}
	_ = c.Close() // nothing is kept there
	return err
}

// Driver is its name for sqldb.Options.
func (d *Disk) Driver() string { return d.driver }

// Fill has each commit fail from now on, and Empty none.
func (d *Disk) Fill() { d.full.Store(true) }

// Empty makes room again.
func (d *Disk) Empty() { d.full.Store(false) }

// WhenFull has fn called at each commit that fails, before its error is returned.
func (d *Disk) WhenFull(fn func()) { d.failed.Store(&fn) }

// Break has fn called before each statement but those of transactions themselves; if
// it returns an error, the statement fails with that. nil ends this.
func (d *Disk) Break(fn func(query string) error) {
	if fn == nil {
		d.breaks.Store(nil)
		return
	}
	d.breaks.Store(&fn)
}

// MoveAll is the statement by which a database becomes durable whose log could not be synced.
const MoveAll = "PRAGMA wal_checkpoint(TRUNCATE)"

func (d *Disk) broken(query string) error {
	fn := d.breaks.Load()
	if fn == nil || control.MatchString(query) && query != MoveAll {
		return nil
	}
	return (*fn)(query)
}

var control = regexp.MustCompile("^(BEGIN|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|PRAGMA)")

// Open is of driver.Driver.
func (d *Disk) Open(dsn string) (driver.Conn, error) {
	c, err := d.real.Open(dsn)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, disk: d}, nil
}

type conn struct {
	driver.Conn
	disk   *Disk
	before int64 // changes of the connection when the transaction began
}

// changes is how many rows the connection has changed so far.
func (c *conn) changes() (n int64, err error) {
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(context.Background(), "SELECT total_changes()", nil)
	if err != nil {
		return 0, err
	}
	row := make([]driver.Value, 1)
	err = rows.Next(row)
	n, _ = row[0].(int64)
	return n, errors.Join(err, rows.Close())
}

func (c *conn) exec(query string, run func() (driver.Result, error)) (driver.Result, error) {
	if err := c.disk.broken(query); err != nil {
		return nil, err
	}
	switch query {
	case "BEGIN", "BEGIN IMMEDIATE":
		var err error
		if c.before, err = c.changes(); err != nil {
			return nil, err
		}
	case "COMMIT":
		n, err := c.changes()
		if err != nil {
			return nil, err
		}
		if n != c.before && c.disk.full.Load() {
			if fn := c.disk.failed.Load(); fn != nil {
				(*fn)()
			}
			return nil, c.disk.err
		}
	}
	return run()
}

// PrepareContext is of driver.ConnPrepareContext.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	s, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &stmt{Stmt: s, c: c, query: query}, nil
}

// Prepare is of driver.Conn.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// ExecContext is of driver.ExecerContext.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.exec(query, func() (driver.Result, error) {
		return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
	})
}

// QueryContext is of driver.QueryerContext.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.disk.broken(query); err != nil {
		return nil, err
	}
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

// BeginTx is of driver.ConnBeginTx.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

// ResetSession is of driver.SessionResetter.
func (c *conn) ResetSession(ctx context.Context) error {
	return c.Conn.(driver.SessionResetter).ResetSession(ctx)
}

// IsValid is of driver.Validator.
func (c *conn) IsValid() bool { return c.Conn.(driver.Validator).IsValid() }

type stmt struct {
	driver.Stmt
	c     *conn
	query string
}

// ExecContext is of driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.c.exec(s.query, func() (driver.Result, error) {
		return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	})
}

// QueryContext is of driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.c.disk.broken(s.query); err != nil {
		return nil, err
	}
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

package sim

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"

	_ "modernc.org/sqlite" // the driver that is wrapped
)

// driverName is the database/sql driver that can end the process at any
// statement of a writing transaction.
const driverName = "sqlite-sim"

// errDead is what the database answers once the process has ended.
var errDead = errors.New("the process has ended (injected crash in the database)")

// fuse decides when the process ends inside the database. It counts the
// statements of writing transactions, BEGIN and COMMIT among them.
type fuse struct {
	others func() bool // reports that the process has ended elsewhere

	mu      sync.Mutex
	count   int
	commits []int // which of those were a COMMIT
	at      int   // ends the process at the at-th statement; 0 = never
	after   bool  // at a COMMIT: after its effect; at other statements that is before the next
	blown   bool
	judging func(kind string) // called when a collector has read facts, before it acts on them
}

// judged has fn called from now on each time that facts were read; nil ends it.
func (f *fuse) judged(fn func(kind string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judging = fn
}

// readFacts tells of a query if it is one for what a judge goes by.
func (f *fuse) readFacts(query string) {
	f.mu.Lock()
	fn := f.judging
	f.mu.Unlock()
	if fn == nil {
		return
	}
	for _, facts := range []string{"SELECT l.id, l.version", "SELECT b.id, b.version", "SELECT m.id, m.version", "SELECT u.id, u.version"} {
		if strings.HasPrefix(query, facts) {
			fn(facts[len("SELECT "):][:1])
		}
	}
}

// arm counts statements from now on and ends the process at the n-th.
func (f *fuse) arm(n int, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count, f.commits, f.at, f.after = 0, nil, n, after
}

func (f *fuse) counted() (statements int, commits []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count, f.commits
}

// blow ends the process now.
func (f *fuse) blow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blown = true
}

func (f *fuse) dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blown || f.others()
}

// enter is called before a statement takes effect, and leave after that.
func (f *fuse) enter(counts, commit bool) (leave func() error, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blown || f.others() {
		return nil, errDead
	}
	if !counts {
		return func() error { return nil }, nil
	}
	f.count++
	if commit {
		f.commits = append(f.commits, f.count)
	}
	if f.at == 0 || f.count != f.at {
		return func() error { return nil }, nil
	}
	if !f.after {
		f.blown = true
		return nil, errDead
	}
	return func() error {
		f.blow()
		return errDead
	}, nil
}

// crashDriver wraps the real driver; the DSN's path says which fuse a
// connection is behind.
type crashDriver struct {
	real driver.Driver

	mu    sync.Mutex
	fuses map[string]*fuse // by database file
}

func newCrashDriver() (*crashDriver, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	return &crashDriver{real: db.Driver(), fuses: map[string]*fuse{}}, db.Close()
}

func (d *crashDriver) guard(path string, f *fuse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fuses[path] = f
}

// Open implements driver.Driver.
func (d *crashDriver) Open(dsn string) (driver.Conn, error) {
	path, _, _ := strings.Cut(strings.TrimPrefix(dsn, "file:"), "?")
	d.mu.Lock()
	f := d.fuses[path]
	d.mu.Unlock()
	if f == nil {
		return nil, errors.New("no fuse for " + path)
	}
	if f.dead() {
		return nil, errDead
	}
	c, err := d.real.Open(dsn)
	if err != nil {
		return nil, err
	}
	return &crashConn{Conn: c, fuse: f}, nil
}

type crashConn struct {
	driver.Conn
	fuse    *fuse
	writing bool // between BEGIN IMMEDIATE and its end
}

// run has a statement take effect, or not.
func run[T any](c *crashConn, query string, effect func() (T, error)) (T, error) {
	var none T
	begin := strings.HasPrefix(query, "BEGIN IMMEDIATE")
	leave, err := c.fuse.enter(begin || c.writing, query == "COMMIT")
	if err != nil {
		return none, err
	}
	out, err := effect()
	if err != nil {
		return none, err
	}
	switch {
	case begin:
		c.writing = true
	case query == "COMMIT" || query == "ROLLBACK":
		c.writing = false
	}
	if err := leave(); err != nil {
		if rows, ok := any(out).(driver.Rows); ok {
			_ = rows.Close() // nobody reads them any more
		}
		return none, err
	}
	return out, nil
}

func (c *crashConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.fuse.dead() {
		return nil, errDead
	}
	s, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &crashStmt{Stmt: s, c: c, query: query}, nil
}

func (c *crashConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *crashConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return run(c, query, func() (driver.Result, error) {
		return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
	})
}

func (c *crashConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return run(c, query, func() (driver.Rows, error) {
		return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
	})
}

func (c *crashConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.fuse.dead() {
		return nil, errDead
	}
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

func (c *crashConn) ResetSession(ctx context.Context) error {
	return c.Conn.(driver.SessionResetter).ResetSession(ctx)
}

func (c *crashConn) IsValid() bool { return c.Conn.(driver.Validator).IsValid() }

type crashStmt struct {
	driver.Stmt
	c     *crashConn
	query string
}

func (s *crashStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return run(s.c, s.query, func() (driver.Result, error) {
		return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	})
}

func (s *crashStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := run(s.c, s.query, func() (driver.Rows, error) {
		return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	})
	if err == nil {
		s.c.fuse.readFacts(s.query)
	}
	return rows, err
}

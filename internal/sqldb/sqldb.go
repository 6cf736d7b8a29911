// Package sqldb owns the way to the database: open, migrate, read, write. It
// alone knows the dialect (SQLite here).
//
// Writes are committed in groups. One goroutine owns the only writing
// connection, runs the waiting functions one after another in one transaction,
// each under a savepoint of its own, and commits once. A function that fails undoes
// itself alone. Another goroutine syncs the write-ahead log: Write and Maintain
// return after a sync that began after their commit (see durable.go).
//
// A database has one owner: Open locks the file by its real path, so that
// neither another path, a link nor another process leads to it meanwhile.
//
// It refuses: a file that somebody else has open, writes through a reading
// connection, and a success of Write or Maintain that is not durable.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/fairway-registry/fairway/internal/disk"
)

// Options says what to open.
type Options struct {
	Path       string       // of the SQLite file; created if missing
	Migrations fs.FS        // goose migrations at its root
	Driver     string       // database/sql driver name; "" = "sqlite". Tests wrap the real one.
	Owner      string       // what opens it, for the message to whoever is refused meanwhile
	Now        func() int64 // ms since the epoch; nil = a Clock of its own

	// JumpMax is by how much the machine's clock may be ahead, at the start, of
	// the latest time that the database has seen, in ms. A larger jump is not
	// believed: the clock goes on from that time. 0 = any is believed.
	JumpMax int64

	// Release is called when a Maintain write found the disk full. It frees
	// some space and returns true if a second try makes sense.
	Release func() bool

	// Sync is the fsync of the write-ahead log and of its directory; nil =
	// (*os.File).Sync. Tests wrap that.
	Sync func(*os.File) error

	// Trace is called with each statement before it runs; nil = not at all. It
	// may be called from several goroutines at once and must not use the database.
	Trace func(query string, args []any)
}

// DB is an open database.
type DB struct {
	opts    Options
	lock    *disk.Lock
	pool    *sql.DB
	readers chan *conn // of requests that wait for one answer
	listers chan *conn // of listings and statistics
	writer  *conn
	now     func() int64
	behind  int64 // ms by which now is behind a machine's clock that is not believed

	urgent, idle chan *op // waiting writes: of clients, of maintenance
	opened       time.Time
	asked        atomic.Int64  // when a client last asked for a write, in ns after opened
	upkeep       atomic.Int64  // see Upkeep, in ns
	due          chan struct{} // a checkpoint is due
	restart      atomic.Bool   // see restartWAL
	wal          walIndex
	syncer       *syncer
	stop         chan struct{}
	done         sync.WaitGroup
	closeOnce    sync.Once
}

const (
	readConns     = 4
	listConns     = 2                // for all listings together, so that they leave a core to the others
	groupMax      = 64               // writes that share a commit at most
	maintainEvery = 8                // commits of clients after which maintenance has its turn though others wait
	clockIv       = 30 * time.Second // how often the clock's reading is persisted
)

// Open opens and migrates the database. On a full disk, where not even the
// files of the write-ahead log can be made, it uses the space held in reserve:
// a server must start to free any. The error is disk.ErrInUse where somebody
// else has the database.
func Open(ctx context.Context, o Options) (*DB, error) {
	if o.Driver == "" {
		o.Driver = "sqlite"
	}
	db, err := openOnce(ctx, o)
	if IsFull(err) && o.Release != nil && o.Release() {
		db, err = openOnce(ctx, o)
	}
	return db, err
}

func openOnce(ctx context.Context, o Options) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, fmt.Errorf("directory of the database: %w", err)
	}
	lock, path, err := disk.LockFile(o.Path, disk.Claim{What: "the database", Owner: o.Owner, Remedy: "use another database (--database, --data)"})
	if err != nil {
		return nil, err
	}
	given := o.Path
	o.Path = path
	var db *DB
	if err = recognize(path); err == nil {
		db, err = openLocked(ctx, o, lock)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", given, err), lock.Close())
	}
	return db, nil
}

// ErrNotDatabase is returned by Open for a file that has something else in it.
var ErrNotDatabase = errors.New("the file is not an SQLite database; name another one, or move it away")

// magic begins every SQLite database that has a page, journalMagic a journal by
// which SQLite takes back what a crash has left half written.
const (
	magic        = "SQLite format 3\x00"
	journalMagic = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
)

// recognize refuses a file with content that is not a database. SQLite takes a
// file of less than a page for an empty database and writes over it.
func recognize(path string) error {
	some, is, err := begins(path, magic)
	if err != nil || is || !some {
		return err
	}
	if _, journal, err := begins(path+"-journal", journalMagic); err != nil || journal {
		return err
	}
	return ErrNotDatabase
}

// begins reports whether a file has any content, and whether that begins with text.
func begins(path, text string) (some, is bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer func() { _ = f.Close() }() // it was only read
	head := make([]byte, len(text))
	n, err := io.ReadFull(f, head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n > 0, string(head[:n]) == text, err
}

func openLocked(ctx context.Context, o Options, lock *disk.Lock) (*DB, error) {
	dsn := "file:" + (&url.URL{Path: o.Path}).EscapedPath() +
		"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)" +
		"&_pragma=foreign_keys(ON)&_pragma=temp_store(MEMORY)&_pragma=wal_autocheckpoint(16384)&_pragma=cache_size(-4096)"
	pool, err := sql.Open(o.Driver, dsn)
	if err != nil {
		return nil, err
	}
	pool.SetMaxIdleConns(readConns + listConns + 3)
	db := &DB{
		opts: o, lock: lock, pool: pool, now: o.Now,
		readers: make(chan *conn, readConns), listers: make(chan *conn, listConns),
		urgent: make(chan *op, 1024), idle: make(chan *op, 64),
		due:  make(chan struct{}, 1),
		stop: make(chan struct{}), opened: time.Now(),
	}
	db.asked.Store(int64(-contendedFor))
	if err := db.open(ctx); err != nil {
		db.giveUp()
		return nil, err
	}
	return db, nil
}

// giveUp closes what an opening that failed has opened, in the order of Close. The first
// error is the one that matters.
func (db *DB) giveUp() {
	if db.writer != nil {
		db.writer.close()
	}
	for _, conns := range []chan *conn{db.readers, db.listers} {
		for len(conns) > 0 {
			(<-conns).close()
		}
	}
	_ = db.pool.Close()
	if db.wal.f != nil {
		_ = db.wal.f.Close()
	}
}

func (db *DB) open(ctx context.Context) error {
	if err := migrate(ctx, db.pool, db.opts.Migrations); err != nil {
		return err
	}
	w, err := newConn(ctx, db.pool, db.opts.Trace)
	if err != nil {
		return err
	}
	db.writer = w
	for _, conns := range []chan *conn{db.readers, db.listers} {
		for range cap(conns) {
			r, err := newConn(ctx, db.pool, db.opts.Trace)
			if err != nil {
				return err
			}
			conns <- r
			if _, err := r.exec("PRAGMA query_only=ON"); err != nil {
				return err
			}
		}
	}
	if db.now == nil {
		var seen, at int64
		if err := w.row("SELECT seen FROM clock").Scan(&seen); err != nil {
			return fmt.Errorf("read the clock: %w", err)
		}
		start := time.Now()
		at, db.behind = begin(start.UnixMilli(), seen, db.opts.JumpMax)
		db.now = newClock(start, at).Now
	}
	if db.wal.f, err = os.Open(db.opts.Path + "-shm"); err != nil {
		return err
	}
	if db.syncer, err = newSyncer(db.opts.Path, db.opts.Sync); err != nil {
		return err
	}
	ended := make(chan struct{})
	db.done.Add(3)
	go db.writeLoop(ended)
	go db.syncLoop(ended)
	go db.checkpointLoop()
	return nil
}

func migrate(ctx context.Context, pool *sql.DB, migrations fs.FS) error {
	p, err := goose.NewProvider(goose.DialectSQLite3, pool, migrations)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if current > target {
		return fmt.Errorf("the database has schema version %d, this program knows %d: it was written by a newer Fairway; use that one", current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// Now is the database's clock, in milliseconds since the Unix epoch.
func (db *DB) Now() int64 { return db.now() }

// Behind is by how much the clock is behind the machine's, in ms, because that
// one had jumped ahead by more than Options.JumpMax when the database was opened.
func (db *DB) Behind() int64 { return db.behind }

// Close commits what is waiting and closes the database.
func (db *DB) Close() error {
	var err error
	db.closeOnce.Do(func() {
		close(db.stop)
		db.done.Wait()
		db.writer.close()
		for _, conns := range []chan *conn{db.readers, db.listers} {
			for range cap(conns) {
				(<-conns).close()
			}
		}
		// The lock goes last: until then nobody else may open the file. The WAL's index is
		// closed after all connections: that takes this process's locks off it.
		err = errors.Join(db.syncer.wal.Close(), db.pool.Close(), db.wal.f.Close(), db.lock.Close())
	})
	return err
}

// Read runs fn with a reading connection. Statements in fn see the database as
// of each statement.
func (db *DB) Read(ctx context.Context, fn func(*Tx) error) error {
	return db.with(ctx, db.readers, func(c *conn) error { return fn(&Tx{c: c, now: db.now()}) })
}

// List is Read for listings and statistics, which may take long. They have
// connections of their own, so that however many clients list, a look-up finds
// a reading connection (R17). A listing reads a bounded number of rows in each
// call and goes on in the next.
func (db *DB) List(ctx context.Context, fn func(*Tx) error) error {
	return db.with(ctx, db.listers, func(c *conn) error { return fn(&Tx{c: c, now: db.now()}) })
}

// Snapshot runs fn with a reading connection; all statements in fn see the
// database as of the first one. It blocks no writer.
func (db *DB) Snapshot(ctx context.Context, fn func(*Tx) error) error {
	return db.snapshot(ctx, db.readers, fn)
}

// ListSnapshot is Snapshot for listings; see List.
func (db *DB) ListSnapshot(ctx context.Context, fn func(*Tx) error) error {
	return db.snapshot(ctx, db.listers, fn)
}

func (db *DB) snapshot(ctx context.Context, conns chan *conn, fn func(*Tx) error) error {
	return db.with(ctx, conns, func(c *conn) (err error) {
		if _, err := c.exec("BEGIN"); err != nil {
			return err
		}
		// Also when fn panics: a connection left in its snapshot would answer from
		// the past for ever.
		defer func() {
			if _, endErr := c.exec("ROLLBACK"); err == nil {
				err = endErr
			}
		}()
		return fn(&Tx{c: c, now: db.now()})
	})
}

func (db *DB) with(ctx context.Context, conns chan *conn, fn func(*conn) error) error {
	select {
	case c := <-conns:
		defer func() { conns <- c }()
		return fn(c)
	default:
	}
	select {
	case c := <-conns:
		defer func() { conns <- c }()
		return fn(c)
	case <-ctx.Done():
		return ctx.Err()
	case <-db.stop:
		return ErrClosed
	}
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("database is closed")

// Write runs fn in a transaction and returns when it is durable, or with an error: fn's
// own, with nothing changed, or that of a sync, in which case the change can be seen
// and may or may not last. fn may run more than once, so it must set its
// results afresh each time. A context that ends before fn has begun ends the
// wait; after that the outcome is always waited for.
func (db *DB) Write(ctx context.Context, fn func(*Tx) error) error {
	db.asked.Store(int64(time.Since(db.opened)))
	return db.enqueue(ctx, db.urgent, &op{fn: fn})
}

// Note is Write for what may be forgotten when the machine loses power, but
// not when the process is killed: it waits for no disk. What was written before
// a later Write is durable with it, in order.
func (db *DB) Note(ctx context.Context, fn func(*Tx) error) error {
	db.asked.Store(int64(time.Since(db.opened)))
	return db.enqueue(ctx, db.urgent, &op{fn: fn, lazy: true})
}

// Maintain is Write for the collector: clients' writes go first, and a full
// disk makes it use the space held in reserve.
func (db *DB) Maintain(ctx context.Context, fn func(*Tx) error) error {
	return db.reserved(ctx, db.idle, func() *op { return &op{fn: fn, upkeep: true} })
}

// MaintainNote is Maintain for what a loss of power may take back, as with Note.
// It has no commit that waits for the disk, by which a collection would hold up
// clients. Whoever acts on what it wrote where that cannot be taken back, such as
// by deleting a file, calls Sync first.
func (db *DB) MaintainNote(ctx context.Context, fn func(*Tx) error) error {
	return db.reserved(ctx, db.idle, func() *op { return &op{fn: fn, lazy: true, upkeep: true} })
}

// Relieve is Write for what makes room, or must not fail for the lack of it: a
// full disk makes it use the space held in reserve.
func (db *DB) Relieve(ctx context.Context, fn func(*Tx) error) error {
	db.asked.Store(int64(time.Since(db.opened)))
	return db.reserved(ctx, db.urgent, func() *op { return &op{fn: fn} })
}

func (db *DB) reserved(ctx context.Context, queue chan *op, next func() *op) error {
	o := next()
	err := db.enqueue(ctx, queue, o)
	if !IsFull(err) || db.opts.Release == nil {
		return err
	}
	// Also where nothing was left to release: another write may have released
	// it a moment ago, and there is room for this one too.
	db.opts.Release()
	if o.commit != 0 { // only its sync has failed: a second run would count twice
		return db.Durable(ctx, o.commit)
	}
	return db.enqueue(ctx, queue, next())
}

// contendedFor is how long after a client's write others are expected.
const contendedFor = 50 * time.Millisecond

// Contended reports that clients are writing. Maintenance then does better in
// small steps with pauses between them, since each step holds up who comes
// while it lasts (R5).
func (db *DB) Contended() bool {
	return int64(time.Since(db.opened))-db.asked.Load() < int64(contendedFor)
}

// Waiting is how many writes wait for their turn: of clients, and of maintenance.
func (db *DB) Waiting() (clients, maintenance int) { return len(db.urgent), len(db.idle) }

// Upkeep is the time for which the writer has worked for maintenance so far, its own
// commits included, and during which clients' writes could only wait: not that for which
// maintenance has waited for its turn, or for the disk together with clients.
func (db *DB) Upkeep() time.Duration { return time.Duration(db.upkeep.Load()) }

// IsFull reports that the disk had no room for a write: for a page of the
// database or of its log, or for the log's index in shared memory, of which
// SQLite reports an I/O error.
func IsFull(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code()&0xff == sqlite3.SQLITE_FULL || e.Code() == sqlite3.SQLITE_IOERR_SHMSIZE) ||
		errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Tx is what a function under Read, Snapshot or Write works with.
type Tx struct {
	c        *conn
	now      int64
	urgent   <-chan *op
	onCommit []func()
}

// Now is the database's clock at the beginning of the transaction, in
// milliseconds since the Unix epoch (invariant R11).
func (tx *Tx) Now() int64 { return tx.now }

// Exec runs a statement and returns the number of rows it changed.
func (tx *Tx) Exec(query string, args ...any) (int64, error) {
	res, err := tx.c.exec(query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// Query runs a query. The caller closes the rows before its next statement.
func (tx *Tx) Query(query string, args ...any) (*sql.Rows, error) { return tx.c.query(query, args...) }

// Row runs a query that has at most one row; Scan answers sql.ErrNoRows for none.
func (tx *Tx) Row(query string, args ...any) *sql.Row { return tx.c.row(query, args...) }

// ClientsWait reports that a client's write waits for its turn. Maintenance that can be
// cut anywhere ends its transaction then and goes on in another (R5).
func (tx *Tx) ClientsWait() bool { return len(tx.urgent) > 0 }

// OnCommit has fn called after the commit and before Write returns.
func (tx *Tx) OnCommit(fn func()) { tx.onCommit = append(tx.onCommit, fn) }

// All runs a query and calls scan for each row.
func (tx *Tx) All(scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err below tells what matters
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// conn is a connection with its prepared statements. Statements run without a
// context: database/sql would start a goroutine for each, and a write must not
// be cut off in the middle.
type conn struct {
	c     *sql.Conn
	stmts map[string]*sql.Stmt
	trace func(query string, args []any) // may be nil
}

func newConn(ctx context.Context, pool *sql.DB, trace func(string, []any)) (*conn, error) {
	c, err := pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{c: c, stmts: map[string]*sql.Stmt{}, trace: trace}, nil
}

// close returns the connection to the pool. SQLite keeps a connection open as
// long as a statement of it is, and with it the WAL, which the last one to close
// moves into the database.
func (c *conn) close() {
	for _, s := range c.stmts {
		_ = s.Close() // nothing is under way
	}
	_ = c.c.Close() // the pool's Close tells
}

func (c *conn) prepare(query string, args []any) (*sql.Stmt, error) {
	if c.trace != nil {
		c.trace(query, args)
	}
	if s, ok := c.stmts[query]; ok {
		return s, nil
	}
	s, err := c.c.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = s
	return s, nil
}

func (c *conn) exec(query string, args ...any) (sql.Result, error) {
	s, err := c.prepare(query, args)
	if err != nil {
		return nil, err
	}
	return s.Exec(args...)
}

func (c *conn) query(query string, args ...any) (*sql.Rows, error) {
	s, err := c.prepare(query, args)
	if err != nil {
		return nil, err
	}
	return s.Query(args...)
}

func (c *conn) row(query string, args ...any) *sql.Row {
	s, err := c.prepare(query, args)
	if err != nil {
		return c.c.QueryRowContext(context.Background(), query, args...) // carries the error to Scan
	}
	return s.QueryRow(args...)
}

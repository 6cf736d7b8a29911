package sim

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// world is the system under test: a real registry without its faces, over one
// directory, that lives, dies and is opened again.
type world struct {
	dir    string
	driver *crashDriver
	clock  atomic.Int64 // ms
	real   bool         // the database's own clock instead, and everything at once
	lives  int

	disk     *fsblob.Store
	objects  *recorder
	faulty   *blobtest.Faulty
	fuse     *fuse
	store    *meta.Store
	sessions *upload.Sessions
	gc       *gc.Collector
	audit    *audit
}

func (w *world) path() string { return filepath.Join(w.dir, "fairway.db") }

// policy is the server's own.
func serverPolicy() meta.Policy {
	return meta.Policy{Window: meta.Duration(2 * time.Hour), Trash: meta.Duration(24 * time.Hour)}
}

func newWorld(dir string, d *crashDriver, template []byte, real bool) (*world, error) {
	w := &world{dir: dir, driver: d, real: real}
	w.clock.Store(1_700_000_000_000)
	w.objects = &recorder{w: w, sizes: map[string]int64{}, deleted: map[string]bool{}}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(w.path() + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if err := os.WriteFile(w.path(), template, 0o600); err != nil {
		return nil, err
	}
	return w, w.open()
}

// newTemplate is an empty, migrated database. Histories begin with a copy.
func newTemplate(dir string) ([]byte, error) {
	s, err := meta.Open(context.Background(), meta.Options{Path: filepath.Join(dir, "template.db"), Now: func() int64 { return 1 }})
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "template.db"))
}

// open starts a life.
func (w *world) open() (err error) {
	ctx := context.Background()
	if w.disk, err = fsblob.Open(w.dir, fsblob.Options{Reserve: -1, MinFree: -1}); err != nil {
		return err
	}
	w.objects.Store = w.disk
	w.faulty = blobtest.NewFaulty(w.objects)
	w.fuse = &fuse{others: w.faulty.Crashed}
	w.driver.guard(w.path(), w.fuse)
	// One worker, so that the order of storage operations replays.
	now, workers := w.clock.Load, 1
	if w.real {
		now, workers = nil, 4
	}
	if w.store, err = meta.Open(ctx, meta.Options{Path: w.path(), Driver: driverName, Now: now}); err != nil {
		return errors.Join(err, w.disk.Close())
	}
	w.sessions = upload.New(w.store, mortal{w.faulty, w.fuse}, upload.Options{})
	w.gc = gc.New(w.store, mortal{w.faulty, w.fuse}, gc.Options{Policy: serverPolicy(), Workers: workers, Busy: w.sessions.Busy})
	w.audit, err = openAudit(w.path())
	return err
}

// mortal is the blob store of a process that may also end in its database.
type mortal struct {
	*blobtest.Faulty
	fuse *fuse
}

func (m mortal) check() {
	if m.fuse.dead() && !m.Crashed() {
		m.Crash()
	}
}

func (m mortal) Append(ctx context.Context, key string, offset int64) (blob.Appender, error) {
	m.check()
	a, err := m.Faulty.Append(ctx, key, offset)
	if err != nil {
		return nil, err
	}
	return mortalAppender{a, m}, nil
}

func (m mortal) Open(ctx context.Context, key string) (blob.Reader, error) {
	m.check()
	return m.Faulty.Open(ctx, key)
}

func (m mortal) Delete(ctx context.Context, key string) (int64, error) {
	m.check()
	return m.Faulty.Delete(ctx, key)
}

type mortalAppender struct {
	blob.Appender
	m mortal
}

func (a mortalAppender) Write(p []byte) (int, error) { a.m.check(); return a.Appender.Write(p) }
func (a mortalAppender) Commit() error               { a.m.check(); return a.Appender.Commit() }

func (w *world) crashed() bool { return w.fuse.dead() }

// close ends a life in good order.
func (w *world) close() error {
	w.gc.Close()
	return errors.Join(w.audit.close(), w.store.Close(), w.disk.Close())
}

// kill ends a life as SIGKILL does: what the database's files hold at this
// moment is what the next life finds. powerLoss also takes the bytes that the
// blob store had not made durable.
func (w *world) kill(powerLoss bool) error {
	w.fuse.blow()
	w.faulty.Crash()
	files := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(w.path() + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			files[w.path()+suffix] = b
		}
	}
	w.gc.Close()
	_ = w.store.Close() // it may not have been able to say goodbye
	if powerLoss {
		w.objects.lenient = true
		err := w.faulty.PowerLoss(context.Background())
		w.objects.lenient = false
		if err != nil {
			return fmt.Errorf("power loss: %w", err)
		}
	}
	if err := errors.Join(w.audit.close(), w.disk.Close()); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(w.path() + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for path, b := range files {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) restart(crash, powerLoss bool) error {
	w.lives++
	end := w.close
	if crash {
		end = func() error { return w.kill(powerLoss) }
	}
	if err := end(); err != nil {
		return err
	}
	return w.open()
}

// recorder knows what is in the store and holds the callers to R6: each
// effect on bytes is looked at beside the database as it is at that moment.
type recorder struct {
	blob.Store
	w       *world
	lenient bool // the disk itself loses bytes; nobody asked for it

	mu      sync.Mutex
	sizes   map[string]int64 // of what is there; the size is of the last look
	deleted map[string]bool  // keys that may never be written again
	freed   int64            // bytes deleted since the test last asked
	wrong   error            // the first violation
}

func (r *recorder) violated(format string, args ...any) {
	if r.wrong == nil {
		r.wrong = fmt.Errorf(format, args...)
	}
}

func (r *recorder) Append(ctx context.Context, key string, offset int64) (blob.Appender, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.lenient {
		o, err := r.w.audit.owners(key)
		switch {
		case err != nil:
			return nil, err
		case r.deleted[key]:
			r.violated("R6: key %s is written after its delete", key)
		case o != owners{uploads: 1}:
			r.violated("R6: key %s is written while the rows that name it are %+v", key, o)
		}
	}
	a, err := r.Store.Append(ctx, key, offset)
	if err == nil {
		r.sizes[key] = offset
	}
	return a, err
}

func (r *recorder) Delete(ctx context.Context, key string) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lenient {
		delete(r.sizes, key)
		return r.Store.Delete(ctx, key)
	}
	o, err := r.w.audit.owners(key)
	if err != nil {
		return 0, err
	}
	// Of two runs at once, the second may come when the first has recorded it.
	late := r.w.real && o == owners{} && r.deleted[key]
	if (o != owners{purges: 1}) && !late {
		r.violated("R6: key %s is deleted while the rows that name it are %+v", key, o)
	}
	freed, err := r.Store.Delete(ctx, key)
	if err == nil {
		r.freed += freed
		r.deleted[key] = true
		delete(r.sizes, key)
	}
	return freed, err
}

// takeFreed returns the bytes deleted since the last call.
func (r *recorder) takeFreed() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.freed
	r.freed = 0
	return n
}

func (r *recorder) violation() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrong
}

// keys lists what is in the store, without the cost of a walk.
func (r *recorder) keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := make([]string, 0, len(r.sizes))
	for k := range r.sizes {
		keys = append(keys, k)
	}
	return keys
}

// walk lists what is really on disk.
func (w *world) walk() (map[string]int64, error) {
	found := map[string]int64{}
	err := w.disk.Walk(context.Background(), "", func(i blob.Info) error {
		found[i.Key] = i.Size
		return nil
	})
	return found, err
}

func (w *world) read(key string) ([]byte, error) {
	r, err := w.disk.Open(context.Background(), key)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// owners counts the rows that name a key.
type owners struct{ uploads, blobs, purges int }

// audit looks at the database from outside, through a connection of its own.
type audit struct {
	db    *sql.DB
	stmts map[string]*sql.Stmt
	mu    sync.Mutex
}

func openAudit(path string) (*audit, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=query_only(ON)&_pragma=busy_timeout(10000)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return &audit{db: db, stmts: map[string]*sql.Stmt{}}, nil
}

func (a *audit) close() error { return a.db.Close() }

func (a *audit) stmt(query string) (*sql.Stmt, error) {
	if s, ok := a.stmts[query]; ok {
		return s, nil
	}
	s, err := a.db.Prepare(query)
	if err == nil {
		a.stmts[query] = s
	}
	return s, err
}

// each calls scan for each row of a query.
func (a *audit) each(query string, args []any, scan func(*sql.Rows) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.stmt(query)
	if err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	rows, err := s.Query(args...)
	if err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	defer func() { _ = rows.Close() }() // Err tells what matters
	for rows.Next() {
		if err := scan(rows); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
	}
	return rows.Err()
}

func (a *audit) owners(key string) (o owners, err error) {
	err = a.each(`SELECT (SELECT count(*) FROM uploads WHERE key = ?1), (SELECT count(*) FROM blobs WHERE key = ?1), (SELECT count(*) FROM purges WHERE key = ?1)`,
		[]any{key}, func(r *sql.Rows) error { return r.Scan(&o.uploads, &o.blobs, &o.purges) })
	return o, err
}

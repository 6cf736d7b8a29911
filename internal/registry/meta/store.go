package meta

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Options says what to open.
type Options struct {
	Path    string       // SQLite file
	Driver  string       // database/sql driver; "" = sqlite
	Now     func() int64 // ms since the Unix epoch; nil = the database's own clock
	Release func() bool  // frees disk space held in reserve for maintenance
	Owner   string       // what opens it, for the message to whoever is refused meanwhile
	JumpMax int64        // ms that the machine's clock may have gone on since the last start; see sqldb.Options

	// Sync is the fsync of the database's log. See sqldb.Options.
	Sync func(*os.File) error

	// Trace is called with each statement before it runs; nil = not at all. See
	// sqldb.Options.
	Trace func(query string, args []any)
}

// Store is the metadata of a registry. All methods may be called at once.
type Store struct {
	db        *sqldb.DB
	manifests *cache[*manifestEntry]
	blobs     *cache[*blobEntry]
	tags      *cache[*tagList]
	preheats  preheatSignals
	stats     statsMemory[Stats]
	nodeStats statsMemory[NodeStats]
	kinLeft   atomic.Bool // the table kin may have rows
	roots     idSet       // manifests whose push or restore has more to do
	pushes    idSet       // manifests that are being staged
}

// Sizes of the exact caches, in bytes. Manifests of a few KiB: some thousands.
const (
	manifestCacheBytes = 16 << 20
	blobCacheBytes     = 8 << 20
	tagCacheBytes      = 4 << 20
)

// Open opens the metadata and brings its schema up to date.
func Open(ctx context.Context, o Options) (*Store, error) {
	root, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, sqldb.Options{Path: o.Path, Migrations: root, Driver: o.Driver, Now: o.Now, Release: o.Release, Owner: o.Owner, Trace: o.Trace, Sync: o.Sync, JumpMax: o.JumpMax})
	if err != nil {
		return nil, err
	}
	s := &Store{
		db:        db,
		manifests: newCache(manifestCacheBytes, func(e *manifestEntry) int { return len(e.Content) + 256 }),
		blobs:     newCache(blobCacheBytes, func(*blobEntry) int { return 256 }),
		tags:      newCache(tagCacheBytes, (*tagList).cost),
		preheats:  newPreheatSignals(),
	}
	if err := errors.Join(s.interruptRuns(ctx), s.readUnread(ctx), s.kinPending(ctx)); err != nil {
		_ = db.Close() // the first error is the one that matters
		return nil, err
	}
	return s, nil
}

// Close waits for running writes and closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Now is the database's clock, in milliseconds since the Unix epoch.
func (s *Store) Now() int64 { return s.db.Now() }

// ClockBehind is by how much that clock is behind the machine's, in ms, because
// the machine's had jumped ahead at the start by more than is believed.
func (s *Store) ClockBehind() int64 { return s.db.Behind() }

// LeaseMemory is how long the end of a lease is remembered at least, in ms.
const LeaseMemory = leaseMemory

// Contended reports that clients are writing, so that a collector had better
// take small steps.
func (s *Store) Contended() bool { return s.db.Contended() }

// Upkeep is the time that collectors have kept the writer busy so far.
func (s *Store) Upkeep() time.Duration { return s.db.Upkeep() }

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.db.Read(ctx, func(tx *sqldb.Tx) error {
		var one int
		return tx.Row("SELECT 1").Scan(&one)
	})
}

// Time renders a database time.
func Time(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func timePtr(ms sql.NullInt64) *time.Time {
	if !ms.Valid {
		return nil
	}
	t := Time(ms.Int64)
	return &t
}

// ensureRepo returns the id of a repository, which it makes if missing.
func ensureRepo(tx *sqldb.Tx, repo oci.Name) (id int64, err error) {
	if id, err = repoID(tx, repo); !errors.Is(err, fault.NotFound) {
		return id, err
	}
	err = tx.Row("INSERT INTO repositories (name, created_at) VALUES (?, ?) RETURNING id", string(repo), tx.Now()).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("create repository %s: %w", repo, err)
	}
	return id, nil
}

func repoID(tx *sqldb.Tx, repo oci.Name) (id int64, err error) {
	err = tx.Row("SELECT id FROM repositories WHERE name = ?", string(repo)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nameUnknown(repo)
	}
	return id, err
}

// told says in words that the disk is full, where that is what err is about.
func told(err error) error {
	if !sqldb.IsFull(err) {
		return err
	}
	return fault.Wrap(fault.Full, err, "the registry's disk is full: delete images that are not needed and run a collection, or add space, then try again").WithCode(oci.CodeStorageFull)
}

func nameUnknown(repo oci.Name) error {
	return fault.New(fault.NotFound, "there is no repository %s", repo).WithCode(oci.CodeNameUnknown)
}

func manifestUnknown(repo oci.Name, ref string) error {
	return fault.New(fault.NotFound, "repository %s has no manifest %s", repo, ref).WithCode(oci.CodeManifestUnknown)
}

func blobUnknown(repo oci.Name, d oci.Digest) error {
	return fault.New(fault.NotFound, "repository %s has no blob %s", repo, d).WithCode(oci.CodeBlobUnknown)
}

// ConfirmAhead is how far ahead of now a confirmation is written, in ms. A
// confirmation within that time of the last one finds it still ahead and needs
// no write; what it costs is that things stay that much longer.
const ConfirmAhead = 1000

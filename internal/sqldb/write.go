package sqldb

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// op is one waiting write.
type op struct {
	fn     func(*Tx) error
	lazy   bool         // its commit need not wait for the disk
	sync   bool         // it changes a page, so that its commit does wait
	upkeep bool         // of maintenance
	state  atomic.Int32 // opWaiting → opRunning or opGivenUp
	tx     *Tx
	err    error
	done   chan struct{}
}

const (
	opWaiting = iota
	opRunning
	opGivenUp
)

func (db *DB) enqueue(ctx context.Context, queue chan *op, o *op) error {
	o.done = make(chan struct{})
	select {
	case <-db.stop:
		return ErrClosed
	default:
	}
	select {
	case queue <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.stop:
		return ErrClosed
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opWaiting, opGivenUp) {
			return ctx.Err()
		}
	case <-db.stop:
		// The loop drains what was queued before it ends; an op that slipped in
		// after the drain is given up here.
		select {
		case <-o.done:
			return o.err
		case <-time.After(closeGrace):
			if o.state.CompareAndSwap(opWaiting, opGivenUp) {
				return ErrClosed
			}
		}
	}
	<-o.done
	return o.err
}

// closeGrace is how long a write that raced with Close waits to be drained.
const closeGrace = 2 * time.Second

func (db *DB) writeLoop() {
	defer db.done.Done()
	clock := time.NewTicker(clockIv)
	defer clock.Stop()
	first := &op{fn: db.saveClock, done: make(chan struct{}), lazy: true} // rides along with the first commit
	for {
		// Clients first; maintenance when no client waits.
		var next *op
		select {
		case next = <-db.urgent:
		default:
			select {
			case next = <-db.urgent:
			case next = <-db.idle:
			case <-clock.C:
				next = &op{fn: db.saveClock, done: make(chan struct{})}
			case <-db.stop:
				db.drain()
				return
			}
		}
		group := db.gather(next)
		if first != nil {
			group, first = append(group, first), nil
		}
		db.commitGroup(group)
	}
}

// The writer waits for clients that it expects from commits of this duration on,
// and so long at most.
const (
	waitFrom = time.Millisecond
	waitMax  = time.Millisecond
)

func (db *DB) drain() {
	last := &op{fn: db.saveClock, done: make(chan struct{})}
	db.commitGroup([]*op{last})
	for {
		select {
		case o := <-db.urgent:
			db.commitGroup(db.gather(o))
		case o := <-db.idle:
			db.commitGroup(db.gather(o))
		default:
			return
		}
	}
}

// saveClock persists the clock, so that times do not run backwards when the
// machine's clock was set back while the server was down. Without the reading that
// goes with the first commit, a start after an early kill would believe any clock.
func (db *DB) saveClock(tx *Tx) error {
	if db.opts.Now != nil {
		return nil
	}
	_, err := tx.Exec("UPDATE clock SET seen = max(seen, ?)", tx.Now())
	return err
}

// gather takes what else is waiting, so that one commit serves all: the
// clients' writes, and one of maintenance at the most.
func (db *DB) gather(first *op) []*op {
	group := []*op{first}
	var patience <-chan time.Time
	for len(group) < groupMax {
		select {
		case o := <-db.urgent:
			group = append(group, o)
			continue
		default:
		}
		// The clients of the last group come again at once, but not all in the same
		// instant. A commit costs more than to wait for them.
		if len(group) >= db.lastGroup || db.lastTook < waitFrom {
			break
		}
		if patience == nil {
			patience = time.After(min(db.lastTook/8, waitMax))
		}
		select {
		case o := <-db.urgent:
			group = append(group, o)
			continue
		case <-patience:
		}
		break
	}
	return db.withMaintenance(group)
}

// withMaintenance lets one maintenance write ride along, so that the collector
// goes on under constant load without a commit of its own.
func (db *DB) withMaintenance(group []*op) []*op {
	select {
	case o := <-db.idle:
		return append(group, o)
	default:
		return group
	}
}

func (db *DB) commitGroup(group []*op) {
	live := group[:0]
	for _, o := range group {
		if o.state.CompareAndSwap(opWaiting, opRunning) {
			live = append(live, o)
		}
	}
	if len(live) == 0 {
		return
	}
	began := time.Now()
	defer func() { db.lastGroup, db.lastTook = len(live), time.Since(began) }()
	if err := db.transact(live); err != nil && len(live) > 1 {
		// One of them broke the transaction for all. Alone, each meets its own fate.
		for _, o := range live {
			if err := db.transact([]*op{o}); err != nil && o.err == nil {
				o.err = err
			}
			db.finish(o)
		}
		return
	} else if err != nil && live[0].err == nil {
		live[0].err = err
	}
	for _, o := range live {
		db.finish(o)
	}
}

func (db *DB) finish(o *op) {
	if o.err == nil {
		for _, fn := range o.tx.onCommit {
			fn()
		}
	}
	close(o.done)
}

// transact runs the group in one transaction. An error means that nothing of
// it was committed; an op's own error is in the op.
func (db *DB) transact(group []*op) error {
	c := db.writer
	if err := db.setPace(group); err != nil {
		return err
	}
	if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	now := db.now()
	for _, o := range group {
		o.err, o.tx = nil, &Tx{c: c, now: now}
		if _, err := c.exec("SAVEPOINT op"); err != nil {
			return db.abort(fmt.Errorf("savepoint: %w", err))
		}
		began := time.Now()
		o.err = runOp(o)
		if o.upkeep {
			db.upkeep.Add(int64(time.Since(began)))
		}
		if o.err != nil {
			if _, err := c.exec("ROLLBACK TO op"); err != nil {
				// A full disk or an I/O error ends the whole transaction.
				return db.abort(fmt.Errorf("%w (transaction lost: %w)", o.err, err))
			}
		}
		if _, err := c.exec("RELEASE op"); err != nil {
			return db.abort(fmt.Errorf("release: %w", err))
		}
	}
	if db.lax {
		db.unsynced.Store(true)
	}
	if _, err := c.exec("COMMIT"); err != nil {
		return db.abort(fmt.Errorf("commit: %w", err))
	}
	for _, o := range group {
		// SQLite does not wait for the disk at a commit that has changed no page, and
		// of other writes nobody knows whether they have.
		if o.sync && o.err == nil {
			db.unsynced.Store(false)
		}
	}
	return nil
}

// setPace has the next commit wait for the disk unless all of the group can do
// without.
func (db *DB) setPace(group []*op) error {
	lax := true
	for _, o := range group {
		lax = lax && o.lazy
	}
	if lax == db.lax {
		return nil
	}
	mode := "PRAGMA synchronous=FULL"
	if lax {
		mode = "PRAGMA synchronous=NORMAL" // in WAL mode: no sync at commit
	}
	if _, err := db.writer.exec(mode); err != nil {
		return fmt.Errorf("set the pace of commits: %w", err)
	}
	db.lax = lax
	return nil
}

func (db *DB) abort(err error) error {
	// Fails where SQLite has rolled back by itself; either way nothing is left.
	_, _ = db.writer.exec("ROLLBACK")
	return err
}

func runOp(o *op) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v\n%s", p, debug.Stack())
		}
	}()
	return o.fn(o.tx)
}

// checkpointLoop moves the WAL into the database file beside the writer, so
// that no client's commit pays for it.
func (db *DB) checkpointLoop() {
	defer db.done.Done()
	c, err := newConn(context.Background(), db.pool, nil)
	if err != nil {
		return // SQLite still checkpoints at wal_autocheckpoint and at close
	}
	defer c.close()
	tick := time.NewTicker(checkpointIv)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_, _ = db.checkpoint(c) // the next tick tries again; the WAL only grows meanwhile
		case <-db.stop:
			return
		}
	}
}

// checkpoint moves what it can of a WAL that is long enough. busy reports that it has
// waited for a reader or a writer.
func (db *DB) checkpoint(c *conn) (busy bool, err error) {
	if walSize(db.opts.Path) < checkpointKB<<10 {
		return false, nil
	}
	// PASSIVE waits for nobody and nobody waits for it; what it cannot move now
	// it moves at a later tick.
	var log, done int
	err = c.row("PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &log, &done)
	return busy, err
}

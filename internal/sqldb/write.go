package sqldb

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
)

// op is one waiting write.
type op struct {
	fn     func(*Tx) error
	lazy   bool         // nobody waits until its commit is durable
	upkeep bool         // of maintenance
	commit uint64       // the number of its commit; 0 before that
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

func (db *DB) writeLoop(ended chan<- struct{}) {
	defer db.done.Done()
	defer close(ended)
	clock := time.NewTicker(clockIv)
	defer clock.Stop()
	first := &op{fn: db.saveClock, done: make(chan struct{}), lazy: true} // rides along with the first commit
	turns := 0                                                            // of clients since the last one of maintenance
	for {
		var next *op
		// Clients first; maintenance when no client waits, or after enough of them.
		if turns >= maintainEvery {
			select {
			case next = <-db.idle:
			default:
			}
		}
		if next == nil {
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
		}
		if turns++; next.upkeep {
			turns = 0
		}
		group := db.gather(next)
		if first != nil {
			group, first = append(group, first), nil
		}
		db.commitGroup(group)
	}
}

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

// gather takes what else is waiting of clients' writes, so that one transaction serves
// all. Maintenance goes alone, so that no client waits for it longer than it must.
func (db *DB) gather(first *op) []*op {
	group := []*op{first}
	for !first.upkeep && len(group) < groupMax {
		select {
		case o := <-db.urgent:
			group = append(group, o)
			continue
		default:
		}
		break
	}
	return group
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
	if err := db.transact(live); err != nil && len(live) > 1 {
		// One of them broke the transaction for all. Alone, each meets its own fate.
		for _, o := range live {
			if err := db.transact([]*op{o}); err != nil && o.err == nil {
				o.err = err
			}
		}
	} else if err != nil && live[0].err == nil {
		live[0].err = err
	}
	db.finish(live)
}

// finish lets the callers go: those of writes that failed or need not be durable at
// once, the others when they are.
func (db *DB) finish(group []*op) {
	var durable []*op
	for _, o := range group {
		if o.err == nil {
			for _, fn := range o.tx.onCommit {
				fn()
			}
		}
		if o.err == nil && !o.lazy {
			durable = append(durable, o)
		} else {
			close(o.done)
		}
	}
	if len(durable) == 0 {
		return
	}
	if err := db.syncer.add(durable...); err != nil {
		for _, o := range durable { // it ends after the writer, so this cannot be
			o.err = err
			close(o.done)
		}
	}
}

// transact runs the group in one transaction. An error means that nothing of
// it was committed; an op's own error is in the op.
func (db *DB) transact(group []*op) error {
	c := db.writer
	db.restartWAL()
	if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	now := db.now()
	for _, o := range group {
		o.err, o.tx = nil, &Tx{c: c, now: now, urgent: db.urgent}
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
	began := time.Now()
	seq := db.syncer.committed.Load() + 1
	if slices.ContainsFunc(group, func(o *op) bool { return o.err == nil && !o.lazy }) {
		db.syncer.promised.Store(seq)
	}
	_, err := c.exec("COMMIT")
	db.syncer.over(seq)
	if err != nil {
		return db.abort(fmt.Errorf("commit: %w", err))
	}
	if group[0].upkeep {
		db.upkeep.Add(int64(time.Since(began)))
	}
	for _, o := range group {
		if o.err == nil {
			o.commit = seq
		}
	}
	if db.checkpointDue() {
		select {
		case db.due <- struct{}{}:
		default:
		}
	}
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

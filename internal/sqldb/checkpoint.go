package sqldb

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// The checkpointer moves committed pages from the WAL into the database file beside
// the writer, in small portions. While a portion is synced, every other sync of the
// disk waits with it, so one large portion would hold up clients' commits as a whole
// (R5).
const (
	checkpointPages = 1024                  // of the WAL that make a checkpoint due
	checkpointIv    = 25 * time.Millisecond // between two checkpoints
	restartPages    = 4096                  // of the WAL from which on the writer has it restarted
)

// checkpointLoop checkpoints when the writer has committed enough.
func (db *DB) checkpointLoop() {
	defer db.done.Done()
	c, err := newConn(context.Background(), db.pool, nil)
	if err != nil {
		return // SQLite still checkpoints at wal_autocheckpoint and at close
	}
	defer c.close()
	pause := time.NewTicker(checkpointIv)
	defer pause.Stop()
	for {
		select {
		case <-db.due:
			if !db.restart.Load() { // otherwise it is the writer's turn
				_, _ = db.checkpoint(c) // a later one tries again; the WAL only grows meanwhile
			}
		case <-db.stop:
			return
		}
		select {
		case <-pause.C:
		case <-db.stop:
			return
		}
	}
}

func (db *DB) checkpointDue() bool {
	log, moved := db.wal.pages()
	return log-moved >= checkpointPages
}

// checkpoint moves what it can of a WAL that is long enough. busy reports that it has
// waited for a reader or a writer.
func (db *DB) checkpoint(c *conn) (busy bool, err error) {
	if !db.checkpointDue() || db.syncer.distrusted.Load() {
		return false, nil
	}
	// PASSIVE waits for nobody and nobody waits for it; what it cannot move now
	// it moves at a later time.
	busy, log, err := db.passive(c)
	if err == nil && log >= restartPages {
		db.restart.Store(true)
	}
	return busy, err
}

// passive moves what it can. It begins with a sync of the WAL. If that fails, the next
// checkpoint would take it for successful and move pages that the WAL on the disk may not
// have: after a crash, older ones from its beginning would hide them.
func (db *DB) passive(c *conn) (busy bool, log int, err error) {
	if c == db.writer { // which waits for no other checkpoint
		if !db.syncer.moving.TryLock() {
			return true, 0, nil
		}
	} else {
		db.syncer.moving.Lock()
	}
	defer db.syncer.moving.Unlock()
	var moved int
	err = c.row("PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &log, &moved)
	if err != nil && mayBeOfSync(err) {
		db.syncer.distrusted.Store(true)
	}
	return busy, log, err
}

// mayBeOfSync says whether a checkpoint may have failed at a sync. One that could not write
// has synced the log before: where a quota is used up, writes that fit into the log must go on,
// or nothing would ever be freed.
func mayBeOfSync(err error) bool {
	var e interface{ Code() int } // *sqlite.Error
	if !errors.As(err, &e) {
		return !IsFull(err)
	}
	return e.Code()&0xff == sqlite3.SQLITE_IOERR && e.Code() != sqlite3.SQLITE_IOERR_WRITE && !IsFull(err)
}

// restartWAL has SQLite write the WAL from its beginning again. It does so at the first
// commit after all of it has been moved, which the checkpointer alone never achieves
// beside a writer that is always busy. Only the writer's last commits are left to move here.
func (db *DB) restartWAL() {
	if !db.restart.Load() || db.syncer.distrusted.Load() {
		return
	}
	// Busy is a checkpoint that is under way: then before the next transaction.
	if busy, _, err := db.passive(db.writer); err == nil && !busy {
		db.restart.Store(false)
	}
}

// walIndex reads the index of the WAL, a file that all connections share.
type walIndex struct{ f *os.File }

// pages returns the length of the WAL and how much of it has been moved. Both are hints:
// nothing keeps SQLite from changing them meanwhile. Source: "WAL-mode File Format",
// sections 2.1.1 and 2.1.2: mxFrame and nBackfill, in the machine's byte order.
func (w walIndex) pages() (log, moved int) {
	var head [100]byte
	if _, err := w.f.ReadAt(head[:], 0); err != nil {
		return 0, 0
	}
	return int(binary.NativeEndian.Uint32(head[16:])), int(binary.NativeEndian.Uint32(head[96:]))
}

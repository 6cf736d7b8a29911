package sqldb

import "context"

// GroupMax is how many writes of clients share a commit at most.
const GroupMax = groupMax

// Checkpoint does what is done at each tick.
func (db *DB) Checkpoint(ctx context.Context) (busy bool, err error) {
	c, err := newConn(ctx, db.pool, nil)
	if err != nil {
		return false, err
	}
	defer c.close()
	return db.checkpoint(c)
}

// Impatient has moving the log wait for readers no longer than it must.
func Impatient(db *DB) { db.syncer.patience.Store(1) }

// CheckpointFails has a checkpoint fail, on a connection that is closed.
func (db *DB) CheckpointFails(ctx context.Context) error {
	c, err := newConn(ctx, db.pool, nil)
	if err != nil {
		return err
	}
	c.close()
	_, err = db.checkpoint(c)
	return err
}

// RestartWAL does what is done before each transaction once the log is long.
func (db *DB) RestartWAL(ctx context.Context) error {
	return db.Note(ctx, func(*Tx) error { db.restart.Store(true); return nil })
}

// MayBeOfSync says whether a checkpoint that failed may have failed at a sync.
var MayBeOfSync = mayBeOfSync

// WALPages is the length of the log.
func (db *DB) WALPages() int { log, _ := db.wal.pages(); return log }

// WALMoved is how much of it is in the database.
func (db *DB) WALMoved() int { _, moved := db.wal.pages(); return moved }

// RestartPages is the length from which on the log is begun again.
const RestartPages = restartPages

// WaitForDisk is how many wait for a sync.
func (db *DB) WaitForDisk() int {
	db.syncer.mu.Lock()
	defer db.syncer.mu.Unlock()
	return len(db.syncer.waiting)
}

// MaintainEvery is after how many commits of clients maintenance has its turn.
const MaintainEvery = maintainEvery

package sqldb

import "context"

// GroupMax is how many writes of clients share a commit at most.
const GroupMax = groupMax

// Waiting is how many writes wait for their turn: of clients, and of maintenance.
func (db *DB) Waiting() (clients, maintenance int) { return len(db.urgent), len(db.idle) }

// Checkpoint does what is done at each tick.
func (db *DB) Checkpoint(ctx context.Context) (busy bool, err error) {
	c, err := newConn(ctx, db.pool, nil)
	if err != nil {
		return false, err
	}
	defer c.close()
	return db.checkpoint(c)
}

package sqldb

// GroupMax is how many writes of clients share a commit at most.
const GroupMax = groupMax

// Waiting is how many writes wait for their turn: of clients, and of maintenance.
func (db *DB) Waiting() (clients, maintenance int) { return len(db.urgent), len(db.idle) }

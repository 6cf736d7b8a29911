package index

import "github.com/fairway-registry/fairway/internal/disk"

// LockDir makes the caller the only one on a directory of the cache until it
// closes the lock. The error is disk.ErrInUse where another process has it.
func LockDir(dir, owner string) (*disk.Lock, error) {
	return disk.LockDir(dir, disk.Claim{What: "the node's data directory", Owner: owner, Remedy: "use another directory (--data)"})
}

// Package evict owns the decision which blobs of the node's cache go, and the
// steps by which they go.
//
// judge.go is pure: facts, limits and a time become verdicts with reasons, and
// nothing is read or changed. The Evictor applies them: it gathers the facts,
// judges, claims the victims, asks the runtimes again, judges the claimed once
// more by the fresh answer, and only then has the store remove them, which
// refuses for its own part whatever is open, pinned or changed.
//
// What holds:
//
//   - Active data never goes (N1, N2): containers that are not exited, pulls
//     under way, open readers and writers, pins.
//   - Unknown counts as in use (N3): while a runtime cannot be asked nothing
//     goes, and what is newer than its answer is active.
//   - A container that starts between judgement and removal wins (N4).
//   - Eviction begins at the high watermark and ends at the low one, takes cold
//     before warm, and no blob without which the target is reached as well (N5).
//     Claimed bytes count as gone, so no pass takes the same excess twice.
//   - If what may go is not enough for an admission, nothing goes for it (N6).
//   - For an admission that nobody waits for, nothing but cold data goes.
//
// It refuses to touch bytes itself, to evict on a failed or partial reading of
// anything, and to call anything expired by a clock that has jumped.
// docs/eviction.md tells the whole of it.
package evict

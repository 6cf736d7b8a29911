// Package swarm owns what agents do together: they share blobs piece by piece
// while they are still downloading them, so that a crowd of nodes costs the
// registry about one copy (N9).
//
// An Engine is a fetch.Filler. It finds the other nodes that want or hold a
// blob, fetches its share from the origin and everything else from them, and
// serves what it has. Package plan decides; this package does: HTTP between
// agents, membership, the store, limits.
//
// What holds:
//   - N7: nothing that comes from a peer counts as more than a claim until the
//     store has checked the whole blob. When it does not match, the sources of
//     the pieces are checked against the origin, and who lied is banned.
//   - N8: with no peer, no leader and no cluster the engine is a plain download.
//   - N10: private content is asked for and handed out only under a fresh grant
//     of this node's own, on both sides, and only as content of the upstream that
//     it came from.
//   - Without the cluster's secret nobody reads, feeds or finds a piece.
//
// It refuses to write to disk or to remove from it; that is package piece's.
package swarm

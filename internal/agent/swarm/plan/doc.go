// Package plan decides who asks whom for which piece of a blob.
//
// It is pure: no sockets, no goroutines, no clock. Time is a duration since an
// epoch of the caller's choice and comes with every call, randomness comes from
// a source given at the start. The agent runs it over HTTP, the simulation runs
// the very same code over virtual links at up to 10,000 nodes.
//
// Three state machines work together:
//
//   - Download is one node's wish for one blob. It knows its neighbours (their
//     bitmaps, load and observed latency) and answers Next: which pieces to ask
//     of whom. Rarest first, the less loaded of two random holders, windows that
//     follow the latency, duplicates only when nothing else is left to ask.
//   - Uploads is one node's sending queue. It sends what it has sent least often
//     first, so that every piece soon has several holders, and gives no peer
//     more than its share of the slots.
//   - Directory is what the leading member of a blob keeps: who wants and holds
//     it, and a lease on each piece that somebody fetches from the origin. A
//     piece is leased once while its holder makes progress, so the swarm costs
//     the origin one copy; a node takes leases as fast as it returns them, so a
//     slow node holds nobody up.
//
// The leader of a blob is its first member by rendezvous hashing (Rank). All of
// the directory's state is soft: when a leader goes, everyone tells the next
// rank what they have.
//
// It refuses to trust: what a peer or a leader claims costs at most a timeout.
// A Download that starves fetches from the origin without a lease.
package plan

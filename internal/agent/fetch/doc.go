// Package fetch owns the downloads of a node: one for each blob, however many
// wait for it. It brings a blob's bytes from the cheapest place that has them
// into the piece cache while readers follow.
//
// A download belongs to the node and not to whoever asked first: it goes on
// when they leave, for a bounded time, and what it has brought stays for the
// next one. It tries one Filler after another (peers, the upstream), and ends
// well only when the cache has verified the whole blob (N7).
//
// It decides nobody's rights: whoever calls has made sure that the content may
// be handed out. An asker's Authorization goes to the upstream and into no
// file, log or metric. Where the cache has no room it streams through, verified
// on the way (N6).
package fetch

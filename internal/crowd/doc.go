// Package crowd sets the scene of a swarm with real processes: a registry behind
// one link whose every byte is counted, agents with links of their own, on
// loopback or in network namespaces on a bridge, and clients that pull through
// the agents as runtimes do and check every byte.
//
// The end-to-end tests of the swarm and its benchmark share it; no part of
// Fairway uses it. It ends only processes that it started, and removes only
// namespaces that it made.
package crowd

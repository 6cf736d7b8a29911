// Package node proves by tests what registry and agent promise together: what
// runs on a node stays at the registry, whichever of the two is away.
package node

// Package nodeapi owns the JSON that an agent and the registry exchange
// (report.go, node.go, preheat.go), and that of the agent's own admin API (cache.go).
//
// It is plain data: no I/O, no clock, no defaults. A field is never removed or
// given another meaning, since agents and registries of different versions talk
// to each other; a reader ignores fields that it does not know.
//
// Times in a report are ages, not moments: the clock of a node may be hours off
// that of the registry, which counts back from its own.
package nodeapi

//go:build race

package sim

// sparse is by how much fewer histories run where the race detector makes each
// one several times as slow. What is sequential has no races to show.
const sparse = 10

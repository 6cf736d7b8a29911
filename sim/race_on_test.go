//go:build race

package sim

// sparse is by how much fewer histories run, and stride of how many failpoints
// one is tried, where the race detector makes each
// one several times as slow. What is sequential has no races to show.
const (
	sparse = 10
	stride = 25
)

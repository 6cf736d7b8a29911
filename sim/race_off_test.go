//go:build !race

package sim

const (
	sparse = 1
	stride = 1
)

package plan

import (
	"hash/fnv"
	"sort"
)

// Node names a member of the swarm.
type Node string

// Ranks is how many members of a blob may come to lead its directory.
const Ranks = 3

// Rank returns the k members that come first for key by rendezvous hashing
// (highest random weight): who joins or leaves changes the ranks only of the
// keys that it leads or led itself.
func Rank(key string, members []Node, k int) []Node {
	type weighted struct {
		node   Node
		weight uint64
	}
	best := make([]weighted, 0, k+1)
	for _, m := range members {
		w := weighted{m, weight(key, m)}
		at := sort.Search(len(best), func(i int) bool {
			return best[i].weight < w.weight || best[i].weight == w.weight && best[i].node > w.node
		})
		if at >= k {
			continue
		}
		best = append(best, weighted{})
		copy(best[at+1:], best[at:])
		best[at] = w
		if len(best) > k {
			best = best[:k]
		}
	}
	nodes := make([]Node, len(best))
	for i, w := range best {
		nodes[i] = w.node
	}
	return nodes
}

func weight(key string, m Node) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(m))
	// FNV's high bits change little for names that differ in their last byte;
	// the finalizer of SplitMix64 spreads them.
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

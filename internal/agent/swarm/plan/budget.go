package plan

import (
	"cmp"
	"slices"
	"time"
)

// Of how many pieces a blob is made, and which blobs there are, are claims of members.
// A directory's memory is bounded in bytes, whatever they claim.
const (
	entryBytes  = 512 // beside what grows with pieces, members and leases
	memberBytes = 512
	leaseBytes  = 96
	zoneMax     = 255 // bytes of the name of a zone
	leastKnown  = 16  // members of a blob that are recorded however many pieces it has
)

// size is about how much memory the entry takes.
func (e *entry) size() int {
	bitmap := 8 * len(e.free)
	return entryBytes + 2*e.pieces + bitmap + len(e.list)*(memberBytes+bitmap) + len(e.leases)*leaseBytes
}

// most is how many members of one blob are recorded, which takes a quarter of the
// memory at most.
func (d *Directory) most(e *entry) int {
	return min(d.lim.Members, max(leastKnown, d.lim.Bytes/4/(memberBytes+8*len(e.free))))
}

// charge notes what an entry takes now.
func (d *Directory) charge(e *entry) {
	now := e.size()
	d.bytes += now - e.bytes
	d.owed[e.by] += now - e.bytes
	e.bytes = now
}

// dear is how much it costs the swarm to forget an entry.
type dear struct {
	class int // 0: nothing; 1: somebody may be the last to have a piece; 2: pieces are being fetched
	used  time.Duration
	at    slot
}

func dearness(at slot, e *entry) dear {
	switch {
	case len(e.leases) > 0:
		return dear{2, e.used, at}
	case slices.Contains(e.copies, 1):
		return dear{1, e.used, at}
	}
	return dear{0, e.used, at}
}

// shrink forgets entries, but not the one at keep, until the directory is within its
// limits. It begins with those of the member whose blobs take most, so that who makes
// blobs up pushes out nobody else's: first what costs nothing to forget, and of that
// what was not used for longest.
func (d *Directory) shrink(keep slot) {
	if d.bytes <= d.lim.Bytes && len(d.entries) <= d.lim.Blobs {
		return
	}
	aim := d.lim.Bytes
	if d.bytes > aim {
		aim -= aim / 8 // so that not each announcement has to look for room
	}
	queues := map[Node][]dear{}
	for d.bytes > aim || len(d.entries) > d.lim.Blobs {
		var who Node
		for n, bytes := range d.owed {
			if q, looked := queues[n]; (!looked || len(q) > 0) && (who == "" || bytes > d.owed[who] || bytes == d.owed[who] && n < who) {
				who = n
			}
		}
		if who == "" {
			return
		}
		if _, looked := queues[who]; !looked {
			queues[who] = d.blobsOf(who, keep)
			continue
		}
		d.forget(queues[who][0].at)
		queues[who] = queues[who][1:]
	}
}

// blobsOf returns the entries of blobs that n announced first, those to forget first
// in front.
func (d *Directory) blobsOf(n Node, but slot) []dear {
	list := []dear{}
	for at, e := range d.entries {
		if e.by == n && at != but {
			list = append(list, dearness(at, e))
		}
	}
	slices.SortFunc(list, func(a, b dear) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.used, b.used), cmp.Compare(a.at.blob, b.at.blob), cmp.Compare(a.at.pieces, b.at.pieces))
	})
	return list
}

package inuse

import (
	"slices"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Same reports whether u and v believe the same of the runtimes: which of them there
// are and which cannot be asked, and what they run, have and pull. The times of the
// answers and the order within a list of digests do not matter.
func (u *Usage) Same(v *Usage) bool {
	if u.PullsUnseen != v.PullsUnseen || !slices.EqualFunc(u.Unknown, v.Unknown, sameSource) || !slices.EqualFunc(u.Sources, v.Sources, sameSource) {
		return false
	}
	if u.Seq == v.Seq && u.Seq != 0 {
		return true // of one reading; Ask adds to Unknown only
	}
	// The tracker sorts these lists.
	return slices.EqualFunc(u.Containers, v.Containers, sameContainer) &&
		slices.EqualFunc(u.Images, v.Images, sameImage) && slices.Equal(u.Busy, v.Busy)
}

func sameSource(a, b SourceStatus) bool { return a.Name == b.Name }

func sameContainer(a, b Container) bool {
	return a.Runtime == b.Runtime && a.Namespace == b.Namespace && a.ID == b.ID && a.Name == b.Name &&
		a.State == b.State && a.Image == b.Image && a.Imageless == b.Imageless && a.Sandbox == b.Sandbox && a.Since.Equal(b.Since) &&
		sameSet(a.Digests, b.Digests) && sameSet(a.ChainIDs, b.ChainIDs) && sameSet(a.Blobs, b.Blobs)
}

func sameImage(a, b Image) bool {
	return a.Runtime == b.Runtime && a.Namespace == b.Namespace && a.Name == b.Name && a.SizeBytes == b.SizeBytes &&
		sameSet(a.Digests, b.Digests) && sameSet(a.Blobs, b.Blobs)
}

// sameSet compares lists as sets: drivers list digests in no particular order.
func sameSet(a, b []oci.Digest) bool {
	if slices.Equal(a, b) {
		return true
	}
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(a))), slices.Compact(slices.Sorted(slices.Values(b))))
}

package index

import (
	"github.com/fairway-registry/fairway/internal/oci"
)

// States of a blob.
const (
	Partial  = "partial"  // some of its bytes may be here
	Complete = "complete" // all of them are, and matched the digest
	Claimed  = "claimed"  // about to be removed; whoever opens it wins it back
)

// Roles of an edge.
const (
	RoleManifest = "manifest" // index → manifest or index
	RoleConfig   = "config"   // manifest → config
	RoleLayer    = "layer"    // manifest → layer
	RoleSubject  = "subject"  // manifest → the manifest that it is about
)

// Blob is a row: bytes with a digest, be they layer, config, manifest or index.
type Blob struct {
	Digest    oci.Digest
	Size      int64 // bytes
	State     string
	Was       string // the state before the claim, of a claimed blob
	MediaType string
	Version   int64 // grows with every change of state and every use
	CreatedAt int64 // ms since the Unix epoch, as UsedAt
	UsedAt    int64
	Uses      int64
	FetchMS   int64      // how long it took to get
	Source    string     // from where: "upstream", "swarm", …
	ChainID   oci.Digest // of a config: identity.ChainID(rootfs.diff_ids)
	DeletedAt int64      // when the upstream said that its image is deleted; 0: it did not
	Private   bool       // it came from a repository that asked for credentials
}

// Edge says that Parent needs Child.
type Edge struct {
	Parent, Child oci.Digest
	Role          string
	Size          int64  // of the child, as the parent says it
	MediaType     string // of the child, as the parent says it
}

// Name is what a tag was last resolved to.
type Name struct {
	Namespace  string // the upstream
	Repository oci.Name
	Tag        oci.Tag
	Digest     oci.Digest
	At         int64 // ms since the Unix epoch, when the upstream said so
}

// Pin keeps trees of blobs from being evicted.
type Pin struct {
	Ref       string
	Roots     []oci.Digest
	CreatedAt int64 // ms since the Unix epoch
}

// Use is a number of uses of a blob, the last one at At (ms since the Unix epoch).
type Use struct {
	Digest oci.Digest
	At     int64
	Uses   int64
}

package meta

import (
	"github.com/fairway-registry/fairway/internal/oci"
)

// Affected is a manifest that cannot be pulled whole because a blob is lost,
// or a repository (Digest "") that links the blob without a manifest.
type Affected struct {
	Repo   oci.Name   `json:"repository"`
	Digest oci.Digest `json:"digest,omitempty"`
	Tags   []string   `json:"tags"`
	Trash  bool       `json:"trash,omitempty"` // the manifest is in the trash
}

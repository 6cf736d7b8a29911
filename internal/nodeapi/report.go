package nodeapi

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Codes of errors by which the registry refuses a report.
const (
	CodeNotNewer  = "REPORT_NOT_NEWER" // its Seq is not above the last one
	CodeNameTaken = "NODE_NAME_TAKEN"  // another installation has reported under the name since
)

// Bounds of a report's times. A registry refuses more.
const (
	TTLMax   = 24 * time.Hour
	GraceMax = 30 * 24 * time.Hour
)

// NameMax bounds the name of a node and an instance, in bytes.
const NameMax = 200

// IsName reports whether s can be the name of a node or an instance: letters,
// digits, '.', '_' and '-', and a letter or digit first. That is safe in a path,
// a file and a terminal.
func IsName(s string) bool {
	if s == "" || len(s) > NameMax {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

// Limits of a report. One that is beyond them is refused whole, so an agent says
// less, and that it is not complete.
const (
	ImagesMax  = 20_000   // in use
	DigestsMax = 50_000   // of all of them
	BodyMax    = 16 << 20 // bytes of its JSON
)

// Report is the whole of what an agent knows to be in use on its node, the body
// of PUT /api/v1/nodes/{name}. Each one takes the place of the one before, so
// that one that got lost needs no repeating.
type Report struct {
	Node string `json:"node"`
	// Instance is of this installation of the agent: it stays when the agent
	// restarts, and another one under the same name is another installation.
	Instance string `json:"instance"`
	// Seq grows with each report of an instance, restarts included. The registry
	// refuses what is not newer than what it has.
	Seq     int64  `json:"seq"`
	Version string `json:"version"` // of the agent's program
	// Labels are by which people choose nodes; IsLabel.
	Labels map[string]string `json:"labels,omitempty"`
	// Complete says that every runtime has answered. Where it is false the
	// registry takes nothing away that the report does not name: that stays for the
	// grace after the last report that named it.
	Complete bool      `json:"complete"`
	Runtimes []Runtime `json:"runtimes"`
	Cache    Cache     `json:"cache"`
	// InUse is never nil: only an empty list says that nothing is in use.
	InUse []InUse `json:"in_use"`
	// TTLSeconds is for how long the report holds. The node renews it well before.
	TTLSeconds int64 `json:"ttl_seconds"`
	// GraceSeconds is for how long what it names stays when no renewal comes.
	// 0 is what the registry is set to.
	GraceSeconds int64 `json:"grace_seconds,omitempty"`
	// Swarm is the address of the node's gossip, for other nodes to join; "" if
	// it is in no swarm.
	Swarm string `json:"swarm,omitempty"`
}

// Runtime is a container runtime of a node, or another place that names what is
// in use.
type Runtime struct {
	Name       string `json:"name"`            // containerd, cri, docker, …
	Answers    bool   `json:"answers"`         // it could be asked the last time
	Error      string `json:"error,omitempty"` // why it could not
	Containers int    `json:"containers"`
	Images     int    `json:"images"`
	// AgeSeconds is how old the answer is that the report goes by; -1 says that
	// there never was one.
	AgeSeconds int64 `json:"age_seconds"`
}

// States of a runtime that a node knows.
const (
	RuntimeAnswers = "answers"
	RuntimeSilent  = "silent"  // it was asked and does not answer: what it may use stays
	RuntimeUnasked = "unasked" // it was found a moment ago
)

// KnownRuntime is a runtime that a node knows, whether or not it is there now.
type KnownRuntime struct {
	Runtime
	// Endpoint is where it has its socket; "" of what is not a single runtime.
	Endpoint string `json:"endpoint"`
	State    string `json:"state"`
	// SeenAt is when it answered last; of one that has not answered since the agent
	// was started, when it first did at an earlier start. Absent if that is not known.
	SeenAt *time.Time `json:"seen_at,omitempty"`
}

// RuntimeList is what GET /api/v1/runtimes answers.
type RuntimeList struct {
	Runtimes []KnownRuntime `json:"runtimes"`
}

// Cache is the state of a node's cache.
type Cache struct {
	UsedBytes   int64 `json:"used_bytes"`
	QuotaBytes  int64 `json:"quota_bytes"`
	ActiveBytes int64 `json:"active_bytes"` // of blobs that may not be evicted
	Blobs       int64 `json:"blobs"`
	// DiskFreeBytes and DiskBytes are of the file system that the cache is on.
	DiskFreeBytes int64 `json:"disk_free_bytes"`
	DiskBytes     int64 `json:"disk_bytes"`
}

// InUse is an image that the node needs: a manifest, and the indexes that it was
// found through.
type InUse struct {
	Digests    []digest.Digest `json:"digests"`
	Image      string          `json:"image,omitempty"` // as people call it
	Containers int             `json:"containers"`      // 0: it is pinned
	Pinned     bool            `json:"pinned,omitempty"`
	// ForSeconds is for how long it has been in use.
	ForSeconds int64 `json:"for_seconds"`
}

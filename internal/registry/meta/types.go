package meta

import (
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Manifest is a living manifest as a face serves it.
type Manifest struct {
	Digest    oci.Digest
	MediaType string
	Content   []byte // shared with the cache: read only
}

// Blob is a blob that a repository serves.
type Blob struct {
	Digest oci.Digest
	Size   int64  // bytes
	Key    string // of its bytes in the blob store
}

// Push is a manifest on its way in.
type Push struct {
	Repo     oci.Name
	Tags     []oci.Tag // none: pushed by digest only
	Digest   oci.Digest
	Manifest oci.Manifest // what oci.ParseManifest made of Content
	Content  []byte
}

// Upload is an upload session.
type Upload struct {
	ID        string // a UUID
	Repo      oci.Name
	Key       string // under which the blob store keeps its bytes, before and after
	Algorithm string // sha256 or sha512: what HashState is a state of
	Size      int64  // bytes that are durable
	// Whole says that they came from a PUT of the whole blob that broke off: one
	// that sends it all again begins at 0.
	Whole     bool
	HashState []byte // of the hash over the first Size bytes; nil for none
	Version   int64
}

// TrashItem is a deleted manifest that can still be restored.
type TrashItem struct {
	Repo      oci.Name   `json:"repository"`
	Digest    oci.Digest `json:"digest"`
	MediaType string     `json:"media_type"`
	Tags      []string   `json:"tags"`
	Size      int64      `json:"size_bytes"` // the manifest and the blobs that only the trash holds
	TrashedAt time.Time  `json:"trashed_at"`
	Reason    string     `json:"reason"`
	Actor     string     `json:"actor"`
	Holder    string     `json:"lease_holder,omitempty"` // a lease that keeps it, if any
}

// Restored tells what a restore brought back.
type Restored struct {
	Repo      oci.Name     `json:"repository"`
	Digest    oci.Digest   `json:"digest"`
	Tags      []string     `json:"tags"`       // restored
	TagsTaken []string     `json:"tags_taken"` // left alone: they name another manifest by now
	Along     []oci.Digest `json:"along"`      // children and referrers that came back with it

	NotRestored []NotRestored `json:"not_restored"` // what should have come back with it and could not
}

// add appends what a further transaction has brought back.
func (r *Restored) add(more Restored) {
	r.Tags, r.TagsTaken = append(r.Tags, more.Tags...), append(r.TagsTaken, more.TagsTaken...)
	r.Along, r.NotRestored = append(r.Along, more.Along...), append(r.NotRestored, more.NotRestored...)
}

// NotRestored is a manifest that a restore could not bring back.
type NotRestored struct {
	Digest oci.Digest `json:"digest"`
	Reason string     `json:"reason"`
}

// Lease keeps digests, and all that is below them, until it expires.
type Lease struct {
	Holder    string       `json:"holder"`
	Digests   []oci.Digest `json:"digests"`
	Cut       bool         `json:"digests_cut,omitempty"` // it has more digests than are listed
	ExpiresAt time.Time    `json:"expires_at"`
}

// Deletion is a record of the deletion log.
type Deletion struct {
	ID     int64     `json:"id"`
	At     time.Time `json:"at"`
	Kind   string    `json:"kind"` // manifest, link, blob, upload, tag
	Act    string    `json:"act"`  // trashed, removed, restored
	Repo   string    `json:"repository,omitempty"`
	Digest string    `json:"digest"` // for a tag its name, for an upload its id
	Bytes  int64     `json:"bytes"`
	Reason string    `json:"reason"`
	Actor  string    `json:"actor"`
	RunID  int64     `json:"run_id,omitempty"`
}

// Counts is what a run has done so far.
type Counts struct {
	Total      int64            `json:"total"`       // items due when it began; grows with what it uncovers
	Examined   int64            `json:"examined"`    // items judged
	Collected  int64            `json:"collected"`   // blobs, manifests and upload sessions removed for good
	Trashed    int64            `json:"trashed"`     // manifests moved to the trash
	Unlinked   int64            `json:"unlinked"`    // blobs taken out of a repository
	FreedBytes int64            `json:"freed_bytes"` // as confirmed by the blob store
	Purged     int64            `json:"purged"`      // objects whose delete the blob store confirmed
	Kept       map[string]int64 `json:"kept"`        // reason → items
	Failed     int64            `json:"failed"`
}

// Policy is what a run goes by. Durations are marshalled as Go durations ("2h0m0s").
type Policy struct {
	Window     Duration `json:"window"`
	Trash      Duration `json:"trash"`
	Untagged   Duration `json:"untagged"`             // 0: never
	Stranded   Duration `json:"stranded"`             // signatures whose image is gone; 0: never
	Uploads    Duration `json:"uploads"`              // idle time after which an upload is abandoned; 0: the window
	Repository string   `json:"repository,omitempty"` // pattern; "" = all
}

// Run states.
const (
	RunRunning     = "running"
	RunDone        = "done"
	RunStopped     = "stopped"
	RunFailed      = "failed"
	RunInterrupted = "interrupted" // the server ended while it ran
)

// Run is one collection, under way or over.
type Run struct {
	ID         int64      `json:"id"`      // 0 for a dry run, which leaves no trace
	Trigger    string     `json:"trigger"` // manual, interval, schedule
	State      string     `json:"state"`
	DryRun     bool       `json:"dry_run"`
	Policy     Policy     `json:"policy"`
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	Error      string     `json:"error,omitempty"`
	Counts
}

// RunEvent is a line of a run's log.
type RunEvent struct {
	At    time.Time `json:"at"`
	Level string    `json:"level"` // info, warn, error
	Text  string    `json:"text"`
}

// Schedule is a cron schedule for runs.
type Schedule struct {
	ID      int64      `json:"id"`
	Cron    string     `json:"cron"` // five fields, or @daily and the like
	Policy  Policy     `json:"policy"`
	LastRun *time.Time `json:"last_run,omitempty"`
}

// Duration is a time.Duration that JSON carries as text, "90s" or "2h".
type Duration time.Duration

// MarshalText renders d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Stats are the sizes of the queues, for metrics and status.
type Stats struct {
	Repositories int64 `json:"repositories"`
	Reviews      int64 `json:"reviews"`          // rows in the review queue
	OldestReview int64 `json:"oldest_review_ms"` // age in ms of the oldest event not yet judged; 0 for none
	Purges       int64 `json:"purges"`           // objects waiting to be purged
	PurgeBytes   int64 `json:"purge_bytes"`
	PurgesStuck  int64 `json:"purges_failing"` // of those, failed at least once
	Trash        int64 `json:"trash"`          // manifests in the trash
	Uploads      int64 `json:"uploads"`        // open upload sessions
	Leases       int64 `json:"leases"`
}

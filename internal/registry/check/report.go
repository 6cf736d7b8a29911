package check

import (
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Request says what a check is to do.
type Request struct {
	Repair bool `json:"repair"` // act on what is found
	Deep   bool `json:"deep"`   // read all bytes and compare digests
	// Grace is the age below which an object without a row is left alone. 0 = the
	// server's, which is the collection's window but an hour at least; < 0 = none.
	Grace meta.Duration `json:"grace"`
	// ObjectsPerSecond and BytesPerSecond limit the load. 0 = the server's limit;
	// < 0 = none.
	ObjectsPerSecond float64 `json:"objects_per_second"`
	BytesPerSecond   float64 `json:"bytes_per_second"`
	// Resume goes on with the newest check that was stopped, failed or
	// interrupted, under its own Repair, Deep and Grace. Where there is none, a
	// new one starts.
	Resume bool `json:"resume"`
}

// States of a check.
const (
	StateRunning     = "running"
	StateDone        = "done"
	StateStopped     = "stopped"     // by Stop
	StateFailed      = "failed"      // see Report.Error
	StateInterrupted = "interrupted" // the server ended, or another check was asked for; goes on by itself
)

// Phases of a check, in order.
const (
	PhaseStorage   = "storage"
	PhaseBlobs     = "blobs"
	PhaseReviews   = "reviews"
	PhaseManifests = "manifests"
	PhaseDatabase  = "database"
)

// What can be wrong with a blob's bytes.
const (
	ProblemMissing = "missing" // no object under the key
	ProblemSize    = "size"    // the object is shorter or longer than the blob
	ProblemCorrupt = "corrupt" // the bytes do not have the digest
)

// Triggers of a check.
const (
	TriggerManual     = "manual"
	TriggerBackground = "background"
)

// Report is a check under way or over.
type Report struct {
	ID         int64      `json:"id"`
	Trigger    string     `json:"trigger"` // manual, background
	Request    Request    `json:"request"` // as it is carried out, defaults filled in
	State      string     `json:"state"`
	Phase      string     `json:"phase"`
	Progress   float64    `json:"progress"` // an estimate, 0 to 1
	StartedAt  time.Time  `json:"started_at"`
	UpdatedAt  time.Time  `json:"updated_at"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	Error      string     `json:"error,omitempty"` // why it failed, in a sentence that may be shown

	Objects     int64 `json:"examined_objects"`
	Blobs       int64 `json:"examined_blobs"`
	Manifests   int64 `json:"examined_manifests"` // with Deep
	BytesHashed int64 `json:"bytes_hashed"`

	Orphans   Orphans  `json:"orphans"`
	LostCount int64    `json:"lost_count"`
	Lost      []Lost   `json:"lost"`     // the first 1,000
	Database  []string `json:"database"` // problems of the database itself, the first 100

	Missed   int64    `json:"missed_reviews"` // things that the collector should have been told of
	Repaired int64    `json:"repaired"`       // orphans handed to the purge queue, blobs marked lost or found again, reviews made up for
	Failed   int64    `json:"failed"`         // objects that could not be examined
	Failures []string `json:"failures"`       // the first 100 of those
}

// Clean reports that the check is over, examined everything and found nothing wrong.
func (r Report) Clean() bool {
	return r.State == StateDone && r.Orphans.Count == 0 && r.LostCount == 0 && len(r.Database) == 0 && r.Missed == 0 && r.Failed == 0
}

// Orphans are the objects that no row names.
type Orphans struct {
	Count int64    `json:"count"`
	Bytes int64    `json:"bytes"`
	Young int64    `json:"young"` // objects without a row that are within the grace; not in Count
	Older int64    `json:"older"` // of Count: older than the database; a check in the background leaves them alone
	Keys  []string `json:"keys"`  // the first 100
}

// Lost is a blob whose bytes are not what its row says.
type Lost struct {
	Digest        oci.Digest      `json:"digest"`
	Size          int64           `json:"size"` // bytes, as the row says
	Key           string          `json:"key"`
	Problem       string          `json:"problem"`
	Repaired      bool            `json:"repaired"` // marked lost: the next push brings new bytes
	Affected      []meta.Affected `json:"affected"` // the first 50
	AffectedCount int64           `json:"affected_count"`
}

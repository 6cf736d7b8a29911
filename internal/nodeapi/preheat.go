package nodeapi

import "github.com/opencontainers/go-digest"

// States of a node's part in a preheat. A task is open while it is waiting or
// running.
const (
	TaskWaiting = "waiting" // the node has not begun
	TaskRunning = "running"
	TaskDone    = "done"    // the image is there
	TaskFailed  = "failed"  // it is not, and the node has given up, or nothing was heard of it
	TaskSkipped = "skipped" // the node has no room for it
)

// Task is what a node is asked to do for a preheat: to have an image.
type Task struct {
	ID         int64         `json:"id"`                 // of the preheat
	Upstream   string        `json:"upstream,omitempty"` // as runtimes call it; "" is the registry that asks
	Repository string        `json:"repository"`
	Tag        string        `json:"tag,omitempty"`
	Digest     digest.Digest `json:"digest,omitempty"` // where it is given it decides, and not the tag
	// AllPlatforms asks for the whole of an index, and not for the node's part.
	AllPlatforms bool `json:"all_platforms,omitempty"`
}

// TaskList is the answer to GET /api/v1/nodes/{name}/tasks: the oldest open task
// of the node, or none. There is no second one before the first is over.
type TaskList struct {
	Tasks []Task `json:"tasks"`
}

// Progress is how far a node is with a task, the body of
// PUT /api/v1/nodes/{name}/tasks/{id}. It takes the place of the one before.
type Progress struct {
	State      string `json:"state"`           // any but TaskWaiting
	DoneBytes  int64  `json:"done_bytes"`      // that are there, including those that were before
	TotalBytes int64  `json:"total_bytes"`     // of configs and layers; 0 until it is known
	Error      string `json:"error,omitempty"` // one sentence, where it has failed or was skipped
}

// Limits of a node's labels.
const (
	LabelsMax     = 64
	LabelKeyMax   = 128 // bytes
	LabelValueMax = 128
)

// IsLabel reports whether key=value can be a label: a key of letters, digits,
// '.', '_', '-' and '/', with a letter or digit first, and a value of printable
// ASCII without spaces, commas and '='.
func IsLabel(key, value string) bool {
	if key == "" || len(key) > LabelKeyMax || len(value) > LabelValueMax {
		return false
	}
	for i := 0; i < len(key); i++ {
		c := key[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-' && c != '/') {
			return false
		}
	}
	for i := 0; i < len(value); i++ {
		if c := value[i]; c <= ' ' || c > '~' || c == ',' || c == '=' {
			return false
		}
	}
	return true
}

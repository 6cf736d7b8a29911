package gc

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Options …
type Options struct {
	Policy   meta.Policy                // the server's own
	Interval time.Duration              // of the background worker; 0 = off
	Workers  int                        // purge workers; 0 = 4
	Rate     float64                    // items a second at most; 0 = no limit
	Busy     func(uploadID string) bool // an upload with a request in progress in this process
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Collector …
type Collector struct{}

func New(s *meta.Store, b blob.Store, o Options) *Collector { panic("stub") }

// Run is the background worker: interval and cron schedules. It returns when ctx ends and all runs have stopped.
func (c *Collector) Run(ctx context.Context) error { panic("stub") }

// Start begins a run and returns at once; its Run has the id to poll. Policy() is the default.
func (c *Collector) Start(ctx context.Context, p meta.Policy, trigger, actor string) (meta.Run, error) {
	panic("stub")
}
func (c *Collector) Policy() meta.Policy { panic("stub") }

// DryRun predicts what Start would do now; it changes nothing. Items are the acts it would do (at most max).
func (c *Collector) DryRun(ctx context.Context, p meta.Policy, max int, progress func(meta.Counts)) (meta.Run, []meta.Deletion, error) {
	panic("stub")
}
func (c *Collector) Get(ctx context.Context, id int64) (meta.Run, error)  { panic("stub") } // live counts while it runs
func (c *Collector) Wait(ctx context.Context, id int64) (meta.Run, error) { panic("stub") }
func (c *Collector) Stop(ctx context.Context, id int64) (meta.Run, error) { panic("stub") } // waits until it has stopped
func (c *Collector) History(ctx context.Context, before int64, n int) ([]meta.Run, error) {
	panic("stub")
}
func (c *Collector) Events(ctx context.Context, id int64) ([]meta.RunEvent, error) { panic("stub") }

// Status …
type Status struct {
	Running []meta.Run  `json:"running"`
	Last    *meta.Run   `json:"last,omitempty"`
	NextAt  *time.Time  `json:"next_at,omitempty"`
	Policy  meta.Policy `json:"policy"`
	Queue   meta.Stats  `json:"queue"`
}

func (c *Collector) Status(ctx context.Context) (Status, error) { panic("stub") }

// Explanation says why something is kept, or when it will go and why.
type Explanation struct {
	Subject string          `json:"subject"` // as asked
	Kind    string          `json:"kind"`    // repository, tag, manifest, blob, upload
	Repo    string          `json:"repository,omitempty"`
	Digest  string          `json:"digest,omitempty"`
	Verdict string          `json:"verdict"` // kept, trash, due, gone, unknown
	Reasons []Reason        `json:"reasons"`
	GoesAt  *time.Time      `json:"goes_at,omitempty"`
	History []meta.Deletion `json:"history,omitempty"`
	Parts   []Explanation   `json:"parts,omitempty"` // a blob: one for each repository; a repository: its manifests at risk
}

// Reason is one thing that keeps it, as a path from what is kept for its own sake down to the subject.
type Reason struct {
	Code  string     `json:"code"` // tag, index, subject, lease, window, trash, referenced, policy
	Path  []string   `json:"path"`
	Text  string     `json:"text"` // one sentence
	Until *time.Time `json:"until,omitempty"`
}

// Explain reads REPO, REPO:TAG, REPO@DIGEST or DIGEST.
func (c *Collector) Explain(ctx context.Context, subject string) (Explanation, error) { panic("stub") }

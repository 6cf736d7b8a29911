package check

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Options tunes a Checker. The zero value is the default.
type Options struct {
	Window           time.Duration // of the collection; the default grace, raised to an hour
	ObjectsPerSecond float64       // limit of a check by request; 0 = 5,000
	BytesPerSecond   float64       // of bytes hashed; 0 = 200 MiB
	Log              *slog.Logger
	Metrics          prometheus.Registerer
}

// Checker runs checks, one at a time.
type Checker struct{}

// New makes a Checker. It does nothing by itself before Start or Run.
func New(s *meta.Store, b blob.Store, o Options) *Checker { panic("stub") }

// Run goes on with a check that the end of the last process interrupted, and
// from then on checks in the background each time the interval has passed
// since the last time (0 = never): slowly, and repairing nothing but orphans.
// When ctx ends, so do all checks, to be resumed by the next Run, and Run returns.
func (c *Checker) Run(ctx context.Context, interval time.Duration) error { panic("stub") }

// Start begins a check and returns its first report. ctx bounds the start
// only. A check in the background makes way; one by request does not:
// fault.Busy, with its id in the text.
func (c *Checker) Start(ctx context.Context, r Request) (Report, error) { panic("stub") }

// Get returns a check's report, live while it runs. fault.NotFound for no such check.
func (c *Checker) Get(ctx context.Context, id int64) (Report, error) { panic("stub") }

// Wait is Get once the check no longer runs.
func (c *Checker) Wait(ctx context.Context, id int64) (Report, error) { panic("stub") }

// Stop ends a running check and returns its report when it has stopped. It
// leaves a check that is over as it is.
func (c *Checker) Stop(ctx context.Context, id int64) (Report, error) { panic("stub") }

// History lists checks, newest first, whose id is below before (0 = all), n at most.
func (c *Checker) History(ctx context.Context, before int64, n int) ([]Report, error) { panic("stub") }

package preheat

import (
	"context"
	"log/slog"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

const (
	// expiryDefault is how long nothing may be heard of the tasks of a node: long
	// enough for a node or the registry to be started anew.
	expiryDefault = 15 * time.Minute
	sweepEvery    = time.Minute
	textMax       = 512 // bytes of a node's error; longer ones are cut
)

// Options says how.
type Options struct {
	Expiry  time.Duration // 0: 15 min
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// Preheats begins preheats and hands out their tasks. All methods may be called
// at once.
type Preheats struct {
	store    *meta.Store
	expiry   time.Duration
	log      *slog.Logger
	stopping chan struct{} // closed when nobody is to wait any more
	ended    *prometheus.CounterVec
}

// New returns Preheats. Run sees to those of whom nothing is heard.
func New(store *meta.Store, o Options) *Preheats {
	if o.Expiry <= 0 {
		o.Expiry = expiryDefault
	}
	p := &Preheats{store: store, expiry: o.Expiry, log: o.Log, stopping: make(chan struct{}), ended: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "fairway", Subsystem: "preheat", Name: "tasks_total", Help: "Parts of preheats that came to an end on a node, by state."}, []string{"state"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(p.ended)
	}
	return p
}

// Run gives up on nodes of which nothing is heard until ctx ends; then nobody
// waits for an answer any more. Call it once.
func (p *Preheats) Run(ctx context.Context) error {
	defer close(p.stopping)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := p.Sweep(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("preheats that nobody goes on with were not found", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Sweep gives up on them now.
func (p *Preheats) Sweep(ctx context.Context) error {
	n, err := p.store.ExpirePreheats(ctx, p.expiry.Milliseconds())
	if n > 0 {
		p.ended.WithLabelValues(nodeapi.TaskFailed).Add(float64(n))
		p.log.Warn("nodes did not go on with preheats", "tasks", n)
	}
	return err
}

// Request is a wish for a preheat.
type Request struct {
	Reference    string // [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
	Host         string // by which this registry was called: an image named so is its own
	AllPlatforms bool
	meta.NodeChoice
}

// Start begins a preheat. Errors: Invalid, and NotFound for an image that this
// registry has not or where no node matches.
func (p *Preheats) Start(ctx context.Context, r Request, actor string) (meta.Preheat, error) {
	if err := r.Validate(); err != nil {
		return meta.Preheat{}, err
	}
	image, err := p.resolve(ctx, r.Reference, r.Host)
	if err != nil {
		return meta.Preheat{}, err
	}
	image.AllPlatforms = r.AllPlatforms
	return p.store.StartPreheat(ctx, image, r.NodeChoice, actor)
}

// AddRule has pushes that match begin preheats from now on.
func (p *Preheats) AddRule(ctx context.Context, r meta.PreheatRule) (meta.PreheatRule, error) {
	for _, pattern := range []struct{ name, text string }{{"repository", r.Repository}, {"tag", r.Tag}} {
		if pattern.text == "" || len(pattern.text) > 255 {
			return r, fault.New(fault.Invalid, "%s: a pattern of 1 to 255 bytes is wanted", pattern.name)
		}
		if _, err := path.Match(pattern.text, ""); err != nil {
			return r, fault.New(fault.Invalid, "%s: %.64q is no pattern; want names with * or ?", pattern.name, pattern.text)
		}
	}
	if err := (meta.NodeChoice{Nodes: r.Nodes, Share: r.Share}).Validate(); err != nil {
		return r, err
	}
	if r.Share == 0 {
		r.Share = 100
	}
	return p.store.AddPreheatRule(ctx, r)
}

// Task returns the oldest open task of a node. Where it has none it waits for
// one, until ctx or Run ends: the list is empty then.
func (p *Preheats) Task(ctx context.Context, node string, wait time.Duration) (list nodeapi.TaskList, err error) {
	if err := checkNode(node); err != nil {
		return list, err
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		begun := p.store.PreheatBegun()
		if list.Tasks, err = p.store.NextTask(ctx, node); err != nil || len(list.Tasks) > 0 || wait <= 0 {
			return list, err
		}
		select {
		case <-begun:
		case <-timeout.C:
			return list, nil
		case <-p.stopping:
			return list, nil
		case <-ctx.Done():
			return list, ctx.Err()
		}
	}
}

// Progress notes how far a node is. Errors: Invalid, NotFound where it has no
// such task (any more), Conflict where that is over.
func (p *Preheats) Progress(ctx context.Context, node string, id int64, now nodeapi.Progress) error {
	if err := checkNode(node); err != nil {
		return err
	}
	switch now.State {
	case nodeapi.TaskRunning, nodeapi.TaskDone, nodeapi.TaskFailed, nodeapi.TaskSkipped:
	default:
		return fault.New(fault.Invalid, "state: %.64q is none of running, done, failed, skipped", now.State)
	}
	if now.DoneBytes < 0 || now.TotalBytes < 0 {
		return fault.New(fault.Invalid, "done_bytes, total_bytes: numbers of 0 or more are wanted")
	}
	now.Error = text(now.Error)
	err := p.store.PutProgress(ctx, node, id, now)
	if err == nil && now.State != nodeapi.TaskRunning {
		p.ended.WithLabelValues(now.State).Inc()
		p.log.Info("a node is through with a preheat", "preheat", id, "node", node, "state", now.State, "bytes", now.TotalBytes, "error", now.Error)
	}
	return err
}

func checkNode(name string) error {
	if !nodeapi.IsName(name) {
		return fault.New(fault.Invalid, "node: %.64q is no name of a node", name)
	}
	return nil
}

// Wait returns a preheat when it is over, or as it stands when ctx or Run ends.
func (p *Preheats) Wait(ctx context.Context, id int64, wait time.Duration) (meta.Preheat, error) {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		ended := p.store.PreheatEnded()
		now, err := p.store.Preheat(ctx, id)
		if err != nil || now.State != meta.PreheatRunning || wait <= 0 {
			return now, err
		}
		select {
		case <-ended:
		case <-timeout.C:
			return p.store.Preheat(ctx, id)
		case <-p.stopping:
			return now, nil
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}

// text makes a text one that prints.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > textMax {
		return strings.ToValidUTF8(s[:textMax], "") + "…"
	}
	return s
}

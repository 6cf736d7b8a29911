package preheat

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// Manifest is a manifest or an index as the mirror gets it.
type Manifest struct {
	Namespace string // the upstream that it came from
	Digest    oci.Digest
	MediaType string
	Content   []byte
	Private   bool // not everybody may have it
}

// Options says for whom to work, and with what.
type Options struct {
	Registry string        // URL
	Node     func() string // the name under which this node reports
	// Manifest gets one by way of the mirror; upstream "" is the registry.
	Manifest func(ctx context.Context, upstream string, repo oci.Name, ref oci.Reference) (Manifest, error)
	Fetch    *fetch.Fetcher
	Store    *piece.Store
	Platform platforms.MatchComparer // nil: this machine's

	// HTTP must not bound the time until an answer begins.
	HTTP    *http.Client
	Wait    time.Duration // how long the registry may keep this node waiting for a task; 0: 25s
	Every   time.Duration // between two reports of a progress; 0: 3s
	Retry   time.Duration // the first pause after a failure, which doubles; 0: 1s
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

const (
	// atOnce is how many blobs of an image are fetched at a time: enough to keep a
	// line busy while one begins, and no more than a pull beside it can bear.
	atOnce = 2
	// attemptsMax bounds the attempts in a row that bring nothing: some minutes,
	// in which a registry is started anew.
	attemptsMax = 15
	retryMax    = 30 * time.Second
	// beat is the longest silence about a task at which nothing changes.
	beat = 30 * time.Second
)

// Preheater does the tasks. Run may be called once.
type Preheater struct {
	o     Options
	tasks *prometheus.CounterVec
}

// New returns a Preheater.
func New(o Options) *Preheater {
	for _, d := range []struct {
		field    *time.Duration
		standard time.Duration
	}{{&o.Wait, 25 * time.Second}, {&o.Every, 3 * time.Second}, {&o.Retry, time.Second}} {
		if *d.field <= 0 {
			*d.field = d.standard
		}
	}
	if o.Platform == nil {
		o.Platform = platforms.Default()
	}
	p := &Preheater{o: o, tasks: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairway_node_preheats_total", Help: "Images that the registry asked to fetch ahead, by how that ended.",
	}, []string{"state"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(p.tasks)
	}
	return p
}

// Run does tasks until ctx ends. One that is under way then goes on at the next
// start.
func (p *Preheater) Run(ctx context.Context) error {
	pause, trouble := p.o.Retry, ""
	for ctx.Err() == nil {
		began := time.Now()
		task, ok, err := p.next(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if text := err.Error(); text != trouble { // once for each trouble, not for each attempt
				trouble = text
				p.o.Log.Info("the registry cannot be asked for images to fetch ahead; it is asked again", "registry", ociclient.Shown(p.o.Registry), "err", err)
			}
			sleep(ctx, jittered(pause))
			pause = min(2*pause, retryMax)
			continue
		case ok:
			p.do(ctx, task)
		case time.Since(began) < p.o.Retry:
			sleep(ctx, jittered(p.o.Retry)) // a registry that ends, or does not wait
		}
		pause, trouble = p.o.Retry, ""
	}
	return nil
}

// jittered spreads the nodes of a cluster whose registry comes back.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// sleep is false when ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// do does a task and has the registry hear of its end.
func (p *Preheater) do(ctx context.Context, t nodeapi.Task) {
	began := time.Now()
	w := &work{p: p, task: t, active: map[oci.Digest]*piece.Blob{}}
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var telling sync.WaitGroup
	telling.Go(func() { p.tell(working, cancel, w) })
	err := w.run(working)
	gone := errors.Is(context.Cause(working), errGone)
	cancel(nil)
	telling.Wait() // so that nothing overtakes the end
	if gone {
		p.o.Log.Info("the registry does not want an image any more", "preheat", t.ID, "repository", t.Repository)
		return
	}
	if ctx.Err() != nil {
		return
	}
	end := w.progress(nodeapi.TaskDone)
	switch {
	case errors.Is(err, fault.Full):
		end.State, end.Error = nodeapi.TaskSkipped, noRoom
	case err != nil:
		end.State, end.Error = nodeapi.TaskFailed, reason(err)
	}
	p.tasks.WithLabelValues(end.State).Inc()
	p.o.Log.Info("an image was fetched ahead", "preheat", t.ID, "repository", t.Repository, "tag", t.Tag, "digest", t.Digest,
		"state", end.State, "bytes", end.TotalBytes, "ms", time.Since(began).Milliseconds(), "err", err)
	p.conclude(ctx, t, end)
}

const noRoom = "the node's cache has no room for the image: only what is cold makes way for it"

// tell says now and then how far a task is, and ends it when the registry does
// not know of it any more.
func (p *Preheater) tell(ctx context.Context, cancel context.CancelCauseFunc, w *work) {
	tick := time.NewTicker(p.o.Every)
	defer tick.Stop()
	var last nodeapi.Progress
	var told time.Time
	for {
		if now := w.progress(nodeapi.TaskRunning); now != last || time.Since(told) > beat {
			err := p.put(ctx, w.task, now)
			if errors.Is(err, errGone) {
				cancel(errGone)
				return
			}
			if err == nil {
				last, told = now, time.Now()
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// conclude says how a task ended until the registry has heard it. Before that it
// would only tell of the same task again.
func (p *Preheater) conclude(ctx context.Context, t nodeapi.Task, end nodeapi.Progress) {
	for pause := p.o.Retry; ; pause = min(2*pause, retryMax) {
		err := p.put(ctx, t, end)
		if err == nil || errors.Is(err, errGone) || errors.Is(err, errRefused) {
			if errors.Is(err, errRefused) {
				p.o.Log.Error("the registry does not take the end of a preheat", "preheat", t.ID, "err", err)
			}
			return
		}
		if !sleep(ctx, jittered(pause)) {
			return
		}
	}
}

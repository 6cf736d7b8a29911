package report

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// Options says what to report, of whom, and to whom.
type Options struct {
	Registry string // URL
	Node     string // name; nodeapi.IsName
	Version  string // of this program
	Labels   map[string]string
	Dir      string // where the last report is kept

	Usage   func() *inuse.Usage  // what is believed now
	Changed <-chan struct{}      // it has changed; nil: it is looked at when a report is renewed
	Index   *index.Index         // what belongs to what, and the pins
	Cache   func() nodeapi.Cache // nil: nothing is told of the cache
	Swarm   string               // address of the gossip, for other nodes to join; "": none

	TTL   time.Duration // whole seconds; 0: 5m
	Grace time.Duration // whole seconds; 0: what the registry is set to

	HTTP     *http.Client  // nil: http.DefaultClient
	Timeout  time.Duration // of a request; 0: 10s
	Debounce time.Duration // in which changes join one report; 0: 200ms
	Retry    time.Duration // the first pause after a report that failed, which doubles; 0: 1s
	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil: none
}

// retryMax is the longest pause between attempts.
const retryMax = time.Minute

// Reporter tells the registry. Run may be called once.
type Reporter struct {
	o       Options
	metrics *metrics
	poke    chan struct{}

	// Of the one goroutine of Run:
	st       state
	started  time.Time
	answers  map[string]*answered // by source
	last     []use                // of the last look that succeeded
	greeted  bool                 // a report of this life was accepted
	unsaved  bool                 // the file could not be written, and the log knows
	complete bool
	cut      int // uses that the last report had no room for

	mu     sync.Mutex // guards what follows
	status nodeapi.ReportStatus
	alias  string // st.Alias
}

// answered counts the answers of a source since the start, up to two.
type answered struct {
	first time.Time
	twice bool
}

// Open reads what was last reported from o.Dir. A file that cannot be read is
// logged, and is the same as none.
func Open(o Options) (*Reporter, error) {
	if !nodeapi.IsName(o.Node) {
		return nil, fmt.Errorf("%q is no name of a node", o.Node)
	}
	for _, d := range []struct {
		field    *time.Duration
		standard time.Duration
	}{{&o.TTL, 5 * time.Minute}, {&o.Timeout, 10 * time.Second}, {&o.Debounce, 200 * time.Millisecond}, {&o.Retry, time.Second}} {
		if *d.field <= 0 {
			*d.field = d.standard
		}
	}
	if o.HTTP == nil {
		o.HTTP = http.DefaultClient
	}
	r := &Reporter{o: o, metrics: newMetrics(o.Metrics), poke: make(chan struct{}, 1), answers: map[string]*answered{}, started: time.Now()}
	st, problem := readState(r.path(), o.Node)
	if problem != nil {
		o.Log.Warn("what was last reported is not known; the registry keeps it for its grace", "err", problem)
	}
	r.st, r.alias = st, st.Alias
	r.last = slices.Clone(st.Uses)
	r.setPending()
	return r, nil
}

func (r *Reporter) path() string { return filepath.Join(r.o.Dir, "report.json") }

// Poke says that something has changed that Options.Changed does not tell of,
// such as a pin.
func (r *Reporter) Poke() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Name is the one under which the node reports: Options.Node, unless another
// installation has that.
func (r *Reporter) Name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return cmp.Or(r.alias, r.o.Node)
}

// Status tells how it goes.
func (r *Reporter) Status() nodeapi.ReportStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Run reports until ctx ends. What has changed by then and was not heard is
// sent once more, and never is it said that nothing is in use.
func (r *Reporter) Run(ctx context.Context) error {
	pause := r.o.Retry
	for {
		err := r.report(ctx)
		wait := r.o.TTL / 3
		if err != nil {
			wait, pause = jittered(pause), min(2*pause, retryMax, max(r.o.TTL/3, r.o.Retry))
		} else {
			pause = r.o.Retry
		}
		if !r.sleep(ctx, wait, err == nil) {
			r.farewell(ctx)
			return ctx.Err()
		}
	}
}

// jittered spreads the nodes of a cluster whose registry comes back.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// sleep waits for the time of the next report, or, if eager, for a change and
// for others to join it. It is false when ctx ends.
func (r *Reporter) sleep(ctx context.Context, wait time.Duration, eager bool) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	changed, poke := r.o.Changed, r.poke
	if !eager {
		changed, poke = nil, nil // whatever has changed is in the next attempt
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-changed:
		case <-poke:
		}
		r.setPending()
		changed, poke = nil, nil
		timer.Reset(r.o.Debounce)
	}
}

func (r *Reporter) setPending() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Pending = true
	r.metrics.pending.Set(1)
}

// farewellMax bounds the last attempt when the agent ends.
const farewellMax = 2 * time.Second

func (r *Reporter) farewell(ctx context.Context) {
	st := r.Status()
	if !st.Pending || st.Error != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellMax)
	defer cancel()
	if err := r.report(ctx); err != nil {
		r.o.Log.Info("the registry was not told of the last change before the end", "err", err)
	}
}

// report makes and sends one report, and notes how that went.
func (r *Reporter) report(ctx context.Context) error {
	err := r.attempt(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var no *refused
	result := "failed"
	switch {
	case err == nil:
		result = "accepted"
	case errors.As(err, &no):
		result = "refused"
	}
	r.metrics.sent.WithLabelValues(result).Inc()
	before := r.Status().Error
	text := ""
	if err != nil {
		text = err.Error()
	}
	// Once for each trouble, not for each attempt.
	switch {
	case text != "" && text != before:
		r.o.Log.Warn("the registry does not know what is in use here; it is told again until it does", "registry", ociclient.Shown(r.o.Registry), "err", err)
	case text == "" && before != "":
		r.o.Log.Info("the registry knows again what is in use here", "registry", ociclient.Shown(r.o.Registry))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Error = text
	r.status.Pending = err != nil
	if err == nil {
		r.metrics.pending.Set(0)
	}
	return err
}

func (r *Reporter) attempt(ctx context.Context) error {
	usage := r.o.Usage()
	r.look(ctx, usage)
	report := r.compose(usage)
	accepted, err := r.put(ctx, report)
	var no *refused
	if errors.As(err, &no) && r.rename(no.code) {
		accepted, err = r.put(ctx, r.compose(usage))
	}
	if err != nil {
		return err
	}
	r.greeted = true
	now := time.Now()
	r.metrics.accepted.Set(float64(now.Unix()))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.AcceptedAt, r.status.KeptUntil = &now, &accepted.KeptUntil
	return nil
}

// rename finds out of a refusal that no later report would be spared. It is
// false where there is nothing to do but to try again.
func (r *Reporter) rename(code string) bool {
	switch {
	case code == nodeapi.CodeNotNewer && !r.greeted:
		// The data directory is an old copy, or a copy of another node's.
		r.o.Log.Warn("the registry has newer reports of this installation; this one goes on as a new installation", "instance", r.st.Instance)
		r.st.Instance, r.st.Seq = newInstance(), 0
		return true
	case code == nodeapi.CodeNameTaken && r.st.Alias == "":
		// What runs here needs its lease as much as what runs there.
		r.st.Alias = r.o.Node[:min(len(r.o.Node), nodeapi.NameMax-aliasSuffix)] + "-" + newInstance()[:aliasSuffix-1]
		r.o.Log.Error("another agent reports under the name of this node; give each node a name of its own. Until then this one has another", "name", r.o.Node, "goes_by", r.st.Alias)
		return true
	}
	return false
}

const aliasSuffix = 9 // bytes

// look finds out what is in use. Where that fails, what was found last still
// counts.
func (r *Reporter) look(ctx context.Context, usage *inuse.Usage) {
	known := map[string]use{}
	for _, u := range r.last {
		known[u.key()] = u
	}
	g, err := gather(ctx, usage, r.o.Index, known, time.Now())
	if err != nil {
		if ctx.Err() == nil {
			r.o.Log.Error("what is in use could not be looked up; the last report stands", "err", err)
		}
		return
	}
	r.metrics.untraced.Set(float64(g.untraced))
	carried, unheard := r.carry(usage, g.uses)
	var cut int
	r.last, cut = fit(append(g.uses, carried...))
	if cut > 0 && r.cut == 0 {
		r.o.Log.Error("more is in use here than a report may name; the rest stays at the registry for its grace", "left_out", cut)
	}
	r.cut = cut
	r.complete = !unheard && g.guessed == 0 && cut == 0
}

// carry returns what a former life of the agent found in use by sources that
// have not confirmed anything else since: those that have not answered twice,
// and those that are not there any more, for the grace. unheard tells that
// nothing at all is known of some source.
func (r *Reporter) carry(usage *inuse.Usage, found []use) (carried []use, unheard bool) {
	confirmed := map[string]bool{sourcePins: true}
	present := map[string]bool{}
	unheard = len(usage.Sources) == 0
	for _, s := range usage.Sources {
		present[s.Name] = true
		confirmed[s.Name] = r.answeredTwice(s)
		if s.Answered.IsZero() {
			unheard = unheard || !slices.Contains(r.st.Sources, s.Name)
		} else if !slices.Contains(r.st.Sources, s.Name) {
			r.st.Sources = append(r.st.Sources, s.Name)
		}
	}
	if time.Since(r.started) > max(r.o.Grace, r.o.TTL) {
		r.st.Sources = slices.DeleteFunc(r.st.Sources, func(s string) bool { return !present[s] })
	}
	have := map[string]bool{}
	for _, u := range found {
		have[u.key()] = true
	}
	for _, u := range r.st.Uses {
		gone := !present[u.Source] && !slices.Contains(r.st.Sources, u.Source)
		if !confirmed[u.Source] && !gone && !have[u.key()] {
			u.carried = true
			carried = append(carried, u)
		}
	}
	return carried, unheard
}

func (r *Reporter) answeredTwice(s inuse.SourceStatus) bool {
	a := r.answers[s.Name]
	switch {
	case s.Answered.IsZero():
		return false
	case a == nil:
		r.answers[s.Name] = &answered{first: s.Answered}
		return false
	case s.Answered.After(a.first):
		a.twice = true
	}
	return a.twice
}

// compose makes the next report, and has its number on disk before it is sent.
func (r *Reporter) compose(usage *inuse.Usage) nodeapi.Report {
	r.st.Seq++
	r.st.Uses = r.last
	r.save()
	now := time.Now()
	report := nodeapi.Report{
		Node: r.st.Node, Instance: r.st.Instance, Seq: r.st.Seq, Version: r.o.Version, Labels: r.o.Labels, Complete: r.complete,
		Runtimes: runtimes(usage, now), InUse: inUse(r.last, now),
		TTLSeconds: max(1, int64(r.o.TTL/time.Second)), GraceSeconds: int64(r.o.Grace / time.Second), Swarm: r.o.Swarm,
	}
	if r.st.Alias != "" {
		report.Node = r.st.Alias
	}
	if r.o.Cache != nil {
		report.Cache = r.o.Cache()
	}
	digests := 0
	for _, u := range report.InUse {
		digests += len(u.Digests)
	}
	r.metrics.digests.Set(float64(digests))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Digests, r.alias = digests, r.st.Alias
	return report
}

// save keeps the state. Without it a restart is the start of a new
// installation, which the registry can tell, so that a full disk stops nothing.
func (r *Reporter) save() {
	err := writeState(r.path(), r.st)
	if err != nil && !r.unsaved {
		r.o.Log.Warn("what is reported could not be written down for the next start", "err", err)
	}
	r.unsaved = err != nil
}

func runtimes(usage *inuse.Usage, now time.Time) []nodeapi.Runtime {
	list := make([]nodeapi.Runtime, 0, len(usage.Sources))
	for _, s := range usage.Sources {
		rt := nodeapi.Runtime{Name: s.Name, Answers: s.Up, Error: s.Error, Containers: s.Containers, Images: s.Images, AgeSeconds: -1}
		if !s.Answered.IsZero() {
			rt.AgeSeconds = int64(max(0, now.Sub(s.Answered)) / time.Second)
		}
		list = append(list, rt)
	}
	return list
}

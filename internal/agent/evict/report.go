package evict

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// Kinds of events.
const (
	EventEvicted = "evicted"
	EventFull    = "full" // and what has to stay is more than there is room for
	EventRoom    = "room" // the end of that
)

// eventsMax is how many events are remembered.
const eventsMax = 256

// events is a ring of what happened.
type events struct {
	now  func() time.Time
	mu   sync.Mutex
	ring []nodeapi.Event
	next int
}

func (e *events) add(level, kind, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := nodeapi.Event{At: e.now(), Level: level, Kind: kind, Text: text}
	if len(e.ring) < eventsMax {
		e.ring = append(e.ring, v)
		return
	}
	e.ring[e.next] = v
	e.next = (e.next + 1) % eventsMax
}

// list returns the events, newest first.
func (e *events) list() []nodeapi.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]nodeapi.Event, 0, len(e.ring))
	for n := range e.ring {
		all = append(all, e.ring[(e.next+len(e.ring)-1-n)%len(e.ring)])
	}
	return all
}

// report tells what a pass did: metrics, the log, and events for people.
func (e *Evictor) report(g *gathered, j *Judgement, r *Result, l Limits) {
	e.mu.Lock()
	e.last = *r
	e.mu.Unlock()
	e.metrics.passes.Inc()
	e.metrics.duration.Set(r.Took.Seconds())
	for t, total := range r.Tiers {
		e.metrics.tiers.WithLabelValues(t).Set(float64(total.Bytes))
	}
	if r.Evicted > 0 {
		why := r.Trigger
		if why == "" {
			why = "their images were deleted upstream"
		}
		e.events.add("info", EventEvicted, fmt.Sprintf("evicted %s, %s: %s", blobs(r.Evicted), size(r.Freed), why))
	}
	if r.Evicted+r.Raced+r.Failed > 0 {
		e.o.Log.Info("a pass of the eviction is over", "examined", r.Examined, "evicted", r.Evicted, "bytes", r.Freed,
			"raced", r.Raced, "failed", r.Failed, "trigger", r.Trigger, "took", r.Took)
	}
	e.episode(g, j, r, l)
}

func blobs(n int) string {
	if n == 1 {
		return "1 blob"
	}
	return fmt.Sprintf("%d blobs", n)
}

// episode tells once when more has to stay than there is room for, and once when
// that is over.
func (e *Evictor) episode(g *gathered, j *Judgement, r *Result, l Limits) {
	if g.situation.ColdOnly {
		return // what is spared for others says nothing of them
	}
	full := r.Short > 0 || r.Refused && (l.Quota == 0 || g.situation.Need <= l.Quota)
	switch {
	case full && !e.over:
		e.over = true
		text := fmt.Sprintf("the cache is full of what has to stay: %s are active, %s in all; what does not fit is passed on without being cached",
			size(j.Tiers[Active].Bytes), size(r.Used))
		if g.situation.Unknown != "" {
			text += "; nothing may go while " + g.situation.Unknown
		} else if r.Trigger != "" {
			text += " (" + r.Trigger + ")"
		}
		e.events.add("warn", EventFull, text)
		e.o.Log.Warn("the cache is full and nothing more may be evicted", "active", j.Tiers[Active].Bytes, "used", r.Used, "short", r.Short,
			"trigger", r.Trigger, "unknown", g.situation.Unknown)
	case !full && e.over && (l.Quota == 0 || j.Tiers[Active].Bytes <= part(l.Low, l.Quota)):
		e.over = false
		e.events.add("info", EventRoom, "the cache has room again")
		e.o.Log.Info("the cache has room again", "active", j.Tiers[Active].Bytes, "used", r.Used)
	}
	v := 0.0
	if e.over {
		v = 1
	}
	e.metrics.over.Set(v)
}

// metrics are the evictor's, in Prometheus's names and base units.
type metrics struct {
	evicted, refused *prometheus.CounterVec
	tiers            *prometheus.GaugeVec
	passes           prometheus.Counter
	over, duration   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "fairway", Subsystem: "node", Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "node", Name: name, Help: help}, labels)
	}
	m := &metrics{
		evicted: counters("evicted_bytes_total", "Bytes that eviction has freed, as the store confirmed them.", "tier", "reason"),
		refused: counters("evictions_refused_total", "Blobs chosen to be evicted that were kept: in use by the second answer of the runtimes, raced by a user, or failed.", "reason"),
		tiers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "fairway", Subsystem: "node", Name: "tier_bytes",
			Help: "Bytes of the cache by tier, at the beginning of the last pass."}, []string{"tier"}),
		passes: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "node", Name: "eviction_passes_total",
			Help: "Passes of the eviction."}),
		over:     gauge("over_quota", "1 while what has to stay is more than there is room for."),
		duration: gauge("eviction_pass_seconds", "Duration of the last pass."),
	}
	if reg != nil {
		reg.MustRegister(m.evicted, m.refused, m.tiers, m.passes, m.over, m.duration)
	}
	return m
}

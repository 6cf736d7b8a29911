package gc

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// metrics are the collector's, in Prometheus's names and base units.
type metrics struct {
	examined, collected, trashed, unlinked, purged, freed, failed prometheus.Counter
	kept                                                          *prometheus.CounterVec
	runs                                                          *prometheus.CounterVec
	duration                                                      prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, s *meta.Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "gc", Name: name, Help: help})
	}
	m := &metrics{
		examined:  counter("examined_total", "Items judged."),
		collected: counter("collected_total", "Blobs, manifests and upload sessions removed for good."),
		trashed:   counter("trashed_total", "Manifests moved to the trash by the collector."),
		unlinked:  counter("unlinked_total", "Blobs taken out of a repository."),
		purged:    counter("purged_objects_total", "Objects whose delete the blob store confirmed."),
		freed:     counter("freed_bytes_total", "Bytes that the blob store confirmed as freed."),
		failed:    counter("failures_total", "Items that failed and were left for a later run."),
		kept: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "gc", Name: "kept_total",
			Help: "Items judged and kept, by reason."}, []string{"reason"}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "gc", Name: "runs_total",
			Help: "Runs that are over, by trigger and state."}, []string{"trigger", "state"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "fairway", Subsystem: "gc", Name: "run_duration_seconds",
			Help: "Duration of runs.", Buckets: prometheus.ExponentialBuckets(0.01, 4, 10)}),
	}
	if reg != nil {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "fairway", Name: "clock_behind_seconds",
			Help: "How far the registry's clock is behind the machine's, which had jumped ahead at the start and is not believed."},
			func() float64 { return float64(s.ClockBehind()) / 1000 }))
		reg.MustRegister(m.examined, m.collected, m.trashed, m.unlinked, m.purged, m.freed, m.failed, m.kept, m.runs, m.duration, &queueCollector{store: s})
	}
	return m
}

func (m *metrics) worked(c meta.Counts) {
	m.examined.Add(float64(c.Examined))
	m.collected.Add(float64(c.Collected))
	m.trashed.Add(float64(c.Trashed))
	m.unlinked.Add(float64(c.Unlinked))
	m.purged.Add(float64(c.Purged))
	m.freed.Add(float64(c.FreedBytes))
	m.failed.Add(float64(c.Failed))
	for reason, n := range c.Kept {
		m.kept.WithLabelValues(reason).Add(float64(n))
	}
}

func (m *metrics) finished(r meta.Run, state string, now int64) {
	m.runs.WithLabelValues(r.Trigger, state).Inc()
	m.duration.Observe(float64(now-r.StartedAt.UnixMilli()) / 1000)
}

// queueCollector reads the sizes of the queues when it is scraped.
type queueCollector struct{ store *meta.Store }

var queueDescs = []struct {
	desc  *prometheus.Desc
	value func(meta.Stats) float64
}{
	{queueDesc("repositories", "Repositories."), func(s meta.Stats) float64 { return float64(s.Repositories) }},
	{queueDesc("gc_review_queue_length", "Rows in the review queue."), func(s meta.Stats) float64 { return float64(s.Reviews) }},
	{queueDesc("gc_oldest_review_age_seconds", "Age of the oldest event not yet judged; 0 for none."), func(s meta.Stats) float64 { return float64(s.OldestReview) / 1000 }},
	{queueDesc("gc_purge_queue_length", "Objects that wait to be deleted."), func(s meta.Stats) float64 { return float64(s.Purges) }},
	{queueDesc("gc_purge_queue_bytes", "Bytes that wait to be deleted."), func(s meta.Stats) float64 { return float64(s.PurgeBytes) }},
	{queueDesc("gc_purges_failing", "Objects whose delete has failed at least once."), func(s meta.Stats) float64 { return float64(s.PurgesStuck) }},
	{queueDesc("trash_manifests", "Manifests in the trash."), func(s meta.Stats) float64 { return float64(s.Trash) }},
	{queueDesc("uploads_open", "Open upload sessions."), func(s meta.Stats) float64 { return float64(s.Uploads) }},
	{queueDesc("leases", "Leases that have not expired."), func(s meta.Stats) float64 { return float64(s.Leases) }},
}

func queueDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("fairway_"+name, help, nil, nil)
}

// Describe implements prometheus.Collector.
func (q *queueCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range queueDescs {
		ch <- d.desc
	}
}

// Collect implements prometheus.Collector.
func (q *queueCollector) Collect(ch chan<- prometheus.Metric) {
	st, err := q.store.Stats(context.Background())
	for _, d := range queueDescs {
		if err != nil {
			ch <- prometheus.NewInvalidMetric(d.desc, err)
			continue
		}
		ch <- prometheus.MustNewConstMetric(d.desc, prometheus.GaugeValue, d.value(st))
	}
}

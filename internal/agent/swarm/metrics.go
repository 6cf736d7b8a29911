package swarm

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

type metrics struct {
	bytes      *prometheus.CounterVec // by source and use
	sent       prometheus.Counter
	members    prometheus.Gauge
	downloads  prometheus.Gauge
	queue      prometheus.Gauge
	piece      prometheus.Histogram
	failures   *prometheus.CounterVec
	mismatches prometheus.Counter
	bans       prometheus.Counter
	refused    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_node_swarm_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_node_swarm_" + name, Help: help})
	}
	m := &metrics{
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_swarm_received_bytes_total",
			Help: "Bytes of pieces received, by source (peer, origin); those of use=duplicate came in vain.",
		}, []string{"source", "use"}),
		sent:      counter("sent_bytes_total", "Bytes of pieces sent to peers."),
		members:   gauge("members", "Members of the cluster that are alive, this node included."),
		downloads: gauge("downloads", "Blobs that are being brought by the swarm."),
		queue:     gauge("upload_queue", "Pieces that peers wait for or are being sent."),
		piece: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fairway_node_swarm_piece_seconds", Help: "Time from asking a peer to the whole piece.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2.5, 10),
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_swarm_failures_total", Help: "Requests for pieces that did not bring all of them, by source.",
		}, []string{"source"}),
		mismatches: counter("mismatches_total", "Blobs that did not match their digest."),
		bans:       counter("bans_total", "Peers that were banned for a wrong piece."),
		refused:    counter("private_refused_total", "Requests for private content without a fresh right to it."),
	}
	if reg != nil {
		reg.MustRegister(m.bytes, m.sent, m.members, m.downloads, m.queue, m.piece, m.failures, m.mismatches, m.bans, m.refused)
	}
	return m
}

func (m *metrics) received(from plan.Node, n int, fresh bool) {
	use := "content"
	if !fresh {
		use = "duplicate"
	}
	m.bytes.WithLabelValues(kindOf(from), use).Add(float64(n))
}

package fetch

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	joined   prometheus.Counter
	inFlight prometheus.Gauge
	failures *prometheus.CounterVec
	streamed prometheus.Counter
	seconds  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		joined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_fetch_joined_total",
			Help: "Requests that joined a download that was under way.",
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairway_node_fetches_in_flight",
			Help: "Downloads under way.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_fetch_failures_total",
			Help: "Sources that could not bring a blob.",
		}, []string{"source", "kind"}),
		streamed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_streamed_through_total",
			Help: "Blobs handed out without keeping them, because the cache has no room.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairway_node_fetch_duration_seconds",
			Help:    "Time from the beginning of a download to its verified end.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
	}
	if reg != nil {
		reg.MustRegister(m.joined, m.inFlight, m.failures, m.streamed, m.seconds)
	}
	return m
}

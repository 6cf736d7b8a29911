package report

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	sent     *prometheus.CounterVec
	pending  prometheus.Gauge
	digests  prometheus.Gauge
	untraced prometheus.Gauge
	accepted prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "fairway", Subsystem: "node_report", Name: name, Help: help})
	}
	m := &metrics{
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "node_report", Name: "attempts_total",
			Help: "Reports to the registry, by result: accepted, refused or failed."}, []string{"result"}),
		pending:  gauge("pending", "1 while there is something that the registry has not heard."),
		digests:  gauge("digests", "Digests that were last found to be in use."),
		untraced: gauge("untraced_containers", "Containers that could not be traced to any image."),
		accepted: gauge("accepted_timestamp_seconds", "When the registry last accepted a report."),
	}
	if reg != nil {
		reg.MustRegister(m.sent, m.pending, m.digests, m.untraced, m.accepted)
	}
	return m
}

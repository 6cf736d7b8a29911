package nodes

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// collector counts nodes when it is scraped.
type collector struct{ store *meta.Store }

// descriptions are what collector tells: nodes by state, then digests.
func descriptions() (nodes, digests *prometheus.Desc) {
	return prometheus.NewDesc("fairway_nodes", "Nodes that have reported, by state: fresh, late (silent, what it ran is kept) and gone (silent for longer than its grace).", []string{"state"}, nil),
		prometheus.NewDesc("fairway_nodes_in_use_digests", "Digests that stay because a node has them in use.", nil, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	nodes, digests := descriptions()
	ch <- nodes
	ch <- digests
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	nodes, digests := descriptions()
	st, err := c.store.NodeStats(context.Background())
	if err != nil {
		ch <- prometheus.NewInvalidMetric(nodes, err)
		return
	}
	for state, n := range map[string]int64{nodeapi.StateFresh: st.Fresh, nodeapi.StateLate: st.Late, nodeapi.StateGone: st.Gone} {
		ch <- prometheus.MustNewConstMetric(nodes, prometheus.GaugeValue, float64(n), state)
	}
	ch <- prometheus.MustNewConstMetric(digests, prometheus.GaugeValue, float64(st.Digests))
}

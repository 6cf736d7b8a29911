package mirror

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/ociclient"
)

type metrics struct {
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	stale    prometheus.Counter
	joined   prometheus.Counter
	failures *prometheus.CounterVec
	refetch  prometheus.Counter

	oversized prometheus.Counter
	around    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_requests_total",
			Help: "Manifests and blobs handed to runtimes, by where they came from.",
		}, []string{"kind", "source"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_bytes_total",
			Help: "Bytes of manifests and blobs handed to runtimes, by where they came from; of a blob that the swarm brings piece by piece.",
		}, []string{"source"}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_stale_answers_total",
			Help: "Tags answered with their last known digest because the upstream was down.",
		}),
		joined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_manifest_joined_total",
			Help: "Requests for a tag or manifest that shared the question of another one to the upstream.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_node_upstream_failures_total",
			Help: "Questions that an upstream did not answer, or answered with an error of its own.",
		}, []string{"kind"}),
		refetch: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_refetched_total",
			Help: "Blobs of which something in the cache was corrupt while they were read, and that were fetched again.",
		}),
		oversized: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_oversized_total",
			Help: "Pulls of blobs that are larger than the whole cache, each passed on by itself.",
		}),
		around: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_node_around_cache_total",
			Help: "Requests answered by the upstream because the node's own index or disk failed.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.oversized, m.around, m.requests, m.bytes, m.stale, m.joined, m.failures, m.refetch)
	}
	return m
}

// upstreamFailed counts an upstream that gave no answer, or no useful one.
func (m *metrics) upstreamFailed(err error) {
	var refusal *ociclient.StatusError
	var late interface{ Timeout() bool }
	kind := "unreachable"
	switch {
	case errors.As(err, &refusal):
		kind = "status"
	case errors.As(err, &late) && late.Timeout():
		kind = "timeout"
	}
	m.failures.WithLabelValues(kind).Inc()
}

// handed counts bytes of blobs handed to runtimes.
type handed struct{ cache, peers, upstreams atomic.Int64 }

func (h *handed) add(from map[string]int64) {
	h.cache.Add(from[sourceCache])
	h.peers.Add(from[sourcePeer])
	h.upstreams.Add(from[sourceUpstream])
}

// Handed is the bytes of blobs that were handed to runtimes since the start, by
// where they came from.
func (m *Mirror) Handed() (cache, peers, upstreams int64) {
	return m.handed.cache.Load(), m.handed.peers.Load(), m.handed.upstreams.Load()
}

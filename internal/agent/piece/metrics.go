package piece

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg              prometheus.Registerer
	all              []prometheus.Collector
	corrupt, refused prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Store) (*metrics, error) {
	m := &metrics{reg: reg}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "node_cache", Name: name, Help: help})
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help string, value func(Usage) int64) {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "fairway", Subsystem: "node_cache", Name: name, Help: help},
			func() float64 { return float64(value(s.Usage())) }))
	}
	m.corrupt = counter("corrupt_pieces_total", "Pieces that were found damaged, and dropped to be fetched again.")
	m.refused = counter("admissions_refused_total", "Blobs that were not cached for lack of room.")
	gauge("bytes", "Disk taken by cached blobs, in bytes, with what is reserved for those being fetched.", func(u Usage) int64 { return u.Used })
	gauge("claimed_bytes", "Disk taken by blobs that are about to be removed, in bytes; a part of fairway_node_cache_bytes.", func(u Usage) int64 { return u.Claimed })
	gauge("quota_bytes", "Disk that the cache may take, in bytes; 0: as much as there is.", func(u Usage) int64 { return u.Quota })
	gauge("blobs", "Number of cached blobs.", func(u Usage) int64 { return u.Blobs })
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "fairway", Subsystem: "node_cache", Name: "identity_mismatch",
		Help: "1 if the directory of the cached blobs is not the one that was opened, or cannot be read; then nothing is cached or removed."},
		func() float64 {
			if s.strayed() {
				return 1
			}
			return 0
		}))
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			m.all = m.all[:i]
			return m, err
		}
	}
	return m, nil
}

// unregister lets another store of this process, opened later, count anew.
func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

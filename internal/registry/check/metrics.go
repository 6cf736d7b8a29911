package check

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	orphans, orphanBytes, failed prometheus.Counter
	lost, lastDone               prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		orphans:     prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_check_orphans_total", Help: "Objects found that nothing in the database names."}),
		orphanBytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_check_orphan_bytes_total", Help: "Size of the objects found that nothing in the database names."}),
		failed:      prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_check_failed_total", Help: "Objects that a check could not examine."}),
		lost:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_check_lost_blobs", Help: "Blobs whose bytes the last complete check found missing, cut or corrupt."}),
		lastDone:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_check_last_done_timestamp_seconds", Help: "When the last complete check ended, 0 for none since the start."}),
	}
	if reg != nil {
		reg.MustRegister(m.orphans, m.orphanBytes, m.failed, m.lost, m.lastDone)
	}
	return m
}

// ended counts a check that is over. One that goes on later is counted then.
func (m metrics) ended(rep Report) {
	if rep.State != StateDone {
		return
	}
	m.orphans.Add(float64(rep.Orphans.Count))
	m.orphanBytes.Add(float64(rep.Orphans.Bytes))
	m.failed.Add(float64(rep.Failed))
	m.lost.Set(float64(rep.LostCount))
	m.lastDone.Set(float64(rep.UpdatedAt.Unix()))
}

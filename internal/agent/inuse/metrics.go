package inuse

import "github.com/prometheus/client_golang/prometheus"

// collector shows the present status when it is asked, so that ages are right.
type collector struct{ tracker *Tracker }

func (c *collector) descs() (up, containers, images, age *prometheus.Desc) {
	labels := []string{"runtime"}
	return prometheus.NewDesc("fairway_node_runtime_up", "Whether the container runtime answered the last request.", labels, nil),
		prometheus.NewDesc("fairway_node_runtime_containers", "Containers that the runtime has, in any state.", labels, nil),
		prometheus.NewDesc("fairway_node_runtime_images", "Images that the runtime has.", labels, nil),
		prometheus.NewDesc("fairway_node_runtime_answer_age_seconds", "Age of the runtime's last full answer; absent before the first.", labels, nil)
}

// Describe is of prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	up, containers, images, age := c.descs()
	for _, d := range []*prometheus.Desc{up, containers, images, age} {
		ch <- d
	}
}

// Collect is of prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	up, containers, images, age := c.descs()
	gauge := func(d *prometheus.Desc, v float64, runtime string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, runtime)
	}
	now := c.tracker.o.Now()
	for _, st := range c.tracker.Usage().Sources {
		isUp := 0.0
		if st.Up {
			isUp = 1
		}
		gauge(up, isUp, st.Name)
		gauge(containers, float64(st.Containers), st.Name)
		gauge(images, float64(st.Images), st.Name)
		if st.known() {
			gauge(age, now.Sub(st.Answered).Seconds(), st.Name)
		}
	}
}

package httpserve

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the vectors; a Route holds children of them that are resolved
// once, because resolving one costs more than all else that is done to observe
// a request.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	received *prometheus.CounterVec
	sent     *prometheus.CounterVec
	inFlight prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_http_requests_total",
			Help: "Requests answered.",
		}, []string{"route", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "fairway_http_request_duration_seconds",
			Help:    "Time from the request's header to the end of its answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"route", "method"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_http_request_bytes_total",
			Help: "Bytes of request bodies received.",
		}, []string{"route", "method"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_http_response_bytes_total",
			Help: "Bytes of response bodies sent.",
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairway_http_requests_in_flight",
			Help: "Requests being answered.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.received, m.sent, m.inFlight)
	}
	return m
}

// methods are those counted by name; any other is counted as OTHER, so that a
// client cannot make series.
var methods = [...]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OTHER"}

func methodIndex(method string) int {
	for i, m := range methods[:len(methods)-1] {
		if m == method {
			return i
		}
	}
	return len(methods) - 1
}

// Route is one label value of the metrics.
type Route struct {
	name    string
	vectors *metrics
	methods [len(methods)]atomic.Pointer[children]
}

// children are the series of one route and method.
type children struct {
	seconds  prometheus.Observer
	received prometheus.Counter
	sent     prometheus.Counter
	codes    [500]atomic.Pointer[prometheus.Counter] // by status − 100
}

func (m *metrics) route(name string) *Route { return &Route{name: name, vectors: m} }

func (m *metrics) observe(r *Route, method string, status int, took time.Duration, received, sent int64) {
	i := methodIndex(method)
	c := r.methods[i].Load()
	if c == nil {
		c = &children{
			seconds:  m.seconds.WithLabelValues(r.name, methods[i]),
			received: m.received.WithLabelValues(r.name, methods[i]),
			sent:     m.sent.WithLabelValues(r.name, methods[i]),
		}
		r.methods[i].Store(c) // two at once store the same children
	}
	c.count(r, i, status)
	c.seconds.Observe(took.Seconds())
	if received > 0 {
		c.received.Add(float64(received))
	}
	if sent > 0 {
		c.sent.Add(float64(sent))
	}
}

func (c *children) count(r *Route, method, status int) {
	slot := status - 100
	if slot < 0 || slot >= len(c.codes) {
		slot = len(c.codes) - 1
	}
	p := c.codes[slot].Load()
	if p == nil {
		counter := r.vectors.requests.WithLabelValues(r.name, methods[method], strconv.Itoa(slot+100))
		p = &counter
		c.codes[slot].Store(p)
	}
	(*p).Inc()
}

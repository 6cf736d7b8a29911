package main

import (
	"os"
	"time"
)

// idle starts each server some times on an empty directory.
func (b *bench) idle(r *report) error {
	names := []string{"Fairway", "Distribution", "nginx"}
	starts := []func() (*server, error){func() (*server, error) { return b.startFairway() }, b.startDistribution, b.startNginx}
	var startup, rss [3][]float64
	for range max(b.rounds, 3) * 2 {
		for i, start := range starts {
			s, err := start()
			if err != nil {
				return err
			}
			time.Sleep(pick(b, time.Second, 200*time.Millisecond)) // idle is what it is after a while
			u, err := s.proc.Usage()
			s.stop()
			_ = os.RemoveAll(s.data) // the whole tree goes at the end anyway
			if err != nil {
				return err
			}
			startup[i] = append(startup[i], float64(s.proc.Startup().Microseconds())/1000)
			rss[i] = append(rss[i], float64(u.RSS)/(1<<20))
		}
	}
	r.textf("\n### Start and idle memory\n\nFrom exec to the first 200, on an empty directory; resident memory after a second. Targets: < 50 ms, < 50 MiB.\n\n")
	r.textf("| | start, ms | idle, MiB |\n|---|--:|--:|\n")
	for i, name := range names {
		r.textf("| %s | %.0f | %.1f |\n", name, median(startup[i]), median(rss[i]))
	}
	return nil
}

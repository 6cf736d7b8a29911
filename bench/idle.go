package main

import (
	"os"
	"time"
)

// idle starts each server some times, on an empty directory and again on what it
// has made there.
func (b *bench) idle(r *report) error {
	names := []string{"Fairway", "Distribution", "nginx"}
	starts := []func() (*server, error){func() (*server, error) { return b.startFairway() }, b.startDistribution, b.startNginx}
	var first, again, rss [3][]float64
	for range max(b.rounds, 3) * 2 {
		for i, start := range starts {
			s, err := start()
			if err != nil {
				return err
			}
			time.Sleep(pick(b, time.Second, 200*time.Millisecond)) // idle is what it is after a while
			u, err := s.proc.Usage()
			s.stop()
			if err != nil {
				return err
			}
			rss[i] = append(rss[i], float64(u.RSS)/(1<<20))
			first[i] = append(first[i], float64(s.proc.Startup().Microseconds())/1000)
			if s, err = s.again(b); err != nil {
				return err
			}
			again[i] = append(again[i], float64(s.proc.Startup().Microseconds())/1000)
			s.stop()
			_ = os.RemoveAll(s.data) // the whole tree goes at the end anyway
		}
	}
	r.textf("\n## Start and idle memory\n\nFrom exec to the first 200; resident memory a second after. The first start on an empty directory makes and syncs the database and a reserve of disk space. Targets: < 50 ms, < 50 MiB.\n\n")
	r.textf("| | start, ms | first start, ms | idle, MiB |\n|---|--:|--:|--:|\n")
	for i, name := range names {
		r.textf("| %s | %.0f | %.0f | %.1f |\n", name, median(again[i]), median(first[i]), median(rss[i]))
	}
	r.atMost("start, ms", median(again[0]), 50)
	r.atMost("idle memory, MiB", median(rss[0]), 50)
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// outcome is what `gc run --json` prints.
type outcome struct {
	Examined   int64     `json:"examined"`
	Collected  int64     `json:"collected"`
	Unlinked   int64     `json:"unlinked"`
	FreedBytes int64     `json:"freed_bytes"`
	Failed     int64     `json:"failed"`
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`

	wall    time.Duration // of the command
	rssPeak int64         // bytes, seen while it ran
}

func (o outcome) took() time.Duration { return o.FinishedAt.Sub(o.StartedAt) }

// collect runs a collection and watches the server's memory meanwhile.
func (b *bench) collect(s *server, args ...string) (outcome, error) {
	ctx, cancel := context.WithCancel(b.ctx)
	peak := make(chan int64, 1)
	go func() {
		var most int64
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			if u, err := s.proc.Usage(); err == nil {
				most = max(most, u.RSS)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				peak <- most
				return
			}
		}
	}()
	began := time.Now()
	out, err := exec.CommandContext(b.ctx, b.fairway, append([]string{"gc", "run", "--json", "--server", s.url()}, args...)...).Output()
	o := outcome{wall: time.Since(began)}
	cancel()
	o.rssPeak = <-peak
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return o, fmt.Errorf("gc run: %w", err)
	}
	return o, json.Unmarshal(out, &o)
}

// stock is a registry with a number of stored items.
type stock struct {
	*server
	items                              int
	took, wall, perSecond, rss, growth []float64
	failed                             int64
	first                              time.Duration // until the seeded rows were reviewed once
}

// startStocked seeds a directory and starts a registry on it, with all that
// seeding left to review reviewed.
func (b *bench) startStocked(items int) (*stock, error) {
	began := time.Now()
	data := filepath.Join(b.dir, fmt.Sprintf("stock-%d-%s", items, unique()))
	if err := seed(b.ctx, data, items); err != nil {
		return nil, fmt.Errorf("seed %d items: %w", items, err)
	}
	log.Printf("seeded %d items in %s", items, time.Since(began).Round(time.Millisecond))
	s, err := b.start("fairway", b.fairway, "/readyz", func(addr, _ string) ([]string, error) {
		return fairwayArgs(nil)(addr, data)
	})
	if err != nil {
		return nil, err
	}
	st := &stock{server: s, items: items}
	o, err := b.collect(s, "--window", "0", "--trash", "0")
	if err != nil {
		s.stop()
		return nil, err
	}
	st.first = o.took()
	return st, nil
}

func (b *bench) collector(r *report) error {
	var stocks []*stock
	defer func() {
		for _, s := range stocks {
			s.stop()
		}
	}()
	for _, items := range pick(b, []int{10_000, 100_000, 1_000_000}, []int{1_000, 10_000, 50_000}) {
		s, err := b.startStocked(items)
		if err != nil {
			return err
		}
		stocks = append(stocks, s)
	}
	const images = 334 // 1,002 items
	for round := range b.rounds + 1 {
		for _, s := range stocks {
			if err := garbage(s.server, images, 1000); err != nil {
				return err
			}
			before, err := s.proc.Usage()
			if err != nil {
				return err
			}
			o, err := b.collect(s.server, "--window", "0", "--trash", "0")
			if err != nil {
				return err
			}
			if o.Collected != images*itemsPerImage || o.Failed != 0 {
				return fmt.Errorf("among %d items, %d of %d garbage items were collected, %d failed", s.items, o.Collected, images*itemsPerImage, o.Failed)
			}
			if round == 0 {
				continue // warm up
			}
			s.took = append(s.took, o.took().Seconds()*1000)
			s.wall = append(s.wall, o.wall.Seconds()*1000)
			s.perSecond = append(s.perSecond, float64(o.Collected)/o.took().Seconds())
			s.rss = append(s.rss, float64(before.RSS)/(1<<20))
			s.growth = append(s.growth, float64(o.rssPeak-before.RSS)/(1<<20))
			s.failed += o.Failed
		}
	}
	r.textf("\n## Collection\n\n%d images of three items each are pushed and deleted among N stored items, then `gc run --window 0 --trash 0`.\n"+
		"The time is the run's own, with bytes removed and confirmed; beside it that of the whole command.\nTargets: ≤ 1.2 × the smallest, ≥ 5,000 items a second, memory flat.\n\n", images)
	r.textf("| stored items | time, ms | × the smallest | items a second | command, ms | memory before, MiB | grown by, MiB | failed |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, s := range stocks {
		t := median(s.took)
		r.textf("| %s | %.0f | %.2f | %s | %.0f | %.1f | %.1f | %d |\n", thousands(float64(s.items)), t, t/median(stocks[0].took), thousands(median(s.perSecond)),
			median(s.wall), median(s.rss), median(s.growth), s.failed)
	}
	largest := stocks[len(stocks)-1]
	r.atMost("collection, the largest registry × the smallest", median(largest.took)/median(stocks[0].took), 1.2)
	r.atLeast("collection in the largest registry, items a second", median(largest.perSecond), 5000)
	r.atMost("memory before a collection in the largest registry, MiB", median(largest.rss), 50)
	return nil
}

// latency pushes small images at a fixed rate, with and without a collection
// running, and compares how long they take.
func (b *bench) latency(r *report) error {
	s, err := b.startStocked(pick(b, 100_000, 10_000))
	if err != nil {
		return err
	}
	defer s.stop()
	const perSecond = 40
	batch := pick(b, 8000, 1000) // images, three items each
	var idle, busy []float64
	var failed int
	var items int64
	var running time.Duration
	for range b.rounds {
		if err := garbage(s.server, batch, 1000); err != nil {
			return err
		}
		// Otherwise the kernel writes what is left of the garbage during the first pushes.
		if err := b.flush(); err != nil {
			return err
		}
		// The window protects the pushes that are measured; the garbage is older, once
		// this time is over: nothing but time makes it so.
		time.Sleep(window + 500*time.Millisecond)

		ms, bad := pushFor(b.ctx, s.addr, perSecond, pick(b, 5*time.Second, time.Second), nil)
		idle, failed = append(idle, ms...), failed+bad

		done := make(chan struct{})
		var o outcome
		var collectErr error
		go func() {
			defer close(done)
			o, collectErr = b.collect(s.server, "--window", window.String(), "--trash", "0")
		}()
		ms, bad = pushFor(b.ctx, s.addr, perSecond, time.Minute, done)
		<-done
		if collectErr != nil {
			return collectErr
		}
		busy, failed = append(busy, ms...), failed+bad
		items += o.Collected
		running += o.took()
	}
	r.textf("\n## Pushes during a collection\n\n%d small images a second are pushed at fixed times to a registry with %s items, alone and while a collection of %s items runs.\n"+
		"Time from when a push was due to its 201. Target: p99 ≤ 1.1 × idle, none failed.\n\n", perSecond, thousands(float64(s.items)), thousands(float64(batch*itemsPerImage)))
	r.textf("| | pushes | p50, ms | p99, ms |\n|---|--:|--:|--:|\n")
	r.textf("| idle | %d | %.2f | %.2f |\n", len(idle), median(idle), quantile(idle, 0.99))
	r.textf("| collecting | %d | %.2f | %.2f |\n", len(busy), median(busy), quantile(busy, 0.99))
	r.textf("| ratio | | %.2f | %.2f |\n\n", median(busy)/median(idle), quantile(busy, 0.99)/quantile(idle, 0.99))
	r.atMost("push p99 during a collection, × idle", quantile(busy, 0.99)/quantile(idle, 0.99), 1.1)
	r.atMost("pushes failed during collections", float64(failed), 0)
	r.textf("Failed pushes: %d. The collections removed %s items, %s a second, beside the pushes.\n", failed, thousands(float64(items)), thousands(float64(items)/running.Seconds()))
	return nil
}

// window of the collections that run beside pushes: longer than a push takes.
const window = 2 * time.Second

// pushFor starts a push every 1/perSecond until the time is over or done is
// closed, and returns how many milliseconds each took, from when it was due.
func pushFor(ctx context.Context, addr string, perSecond int, d time.Duration, done <-chan struct{}) (ms []float64, failed int) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	idle := make(chan *client, 256)
	defer func() {
		for {
			select {
			case c := <-idle:
				c.close()
			default:
				return
			}
		}
	}()
	var mu sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		var due time.Time
		select {
		case <-ctx.Done():
			wg.Wait()
			return ms, failed
		case <-done:
			wg.Wait()
			return ms, failed
		case due = <-tick.C:
		}
		im := newImage(smallLayer)
		wg.Go(func() {
			err := pushWith(idle, addr, im)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				log.Print(err)
				return
			}
			ms = append(ms, time.Since(due).Seconds()*1000)
		})
	}
}

func pushWith(idle chan *client, addr string, im image) error {
	var c *client
	select {
	case c = <-idle:
	default:
		var err error
		if c, err = dial(addr); err != nil {
			return err
		}
	}
	if err := c.push("bench/latency", "t"+im.digest.Encoded()[:12], im); err != nil {
		c.close()
		return err
	}
	idle <- c
	return nil
}

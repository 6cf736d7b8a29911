package main

import (
	"errors"
	"sync"
	"time"
)

const (
	smallClients = 16
	smallLayer   = 8 << 10 // bytes
)

// smallImages pushes images like no others: HEAD, POST and PUT for the config
// and for the layer, PUT for the manifest.
func (b *bench) smallImages(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	each := pick(b, 60, 10)
	var rates, cpu [2][]float64
	for round := range b.rounds + 1 {
		for i, s := range servers[:2] {
			images := make([][]image, smallClients)
			for c := range images {
				for range each {
					images[c] = append(images[c], newImage(smallLayer))
				}
			}
			m, err := s.measure(func() (time.Duration, error) { return pushAll(s.addr, images) })
			if err != nil {
				return err
			}
			if round > 0 {
				n := float64(smallClients * each)
				rates[i] = append(rates[i], n/m.took.Seconds())
				cpu[i] = append(cpu[i], float64(m.cpu.Microseconds())/1000/n)
			}
		}
	}
	f, d := median(rates[0]), median(rates[1])
	r.textf("\n## Push of small images\n\n%d clients, each image a config, a layer of %d KiB and a manifest that nobody has pushed before: seven requests, all durable.\nTarget: ≥ 3 × Distribution.\n\n", smallClients, smallLayer>>10)
	r.textf("| images a second | Fairway | Distribution | × Distribution | CPU ms an image: Fairway | Distribution |\n|---|--:|--:|--:|--:|--:|\n")
	r.textf("| push | %.0f | %.0f | %.1f | %.2f | %.2f |\n", f, d, f/d, median(cpu[0]), median(cpu[1]))
	r.atLeast("small images, × Distribution", f/d, 3)
	return nil
}

// pushAll has one client for each list of images.
func pushAll(addr string, images [][]image) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, len(images))
	began := time.Now()
	for i, list := range images {
		wg.Go(func() {
			c, err := dial(addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.close()
			for _, im := range list {
				if errs[i] = c.push("bench/small", "t"+im.digest.Encoded()[:12], im); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tags puts many tags on one manifest, as a release job does.
func (b *bench) tags(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	n := pick(b, 5000, 500)
	im := newImage(1000)
	for _, s := range servers[:2] {
		c, err := dial(s.addr)
		if err != nil {
			return err
		}
		err = c.push("bench/tags", "v0", im)
		c.close()
		if err != nil {
			return err
		}
	}
	var rates, cpu, late [2][]float64
	for round := range b.rounds + 1 {
		for i, s := range servers[:2] {
			unix.Sync()
			var last float64
			m, err := s.measure(func() (took time.Duration, err error) {
				took, last, err = putTags(s.addr, im, round, n)
				return took, err
			})
			if err != nil {
				return err
			}
			if round > 0 {
				rates[i] = append(rates[i], float64(n)/m.took.Seconds())
				cpu[i] = append(cpu[i], float64(m.cpu.Microseconds())/float64(n))
				late[i] = append(late[i], last)
			}
		}
	}
	f, d := median(rates[0]), median(rates[1])
	r.textf("\n## Tags\n\n%d clients put %d tags on one manifest that is there already. Target: ≥ 5 × Distribution.\n\"Last to first\" is the time of the last tenth of them over that of the first.\n\n", conns, n)
	r.textf("| tags a second | Fairway | Distribution | × Distribution | CPU µs: Fairway | Distribution | last to first: Fairway | Distribution |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	r.textf("| PUT | %s | %s | %.1f | %.0f | %.0f | %.2f | %.2f |\n", thousands(f), thousands(d), f/d, median(cpu[0]), median(cpu[1]), median(late[0]), median(late[1]))
	r.atLeast("tags, × Distribution", f/d, 5)
	return nil
}

// putTags returns how long n tags took, and the time of the last tenth of them
// over that of the first.
func putTags(addr string, im image, round, n int) (took time.Duration, lastToFirst float64, err error) {
	var (
		wg    sync.WaitGroup
		next  atomic.Int64
		times = make([]time.Duration, n)
		errs  = make([]error, conns)
		began = time.Now()
	)
	for i := range errs {
		wg.Go(func() {
			c, err := dial(addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.close()
			for k := next.Add(1) - 1; k < int64(n); k = next.Add(1) - 1 {
				if _, errs[i] = c.want(http.StatusCreated, http.MethodPut, fmt.Sprintf("/v2/bench/tags/manifests/r%d-%d", round, k), manifestHeader, im.manifest); errs[i] != nil {
					return
				}
				times[k] = time.Since(began)
			}
		})
	}
	wg.Wait()
	took = time.Since(began)
	tenth := n / 10
	return took, float64(times[n-1]-times[n-1-tenth]) / float64(times[tenth]-times[0]), errors.Join(errs...)
}

// chunks uploads layers in chunks of 1 MiB, each a PATCH, as regclient and others do.
func (b *bench) chunks(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	u := newBulk(pick(b, 512<<20, 64<<20))
	var rates, cpu [2][]float64
	for round := range b.rounds + 1 {
		for i, s := range servers[:2] {
			u.next()
			unix.Sync()
			m, err := s.measure(func() (time.Duration, error) { return u.pushChunks(s) })
			if err != nil {
				return err
			}
			if round > 0 {
				rates[i] = append(rates[i], float64(u.blocks)/m.took.Seconds())
				cpu[i] = append(cpu[i], float64(m.cpu.Milliseconds())*1024/float64(u.blocks))
			}
		}
	}
	f, d := median(rates[0]), median(rates[1])
	r.textf("\n## Upload in chunks\n\nOne client sends %d MiB in chunks of 1 MiB. Fairway's answer to a chunk and to the last PUT is durable.\n\n", u.blocks)
	r.textf("| MiB/s | Fairway | Distribution | × Distribution | CPU ms a GiB: Fairway | Distribution |\n|---|--:|--:|--:|--:|--:|\n")
	r.textf("| PATCH | %s | %s | %.1f | %.0f | %.0f |\n", thousands(f), thousands(d), f/d, median(cpu[0]), median(cpu[1]))
	return nil
}

// pushChunks uploads the layer in chunks and returns how long that took up to its 201.
func (u *bulk) pushChunks(s *server) (time.Duration, error) {
	d, err := u.digest()
	if err != nil {
		return 0, err
	}
	c, err := dial(s.addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	w := &chunker{client: c}
	began := time.Now()
	a, err := c.want(http.StatusAccepted, http.MethodPost, "/v2/bench/chunks/blobs/uploads/", "", nil)
	if err != nil {
		return 0, err
	}
	w.location = a.location
	if _, err := u.WriteTo(w); err != nil { // in blocks of 1 MiB
		return 0, err
	}
	_, err = c.want(http.StatusCreated, http.MethodPut, finishing(w.location, d), "", nil)
	return time.Since(began), err
}

// chunker sends each Write as one chunk.
type chunker struct {
	*client
	location string
	sent     int64
}

func (w *chunker) Write(p []byte) (int, error) {
	header := fmt.Sprintf("%sContent-Length: %d\r\nContent-Range: %d-%d\r\n", octets, len(p), w.sent, w.sent+int64(len(p))-1)
	if _, err := fmt.Fprintf(w.conn, "PATCH %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", w.location, w.addr, header); err != nil {
		return 0, err
	}
	if _, err := w.conn.Write(p); err != nil {
		return 0, err
	}
	a, err := w.answer(http.MethodPatch, w.location)
	if err != nil {
		return 0, err
	}
	if a.status != http.StatusAccepted {
		return 0, fmt.Errorf("PATCH: %d %s", a.status, a.body)
	}
	w.location, w.sent = a.location, w.sent+int64(len(p))
	return len(p), nil
}

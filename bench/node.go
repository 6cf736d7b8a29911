package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// startNode starts an agent without a runtime that pulls from a registry.
func (b *bench) startNode(registry *server, more ...string) (*server, error) {
	return b.start("node", b.fairway, "/healthz", func(addr, data string) ([]string, error) {
		return append([]string{"node", "--registry", registry.url(), "--data", filepath.Join(data, "node"), "--listen", addr, "--runtime", "none"}, more...), nil
	})
}

// through is the path of something of a registry at an agent.
func through(registry *server, path string) string { return path + "?ns=" + registry.addr }

// node measures the agent: what it adds to a pull, and what eviction costs.
func (b *bench) node(r *report) error {
	for _, f := range []func(*report) error{b.warmPull, b.firstByte, b.eviction} {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// warmPull pulls a large layer that the agent has, beside nginx.
func (b *bench) warmPull(r *report) error {
	registry, err := b.startFairway()
	if err != nil {
		return err
	}
	defer registry.stop()
	node, err := b.startNode(registry)
	if err != nil {
		return err
	}
	defer node.stop()
	nginx, err := b.startNginx()
	if err != nil {
		return err
	}
	defer nginx.stop()
	u := newBulk(pick(b, 1<<30, 128<<20))
	d, err := u.digest()
	if err != nil {
		return err
	}
	if _, err := u.push(registry, "bench/large", d); err != nil {
		return err
	}
	if err := u.file(filepath.Join(nginx.data, "www", "layer")); err != nil {
		return err
	}
	servers := []*server{node, nginx}
	paths := []string{through(registry, "/v2/bench/large/blobs/"+d.String()), "/layer"}
	r.textf("\n## Pull through a warm node\n\n%d MiB that the agent has in its cache, out of the page cache, thrown away by the reader. Each round comes once from each. The agent checks each piece that it has not read since it came, once; from then on the kernel sends the file. Target: ≥ 0.9 of a pull directly from nginx.\n\n", u.blocks)
	r.textf("| MiB/s in all | through the node | nginx | of nginx | CPU ms a GiB: node | nginx |\n|---|--:|--:|--:|--:|--:|\n")
	for _, c := range []struct {
		what            string
		readers, rounds int
	}{
		{"", 1, 1}, // fills the cache
		{"the first after that, which is checked", 1, 1},
		{"1 at once", 1, b.rounds},
		{"4 at once", 4, b.rounds},
	} {
		var speeds, cpu [2][]float64
		for range c.rounds {
			for i, s := range servers {
				speed, ms, err := measurePull(s, paths[i], u.size(), c.readers)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				speeds[i], cpu[i] = append(speeds[i], speed), append(cpu[i], ms)
			}
		}
		if c.what == "" {
			continue
		}
		a, n := median(speeds[0]), median(speeds[1])
		r.textf("| %s | %s | %s | %.2f | %.0f | %.0f |\n", c.what, thousands(a), thousands(n), a/n, median(cpu[0]), median(cpu[1]))
		if c.what == "1 at once" {
			r.atLeast("pull through a warm node, of nginx", a/n, 0.9)
		}
	}
	return nil
}

// measurePull returns MiB/s of all readers together, and the server's CPU time
// for a GiB in milliseconds.
func measurePull(s *server, path string, size, readers int) (speed, cpu float64, err error) {
	before, err := s.proc.Usage()
	if err != nil {
		return 0, 0, err
	}
	took, err := pullAll(s.addr, path, size, readers, false)
	if err != nil {
		return 0, 0, err
	}
	after, err := s.proc.Usage()
	if err != nil {
		return 0, 0, err
	}
	mibs := float64(readers*size) / (1 << 20)
	return mibs / took.Seconds(), float64((after.CPU - before.CPU).Milliseconds()) * 1024 / mibs, nil
}

// file writes the layer for nginx.
func (u *bulk) file(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := u.WriteTo(f); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// firstByte compares a layer that comes straight from the registry with one that
// the agent has to fetch from there first, each pulled once.
func (b *bench) firstByte(r *report) error {
	registry, err := b.startFairway()
	if err != nil {
		return err
	}
	defer registry.stop()
	node, err := b.startNode(registry)
	if err != nil {
		return err
	}
	defer node.stop()
	push, err := dial(registry.addr)
	if err != nil {
		return err
	}
	defer push.close()
	n := pick(b, 100, 20)
	var direct, cold []float64
	for i := range n {
		im := newImage(4 << 20)
		tag := strconv.Itoa(i)
		if err := push.push("bench/cold", tag, im); err != nil {
			return err
		}
		// A runtime has read the manifest by the time it asks for a layer.
		if err := get(node.url() + through(registry, "/v2/bench/cold/manifests/"+tag)); err != nil {
			return err
		}
		blob := "/v2/bench/cold/blobs/" + im.layerDigest.String()
		for _, way := range []struct {
			addr, path string
			times      *[]float64
		}{{registry.addr, blob, &direct}, {node.addr, through(registry, blob), &cold}} {
			took, err := timeFirstByte(way.addr, way.path, len(im.layer))
			if err != nil {
				return err
			}
			*way.times = append(*way.times, float64(took.Microseconds())/1000)
		}
	}
	d, c := median(direct), median(cold)
	r.textf("\n## First byte of a cold pull\n\nFrom the request to the first byte of a layer of 4 MiB, on a connection that is open; %d layers, each pulled straight from the registry and then through the agent, which does not have it. Target: < 5 ms added.\n\n", n)
	r.textf("| ms | straight | through the node | added |\n|---|--:|--:|--:|\n")
	r.textf("| median | %.2f | %.2f | %.2f |\n| p95 | %.2f | %.2f | %.2f |\n", d, c, c-d,
		quantile(direct, 0.95), quantile(cold, 0.95), quantile(cold, 0.95)-quantile(direct, 0.95))
	r.atMost("first byte of a cold pull, ms added", c-d, 5)
	return nil
}

func get(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// timeFirstByte reads a blob whole and returns when its first byte was there.
func timeFirstByte(addr, path string, size int) (time.Duration, error) {
	c, err := dial(addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	// The first request of a connection pays for the connection.
	if _, err := c.want(http.StatusOK, http.MethodGet, "/v2/", "", nil); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, addr); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, err
	}
	body := bufio.NewReaderSize(resp.Body, 32<<10)
	if _, err := body.Peek(1); err != nil {
		return 0, fmt.Errorf("GET %s: %s: %w", path, resp.Status, err)
	}
	took := time.Since(began)
	n, err := io.Copy(io.Discard, body)
	if err == nil && (resp.StatusCode != http.StatusOK || n != int64(size)) {
		err = fmt.Errorf("GET %s: %s, %d bytes", path, resp.Status, n)
	}
	return took, errors.Join(err, resp.Body.Close())
}

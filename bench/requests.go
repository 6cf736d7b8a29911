package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// question is one kind of request.
type question struct {
	name         string
	method, path string
	header       string
}

// rate is what a contestant made of a question.
type rate struct{ perSecond, cpuMicros []float64 }

// ask measures questions of contestants in turn. questions[i] goes to servers[i].
func (b *bench) ask(servers []*server, questions []question, conns int) ([]rate, error) {
	rates := make([]rate, len(servers))
	for round := range b.rounds + 1 {
		for i, s := range servers {
			q := questions[i]
			before, err := s.proc.Usage()
			if err != nil {
				return nil, err
			}
			res, err := load{
				addr: s.addr, conns: conns, head: q.method == http.MethodHead,
				request:  []byte(q.method + " " + q.path + " HTTP/1.1\r\nHost: " + s.addr + "\r\n" + q.header + "\r\n"),
				duration: pick(b, 2*time.Second, 300*time.Millisecond),
			}.run()
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", s.name, q.name, err)
			}
			if res.bad > 0 {
				return nil, fmt.Errorf("%s %s: %d of %d answers were not 200", s.name, q.name, res.bad, res.requests)
			}
			after, err := s.proc.Usage()
			if err != nil {
				return nil, err
			}
			if round == 0 {
				continue // warm up
			}
			rates[i].perSecond = append(rates[i].perSecond, res.perSecond())
			rates[i].cpuMicros = append(rates[i].cpuMicros, float64((after.CPU-before.CPU).Microseconds())/float64(res.requests))
		}
	}
	return rates, nil
}

const conns = 16

func (b *bench) requests(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	bare, err := b.startBare()
	if err != nil {
		return err
	}
	defer bare.stop()
	im := newImage(100_000)
	for _, s := range servers[:2] {
		c, err := dial(s.addr)
		if err != nil {
			return err
		}
		err = c.push("bench/image", "v1", im)
		c.close()
		if err != nil {
			return err
		}
	}
	www := filepath.Join(servers[2].data, "www")
	for name, content := range map[string][]byte{"manifest": im.manifest, "layer": im.layer} {
		for _, dir := range []string{www, bare.data} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				return err
			}
		}
	}

	r.textf("\n## Requests\n\nRequests a second with %d connections from one thread, and CPU time of the server for one request.\n"+
		"Beside nginx serving a file with the same bytes, and a handler of Go's net/http that writes them from memory and\n"+
		"does nothing else: what Fairway could reach on that library. Targets: ≥ 0.6 of nginx, ≤ 20 µs.\n\n", conns)
	r.textf("| request | Fairway | Distribution | nginx | net/http | of nginx | × Distribution | CPU µs: Fairway | Distribution | nginx | net/http |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	accept := "Accept: " + v1.MediaTypeImageManifest + "\r\n"
	for _, k := range []struct{ name, method, path, header, file string }{
		{"manifest GET by tag", http.MethodGet, "/v2/bench/image/manifests/v1", accept, "/manifest"},
		{"manifest GET by digest", http.MethodGet, "/v2/bench/image/manifests/" + im.digest.String(), accept, "/manifest"},
		{"manifest HEAD by tag", http.MethodHead, "/v2/bench/image/manifests/v1", accept, "/manifest"},
		{"blob HEAD", http.MethodHead, "/v2/bench/image/blobs/" + im.layerDigest.String(), "", "/layer"},
	} {
		q := question{k.name, k.method, k.path, k.header}
		file := question{k.name, k.method, k.file, ""}
		rates, err := b.ask(append(servers, bare), []question{q, q, file, file}, conns)
		if err != nil {
			return err
		}
		f, d, n := median(rates[0].perSecond), median(rates[1].perSecond), median(rates[2].perSecond)
		r.textf("| %s | %s | %s | %s | %s | %.2f | %.1f | %.0f | %.0f | %.0f | %.0f |\n", k.name, thousands(f), thousands(d), thousands(n), thousands(median(rates[3].perSecond)), f/n, f/d,
			median(rates[0].cpuMicros), median(rates[1].cpuMicros), median(rates[2].cpuMicros), median(rates[3].cpuMicros))
		r.atLeast(k.name+", of nginx", f/n, 0.6)
		r.atMost(k.name+", CPU µs", median(rates[0].cpuMicros), 20)
	}
	return nil
}

func (b *bench) lists(r *report) error {
	servers, stop, err := b.three()
	if err != nil {
		return err
	}
	defer stop()
	servers = servers[:2]
	n := pick(b, 1000, 200)
	im := newImage(1000)
	for _, s := range servers {
		if err := fillLists(s, n, im); err != nil {
			return err
		}
	}
	r.textf("\n## Lists\n\nA repository with %d tags, a registry with %d repositories; 4 connections. Target: ≥ 10 × Distribution.\n\n", n, n+1)
	r.textf("| request | Fairway | Distribution | × Distribution | CPU µs: Fairway | Distribution |\n|---|--:|--:|--:|--:|--:|\n")
	for _, q := range []question{
		{"all tags", http.MethodGet, "/v2/bench/tags/tags/list", ""},
		{"100 tags after one", http.MethodGet, "/v2/bench/tags/tags/list?n=100&last=v0050", ""},
		{"catalog, all", http.MethodGet, "/v2/_catalog?n=" + strconv.Itoa(n+10), ""},
		{"catalog, 100 after one", http.MethodGet, "/v2/_catalog?n=100&last=bench/repo-0050", ""},
	} {
		rates, err := b.ask(servers, []question{q, q}, 4)
		if err != nil {
			return err
		}
		f, d := median(rates[0].perSecond), median(rates[1].perSecond)
		r.textf("| %s | %s | %s | %.1f | %s | %s |\n", q.name, thousands(f), thousands(d), f/d, thousands(median(rates[0].cpuMicros)), thousands(median(rates[1].cpuMicros)))
		r.atLeast(q.name+", × Distribution", f/d, 10)
	}
	return nil
}

func fillLists(s *server, n int, im image) error {
	c, err := dial(s.addr)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.push("bench/tags", "v0000", im); err != nil {
		return err
	}
	for i := 1; i < n; i++ {
		if _, err := c.want(http.StatusCreated, http.MethodPut, fmt.Sprintf("/v2/bench/tags/manifests/v%04d", i), manifestHeader, im.manifest); err != nil {
			return err
		}
	}
	for i := range n {
		repo := fmt.Sprintf("bench/repo-%04d", i)
		for _, d := range []string{im.configDigest.String(), im.layerDigest.String()} {
			if _, err := c.want(http.StatusCreated, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?mount="+d+"&from=bench/tags", "", nil); err != nil {
				return err
			}
		}
		if _, err := c.want(http.StatusCreated, http.MethodPut, "/v2/"+repo+"/manifests/v1", manifestHeader, im.manifest); err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/crowd"
)

// scenario is how a crowd comes.
type scenario struct {
	name    string
	arrival time.Duration // between two nodes
	slow    bool          // one more node has a tenth of the link
}

// Arrivals 300 ms apart were the weak point of earlier designs. In the third, one
// node more than the table says has a tenth of the link; it is not in the figures.
var scenarios = []scenario{
	{name: "flash crowd"},
	{name: "staggered by 300 ms", arrival: 300 * time.Millisecond},
	{name: "one more at a tenth of the speed", slow: true},
}

// figures of one run.
type figures struct {
	ratio, copies, rss, first, idle float64
	cpu, all                        float64 // s/GiB and node: of the agent, of the whole machine
}

func (b *bench) table(nodes int) error {
	for _, s := range scenarios {
		if !b.only.MatchString(s.name) {
			continue
		}
		for _, alone := range []bool{false, true} {
			source, rounds := "swarm", b.rounds
			if alone {
				source, rounds = "registry", 1 // nothing in it varies, and it takes long
			}
			if alone && (!b.direct || s.slow) {
				continue
			}
			var all []figures
			for range rounds {
				f, err := b.run(s, nodes, alone)
				if err != nil {
					return fmt.Errorf("%s, %d nodes, %s: %w", s.name, nodes, source, err)
				}
				log.Printf("%d MB/s, %d nodes, %s, %s: %.2f × bound, %.3f copies", b.rate/1e6, nodes, s.name, source, f.ratio, f.copies)
				all = append(all, f)
			}
			m := medians(all)
			fmt.Printf("| %d MB/s | %d | %s | %s | %.2f | %.3f | %.1f | %.1f | %.0f MiB | %.0f ms | %.0f %% |\n",
				b.rate/1e6, nodes, s.name, source, m.ratio, m.copies, m.cpu, m.all, m.rss, m.first, m.idle)
		}
	}
	return nil
}

func medians(all []figures) figures {
	of := func(f func(figures) float64) float64 {
		var xs []float64
		for _, x := range all {
			xs = append(xs, f(x))
		}
		return median(xs)
	}
	return figures{
		ratio: of(func(f figures) float64 { return f.ratio }), copies: of(func(f figures) float64 { return f.copies }),
		rss: of(func(f figures) float64 { return f.rss }), first: of(func(f figures) float64 { return f.first }),
		idle: of(func(f figures) float64 { return f.idle }),
		cpu:  of(func(f figures) float64 { return f.cpu }), all: of(func(f figures) float64 { return f.all }),
	}
}

func median(xs []float64) float64 {
	slices.Sort(xs)
	return xs[len(xs)/2]
}

// scene is a registry and a crowd that has gathered.
type scene struct {
	origin *crowd.Origin
	crowd  *crowd.Crowd
	im     crowd.Image
	net    *crowd.Net // nil: loopback
	link   crowd.Link // of a node, by token buckets
	dir    string
}

func (s *scene) close() {
	if s.crowd != nil {
		s.crowd.Close()
	}
	if s.origin != nil {
		s.origin.Close()
	}
	if s.net != nil {
		if err := s.net.Close(); err != nil {
			log.Print(err)
		}
	}
	_ = os.RemoveAll(s.dir) // the whole tree goes at the end anyway
}

func (b *bench) scene(nodes int, slow, alone bool) (s *scene, err error) {
	s = &scene{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp(b.dir, "s-"); err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(s.dir, "registry.log"))
	if err != nil {
		return nil, err
	}
	o := crowd.OriginOptions{Fairway: b.fairway, Dir: s.dir, Rate: b.rate, Log: logFile}
	s.link = crowd.Link{Upload: b.rate, Download: b.rate}
	if b.netns {
		if s.net, err = crowd.NewNet(nodes+1, b.rate); err != nil {
			return nil, err
		}
		if o.Listen, err = s.net.Host(0).Listen(b.ctx, net.JoinHostPort(s.net.Host(0).IP, "5000")); err != nil {
			return nil, err
		}
		o.Rate, s.link = 0, crowd.Link{}
	}
	if s.origin, err = crowd.StartOrigin(b.ctx, o); err != nil {
		return nil, err
	}
	s.crowd, err = crowd.NewCrowd(crowd.Options{Fairway: b.fairway, Dir: s.dir, Origin: s.origin, Net: s.net, Link: s.link, Alone: alone})
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		n, err := s.crowd.Start(b.ctx, func(n *crowd.Node) {
			if slow && i == nodes-1 && s.net == nil {
				n.Link = crowd.Link{Upload: b.rate / 10, Download: b.rate / 10}
			}
		})
		if err == nil && slow && i == nodes-1 && s.net != nil {
			err = n.Host.Limit(b.rate/10, b.rate/10)
		}
		if err != nil {
			return nil, err
		}
	}
	if !alone {
		if err := s.crowd.Gather(b.ctx, nodes); err != nil {
			return nil, err
		}
	}
	s.im, err = s.origin.Push(b.ctx, "crowd/app", "1", crowd.Noise(int(b.size)/4*3, 1), crowd.Noise(int(b.size)/4, 2))
	return s, err
}

// run plays a scenario once.
func (b *bench) run(sc scenario, nodes int, alone bool) (figures, error) {
	all := nodes
	if sc.slow {
		all++
	}
	s, err := b.scene(all, sc.slow, alone)
	if err != nil {
		return figures{}, err
	}
	defer s.close()
	members := s.crowd.All()
	watch := watchMemory(members)
	cpu, busy := usage(members[:nodes]), cpuTimes()
	if sc.slow {
		ctx, cancel := context.WithCancel(b.ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			members[nodes].Pull(ctx, s.im, "") // it is there to be in the way of others
		}()
		defer func() { cancel(); <-done }()
	}
	pulls := crowd.PullAll(b.ctx, members[:nodes], s.im, func(i int) time.Duration { return time.Duration(i) * sc.arrival })
	idle, work := between(busy, cpuTimes())
	f := figures{rss: float64(watch()) / (1 << 20), idle: 100 * idle}
	delivered := float64(nodes) * float64(s.im.Size()) / (1 << 30)
	f.cpu, f.all = (usage(members[:nodes])-cpu).Seconds()/delivered, work.Seconds()/delivered
	var last, arrived time.Time
	var firsts []float64
	for _, p := range pulls {
		if p.Err != nil || p.Tries > 1 {
			return f, errors.Join(p.Err, fmt.Errorf("%s tried %d times", p.Node.Name, p.Tries))
		}
		if end := p.Began.Add(p.Took); end.After(last) {
			last = end
		}
		if p.Began.After(arrived) {
			arrived = p.Began
		}
		firsts = append(firsts, float64(p.First.Microseconds())/1000)
	}
	links := make([]crowd.Link, nodes)
	for i := range links {
		links[i] = crowd.Link{Upload: b.rate, Download: b.rate}
	}
	f.ratio = last.Sub(arrived).Seconds() / crowd.Bound(s.im.Size(), b.rate, links).Seconds()
	f.first = median(firsts)
	var sent int64
	for _, l := range s.im.Layers {
		sent += s.origin.Sent(l.Digest.String())
	}
	f.copies = float64(sent) / float64(s.im.Size())
	return f, nil
}

// usage is the CPU time that the agents have used.
func usage(nodes []*crowd.Node) (sum time.Duration) {
	for _, n := range nodes {
		if u, err := n.Proc.Usage(); err == nil {
			sum += u.CPU
		}
	}
	return sum
}

// watchMemory samples the agents until the returned function is called, which
// returns the most that one of them had.
func watchMemory(nodes []*crowd.Node) (stop func() int64) {
	end, most := make(chan struct{}), make(chan int64)
	go func() {
		var peak int64
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				for _, n := range nodes {
					if u, err := n.Proc.Usage(); err == nil {
						peak = max(peak, u.RSS)
					}
				}
			case <-end:
				most <- peak
				return
			}
		}
	}()
	return func() int64 { close(end); return <-most }
}

// cpuTimes are the machine's idle and total times, in ticks.
func cpuTimes() (t [2]float64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		v, _ := strconv.ParseFloat(f, 64) // the kernel writes numbers
		if t[1] += v; i == 3 {
			t[0] = v
		}
	}
	return t
}

// between is what the machine's CPU did between two of these: the part of its time
// without work, and its work.
func between(from, to [2]float64) (idle float64, work time.Duration) {
	const tick = time.Second / 100 // USER_HZ, as proc(5) has it
	none, all := to[0]-from[0], to[1]-from[1]
	return none / max(1, all), time.Duration((all - none) * float64(tick))
}

func cores() int { return runtime.NumCPU() }

// firstByte compares cold pulls through an agent of a swarm with some straight
// from the registry's link, on connections that are open.
func (b *bench) firstByte() error {
	if !b.only.MatchString("first byte") {
		return nil
	}
	saved := b.rate
	defer func() { b.rate = saved }()
	s, err := b.scene(2, false, false)
	if err != nil {
		return err
	}
	defer s.close()
	n := s.crowd.All()[0]
	dial := new(net.Dialer).DialContext
	if n.Host != nil {
		dial = n.Host.Dial
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}
	fmt.Printf("\nFirst byte of a cold layer that nobody has, on a link of %d MB/s:\n\n| layer | layers | straight from the registry, median | through an agent of a swarm |\n|--:|--:|--:|--:|\n", b.rate/1e6)
	// A layer of up to 8 MiB is verified before its first byte is handed out, a larger
	// one if that takes no longer than a second.
	for _, l := range []struct{ size, count int }{{256 << 10, 40}, {2 << 20, 40}, {16 << 20, 10}} {
		var through, straight []float64
		for i := range l.count {
			im, err := s.origin.Push(b.ctx, "first/"+strconv.Itoa(l.size)+"-"+strconv.Itoa(i), "1", crowd.Noise(l.size, uint64(100+i)))
			if err != nil {
				return err
			}
			first, err := firstOf(client, s.origin.URL+"/v2/"+im.Repo+"/blobs/"+im.Layers[0].Digest.String())
			if err != nil {
				return err
			}
			straight = append(straight, float64(first.Microseconds())/1000)
			p := n.Pull(b.ctx, im, "")
			if p.Err != nil {
				return p.Err
			}
			through = append(through, float64(p.First.Microseconds())/1000)
		}
		fmt.Printf("| %d KiB | %d | %.1f ms | %.1f ms |\n", l.size>>10, l.count, median(straight), median(through))
	}
	return nil
}

// firstOf reads all of a blob, and returns the time until its first byte.
func firstOf(client *http.Client, url string) (time.Duration, error) {
	began := time.Now()
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	_, err = io.ReadFull(resp.Body, make([]byte, 1))
	first := time.Since(began)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return first, errors.Join(err, resp.Body.Close())
}

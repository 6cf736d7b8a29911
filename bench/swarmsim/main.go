// Command swarmsim plays the swarm's scheduler over virtual links and writes the
// table and the plot of docs/p2p.md.
//
//	go run ./bench/swarmsim [-nodes 8,16,100,1000] [-svg docs/p2p.svg]
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmsim"
)

func main() {
	nodes := flag.String("nodes", "8,16,100,1000", "numbers of nodes, with commas")
	svg := flag.String("svg", "", "file for the plot")
	others := flag.Bool("scenarios", true, "play the other scenarios too")
	flag.Parse()
	if err := run(*nodes, *svg, *others); err != nil {
		fmt.Fprintln(os.Stderr, "swarmsim:", err)
		os.Exit(1)
	}
}

func run(nodes, svg string, others bool) error {
	var curves []curve
	fmt.Println("| scenario | nodes | blob | time / bound | copies from the origin | directory messages a node | directory KB a node | at the busiest leader, a second | between neighbours, a node and second |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, field := range strings.Split(nodes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 {
			return fmt.Errorf("%q is no number of nodes", field)
		}
		c := crowd(n)
		cv := curve{nodes: n}
		c.Progress = cv.count(c)
		r := swarmsim.Run(c)
		cv.bound, cv.ratio = r.Bound, r.Ratio()
		curves = append(curves, cv)
		row("flash crowd", c, r)
	}
	if others {
		for _, s := range scenarios() {
			row(s.name, s.c, swarmsim.Run(s.c))
		}
	}
	if svg == "" {
		return nil
	}
	return os.WriteFile(svg, []byte(plot(curves)), 0o644)
}

// crowd is the benchmark's scenario. Beyond some hundred nodes the model is
// coarser, for the time that a run takes.
func crowd(n int) swarmsim.Config {
	const rate = 50e6
	c := swarmsim.Config{
		Nodes: n, Pieces: 1024, PieceSize: 256 << 10, Up: rate, Down: rate, OriginUp: rate,
		Latency: 200 * time.Microsecond, Seed: 1, Limit: 5 * time.Minute,
	}
	if n > 200 {
		c.Quanta = 2
	}
	if n > 2000 {
		c.Quanta = 1
	}
	return c
}

type scenario struct {
	name string
	c    swarmsim.Config
}

func scenarios() []scenario {
	apart := crowd(8)
	apart.Arrive = func(i int) time.Duration { return time.Duration(i) * 300 * time.Millisecond }
	spread := crowd(16)
	spread.Arrive = func(i int) time.Duration { return time.Duration(i) * 10 * time.Second / 15 }
	killed := crowd(8)
	killed.Kill = func(i int) time.Duration {
		if i == 0 {
			return 1600 * time.Millisecond
		}
		return -1
	}
	half := crowd(8)
	half.Kill = func(i int) time.Duration {
		if i%2 == 0 {
			return 1600 * time.Millisecond
		}
		return -1
	}
	stalls := crowd(8)
	stalls.Stall = func(i int) bool { return i == 3 }
	slow := crowd(8)
	slow.Speed = func(i int) float64 {
		if i == 3 {
			return 0.1
		}
		return 1
	}
	return []scenario{
		{"300 ms apart", apart}, {"over 10 s", spread}, {"one killed at 30 %", killed}, {"half killed at 30 %", half},
		{"one claims everything and stalls", stalls}, {"one at a tenth of the speed (its own bound)", slow},
	}
}

func row(name string, c swarmsim.Config, r swarmsim.Result) {
	n := float64(c.Nodes)
	fmt.Printf("| %s | %d | %d MiB | %.2f | %.3f | %.1f | %.1f | %.0f | %.0f |\n", name, c.Nodes, c.Pieces*c.PieceSize>>20, r.Ratio(), r.Egress,
		float64(r.Announces)/n, float64(r.DirBytes)/n/1000, float64(r.LeaderMsgs)/r.Took.Seconds(), float64(r.Haves)/n/r.Took.Seconds())
}

// Command swarm measures swarms of real processes: a registry behind a link, and
// agents with links of their own, by token buckets on loopback or between network
// namespaces. It prints the
// Markdown table of docs/p2p.md, each scenario beside the same without a swarm,
// where every node pulls from the registry.
//
// Times are multiples of the fluid limit (crowd.Bound), which no schedule can
// beat. The clients that pull and hash, the registry and its link share the CPU
// with the agents: where the CPU was the limit, the table says so, and the same
// at a lower rate tells what the schedule can do.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fairway-registry/fairway/internal/unit"
)

type bench struct {
	ctx     context.Context
	fairway string
	dir     string
	size    int64
	rate    int64
	rounds  int
	direct  bool
	netns   bool
	only    *regexp.Regexp
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	fairway := flag.String("fairway", "bin/fairway", "the binary to measure")
	nodes := flag.String("nodes", "8,16", "numbers of nodes, with commas")
	size := flag.String("size", "256MiB", "size of the image")
	rates := flag.String("rate", "50MB,20MB", "bytes a second of each link, with commas")
	rounds := flag.Int("rounds", 3, "runs of each swarm; the median counts")
	direct := flag.Bool("direct", true, "measure beside it every node from the registry")
	netns := flag.Bool("netns", false, "links are those of network namespaces, limited by tbf, and not token buckets; needs root")
	only := flag.String("only", "", "only the scenarios whose name matches this expression")
	dir := flag.String("dir", "", "where the data goes; empty: the default directory for temporary files")
	flag.Parse()
	log.SetFlags(log.Ltime)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	bytes, err := unit.ParseSize(*size)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(*dir, "fwb-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // it is in a directory for temporary files
	b := &bench{ctx: ctx, dir: tmp, size: int64(bytes), rounds: max(1, *rounds), direct: *direct, netns: *netns, only: match}
	if b.fairway, err = filepath.Abs(*fairway); err != nil {
		return err
	}
	if _, err := os.Stat(b.fairway); err != nil {
		return fmt.Errorf("run make build: %w", err)
	}
	began := time.Now()
	b.head(*size)
	type setting struct {
		rate  int64
		nodes int
	}
	var floors []setting
	for _, r := range strings.Split(*rates, ",") {
		rate, err := unit.ParseSize(r)
		if err != nil {
			return err
		}
		b.rate = int64(rate)
		for _, n := range strings.Split(*nodes, ",") {
			count, err := strconv.Atoi(n)
			if err != nil || count < 2 {
				return fmt.Errorf("%q is no number of nodes", n)
			}
			if err := b.table(count); err != nil {
				return err
			}
			floors = append(floors, setting{b.rate, count})
		}
	}
	for _, r := range floors {
		b.rate = r.rate
		if err := b.floor(r.nodes); err != nil {
			return err
		}
	}
	if err := b.firstByte(); err != nil {
		return err
	}
	fmt.Printf("\nMeasured in %s; load of the machine at the end: %s.\n", time.Since(began).Round(time.Second), load())
	return nil
}

func (b *bench) head(size string) {
	fmt.Printf("%s, in two layers, %d run(s) of each swarm; %s.\n\n", size, b.rounds, machine())
	fmt.Println("| links | nodes | scenario | source | time / bound | copies from the registry | CPU s/GiB of an agent | of all | most memory of an agent | first byte, median | CPU idle |")
	fmt.Println("|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|")
}

// load is the load average that other programs have a share in.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func machine() string {
	cpu := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, load at the start %s", cores(), cpu, load())
}

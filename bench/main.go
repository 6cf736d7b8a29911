package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// bench is one invocation.
type bench struct {
	ctx      context.Context
	fairway  string // binaries
	registry string
	nginx    string
	dir      string // for all data; removed at the end
	only     *regexp.Regexp
	quick    bool
	rounds   int
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == bareArg {
		log.Fatal(serveBare(os.Args[2], os.Args[3]))
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	fairway := flag.String("fairway", "bin/fairway", "the binary to measure")
	registry := flag.String("registry", ".tools/bin/registry", "Distribution's binary")
	quick := flag.Bool("quick", false, "small and rough, in about a minute")
	only := flag.String("only", "", "run only the parts whose name matches this expression: "+strings.Join(partNames(), ", "))
	dir := flag.String("dir", "", "where the data goes; empty: the default directory for temporary files")
	rounds := flag.Int("rounds", 0, "runs of which a figure is the median; 0: 5, or 1 with -quick")
	flag.Parse()

	log.SetFlags(log.Ltime)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(*dir, "fairway-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // it is in a directory for temporary files
	b := &bench{ctx: ctx, fairway: *fairway, registry: *registry, dir: tmp, only: match, quick: *quick, rounds: *rounds}
	if b.rounds == 0 {
		b.rounds = 5
		if b.quick {
			b.rounds = 1
		}
	}
	if b.nginx, err = exec.LookPath("nginx"); err != nil {
		return fmt.Errorf("nginx is needed: run scripts/tools.sh bench: %w", err)
	}
	for _, p := range []*string{&b.fairway, &b.registry} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if _, err := os.Stat(*p); err != nil {
			return fmt.Errorf("run make build and scripts/tools.sh bench: %w", err)
		}
	}

	began := time.Now()
	r := &report{}
	r.head(b)
	for _, p := range parts {
		if !match.MatchString(p.name) {
			continue
		}
		log.Printf("%s …", p.name)
		if err := p.run(b, r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	r.foot(time.Since(began))
	return nil
}

// part is one section of the report.
type part struct {
	name string
	run  func(*bench, *report) error
}

var parts = []part{
	{"requests", (*bench).requests},
	{"lists", (*bench).lists},
	{"pull", (*bench).bigPull},
	{"push", (*bench).bigPush},
	{"small", (*bench).smallImages},
	{"tags", (*bench).tags},
	{"chunks", (*bench).chunks},
	{"collector", (*bench).collector},
	{"latency", (*bench).latency},
	{"idle", (*bench).idle},
	{"node", (*bench).node},
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// pick chooses between the full and the quick size of something.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

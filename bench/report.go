package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report writes Markdown to standard output as it goes, and at the end what
// became of the targets.
type report struct{ targets []string }

// target notes a figure that was aimed at.
func (r *report) target(what string, got float64, wanted string, met bool) {
	verdict := "met"
	if !met {
		verdict = "**missed**"
	}
	r.targets = append(r.targets, fmt.Sprintf("| %s | %s | %.3g | %s |\n", what, wanted, got, verdict))
}

func (r *report) atLeast(what string, got, want float64) {
	r.target(what, got, fmt.Sprintf("≥ %g", want), got >= want)
}

func (r *report) atMost(what string, got, want float64) {
	r.target(what, got, fmt.Sprintf("≤ %g", want), got <= want)
}

func (r *report) foot(took time.Duration) {
	r.textf("\n## Against the targets\n\n| | wanted | measured | |\n|---|--:|--:|---|\n")
	for _, row := range r.targets {
		r.textf("%s", row)
	}
	r.textf("\nThe run took %s; the load at its end, its own included, was %s.\n", took.Round(time.Second), load1())
}

func (r *report) textf(format string, args ...any) { fmt.Printf(format, args...) }

func (r *report) head(b *bench) {
	command := "make bench > docs/benchmarks.md"
	if b.quick {
		command = "make bench-quick"
	}
	r.textf("# Benchmarks\n\nPrinted by `%s` on %s.\n\n"+
		"Fairway stands beside Distribution, the registry most others are built on, and nginx serving files with the same bytes, which is what HTTP can do here. "+
		"Runs are interleaved (A B C, A B C, …) and each figure is the median of %d, so ratios of one report mean something; absolute figures of two reports do not compare. "+
		"Clients, servers and disk share the machine. Everything is on loopback. What falls short is in the table as it is. "+
		"One part alone: `go run ./bench -only PART`, with PART one of %s.\n\n",
		command, time.Now().UTC().Format("2006-01-02"), b.rounds, strings.Join(partNames(), ", "))
	r.textf("| machine | |\n|---|---|\n")
	for _, row := range [][2]string{
		{"processor", fmt.Sprintf("%s, %d cores", field("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{"memory", field("/proc/meminfo", "MemTotal")},
		{"kernel", strings.TrimSpace(read("/proc/sys/kernel/osrelease"))},
		{"load when it began", load1() + " (1 minute; other work on the machine moves the figures)"},
		{"file system", output("findmnt", "-no", "FSTYPE,OPTIONS", "-T", b.dir)},
		{"Go", runtime.Version()},
		{"Fairway", output(b.fairway, "version")},
		{"Distribution", "3.1.2, file system driver, its cache in memory, access log off"},
		{"nginx", strings.TrimPrefix(outputErr(b.nginx, "-v"), "nginx version: ")},
	} {
		r.textf("| %s | %s |\n", row[0], strings.ReplaceAll(row[1], "\n", ", "))
	}
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return string(b)
}

// load1 is the load average of the last minute.
func load1() string {
	one, _, _ := strings.Cut(read("/proc/loadavg"), " ")
	return one
}

func field(path, name string) string {
	for line := range strings.Lines(read(path)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func outputErr(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// median of a copy of xs; 0 for none.
func median(xs []float64) float64 { return quantile(xs, 0.5) }

// quantile by nearest rank.
func quantile(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	s := slices.Clone(xs)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// thousands groups the digits of a rounded number.
func thousands(x float64) string {
	s := fmt.Sprintf("%.0f", x)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

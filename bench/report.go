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

// report writes Markdown to standard output as it goes.
type report struct{}

func (r *report) textf(format string, args ...any) { fmt.Printf(format, args...) }

func (r *report) head(b *bench) {
	r.textf("Measured on %s. Each figure is the median of %d interleaved runs.\n\n", time.Now().UTC().Format("2006-01-02"), b.rounds)
	r.textf("| machine | |\n|---|---|\n")
	for _, row := range [][2]string{
		{"processor", fmt.Sprintf("%s, %d cores", field("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{"memory", field("/proc/meminfo", "MemTotal")},
		{"kernel", strings.TrimSpace(read("/proc/sys/kernel/osrelease"))},
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

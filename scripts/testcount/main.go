// Command testcount runs `go test -json` and says in its last line what came
// of it: "N passed, N failed, N skipped".
//
//	testcount ARGS... [+ ARGS...] [, ARGS...]
//
// Groups of arguments run one after another where a comma that stands alone separates
// them, and at the same time where a plus does. A test without subtests counts once, a test with subtests counts
// through them (and once more if it failed by itself). A package that does not
// build, dies, or ends without a verdict is a failure. Skipped tests are listed
// with their reason. The exit status is 0 only if something passed and nothing
// failed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var sum counter
	sum.w = stdout
	var mu sync.Mutex // of stdout and sum
	for _, stage := range split(args, ",") {
		var groups sync.WaitGroup
		for _, group := range split(stage, "+") {
			groups.Go(func() {
				var out bytes.Buffer
				c := newCounter(&out)
				c.told = func() {
					mu.Lock()
					defer mu.Unlock()
					_, _ = out.WriteTo(stdout) // nobody reads what cannot be written
				}
				c.test(group, stderr)
				c.told()
				mu.Lock()
				defer mu.Unlock()
				sum.take(c)
			})
		}
		groups.Wait()
	}
	return sum.finish()
}

// test runs one `go test` and counts.
func (c *counter) test(args []string, stderr io.Writer) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.fail("go test: " + err.Error())
		return
	}
	c.read(out)
	if err := cmd.Wait(); err != nil && c.failed == 0 {
		c.fail("go test " + strings.Join(args, " ") + ": " + err.Error())
	}
}

func split(args []string, separator string) [][]string {
	groups := [][]string{nil}
	for _, a := range args {
		if a == separator {
			groups = append(groups, nil)
			continue
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], a)
	}
	return groups
}

// event is a line of `go test -json` (see `go doc test2json`).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

type test struct{ pkg, name string }

type pkg struct {
	passed, failed, skipped int
	loose                   []string // output outside of tests
	open                    map[test]bool
}

type counter struct {
	w                       io.Writer
	told                    func() // after the end of a package
	passed, failed, skipped int
	pkgs                    map[string]*pkg
	output                  map[test][]string
	verdict                 map[test]string
	parents                 map[test]bool
	builds                  map[string][]string
	skips                   []string
}

func newCounter(w io.Writer) *counter {
	return &counter{
		w: w, told: func() {}, pkgs: map[string]*pkg{}, output: map[test][]string{},
		verdict: map[test]string{}, parents: map[test]bool{}, builds: map[string][]string{},
	}
}

func (c *counter) fail(why string) {
	c.failed++
	fmt.Fprintln(c.w, "FAIL", why)
}

func (c *counter) read(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(c.w, "%s", line)
			} else {
				c.add(e)
			}
		}
		if err != nil {
			break
		}
	}
	for name := range c.pkgs {
		c.fail(name + " ended without a verdict")
		delete(c.pkgs, name)
	}
}

func (c *counter) add(e event) {
	switch {
	case strings.HasPrefix(e.Action, "build-"):
		c.builds[e.ImportPath] = append(c.builds[e.ImportPath], e.Output)
	case e.Action == "start":
		c.pkgs[e.Package] = &pkg{open: map[test]bool{}}
	case e.Test != "":
		c.addTest(e)
	default:
		c.addPackage(e)
	}
}

func (c *counter) addTest(e event) {
	t, p := test{e.Package, e.Test}, c.pkgs[e.Package]
	if p == nil {
		return
	}
	switch e.Action {
	case "run":
		p.open[t] = true
		for i := strings.LastIndexByte(t.name, '/'); i > 0; i = strings.LastIndexByte(t.name[:i], '/') {
			c.parents[test{t.pkg, t.name[:i]}] = true
		}
	case "output":
		c.output[t] = append(c.output[t], e.Output)
	case "pass", "fail", "skip":
		c.verdict[t] = e.Action
		c.count(t, e.Action, p)
		delete(p.open, t)
		if e.Action != "fail" {
			delete(c.output, t)
		}
	}
}

func (c *counter) count(t test, verdict string, p *pkg) {
	if c.parents[t] && (verdict != "fail" || c.failedBelow(t)) {
		if verdict == "fail" {
			c.print(t)
		}
		return
	}
	switch verdict {
	case "pass":
		p.passed++
	case "fail":
		p.failed++
		c.print(t)
	case "skip":
		p.skipped++
		c.skips = append(c.skips, fmt.Sprintf("%s %s: %s", t.pkg, t.name, reason(c.output[t])))
	}
}

func (c *counter) failedBelow(t test) bool {
	for other, v := range c.verdict {
		if v == "fail" && other.pkg == t.pkg && strings.HasPrefix(other.name, t.name+"/") {
			return true
		}
	}
	return false
}

func (c *counter) print(t test) {
	fmt.Fprintf(c.w, "FAIL %s %s\n", t.pkg, t.name)
	for _, line := range c.output[t] {
		fmt.Fprint(c.w, "    ", line)
	}
}

func reason(output []string) string {
	for _, line := range output {
		if s := strings.TrimSpace(line); s != "" && !strings.HasPrefix(s, "=== ") && !strings.HasPrefix(s, "--- ") {
			return s
		}
	}
	return "no reason given"
}

func (c *counter) addPackage(e event) {
	p := c.pkgs[e.Package]
	if p == nil {
		return
	}
	switch e.Action {
	case "output":
		p.loose = append(p.loose, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	delete(c.pkgs, e.Package)
	for t := range p.open {
		p.failed++
		c.print(t)
	}
	if e.Action == "fail" && p.failed == 0 {
		p.failed = 1
		for _, line := range append(c.builds[e.FailedBuild], p.loose...) {
			fmt.Fprint(c.w, "    ", line)
		}
	} else if e.Action == "fail" {
		// A data race or a panic is told outside of the test that it ended.
		for _, line := range p.loose {
			fmt.Fprint(c.w, "    ", line)
		}
	}
	c.passed += p.passed
	c.failed += p.failed
	c.skipped += p.skipped
	if p.passed+p.failed+p.skipped > 0 {
		word := "ok  "
		if p.failed > 0 {
			word = "FAIL"
		}
		defer c.told()
		fmt.Fprintf(c.w, "%s %s  %d passed, %d failed, %d skipped  (%.1fs)\n", word, e.Package, p.passed, p.failed, p.skipped, e.Elapsed)
	}
}

// take adds what another has counted.
func (c *counter) take(o *counter) {
	c.passed += o.passed
	c.failed += o.failed
	c.skipped += o.skipped
	c.skips = append(c.skips, o.skips...)
}

func (c *counter) finish() int {
	sort.Strings(c.skips)
	for _, s := range c.skips {
		fmt.Fprintln(c.w, "SKIP", s)
	}
	fmt.Fprintf(c.w, "%d passed, %d failed, %d skipped\n", c.passed, c.failed, c.skipped)
	if c.failed > 0 || c.passed == 0 {
		return 1
	}
	return 0
}

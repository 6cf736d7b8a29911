package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// test is one test of a suite, with what running it alone has shown.
type test struct {
	Name    string
	Took    time.Duration
	Failed  bool
	Reached []int
	suite   suite
}

// memoryMax bounds the address space of a test, since a mutant may allocate for ever.
const memoryMax = 8 << 30

// outcomes of a mutant.
const (
	noticed  = "noticed"
	timedOut = "timed out"
	unsteady = "now and then"
	unseen   = "not reached"
	lives    = "LIVES"
)

type summary struct {
	all, unknown int
	by           map[string]int
}

func (s summary) row(t target) string {
	return fmt.Sprintf("| `%s`: %s | %d | %d | %d | %d | %d | %d |", t.dir, strings.Join(t.order, ", "),
		s.all, s.by[noticed]+s.by[timedOut], s.by[timedOut], s.by[unsteady], s.by[unseen], s.by[lives])
}

// try tries all mutants of a target.
func (t target) try(o options) (sum summary, err error) {
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return sum, err
	}
	defer os.RemoveAll(dir)
	overlay, mutants, err := t.instrument(dir)
	if err != nil {
		return sum, err
	}
	if o.list {
		for _, m := range mutants {
			fmt.Fprintln(o.out, m)
		}
		return sum, nil
	}
	var tests []test
	sums := ""
	for _, pkg := range t.tests {
		s, err := build(overlay, dir, pkg)
		if err != nil {
			return sum, err
		}
		sums += s.sum
		more, err := s.measure(o, dir)
		if err != nil {
			return sum, err
		}
		tests = append(tests, more...)
	}
	slices.SortFunc(tests, func(a, b test) int { return cmp.Compare(a.Took, b.Took) })
	cache := filepath.Join(".tools", "mutants", fmt.Sprintf("outcomes-%s-%d-%s.json", sums, len(tests), o.budget))
	done := map[string][2]string{} // outcome and test by mutant
	if err := load(cache, &done); err != nil {
		return sum, err
	}
	sum.by = map[string]int{}
	for _, m := range mutants {
		if !o.match.MatchString(m.String()) {
			continue
		}
		key := strconv.Itoa(m.ID)
		got, ok := done[key]
		if !ok {
			got[0], got[1] = m.try(tests, o.budget)
			done[key] = got
			if err := save(cache, done); err != nil {
				return sum, err
			}
		}
		sum.all++
		sum.by[got[0]]++
		note := got[1]
		if got[0] != noticed && got[0] != timedOut {
			if strings.Contains(o.known, m.Key()) {
				note += " (listed)"
			} else {
				sum.unknown++
			}
		} else if !o.all {
			continue
		}
		fmt.Fprintln(o.out, strings.TrimSpace(fmt.Sprintf("%-12s %s  %s", got[0], m, note)))
	}
	return sum, nil
}

func load(path string, v any) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

func save(path string, v any) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// measure runs each test alone, without a mutant.
func (s suite) measure(o options, dir string) ([]test, error) {
	names, err := s.names(o)
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(".tools", "mutants", "tests-"+s.sum+".json")
	known := map[string]test{}
	if err := load(cache, &known); err != nil {
		return nil, err
	}
	var tests []test
	for i, name := range names {
		one, ok := known[name]
		if !ok {
			if one, err = s.measureOne(name, filepath.Join(dir, "reached-"+strconv.Itoa(i))); err != nil {
				return nil, err
			}
			known[name] = one
			if err := save(cache, known); err != nil {
				return nil, err
			}
		}
		if one.Failed {
			fmt.Fprintf(o.out, "NOT USED     %s fails without a mutant\n", name)
			continue
		}
		one.suite = s
		tests = append(tests, one)
	}
	return tests, nil
}

func (s suite) measureOne(name, reached string) (test, error) {
	t := test{Name: name}
	start := time.Now()
	if failed, _, _ := s.run([]string{name}, 0, 10*time.Minute, "MUTANTS_REACHED="+reached); failed {
		start = time.Now()
		t.Failed, _, _ = s.run([]string{name}, 0, 10*time.Minute, "MUTANTS_REACHED="+reached)
	}
	t.Took = time.Since(start)
	text, err := os.ReadFile(reached)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	for _, f := range strings.Fields(string(text)) {
		id, err := strconv.Atoi(f)
		if err != nil {
			return t, err
		}
		t.Reached = append(t.Reached, id)
	}
	slices.Sort(t.Reached)
	t.Reached = slices.Compact(t.Reached) // a test may have started itself as a process
	return t, nil
}

// try runs the tests that reach a mutant until one fails, twice. The second string
// names it.
func (m Mutant) try(tests []test, budget time.Duration) (outcome, by string) {
	var mine []test
	for _, t := range tests {
		if slices.Contains(t.Reached, m.ID) {
			mine = append(mine, t)
		}
	}
	if len(mine) == 0 {
		return unseen, ""
	}
	outcome = lives
	var spent time.Duration
	for size := time.Second; len(mine) > 0; size *= 3 {
		// A batch: tests of one suite that take about so long together.
		n, took := 0, time.Duration(0)
		var names []string
		for n < len(mine) && mine[n].suite.dir == mine[0].suite.dir && (n == 0 || took+mine[n].Took <= size) {
			names = append(names, mine[n].Name)
			took += mine[n].Took
			n++
		}
		batch := mine[0].suite
		mine = mine[n:]
		if spent += took; spent > budget {
			return outcome, by + " slower tests were left out"
		}
		failed, _, which := batch.run(names, m.ID, 4*took+20*time.Second)
		if !failed {
			continue
		}
		failed, late, _ := batch.run(names, m.ID, 8*took+40*time.Second)
		if late {
			return timedOut, which
		}
		if failed {
			return noticed, which
		}
		outcome, by = unsteady, which
	}
	return outcome, by
}

// run runs tests of a suite with a mutant, none for 0, and reports whether one
// failed, whether the time was over, and which it was.
func (s suite) run(names []string, mutant int, limit time.Duration, env ...string) (failed, late bool, which string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args := append([]string{"-test.failfast", "-test.timeout", (2 * limit).String(), "-test.run", "^(" + strings.Join(names, "|") + ")$"}, s.args...)
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Dir = s.dir
	cmd.Env = append(append(os.Environ(), env...), "MUTANT="+strconv.Itoa(mutant))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it has left running
	}
	if err == nil {
		return false, false, ""
	}
	which = names[len(names)-1]
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			which, _, _ = strings.Cut(rest, " ")
			break
		}
	}
	return true, ctx.Err() != nil, which
}

// limitMemory bounds this process and what it starts.
func limitMemory() error {
	return syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: memoryMax, Max: memoryMax})
}

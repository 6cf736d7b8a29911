// Command mutants changes code, one place at a time, and lists the changes that
// no test notices.
//
//	mutants [flags] [PACKAGE:FILE[@NAME][,FILE...][:TESTS[,TESTS...]]]...
//
// Each target is a package with the files, or the declarations in them, that are
// changed, and the packages whose tests run, by default its own. Without a target
// it is the code that decides what is deleted and who is trusted. The source stays
// as it is: changed files reach the compiler as an overlay. They contain all
// mutants, and an environment variable selects one, so each test binary is built
// once.
//
// Every test first runs alone without a mutant, which shows how long it takes and
// which mutants it reaches. A mutant is tried on the tests that reach it, fastest
// first, one at a time. It counts as noticed if a test fails twice. Results are
// kept in .tools/mutants until a test binary changes, so a run can be interrupted.
// The exit status is 1 if a change lives that docs/testing.md does not list.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// defaults are the targets of `make mutants`.
var defaults = []string{
	"internal/registry/gc:judge.go",
	"internal/registry/meta:claims.go,kin.go,staged.go,manifests.go@held,manifests.go@indexed,leases.go@manifestLease:internal/registry/meta,internal/registry/gc",
	"internal/agent/evict:judge.go",
	"internal/agent/piece:remove.go",
	"internal/agent/mirror:rights.go,rule.go",
	"internal/agent/swarm:trust.go",
}

// plans is the test of query plans. It would notice any change to the text of a
// statement, whether or not that changes what the statement does.
const plans = "^TestR8_NoStatementScansAGrowingTable$"

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// options of a run.
type options struct {
	out       io.Writer
	all, list bool           // show noticed mutants too; only list the mutants
	run, skip *regexp.Regexp // tests
	match     *regexp.Regexp // mutants
	known     string         // a text that lists mutants that may live
	budget    time.Duration  // for the tests of one mutant, by their times alone
}

func run(args []string, out io.Writer) error {
	o := options{out: out}
	fs := flag.NewFlagSet("mutants", flag.ContinueOnError)
	runs := fs.String("run", "", "only tests that match")
	skip := fs.String("skip", plans, "no tests that match")
	match := fs.String("match", "", "only mutants that match")
	doc := fs.String("known", "docs/testing.md", "text that lists the mutants that may live")
	fs.BoolVar(&o.list, "list", false, "list the mutants and stop")
	fs.BoolVar(&o.all, "v", false, "show the mutants that were noticed too")
	fs.DurationVar(&o.budget, "budget", 2*time.Minute, "how long the tests of one mutant may take; slower tests are left out")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var err error
	for text, re := range map[*string]**regexp.Regexp{runs: &o.run, skip: &o.skip, match: &o.match} {
		if *re, err = regexp.Compile(*text); err != nil {
			return err
		}
	}
	known, err := os.ReadFile(*doc)
	if err != nil {
		return err
	}
	o.known = string(known)
	if err := limitMemory(); err != nil {
		return err
	}
	targets := fs.Args()
	if len(targets) == 0 {
		targets = defaults
	}
	var rows []string
	unknown := 0
	for _, arg := range targets {
		t, err := parseTarget(arg)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "==", arg)
		sum, err := t.try(o)
		if err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
		rows = append(rows, sum.row(t))
		unknown += sum.unknown
	}
	if o.list {
		return nil
	}
	fmt.Fprintln(out, "\n| part | changes | noticed | of these by a time-out | now and then | not reached | live |\n|---|--:|--:|--:|--:|--:|--:|")
	fmt.Fprintln(out, strings.Join(rows, "\n"))
	if unknown > 0 {
		return fmt.Errorf("%d changes live that %s does not list", unknown, *doc)
	}
	return nil
}

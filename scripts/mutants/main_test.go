package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestChangesOfSQL(t *testing.T) {
	for name, tt := range map[string]struct {
		sql  string
		want []string
	}{
		"one condition": {"DELETE FROM a WHERE x = ?", []string{"DELETE FROM a WHERE (x = ? OR 1)"}},
		"limits": {"SELECT 1 FROM a WHERE max(x, y) <= ? ORDER BY z", []string{
			"SELECT 1 FROM a WHERE (max(x, y) <= ? OR 1) ORDER BY z",
			"SELECT 1 FROM a WHERE min(x, y) <= ? ORDER BY z",
			"SELECT 1 FROM a WHERE max(x, y) < ? ORDER BY z",
		}},
		"and, or, holes": {"UPDATE a SET b = 'AND' WHERE (x OR " + hole + ") AND NOT y RETURNING z, w", []string{
			"UPDATE a SET b = 'AND' WHERE ((x OR " + hole + ") OR 1) AND NOT y RETURNING z, w",
			"UPDATE a SET b = 'AND' WHERE ((x AND 0) OR " + hole + ") AND NOT y RETURNING z, w",
			"UPDATE a SET b = 'AND' WHERE (x OR (" + hole + " AND 0)) AND NOT y RETURNING z, w",
			"UPDATE a SET b = 'AND' WHERE (x OR " + hole + ") AND (NOT y OR 1) RETURNING z, w",
		}},
		"inner statements": {"DELETE FROM a WHERE EXISTS (SELECT 1 FROM b JOIN c ON c.x = b.x WHERE b.y > 1)", []string{
			"DELETE FROM a WHERE (EXISTS (SELECT 1 FROM b JOIN c ON c.x = b.x WHERE b.y > 1) OR 1)",
			"DELETE FROM a WHERE EXISTS (SELECT 1 FROM b JOIN c ON (c.x = b.x OR 1) WHERE b.y > 1)",
			"DELETE FROM a WHERE EXISTS (SELECT 1 FROM b JOIN c ON c.x = b.x WHERE (b.y > 1 OR 1))",
			"DELETE FROM a WHERE EXISTS (SELECT 1 FROM b JOIN c ON c.x = b.x WHERE b.y >= 1)",
		}},
		"conflicts":   {"INSERT INTO a (x, y) VALUES (?, ?) ON CONFLICT (x, y) DO UPDATE SET y = 1", nil},
		"not a query": {"open %s, and close", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, c := range changesOfSQL(tt.sql) {
				got = append(got, c.text)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// module is a package whose tests notice some mutants and not others.
var module = map[string]string{
	"go.mod": "module example.test/m\n\ngo 1.24\n",
	"known":  "",
	"p/p.go": `package p

const query = "SELECT 1 FROM a WHERE b = 1 AND c = 2"

func tested(a, b int, ok bool) (n int) {
	switch {
	case a < b && ok:
		n++
	}
	return min(n+a, 100)
}

func halfTested(a int) bool {
	if a > 10 {
		return true
	}
	return false
}

func untested(a int) bool { return a == 1 }

func inner() string {
	const query = "SELECT 1 FROM a WHERE d = 3"
	return query
}
`,
	"p/q.go": "package p\n\nconst longer = query + \" ORDER BY b\"\n",
	"p/p_test.go": `package p

import "testing"

func TestP(t *testing.T) {
	for _, c := range [][4]int{{1, 2, 1, 2}, {2, 2, 1, 2}, {3, 2, 1, 3}, {1, 2, 0, 1}, {200, 2, 0, 100}} {
		if got := tested(c[0], c[1], c[2] == 1); got != c[3] {
			t.Error(c, got)
		}
	}
	if !halfTested(11) || longer == "" {
		t.Error("wrong")
	}
}
`,
}

func TestRun_ListsWhatNoTestNotices(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range module {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	args := []string{"-known", "known", "-v", "p:p.go@query,p.go@tested,p.go@halfTested,p.go@untested,p.go@inner"}
	if err := run(args, &out); err == nil || !strings.Contains(err.Error(), "changes live") {
		t.Errorf("error %v, want one that counts the changes that live", err)
	}
	for _, want := range []string{
		"noticed      p/p.go:7 tested: `a < b && ok` → false  TestP",
		"noticed      p/p.go:7 tested: `ok` → true  TestP",
		"noticed      p/p.go:7 tested: `a < b` → `a <= b`  TestP",
		"noticed      p/p.go:8 tested: without `n++`  TestP",
		"noticed      p/p.go:10 tested: `n+a` → `n - a`  TestP",
		"noticed      p/p.go:10 tested: `min(n+a, 100)` without `100`  TestP",
		"LIVES        p/p.go:14 halfTested: `a > 10` → true",
		"LIVES        p/p.go:14 halfTested: `a > 10` → `a >= 10`",
		"not reached  p/p.go:20 untested: `a == 1` → true",
		"not reached  p/p.go:23 inner: SQL without `d = 3`",
		"LIVES        p/p.go:3 query: SQL without `b = 1`",
		"LIVES        p/p.go:3 query: SQL without `c = 2`",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("missing %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if src, _ := os.ReadFile("p/p.go"); string(src) != module["p/p.go"] {
		t.Error("the source was changed")
	}

	// What is listed may live.
	var known strings.Builder
	for line := range strings.Lines(out.String()) {
		if _, key, ok := strings.Cut(line, "p/p.go:"); ok {
			_, key, _ = strings.Cut(strings.TrimSpace(key), " ")
			key, _, _ = strings.Cut(key, "  ")
			known.WriteString("- p/p.go " + key + "\n")
		}
	}
	if err := os.WriteFile("known", []byte(known.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := run(args, &out); err != nil {
		t.Errorf("%v, though all are listed:\n%s", err, out.String())
	}
}

// A mutant that never ends counts as noticed, as one that ran out of time.
func TestSuite_ReportsWhatRanOutOfTime(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "slow")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n[ \"$MUTANT\" = 1 ] && exec sleep 600\n[ \"$MUTANT\" != 2 ]\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := suite{dir: dir, binary: binary}
	if failed, late, _ := s.run([]string{"TestA"}, 1, 1); !failed || !late {
		t.Errorf("a test that does not end: failed %t, late %t", failed, late)
	}
	if failed, late, which := s.run([]string{"TestA"}, 2, 1<<36); !failed || late || which != "TestA" {
		t.Errorf("a test that fails: failed %t, late %t, by %q", failed, late, which)
	}
	if failed, _, _ := s.run([]string{"TestA"}, 0, 1<<36); failed {
		t.Error("a test that passes has failed")
	}
}

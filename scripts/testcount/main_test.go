package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	const start = `{"Action":"start","Package":"p"}` + "\n"
	for _, tc := range []struct {
		name, in, last string
		status         int
		shows          string
	}{
		{"a parent counts through its subtests", start +
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"run","Package":"p","Test":"A/y"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/y"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}
`, "2 passed, 0 failed, 0 skipped", 0, ""},
		{"a failed subtest fails once", start +
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"output","Package":"p","Test":"A/x","Output":"boom\n"}
{"Action":"fail","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}
`, "0 passed, 1 failed, 0 skipped", 1, "boom"},
		{"a parent that fails by itself counts beside its subtests", start +
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}
`, "1 passed, 1 failed, 0 skipped", 1, ""},
		{"a skip is counted and named with its reason", start +
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:3: no moon tonight\n"}
{"Action":"skip","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Test":"B"}
{"Action":"pass","Package":"p"}
`, "1 passed, 0 failed, 1 skipped", 0, "no moon tonight"},
		{"a package that does not build is a failure", `{"ImportPath":"p [p.test]","Action":"build-output","Output":"a.go:1: syntax\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
` + start + `{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}
`, "0 passed, 1 failed, 0 skipped", 1, "a.go:1: syntax"},
		{"a package without a verdict is a failure", start +
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
`, "0 passed, 1 failed, 0 skipped", 1, "without a verdict"},
		{"a test that never ended is a failure", start +
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"panic: died\n"}
{"Action":"fail","Package":"p"}
`, "0 passed, 1 failed, 0 skipped", 1, "panic: died"},
		{"no test at all is no success", `{"Action":"start","Package":"p"}
{"Action":"skip","Package":"p"}
`, "0 passed, 0 failed, 0 skipped", 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			c := newCounter(&out)
			c.read(strings.NewReader(tc.in))
			status := c.finish()
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if got := lines[len(lines)-1]; got != tc.last || status != tc.status {
				t.Errorf("last line %q, status %d; want %q, %d", got, status, tc.last, tc.status)
			}
			if !strings.Contains(out.String(), tc.shows) {
				t.Errorf("output lacks %q:\n%s", tc.shows, &out)
			}
		})
	}
}

func TestRun_AFailingCommandIsAFailure(t *testing.T) {
	var out, errs bytes.Buffer
	if status := run([]string{"-no-such-flag"}, &out, &errs); status != 1 || !strings.HasSuffix(out.String(), "0 passed, 1 failed, 0 skipped\n") {
		t.Errorf("status %d, output %q", status, &out)
	}
}

// TestRun_AllGroupsCount, those that run at the same time too.
func TestRun_AllGroupsCount(t *testing.T) {
	for _, separator := range []string{",", "+"} {
		var out bytes.Buffer
		if status := run([]string{"-no-such-flag", separator, "-no-such-flag"}, &out, io.Discard); status != 1 || !strings.HasSuffix(out.String(), "0 passed, 2 failed, 0 skipped\n") {
			t.Errorf("with %s: status %d, output %q", separator, status, &out)
		}
	}
}

func TestSplit(t *testing.T) {
	got := split([]string{"-race", "./a", ",", "./b"}, ",")
	if len(got) != 2 || len(got[0]) != 2 || got[1][0] != "./b" {
		t.Errorf("got %q", got)
	}
}

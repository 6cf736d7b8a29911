// Package fairway_test enforces the floors of ARCHITECTURE.md.
package fairway_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fairway-registry/fairway"

// floors: a package imports packages of a strictly lower floor. A package that
// is not listed has the floor of the nearest folder above it that is.
var floors = map[string]int{
	"internal/fault":                0,
	"internal/oci":                  0,
	"internal/nodeapi":              0,
	"internal/unit":                 0,
	"internal/setting":              0,
	"internal/daemon":               0,
	"internal/disk":                 0,
	"internal/crowd":                1,
	"internal/sqldb":                1,
	"internal/httpserve":            1,
	"internal/ociclient":            1,
	"internal/adminclient":          1,
	"internal/jsonface":             2,
	"internal/registry/blob":        2,
	"internal/registry/meta":        2,
	"internal/registry/upload":      3,
	"internal/registry/gc":          3,
	"internal/registry/retention":   3,
	"internal/registry/check":       3,
	"internal/registry/auth":        3,
	"internal/registry/nodes":       3,
	"internal/registry/preheat":     3,
	"internal/registry/admin":       4,
	"internal/registry/distapi":     5,
	"internal/registry/adminapi":    5,
	"internal/registry/console":     5,
	"internal/registry":             6,
	"internal/agent/setup":          1,
	"internal/agent/index":          2,
	"internal/agent/inuse":          2,
	"internal/agent/inuse/endpoint": 3,
	"internal/agent/piece":          3,
	"internal/agent/fetch":          4,
	"internal/agent/evict":          4,
	"internal/agent/report":         4,
	"internal/agent/preheat":        4,
	"internal/agent/swarm/plan":     3,
	"internal/agent/swarm":          4,
	"internal/agent/mirror":         5,
	"internal/agent/admin":          5,
	"internal/agent":                6,
	"cmd/fairway":                   7,
}

// level says why two packages of one floor may see each other.
var level = map[[2]string]string{
	{"internal/oci", "internal/fault"}:                         "a parser refuses with a public text and a code",
	{"internal/agent/swarm/swarmtest", "internal/agent/fetch"}: "its origin is one of fetch's",
	{"internal/agent/preheat", "internal/agent/fetch"}:         "it is one who asks fetch for blobs, as the mirror is, but no face",
	{"internal/agent/swarm", "internal/agent/fetch"}:           "the swarm is one of fetch's fillers, and mixes its own with fetch's origin",
}

// onTop are programs and tests that see everything and that nobody imports.
var onTop = []string{"cmd", "e2e", "bench", "sim", "scripts"}

type goFile struct {
	dir, name string // dir is slash-separated and relative to the module
	test      bool
	doc       bool
	imports   []string
	decls     []ast.Decl
}

func files(t *testing.T) []goFile {
	t.Helper()
	var all []goFile
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "data") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		f := goFile{
			dir: path.Dir(filepath.ToSlash(p)), name: filepath.ToSlash(p), test: strings.HasSuffix(p, "_test.go"),
			doc: parsed.Doc != nil, decls: parsed.Decls,
		}
		for _, im := range parsed.Imports {
			target, err := strconv.Unquote(im.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, target)
		}
		all = append(all, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// floorOf finds the listed folder that dir belongs to.
func floorOf(dir string) (seat string, floor int, ok bool) {
	for d := dir; d != "."; d = path.Dir(d) {
		if f, listed := floors[d]; listed {
			return d, f, true
		}
	}
	return "", 0, false
}

func isOnTop(dir string) bool {
	top, _, _ := strings.Cut(dir, "/")
	for _, d := range onTop {
		if d == top {
			return true
		}
	}
	return false
}

// allowed judges one import of one package of this module by another.
func allowed(from, to string, test bool) string {
	if isOnTop(to) && from != to && !strings.HasPrefix(to, from+"/") {
		return "nobody imports a program or a test tree"
	}
	if isOnTop(from) || from == "." {
		return ""
	}
	fromSeat, fromFloor, ok := floorOf(from)
	if !ok {
		return from + " has no floor; give it one in arch_test.go and in ARCHITECTURE.md"
	}
	toSeat, toFloor, ok := floorOf(to)
	if !ok {
		return to + " has no floor"
	}
	if house(from) != "" && house(to) != "" && house(from) != house(to) {
		return "only cmd sees both houses"
	}
	switch {
	case toFloor < fromFloor:
	case fromSeat == toSeat && (strings.HasPrefix(from, to+"/") || test):
		// A driver or a test package beside the seam it implements.
	case level[[2]string{from, to}] != "":
	case test && toFloor == fromFloor:
		// A test may set its scene with its neighbours.
	default:
		return "floor " + strconv.Itoa(fromFloor) + " imports floor " + strconv.Itoa(toFloor)
	}
	return ""
}

func house(dir string) string {
	for _, h := range []string{"internal/registry", "internal/agent"} {
		if dir == h || strings.HasPrefix(dir, h+"/") {
			return h
		}
	}
	return ""
}

func TestFloors_ImportsGoStrictlyDown(t *testing.T) {
	seen := 0
	for _, f := range files(t) {
		for _, im := range f.imports {
			to, ours := strings.CutPrefix(im, module+"/")
			if !ours {
				continue
			}
			seen++
			if why := allowed(f.dir, to, f.test); why != "" {
				t.Errorf("%s imports %s: %s", f.name, to, why)
			}
		}
	}
	if seen == 0 {
		t.Error("no import within the module was found: the test looks in the wrong place")
	}
}

func TestFloors_TheRuleRefuses(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		test, ok bool
	}{
		{"internal/registry/gc", "internal/registry/meta", false, true},
		{"internal/registry/meta", "internal/registry/gc", false, false},
		{"internal/registry/meta", "internal/registry/gc", true, false},
		{"internal/registry/gc", "internal/registry/upload", false, false},
		{"internal/registry/gc", "internal/registry/upload", true, true},
		{"internal/registry/blob/fsblob", "internal/registry/blob", false, true},
		{"internal/registry/blob", "internal/registry/blob/fsblob", false, false},
		{"internal/registry/blob/fsblob", "internal/registry/meta", false, false},
		{"internal/oci", "internal/fault", false, true},
		{"internal/fault", "internal/oci", false, false},
		{"internal/agent/mirror", "internal/registry/meta", false, false},
		{"internal/registry", "internal/registry/distapi", false, true},
		{"internal/strange", "internal/oci", false, false},
		{"internal/registry", "cmd/fairway", false, false},
		{"cmd/fairway", "internal/registry", false, true},
		{"e2e", "internal/registry/meta", false, true},
	} {
		if why := allowed(tc.from, tc.to, tc.test); (why == "") != tc.ok {
			t.Errorf("%s → %s (test %v): %q, want ok = %v", tc.from, tc.to, tc.test, why, tc.ok)
		}
	}
}

// TestSQL_IsWrittenInOnePlace holds database/sql to sqldb, which opens (sqldbtest a driver of its own), and to
// meta and index, each house's one that asks. Tests may wrap the driver to make it fail.
func TestSQL_IsWrittenInOnePlace(t *testing.T) {
	for _, f := range files(t) {
		for _, im := range f.imports {
			if im == "database/sql" && !f.test && f.dir != "internal/sqldb" && f.dir != "internal/sqldb/sqldbtest" && f.dir != "internal/registry/meta" && f.dir != "internal/agent/index" {
				t.Errorf("%s imports database/sql", f.name)
			}
		}
	}
}

func TestPackages_SayWhatTheyOwn(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range files(t) {
		if !f.test {
			documented[f.dir] = documented[f.dir] || f.doc
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package documentation", dir)
		}
	}
}

func TestPackages_HaveNoDrawerNames(t *testing.T) {
	for _, f := range files(t) {
		switch path.Base(f.dir) {
		case "util", "utils", "common", "helper", "helpers", "base", "core", "types", "models", "manager", "service":
			t.Errorf("%s: a package is named for what it owns", f.name)
		}
	}
}

func TestEnvironment_IsReadOnlyInCmd(t *testing.T) {
	for _, f := range files(t) {
		if f.test || !strings.HasPrefix(f.dir, "internal/") {
			continue
		}
		for _, d := range f.decls {
			ast.Inspect(d, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" && (sel.Sel.Name == "Getenv" || sel.Sel.Name == "LookupEnv" || sel.Sel.Name == "Environ") {
					t.Errorf("%s reads the environment; only cmd does", f.name)
				}
				return true
			})
		}
	}
}

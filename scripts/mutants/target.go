package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// target is code to change and the packages that test it.
type target struct {
	dir   string
	files map[string][]string // names of declarations by file, none: all
	order []string
	tests []string
}

func parseTarget(arg string) (target, error) {
	dir, rest, ok := strings.Cut(arg, ":")
	if !ok {
		return target{}, fmt.Errorf("%s: want PACKAGE:FILE[@NAME][,FILE…][:TESTS[,TESTS…]]", arg)
	}
	files, tests, _ := strings.Cut(rest, ":")
	t := target{dir: filepath.Clean(dir), files: map[string][]string{}}
	for _, f := range strings.Split(files, ",") {
		file, name, _ := strings.Cut(f, "@")
		if _, twice := t.files[file]; !twice {
			t.order = append(t.order, file)
			t.files[file] = nil
		}
		if name != "" {
			t.files[file] = append(t.files[file], name)
		}
	}
	t.tests = []string{t.dir}
	if tests != "" {
		t.tests = strings.Split(tests, ",")
	}
	return t, nil
}

// helpers come beside the changed files, in their package.
const helpers = `package %s

import (
	"os"
	"strconv"
	"sync/atomic"
)

var (
	active__, _ = strconv.Atoi(os.Getenv("MUTANT"))
	reached__   = os.Getenv("MUTANTS_REACHED")
	noted__     [%d]atomic.Bool
)

func mutant__(id int) bool {
	if reached__ != "" && !noted__[id].Swap(true) {
		f, err := os.OpenFile(reached__, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(strconv.Itoa(id) + "\n")
		}
		if err != nil {
			panic(err)
		}
		_ = f.Close()
	}
	return id == active__
}

func pick__[T any](id int, mutated, original T) T {
	if mutant__(id) {
		return mutated
	}
	return original
}
`

// instrument writes the changed files, and an overlay that has them compiled, into dir.
func (t target) instrument(dir string) (overlay string, mutants []Mutant, err error) {
	fset := token.NewFileSet()
	files, info, err := t.check(fset)
	if err != nil {
		return "", nil, err
	}
	all, variables := map[string]*instrumenter{}, map[types.Object]bool{}
	for name := range files {
		path := filepath.Join(t.dir, name)
		src, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		all[name] = &instrumenter{file: filepath.Base(t.dir) + "/" + name, src: src, fset: fset, info: info, mutants: &mutants, seen: map[ast.Node]bool{}, variables: variables}
	}
	for _, name := range t.order {
		if files[name] == nil {
			return "", nil, fmt.Errorf("%s is not in %s", name, t.dir)
		}
		all[name].instrument(files[name], t.files[name])
	}
	for more := len(variables) > 0; more; {
		more = false
		for name, in := range all {
			more = in.follow(files[name]) || more
		}
	}
	replace := map[string]string{}
	for name, in := range all {
		if len(in.edits) == 0 {
			continue
		}
		if err := put(replace, dir, filepath.Join(t.dir, name), in.source()); err != nil {
			return "", nil, err
		}
	}
	text := fmt.Sprintf(helpers, files[t.order[0]].Name.Name, len(mutants)+1)
	if err := put(replace, dir, filepath.Join(t.dir, "mutants_helpers.go"), []byte(text)); err != nil {
		return "", nil, err
	}
	text2, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", nil, err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, mutants, os.WriteFile(overlay, text2, 0o600)
}

func put(replace map[string]string, dir, path string, src []byte) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	replace[abs] = filepath.Join(dir, filepath.Base(path))
	return os.WriteFile(replace[abs], src, 0o600)
}

// check parses the package and finds the types of its expressions.
func (t target) check(fset *token.FileSet) (map[string]*ast.File, *types.Info, error) {
	exports := map[string]string{}
	out, err := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", "./"+t.dir).Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		path, file, _ := strings.Cut(line, " ")
		exports[path] = file
	}
	out, err = exec.Command("go", "list", "-f", `{{join .GoFiles "\n"}}`, "./"+t.dir).Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w", err)
	}
	files := map[string]*ast.File{}
	var all []*ast.File
	for _, name := range strings.Fields(string(out)) {
		f, err := parser.ParseFile(fset, filepath.Join(t.dir, name), nil, parser.ParseComments)
		if err != nil {
			return nil, nil, err
		}
		files[name] = f
		all = append(all, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, errors.New("no export data")
		}
		return os.Open(exports[path])
	})}
	_, err = conf.Check(t.dir, fset, all, info)
	return files, info, err
}

// suite is the test binary of a package.
type suite struct {
	dir, binary string
	sum         string   // of the binary
	args        []string // that every run gets
}

func build(overlay, dir, pkg string) (suite, error) {
	s := suite{dir: pkg, binary: filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".test")}
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-overlay", overlay, "-o", s.binary, "./"+pkg)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return suite{}, fmt.Errorf("build the tests of %s: %w", pkg, err)
	}
	text, err := os.ReadFile(s.binary)
	if err != nil {
		return suite{}, err
	}
	s.sum = fmt.Sprintf("%x", sha256.Sum256(text))[:16]
	if bytes.Contains(text, []byte("rapid.nofailfile")) {
		s.args = append(s.args, "-rapid.nofailfile") // or a property that fails leaves a file in testdata
	}
	return s, nil
}

// names lists the tests of a suite.
func (s suite) names(o options) ([]string, error) {
	out, err := exec.Command(s.binary, "-test.list", "^(Test|Fuzz)").Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w", s.dir, err)
	}
	names := strings.Fields(string(out))
	return slices.DeleteFunc(names, func(n string) bool { return !o.run.MatchString(n) || o.skip.MatchString(n) }), nil
}

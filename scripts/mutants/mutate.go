package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"regexp"
	"slices"
	"strings"
)

// Mutant is one change of the code.
type Mutant struct {
	ID   int
	File string // with the last part of the package's path
	Line int
	Func string // the declaration around it
	What string // was → is
}

func (m Mutant) String() string { return fmt.Sprintf("%s:%d %s: %s", m.File, m.Line, m.Func, m.What) }

// Key is the mutant without its line, which moves.
func (m Mutant) Key() string { return m.File + " " + m.Func + ": " + m.What }

// unobserved statements have no effect that a test of decisions could see, or their
// loss is a deadlock.
var unobserved = regexp.MustCompile(`^(defer )?[\w.]*(\b(mu|Mu|\w+Mu)\.R?(Lock|Unlock)|\.(log|Log)\.\w+|\bmetrics\.[\w.]+|\.(Close|Put)|\bcancel|\bpanic)\(|^_ =`)

// instrumenter writes every mutant of a file into its source, behind a condition
// that the environment sets when a test runs. So a package is compiled once.
type instrumenter struct {
	file    string
	src     []byte
	fset    *token.FileSet
	info    *types.Info
	mutants *[]Mutant
	inFunc  string
	edits   []edit
	seen    map[ast.Node]bool // what has its edits

	variables map[types.Object]bool // constants of the package that are variables now
}

// edit is text to insert, or bytes to replace if to is not 0. Of those at the same
// place, the one of the smaller rank comes first.
type edit struct {
	at, to, rank int
	text         string
}

// instrument adds the mutants of the declarations of a file that are named, or of all.
func (in *instrumenter) instrument(f *ast.File, only []string) {
	for _, d := range f.Decls {
		names := declared(d)
		if len(only) > 0 && !slices.ContainsFunc(names, func(n string) bool { return slices.Contains(only, n) }) {
			continue
		}
		in.inFunc = strings.Join(names, ", ")
		switch d := d.(type) {
		case *ast.FuncDecl:
			ast.Inspect(d, in.visit)
		case *ast.GenDecl:
			in.declaration(d, true)
		}
	}
}

// declaration changes the SQL among the values of a declaration, of the package or in a function.
func (in *instrumenter) declaration(d *ast.GenDecl, global bool) {
	before := len(*in.mutants)
	for _, s := range d.Specs {
		if v, ok := s.(*ast.ValueSpec); ok {
			if global {
				in.inFunc = v.Names[0].Name
			}
			for _, e := range v.Values {
				in.sql(e)
			}
		}
	}
	if len(*in.mutants) > before {
		in.variable(d)
	}
}

// variable makes variables of constants, since a mutant of theirs is chosen at run time.
func (in *instrumenter) variable(d *ast.GenDecl) {
	if d.Tok != token.CONST || in.seen[d] {
		return
	}
	in.seen[d] = true
	at := in.offset(d.TokPos)
	in.edits = append(in.edits, edit{at: at, to: at + len("const"), text: "var"})
	for _, s := range d.Specs {
		for _, name := range s.(*ast.ValueSpec).Names {
			in.variables[in.info.Defs[name]] = true
		}
	}
}

// follow makes variables of the constants that depend on such, and reports whether
// there were any.
func (in *instrumenter) follow(f *ast.File) bool {
	before := len(in.variables)
	ast.Inspect(f, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			ast.Inspect(d, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok && in.variables[in.info.Uses[id]] {
					in.variable(d)
				}
				return true
			})
		}
		return true
	})
	return len(in.variables) > before
}

// source is the file with its edits.
func (in *instrumenter) source() []byte {
	slices.SortStableFunc(in.edits, func(a, b edit) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.rank, b.rank)) })
	var out strings.Builder
	last := 0
	for _, e := range in.edits {
		out.Write(in.src[last:e.at])
		out.WriteString(e.text)
		last = max(e.at, e.to)
	}
	out.Write(in.src[last:])
	return []byte(out.String())
}

func declared(d ast.Decl) (names []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		names = append(names, d.Name.Name)
	case *ast.GenDecl:
		for _, s := range d.Specs {
			if v, ok := s.(*ast.ValueSpec); ok {
				names = append(names, v.Names[0].Name)
			}
		}
	}
	return names
}

func (in *instrumenter) offset(p token.Pos) int { return in.fset.Position(p).Offset }
func (in *instrumenter) text(n ast.Node) string {
	return string(in.src[in.offset(n.Pos()):in.offset(n.End())])
}

func (in *instrumenter) add(n ast.Node, format string, args ...any) int {
	what := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	id := len(*in.mutants) + 1
	*in.mutants = append(*in.mutants, Mutant{ID: id, File: in.file, Line: in.fset.Position(n.Pos()).Line, Func: in.inFunc, What: what})
	return id
}

// wrap puts text around a node. What is put around an outer node, or around the
// same node earlier, stays outside.
func (in *instrumenter) wrap(n ast.Node, before, after string) {
	in.edits = append(in.edits, edit{at: in.offset(n.Pos()), rank: len(in.edits) + 1, text: before})
	in.edits = append(in.edits, edit{at: in.offset(n.End()), rank: -len(in.edits), text: after})
}

func (in *instrumenter) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		in.declaration(n, false)
	case *ast.IfStmt:
		in.boolean(n.Cond, 0)
	case *ast.ForStmt:
		if n.Cond != nil {
			in.boolean(n.Cond, token.FOR)
		}
		in.statements(n.Body.List)
	case *ast.SwitchStmt:
		if n.Tag == nil {
			for _, c := range n.Body.List {
				for _, e := range c.(*ast.CaseClause).List {
					in.boolean(e, 0)
				}
			}
		}
	case *ast.BlockStmt:
		in.statements(n.List)
	case *ast.CaseClause:
		in.statements(n.Body)
	case *ast.CommClause:
		in.statements(n.Body)
	case *ast.ReturnStmt:
		in.values(n.Results)
	case *ast.AssignStmt:
		in.values(n.Rhs)
	case *ast.CallExpr:
		in.call(n)
	case *ast.KeyValueExpr:
		in.values([]ast.Expr{n.Value})
	case *ast.UnaryExpr:
		if n.Op == token.NOT {
			in.boolean(n, 0)
		}
	case *ast.BinaryExpr:
		in.binary(n)
	case *ast.BasicLit:
		in.sql(n)
	}
	return true
}

// values are expressions whose value is used as it is.
func (in *instrumenter) values(list []ast.Expr) {
	for _, e := range list {
		if id, ok := e.(*ast.Ident); ok && (id.Name == "true" || id.Name == "false") && types.Universe.Lookup(id.Name) == in.info.Uses[id] {
			if !in.seen[e] {
				in.seen[e] = true
				in.edits = append(in.edits, edit{at: in.offset(e.Pos()), to: in.offset(e.End()), rank: len(in.edits) + 1,
					text: fmt.Sprintf("(mutant__(%d) != %s)", in.add(e, "%s → its contrary in %s", id.Name, in.line(e)), id.Name)})
			}
		} else if in.isBool(e) {
			in.boolean(e, 0)
		}
	}
}

// line is the line of source that e is on.
func (in *instrumenter) line(e ast.Node) string {
	at := in.offset(e.Pos())
	start := strings.LastIndexByte(string(in.src[:at]), '\n') + 1
	end := at + strings.IndexByte(string(in.src[at:]), '\n')
	return strings.TrimSpace(string(in.src[start:end]))
}

func (in *instrumenter) isBool(e ast.Expr) bool {
	t, ok := in.info.Types[e]
	if !ok || t.Value != nil || !t.IsValue() {
		return false
	}
	b, ok := t.Type.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsBoolean != 0
}

// boolean changes a condition: each operand of && and || is taken out, and the
// whole is forced to both values. parent is the operator around it.
func (in *instrumenter) boolean(e ast.Expr, parent token.Token) {
	if in.seen[e] || !in.isBool(e) {
		return
	}
	in.seen[e] = true
	switch x := e.(type) {
	case *ast.ParenExpr:
		in.boolean(x.X, parent)
		return
	case *ast.UnaryExpr:
		switch parent { // the contrary of an operand is taken out as one of the other operator
		case token.LAND:
			parent = token.LOR
		case token.LOR:
			parent = token.LAND
		}
		if parent != token.FOR {
			in.boolean(x.X, parent)
		}
		return
	case *ast.BinaryExpr:
		if x.Op == token.LAND || x.Op == token.LOR {
			if parent != x.Op {
				if x.Op == token.LAND {
					in.force(e, false)
				} else if parent != token.FOR {
					in.force(e, true)
				}
			}
			in.boolean(x.X, x.Op)
			in.boolean(x.Y, x.Op)
			return
		}
	}
	if parent != token.LAND {
		in.force(e, false)
	}
	if parent == token.LAND || parent == 0 {
		in.force(e, true)
	}
	if x, ok := e.(*ast.BinaryExpr); ok {
		edge := map[token.Token]token.Token{token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR}
		if op, ok := edge[x.Op]; ok {
			alt := in.text(x.X) + " " + op.String() + " " + in.text(x.Y)
			id := in.add(e, "`%s` → `%s`", in.text(e), alt)
			in.wrap(e, fmt.Sprintf("(mutant__(%d) && (%s) || !mutant__(%d) && (", id, alt, id), "))")
		}
	}
}

func (in *instrumenter) force(e ast.Expr, to bool) {
	id := in.add(e, "`%s` → %t", in.text(e), to)
	if to {
		in.wrap(e, fmt.Sprintf("(mutant__(%d) || (", id), "))")
	} else {
		in.wrap(e, fmt.Sprintf("(!mutant__(%d) && (", id), "))")
	}
}

// binary changes a sum or a comparison that is not part of a condition.
func (in *instrumenter) binary(x *ast.BinaryExpr) {
	t := in.info.Types[x]
	if in.isBool(x) {
		in.boolean(x, 0)
		return
	}
	if x.Op == token.ADD && in.isString(x) {
		in.sql(x)
		return
	}
	if t.Value != nil || x.Op != token.ADD && x.Op != token.SUB {
		return
	}
	op := map[token.Token]token.Token{token.ADD: token.SUB, token.SUB: token.ADD}[x.Op]
	alt := in.text(x.X) + " " + op.String() + " " + in.text(x.Y)
	id := in.add(x, "`%s` → `%s`", in.text(x), alt)
	in.wrap(x, fmt.Sprintf("pick__(%d, %s, ", id, alt), ")")
}

func (in *instrumenter) isString(e ast.Expr) bool {
	t, ok := in.info.Types[e]
	if !ok || t.Type == nil {
		return false // a struct's tag
	}
	b, ok := t.Type.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsString != 0
}

// call changes its literal true and false, and takes each argument of min and max out.
func (in *instrumenter) call(c *ast.CallExpr) {
	if unobserved.MatchString(in.text(c)) {
		return
	}
	in.values(c.Args)
	name, ok := c.Fun.(*ast.Ident)
	if !ok || name.Name != "min" && name.Name != "max" || in.info.Uses[name] != types.Universe.Lookup(name.Name) || in.info.Types[c].Value != nil {
		return
	}
	for i, arg := range c.Args {
		var rest []string
		for k, other := range c.Args {
			if k != i {
				rest = append(rest, in.text(other))
			}
		}
		id := in.add(c, "`%s` without `%s`", in.text(c), in.text(arg))
		in.wrap(c, fmt.Sprintf("pick__(%d, %s(%s), ", id, name.Name, strings.Join(rest, ", ")), ")")
	}
}

// statements are taken out one at a time.
func (in *instrumenter) statements(list []ast.Stmt) {
	for i, s := range list {
		take := false
		switch x := s.(type) {
		case *ast.ExprStmt, *ast.IncDecStmt, *ast.DeferStmt, *ast.GoStmt:
			take = true
		case *ast.AssignStmt:
			take = x.Tok != token.DEFINE
		case *ast.BranchStmt:
			take = x.Tok == token.BREAK || x.Tok == token.CONTINUE
		case *ast.ReturnStmt:
			take = len(x.Results) == 0
		case *ast.SwitchStmt:
			if x.Tag == nil || i == len(list)-1 {
				break
			}
			for _, c := range x.Body.List { // no condition decides here
				if c := c.(*ast.CaseClause); len(c.Body) == 1 && c.List != nil {
					if r, ok := c.Body[0].(*ast.ReturnStmt); ok && len(r.Results) > 0 {
						in.remove(r)
					}
				}
			}
		}
		if take && !in.seen[s] && !unobserved.MatchString(in.text(s)) {
			in.seen[s] = true
			in.remove(s)
		}
	}
}

func (in *instrumenter) remove(s ast.Stmt) {
	text, rest, more := strings.Cut(in.text(s), "\n")
	if more && len(rest) > 0 {
		text += " …"
	}
	in.wrap(s, fmt.Sprintf("if !mutant__(%d) { ", in.add(s, "without `%s`", text)), " }")
}

// sql changes the conditions of a statement of SQL.
func (in *instrumenter) sql(e ast.Expr) {
	if in.seen[e] || !in.isString(e) {
		return
	}
	var parts []ast.Expr
	var flatten func(ast.Expr)
	flatten = func(e ast.Expr) {
		in.seen[e] = true
		if b, ok := e.(*ast.BinaryExpr); ok && b.Op == token.ADD {
			flatten(b.X)
			flatten(b.Y)
			return
		}
		parts = append(parts, e)
	}
	flatten(e)
	var text strings.Builder
	var names []string
	for _, p := range parts {
		if lit, ok := p.(*ast.BasicLit); ok {
			text.WriteString(constant.StringVal(in.info.Types[lit].Value))
			continue
		}
		text.WriteString(hole)
		names = append(names, in.text(p))
	}
	for _, c := range changesOfSQL(text.String()) {
		alt, rest := "", c.text
		for _, n := range names {
			before, after, _ := strings.Cut(rest, hole)
			alt, rest = alt+fmt.Sprintf("%q + %s + ", before, n), after
		}
		what := c.what
		for _, n := range c.holes {
			what = strings.Replace(what, hole, names[n], 1)
		}
		in.wrap(e, fmt.Sprintf("pick__(%d, %s%q, ", in.add(e, "%s", what), alt, rest), ")")
	}
}

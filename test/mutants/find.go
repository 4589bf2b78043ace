package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// finder finds the mutants of a file.
type finder struct {
	p    *pkg
	f    *file
	info *types.Info
	fn   string         // the function it is in
	seen map[string]int // the same text may occur twice in a function

	guards map[ast.Node]bool // blocks that end no function: a return may be dropped there
}

func (p *pkg) find(f *file, info *types.Info) {
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil || len(fn.Body.List) == 0 {
			continue
		}
		w := &finder{p: p, f: f, info: info, fn: fn.Name.Name, seen: map[string]int{}, guards: map[ast.Node]bool{}}
		if fn.Recv != nil {
			w.fn = strings.TrimPrefix(w.text(fn.Recv.List[0].Type), "*") + "." + w.fn
		}
		w.nothing(fn)
		ast.Inspect(fn.Body, w.visit)
	}
}

func (w *finder) offset(p token.Pos) int { return w.p.fset.Position(p).Offset }

func (w *finder) text(n ast.Node) string { return string(w.f.src[w.offset(n.Pos()):w.offset(n.End())]) }

// short is a text on one line.
func short(s string) string {
	if s = strings.Join(strings.Fields(s), " "); len(s) > 70 {
		s = s[:70] + "…"
	}
	return s
}

// add notes a mutant around the source from from to to.
func (w *finder) add(from, to token.Pos, before, after, format string, args ...any) {
	what := fmt.Sprintf("%s: %s: %s", w.f.shown, w.fn, fmt.Sprintf(format, args...))
	if w.seen[what]++; w.seen[what] > 1 {
		what += fmt.Sprintf(" (%d)", w.seen[what])
	}
	w.p.mutants = append(w.p.mutants, &mutant{in: w.f, file: w.f.shown, line: w.p.fset.Position(from).Line,
		from: w.offset(from), to: w.offset(to), before: before, after: after, what: what})
}

// nothing makes a function return at once, with zeros.
func (w *finder) nothing(fn *ast.FuncDecl) {
	zeros := ""
	if r := fn.Type.Results; r != nil && r.List[0].Names == nil {
		for i, t := range r.List {
			if i > 0 {
				zeros += ", "
			}
			zeros += "*new(" + w.text(t.Type) + ")"
		}
	}
	at := fn.Body.Lbrace + 1
	w.add(at, at, "if mutant(%d) { return "+zeros+" };", "", "returns zeros at once")
}

func (w *finder) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		return n.Tok == token.VAR // a constant can't be switched
	case *ast.ArrayType, *ast.StructType, *ast.FuncType:
		return false
	case *ast.BlockStmt:
		w.statements(n.List, w.guards[n])
	case *ast.CaseClause:
		w.statements(n.Body, w.guards[n])
	case *ast.CommClause:
		w.statements(n.Body, false)
	case *ast.SwitchStmt:
		w.clauses(n.Body)
	case *ast.TypeSwitchStmt:
		w.clauses(n.Body)
	case *ast.IfStmt:
		w.guards[n.Body] = n.Else == nil
		w.add(n.Cond.Pos(), n.Cond.End(), "(!mutant(%d) && (", "))", "if %s: never", short(w.text(n.Cond)))
		if !isNilCheck(n.Cond) {
			w.add(n.Cond.Pos(), n.Cond.End(), "(mutant(%d) || (", "))", "if %s: always", short(w.text(n.Cond)))
		}
	case *ast.BinaryExpr:
		w.binary(n)
	case *ast.BasicLit, *ast.Ident, *ast.SelectorExpr:
		w.constant(n.(ast.Expr))
		_, selector := n.(*ast.SelectorExpr)
		return !selector || !w.constantType(n.(ast.Expr))
	case *ast.CallExpr:
		if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "make" {
			return false // sizes are hints, or fail at once
		}
		return !w.isLog(n)
	}
	return true
}

// isNilCheck: whoever finds a nil where there is none falls over.
func isNilCheck(e ast.Expr) bool {
	b, ok := e.(*ast.BinaryExpr)
	if !ok {
		return false
	}
	id, ok := b.Y.(*ast.Ident)
	return ok && id.Name == "nil"
}

// isLog says that a call writes a line of a log.
func (w *finder) isLog(c *ast.CallExpr) bool {
	text := strings.ToLower(w.text(c.Fun))
	return strings.Contains(text, "log.") || strings.HasPrefix(text, "slog")
}

// isLock: without it tests hang for their time-out, or notice under -race only.
func (w *finder) isLock(c *ast.CallExpr) bool {
	text := w.text(c.Fun)
	for _, s := range []string{"Lock", "Unlock", "Done", "Wait", "cancel", "panic"} {
		if strings.HasSuffix(text, s) {
			return true
		}
	}
	return false
}

// clauses marks those of a switch without a default: it ends no function.
func (w *finder) clauses(body *ast.BlockStmt) {
	isDefault := func(s ast.Stmt) bool { c, ok := s.(*ast.CaseClause); return ok && c.List == nil }
	for _, s := range body.List {
		w.guards[s] = !slices.ContainsFunc(body.List, isDefault)
	}
}

// statements drops statements.
func (w *finder) statements(list []ast.Stmt, guard bool) {
	for i, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt:
			if c, ok := s.X.(*ast.CallExpr); !ok || w.isLog(c) || w.isLock(c) {
				continue
			}
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE || w.text(s.Lhs[0]) == "_" {
				continue
			}
		case *ast.ReturnStmt:
			if !guard || i == 0 && len(list) == 1 && len(s.Results) == 0 {
				continue // its condition says as much
			}
		case *ast.IncDecStmt, *ast.BranchStmt:
		default:
			continue
		}
		w.add(s.Pos(), s.End(), "if !mutant(%d) { ", " }", "without %s", short(w.text(s)))
	}
}

// binary changes operators.
func (w *finder) binary(b *ast.BinaryExpr) {
	if w.constantType(b) {
		return
	}
	x, y := w.text(b.X), w.text(b.Y)
	flat := !strings.Contains(x+y, "\n")
	switch b.Op {
	case token.LAND:
		w.add(b.X.Pos(), b.X.End(), "(mutant(%d) || (", "))", "%s && %s: the second alone", short(x), short(y))
		w.add(b.Y.Pos(), b.Y.End(), "(mutant(%d) || (", "))", "%s && %s: the first alone", short(x), short(y))
	case token.LOR:
		w.add(b.X.Pos(), b.X.End(), "(!mutant(%d) && (", "))", "%s || %s: the second alone", short(x), short(y))
		w.add(b.Y.Pos(), b.Y.End(), "(!mutant(%d) && (", "))", "%s || %s: the first alone", short(x), short(y))
	case token.LSS, token.GTR:
		if flat {
			w.add(b.Pos(), b.End(), "(", fmt.Sprintf(" || mutant(%%d) && (%s) == (%s))", escape(x), escape(y)), "%s %s %s: or equal", short(x), b.Op, short(y))
		}
	case token.LEQ, token.GEQ:
		if flat {
			w.add(b.Pos(), b.End(), "(", fmt.Sprintf(" && !(mutant(%%d) && (%s) == (%s)))", escape(x), escape(y)), "%s %s %s: not equal", short(x), b.Op, short(y))
		}
	case token.EQL, token.NEQ:
		if !isNilCheck(b) {
			w.add(b.Pos(), b.End(), "((", ") != mutant(%d))", "%s %s %s: the opposite", short(x), b.Op, short(y))
		}
	}
}

// escape keeps %d of the source from being taken for the switch's number. There
// is none outside of strings, where a copy may differ.
func escape(s string) string { return strings.ReplaceAll(s, "%d", "%v") }

func (w *finder) constantType(e ast.Expr) bool {
	t, ok := w.info.Types[e]
	return ok && t.Value != nil
}

// constant adds one to an integer constant.
func (w *finder) constant(e ast.Expr) {
	t, ok := w.info.Types[e]
	if !ok || t.Value == nil {
		return
	}
	basic, ok := t.Type.(*types.Basic)
	if !ok || basic.Info()&types.IsInteger == 0 || basic.Info()&types.IsUntyped != 0 {
		return // times are for tuning; of an untyped constant nobody knows what it becomes
	}
	w.add(e.Pos(), e.End(), "mutantAdd["+basic.Name()+"](%d, ", ")", "%s plus one", short(w.text(e)))
}

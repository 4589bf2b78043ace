// Package sqlast parses the SELECT statements that Postfix's mysql_table(5),
// pgsql_table(5) and sqlite_table(5) are made of, in the three dialects.
//
// A statement such as
//
//	SELECT goto FROM alias WHERE address = '%s' AND active = 1
//
// is parsed with its placeholders in place: Template makes each one a rune of
// its own, a Hole, which may stand in strings and nowhere else. Every node
// knows its span of the text, so that a caller who takes a statement apart
// spells the pieces as their author did.
//
// Its job is structure: which tables, which conditions, joined how. It resolves
// no names and knows no types. What the three databases read differently (a
// chain of comparisons, MySQL's "||" under its sql_mode) is an error or a node
// of its own, never a guess; operators that calculate are one flat node,
// OpOpaque, since nobody asks in which order they do. What isn't understood is
// an error; a caller then takes the statement for one that can't be reasoned
// about.
package sqlast

import (
	"slices"
	"unicode/utf8"
)

// Dialect is whose SQL it is.
type Dialect uint8

// The dialects, by Postfix's types of table.
const (
	MySQL Dialect = iota
	PostgreSQL
	SQLite
)

// Span is a node's place in the text.
type Span struct{ Start, End int }

// Query is a SELECT, or several joined by set operations. What they yield
// comes from one of the Terms, whatever the operations are.
type Query struct {
	Span
	With  []*Named
	Terms []*Term
	Ops   []string // between the terms: "union", "union all", "intersect", "except"
	Order []*Expr
	Limit *Expr // nil: none
	Skips bool  // has an OFFSET
	Locks bool  // FOR UPDATE and the like

	Tail Span // ORDER BY and what follows it, without LIMIT and OFFSET
}

// Named is a query of a WITH clause.
type Named struct {
	Name      string
	Query     *Query
	Recursive bool
}

// Term is a SELECT or a query in parentheses.
type Term struct {
	Span
	Select *Select
	Query  *Query
}

// Select is one SELECT.
type Select struct {
	Span
	Distinct bool
	Items    []*Item
	ItemSpan Span
	From     []*From // joined by commas
	FromSpan Span
	Where    *Expr
	Group    []*Expr
	Having   *Expr
	Window   bool
}

// Item is one column that is selected.
type Item struct {
	Span
	Expr  *Expr // nil: "*" or "t.*"
	Alias string
}

// From is a table, a derived table or a join.
type From struct {
	Span
	Table   string // as written
	Alias   string // folded; of a table without one its name
	Sub     *Query // derived
	Call    *Expr  // a function that yields a table
	Lateral bool

	Join        string // "inner", "left", "right", "full", "natural" of Left and Right
	Left, Right *From
	On          *Expr
	Using       bool
}

// Op says what an Expr is.
type Op uint8

// Operators and leaves. Args are the operands in their order.
const (
	OpOpaque  Op = iota // calculates somehow from Args
	OpColumn            // Name
	OpString            // Text
	OpNumber            // also TRUE, FALSE
	OpNull              //
	OpCall              // Name, folded
	OpConcat            // a || b, where that joins strings
	OpAnd               //
	OpOr                //
	OpXor               //
	OpNot               //
	OpCompare           // Name: = <> < > <= >= <=> is
	OpLike              // Name: like, ilike, regexp, glob …
	OpIn                // Args[0] in the rest, or in Sub
	OpBetween           //
	OpIsNull            // also IS TRUE and the like: any test that NULL may pass
	OpExists            // Sub
	OpCase              // Args: [subject,] when, then, …, [else]
	OpCast              // Args[0] as a type, named Name
	OpCollate           // Args[0]
	OpQuery             // Sub, of one value
	OpRow               // (a, b)
)

// Expr is an expression.
type Expr struct {
	Span
	Op   Op
	Name string
	Text string // of a string, without quotes and escapes
	Args []*Expr
	Sub  *Query

	Negated bool // NOT LIKE, NOT IN, NOT BETWEEN, IS NOT NULL
	Subject bool // of OpCase: Args[0] is compared with each WHEN
	Else    bool // of OpCase: the last of Args
	Odd     bool // of OpCall: with DISTINCT, ORDER BY, FROM … between its arguments
	Window  bool // of OpCall: OVER (…)
}

const holes = 0xE000 // of Unicode's private use

// Hole is the rune of a placeholder: 's', 'u', 'd' or '1' to '9'.
func Hole(c byte) rune { return holes + rune(c) }

// HoleOf returns which placeholder a rune is, 0 for none.
func HoleOf(r rune) byte {
	if r > holes && r <= holes+utf8.RuneSelf {
		return byte(r - holes)
	}
	return 0
}

// Holes says that a text holds a placeholder.
func Holes(s string) bool {
	for _, r := range s {
		if HoleOf(r) != 0 {
			return true
		}
	}
	return false
}

// Walk calls f for an expression and every one below it, subqueries' too.
func (e *Expr) Walk(f func(*Expr)) { visitor{expr: f}.walk(e, nil) }

// Walk calls f for every expression of a query, subqueries' too.
func (q *Query) Walk(f func(*Expr)) { visitor{expr: f}.query(q, nil) }

// Tables calls f for every table that a query names, subqueries' too, but not
// for the names of WITH.
func (q *Query) Tables(f func(*From)) { visitor{table: f}.query(q, nil) }

// visitor goes through everything. Names of WITH that are in force come along.
type visitor struct {
	expr  func(*Expr)
	table func(*From)
}

func (v visitor) query(q *Query, known []string) {
	for _, n := range q.With {
		known = append(known[:len(known):len(known)], n.Name)
	}
	for _, n := range q.With {
		v.query(n.Query, known)
	}
	for _, t := range q.Terms {
		if t.Query != nil {
			v.query(t.Query, known)
		} else {
			v.selects(t.Select, known)
		}
	}
	v.all(q.Order, known)
	v.walk(q.Limit, known)
}

func (v visitor) selects(s *Select, known []string) {
	for _, i := range s.Items {
		v.walk(i.Expr, known)
	}
	for _, f := range s.From {
		v.from(f, known)
	}
	v.walk(s.Where, known)
	v.all(s.Group, known)
	v.walk(s.Having, known)
}

func (v visitor) from(f *From, known []string) {
	if f == nil {
		return
	}
	if f.Table != "" && v.table != nil && !slices.Contains(known, fold(f.Table)) {
		v.table(f)
	}
	if f.Sub != nil {
		v.query(f.Sub, known)
	}
	v.walk(f.Call, known)
	v.from(f.Left, known)
	v.from(f.Right, known)
	v.walk(f.On, known)
}

func (v visitor) all(list []*Expr, known []string) {
	for _, e := range list {
		v.walk(e, known)
	}
}

func (v visitor) walk(e *Expr, known []string) {
	if e == nil {
		return
	}
	if v.expr != nil {
		v.expr(e)
	}
	v.all(e.Args, known)
	if e.Sub != nil {
		v.query(e.Sub, known)
	}
}

package postfix

import (
	"errors"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// Which keys can a query answer to? Whatever else it computes, a row comes
// back only when its conditions hold, and where one of them equates the key
// with a column, no other keys than that column's values do. That is all that
// is used: a condition that isn't understood restricts nothing, so what comes
// out may hold too many keys, never too few. Each is then put to the query
// itself.

// system is a way for a query to find something: equations that hold together.
type system []equal

// equal says that a column, or a text, equals a template.
type equal struct {
	left     term
	template []term
	suffix   bool // the template is what follows an "@" of the column

	// Not an equation, but characters of keys that aren't found.
	except string
}

// term is a text, a placeholder, or a column of a source.
type term struct {
	text string
	hole byte // 's', 'u', 'd', or 'a' for %u@%d
	rows *rowSource
	col  int
}

// rowSource is a part of FROM that holds no key. Its query lists expressions.
type rowSource struct {
	from, where []string
	columns     []string
}

func (r *rowSource) query() string {
	q := "SELECT " + strings.Join(r.columns, ", ") + " FROM " + strings.Join(r.from, ", ")
	if len(r.where) > 0 {
		q += " WHERE " + strings.Join(r.where, " AND ")
	}
	return q
}

func (r *rowSource) column(text string) int {
	n := slices.Index(r.columns, text)
	if n < 0 {
		n = len(r.columns)
		r.columns = append(r.columns, text)
	}
	return n
}

// ways are alternatives. nil means that nothing is restricted; none at all,
// that nothing is ever found.
type ways []system

const maxWays = 64

// unread stands among the characters of a way for conditions left out.
const unread = "\x00"

func (a ways) and(b ways) ways {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case len(a)*len(b) > maxWays:
		b = ways{{{except: unread}}}
	}
	all := ways{}
	for _, x := range a {
		for _, y := range b {
			all = append(all, slices.Concat(x, y))
		}
	}
	return all
}

func (a ways) or(b ways) ways {
	if a == nil || b == nil || len(a)+len(b) > maxWays {
		return nil
	}
	return append(a[:len(a):len(a)], b...)
}

// need is what is asked of an expression.
type need uint8

const (
	result  need = iota // Postfix sees a value
	truth               // a condition holds
	notNull             //
	someRow             // of a query: there is one
)

// bounder analyses one statement.
type bounder struct {
	text    string
	dialect sqlast.Dialect
	columns func(from string) ([]string, error) // of a table or derived table as it stands in FROM
	wild    bool                                // keys with wildcards of LIKE are found otherwise
	spaces  bool                                // keys with spaces are

	// What stands under NOT. For other keys than these it is what it is for any.
	holes     ways
	wildHoles bool   // and for keys with wildcards of LIKE
	lossy     bool   // conditions on the local-part were left out
	strips    string // characters: what stands after one in the local-part may be cut off
	err       error  // of columns
}

func (b *bounder) spell(s sqlast.Span) string { return b.text[s.Start:s.End] }

func (b *bounder) keyed(s sqlast.Span) bool { return sqlast.Holes(b.spell(s)) }

// query returns the ways in which one finds something.
func (b *bounder) query(q *sqlast.Query, outer *scope, n need) ways {
	if len(q.With) > 0 || slices.ContainsFunc(q.Order, (*sqlast.Expr).MayAggregate) {
		return nil
	}
	if q.Limit != nil {
		b.lose(q.Limit.Span)
	}
	all := ways{}
	for _, t := range q.Terms {
		before := b.lossy
		b.lossy = false
		var w ways
		if t.Query != nil {
			w = b.query(t.Query, outer, n)
		} else {
			w = b.selects(t.Select, outer, n)
		}
		// What tells the whole key says nothing about others.
		b.lossy = before || b.lossy && !w.whole()
		all = all.or(w)
	}
	return all
}

// whole says that each way tells the whole key.
func (a ways) whole() bool {
	return a != nil && !slices.ContainsFunc(a, func(s system) bool { return s.kind() != 's' })
}

func (b *bounder) selects(s *sqlast.Select, outer *scope, n need) ways {
	sc := b.scope(s, outer)
	found := sc.found
	for _, c := range sc.conditions {
		found = found.and(b.condition(c, sc))
	}
	if s.Having != nil {
		b.lose(s.Having.Span)
	}
	if b.aggregates(s) && len(s.Group) == 0 {
		sc.groups = found
		if n == someRow {
			return nil
		}
		sc.aggregate = true
		return b.items(s, sc, n)
	}
	if n == someRow {
		return found
	}
	return found.and(b.items(s, sc, n))
}

// items are the ways for one of the selected values to be what is needed.
func (b *bounder) items(s *sqlast.Select, sc *scope, n need) ways {
	items := s.Items
	if b.dialect == sqlast.SQLite {
		items = items[:1] // dict_sqlite(3) looks at no other
	}
	all := ways{}
	for _, i := range items {
		if i.Expr == nil {
			return nil
		}
		all = all.or(b.value(i.Expr, sc, n))
	}
	return all
}

func (b *bounder) aggregates(s *sqlast.Select) bool {
	found := false
	for _, i := range s.Items {
		if i.Expr != nil {
			found = found || collapses(i.Expr)
		}
	}
	return found || s.Having != nil && len(s.Group) == 0
}

// collapses says that an expression may turn a query's rows, or none, into one.
// A window function leaves as many as there are.
func collapses(e *sqlast.Expr) bool {
	return e.Op == sqlast.OpCall && !e.Window && !sqlast.Scalar(e.Name) || slices.ContainsFunc(e.Args, collapses)
}

// value is the ways for an expression to be what is needed.
func (b *bounder) value(e *sqlast.Expr, sc *scope, n need) ways {
	all := func(args []*sqlast.Expr, n need) (w ways) {
		for _, a := range args {
			w = w.and(b.value(a, sc, n))
		}
		return w
	}
	if e.Op == sqlast.OpCall && !transparent[e.Name] || e.Op == sqlast.OpOpaque {
		b.lose(e.Span)
	}
	switch e.Op {
	case sqlast.OpNull:
		return ways{}
	case sqlast.OpString:
		if e.Text == "" && n == result {
			return ways{}
		}
	case sqlast.OpNumber:
		if n == truth && (e.Name == "0" || e.Name == "false") {
			return ways{}
		}
	case sqlast.OpQuery:
		return b.query(e.Sub, sc, n)
	case sqlast.OpCase:
		return b.cases(e, sc, n)
	case sqlast.OpCall:
		return b.call(e, sc, n)
	case sqlast.OpCast, sqlast.OpCollate:
		return b.value(e.Args[0], sc, n)
	case sqlast.OpConcat, sqlast.OpOpaque:
		if e.Op == sqlast.OpConcat || n != truth {
			return nil
		}
	case sqlast.OpAnd, sqlast.OpOr, sqlast.OpExists, sqlast.OpIsNull:
		if n == truth {
			return b.condition(e, sc)
		}
	case sqlast.OpCompare, sqlast.OpLike, sqlast.OpIn, sqlast.OpBetween:
		if n == truth {
			return b.condition(e, sc)
		}
		if e.Op == sqlast.OpCompare && e.Name != "<=>" {
			return all(e.Args, notNull)
		}
	}
	return nil
}

// transparent functions yield something for every key, or what call says.
var transparent = map[string]bool{"if": true, "iif": true, "coalesce": true, "ifnull": true, "nvl": true, "concat": true, "lower": true, "upper": true}

func (b *bounder) call(e *sqlast.Expr, sc *scope, n need) ways {
	arg := func(k int, n need) ways {
		if k >= len(e.Args) {
			return nil
		}
		return b.value(e.Args[k], sc, n)
	}
	switch e.Name {
	case "if", "iif":
		if len(e.Args) == 3 {
			return b.condition(e.Args[0], sc).and(arg(1, n)).or(arg(2, n))
		}
	case "coalesce", "ifnull", "nvl":
		w := ways{}
		for k := range e.Args {
			w = w.or(arg(k, n))
		}
		return w
	case "nullif", "lower", "upper", "lcase", "ucase", "trim", "ltrim", "rtrim":
		if !e.Odd {
			return arg(0, n)
		}
	case "concat":
		if b.dialect == sqlast.MySQL && n != truth {
			var w ways
			for k := range e.Args {
				w = w.and(arg(k, notNull))
			}
			return w
		}
	case "max", "min", "sum", "avg", "group_concat", "string_agg", "array_agg", "json_agg", "any_value":
		if sc != nil && sc.aggregate {
			return sc.groups // NULL without a row
		}
	}
	return nil
}

func (b *bounder) cases(e *sqlast.Expr, sc *scope, n need) ways {
	args, w := e.Args, ways{}
	var subject *sqlast.Expr
	if e.Subject {
		subject, args = args[0], args[1:]
	}
	for ; len(args) >= 2; args = args[2:] {
		var c ways
		if subject != nil {
			c = b.equation(subject, args[0], sc)
		} else {
			c = b.condition(args[0], sc)
		}
		w = w.or(c.and(b.value(args[1], sc, n)))
	}
	if e.Else {
		w = w.or(b.value(args[0], sc, n))
	}
	return w
}

// condition is the ways for one to hold.
func (b *bounder) condition(e *sqlast.Expr, sc *scope) ways {
	switch chars, ok := b.except(e); {
	case ok && chars == "":
		return nil
	case ok:
		return ways{{{except: chars}}}
	}
	if b.hole(e, sc) {
		return nil
	}
	w := b.holds(e, sc)
	if w == nil || e.Op != sqlast.OpAnd && e.Op != sqlast.OpOr && !exactOps[e.Op] {
		b.lose(e.Span)
	}
	return w
}

// hole notes the keys for which a condition such as NOT EXISTS (…) may fail.
// For all others it holds.
func (b *bounder) hole(e *sqlast.Expr, sc *scope) bool {
	if e.Op != sqlast.OpNot || !b.keyed(e.Span) || mayBeNull(e.Args[0]) {
		return false
	}
	lossy, wild := b.lossy, b.wild
	b.wild = false
	w := b.holds(e.Args[0], sc)
	b.lossy, b.wild, b.wildHoles = lossy, wild, b.wildHoles || b.wild
	if !w.whole() || len(b.holes)+len(w) > maxWays {
		return false
	}
	b.holes = append(b.holes, w...)
	return true
}

// mayBeNull says that a condition may be NULL for some keys, as NOT of it is.
func mayBeNull(e *sqlast.Expr) (null bool) {
	e.Walk(func(x *sqlast.Expr) {
		null = null || x.Op == sqlast.OpCase || x.Op == sqlast.OpCall && (x.Name == "if" || x.Name == "iif" || x.Name == "nullif")
	})
	return null
}

// exactOps are conditions that their ways say all about.
var exactOps = map[sqlast.Op]bool{sqlast.OpCompare: true, sqlast.OpLike: true, sqlast.OpIn: true, sqlast.OpNull: true, sqlast.OpNumber: true}

func (b *bounder) holds(e *sqlast.Expr, sc *scope) ways {
	if !b.keyed(e.Span) && e.Op != sqlast.OpNull && e.Op != sqlast.OpNumber {
		return nil // its columns may be of any type
	}
	switch e.Op {
	case sqlast.OpAnd:
		var w ways
		for _, a := range e.Args {
			w = w.and(b.condition(a, sc))
		}
		return w
	case sqlast.OpOr:
		w := ways{}
		for _, a := range e.Args {
			w = w.or(b.condition(a, sc))
		}
		return w
	case sqlast.OpExists:
		return b.query(e.Sub, sc, someRow)
	case sqlast.OpIsNull:
		if e.Negated {
			return b.value(e.Args[0], sc, notNull)
		}
	case sqlast.OpCompare:
		if e.Name == "=" || e.Name == "<=>" && (e.Args[0].Op == sqlast.OpString || e.Args[1].Op == sqlast.OpString) {
			return b.equation(e.Args[0], e.Args[1], sc)
		}
		if e.Name != "<=>" {
			return b.value(e.Args[0], sc, notNull).and(b.value(e.Args[1], sc, notNull))
		}
	case sqlast.OpLike:
		if !e.Negated && len(e.Args) == 2 && (e.Name == "like" || e.Name == "ilike") {
			return b.like(e.Args[0], e.Args[1], sc)
		}
	case sqlast.OpIn:
		return b.in(e, sc)
	case sqlast.OpQuery, sqlast.OpCall, sqlast.OpCase, sqlast.OpNull, sqlast.OpNumber:
		return b.value(e, sc, truth)
	}
	return nil
}

func (b *bounder) in(e *sqlast.Expr, sc *scope) ways {
	if e.Negated {
		return nil
	}
	w := ways{}
	for _, a := range e.Args[1:] {
		w = w.or(b.equation(e.Args[0], a, sc))
	}
	if e.Sub != nil {
		for _, t := range b.queryAlternatives(e.Sub, sc) {
			w = w.or(b.equals(b.alternatives(e.Args[0], sc), []alternative{t}))
		}
		if len(w) == 0 {
			b.lose(e.Span)
			return b.query(e.Sub, sc, someRow)
		}
	}
	return w
}

// equation is the ways for two expressions to be equal.
func (b *bounder) equation(l, r *sqlast.Expr, sc *scope) ways {
	if !b.keyed(l.Span) && !b.keyed(r.Span) {
		return nil // its columns may be of any type
	}
	if l.Op == sqlast.OpRow && r.Op == sqlast.OpRow && len(l.Args) == len(r.Args) {
		var w ways
		for n := range l.Args {
			w = w.and(b.equation(l.Args[n], r.Args[n], sc))
		}
		return w
	}
	if w := b.equals(b.alternatives(l, sc), b.alternatives(r, sc)); w != nil {
		return w
	}
	b.lose(l.Span)
	b.lose(r.Span)
	return b.value(l, sc, notNull).and(b.value(r, sc, notNull))
}

var errUnbounded = errors.New("no condition ties the key to a column")

// solvable says that each way tells the key, or its domain.
func solvable(w ways) bool {
	return w != nil && !slices.ContainsFunc(w, func(s system) bool { return s.kind() == 0 })
}

// kind is what a way tells of the key: 's' all of it, 'd' its domain, 'u' its
// local-part, 0 nothing.
func (s system) kind() byte {
	have := map[byte]bool{}
	for _, e := range s {
		for _, t := range e.template {
			have[t.hole] = true
		}
	}
	switch {
	case have['s'] || have['a'] || have['u'] && have['d']:
		return 's'
	case have['d']:
		return 'd'
	case have['u']:
		return 'u'
	}
	return 0
}

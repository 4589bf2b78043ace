package postfix

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// Query is a SELECT that lists what a table's query answers to. The columns of
// the original come first, then those that the key is made of.
type Query struct {
	SQL        string
	keyColumns int
	equations  []equation
	domains    []string // when only the local-part is known
	domainWide bool     // the key is "@domain": the query doesn't look at the local-part
	limit      int      // rows a key, 0 for all

	head, order string
	octets      []bool   // which of the key's columns have no letters
	where       []string // what stays of it
	columns     []string // of the key
}

// equation says that a column equals a template.
type equation struct {
	column   int    // of the key columns
	template []part // at most one of a kind of placeholder
}

// part is a piece of a template: literal text, a placeholder or a column.
type part struct {
	text   string
	hole   byte // 's', 'u' or 'd'
	column int  // of the key columns, when text and hole are unset
}

// statement is a table's query, parsed.
type statement struct {
	text    string // with placeholders as sqlast has them
	dialect sqlast.Dialect
	query   *sqlast.Query
}

var dialects = map[string]sqlast.Dialect{"mysql": sqlast.MySQL, "pgsql": sqlast.PostgreSQL, "sqlite": sqlast.SQLite}

func parseStatement(query, typ string) (*statement, error) {
	text, err := sqlast.Template(query)
	if err != nil {
		return nil, err
	}
	s := &statement{text: text, dialect: dialects[typ]}
	s.query, err = sqlast.Parse(text, s.dialect)
	return s, err
}

func (s *statement) spell(at sqlast.Span) string { return s.text[at.Start:at.End] }

func (s *statement) keyed(at sqlast.Span) bool { return sqlast.Holes(s.spell(at)) }

// rewrite turns a table's query into queries that list all its answers with
// their values: equations between a column and the key leave WHERE and inner
// joins, and the column joins what is selected. An error says that this isn't
// exact; there are other ways to list the table then.
func (s *statement) rewrite(domains []string) ([]Query, error) {
	top := s.query
	for len(top.Terms) == 1 && top.Terms[0].Query != nil && top.Limit == nil && len(top.Order) == 0 {
		top = top.Terms[0].Query
	}
	if len(top.With) > 0 || top.Skips || slices.ContainsFunc(top.Ops, func(op string) bool { return op != "union all" }) {
		return nil, errors.New("WITH, OFFSET, or a set operation that looks at values")
	}
	if len(top.Terms) > 1 && (top.Limit != nil || len(top.Order) > 0) {
		return nil, errors.New("LIMIT or ORDER BY over a UNION")
	}
	var queries []Query
	for _, t := range top.Terms {
		if t.Query != nil {
			return nil, errors.New("a query in parentheses")
		}
		q, err := s.rewriteSelect(t.Select)
		if err == nil {
			err = s.ordered(q, top)
		}
		if err == nil {
			err = q.variables(domains)
		}
		if err != nil {
			return nil, err
		}
		q.SQL = q.spell(q.where)
		queries = append(queries, *q)
	}
	return queries, nil
}

// ordered keeps ORDER BY, and reads LIMIT.
func (s *statement) ordered(q *Query, top *sqlast.Query) (err error) {
	if slices.ContainsFunc(top.Order, (*sqlast.Expr).MayAggregate) || s.keyed(top.Tail) {
		return errors.New("ORDER BY computes")
	}
	if len(top.Order) > 0 {
		q.order = " " + s.spell(top.Tail)
	}
	if top.Limit != nil {
		if q.limit, err = strconv.Atoi(s.spell(top.Limit.Span)); err != nil || q.limit < 1 {
			return errors.New("LIMIT isn't a number")
		}
	}
	return nil
}

// rewriteSelect rewrites one SELECT.
func (s *statement) rewriteSelect(sel *sqlast.Select) (*Query, error) {
	if len(sel.Group) > 0 || sel.Having != nil {
		return nil, errors.New("GROUP BY or HAVING")
	}
	if len(sel.From) == 0 || s.keyed(sel.ItemSpan) {
		return nil, errors.New("the key in what is selected")
	}
	for _, i := range sel.Items {
		if i.Expr != nil && i.Expr.MayAggregate() {
			return nil, errors.New("a function that may look at many rows")
		}
	}
	from, conditions, tables, err := s.joined(sel)
	if err != nil {
		return nil, err
	}
	q := &Query{}
	for _, c := range conditions {
		if sel.Distinct && c.Op == sqlast.OpIn && s.keyed(c.Span) {
			var derived string
			if derived, err = q.among(s, c); err == nil {
				from += ", " + derived
			}
		} else {
			err = q.condition(s, c)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(q.equations) == 0 {
		return nil, errors.New("no condition ties the key to a column")
	}
	// Tables that only the key ties together would be multiplied.
	if tables > 1 && slices.ContainsFunc(q.equations, equation.ties) {
		return nil, errors.New("the key ties tables together")
	}
	q.keyColumns = len(q.columns)
	q.head = "SELECT "
	if sel.Distinct { // also among the rows of one key
		q.head += "DISTINCT "
	}
	q.head += s.spell(sel.ItemSpan) + ", " + strings.Join(q.columns, ", ") + " FROM " + from
	return q, nil
}

// pads says that spaces at the end of a local-part don't count: most of
// MariaDB's collations take "ann " for "ann".
func (e equation) pads() bool { return e.template[len(e.template)-1].hole == 'u' }

func (e equation) ties() bool {
	return slices.ContainsFunc(e.template, func(p part) bool { return p.hole == 0 && p.text == "" })
}

// joined spells FROM, with inner joins that hold the key taken apart, and
// returns the conditions of these and of WHERE.
func (s *statement) joined(sel *sqlast.Select) (from string, conditions []*sqlast.Expr, tables int, err error) {
	var parts []string
	var add func(f *sqlast.From) error
	add = func(f *sqlast.From) error {
		if !s.keyed(f.Span) {
			parts = append(parts, s.spell(f.Span))
			return nil
		}
		if f.Left == nil || f.Join != "inner" || f.Using || f.Lateral {
			return errors.New("the key in FROM")
		}
		if err := add(f.Left); err != nil {
			return err
		}
		if f.On != nil {
			conditions = append(conditions, f.On.Conjuncts()...)
		}
		return add(f.Right)
	}
	for _, f := range sel.From {
		if err := add(f); err != nil {
			return "", nil, 0, err
		}
		if f.Left != nil {
			tables++
		}
		tables++
	}
	if sel.Where != nil {
		conditions = append(conditions, sel.Where.Conjuncts()...)
	}
	return strings.Join(parts, ", "), conditions, tables, nil
}

// condition keeps one without the key, and reads one with it as an equation.
func (q *Query) condition(s *statement, c *sqlast.Expr) error {
	if !s.keyed(c.Span) {
		text := s.spell(c.Span)
		if (c.Op == sqlast.OpOr || c.Op == sqlast.OpXor || c.Op == sqlast.OpOpaque) && len(c.Args) > 0 && c.Args[0].Start == c.Start {
			text = "(" + text + ")"
		}
		q.where = append(q.where, text)
		return nil
	}
	if c.Op != sqlast.OpCompare || c.Name != "=" {
		return fmt.Errorf("%s is no equation", visible(s.spell(c.Span)))
	}
	left, right := c.Args[0], c.Args[1]
	if s.keyed(left.Span) {
		left, right = right, left
	}
	if s.keyed(left.Span) || left.Op == sqlast.OpRow || left.MayAggregate() {
		return fmt.Errorf("%s has the key on both sides", visible(s.spell(c.Span)))
	}
	e := equation{column: q.column(s.spell(left.Span))}
	parts, err := q.template(s, right)
	e.template = joinAddress(parts)
	q.equations = append(q.equations, e)
	return err
}

func (q *Query) column(text string) int {
	n := slices.Index(q.columns, text)
	if n < 0 {
		n = len(q.columns)
		q.columns = append(q.columns, text)
	}
	return n
}

// template reads a string, CONCAT(…), a || b or LOWER(…) of these.
func (q *Query) template(s *statement, e *sqlast.Expr) (all []part, err error) {
	switch {
	case e.Op == sqlast.OpString:
		return stringParts(e.Text)
	case !s.keyed(e.Span):
		return []part{{column: q.column(s.spell(e.Span))}}, nil
	case e.Op == sqlast.OpCall && e.Name == "lower" && len(e.Args) == 1: // keys are lower case already
		return q.template(s, e.Args[0])
	case e.Op == sqlast.OpConcat || e.Op == sqlast.OpCall && e.Name == "concat" && !e.Odd:
		for _, a := range e.Args {
			ps, err := q.template(s, a)
			if err != nil {
				return nil, err
			}
			all = append(all, ps...)
		}
		return all, nil
	}
	return nil, fmt.Errorf("the key inside of %s", visible(s.spell(e.Span)))
}

func stringParts(text string) (all []part, err error) {
	for _, t := range pieces(text) {
		if t.hole >= '1' && t.hole <= '9' {
			return nil, fmt.Errorf("placeholder %%%c", t.hole)
		}
		if t.hole != 0 || t.text != "" {
			all = append(all, part{text: t.text, hole: t.hole})
		}
	}
	return all, nil
}

// visible writes placeholders as in the .cf file.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if h := sqlast.HoleOf(r); h != 0 {
			return rune(h)
		}
		return r
	}, s)
}

func (q *Query) spell(where []string) string {
	if len(where) == 0 {
		return q.head + q.order
	}
	return q.head + " WHERE " + strings.Join(where, " AND ") + q.order
}

// reachable is the query without the rows that no key finds: keys have no
// capitals, and only the database knows whether a column that has some equals
// one without (collations, citext). key folds what it leaves.
func (q *Query) reachable(typ string) string {
	where := slices.Clone(q.where)
	for _, e := range q.equations {
		if !e.plain() {
			continue
		}
		c := q.columns[e.column]
		if q.octets != nil && q.octets[e.column] { // LOWER leaves them as they are
			where = append(where, c+" = LOWER(CONVERT("+c+" USING utf8mb4))")
			continue
		}
		if typ == "pgsql" { // lower(citext) is text, which minds the case
			c = "CAST(" + c + " AS text)"
			where = append(where, "("+c+" = LOWER("+c+") OR CAST(pg_typeof("+q.columns[e.column]+") AS text) LIKE '%citext')")
		} else {
			where = append(where, c+" = LOWER("+c+")")
		}
	}
	return q.spell(where)
}

// plain says that the column equals nothing but the key and small letters.
func (e equation) plain() bool {
	return !slices.ContainsFunc(e.template, func(p part) bool {
		return p.hole == 0 && (p.text == "" || p.text != strings.ToLower(p.text))
	})
}

// joinAddress reads %u@%d as an address: 'a', since unlike %s it has both parts.
func joinAddress(ps []part) []part {
	var all []part
	for _, p := range ps {
		if n := len(all); n > 0 && p.text != "" && all[n-1].text != "" {
			all[n-1].text += p.text
			continue
		}
		all = append(all, p)
		if n := len(all); n >= 3 && all[n-3].hole == 'u' && all[n-2].text == "@" && p.hole == 'd' {
			all = append(all[:n-3], part{hole: 'a'})
		}
	}
	return all
}

// variables refuses queries whose answers don't tell the key.
func (q *Query) variables(domains []string) error {
	have := map[byte]bool{}
	for _, e := range q.equations {
		n := 0
		for _, p := range e.template {
			if p.hole != 0 {
				have[p.hole] = true
				n++
			}
		}
		if n != 1 {
			return errors.New("two unknowns in one equation")
		}
	}
	switch {
	case have['s'] || have['a'] || have['u'] && have['d']:
	case have['u'] && len(domains) > 0:
		q.domains = domains
	case have['d']:
		q.domainWide = true
	default:
		return errors.New("only the local-part is asked for")
	}
	return nil
}

// key solves the equations for a row; the row answers to the keys that come
// back. fold says that the database ignores case in equations that reachable
// hasn't seen to.
func (q *Query) key(columns []string, fold bool) []string {
	cols := columns[len(columns)-q.keyColumns:]
	same := func(a, b string) bool { return a == b }
	if fold {
		same = strings.EqualFold
	}
	got := map[byte]string{}
	for _, e := range q.equations {
		norm := func(s string) string { return s }
		if fold || e.plain() {
			norm = strings.ToLower
		}
		v := norm(cols[e.column])
		n := slices.IndexFunc(e.template, func(p part) bool { return p.hole != 0 })
		text := func(ps []part) (s string) {
			for _, p := range ps {
				if p.text != "" {
					s += p.text
				} else {
					s += cols[p.column]
				}
			}
			return norm(s)
		}
		pre, post := text(e.template[:n]), text(e.template[n+1:])
		if len(v) <= len(pre)+len(post) || !strings.HasPrefix(v, pre) || !strings.HasSuffix(v, post) {
			return nil
		}
		v = v[len(pre) : len(v)-len(post)]
		h := e.template[n].hole
		if old, dup := got[h]; dup && !same(old, v) {
			return nil
		}
		got[h] = v
	}
	return q.combine(got)
}

func (q *Query) combine(got map[byte]string) []string {
	s, full := got['s']
	if a, ok := got['a']; ok {
		if full && s != a {
			return nil
		}
		s, full = a, true
	}
	u, d := got['u'], got['d']
	switch local, domain := splitAddress(s); {
	case full && (u != "" && u != local || d != "" && d != domain):
		return nil
	case full && got['a'] != "" && (local == "" || domain == ""):
		return nil
	case full:
	case u != "" && d != "":
		s = u + "@" + d
	case d != "":
		s = "@" + d
	default:
		var keys []string
		for _, d := range q.domains {
			keys = append(keys, u+"@"+d)
		}
		return keys
	}
	if s != strings.ToLower(s) {
		return nil // what Postfix looks up has no capitals
	}
	return []string{s}
}

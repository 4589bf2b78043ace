package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
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

// rewrite turns a table's query into queries that list all its answers:
// equations between a column and the key in WHERE leave it, and the column
// joins what is selected. Where that isn't exact it returns an error.
func rewrite(query, typ string, domains []string) ([]Query, error) {
	tokens, err := scanSQL(query, typ)
	if err != nil {
		return nil, err
	}
	if typ == "mysql" && slices.ContainsFunc(tokens, func(t token) bool { return t.kind == punct && strings.Contains("||&", t.text) }) {
		return nil, errors.New("|| or && (write CONCAT, OR, AND)")
	}
	var queries []Query
	arms := splitTokens(tokens, "union")
	for _, arm := range arms {
		if len(arm) > 0 && arm[0].is("all") {
			arm = arm[1:]
		}
		q, err := rewriteArm(arm)
		if err != nil {
			return nil, err
		}
		if len(arms) > 1 && q.limit > 0 {
			return nil, errors.New("LIMIT over a UNION")
		}
		if err := q.variables(domains); err != nil {
			return nil, err
		}
		queries = append(queries, *q)
	}
	return queries, nil
}

var clauses = []string{"select", "from", "where", "group", "having", "order", "limit", "offset", "for", "window", "intersect", "except"}

// rewriteArm rewrites one SELECT.
func rewriteArm(tokens []token) (*Query, error) {
	parts := map[string][]token{}
	last := ""
	depth := 0
	for _, t := range tokens {
		depth += t.depth()
		if depth == 0 && t.kind == word && slices.Contains(clauses, strings.ToLower(t.text)) {
			last = strings.ToLower(t.text)
			if _, twice := parts[last]; twice {
				return nil, fmt.Errorf("two clauses %s", last)
			}
			parts[last] = []token{}
			continue
		}
		parts[last] = append(parts[last], t)
	}
	for c, ts := range parts {
		switch {
		case c == "" || !slices.Contains([]string{"select", "from", "where", "order", "limit"}, c):
			return nil, fmt.Errorf("%s can't be rewritten", cmp.Or(c, "text before SELECT"))
		case c != "where" && slices.ContainsFunc(ts, token.holes):
			return nil, fmt.Errorf("the key in %s", c)
		case c == "select" && slices.ContainsFunc(ts, token.aggregates):
			return nil, errors.New("aggregates over many rows")
		}
	}
	if len(parts["select"]) == 0 || len(parts["from"]) == 0 || len(parts["where"]) == 0 {
		return nil, errors.New("want SELECT … FROM … WHERE …")
	}
	q := &Query{}
	kept, columns, err := q.conditions(parts["where"])
	if err != nil {
		return nil, err
	}
	if ts := parts["limit"]; len(ts) > 0 {
		if q.limit, err = strconv.Atoi(ts[0].text); err != nil || q.limit < 1 || len(ts) > 1 {
			return nil, errors.New("LIMIT with an offset")
		}
	}
	q.keyColumns, q.columns, q.where = len(columns), columns, kept
	q.head = "SELECT " + spell(parts["select"]) + ", " + strings.Join(columns, ", ") + " FROM " + spell(parts["from"])
	if len(parts["order"]) > 0 {
		q.order = " ORDER " + spell(parts["order"])
	}
	q.SQL = q.spell(kept)
	return q, nil
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

// conditions sorts the conjuncts of WHERE into those that stay and equations.
func (q *Query) conditions(where []token) (kept, columns []string, err error) {
	column := func(ts []token) int {
		text := spell(ts)
		if n := slices.Index(columns, text); n >= 0 {
			return n
		}
		columns = append(columns, text)
		return len(columns) - 1
	}
	for _, c := range conjuncts(where) {
		switch {
		case len(splitTokens(c, "or")) > 1 && slices.ContainsFunc(c, token.holes):
			return nil, nil, errors.New("the key beside OR")
		case slices.ContainsFunc(c, func(t token) bool { return t.is("between") }):
			return nil, nil, errors.New("BETWEEN")
		case !slices.ContainsFunc(c, token.holes):
			if len(splitTokens(c, "or")) > 1 {
				c = slices.Concat([]token{{punct, "(", true}}, c, []token{{punct, ")", false}})
			}
			kept = append(kept, spell(c))
			continue
		}
		e, err := newEquation(c, column)
		if err != nil {
			return nil, nil, err
		}
		q.equations = append(q.equations, e)
	}
	if len(q.equations) == 0 {
		return nil, nil, errors.New("the key isn't in WHERE")
	}
	return kept, columns, nil
}

// conjuncts takes a condition apart, parentheses too.
func conjuncts(where []token) [][]token {
	var all [][]token
	for _, c := range splitTokens(where, "and") {
		if len(c) > 2 && c[0].text == "(" && closes(c) == len(c)-1 {
			if inner := conjuncts(c[1 : len(c)-1]); len(inner) > 1 || slices.ContainsFunc(c, token.holes) {
				all = append(all, inner...)
				continue
			}
		}
		all = append(all, c)
	}
	return all
}

// newEquation reads "expression = template" or the reverse.
func newEquation(c []token, column func([]token) int) (e equation, err error) {
	sides := splitTokens(c, "=")
	if len(sides) != 2 || slices.ContainsFunc(c, token.compares) {
		return e, fmt.Errorf("%s is no equation", spell(c))
	}
	left, right := sides[0], sides[1]
	if slices.ContainsFunc(left, token.holes) {
		left, right = right, left
	}
	if slices.ContainsFunc(left, token.holes) || len(left) == 0 {
		return e, fmt.Errorf("the key on both sides of %s", spell(c))
	}
	e.column = column(left)
	e.template, err = template(right, column)
	return e, err
}

// template reads a string, CONCAT(…), a || b or LOWER(…) of these.
func template(ts []token, column func([]token) int) ([]part, error) {
	if n := len(ts); n > 3 && ts[1].text == "(" && closes(ts[1:]) == n-2 {
		switch {
		case ts[0].is("lower"): // keys are lower case already
			return template(ts[2:n-1], column)
		case ts[0].is("concat"):
			return pieces(splitTokens(ts[2:n-1], ","), column)
		}
	}
	return pieces(splitTokens(ts, "||"), column)
}

func pieces(args [][]token, column func([]token) int) ([]part, error) {
	var all []part
	for _, a := range args {
		switch {
		case len(a) == 1 && a[0].kind == text:
			ps, err := holes(a[0].value())
			if err != nil {
				return nil, err
			}
			all = append(all, ps...)
		case len(a) == 0 || slices.ContainsFunc(a, token.holes):
			return nil, fmt.Errorf("the key inside of %s", spell(a))
		default:
			all = append(all, part{column: column(a)})
		}
	}
	return joinAddress(all), nil
}

// holes cuts a string at its placeholders.
func holes(s string) ([]part, error) {
	var all []part
	lit := func(t string) {
		if n := len(all); n > 0 && all[n-1].text != "" {
			all[n-1].text += t
		} else {
			all = append(all, part{text: t})
		}
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			lit(s[i : i+1])
			continue
		}
		i++
		switch c := s[i] | 0x20; {
		case s[i] == '%':
			lit("%")
		case c == 's' || c == 'u' || c == 'd':
			all = append(all, part{hole: c})
		default:
			return nil, fmt.Errorf("placeholder %%%c", s[i])
		}
	}
	return all, nil
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

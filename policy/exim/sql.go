package exim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// An Exim asks a database about one key at a time, in any SELECT. What lists its answers
// to all keys has the columns that the key is compared with beside what is selected, and
// not the comparisons.
//
//	SELECT smtp, uid FROM users WHERE localpart = '${quote_mysql:$local_part}' AND enabled = '1'
//	SELECT localpart, smtp, uid FROM users WHERE enabled = '1'

// sqlQuery is a query with its expressions taken out.
type sqlQuery struct {
	text    string   // with a hole for each expression
	exprs   []string // these
	plain   bool     // some aren't quoted
	dialect sqlast.Dialect
}

var dialects = map[string]sqlast.Dialect{"mysql": sqlast.MySQL, "pgsql": sqlast.PostgreSQL, "sqlite": sqlast.SQLite}

// harmless are expressions that need no quoting: domains have the form of such.
var harmless = []string{"$domain", "$domain_data", "$sender_address_domain", "$sender_host_address", "$interface_address"}

// newSQLQuery takes a query's expressions out.
func newSQLQuery(typ string, p *expansion.String) (*sqlQuery, error) {
	q := &sqlQuery{dialect: dialects[typ]}
	var b strings.Builder
	for _, part := range p.Parts() {
		if part.Expr == nil {
			if sqlast.Holes(part.Text) {
				return nil, errors.New("it has characters of private use")
			}
			b.WriteString(part.Text)
			continue
		}
		source := part.Expr.Source()
		if part.Quoted != typ {
			q.plain = q.plain || !slices.Contains(harmless, source)
		}
		n := slices.Index(q.exprs, source)
		if n < 0 {
			n = len(q.exprs)
			q.exprs = append(q.exprs, source)
		}
		if n > 8 {
			return nil, errors.New("it asks for more than nine things")
		}
		b.WriteRune(sqlast.Hole('1' + byte(n)))
	}
	q.text = b.String()
	return q, nil
}

// sqlArm lists a part of a query's answers: one for each side of an OR or a UNION.
type sqlArm struct {
	sql   string
	keys  []string // strings, for Exim to expand, that columns are compared with
	names []string // of what is selected, where that are several columns
	limit int      // rows a key, 0 for all
	count bool     // it counts rows: a key without any has the answer 0
	nulls bool     // beside each column is whether it is NULL
}

// writes are statements that change a database.
var writes = []string{"insert", "update", "delete", "replace", "call", "with"}

// arms takes a query apart. union: rows that two of the arms have count once.
func (q *sqlQuery) arms() (all []sqlArm, union bool, err error) {
	word, _, _ := strings.Cut(strings.TrimLeft(q.text, " \t\n("), " ")
	if slices.Contains(writes, strings.ToLower(word)) {
		return nil, false, scanner{"a query that changes the database counts what comes to the primary"}
	}
	parsed, err := sqlast.Parse(q.text, q.dialect)
	if err != nil {
		return nil, false, fmt.Errorf("it isn't understood: %w", err)
	}
	for len(parsed.Terms) == 1 && parsed.Terms[0].Query != nil && parsed.Limit == nil && len(parsed.Order) == 0 {
		parsed = parsed.Terms[0].Query
	}
	if len(parsed.With) > 0 || parsed.Skips || q.keyed(parsed.Tail) {
		return nil, false, errors.New("it has WITH, OFFSET, or ORDER BY with a key")
	}
	for n, op := range parsed.Ops {
		if union = op == "union"; op != "union all" && !union || n > 0 && parsed.Ops[n-1] != op {
			return nil, false, errors.New("it joins SELECTs otherwise than by one UNION")
		}
	}
	limit := 0
	if parsed.Limit != nil {
		if limit, err = strconv.Atoi(q.spell(parsed.Limit.Span)); err != nil || limit < 1 {
			return nil, false, errors.New("its LIMIT isn't a number")
		}
	}
	order := ""
	if len(parsed.Order) > 0 {
		order = " " + q.spell(parsed.Tail)
	}
	for _, t := range parsed.Terms {
		if t.Select == nil {
			return nil, false, errors.New("it has a query in brackets")
		}
		some, err := q.selects(t.Select, order)
		if err != nil {
			return nil, false, err
		}
		all = append(all, some...)
	}
	if len(all) > 1 && (limit > 0 || order != "" || all[0].count) {
		return nil, false, errors.New("it has ORDER BY, LIMIT or count() over an OR or a UNION")
	}
	for n := range all {
		all[n].limit = limit
	}
	return all, union, nil
}

func (q *sqlQuery) spell(at sqlast.Span) string { return q.text[at.Start:at.End] }

func (q *sqlQuery) keyed(at sqlast.Span) bool { return sqlast.Holes(q.spell(at)) }

// selects takes one SELECT apart, into an arm for each side of its ORs.
func (q *sqlQuery) selects(s *sqlast.Select, order string) (all []sqlArm, err error) {
	if q.keyed(s.FromSpan) || s.Having != nil || s.Window || len(s.Group) > 0 && slices.ContainsFunc(s.Group, func(e *sqlast.Expr) bool { return q.keyed(e.Span) }) {
		return nil, errors.New("it has a key in FROM, or HAVING, or a window")
	}
	ways := []sqlWay{{}}
	if s.Where != nil {
		if ways, err = q.ways(s.Where); err != nil {
			return nil, err
		}
	}
	items, arm, err := q.items(s)
	if err != nil {
		return nil, err
	}
	for _, w := range ways {
		a := arm
		a.keys = w.keys
		a.sql = "SELECT "
		if s.Distinct {
			a.sql += "DISTINCT "
		}
		a.sql += strings.Join(append(slices.Clone(w.columns), items...), ", ")
		if len(s.From) > 0 {
			a.sql += " FROM " + q.spell(s.FromSpan)
		}
		if len(w.where) > 0 {
			a.sql += " WHERE " + strings.Join(w.where, " AND ")
		}
		if a.count || len(s.Group) > 0 {
			group := slices.Clone(w.columns)
			for _, g := range s.Group {
				group = append(group, q.spell(g.Span))
			}
			if len(group) > 0 {
				a.sql += " GROUP BY " + strings.Join(group, ", ")
			}
		}
		a.sql += order
		all = append(all, a)
	}
	return all, nil
}

// items spells what is selected.
func (q *sqlQuery) items(s *sqlast.Select) (items []string, arm sqlArm, err error) {
	for _, i := range s.Items {
		if i.Expr == nil {
			return nil, arm, errors.New("it selects every column")
		}
		if i.Expr.MayAggregate() {
			if e := i.Expr; len(s.Items) > 1 || len(s.Group) > 0 || e.Op != sqlast.OpCall || e.Name != "count" || e.Window || q.keyed(e.Span) {
				return nil, arm, errors.New("it selects what looks at several rows, or a function that isn't known")
			}
			arm.count = true
		}
		if q.keyed(i.Expr.Span) && !q.verbatim(i.Expr) {
			return nil, arm, errors.New("what it selects calculates with a key")
		}
		text := q.marked(q.spell(i.Expr.Span))
		items = append(items, text)
		if !arm.count {
			items = append(items, "CASE WHEN ("+text+") IS NULL THEN 1 ELSE 0 END")
			arm.nulls = true
		}
		name := i.Alias
		if name == "" && i.Expr.Op == sqlast.OpColumn {
			name = q.spell(i.Expr.Span)
			name = name[strings.LastIndexByte(name, '.')+1:]
		}
		if name = strings.Trim(name, "`\"[]"); name == "" && len(s.Items) > 1 {
			return nil, arm, errors.New("it selects several columns, and one of them has no name")
		}
		arm.names = append(arm.names, name)
	}
	return items, arm, nil
}

// verbatim says that an expression has the key in its value as it is.
func (q *sqlQuery) verbatim(e *sqlast.Expr) bool {
	if !q.keyed(e.Span) || e.Op == sqlast.OpString {
		return true
	}
	return (e.Op == sqlast.OpConcat || e.Op == sqlast.OpCall && e.Name == "concat" && !e.Odd) &&
		!slices.ContainsFunc(e.Args, func(a *sqlast.Expr) bool { return !q.verbatim(a) })
}

// marked has a mark in place of each hole, which the secondary fills.
func (q *sqlQuery) marked(s string) string {
	var b strings.Builder
	for _, r := range s {
		if h := sqlast.HoleOf(r); h != 0 {
			b.WriteString(policy.FillMark(int(h - '1')))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// sqlWay is one of the ways for a condition to hold.
type sqlWay struct {
	columns, keys []string // that must be equal
	where         []string // without a key
}

func (w sqlWay) and(v sqlWay) sqlWay {
	return sqlWay{append(slices.Clone(w.columns), v.columns...), append(slices.Clone(w.keys), v.keys...), append(slices.Clone(w.where), v.where...)}
}

// maxWays bounds the arms of a query.
const maxWays = 8

// ways takes a condition apart.
func (q *sqlQuery) ways(e *sqlast.Expr) ([]sqlWay, error) {
	if !q.keyed(e.Span) {
		return []sqlWay{{where: []string{"(" + q.spell(e.Span) + ")"}}}, nil
	}
	switch {
	case e.Op == sqlast.OpAnd:
		all := []sqlWay{{}}
		for _, a := range e.Args {
			some, err := q.ways(a)
			if err != nil || len(all)*len(some) > maxWays {
				return nil, cmp.Or(err, errors.New("its OR has too many sides"))
			}
			var next []sqlWay
			for _, w := range all {
				for _, v := range some {
					next = append(next, w.and(v))
				}
			}
			all = next
		}
		return all, nil
	case e.Op == sqlast.OpOr:
		var all []sqlWay
		for _, a := range e.Args {
			some, err := q.ways(a)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	case e.Op == sqlast.OpCompare && e.Name == "=":
		w, err := q.equation(e.Args[0], e.Args[1])
		return []sqlWay{w}, err
	case e.Op == sqlast.OpIn && !e.Negated && e.Sub == nil:
		var all []sqlWay
		for _, a := range e.Args[1:] {
			w, err := q.equation(e.Args[0], a)
			if err != nil {
				return nil, err
			}
			all = append(all, w)
		}
		return all, nil
	}
	return nil, fmt.Errorf("%q doesn't compare a column with a key", q.visible(e.Span))
}

// equation reads "column = key", either way round. Without a key it is a condition.
func (q *sqlQuery) equation(left, right *sqlast.Expr) (w sqlWay, err error) {
	if q.keyed(left.Span) {
		left, right = right, left
	}
	switch {
	case !q.keyed(right.Span):
		return sqlWay{where: []string{"(" + q.spell(left.Span) + " = " + q.spell(right.Span) + ")"}}, nil
	case q.keyed(left.Span) || left.Op == sqlast.OpRow || left.Op == sqlast.OpQuery || left.MayAggregate():
		return w, fmt.Errorf("%q doesn't compare a column with a key", q.visible(sqlast.Span{Start: min(left.Start, right.Start), End: max(left.End, right.End)}))
	}
	key, err := q.key(right)
	return sqlWay{columns: []string{q.spell(left.Span)}, keys: []string{key}}, err
}

// key spells what a column is compared with as a string that Exim expands.
func (q *sqlQuery) key(e *sqlast.Expr) (string, error) {
	switch {
	case e.Op == sqlast.OpString:
		var b strings.Builder
		for _, r := range e.Text {
			if h := sqlast.HoleOf(r); h != 0 {
				b.WriteString(q.exprs[h-'1'])
			} else {
				b.WriteString(expansion.Quote(string(r)))
			}
		}
		return b.String(), nil
	case e.Op == sqlast.OpCall && (e.Name == "lower" || e.Name == "lcase") && len(e.Args) == 1:
		k, err := q.key(e.Args[0])
		return "${lc:" + k + "}", err
	case e.Op == sqlast.OpConcat || e.Op == sqlast.OpCall && e.Name == "concat" && !e.Odd:
		text := ""
		for _, a := range e.Args {
			k, err := q.key(a)
			if err != nil {
				return "", err
			}
			text += k
		}
		return text, nil
	}
	return "", fmt.Errorf("%q calculates with a key", q.visible(e.Span))
}

// visible spells a piece as it was written, for a report.
func (q *sqlQuery) visible(at sqlast.Span) string {
	var b strings.Builder
	for _, r := range q.spell(at) {
		if h := sqlast.HoleOf(r); h != 0 {
			b.WriteString(q.exprs[h-'1'])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// row is what Exim makes of a row's columns: NULLs differ by the database.
func (a *sqlArm) row(typ string, columns []string) (value string, null bool) {
	step := 1
	if a.nulls {
		step = 2
	}
	for n := 0; n < len(columns); n += step {
		v, none := columns[n], a.nulls && columns[n+1] == "1"
		if none && typ == "sqlite" {
			v = "<NULL>"
		}
		if len(a.names) == 1 {
			return v, none && typ == "mysql"
		}
		value += a.names[n/step] + "=" + quotedField(v) + " "
	}
	return value, false
}

// quotedField spells a value among several.
func quotedField(v string) string {
	if v != "" && !strings.ContainsAny(v, " \t\r\n") && v[0] != '"' {
		return v
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
}

package postfix

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// among reads "x IN (SELECT …)" with the key inside as a join with a derived
// table of what the subquery yields and for which key. MySQL would run the
// subquery anew for each x, of which Froxlor has every mailbox. A join finds a
// row once for each equal value of the other side, so that only DISTINCT may
// stand before it.
func (q *Query) among(s *statement, c *sqlast.Expr) (derived string, err error) {
	x := c.Args[0]
	if c.Sub == nil || c.Negated || s.keyed(x.Span) || x.Op == sqlast.OpRow || x.MayAggregate() {
		return "", fmt.Errorf("%s is no equation", visible(s.spell(c.Span)))
	}
	sub := c.Sub
	for len(sub.Terms) == 1 && sub.Terms[0].Query != nil && sub.Limit == nil {
		sub = sub.Terms[0].Query
	}
	if len(sub.With) > 0 || sub.Limit != nil || sub.Skips || slices.ContainsFunc(sub.Ops, func(op string) bool { return !strings.HasPrefix(op, "union") }) {
		return "", errors.New("IN (…) with WITH, LIMIT, or a set operation that takes away")
	}
	var arms []string
	var key *sqlast.Expr
	for _, t := range sub.Terms {
		if t.Select == nil {
			return "", errors.New("IN (…) with parentheses in its UNION")
		}
		text, k, err := s.keyedRows(t.Select)
		if err != nil {
			return "", err
		}
		if key != nil && s.spell(key.Span) != s.spell(k.Span) {
			return "", errors.New("IN (…) with keys of several forms")
		}
		arms, key = append(arms, text), k
	}
	name := fmt.Sprintf("among_%d", len(q.equations))
	q.where = append(q.where, s.spell(x.Span)+" = "+name+".found")
	e := equation{column: q.column(name + ".asked")}
	parts, err := q.template(s, key)
	e.template = joinAddress(parts)
	q.equations = append(q.equations, e)
	return "(" + strings.Join(arms, " UNION ") + ") AS " + name, err
}

// keyedRows rewrites a SELECT of one column so that it yields what its WHERE
// equates with the key, too.
func (s *statement) keyedRows(sel *sqlast.Select) (text string, key *sqlast.Expr, err error) {
	if len(sel.Group) > 0 || sel.Having != nil || len(sel.Items) != 1 || sel.Items[0].Expr == nil || s.keyed(sel.ItemSpan) || sel.Items[0].Expr.MayAggregate() || sel.Where == nil || len(sel.From) == 0 {
		return "", nil, errors.New("IN (…) whose rows aren't those of one table")
	}
	own := &ownColumns{}
	for _, f := range sel.From {
		own.add(s, f)
	}
	(&sqlast.Query{Terms: []*sqlast.Term{{Select: sel}}}).Walk(own.check)
	if own.foreign {
		return "", nil, errors.New("IN (…) that may speak of the rows around it")
	}
	var where []string
	var column *sqlast.Expr
	for _, c := range sel.Where.Conjuncts() {
		if !s.keyed(c.Span) {
			where = append(where, "("+s.spell(c.Span)+")")
			continue
		}
		if c.Op != sqlast.OpCompare || c.Name != "=" || column != nil {
			return "", nil, errors.New("IN (…) with more than one equation of the key")
		}
		if column, key = c.Args[0], c.Args[1]; s.keyed(column.Span) {
			column, key = key, column
		}
		if column.Op != sqlast.OpColumn {
			return "", nil, errors.New("IN (…) that equates the key with no column")
		}
	}
	if column == nil {
		return "", nil, errors.New("IN (…) with a part that every key has")
	}
	var from []string
	for _, f := range sel.From {
		from = append(from, s.spell(f.Span))
	}
	text = "SELECT " + s.spell(sel.Items[0].Expr.Span) + " AS found, " + s.spell(column.Span) + " AS asked FROM " + strings.Join(from, ", ")
	if len(where) > 0 {
		text += " WHERE " + strings.Join(where, " AND ")
	}
	return text, key, nil
}

// ownColumns checks that a query names only columns of its own tables, by these.
type ownColumns struct {
	tables  []string
	foreign bool
}

func (o *ownColumns) add(s *statement, f *sqlast.From) {
	if f.Table == "" || s.keyed(f.Span) {
		o.foreign = true
		return
	}
	o.tables = append(o.tables, f.Alias)
}

func (o *ownColumns) check(e *sqlast.Expr) {
	table, _, qualified := strings.Cut(e.Name, ".")
	o.foreign = o.foreign || e.Sub != nil || e.Op == sqlast.OpColumn && !(qualified && slices.Contains(o.tables, table)) && len(o.tables) > 0
}

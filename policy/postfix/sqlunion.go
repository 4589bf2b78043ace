package postfix

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// split returns the arms of a UNION that yields what they do, one after the
// other, or the query as it is.
func (li *listing) split() []*sqlast.Query {
	st := li.db.statement
	q := st.query
	if len(q.Terms) < 2 || len(q.With) > 0 || len(q.Order) > 0 || q.Limit != nil || q.Skips || q.Locks || slices.Contains(q.Ops, "except") || slices.Contains(q.Ops, "intersect") {
		return []*sqlast.Query{q}
	}
	var arms []*sqlast.Query
	texts := true
	for _, t := range q.Terms {
		text := st.template(t.Span)
		probed, ok := li.template.expandKey(text, "u@probe.invalid.example", li.quote)
		columns, err := li.session.Columns(probed)
		texts = texts && ok && err == nil && t.Select != nil && !slices.ContainsFunc(columns, func(c Column) bool { return !c.Text })
		li.arms = append(li.arms, text)
		arms = append(arms, &sqlast.Query{Span: t.Span, Terms: []*sqlast.Term{t}})
	}
	if !texts { // UNION may spell numbers otherwise than an arm does
		li.arms = nil
	}
	return arms
}

// template writes a part of a query as it stands in the .cf file.
func (s *statement) template(at sqlast.Span) string {
	var b strings.Builder
	for _, r := range s.spell(at) {
		switch h := sqlast.HoleOf(r); {
		case h != 0:
			b.WriteString("%" + string(rune(h)))
		case r == '%':
			b.WriteString("%%")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// merge adds keys that an arm may answer to.
func (li *listing) merge(own *keySet, arm int) error {
	if li.arm == nil {
		li.arm = map[string]int{}
	}
	for k := range own.all {
		if err := li.ask.add(k); err != nil {
			return err
		}
		if len(li.arms) == 0 {
			continue
		}
		if old, dup := li.arm[k]; dup && old != arm || !ascii(k) {
			li.arm[k] = -1
		} else {
			li.arm[k] = arm
		}
	}
	return nil
}

// alone returns the arm of a UNION that alone can answer to a key.
func (li *listing) alone(key string) (text string, ok bool) {
	if n, known := li.arm[key]; known && n >= 0 && n < len(li.arms) {
		return li.arms[n], true
	}
	return "", false
}

package postfix

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// alternative is one of the texts that an expression can be, and when.
type alternative struct {
	terms []term
	when  ways
}

func (b *bounder) equals(left, right []alternative) ways {
	if left == nil || right == nil {
		return nil
	}
	all := ways{}
	for _, l := range left {
		for _, r := range right {
			e, ok := equate(l.terms, r.terms)
			switch both := l.when.and(r.when); {
			case ok:
				if b.dialect == sqlast.MySQL && e.template[len(e.template)-1].hole == 'u' { // see equation.pads
					b.spaces = true
				}
				all = all.or(ways{{e}}.and(both))
			default:
				all = all.or(both)
			}
		}
	}
	return all
}

// equate makes an equation of which one side is a column or a text and the
// other has one placeholder.
func equate(l, r []term) (equal, bool) {
	l, r = whole(l), whole(r)
	if holesOf(l) > 0 {
		l, r = r, l
	}
	if len(l) != 1 || holesOf(l) > 0 || holesOf(r) != 1 {
		return equal{}, false
	}
	for _, t := range r {
		if t.hole >= '1' && t.hole <= '9' {
			return equal{}, false
		}
	}
	return equal{left: l[0], template: r}, true
}

func holesOf(ts []term) (n int) {
	for _, t := range ts {
		if t.hole != 0 {
			n++
		}
	}
	return n
}

// whole joins texts, and reads %u@%d as an address.
func whole(ts []term) []term {
	var all []term
	for _, t := range ts {
		n := len(all)
		if t.hole == 0 && t.rows == nil && n > 0 && all[n-1].hole == 0 && all[n-1].rows == nil {
			all[n-1].text += t.text
			continue
		}
		all = append(all, t)
		if n >= 2 && all[n-2].hole == 'u' && all[n-1].text == "@" && all[n-1].rows == nil && t.hole == 'd' {
			all = append(all[:n-2], term{hole: 'a'})
		}
	}
	return all
}

// like reads LIKE whose pattern has the key, with no wildcard of its own or one
// that ends in "@" before the key.
func (b *bounder) like(l, r *sqlast.Expr, sc *scope) ways {
	left, right := b.alternatives(l, sc), b.alternatives(r, sc)
	if len(left) != 1 || len(right) != 1 || len(left[0].terms) != 1 || left[0].terms[0].rows == nil {
		return nil
	}
	ts := slices.Clone(whole(right[0].terms))
	suffix := len(ts) == 2 && ts[0].text == "%@" && ts[0].rows == nil
	if suffix {
		ts = ts[1:]
	}
	for _, t := range ts {
		if t.rows != nil || strings.ContainsAny(t.text, `%_\`) {
			return nil
		}
	}
	e, ok := equate(left[0].terms, ts)
	if !ok {
		return nil
	}
	b.wild = true
	e.suffix = suffix
	return ways{{e}}.and(right[0].when)
}

// alternatives are the texts that an expression can be, nil when that isn't
// understood.
func (b *bounder) alternatives(e *sqlast.Expr, sc *scope) []alternative {
	if !b.keyed(e.Span) && e.Op != sqlast.OpString {
		return b.plain(e, sc)
	}
	switch e.Op {
	case sqlast.OpString:
		return []alternative{{terms: pieces(e.Text)}}
	case sqlast.OpConcat:
		return b.concat(e.Args, sc)
	case sqlast.OpCollate:
		return b.alternatives(e.Args[0], sc)
	case sqlast.OpCast:
		if slices.Contains([]string{"text", "varchar", "character varying", "citext", "binary", "char", "bpchar"}, e.Name) && (e.Name != "char" || b.dialect == sqlast.MySQL) {
			return b.alternatives(e.Args[0], sc)
		}
	case sqlast.OpQuery:
		return b.queryAlternatives(e.Sub, sc)
	case sqlast.OpCase:
		if !e.Subject {
			return b.branches(e, sc)
		}
	case sqlast.OpCall:
		return b.callAlternatives(e, sc)
	}
	return nil
}

func (b *bounder) callAlternatives(e *sqlast.Expr, sc *scope) (all []alternative) {
	if e.Odd || len(e.Args) == 0 {
		return nil
	}
	switch e.Name {
	case "lower", "upper", "lcase", "ucase":
		return b.alternatives(e.Args[0], sc)
	case "trim", "ltrim", "rtrim":
		if len(e.Args) == 1 && isHole(e.Args[0]) {
			b.spaces = true
			return b.alternatives(e.Args[0], sc)
		}
		return nil
	case "concat":
		return b.concat(e.Args, sc)
	case "coalesce", "ifnull", "nvl":
		for _, a := range e.Args {
			alt := b.alternatives(a, sc)
			if alt == nil {
				return nil
			}
			all = append(all, alt...)
		}
	case "if", "iif":
		if len(e.Args) != 3 {
			return nil
		}
		return b.branches(&sqlast.Expr{Args: e.Args, Else: true}, sc)
	case "split_part":
		if ts := b.stripped(e.Args); ts != nil {
			return []alternative{{terms: ts}}
		}
	case "substring_index":
		if ts := b.stripped(e.Args); ts != nil {
			return []alternative{{terms: ts}}
		}
		// What follows the last "@" is the domain, or the key without one.
		if len(e.Args) == 3 && e.Args[0].Op == sqlast.OpString && e.Args[1].Text == "@" && b.spell(e.Args[2].Span) == "-1" {
			if ts := pieces(e.Args[0].Text); len(ts) == 1 && ts[0].hole == 's' {
				return []alternative{{terms: []term{{hole: 'd'}}}, {terms: ts}}
			}
		}
	}
	return all
}

// stripped reads the arguments of SUBSTRING_INDEX('%u', '+', 1) and its like.
// Where the character isn't in a local-part, that is what it was.
func (b *bounder) stripped(args []*sqlast.Expr) []term {
	if len(args) != 3 || !isHole(args[0]) || !isText(args[1]) || b.spell(args[2].Span) != "1" {
		return nil
	}
	ts := pieces(args[0].Text)
	chars, ok := apart(args[1].Text, "@")
	if !ok || len(chars) != 1 || ts[0].hole != 'u' {
		return nil
	}
	if !strings.Contains(b.strips, chars) {
		b.strips += chars
	}
	return ts
}

// branches are those of CASE or IF.
func (b *bounder) branches(e *sqlast.Expr, sc *scope) (all []alternative) {
	args := e.Args
	add := func(when ways, x *sqlast.Expr) bool {
		alt := b.alternatives(x, sc)
		for _, a := range alt {
			all = append(all, alternative{a.terms, a.when.and(when)})
		}
		return alt != nil
	}
	for ; len(args) >= 2; args = args[2:] {
		if !add(b.condition(args[0], sc), args[1]) {
			return nil
		}
	}
	if e.Else && !add(nil, args[0]) {
		return nil
	}
	return all
}

// plain is an expression without the key: a column of one source, or a text.
func (b *bounder) plain(e *sqlast.Expr, sc *scope) []alternative {
	if e.Op == sqlast.OpNull {
		return []alternative{}
	}
	r := sc.source(e)
	if r == nil {
		return nil
	}
	return []alternative{{terms: []term{{rows: r, col: r.column(b.spell(e.Span))}}}}
}

func (b *bounder) concat(args []*sqlast.Expr, sc *scope) []alternative {
	all := []alternative{{}}
	for _, a := range args {
		alt := b.alternatives(a, sc)
		if alt == nil || len(all)*len(alt) > maxWays {
			return nil
		}
		var next []alternative
		for _, x := range all {
			for _, y := range alt {
				next = append(next, alternative{slices.Concat(x.terms, y.terms), x.when.and(y.when)})
			}
		}
		all = next
	}
	return all
}

// queryAlternatives are what a query of one column yields.
func (b *bounder) queryAlternatives(q *sqlast.Query, outer *scope) (all []alternative) {
	if len(q.With) > 0 {
		return nil
	}
	for _, t := range q.Terms {
		var alt []alternative
		switch {
		case t.Query != nil:
			alt = b.queryAlternatives(t.Query, outer)
		case len(t.Select.Items) == 1 && t.Select.Items[0].Expr != nil && !b.aggregates(t.Select):
			sc := b.scope(t.Select, outer)
			when := sc.found
			for _, c := range sc.conditions {
				when = when.and(b.condition(c, sc))
			}
			for _, a := range b.alternatives(t.Select.Items[0].Expr, sc) {
				alt = append(alt, alternative{a.terms, a.when.and(when)})
			}
		}
		if alt == nil {
			return nil
		}
		all = append(all, alt...)
	}
	return all
}

// pieces cuts a string at its placeholders.
func pieces(s string) (ts []term) {
	text := ""
	flush := func() {
		if text != "" {
			ts = append(ts, term{text: text})
			text = ""
		}
	}
	for _, r := range s {
		if h := sqlast.HoleOf(r); h != 0 {
			flush()
			ts = append(ts, term{hole: h})
		} else {
			text += string(r)
		}
	}
	if flush(); ts == nil {
		ts = []term{{}}
	}
	return ts
}

package postfix

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// unit is a part of FROM whose rows exist whatever the others hold.
type unit struct {
	from     string
	tables   map[string][]string // columns by the table's alias
	nullable bool                // the other side of an outer join: its columns may all be NULL
	blind    bool                // its columns can't be listed
}

// scope is what the names in one SELECT mean.
type scope struct {
	b          *bounder
	outer      *scope
	units      []*unit
	conditions []*sqlast.Expr // with the key: of WHERE, and of inner joins
	filters    []filterOn     // without it
	found      ways           // what derived tables restrict
	group      []int          // of each unit: the first of those that filters tie it to
	sources    map[int]*rowSource

	aggregate bool // one row, whatever is found
	groups    ways // then: the ways to find something
}

// filterOn is a condition without the key and the units that it speaks of.
type filterOn struct {
	text  string
	units []int
}

func (b *bounder) scope(s *sqlast.Select, outer *scope) *scope {
	sc := &scope{b: b, outer: outer, sources: map[int]*rowSource{}}
	var all []*sqlast.Expr
	for _, f := range s.From {
		all = append(all, sc.add(f, false)...)
	}
	if s.Where != nil {
		all = append(all, s.Where.Conjuncts()...)
	}
	sc.group = make([]int, len(sc.units))
	for n := range sc.group {
		sc.group[n] = n
	}
	for _, c := range all {
		if b.keyed(c.Span) {
			sc.conditions = append(sc.conditions, c)
			continue
		}
		if units := sc.speaksOf(c); len(units) > 0 {
			sc.filters = append(sc.filters, filterOn{"(" + b.spell(c.Span) + ")", units})
			for _, u := range units[1:] {
				sc.tie(units[0], u)
			}
		}
	}
	return sc
}

func (sc *scope) tie(a, b int) {
	from, to := sc.group[b], sc.group[a]
	for n := range sc.group {
		if sc.group[n] == from {
			sc.group[n] = to
		}
	}
}

// add takes a part of FROM apart into units. It returns the conditions that
// every row meets.
func (sc *scope) add(f *sqlast.From, nullable bool) []*sqlast.Expr {
	b := sc.b
	keyed := b.keyed(f.Span)
	switch {
	case f.Left != nil && f.Join == "inner" && !f.Using:
		all := append(sc.add(f.Left, nullable), sc.add(f.Right, nullable)...)
		switch {
		case f.On != nil && nullable:
			b.lose(f.On.Span)
		case f.On != nil:
			all = append(all, f.On.Conjuncts()...)
		}
		return all
	case f.Left != nil && keyed && f.Join != "natural" && !f.Using:
		if f.On != nil { // it decides which rows are NULL
			b.lose(f.On.Span)
		}
		all := sc.add(f.Left, nullable || f.Join != "left")
		return append(all, sc.add(f.Right, nullable || f.Join != "right")...)
	case f.Sub != nil && keyed:
		if w := b.query(f.Sub, nil, someRow); !nullable {
			sc.found = sc.found.and(w)
		}
	}
	if keyed && (nullable || f.Sub == nil) {
		b.lose(f.Span)
	}
	u := &unit{from: b.spell(f.Span), tables: map[string][]string{}, nullable: nullable, blind: keyed}
	u.name(b, f)
	sc.units = append(sc.units, u)
	return nil
}

// name notes what columns a unit has.
func (u *unit) name(b *bounder, f *sqlast.From) {
	if f.Left != nil {
		u.name(b, f.Left)
		u.name(b, f.Right)
		return
	}
	if f.Call != nil || f.Lateral || b.keyed(f.Span) {
		u.blind = true
		return
	}
	columns, err := b.columns(b.spell(f.Span))
	if err != nil {
		b.err = err
		u.blind = true
	}
	for n := range columns {
		columns[n] = strings.ToLower(columns[n])
	}
	u.tables[f.Alias] = columns
}

// resolve finds the unit that a column is of: -1 for none, -2 when that isn't
// sure.
func (sc *scope) resolve(name string) int {
	found := -1
	qualifier, column := "", name
	if n := strings.LastIndexByte(name, '.'); n >= 0 {
		qualifier, column = name[:n], name[n+1:]
		qualifier = qualifier[strings.LastIndexByte(qualifier, '.')+1:]
	}
	for n, u := range sc.units {
		if qualifier == "" && u.blind {
			return -2
		}
		for alias, columns := range u.tables {
			if (qualifier == "" || qualifier == alias) && slices.Contains(columns, column) {
				if found >= 0 && found != n {
					return -2
				}
				found = n
			}
		}
	}
	return found
}

// speaksOf returns the units whose columns a condition may mean, none when the
// condition says something about other rows too or isn't safe to repeat.
func (sc *scope) speaksOf(e *sqlast.Expr) []int {
	var units []int
	ok, nested := true, false
	e.Walk(func(x *sqlast.Expr) {
		nested = nested || x.Sub != nil
		switch x.Op {
		case sqlast.OpCall:
			ok = ok && (sqlast.Scalar(x.Name) || x.Name == "max" || x.Name == "min" || x.Name == "count") && x.Name != "rand" && x.Name != "random" && x.Name != "uuid"
		case sqlast.OpColumn:
			n := sc.resolve(x.Name)
			if n >= 0 && !slices.Contains(units, n) {
				units = append(units, n)
			}
			if n == -2 || n == -1 && sc.outer.knows(x.Name) || n >= 0 && (sc.units[n].nullable || sc.units[n].blind) {
				ok = false
			}
			if n == -1 && !nested {
				ok = false
			}
		}
	})
	if !ok {
		return nil
	}
	return units
}

func (sc *scope) knows(name string) bool {
	return sc != nil && (sc.resolve(name) != -1 || sc.outer.knows(name))
}

// source is the rows that an expression is of, nil when there is no such.
func (sc *scope) source(e *sqlast.Expr) *rowSource {
	if sc == nil {
		return nil
	}
	group, ok, outside := -1, true, false
	e.Walk(func(x *sqlast.Expr) {
		ok = ok && x.Sub == nil && (x.Op != sqlast.OpCall || sqlast.Scalar(x.Name))
		if x.Op != sqlast.OpColumn {
			return
		}
		n := sc.resolve(x.Name)
		switch {
		case n == -1:
			outside = true
		case n < 0 || sc.units[n].blind || sc.units[n].nullable && e.Op != sqlast.OpColumn || group >= 0 && sc.group[n] != group:
			ok = false
		default:
			group = sc.group[n]
		}
	})
	switch {
	case ok && outside && group < 0:
		return sc.outer.source(e)
	case !ok || outside || group < 0:
		return nil
	}
	if r := sc.sources[group]; r != nil {
		return r
	}
	r := &rowSource{}
	for n, u := range sc.units {
		if sc.group[n] == group {
			r.from = append(r.from, u.from)
		}
	}
	for _, f := range sc.filters {
		if sc.group[f.units[0]] == group {
			r.where = append(r.where, f.text)
		}
	}
	sc.sources[group] = r
	return r
}

package postfix

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// except reads a condition on the key alone that holds unless the key has one
// of some characters: '%u' NOT LIKE '%+%', or of none: '%u' IS NOT NULL.
func (b *bounder) except(e *sqlast.Expr) (chars string, ok bool) {
	negated := e.Negated
	for e.Op == sqlast.OpNot {
		e = e.Args[0]
		negated = negated == e.Negated
	}
	switch e.Op {
	case sqlast.OpIsNull:
		// Postfix doesn't ask for keys without the part.
		return "", negated && isHole(e.Args[0])
	case sqlast.OpCompare:
		return b.compares(e, negated)
	case sqlast.OpLike:
		if len(e.Args) != 2 || !isHole(e.Args[0]) || !isText(e.Args[1]) {
			return "", false
		}
		pattern := e.Args[1].Text
		switch like := e.Name == "like" || e.Name == "ilike"; {
		case like && !negated:
			return "", pattern != "" && strings.Trim(pattern, "%") == ""
		case like && len(pattern) == 3 && pattern[0] == '%' && pattern[2] == '%':
			return apart(pattern[1:2], `%_\`)
		case negated && slices.Contains([]string{"regexp", "rlike", "~", "!~"}, e.Name) && len(pattern) > 2 && pattern[0] == '[' && pattern[len(pattern)-1] == ']':
			return apart(pattern[1:len(pattern)-1], `^-[]\:.=&|`)
		}
	}
	return "", false
}

// compares reads LOCATE('+', '%u') = 0, and inequations with an empty string.
func (b *bounder) compares(e *sqlast.Expr, negated bool) (chars string, ok bool) {
	l, r := e.Args[0], e.Args[1]
	if isHole(r) || r.Op == sqlast.OpCall {
		l, r = r, l
	}
	unequal := (e.Name == "<>" || e.Name == "!=") != negated
	switch {
	case e.Name != "=" && e.Name != "<>" && e.Name != "!=":
		return "", false
	case isHole(l):
		return "", unequal && isText(r) && r.Text == ""
	case unequal || l.Op != sqlast.OpCall || l.Odd || len(l.Args) != 2 || b.spell(r.Span) != "0":
		return "", false
	}
	in, what := l.Args[0], l.Args[1]
	switch l.Name {
	case "locate":
		in, what = what, in
	case "instr", "strpos":
	default:
		return "", false
	}
	if !isHole(in) || !isText(what) || len(what.Text) != 1 {
		return "", false
	}
	return apart(what.Text, "")
}

// apart are characters that a probe doesn't have, and that no database
// takes for others.
func apart(chars, but string) (string, bool) {
	ok := !strings.ContainsFunc(chars, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r >= '0' && r <= '9' || r|0x20 >= 'a' && r|0x20 <= 'z' || strings.ContainsRune(but, r)
	})
	return chars, ok
}

// isHole says that an expression is a placeholder.
func isHole(e *sqlast.Expr) bool {
	for e.Op == sqlast.OpCollate || e.Op == sqlast.OpCall && e.Name == "lower" && len(e.Args) == 1 {
		e = e.Args[0]
	}
	if e.Op != sqlast.OpString {
		return false
	}
	ts := pieces(e.Text)
	return len(ts) == 1 && strings.IndexByte("sud", ts[0].hole) >= 0
}

func isText(e *sqlast.Expr) bool { return e.Op == sqlast.OpString && !sqlast.Holes(e.Text) }

// lose notes that a condition on the key isn't understood. What a domain alone
// decides is asked of each.
func (b *bounder) lose(at sqlast.Span) {
	b.lossy = b.lossy || strings.ContainsFunc(b.spell(at), func(r rune) bool {
		h := sqlast.HoleOf(r)
		return h == 's' || h == 'u'
	})
}

// except are the characters of keys that a way doesn't find, in order.
func (s system) except() string {
	var chars []rune
	for _, e := range s {
		chars = append(chars, []rune(e.except)...)
	}
	slices.Sort(chars)
	return string(slices.Compact(chars))
}

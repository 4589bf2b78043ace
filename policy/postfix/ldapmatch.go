package postfix

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/lister"
)

// certainty is what can be said about an entry without asking the directory.
type certainty int

const (
	surelyNot certainty = iota
	maybe
	surely
)

// resolve looks the item's attribute up in the directory's schema. An
// attribute that has no rule is never equal to anything.
func (it *ldapItem) resolve(schema lister.Schema, activeDirectory bool) error {
	t := schema[it.attr]
	if t == nil {
		return nil
	}
	for _, b := range schema.Below(it.attr) {
		it.names = append(it.names, b.Names...)
	}
	slices.Sort(it.names)
	it.names = slices.Compact(it.names)
	name := t.Equality
	if len(it.pattern) > 1 {
		name = t.Substr
	}
	const directoryString, ia5String = "1.3.6.1.4.1.1466.115.121.1.15", "1.3.6.1.4.1.1466.115.121.1.26"
	switch name {
	case "caseignorematch", "caseignoreia5match", "caseignoresubstringsmatch", "caseignoreia5substringsmatch":
		it.rule = ruleIgnoreCase
	case "caseexactmatch", "caseexactia5match", "caseexactsubstringsmatch", "caseexactia5substringsmatch":
		it.rule = ruleExact
	case "":
		if activeDirectory && t.Syntax == directoryString {
			it.rule = ruleNoCase
		} else if activeDirectory {
			return errInexact(it.attr + " has a syntax that isn't followed here")
		}
	default:
		return errInexact("values of " + it.attr + " are compared by " + name)
	}
	if it.rule != ruleUndefined && t.Syntax != directoryString && t.Syntax != ia5String {
		return errInexact("not every address can be a value of " + it.attr)
	}
	return nil
}

// errInexact says why a table can't be listed exactly.
type errInexact string

func (e errInexact) Error() string { return string(e) }

// normal is a value as the rule sees it. simple says that this is certain.
func (r rule) normal(s string) (normal string, simple bool) {
	if r != ruleNoCase {
		s = squeeze(s)
	}
	if r != ruleExact {
		s = strings.ToLower(s)
	}
	return s, strings.IndexFunc(s, func(c rune) bool { return c >= 0x80 || c < ' ' }) < 0
}

// squeeze takes space off the ends and makes one of several.
func squeeze(s string) string {
	s = strings.Trim(s, " ")
	for strings.Contains(s, "  ") {
		s = strings.ReplaceAll(s, "  ", " ")
	}
	return s
}

// values are those of the item's attribute in an entry.
func (it *ldapItem) values(e lister.Entry) (all []string) {
	for _, a := range e.Attributes {
		if base, _, _ := strings.Cut(a.Name, ";"); slices.Contains(it.names, strings.ToLower(base)) {
			all = append(all, a.Values...)
		}
	}
	return all
}

// holds says whether any of the values is what the item wants for a key.
func (it *ldapItem) holds(l lookup, values []string) certainty {
	if it.rule == ruleUndefined {
		return surelyNot
	}
	plain := func(s string) string { return s }
	want := make([]string, len(it.pattern))
	for n, segment := range it.pattern {
		want[n] = l.fill(segment, plain)
	}
	best := surelyNot
	for _, v := range values {
		best = max(best, it.rule.match(v, want))
	}
	return best
}

// match compares a value with a pattern's segments.
func (r rule) match(value string, segments []string) certainty {
	v, simple := r.normal(value)
	if len(segments) == 1 {
		want, alsoSimple := r.normal(segments[0])
		switch {
		case v == want:
			return surely
		case !simple || !alsoSimple:
			return maybe
		}
		return surelyNot
	}
	result := surely
	for n, s := range segments {
		want, alsoSimple := r.normal(s)
		// How space counts at a part's ends differs among servers.
		if !alsoSimple || !simple || strings.Contains(s, " ") || strings.Contains(value, " ") {
			return maybe
		}
		last := n == len(segments)-1
		at := strings.Index(v, want)
		switch {
		case n == 0 && !strings.HasPrefix(v, want), last && !strings.HasSuffix(v, want), at < 0:
			result = surelyNot
		case last:
		case n == 0:
			v = v[len(want):]
		default:
			v = v[at+len(want):]
		}
	}
	return result
}

// hole is what the item tells of the key: 's' for all of it (also as %u@%d),
// 'u' or 'd' for a part, 0 when it doesn't by itself.
func (it *ldapItem) hole() (kind byte, segment int) {
	for n, ps := range it.pattern {
		for m, p := range ps {
			switch {
			case p.hole == 0:
				continue
			case p.hole == 'u' && m+2 < len(ps) && ps[m+1].text == "@" && ps[m+2].hole == 'd' && kind == 0:
				kind, segment = 's', n
			case p.hole == 'd' && m >= 2 && ps[m-1].text == "@" && ps[m-2].hole == 'u' && kind == 's' && segment == n:
			case kind != 0:
				return 0, 0
			default:
				kind, segment = p.hole, n
			}
		}
	}
	if kind == 0 || kind >= '1' && kind <= '9' {
		return 0, 0
	}
	// Beside an asterisk any part of a value is a key.
	ps := it.pattern[segment]
	if segment > 0 && ps[0].hole != 0 || segment < len(it.pattern)-1 && ps[len(ps)-1].hole != 0 {
		return 0, 0
	}
	return kind, segment
}

// solve are the parts of keys that one value may stand for: all of them, and
// some that holds refuses. Of the spellings that differ in space it names the
// value's own and the shortest.
func (it *ldapItem) solve(value string) (parts []string) {
	normal, _ := it.rule.normal(value)
	parts = it.solveSpelt(normal)
	if it.rule != ruleExact {
		value = strings.ToLower(value)
	}
	if value = strings.Trim(value, " "); value != normal {
		parts = append(parts, it.solveSpelt(value)...)
	}
	return parts
}

func (it *ldapItem) solveSpelt(v string) (parts []string) {
	kind, n := it.hole()
	if kind == 0 || it.rule == ruleUndefined {
		return nil
	}
	segment := it.pattern[n]
	first := slices.IndexFunc(segment, func(p piece) bool { return p.hole != 0 })
	last := len(segment) - 1
	for segment[last].hole == 0 {
		last--
	}
	text := func(ps []piece) (s string) {
		for _, p := range ps {
			s += p.text
		}
		if it.rule != ruleExact {
			s = strings.ToLower(s)
		}
		return s
	}
	pre, post := text(segment[:first]), text(segment[last+1:])
	for start := 0; start+len(pre) < len(v); start++ {
		if strings.HasPrefix(v[start:], pre) {
			for end := start + len(pre) + 1; end <= len(v); end++ {
				part := v[start+len(pre) : end]
				if strings.HasPrefix(v[end:], post) && (n < len(it.pattern)-1 || end+len(post) == len(v)) && part == strings.ToLower(part) {
					parts = append(parts, part) // what is looked up has no capitals
				}
			}
		}
		if n == 0 {
			break
		}
	}
	return parts
}

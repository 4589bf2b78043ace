package parity

import (
	"regexp/syntax"
	"strings"
)

// pattern adds strings that a regular expression matches, as far as it can be
// told: they are tried in every role.
func (m *Material) pattern(p string) {
	p = strings.TrimPrefix(strings.TrimPrefix(p, "if "), "!")
	if len(p) > 1 && strings.IndexByte("/!#%|", p[0]) >= 0 {
		if end := strings.LastIndexByte(p, p[0]); end > 0 {
			p = p[1:end]
		}
	}
	for _, s := range examples(p) {
		s = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' ' // no server of ours reads control characters
			}
			return r
		}, s)
		m.Strings = append(m.Strings, s)
		switch {
		case strings.Contains(s, "@"):
			m.address(s)
		case !strings.ContainsAny(s, " \t:") && s != "":
			m.name(s)
		}
	}
}

// examples returns strings that match a pattern. Of one that isn't Go's, it
// returns the plain text in it.
func examples(pattern string) []string {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		plain := strings.Map(func(r rune) rune {
			if strings.ContainsRune(`^$\()[]{}*+?|`, r) {
				return -1
			}
			return r
		}, pattern)
		return []string{plain}
	}
	seen := map[string]bool{}
	var list []string
	for n := range 4 {
		var b strings.Builder
		example(&b, re, n)
		s := b.String()
		if !seen[s] && len(s) < 200 {
			seen[s] = true
			list = append(list, s)
		}
	}
	return list
}

// example writes one string; n chooses among alternatives.
func example(b *strings.Builder, re *syntax.Regexp, n int) {
	repeat := func(times int) {
		for range times {
			example(b, re.Sub[0], n)
		}
	}
	switch re.Op {
	case syntax.OpLiteral:
		b.WriteString(string(re.Rune))
	case syntax.OpCharClass:
		if len(re.Rune) > 0 {
			i := n % (len(re.Rune) / 2)
			lo, hi := re.Rune[2*i], re.Rune[2*i+1]
			if lo < 'm' && hi >= 'm' {
				lo = 'm' // a letter rather than whatever comes first
			}
			b.WriteRune(lo)
		}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte("xy.0"[n%4])
	case syntax.OpStar:
		repeat(n % 3)
	case syntax.OpPlus:
		repeat(1 + n%2)
	case syntax.OpQuest:
		repeat(n % 2)
	case syntax.OpRepeat:
		repeat(max(re.Min, 0))
	case syntax.OpAlternate:
		example(b, re.Sub[n%len(re.Sub)], n)
	case syntax.OpConcat, syntax.OpCapture:
		for _, sub := range re.Sub {
			example(b, sub, n)
		}
	}
}

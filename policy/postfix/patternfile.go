package postfix

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Op is what a Rule does.
type Op string

const (
	Match Op = "match" // yields Value
	If    Op = "if"    // guards the rules up to its Endif
	Endif Op = "endif"
)

// Rule is a line of a cidr, regexp or pcre table.
type Rule struct {
	Op      Op
	Not     bool         // matches what Pattern doesn't
	Prefix  netip.Prefix // of a cidr table
	Pattern string       // of a regexp or pcre table, without its delimiters
	// Flags are Postfix's, after their defaults are applied. regexp: i (ignore
	// case), m (REG_NEWLINE), x (extended). pcre: i, m, s, x, A, E, U, X.
	Flags string
	// And is a second pattern, regexp's /pattern/!/pattern/.
	And   *Rule
	Value string // of Match; $1, ${1} and $(1) stand for what matched, $$ for $
	Line  int
}

// logicalLines cuts a Postfix file: a line that starts with white space goes
// on with the one before it, "#" starts a comment line.
func logicalLines(text string, f func(line int, s string)) {
	cur, first, n := "", 0, 0
	flush := func() {
		if cur != "" && !isSpace(cur[0]) {
			f(first, cur)
		}
		cur = ""
	}
	for l := range strings.Lines(text) {
		n++
		l = strings.TrimSuffix(l, "\n")
		if t := strings.TrimLeft(l, " \t\r\v\f"); t == "" || t[0] == '#' {
			continue
		}
		if !isSpace(l[0]) {
			flush()
		}
		if cur == "" {
			first = n
		}
		cur += l
	}
	flush()
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func isAlnum(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' }

const spaces = " \t\n\v\f\r"

// keyword takes IF or ENDIF from a line.
func keyword(line, word string) (rest string, ok bool) {
	if len(line) < len(word) || !strings.EqualFold(line[:len(word)], word) || len(line) > len(word) && isAlnum(line[len(word)]) {
		return "", false
	}
	return strings.TrimLeft(line[len(word):], spaces), true
}

// negation takes the "!" and the white space before a pattern.
func negation(s string) (rest string, not bool) {
	for s != "" && (s[0] == '!' || isSpace(s[0])) {
		not = not != (s[0] == '!')
		s = s[1:]
	}
	return s, not
}

// ruleTable reads a cidr, regexp or pcre table from its file, or from
// "{ { rule }, … }". As Postfix does, it skips rules that make no sense.
func (i *importer) ruleTable(typ, arg string) (*Table, error) {
	t := &Table{Type: typ, Kind: Patterns}
	if typ == "cidr" {
		t.Kind = Networks
	}
	text, file := "", arg
	if inside, inline := unbrace(arg); inline {
		file = specName(typ + ":" + arg)
		for _, w := range words(inside) {
			rule, _ := unbrace(w)
			text += rule + "\n"
		}
	} else {
		var err error
		if text, err = i.readFile(arg); err != nil {
			return nil, err
		}
	}
	t.parse(file, text, i.skippedLines(typ+":"+arg))
	return t, nil
}

var (
	warnedLine = regexp.MustCompile(`warning: \w+ map .*, line (\d+): (.*)`)
	harmless   = regexp.MustCompile(`^(?:no replacement text|ignoring (?:extra|obsolete)|do not prepend|IF has no matching)`)
)

// skippedLines are the lines that Postfix itself says it skips, and why:
// patterns that don't compile, values with groups that aren't there.
func (i *importer) skippedLines(name string) map[int]string {
	args := []string{"-q", "x", name}
	if i.src.ConfigDir != "" {
		args = append([]string{"-c", i.src.ConfigDir}, args...)
	}
	// That x isn't found is an error, too.
	stderr, _ := i.src.run(i.ctx, cmp.Or(i.src.Postmap, "postmap"), args, func(string) error { return nil })
	skipped := map[int]string{}
	for _, m := range warnedLine.FindAllStringSubmatch(stderr, -1) {
		if n, _ := strconv.Atoi(m[1]); !harmless.MatchString(m[2]) {
			skipped[n] = m[2]
		}
	}
	return skipped
}

// parse reads the rules of a file, but for the lines that Postfix skips.
func (t *Table) parse(file, text string, skipped map[int]string) {
	depth := 0
	logicalLines(text, func(n int, line string) {
		r, ok := parseRule(t.Type, line)
		switch {
		case !ok || skipped[n] != "" || r.Op == Endif && depth == 0:
			what := cmp.Or(skipped[n], "no rule of a "+t.Type+" table; Postfix skips the line")
			t.Skipped = append(t.Skipped, fidelity.Mistake{File: file, Line: n, What: strings.ToValidUTF8(what, "?")})
			return
		case r.Op == If:
			depth++
		case r.Op == Endif:
			depth--
		}
		r.Line = n
		t.Rules = append(t.Rules, r)
	})
}

func parseRule(typ, line string) (r Rule, ok bool) {
	rest, isIf := keyword(line, "if")
	if end, isEndif := keyword(line, "endif"); isEndif {
		return Rule{Op: Endif}, typ != "cidr" || end == ""
	}
	r.Op = Match
	if isIf {
		r.Op, line = If, rest
	}
	if typ == "cidr" {
		return r, r.cidr(line)
	}
	if !isIf && isAlnum(line[0]) {
		return r, false
	}
	if line, ok = r.pattern(typ, line); !ok {
		return r, false
	}
	if typ == "regexp" && !isIf && strings.HasPrefix(line, "!") {
		r.And = &Rule{Op: Match}
		if line, ok = r.And.pattern(typ, line); !ok {
			return r, false
		}
	}
	if !isIf {
		r.Value = strings.TrimLeft(line, spaces)
	}
	return r, true
}

func (r *Rule) cidr(line string) bool {
	line, r.Not = negation(line)
	key, value := line, ""
	if n := strings.IndexAny(line, spaces); n >= 0 {
		key, value = line[:n], strings.Trim(line[n:], spaces)
	}
	if (value == "") != (r.Op == If) {
		return false
	}
	r.Value = value
	var err error
	r.Prefix, err = parsePrefix(key)
	return err == nil
}

// parsePrefix reads an address or a prefix as main.cf and cidr tables spell
// it: "[::1]/128" too, and not with bits beyond the mask.
func parsePrefix(s string) (netip.Prefix, error) {
	if strings.HasPrefix(s, "[") {
		in, mask, ok := strings.Cut(s[1:], "]")
		if !ok {
			return netip.Prefix{}, fmt.Errorf("%q lacks its ]", s)
		}
		s = in + mask
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not an IP prefix", s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has bits beyond its mask; Postfix refuses it", s)
	}
	return p, nil
}

// pattern reads /regular expression/flags and returns what follows.
func (r *Rule) pattern(typ, s string) (rest string, ok bool) {
	s, r.Not = negation(s)
	if s == "" {
		return "", false
	}
	delim, n := s[0], 1
	for n < len(s) && s[n] != delim {
		if s[n] == '\\' {
			n++
		}
		n++
	}
	if n >= len(s) {
		return "", false
	}
	r.Pattern, s = s[1:n], s[n+1:]
	known, set := "imsxAEUX", map[byte]bool{'i': true, 's': true}
	if typ == "regexp" {
		known, set = "imx", map[byte]bool{'i': true, 'x': true}
	}
	n = 0
	for ; n < len(s) && !isSpace(s[n]) && !(typ == "regexp" && s[n] == '!'); n++ {
		if strings.IndexByte(known, s[n]) < 0 {
			return "", false
		}
		set[s[n]] = !set[s[n]]
	}
	for k := range len(known) {
		if set[known[k]] {
			r.Flags += known[k : k+1]
		}
	}
	return s[n:], true
}

// canonical spells the rules of a pattern table for the engine. A second pattern
// becomes a condition: the value is about what the first one's groups matched.
func canonical(rules []Rule) [][2]string {
	var out [][2]string
	spell := func(r *Rule) string {
		s := "/" + r.Pattern + "/" + r.Flags
		if r.Not {
			s = "!" + s
		}
		return s
	}
	for n := range rules {
		r := &rules[n]
		switch {
		case r.Op == Endif:
			out = append(out, [2]string{"endif"})
		case r.Op == If:
			out = append(out, [2]string{"if " + spell(r)})
		case r.And == nil:
			out = append(out, [2]string{spell(r), r.Value})
		default:
			out = append(out, [2]string{"if " + spell(r.And)}, [2]string{spell(r), r.Value}, [2]string{"endif"})
		}
	}
	return out
}

// maxFlat bounds what if and ! in a cidr table may blow up to.
const maxFlat = 1 << 20

// flatten turns the if, endif and ! of a cidr table into plain prefixes in the
// same order: the first that matches yields the same value.
func flatten(rules []Rule) ([][2]string, error) {
	var out [][2]string
	stack := [][]netip.Prefix{nil} // nil: everything
	for _, r := range rules {
		if r.Op == Endif {
			stack = stack[:len(stack)-1]
			continue
		}
		set := []netip.Prefix{r.Prefix}
		if r.Not {
			set = complement(r.Prefix)
		}
		if len(stack) > 1 {
			set = intersect(stack[len(stack)-1], set)
		}
		if r.Op == If {
			stack = append(stack, set)
			continue
		}
		for _, p := range set {
			if p.Addr().Is4In6() {
				continue // Postfix writes such a client's address as IPv4
			}
			out = append(out, [2]string{p.String(), r.Value})
		}
		if len(out) > maxFlat {
			return nil, fmt.Errorf("if and ! make more than %d prefixes", maxFlat)
		}
	}
	return out, nil
}

// complement covers all addresses of the family that p doesn't.
func complement(p netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for n := p.Bits(); n > 0; n-- {
		b := p.Addr().AsSlice()
		b[(n-1)/8] ^= 1 << (7 - (n-1)%8)
		a, _ := netip.AddrFromSlice(b)
		out = append(out, netip.PrefixFrom(a, n).Masked())
	}
	return out
}

func intersect(a, b []netip.Prefix) []netip.Prefix {
	out := []netip.Prefix{}
	for _, p := range a {
		for _, q := range b {
			if p.Overlaps(q) {
				if p.Bits() > q.Bits() {
					out = append(out, p)
				} else {
					out = append(out, q)
				}
			}
		}
	}
	return out
}

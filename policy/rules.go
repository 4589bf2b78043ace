package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/policy/pattern"
)

// rule is a line of a cidr, regexp or pcre table. The first that matches
// gives the value.
type rule struct {
	op  ruleOp
	not bool             // matches what the pattern doesn't
	net netip.Prefix     // of a cidr table
	re  *pattern.Pattern // of the others
	val uint32
	end int // of ruleIf: its endif, or the number of rules
}

type ruleOp uint8

const (
	ruleMatch ruleOp = iota
	ruleIf           // guards the rules up to its endif
	ruleEndif
)

func hasRules(typ string) bool { return typ == typeCIDR || isPatterns(typ) }

func isPatterns(typ string) bool { return typ == typeRegexp || typ == typePCRE }

func dialectOf(typ string) pattern.Dialect {
	if typ == typePCRE {
		return pattern.PCRE
	}
	return pattern.ERE
}

// parseRule reads a rule in its canonical spelling: the key is "192.0.2.0/24"
// or "/pattern/flags", with "!" before it to negate and "if " before that for
// a condition, or "endif". The flags are those in force, not changes of
// Postfix's defaults.
func parseRule(typ, key string) (r rule, err error) {
	if key == "endif" {
		return rule{op: ruleEndif}, nil
	}
	rest, cond := strings.CutPrefix(key, "if ")
	if cond {
		r.op = ruleIf
	}
	rest, r.not = strings.CutPrefix(rest, "!")
	if typ == typeCIDR {
		r.net, err = parsePrefix(rest)
		return r, err
	}
	end := strings.LastIndexByte(rest, '/')
	if end < 1 || rest[0] != '/' {
		return r, fmt.Errorf("rule %q: want /pattern/flags", key)
	}
	if r.re, err = pattern.Compile(dialectOf(typ), rest[1:end], rest[end+1:]); err != nil {
		return r, fmt.Errorf("rule %q: %w", key, err)
	}
	return r, nil
}

// key spells the rule.
func (r *rule) key() string {
	if r.op == ruleEndif {
		return "endif"
	}
	s := ""
	if r.op == ruleIf {
		s = "if "
	}
	if r.not {
		s += "!"
	}
	if r.re != nil {
		return s + r.re.String()
	}
	return s + prefixString(r.net)
}

// addRule appends a rule. intern finds the index of its value.
func (t *Table) addRule(key, value string, intern func(string) uint32) error {
	r, err := parseRule(t.typ, key)
	if err != nil {
		return err
	}
	if r.op != ruleMatch {
		if value != "" {
			return fmt.Errorf("rule %q has a value", key)
		}
	} else {
		if isPatterns(t.typ) {
			groups := r.re.Groups()
			if r.not {
				groups = 0
			}
			if _, err := parseTemplate(value, groups); err != nil {
				return fmt.Errorf("rule %q: %w", key, err)
			}
		}
		r.val = intern(value)
	}
	t.rules = append(t.rules, r)
	return nil
}

// link finds the end of each condition.
func (t *Table) link() error {
	var open []int
	for i := range t.rules {
		switch t.rules[i].op {
		case ruleIf:
			t.rules[i].end = len(t.rules)
			open = append(open, i)
		case ruleEndif:
			if len(open) == 0 {
				return errors.New("an endif without its if")
			}
			t.rules[open[len(open)-1]].end = i
			open = open[:len(open)-1]
		}
	}
	return nil
}

// plain says that the rules are networks without conditions.
func (t *Table) plain() bool {
	for i := range t.rules {
		if r := &t.rules[i]; r.op != ruleMatch || r.not || r.re != nil {
			return false
		}
	}
	return true
}

// findRule is the first rule that matches a key, or -1.
func (f *finder) findRule(t *table, key []byte, addr netip.Addr) int {
	if isPatterns(t.typ) {
		f.subject.Set(key)
	} else if !addr.IsValid() {
		return -1
	}
	for i := 0; i < len(t.rules); i++ {
		r := &t.rules[i]
		if r.op == ruleEndif {
			continue
		}
		var found bool
		if r.re != nil {
			var err error
			if found, err = r.re.Match(&f.subject); err != nil {
				f.failed = true
				return -1
			}
			found = found != r.not
		} else { // a rule for the other family never matches, negated or not
			found = r.net.Addr().Is4() == addr.Is4() && r.net.Contains(addr) != r.not
		}
		switch {
		case found && r.op == ruleMatch:
			return i
		case !found && r.op == ruleIf:
			i = r.end
		}
	}
	return -1
}

// templatePart is a piece of a value: text, then what a group matched.
type templatePart struct {
	text  string
	group int // 0 is none
}

// parseTemplate reads the value of a pattern's rule: $1, ${1} and $(1) stand for
// what the groups matched, $$ for a dollar sign.
func parseTemplate(s string, groups int) (parts []templatePart, err error) {
	text := ""
	for {
		before, rest, found := strings.Cut(s, "$")
		text += before
		if !found {
			if text != "" {
				parts = append(parts, templatePart{text, 0})
			}
			return parts, nil
		}
		if s, found = strings.CutPrefix(rest, "$"); found {
			text += "$"
			continue
		}
		name := ""
		if i := strings.IndexAny(rest[:min(1, len(rest))], "{("); i >= 0 {
			name, s, found = strings.Cut(rest[1:], map[byte]string{'{': "}", '(': ")"}[rest[0]])
		} else {
			n := 0
			for n < len(rest) && isNameByte(rest[n]) {
				n++
			}
			name, s, found = rest[:n], rest[n:], true
		}
		n := 0
		if found && allDigits(name) && len(name) < 4 {
			fmt.Sscan(name, &n)
		}
		if n < 1 || n > groups {
			return nil, fmt.Errorf("value: $%s is no group of the pattern", name)
		}
		parts = append(parts, templatePart{text, n})
		text = ""
	}
}

// fixedValue is a template's text, when it is nothing but text.
func fixedValue(parts []templatePart) (string, bool) {
	switch {
	case len(parts) == 0:
		return "", true
	case len(parts) == 1 && parts[0].group == 0:
		return parts[0].text, true
	}
	return "", false
}

// value is what an entry says, its groups filled in from the key that was
// looked up last.
func (f *finder) value(h hit) string {
	t := h.t
	switch {
	case h.joined != "":
		return h.joined
	case t.typ == typeSet:
		return ""
	case !isPatterns(t.typ):
		_, v := t.Entry(h.entry)
		return v
	}
	r := &t.rules[h.entry]
	parts, err := parseTemplate(t.values[r.val], r.re.Groups())
	if v, fixed := fixedValue(parts); fixed || err != nil {
		return v
	}
	f.subject.Set(f.buf)
	groups, err := r.re.Find(&f.subject)
	if err != nil {
		f.failed = true
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.text)
		if p.group > 0 {
			b.WriteString(groups[p.group])
		}
	}
	return b.String()
}

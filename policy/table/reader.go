package table

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/pattern"
)

// Reader looks keys up. It belongs to one goroutine: it holds the memory for
// it, so that a look-up allocates nothing.
type Reader struct {
	hasher  *Hasher // made for the first table of digests
	subject pattern.Subject
}

// Find returns the entry for a folded key, or -1. addr is the key as an
// address, when it is one. A union or pipe has no entries of its own. An error
// says that a pattern took too long.
func (r *Reader) Find(t *Table, key []byte, addr netip.Addr) (entry int, err error) {
	switch {
	case t.Keyed() && t.secret != nil:
		if r.hasher == nil || r.hasher.secret != *t.secret {
			r.hasher = NewHasher(t.secret)
		}
		return t.Find(r.hasher.Digest(key)), nil
	case t.Keyed():
		return t.Find(key), nil
	case t.typ == TypeStatic:
		return 0, nil
	case t.nets != nil && addr.IsValid():
		if i, ok := t.nets.Lookup(addr); ok {
			return int(i), nil
		}
		return -1, nil
	}
	return r.match(t, key, addr)
}

// match returns the first rule that matches a key, or -1.
func (r *Reader) match(t *Table, key []byte, addr netip.Addr) (entry int, err error) {
	if isPatterns(t.typ) {
		r.subject.Set(key)
	} else if !addr.IsValid() {
		return -1, nil
	}
	for i := 0; i < len(t.rules); i++ {
		rule := &t.rules[i]
		if rule.op == ruleEndif {
			continue
		}
		var found bool
		if rule.re != nil {
			if found, err = rule.re.Match(&r.subject); err != nil {
				return -1, err
			}
			found = found != rule.not
		} else { // a rule for the other family never matches, negated or not
			found = rule.net.Addr().Is4() == addr.Is4() && rule.net.Contains(addr) != rule.not
		}
		switch {
		case found && rule.op == ruleMatch:
			return i, nil
		case !found && rule.op == ruleIf:
			i = rule.end
		}
	}
	return -1, nil
}

// Value is an entry's value for the key for which Find found it, with a pattern's
// groups filled in. An error says that this took too long.
func (r *Reader) Value(t *Table, entry int, key []byte) (string, error) {
	_, value := t.Entry(entry)
	if !isPatterns(t.typ) {
		return value, nil
	}
	if v, fixed := fixedValue(value); fixed {
		return v, nil
	}
	r.subject.Set(key)
	groups, err := t.rules[entry].re.Find(&r.subject)
	var b strings.Builder
	parts, _ := parseTemplate(value) // it was read before
	for _, p := range parts {
		b.WriteString(p.text)
		if p.group > 0 {
			b.WriteString(groups[p.group])
		}
	}
	return b.String(), err
}

// templatePart is a piece of a value: text, then what a group matched.
type templatePart struct {
	text  string
	group int // 0 is none
}

var word = regexp.MustCompile(`^\w*`)

// parseTemplate reads the value of a pattern's rule: $1, ${1} and $(1) stand for
// what the groups matched, $$ for a dollar sign.
func parseTemplate(s string) (parts []templatePart, err error) {
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
		name := word.FindString(rest)
		s, found = rest[len(name):], true
		if i := strings.IndexAny(rest[:min(1, len(rest))], "{("); i >= 0 {
			name, s, found = strings.Cut(rest[1:], map[byte]string{'{': "}", '(': ")"}[rest[0]])
		}
		n, err := strconv.ParseUint(name, 10, 0)
		if !found || err != nil || n == 0 || len(name) > 3 {
			return nil, errNoGroup(name)
		}
		parts = append(parts, templatePart{text, int(n)})
		text = ""
	}
}

func errNoGroup(name string) error { return fmt.Errorf("value: $%s is no group of the pattern", name) }

// checkTemplate says whether the value has none but groups of the rule's pattern.
func checkTemplate(value string, r *rule) error {
	parts, err := parseTemplate(value)
	for _, p := range parts {
		if p.group > 0 && (r.not || p.group > r.re.Groups()) {
			return errNoGroup(strconv.Itoa(p.group))
		}
	}
	return err
}

// fixedValue is the text of a template that is nothing but text.
func fixedValue(template string) (text string, fixed bool) {
	parts, err := parseTemplate(template)
	switch {
	case err != nil || len(parts) > 1 || len(parts) == 1 && parts[0].group > 0:
		return "", false
	case len(parts) == 1:
		return parts[0].text, true
	}
	return "", true
}

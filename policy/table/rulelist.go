package table

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

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

func hasRules(typ string) bool { return typ == TypeCIDR || isPatterns(typ) }

func isPatterns(typ string) bool { return typ == TypeRegexp || typ == TypePCRE }

func dialectOf(typ string) pattern.Dialect {
	if typ == TypePCRE {
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
	if typ == TypeCIDR {
		r.net, err = ParsePrefix(rest)
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
	return s + PrefixString(r.net)
}

// addRule appends a rule. intern finds the index of its value.
func (t *Table) addRule(key, value string, intern func(string) uint32) error {
	r, err := parseRule(t.typ, key)
	if err == nil && r.op != ruleMatch && value != "" {
		err = fmt.Errorf("rule %q has a value", key)
	}
	if err != nil {
		return err
	}
	if r.op == ruleMatch {
		if r.re != nil {
			err = checkTemplate(value, &r)
		}
		if err != nil {
			return fmt.Errorf("rule %q: %w", key, err)
		}
		r.val = intern(value)
	}
	t.rules = append(t.rules, r)
	return nil
}

// link finds the end of each condition, and indexes networks without one.
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
	if t.typ != TypeCIDR || slices.ContainsFunc(t.rules, func(r rule) bool { return r.op != ruleMatch || r.not }) {
		return nil
	}
	t.nets = new(bart.Table[uint32])
	for i, r := range t.rules {
		// The first match wins in Postfix, the longest here: a later rule
		// inside an earlier one can never match and is left out.
		if _, covered := t.nets.LookupPrefix(r.net); !covered {
			t.nets.Insert(r.net, uint32(i))
		}
	}
	return nil
}

// ParsePrefix reads an address or a prefix without host bits.
func ParsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address; write 192.0.2.1 or 2001:db8::1", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an IP prefix; write 192.0.2.0/24 or 2001:db8::/32", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has host bits; write %s", s, p.Masked())
	}
	return p, nil
}

// PrefixString spells a prefix as tables do: that of one address as the address.
func PrefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

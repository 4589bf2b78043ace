package postfix

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// filter is an LDAP filter, RFC 4515.
type filter struct {
	op       byte // '&', '|', '!' or 0 for an item
	children []*filter
	item     string // as written
}

func parseFilter(s string, depth int) (f *filter, rest string, err error) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, "(") || len(s) < 2 || depth > maxDepth {
		if depth == 0 && s != "" && s[0] != '(' {
			return parseFilter("("+s+")", 1) // the old form without parentheses
		}
		return nil, "", fmt.Errorf("query_filter: want a filter at %q", s)
	}
	if strings.IndexByte("&|!", s[1]) >= 0 {
		f = &filter{op: s[1]}
		s = strings.TrimSpace(s[2:])
		for strings.HasPrefix(s, "(") {
			var c *filter
			if c, s, err = parseFilter(s, depth+1); err != nil {
				return nil, "", err
			}
			f.children = append(f.children, c)
			s = strings.TrimSpace(s)
		}
		if !strings.HasPrefix(s, ")") || len(f.children) == 0 || f.op == '!' && len(f.children) > 1 {
			return nil, "", errors.New("query_filter: a parenthesis isn't closed")
		}
		return f, strings.TrimSpace(s[1:]), nil
	}
	end := strings.IndexByte(s, ')')
	if end < 0 {
		return nil, "", errors.New("query_filter: a parenthesis isn't closed")
	}
	return &filter{item: s[1:end]}, strings.TrimSpace(s[end+1:]), nil
}

// keyed says that a part of the filter depends on the key.
func (f *filter) keyed() bool {
	return len(placeholders(f.item)) > 0 || slices.ContainsFunc(f.children, (*filter).keyed)
}

func (f *filter) spell() string {
	if f.op == 0 {
		return "(" + strings.ReplaceAll(f.item, "%%", "%") + ")"
	}
	s := "(" + string(f.op)
	for _, c := range f.children {
		s += c.spell()
	}
	return s + ")"
}

// literal is a part of an arm: a filter that doesn't depend on the key, or an
// item that does.
type literal struct {
	constant string
	item     *ldapItem
	not      bool
}

// maxArms bounds a filter's disjunctive normal form.
const maxArms = 64

// arms are the filter's disjunctive normal form: what holds for a key and an
// entry is what holds in one of the arms. That is so with LDAP's third truth
// value, too.
func (f *filter) arms(not bool) ([][]literal, error) {
	if !f.keyed() {
		return [][]literal{{{constant: f.spell(), not: not}}}, nil
	}
	switch {
	case f.op == 0:
		item, err := newItem(f.item)
		return [][]literal{{{item: item, not: not}}}, err
	case f.op == '!':
		return f.children[0].arms(!not)
	}
	all := [][]literal{{}}
	if (f.op == '|') != not {
		all = nil
	}
	for _, c := range f.children {
		more, err := c.arms(not)
		if err != nil {
			return nil, err
		}
		if (f.op == '|') != not {
			all = append(all, more...)
		} else {
			var both [][]literal
			for _, a := range all {
				for _, b := range more {
					both = append(both, slices.Concat(a, b))
				}
			}
			all = both
		}
		if len(all) > maxArms {
			return nil, fmt.Errorf("query_filter has more than %d alternatives", maxArms)
		}
	}
	return all, nil
}

// ldapItem compares an attribute with a value that holds the key.
type ldapItem struct {
	attr    string
	pattern [][]piece // what stands between asterisks
	names   []string  // of the attribute and of those made from it
	rule    rule
}

// rule is how a directory compares values.
type rule int

const (
	ruleUndefined  rule = iota // never: neither equal nor different
	ruleIgnoreCase             // and space at the ends, and repeated space
	ruleExact                  // but for space
	ruleNoCase                 // Active Directory: space counts
)

func newItem(text string) (*ldapItem, error) {
	attr, value, ok := strings.Cut(text, "=")
	attr = strings.TrimSpace(attr)
	if !ok || attr == "" || strings.ContainsAny(attr, "<>~:%;") {
		return nil, fmt.Errorf("query_filter: (%s) is no equation", text)
	}
	it := &ldapItem{attr: strings.ToLower(attr)}
	for _, segment := range strings.Split(value, "*") {
		ps, err := cutPieces(segment)
		if err != nil {
			return nil, fmt.Errorf("query_filter: %w", err)
		}
		for n := range ps {
			if ps[n].text, err = unescapeFilter(ps[n].text); err != nil {
				return nil, err
			}
		}
		it.pattern = append(it.pattern, ps)
	}
	return it, nil
}

// unescapeFilter reads \xx, RFC 4515 §3.
func unescapeFilter(s string) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		if len(after) < 2 {
			return "", fmt.Errorf(`query_filter: \%s is no octet`, after)
		}
		octet, err := hex.DecodeString(after[:2])
		if err != nil {
			return "", fmt.Errorf(`query_filter: \%s is no octet`, after[:2])
		}
		b.Write(octet)
		s = after[2:]
	}
}

// quoteFilter is how Postfix puts a key into a filter.
func quoteFilter(s string) string {
	return strings.NewReplacer("*", `\2A`, "(", `\28`, ")", `\29`, `\`, `\5C`).Replace(s)
}

// quoteDN is how it puts one into search_base.
func quoteDN(s string) string {
	return strings.NewReplacer(" ", `\20`, "\t", `\09`, `"`, `\22`, "#", `\23`, "+", `\2B`, ",", `\2C`, ";", `\3B`, "<", `\3C`, ">", `\3E`, `\`, `\5C`).Replace(s)
}

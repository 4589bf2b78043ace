package postfix

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/lister"
)

// keyed says that a part of the filter depends on the key.
func keyed(f *lister.Filter) bool {
	return len(placeholders(f.Item)) > 0 || slices.ContainsFunc(f.Children, keyed)
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
func arms(f *lister.Filter, not bool) ([][]literal, error) {
	if !keyed(f) {
		return [][]literal{{{constant: strings.ReplaceAll(f.String(), "%%", "%"), not: not}}}, nil
	}
	switch f.Op {
	case 0:
		item, err := newItem(f.Item)
		return [][]literal{{{item: item, not: not}}}, err
	case '!':
		return arms(f.Children[0], !not)
	}
	all := [][]literal{{}}
	if (f.Op == '|') != not {
		all = nil
	}
	for _, c := range f.Children {
		more, err := arms(c, not)
		if err != nil {
			return nil, err
		}
		if (f.Op == '|') != not {
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

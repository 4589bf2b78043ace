package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Search is an LDAP search that lists what a table's query_filter answers to.
type Search struct {
	Base, Scope, Filter string
	Attributes          []string // folded: those that the key is made of, then the results

	filter  *filter
	result  []string
	domains []string
}

// filter is an LDAP filter, RFC 4515.
type filter struct {
	op       byte // '&', '|', '!' or 0 for an item
	children []*filter
	item     string // as written
	// An item whose value holds the key: attr = template.
	attr     string
	template []part
}

// search rewrites the filter: an item that compares an attribute with the key
// becomes a test for the attribute.
func (d *Database) search() (*Search, error) {
	s := d.Settings
	for _, n := range []string{"special_result_attribute", "leaf_result_attribute", "terminal_result_attribute"} {
		if s[n] != "" {
			return nil, fmt.Errorf("%s asks the directory again", n)
		}
	}
	if len(placeholders(s["search_base"])) > 0 {
		return nil, errors.New("the key in search_base")
	}
	f, rest, err := parseFilter(cmp.Or(s["query_filter"], "(mailacceptinggeneralid=%s)"), 0)
	if err == nil && rest != "" {
		err = fmt.Errorf("query_filter goes on after its end: %q", rest)
	}
	if err != nil {
		return nil, err
	}
	se := &Search{Base: s["search_base"], Scope: cmp.Or(s["scope"], "sub"), filter: f, domains: d.domains()}
	if err := f.check(se); err != nil {
		return nil, err
	}
	if !f.keyed() {
		return nil, errors.New("query_filter finds entries whatever the key is")
	}
	se.Filter = f.spell()
	se.result = words(strings.ToLower(cmp.Or(s["result_attribute"], "maildrop")))
	for _, a := range se.result {
		if !slices.Contains(se.Attributes, a) {
			se.Attributes = append(se.Attributes, a)
		}
	}
	return se, nil
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
		if !strings.HasPrefix(s, ")") || len(f.children) == 0 {
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

// check refuses what can't be listed, and notes which attributes are keys.
func (f *filter) check(s *Search) error {
	if f.op != 0 {
		constant := false
		for _, c := range f.children {
			if err := c.check(s); err != nil {
				return err
			}
			constant = constant || !c.keyed()
		}
		switch {
		case f.op == '!' && f.keyed():
			return errors.New("the key beside ! in query_filter")
		case f.op == '|' && f.keyed() && constant:
			return errors.New("query_filter finds entries whatever the key is")
		case f.op == '|' && len(f.children) > 1 && slices.ContainsFunc(f.children, (*filter).demands):
			// The search finds an entry by one arm, and can't tell which:
			// the keys of the others would be let in, too.
			return errors.New("the arms of | in query_filter demand different things of an entry")
		}
		return nil
	}
	attr, value, ok := strings.Cut(f.item, "=")
	if len(placeholders(f.item)) == 0 {
		return nil
	}
	if !ok || strings.ContainsAny(attr, "<>~:%") || strings.Contains(value, "*") {
		return fmt.Errorf("query_filter: %s is no equation", f.item)
	}
	ps, err := holes(value)
	if err != nil {
		return err
	}
	f.attr, f.template = strings.ToLower(strings.TrimSpace(attr)), joinAddress(ps)
	n := 0
	for _, p := range f.template {
		if p.hole != 0 {
			n++
		}
		if p.hole == 'd' || p.hole == 'u' && len(s.domains) == 0 {
			return fmt.Errorf("query_filter: %s doesn't tell the whole key", f.item)
		}
	}
	if n != 1 {
		return fmt.Errorf("query_filter: two unknowns in %s", f.item)
	}
	if !slices.Contains(s.Attributes, f.attr) {
		s.Attributes = append(s.Attributes, f.attr)
	}
	return nil
}

// keyed says that a part of the filter depends on the key.
func (f *filter) keyed() bool {
	return f.attr != "" || slices.ContainsFunc(f.children, (*filter).keyed)
}

// demands says that a part of the filter doesn't depend on the key.
func (f *filter) demands() bool {
	return f.op == 0 && f.attr == "" || slices.ContainsFunc(f.children, (*filter).demands)
}

func (f *filter) spell() string {
	switch {
	case f.attr != "":
		return "(" + f.attr + "=*)"
	case f.op == 0:
		return "(" + strings.ReplaceAll(f.item, "%%", "%") + ")"
	}
	s := "(" + string(f.op)
	for _, c := range f.children {
		s += c.spell()
	}
	return s + ")"
}

// keys are what an entry answers to. Directories ignore case in mail
// addresses.
func (s *Search) keys(entry map[string][]string) []string {
	set := s.filter.keys(s, entry)
	return sortedKeys(set)
}

func (f *filter) keys(s *Search, entry map[string][]string) map[string]bool {
	set := map[string]bool{}
	if f.op == 0 {
		e := Query{keyColumns: 1, equations: []equation{{template: f.template}}, domains: s.domains}
		for _, v := range entry[f.attr] {
			for _, k := range e.key([]string{strings.ToLower(v)}, true) {
				set[k] = true
			}
		}
		return set
	}
	first := true
	for _, c := range f.children {
		if !c.keyed() {
			continue // the directory has seen to it
		}
		more := c.keys(s, entry)
		for k := range more {
			if f.op == '|' || first {
				set[k] = true
			}
		}
		for k := range set {
			if f.op == '&' && !more[k] {
				delete(set, k)
			}
		}
		first = false
	}
	return set
}

func (s *Search) results(entry map[string][]string) []string {
	var all []string
	for _, a := range s.result {
		all = append(all, entry[a]...)
	}
	return all
}

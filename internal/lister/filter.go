package lister

import (
	"errors"
	"fmt"
	"strings"
)

// Filter is a directory's filter, RFC 4515.
type Filter struct {
	Op       byte // '&', '|', '!' or 0 for an item
	Children []*Filter
	Item     string // as written
}

// maxNesting bounds how deep the parentheses of a filter are.
const maxNesting = 20

// ParseFilter reads a filter, which may be an item without parentheses.
func ParseFilter(s string) (*Filter, error) {
	if s = strings.TrimSpace(s); s != "" && s[0] != '(' {
		s = "(" + s + ")"
	}
	f, rest, err := parseFilter(s, 0)
	if err == nil && rest != "" {
		err = fmt.Errorf("it goes on after its end: %q", rest)
	}
	return f, err
}

func parseFilter(s string, depth int) (f *Filter, rest string, err error) {
	if !strings.HasPrefix(s, "(") || len(s) < 2 || depth > maxNesting {
		return nil, "", fmt.Errorf("want a filter at %q", s)
	}
	open := errors.New("a parenthesis isn't closed")
	s = strings.TrimSpace(s[1:])
	if s == "" || strings.IndexByte("&|!", s[0]) < 0 {
		item, rest, closed := strings.Cut(s, ")")
		if !closed {
			return nil, "", open
		}
		return &Filter{Item: item}, strings.TrimSpace(rest), nil
	}
	f = &Filter{Op: s[0]}
	for s = strings.TrimSpace(s[1:]); strings.HasPrefix(s, "("); {
		var c *Filter
		if c, s, err = parseFilter(s, depth+1); err != nil {
			return nil, "", err
		}
		f.Children = append(f.Children, c)
	}
	if !strings.HasPrefix(s, ")") || len(f.Children) == 0 || f.Op == '!' && len(f.Children) > 1 {
		return nil, "", open
	}
	return f, strings.TrimSpace(s[1:]), nil
}

func (f *Filter) String() string {
	if f.Op == 0 {
		return "(" + f.Item + ")"
	}
	s := "(" + string(f.Op)
	for _, c := range f.Children {
		s += c.String()
	}
	return s + ")"
}

package postfix

import (
	"errors"
	"slices"
	"strings"
)

type tokenKind uint8

const (
	word  tokenKind = iota // keyword, name or number, or a quoted name
	text                   // string
	punct                  // everything else
)

// token is a piece of SQL as it was written.
type token struct {
	kind  tokenKind
	text  string
	space bool // white space stood before it
}

func (t token) is(s string) bool { return t.kind != text && strings.EqualFold(t.text, s) }

func (t token) depth() int {
	switch {
	case t.text == "(" || t.is("case"):
		return 1
	case t.text == ")" || t.is("end"):
		return -1
	}
	return 0
}

func (t token) holes() bool { return len(placeholders(t.text)) > 0 || t.text == "%" }

var aggregateFunctions = []string{"count", "sum", "min", "max", "avg", "group_concat", "string_agg", "array_agg", "json_agg"}

func (t token) aggregates() bool {
	return t.kind == word && slices.Contains(aggregateFunctions, strings.ToLower(t.text))
}

func (t token) compares() bool {
	switch strings.ToLower(t.text) {
	case "<", ">", "!", "like", "ilike", "in", "not", "is", "regexp", "rlike", "similar", "glob", "match", "~", "xor", "exists", "any", "some", "all", "select", ":", "collate":
		return t.kind != text
	}
	return false
}

// value is a string without its quotes.
func (t token) value() string {
	q := t.text[:1]
	return strings.ReplaceAll(t.text[1:len(t.text)-1], q+q, q)
}

// scanSQL cuts a query into tokens. Comments and backslashes in strings aren't
// understood and refused.
func scanSQL(s, typ string) ([]token, error) {
	var all []token
	add := func(k tokenKind, start, end int) {
		all = append(all, token{k, s[start:end], start > 0 && isSpace(s[start-1])})
	}
	s = strings.TrimRight(s, "; \t\r\n")
	for i := 0; i < len(s); {
		c, start := s[i], i
		switch {
		case isSpace(c):
			i++
			continue
		case strings.HasPrefix(s[i:], "--") || strings.HasPrefix(s[i:], "/*") || c == ';' || c == '#':
			return nil, errors.New("comments or several statements")
		case c == '\'' || c == '"' || c == '`':
			for i++; ; i++ {
				if i >= len(s) || s[i] == '\\' {
					return nil, errors.New("a string that doesn't end, or has a backslash")
				}
				if s[i] != c {
					continue
				}
				if i+1 == len(s) || s[i+1] != c {
					break
				}
				i++
			}
			i++
			k := word
			if c == '\'' || c == '"' && typ == "mysql" {
				k = text
			}
			add(k, start, i)
		case c == '_' || c == '.' || c == '$' || c >= 0x80 || isAlnum(c):
			for i < len(s) && (s[i] == '_' || s[i] == '.' || s[i] == '$' || s[i] >= 0x80 || isAlnum(s[i])) {
				i++
			}
			add(word, start, i)
		case strings.HasPrefix(s[i:], "||"):
			i += 2
			add(punct, start, i)
		default:
			i++
			add(punct, start, i)
		}
	}
	return all, nil
}

// splitTokens cuts at a separator outside of parentheses.
func splitTokens(ts []token, sep string) [][]token {
	var all [][]token
	depth, start := 0, 0
	for i, t := range ts {
		depth += t.depth()
		if depth == 0 && t.is(sep) {
			all = append(all, ts[start:i])
			start = i + 1
		}
	}
	return append(all, ts[start:])
}

// closes returns the index of the parenthesis that closes ts[0], or -1.
func closes(ts []token) int {
	depth := 0
	for i, t := range ts {
		if depth += t.depth(); depth == 0 {
			return i
		}
	}
	return -1
}

// spell writes tokens as SQL again. "%%" was one "%" to Postfix.
func spell(ts []token) string {
	var b strings.Builder
	for i, t := range ts {
		if t.space && i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strings.ReplaceAll(t.text, "%%", "%"))
	}
	return b.String()
}

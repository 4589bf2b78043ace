package sqlast

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds a statement.
const maxText = 64 << 10

// Template turns a query of a .cf file into a text for Parse: placeholders
// become Holes, capitals as small letters (to a query both are parts of the
// key), and "%%" becomes "%".
func Template(query string) (string, error) {
	var b strings.Builder
	if len(query) > maxText || !utf8.ValidString(query) || Holes(query) || strings.ContainsRune(query, 0) {
		return "", fmt.Errorf("is longer than %d octets or no text", maxText)
	}
	for i := 0; i < len(query); i++ {
		if query[i] != '%' {
			b.WriteByte(query[i])
			continue
		}
		if i++; i == len(query) {
			return "", errors.New("ends in %; Postfix doesn't start with it")
		}
		switch c := query[i]; {
		case c == '%':
			b.WriteByte('%')
		case strings.IndexByte("sudSUD", c) >= 0:
			b.WriteRune(Hole(c | 0x20))
		case c >= '1' && c <= '9':
			b.WriteRune(Hole(c))
		default:
			return "", fmt.Errorf("has the placeholder %%%c; Postfix doesn't start with it", c)
		}
	}
	return b.String(), nil
}

type kind uint8

const (
	end    kind = iota
	word        // keyword or name
	quoted      // name
	str         // string
	number      //
	punct       // operator or delimiter
)

type token struct {
	Span
	kind kind
	text string // words are folded, strings without quotes and escapes
}

type lexer struct {
	s       string
	dialect Dialect
	all     []token
}

func isSpace(c byte) bool { return strings.IndexByte(" \t\r\n\f\v", c) >= 0 }

func isWord(r rune) bool {
	return r == '_' || r == '$' || HoleOf(r) == 0 && (unicode.IsLetter(r) || unicode.IsDigit(r) || r >= 0x80)
}

func fold(s string) string { return strings.ToLower(s) }

// lex cuts a text into tokens.
func lex(s string, d Dialect) ([]token, error) {
	l := &lexer{s: s, dialect: d}
	for i := 0; i < len(s); {
		n, err := l.token(i)
		if err != nil {
			return nil, err
		}
		i = n
	}
	l.add(end, len(s), len(s), "")
	return l.all, nil
}

func (l *lexer) add(k kind, start, stop int, text string) int {
	l.all = append(l.all, token{Span{start, stop}, k, text})
	return stop
}

// token reads one, or white space, and returns where it ends.
func (l *lexer) token(i int) (int, error) {
	s, c := l.s, l.s[i]
	r, size := utf8.DecodeRuneInString(s[i:])
	next := byte(0)
	if i+1 < len(s) {
		next = s[i+1]
	}
	switch {
	case isSpace(c):
		return i + 1, nil
	case c == '/' && next == '*':
		n := strings.Index(s[i+2:], "*/")
		if n < 1 || s[i+2] == '!' || s[i+2] == '+' || strings.HasPrefix(s[i+2:], "M!") || strings.Contains(s[i+2:i+2+n], "/*") || Holes(s[i:i+2+n]) {
			return 0, errors.New("a comment that says something, or has no end")
		}
		return i + n + 4, nil
	case c == '-' && next == '-' || c == '#' && l.dialect == MySQL:
		return 0, errors.New("a comment to the end of the line")
	case HoleOf(r) != 0:
		return 0, errors.New("the key stands outside of quotes")
	case c == '\'' || c == '"' || c == '`' || c == '[' && l.dialect == SQLite:
		return l.quote(i, false)
	case (c == 'e' || c == 'E') && next == '\'' && l.dialect == PostgreSQL:
		n, err := l.quote(i+1, true)
		if err == nil {
			l.all[len(l.all)-1].Start = i
		}
		return n, err
	case next == '\'' && strings.IndexByte("bBnNxX", c) >= 0 || (c == 'u' || c == 'U') && next == '&' && l.dialect == PostgreSQL:
		return 0, fmt.Errorf("a string of the kind %c'…'", c)
	case c == '$' && l.dialect == PostgreSQL:
		return 0, errors.New("a string in dollars")
	case c >= '0' && c <= '9' || c == '.' && next >= '0' && next <= '9':
		n := i + 1
		for n < len(s) && (isWord(rune(s[n])) && s[n] < 0x80 || s[n] == '.') {
			n++
		}
		return l.add(number, i, n, s[i:n]), nil
	case isWord(r) || c == '@' && l.dialect == MySQL:
		n := i + size
		for n < len(s) {
			r, size := utf8.DecodeRuneInString(s[n:])
			if !isWord(r) {
				break
			}
			n += size
		}
		return l.add(word, i, n, fold(s[i:n])), nil
	}
	return l.operator(i)
}

const operatorChars = "+-*/<>=~!@#%^&|?:"

// operator reads the longest that the dialect knows.
func (l *lexer) operator(i int) (int, error) {
	s := l.s
	if strings.IndexByte("(),.;]", s[i]) >= 0 {
		return l.add(punct, i, i+1, s[i:i+1]), nil
	}
	if l.dialect == PostgreSQL && s[i] == '[' {
		return l.add(punct, i, i+1, "["), nil
	}
	if strings.IndexByte(operatorChars, s[i]) < 0 {
		return 0, fmt.Errorf("the character %q", s[i])
	}
	for _, op := range []string{"<=>", "->>", "#>>", "!~*", "||", "&&", "<=", ">=", "<>", "!=", "==", "::", "<<", ">>", "->", "#>", "@>", "<@", "~*", "!~", "~~", ":="} {
		if strings.HasPrefix(s[i:], op) {
			return l.add(punct, i, i+len(op), op), nil
		}
	}
	return l.add(punct, i, i+1, s[i:i+1]), nil
}

// quote reads a string or a quoted name.
func (l *lexer) quote(i int, escapes bool) (int, error) {
	s, q := l.s, l.s[i]
	if q == '[' {
		q = ']'
	}
	escapes = escapes || l.dialect == MySQL && q != '`'
	k := quoted
	if q == '\'' || q == '"' && l.dialect == MySQL {
		k = str
	}
	var b strings.Builder
	n := i + 1
	for ; ; n++ {
		switch {
		case n >= len(s):
			return 0, errors.New("a string that doesn't end")
		case s[n] == '\\' && escapes:
			// A placeholder, or what isn't the same in all versions, may follow.
			if n++; n == len(s) || strings.IndexByte("\\'\"", s[n]) < 0 {
				return 0, errors.New("a backslash in a string")
			}
			b.WriteByte(s[n])
		case s[n] != q:
			b.WriteByte(s[n])
		case n+1 < len(s) && s[n+1] == q && q != ']':
			b.WriteByte(q)
			n++
		default:
			if k == quoted && Holes(b.String()) {
				return 0, errors.New("the key in a name")
			}
			return l.add(k, i, n+1, b.String()), nil
		}
	}
}

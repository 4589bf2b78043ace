package envelope

import "strings"

// Token is a part of an address as RFC 822 has them: a word, or one of the
// characters that stand between words.
type Token struct {
	Kind byte   // of those below, or the character itself
	Text string // of a word, without quotes, brackets and backslashes; of a comment with its parentheses
}

// Kinds of words.
const (
	Atom    = 'a'
	Quoted  = 'q' // a quoted string, or an atom that would have to be one
	Literal = 'l' // an address literal
	comment = 'c'
)

const specials = `|%!()<>@,;:\".[]`

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// isControl says that c is a control character of ASCII.
func isControl(c byte) bool { return c < 0x20 || c == 0x7f }

// Scan takes an address apart, as Postfix does: it has no errors, and what
// isn't closed ends with the text.
func Scan(s string) []Token {
	var all []Token
	for len(s) > 0 {
		switch c := s[0]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			s = s[1:]
		case c == '(':
			n := CommentLen(s)
			if n == 0 {
				n = len(s)
			}
			all, s = append(all, Token{comment, s[:n]}), s[n:]
		case c == '[' || c == '"':
			kind, end := byte(Quoted), byte('"')
			if c == '[' {
				kind, end = Literal, ']'
			}
			text, rest := word(s[1:], func(c byte) bool { return c == end })
			all, s = append(all, Token{kind, text}), rest[min(1, len(rest)):]
		case c != '\\' && strings.IndexByte(specials, c) >= 0:
			all, s = append(all, Token{Kind: c}), s[1:]
		default:
			text, rest := word(s, func(c byte) bool {
				return c == ' ' || c == '\t' || c == '\r' || c == '\n' || strings.IndexByte(specials, c) >= 0
			})
			all, s = append(all, Token{atomKind(text), text}), rest
		}
	}
	return all
}

// word collects up to where ends says, or to the end. A backslash takes the
// next character as it is; a line end or tab counts as a space.
func word(s string, ends func(byte) bool) (text, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' {
			if i++; i == len(s) {
				break
			}
			c = s[i]
		} else if ends(c) {
			return b.String(), s[i:]
		}
		if c == '\t' || c == '\r' || c == '\n' {
			c = ' '
		}
		b.WriteByte(c)
	}
	return b.String(), ""
}

func atomKind(text string) byte {
	for i := range len(text) {
		if c := text[i]; c == ' ' || isControl(c) || strings.IndexByte(specials, c) >= 0 {
			return Quoted
		}
	}
	return Atom
}

// CommentLen is the length of the comment that s begins with; 0 where it has no end.
func CommentLen(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// Join spells tokens without any quoting.
func Join(all []Token) string {
	var b strings.Builder
	for i, t := range all {
		switch t.Kind {
		case Literal:
			b.WriteString("[" + t.Text + "]")
		case Atom, Quoted, comment:
			b.WriteString(t.Text)
		default:
			b.WriteByte(t.Kind)
		}
		if i+1 < len(all) && t.isWord() && all[i+1].isWord() {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

func (t Token) isWord() bool { return t.Kind >= 'a' && t.Kind <= 'z' }

// Quote spells an address that Join spelt so that Scan reads it: its
// local-part quoted where it must be. A source route stays as it is.
func Quote(s string) string {
	route := ""
	if strings.HasPrefix(s, "@") {
		if i := strings.IndexByte(s, ':'); i >= 0 {
			route, s = s[:i+1], s[i+1:]
		}
	}
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		at = len(s)
	}
	if IsDotString(s[:at]) {
		return route + s
	}
	return route + quoteLocal(s[:at]) + s[at:]
}

// CutToken cuts off the next word of a command's arguments, which white space
// ends unless it is quoted or in brackets. closed is false where a quote or
// bracket has no end.
func CutToken(s string) (token, rest string, closed bool) {
	for len(s) > 0 && isSpace(s[0]) {
		s = s[1:]
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case isSpace(c):
			rest = s[i:]
			for len(rest) > 0 && isSpace(rest[0]) {
				rest = rest[1:]
			}
			return s[:i], rest, true
		case c == '<' || c == '"':
			n, closed := nested(s[i:])
			if i += n - 1; !closed {
				return s, "", false
			}
		case c == ':' && (strings.EqualFold(s[:i], "to") || strings.EqualFold(s[:i], "from")):
			return s[:i+1], s[i+1:], true
		case c == '\\':
			i++
		}
	}
	return s, "", true
}

// nested is the length of what begins with a quote or bracket, up to the one
// that closes it.
func nested(s string) (n int, closed bool) {
	closing := func(c byte) byte {
		if c == '<' {
			return '>'
		}
		return c
	}
	wanted := []byte{closing(s[0])}
	for i := 1; i < len(s); i++ {
		last := wanted[len(wanted)-1]
		switch c := s[i]; {
		case c == '\\':
			i++
		case c == last:
			if wanted = wanted[:len(wanted)-1]; len(wanted) == 0 {
				return i + 1, true
			}
		case c == '"' || c == '<' && last == '>':
			wanted = append(wanted, closing(c))
		}
	}
	return len(s), false
}

// parseAddress finds the address in a text that may be one of RFC 822's, with
// comments, phrases and groups, and returns it without quoting: "" if there is
// none. beside says that there was more than the address.
func parseAddress(text string) (address string, beside bool, err error) {
	g := grouper{tokens: Scan(text), at: -1}
	g.run()
	if g.addresses > 1 {
		return "", false, errMany
	}
	return g.address, g.beside, nil
}

// grouper reads tokens from right to left, which is how groups, brackets and
// phrases are found easily.
type grouper struct {
	tokens    []Token
	pending   []Token // of the address that is read, last first
	at        int
	addresses int
	address   string
	beside    bool
}

// end ends the address that was read, if one was.
func (g *grouper) end() {
	if len(g.pending) == 0 {
		return
	}
	var b strings.Builder
	for i := len(g.pending) - 1; i >= 0; i-- {
		b.WriteString(Join(g.pending[i : i+1]))
	}
	if g.addresses == 0 {
		g.address = b.String()
	}
	g.addresses++
	g.pending = g.pending[:0]
}

// skip goes left up to one of some kinds; what it passes is no address.
func (g *grouper) skip(kinds string) {
	for ; g.at >= 0 && strings.IndexByte(kinds, g.tokens[g.at].Kind) < 0; g.at-- {
		g.beside = g.beside || g.tokens[g.at].Kind != '<' && g.tokens[g.at].Kind != '>'
	}
}

func (g *grouper) run() {
	wordFits, group := true, false // a word may come next; inside of a group
	for g.at = len(g.tokens) - 1; g.at >= 0; {
		t := g.tokens[g.at]
		switch {
		case t.Kind == comment:
			g.beside = true
		case t.Kind == ';':
			g.end()
			g.beside, group, wordFits = true, true, true
		case t.Kind == ':' && group:
			g.end()
			g.skip(",")
			continue
		case t.Kind == '>':
			g.beside = g.beside || len(g.pending) > 0
			g.end()
			g.bracketed()
			g.skip(">;,:")
			wordFits = true
			continue
		case t.isWord():
			if !wordFits {
				g.end()
				g.beside = true
			}
			g.pending, wordFits = append(g.pending, t), false
		case t.Kind == ',':
			g.end()
			g.beside, wordFits = true, true
		default:
			g.pending, wordFits = append(g.pending, t), true
		}
		g.at--
	}
	g.end()
}

// bracketed reads what stands between ">" and the "<" before it.
func (g *grouper) bracketed() {
	for g.at--; g.at >= 0 && g.tokens[g.at].Kind != '<'; g.at-- {
		if g.tokens[g.at].Kind == comment {
			g.beside = true
		} else {
			g.pending = append(g.pending, g.tokens[g.at])
		}
	}
	g.end()
}

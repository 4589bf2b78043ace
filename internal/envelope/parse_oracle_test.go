package envelope

import (
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// The oracle reads paths by another way than parse.go: it cuts the text into
// tokens by regular expressions first and looks at the tokens as a whole. It is
// slow and keeps everything.

var (
	pathToken = regexp.MustCompile(`(?s)\\.|"(?:[^"\\]|\\.)*"|.`)
	addrToken = regexp.MustCompile(`(?s)\\.|"(?:[^"\\]|\\.)*"|\[[^\]]*\]|.`)
	escaped   = regexp.MustCompile(`(?s)\\(.)`)
	atextual  = regexp.MustCompile("(?s)^[A-Za-z0-9!#$%&'*+/=?^_`{|}~\\x{80}-\\x{10FFFF}-]$")
	control   = regexp.MustCompile(`[\x00-\x1f\x7f]`)
	hostLabel = regexp.MustCompile(`^[A-Za-z0-9_\x{80}-\x{10FFFF}](?:[A-Za-z0-9_\x{80}-\x{10FFFF}-]*[A-Za-z0-9_\x{80}-\x{10FFFF}])?$`)
	numeric   = regexp.MustCompile(`^[0-9.]*$`)
)

func oracle(arg string) (m Mailbox, params string, ok bool) {
	arg = strings.TrimLeft(arg, " \t")
	tokens, depth := pathToken.FindAllString(arg, -1), 0
	end := len(tokens)
	for i, token := range tokens {
		switch token {
		case `\`, `"`:
			return m, "", false
		case "<":
			depth++
		case ">":
			depth = max(depth-1, 0)
		case " ", "\t":
			if depth == 0 && i < end {
				end = i
			}
		}
		if end == i {
			break
		}
	}
	if end == len(tokens) && depth > 0 || end == 0 {
		return m, "", false
	}
	path := tokens[:end]
	params = strings.Trim(strings.Join(tokens[end:], ""), " \t")
	text := strings.Join(path, "")
	bracketed := path[0] == "<"
	if bracketed && !strings.HasSuffix(text, ">") { // an escaped one does, as for Postfix
		return m, "", false
	}
	if bracketed {
		text = text[1 : len(text)-1]
	} else if path[end-1] == ">" {
		text = text[:len(text)-1]
	}
	text = strings.Trim(text, " \t")
	if route, rest, found := strings.Cut(text, ":"); found && strings.HasPrefix(route, "@") {
		text = strings.Trim(rest, " \t")
	}
	if text == "" {
		return m, params, bracketed
	}
	m, ok = oracleAddress(text)
	return m, params, ok
}

// word is a token that counts: what it says, and what it is: 'a'tom, 'q'uoted,
// 'l'iteral, or '@', '.' or ':'. gap says that white space stands before it.
type word struct {
	text string
	kind byte
	gap  bool
	long bool // a quoted string, not a quoted-pair
}

func oracleWords(s string) (words []word, ok bool) {
	gap := false
	for s != "" {
		if s[0] == '(' {
			n := oracleComment(s)
			if n == 0 {
				return nil, false
			}
			s, gap = s[n:], true
			continue
		}
		token := addrToken.FindString(s)
		s = s[len(token):]
		w := word{text: token, kind: 'a', gap: gap, long: len(token) > 1 && token[0] == '"'}
		switch {
		case token == " ", token == "\t":
			gap = true
			continue
		case token == "@", token == ".", token == ":":
			w.kind = token[0]
		case len(token) > 1 && token[0] == '\\', len(token) > 1 && token[0] == '"':
			w.kind = 'q'
			if token[0] == '"' {
				w.text = escaped.ReplaceAllString(token[1:len(token)-1], "$1")
			} else {
				w.text = token[1:]
			}
			if control.MatchString(w.text) {
				return nil, false
			}
		case len(token) > 1 && token[0] == '[':
			w.kind = 'l'
		case !atextual.MatchString(token):
			return nil, false
		}
		words, gap = append(words, w), false
	}
	return words, true
}

// oracleComment returns the length of the comment that s begins with, or 0.
func oracleComment(s string) int {
	depth := 0
	for i, token := 0, ""; i < len(s); i += len(token) {
		token = s[i : i+1]
		switch {
		case token == `\`:
			token = s[i:min(i+2, len(s))]
		case token == "(":
			depth++
		case token == ")":
			depth--
		}
		if depth > maxDepth {
			return 0
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(s)
}

func oracleAddress(s string) (m Mailbox, ok bool) {
	words, ok := oracleWords(s)
	if !ok || len(s) > 2*(maxLocal+maxDomain) || !utf8.ValidString(s) {
		return m, false
	}
	at := -1
	for i, w := range words {
		if w.kind == '@' {
			at = i
		}
		if w.kind == ':' && at >= 0 {
			return m, false
		}
		separates := func(w word) bool { return w.kind == '@' || w.kind == '.' || w.kind == ':' }
		if i > 0 && (w.gap || words[i-1].long) && w.kind != 'l' && !separates(w) && !separates(words[i-1]) {
			return m, false
		}
		if w.kind == 'l' && (at < 0 || at != i-1 || i != len(words)-1) {
			return m, false
		}
	}
	local, domain := words, []word(nil)
	if at >= 0 {
		local, domain = words[:at], words[at+1:]
	}
	for _, w := range local {
		m.Local += w.text
	}
	for _, w := range domain {
		if w.kind == 'q' {
			return m, false
		}
		m.Domain += w.text
	}
	if m.Local == "" || len(m.Local) > maxLocal {
		return m, false
	}
	if at >= 0 && !strings.HasPrefix(m.Domain, "[") {
		m.Domain = strings.TrimSuffix(m.Domain, ".")
		return m, oracleDomain(m.Domain) || oracleLiteral("["+m.Domain+"]")
	}
	return m, at < 0 || oracleLiteral(m.Domain)
}

func oracleDomain(s string) bool {
	if len(s) > maxDomain || numeric.MatchString(s) {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if len(label) > 63 || !hostLabel.MatchString(label) {
			return false
		}
	}
	return true
}

func oracleLiteral(s string) bool {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if tag := "ipv6:"; len(s) > len(tag) && strings.EqualFold(s[:len(tag)], tag) {
		a, err := netip.ParseAddr(s[len(tag):])
		return err == nil && a.Is6() && a.Zone() == ""
	}
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is4()
}

func checkOracle(t *testing.T, arg string) {
	t.Helper()
	got, params, err := ParseReversePath(arg)
	want, wantParams, ok := oracle(arg)
	if (err == nil) != ok || ok && (got.Mailbox != want || params != wantParams) {
		t.Fatalf("%q: got %+v, %q, %v; the oracle says %+v, %q, %v", arg, got.Mailbox, params, err, want, wantParams, ok)
	}
}

// pieces are what addresses, good and bad, are made of.
var pieces = []string{
	"<", ">", "<", ">", "@", "@", ".", `"`, `\`, "(", ")", "[", "]", ":", " ", "\t", "-", ",", ";", "a", "bob", "b.example", "corp.example",
	"[192.0.2.1]", "[IPv6:2001:db8::1]", `"q q"`, "(c)", "@r.example:", "ü", "\xff", "\x00", "\r", "%", "!", "+x", "127", "SIZE=1", "1.2.3.4", "_", "é.example", `"`, `""`, ".",
}

// TestParseAgainstOracle makes paths at random; the seed is fixed.
func TestParseAgainstOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(25, 7))
	for range 4_000 {
		var b strings.Builder
		for range 1 + rnd.IntN(9) {
			b.WriteString(pieces[rnd.IntN(len(pieces))])
		}
		checkOracle(t, b.String())
		checkOracle(t, "<"+b.String()+"@corp.example>")
	}
}

// FuzzParseOracle compares the parser with the oracle.
func FuzzParseOracle(f *testing.F) {
	for _, s := range []string{
		"<a@b.example> SIZE=1", `<"a b"@c.example>`, "<@x:a@b.example>", `<a\@b@c.example>`, "<a@[1.2.3.4]>", `a\\>`, `<"a." b@c.example>`,
		"<a@[\t]@b.example>", `<a\ b@c.example>`, "<a@ [1.2.3.4] >", "<>", "< >x", `"a>b" c`, "<a(\\))@b>", "a@b>", "<a@b.example.>", "<ü@ü.example>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		if len(arg) <= 300 { // the oracle is slow
			checkOracle(t, arg)
		}
	})
}

package envelope

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxLocal  = 2048 // an operator's; a client's are as long as its commands may be
	maxDomain = 255
)

var (
	errNoPath     = errors.New("no path")
	errUnbalanced = errors.New("quote or bracket not closed")
	errNull       = errors.New("null path not allowed here")
	errLocal      = errors.New("bad local-part")
	errDomain     = errors.New("bad domain")
	errLiteral    = errors.New("bad address literal")
	errJunk       = errors.New("text beside the address")
	errMany       = errors.New("more than one address")
	errUTF8       = errors.New("not UTF-8 text")
)

// ParseReversePath reads the text after "MAIL FROM:". params is what follows
// the path. It is as lenient as a Postfix without strict_rfc821_envelopes:
// brackets may lack, source routes are cut off (RFC 5321 §4.1.1.3), comments,
// spaces around "@" and "." and one dot at the domain's end don't count. Whether
// there can be such a local-part and such a domain is for the policy to judge.
func ParseReversePath(arg string) (p ReversePath, params string, err error) {
	_, p.Dot, p.Mailbox, params, err = readPath(arg)
	return p, params, err
}

// ParseForwardPath reads the text after "RCPT TO:", as ParseReversePath does;
// the null path is an error.
func ParseForwardPath(arg string) (p ForwardPath, params string, err error) {
	path, dot, m, params, err := readPath(arg)
	if err == nil && path == "" {
		err = errNull
	}
	return ForwardPath{Mailbox: m, Dot: dot}, params, err
}

// ParseVerify reads VRFY's argument: a path that may hold spaces, and where
// Postfix minds neither a quote nor a bracket that isn't closed.
func ParseVerify(arg string) (p ForwardPath, err error) {
	if !utf8.ValidString(arg) || strings.Contains(arg, "\x00") {
		return p, errUTF8
	}
	path, _, err := parseAddress(unroute(arg))
	if err == nil && path == "" {
		err = errNull
	}
	if err == nil {
		p.Mailbox, p.Dot, err = split(path)
	}
	return p, err
}

// ParseMailbox reads "local@domain" as an operator writes it: no brackets, no
// source route, a local-part and a domain are a must.
func ParseMailbox(s string) (Mailbox, error) {
	token, rest, closed := CutToken(s)
	if token == "" || rest != "" || !closed || !utf8.ValidString(s) || strings.ContainsAny(s, "<>\r\n\x00") {
		return Mailbox{}, errJunk
	}
	path, beside, err := parseAddress(s)
	if err == nil && beside {
		err = errJunk
	}
	if err != nil {
		return Mailbox{}, err
	}
	m, _, err := split(path)
	switch {
	case err != nil:
	case m.Local == "" || len(m.Local) > maxLocal:
		err = errLocal
	case !ValidDomain(m.Domain) && !isLiteral(m.Domain):
		err = errDomain
	}
	if err != nil {
		return Mailbox{}, err
	}
	return m, nil
}

// readPath reads a path and what follows it.
func readPath(arg string) (path string, dot bool, m Mailbox, params string, err error) {
	token, params, closed := CutToken(arg)
	if token == "" {
		return "", false, m, "", errNoPath
	}
	if !closed {
		return "", false, m, "", errUnbalanced
	}
	if !utf8.ValidString(token) || strings.Contains(token, "\x00") {
		return "", false, m, "", errUTF8
	}
	path, _, err = parseAddress(unroute(token))
	if err == nil && path != "" {
		m, dot, err = split(path)
	}
	return path, dot, m, params, err
}

// unroute takes a path out of its brackets and its source route.
func unroute(token string) string {
	if token[0] == '<' && token[len(token)-1] == '>' && len(token) > 1 {
		token = token[1 : len(token)-1]
	}
	if strings.HasPrefix(token, "@") {
		if _, behind, found := strings.Cut(token, ":"); found {
			return behind
		}
	}
	return token
}

// Lax says that a path, the argument of ParseReversePath, isn't as RFC 5321
// has it: it lacks its brackets, holds a comment or a phrase, or nobody's
// name.
func Lax(arg string) bool {
	token, _, _ := CutToken(arg)
	if token == "" || token[0] != '<' {
		return true
	}
	path, beside, _ := parseAddress(unroute(token))
	return beside || strings.HasPrefix(path, "@")
}

// split takes an address in its internal form apart. A domain that could not
// stand in a command as it is, is none.
func split(path string) (m Mailbox, dot bool, err error) {
	at := strings.LastIndexByte(path, '@')
	if at < 0 || at+1 == len(path) {
		return Mailbox{Local: path}, false, nil
	}
	m = Mailbox{Local: path[:at], Domain: path[at+1:]}
	if n := len(m.Domain); n > 1 && m.Domain[n-1] == '.' && m.Domain[n-2] != '.' {
		m.Domain, dot = m.Domain[:n-1], true
	}
	inner, literal := m.Domain, false
	if inside, ok := strings.CutPrefix(m.Domain, "["); ok {
		if inner, literal = strings.CutSuffix(inside, "]"); !literal {
			return Mailbox{}, false, errLiteral
		}
	}
	for i := range len(inner) {
		if c := inner[i]; !isAtext(c) && c != '.' && !(literal && c == ':') {
			return Mailbox{}, false, errDomain
		}
	}
	return m, dot, nil
}

// ValidDomain says that s is a host name as Postfix's valid_hostname takes it:
// labels of 1 to 63 letters, digits, hyphens and underscores, no hyphen at a
// label's end, and not all digits and dots. Octets above 127 count as letters.
func ValidDomain(s string) bool {
	if s == "" || len(s) > maxDomain {
		return false
	}
	letters := false
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			switch c := label[i]; {
			case c >= '0' && c <= '9':
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= 0x80, c == '-', c == '_':
				letters = true
			default:
				return false
			}
		}
	}
	return letters
}

// ValidHostname is ValidDomain of a name in ASCII.
func ValidHostname(s string) bool {
	return ValidDomain(s) && strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// PlainLocal says that a local-part is one of those that nearly all are: letters
// and digits of ASCII, with "-", "_" and single dots between them.
func PlainLocal(s string) bool {
	dot := true
	for i := range len(s) {
		switch c := s[i]; {
		case c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_':
			dot = false
		case c == '.' && !dot:
			dot = true
		default:
			return false
		}
	}
	return !dot && len(s) <= 64
}

// Unseen says that a character, in an address that somebody has written into a list, is a
// space, a control, a mark of the text's direction or encoding, or none at all: nobody
// means it, and with it the address is another one. The joiners, by which some scripts
// tell words apart, are seen.
func Unseen(r rune) bool {
	switch r {
	case '\u200c', '\u200d':
		return false
	case utf8.RuneError:
		return true
	}
	return unicode.IsSpace(r) || unicode.In(r, unicode.Cc, unicode.Cf)
}

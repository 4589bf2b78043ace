package envelope

import (
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Lengths that no address in use comes near. RFC 5321 §4.5.3.1 wants 64 and
// 255; long local-parts exist (VERP), long domains don't.
const (
	maxLocal  = 256
	maxDomain = 255
	maxDepth  = 16 // nested comments
)

var (
	errNoPath     = errors.New("no path")
	errUnbalanced = errors.New("quote or bracket not closed")
	errNull       = errors.New("null path not allowed here")
	errLocal      = errors.New("bad local-part")
	errDomain     = errors.New("bad domain")
	errLiteral    = errors.New("bad address literal")
	errJunk       = errors.New("text beside the address")
	errTooLong    = errors.New("address too long")
)

// ParseReversePath reads the text behind "MAIL FROM:". params is what follows
// the path, trimmed. It is as lenient as a Postfix without
// strict_rfc821_envelopes: brackets may lack, source routes are cut off (RFC
// 5321 §4.1.1.3), comments, spaces around "@" and "." and one dot at the
// domain's end don't count. For the policy to judge are: an absent domain, an
// IPv4 address in its place, a local-part that begins with "-", and octets above
// 127, which pass when they are UTF-8.
func ParseReversePath(arg string) (p ReversePath, params string, err error) {
	path, params, err := cutPath(arg)
	if err != nil {
		return p, "", err
	}
	if path == "" {
		return p, params, nil
	}
	p.Mailbox, p.Dot, err = parseAddress(path)
	return p, params, err
}

// ParseForwardPath reads the text behind "RCPT TO:", as ParseReversePath does;
// the null path is an error.
func ParseForwardPath(arg string) (p ForwardPath, params string, err error) {
	path, params, err := cutPath(arg)
	if err != nil {
		return p, "", err
	}
	if path == "" {
		return p, "", errNull
	}
	p.Mailbox, p.Dot, err = parseAddress(path)
	return p, params, err
}

// ParseMailbox reads "local@domain" as an operator writes it: no brackets, no
// source route, a domain is a must.
func ParseMailbox(s string) (Mailbox, error) {
	m, _, err := parseAddress(s)
	if err == nil && m.Domain == "" {
		err = errDomain
	}
	if err != nil {
		return Mailbox{}, err
	}
	return m, nil
}

// cutPath splits a command's argument at the first space that is neither
// quoted nor in brackets, and takes the path out of its brackets and its
// source route. An empty path stands for "<>".
func cutPath(arg string) (path, params string, err error) {
	arg = strings.TrimLeft(arg, " \t")
	if arg == "" {
		return "", "", errNoPath
	}
	n, closed, err := pathLen(arg)
	if err != nil {
		return "", "", err
	}
	path, params = arg[:n], strings.Trim(arg[n:], " \t")
	bracketed := path[0] == '<'
	switch {
	case bracketed && path[len(path)-1] != '>':
		return "", "", errJunk // <a@b>c
	case bracketed:
		path = path[1 : len(path)-1]
	case closed:
		path = path[:len(path)-1]
	}
	path = strings.Trim(path, " \t")
	if strings.HasPrefix(path, "@") {
		if _, behind, found := strings.Cut(path, ":"); found {
			path = strings.Trim(behind, " \t")
		}
	}
	if path == "" && !bracketed {
		return "", "", errNoPath
	}
	return path, params, nil
}

// pathLen finds the path's end in arg, and says whether a ">" stands there that
// is neither quoted nor escaped.
func pathLen(arg string) (n int, closed bool, err error) {
	var quoted bool
	var depth int
	for i := 0; i < len(arg); i++ {
		c := arg[i]
		if (c == ' ' || c == '\t') && !quoted && depth == 0 {
			return i, closed, nil
		}
		closed = false
		switch {
		case c == '\\':
			i++
			if i == len(arg) {
				return 0, false, errUnbalanced
			}
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '<':
			depth++
		case c == '>':
			depth, closed = max(0, depth-1), true
		}
	}
	if quoted || depth > 0 {
		return 0, false, errUnbalanced
	}
	return len(arg), closed, nil
}

// parseAddress reads an addr-spec. The domain stands behind the last "@" that
// isn't quoted; an "@" before it is part of the local-part, and so is a ":". dot
// says that a dot followed the domain.
func parseAddress(s string) (m Mailbox, dot bool, err error) {
	if len(s) > 2*(maxLocal+maxDomain) {
		return Mailbox{}, false, errTooLong
	}
	if !utf8.ValidString(s) {
		return Mailbox{}, false, errLocal
	}
	a := addrScanner{rest: s}
	local, err := a.local()
	if err != nil {
		return Mailbox{}, false, err
	}
	var domain string
	if at := a.lastAt; at >= 0 {
		domain, dot, err = parseDomain(local[at+1:], a.literal)
		if err != nil {
			return Mailbox{}, false, err
		}
		local = local[:at]
	}
	switch {
	case local == "":
		return Mailbox{}, false, errLocal
	case len(local) > maxLocal:
		return Mailbox{}, false, errTooLong
	}
	return Mailbox{Local: local, Domain: domain}, dot, nil
}

// addrScanner takes the quoting, the comments and the folding spaces out of
// an addr-spec.
type addrScanner struct {
	rest    string
	out     []byte
	lastAt  int  // index in out of the last "@" outside of quotes, -1 without
	literal bool // what stands behind lastAt is an address literal
	gap     bool // white space or a comment since the last octet
	word    bool // the last octet is of a word: no "@", "." or ":" that separates words
	string  bool // the last octet ended a quoted string
	quoted  bool // a quoted string stands behind lastAt
}

func (a *addrScanner) local() (string, error) {
	a.lastAt = -1
	for len(a.rest) > 0 {
		c := a.rest[0]
		a.rest = a.rest[1:]
		var err error
		switch {
		case c == ' ' || c == '\t':
			a.gap = true
		case c == '(':
			a.gap = true
			err = a.comment()
		case c == '"':
			err = a.quotedString()
		case c == '[':
			err = a.addressLiteral()
		default:
			err = a.plain(c)
		}
		if err != nil {
			return "", err
		}
	}
	if a.quoted && a.lastAt >= 0 {
		return "", errDomain
	}
	return string(a.out), nil
}

// plain takes one octet of an atom, a dot, an "@" or a quoted-pair.
func (a *addrScanner) plain(c byte) error {
	word := c != '@' && c != '.' && c != ':'
	switch {
	case c == '@':
		if a.literal {
			return errLiteral
		}
		a.lastAt, a.quoted = len(a.out), false
	case c == '\\':
		if a.rest == "" || isControl(a.rest[0]) {
			return errLocal
		}
		c, a.rest = a.rest[0], a.rest[1:]
		a.quoted = true
	case c == ':' && a.lastAt >= 0, word && !isAtext(c):
		return errLocal
	}
	if err := a.follow(word); err != nil {
		return err
	}
	a.out = append(a.out, c)
	return nil
}

// follow says that a word or a separator comes next: white space may not stand
// between two words, and nothing behind an address literal.
func (a *addrScanner) follow(word bool) error {
	switch {
	case a.literal:
		return errLiteral
	case (a.gap || a.string) && a.word && word:
		return errJunk
	}
	a.gap, a.word, a.string = false, word, false
	return nil
}

func (a *addrScanner) quotedString() error {
	if err := a.follow(true); err != nil {
		return err
	}
	a.quoted = true
	for i := 0; i < len(a.rest); i++ {
		c := a.rest[i]
		if c == '"' {
			a.rest, a.string = a.rest[i+1:], true
			return nil
		}
		if c == '\\' {
			i++
			if i == len(a.rest) {
				break
			}
			c = a.rest[i]
		}
		if isControl(c) {
			return errLocal
		}
		a.out = append(a.out, c)
	}
	return errUnbalanced
}

// comment skips to the end of a comment whose "(" was read, which may be the
// end of all.
func (a *addrScanner) comment() error {
	depth := 1
	for i := 0; i < len(a.rest); i++ {
		switch a.rest[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth > maxDepth {
			return errTooLong
		}
		if depth == 0 {
			a.rest = a.rest[i+1:]
			return nil
		}
	}
	a.rest = ""
	return nil
}

// addressLiteral takes everything up to "]"; it must follow "@" at once.
func (a *addrScanner) addressLiteral() error {
	end := strings.IndexByte(a.rest, ']')
	if end < 0 {
		return errUnbalanced
	}
	if a.lastAt != len(a.out)-1 || a.lastAt < 0 {
		return errLiteral
	}
	a.out = append(append(append(a.out, '['), a.rest[:end]...), ']')
	a.rest = a.rest[end+1:]
	a.literal, a.gap = true, false
	return nil
}

func isControl(c byte) bool { return c < 0x20 || c == 0x7f }

// parseDomain checks what stands behind the "@", and takes one dot off its end.
func parseDomain(s string, literal bool) (domain string, dot bool, err error) {
	if literal {
		if !validLiteral(s) {
			return "", false, errLiteral
		}
		return s, false, nil
	}
	s, dot = strings.CutSuffix(s, ".")
	if !ValidDomain(s) && !validLiteral("["+s+"]") {
		return "", false, errDomain
	}
	return s, dot, nil
}

// validLiteral says that s is an address literal, RFC 5321 §4.1.3, of IPv4 or
// IPv6 without a zone.
func validLiteral(s string) bool {
	if len(s) < 2 || s[0] != '[' || s[len(s)-1] != ']' {
		return false
	}
	s = s[1 : len(s)-1]
	const tag = "IPv6:"
	if len(s) > len(tag) && strings.EqualFold(s[:len(tag)], tag) {
		ip, err := netip.ParseAddr(s[len(tag):])
		return err == nil && ip.Is6() && ip.Zone() == ""
	}
	ip, err := netip.ParseAddr(s)
	return err == nil && ip.Is4()
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

package envelope

import (
	"strings"
	"unicode"
)

// Mailbox is RFC 5321 §4.1.2's Mailbox, taken apart. Local is the local-part
// without its quoting: two spellings of one local-part are one Mailbox. Domain
// is a domain or an address literal as the client wrote it; it is "" only
// where a path may lack it. Local may be "" too, of <@example.org>.
type Mailbox struct {
	Local  string
	Domain string
}

// ReversePath is the argument of MAIL FROM. Its zero value is the null
// reverse-path, <>.
type ReversePath struct {
	Mailbox
	Dot bool // the client wrote a dot after the domain; the policy and a live primary see it
}

// Null says that the path is <>.
func (p ReversePath) Null() bool { return p.Mailbox == Mailbox{} }

// ForwardPath is the argument of RCPT TO.
type ForwardPath struct {
	Mailbox
	Dot bool // as in ReversePath
}

// Postmaster says that the path is <Postmaster> without a domain, which every
// server must accept (RFC 5321 §4.5.1).
func (p ForwardPath) Postmaster() bool {
	return p.Domain == "" && len(p.Local) == len("postmaster") && strings.EqualFold(p.Local, "postmaster")
}

// String spells the mailbox as it goes into a command: the local-part quoted
// where, and only where, RFC 5321 §4.1.2 demands it. It holds neither CR, LF nor
// NUL, so it can't end a command.
func (m Mailbox) String() string {
	local := m.Local
	if !IsDotString(local) && m != (Mailbox{}) {
		local = quoteLocal(local)
	}
	if m.Domain == "" {
		return local
	}
	return local + "@" + m.Domain
}

// Hostile says that the mailbox holds control characters. Postfix takes them;
// we judge such a mailbox and never let it in: no other server, terminal or log
// need be as robust.
func (m Mailbox) Hostile() bool { return strings.ContainsFunc(m.Local, unicode.IsControl) }

// IsDotString says that s is a Dot-string of atoms; octets above 127 count as
// atom text (RFC 6531 §3.3).
func IsDotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		if s[i] != '.' && !isAtext(s[i]) {
			return false
		}
	}
	return true
}

func isAtext(c byte) bool {
	switch {
	case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= 0x80:
		return true
	}
	return strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// quoteLocal writes a Quoted-string. What could end a command becomes "?".
func quoteLocal(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\r' || c == '\n' || c == 0:
			b.WriteByte('?')
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

package policy

import (
	"fmt"
	"strings"
)

// verifyHeader applies a check to the message's header. Why it fails is told only
// where the primary tells it.
func (r *aclRun) verifyHeader(check func([]headerField) string) outcome {
	why := check(r.aclState.header.fields())
	if why == "" {
		return aclOK
	}
	if r.acl.Details {
		r.user = "Rejected after DATA: " + why
	} else {
		r.verifyMessage = why
	}
	return aclFail
}

// headerNames wants names in ASCII, without white space before the colon.
func headerNames(fields []headerField) string {
	for _, f := range fields {
		if strings.ContainsFunc(f.raw, func(c rune) bool { return c < 33 || c > 126 }) {
			return "Invalid character in header \"" + f.raw + "\" found"
		}
	}
	return ""
}

// addressFields are those that must hold addresses, and who may have an unqualified
// one there: hosts that may as senders, as recipients, or either.
var addressFields = map[string]string{"from": "s", "sender": "s", "resent-from": "s", "resent-sender": "s", "reply-to": "sr",
	"to": "r", "cc": "r", "bcc": "r", "resent-to": "r", "resent-cc": "r", "resent-bcc": "r"}

// headerSyntax wants addresses where addresses belong.
func (r *aclRun) headerSyntax(fields []headerField) string {
	for _, f := range fields {
		who := addressFields[f.name]
		if who == "" {
			continue
		}
		m := mailboxReader{acl: r.acl, mayGroup: true}
		why, at := m.list(f.value+"\n", func() bool {
			return strings.Contains(who, "s") && r.isHost(r.acl.UnqualifiedSender) || strings.Contains(who, "r") && r.isHost(r.acl.UnqualifiedRecipient)
		})
		if why == "" {
			continue
		}
		at = strings.TrimRight(at, cSpace)
		verb := "is"
		if len(at) > 1024 {
			at, verb = at[:1024], "begins"
		}
		return escaped(fmt.Sprintf("%s: failing address in \"%s:\" header %s: %s", why, strings.TrimRight(f.raw, cSpace), verb, at))
	}
	return ""
}

// cSpace is what C's isspace takes for white space.
const cSpace = " \t\n\v\f\r"

// escaped spells what can't be printed as C does.
func escaped(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\t' || c >= 32 && c < 127:
			b.WriteByte(c)
		case strings.IndexByte("\n\r\b\v\f", c) >= 0:
			b.WriteByte('\\')
			b.WriteByte("nrbvf"[strings.IndexByte("\n\r\b\v\f", c)])
		default:
			fmt.Fprintf(&b, "\\%03o", c)
		}
	}
	return b.String()
}

// mailboxReader reads the mailboxes of a field with Exim's tolerance: RFC 5322 §3.4,
// but dots anywhere in phrases and local-parts, source routes without brackets, and
// no control characters.
type mailboxReader struct {
	acl      *acl
	mayGroup bool // a group may begin
	inGroup  bool // one has begun
	s        string
	i        int
	t        []byte // what is read of the address
	comment  int    // where the last comment may begin
}

// list says what is wrong with a field, and with which of its mailboxes.
func (m *mailboxReader) list(s string, unqualified func() bool) (why, at string) {
	s, _, _ = strings.Cut(s, "\x00")
	for s = strings.TrimLeft(s, cSpace); s != ""; {
		end := mailboxEnd(s)
		qualified, why := m.read(s[:end])
		if why == "" && !qualified && !unqualified() {
			why = "unqualified address not permitted"
		}
		if why != "" && why != emptyAddress {
			return why, s[:end]
		}
		s = strings.TrimLeft(s[min(end+1, len(s)):], cSpace)
	}
	return "", ""
}

// emptyAddress is no mistake between commas.
const emptyAddress = "empty address"

// mailboxEnd is the index of the comma that ends the first mailbox of s, or its length.
func mailboxEnd(s string) int {
	routed := s[0] == '@'
	open := 0 // brackets and routes in which a comma ends nothing
	if routed {
		open = 1
	}
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == ',' && open <= 0:
			return i
		case c == '\\' && i+1 < len(s):
			i += 2
			continue
		case c == '"':
			i = quotedEnd(s, i)
			continue
		case c == '(':
			i = commentEnd(s, i)
			continue
		case c == '<':
			routed = i+1 < len(s) && s[i+1] == '@'
			if open = 1; routed {
				open = 2
			}
		case c == '>', c == ':' && routed:
			open--
		}
		i++
	}
	return len(s)
}

// quotedEnd is the index after the string that begins at i.
func quotedEnd(s string, i int) int {
	for i++; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
		case s[i] == '"':
			return i + 1
		}
	}
	return len(s)
}

// commentEnd is the index after the comment that begins at i.
func commentEnd(s string, i int) int {
	level := 1
	for i++; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
		case s[i] == '(':
			level++
		case s[i] == ')':
			if level--; level == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}

func (m *mailboxReader) peek() byte {
	if m.i < len(m.s) {
		return m.s[m.i]
	}
	return 0
}

// skip passes white space and comments.
func (m *mailboxReader) skip() {
	m.comment = m.i
	for m.i < len(m.s) {
		m.i += len(m.s[m.i:]) - len(strings.TrimLeft(m.s[m.i:], cSpace))
		if m.peek() != '(' {
			return
		}
		m.i = commentEnd(m.s, m.i)
	}
}

// read reads one mailbox: whether it has a domain, or what is wrong with it.
func (m *mailboxReader) read(s string) (domain bool, why string) {
	m.s, m.i = s, 0
	start, end, domain, why := m.mailbox()
	if why == "" && m.i < len(s) && !m.endGroup() {
		why = m.malformed(m.i)
	}
	if why != "" {
		m.endGroup()
		return false, why
	}
	const longest = 256
	if len(strings.TrimRight(s[start:end], cSpace)) > longest {
		return false, fmt.Sprintf("address is ridiculously long: %s...", m.t[:min(len(m.t), 64)])
	}
	return domain, ""
}

// endGroup takes the semicolon that ends a group.
func (m *mailboxReader) endGroup() bool {
	if !m.inGroup || m.peek() != ';' {
		return false
	}
	m.inGroup, m.mayGroup = false, true
	return true
}

// malformed says that what begins at an index may not stand there.
func (m *mailboxReader) malformed(at int) string {
	return fmt.Sprintf("malformed address: %.32s may not follow %s", cut(m.s[at:], 32), m.s[:at])
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// mailbox reads "local@domain", "phrase <local@domain>", a source route before either,
// and the name of a group before all.
func (m *mailboxReader) mailbox() (start, end int, domain bool, why string) {
	for {
		m.skip()
		start = m.i
		if why = m.local(true); why != "" {
			return
		}
		c := m.peek()
		if c == '@' || c == '<' {
			break
		}
		if c == 0 || c == ';' {
			if len(m.t) == 0 {
				why = emptyAddress
			}
			return start, m.comment, false, why
		}
		for m.peek() != '<' && (!m.mayGroup || m.peek() != ':') {
			if why = m.local(false); why != "" {
				return 0, 0, false, why + ` (expected word or "<")`
			}
		}
		if m.peek() == '<' {
			break
		}
		m.inGroup, m.mayGroup = true, false
		m.i++
	}
	switch {
	case m.peek() == '<':
		return m.bracketed()
	case len(m.t) == 0:
		if why = m.route(); why == "" {
			domain, why = m.addrSpec(0)
		}
		if why == "" && !domain {
			why = "domain missing in source-routed address"
		}
		return start, m.comment, domain, why
	}
	m.t = append(m.t, '@')
	m.i++
	why = m.domain(true)
	return start, m.comment, true, why
}

// bracketed reads "<local@domain>".
func (m *mailboxReader) bracketed() (start, end int, domain bool, why string) {
	m.i++
	brackets := 1
	for m.acl.ExcessBrackets && m.peek() == '<' {
		if brackets++; brackets > 6 {
			return 0, 0, false, "angle-brackets nested too deep"
		}
		m.i++
	}
	start = m.i
	m.skip()
	routed := m.peek() == '@'
	if routed {
		if why = m.route(); why != "" {
			return
		}
	}
	if domain, why = m.addrSpec('>'); why != "" {
		return
	}
	if routed && !domain {
		return 0, 0, false, "domain missing in source-routed address"
	}
	end = m.i
	for ; brackets > 0; brackets-- {
		switch c := m.peek(); c {
		case '>':
			m.i++
		case 0:
			return 0, 0, false, "'>' missing at end of address"
		default:
			m.i++
			return 0, 0, false, m.malformed(m.i - 1)
		}
	}
	m.skip()
	return start, end, domain, ""
}

// addrSpec reads a local-part and, unless end follows that, a domain.
func (m *mailboxReader) addrSpec(end byte) (domain bool, why string) {
	if why = m.local(false); why != "" || m.peek() == end {
		return false, why
	}
	if m.peek() != '@' {
		return false, fmt.Sprintf(`"@" or "." expected after "%s"`, m.t)
	}
	m.t = append(m.t, '@')
	m.i++
	return true, m.domain(false)
}

// atom says that an octet may stand in a word.
func atom(c byte) bool { return c >= 32 && strings.IndexByte(" ()<>@,;:\\\".[]\x7f", c) < 0 }

// local reads words with dots between: a local-part, or a piece of a phrase.
func (m *mailboxReader) local(mayBeEmpty bool) (why string) {
	m.t = m.t[:0]
	for {
		before := len(m.t)
		m.skip()
		if m.peek() == '"' {
			end := quotedEnd(m.s, m.i)
			word := m.s[m.i:end]
			m.i = end
			if !complete(word) {
				return "unmatched doublequote in local part"
			}
			m.t = append(m.t, word...)
		} else {
			for c := m.peek(); atom(c) || c == '\\'; c = m.peek() {
				m.t = append(m.t, c)
				if m.i++; c == '\\' && m.i < len(m.s) {
					m.t = append(m.t, m.s[m.i])
					m.i++
				}
			}
		}
		m.skip()
		if len(m.t) == before && m.peek() != '.' {
			if before == 0 && !mayBeEmpty {
				return "missing or malformed local part"
			}
			return ""
		}
		if m.peek() != '.' {
			return ""
		}
		for m.peek() == '.' {
			m.t = append(m.t, '.')
			m.i++
		}
	}
}

// complete says that a quoted string has its end.
func complete(word string) bool {
	for i := 1; i < len(word); i++ {
		switch {
		case word[i] == '\\' && i+1 < len(word):
			i++
		case word[i] == '"':
			return true
		}
	}
	return false
}

// route reads a source route, which counts for nothing.
func (m *mailboxReader) route() (why string) {
	commas := false
	for m.peek() == '@' {
		m.i++
		if why = m.domain(false); why != "" {
			return why
		}
		if m.peek() != ',' {
			break
		}
		m.i++
		commas = true
		m.skip()
	}
	switch {
	case m.peek() == ':':
		m.i++
	case commas:
		return "colon expected after route list"
	default:
		return "no local part"
	}
	m.skip()
	return ""
}

// domain reads one. Outside of brackets a literal may be anything.
func (m *mailboxReader) domain(bare bool) (why string) {
	m.skip()
	if m.peek() == '[' {
		return m.literal(bare)
	}
	for first := true; ; first = false {
		before := m.i
		if m.peek() != '-' {
			for c := m.peek(); alnum(c) || c == '-' || c > 127 && m.acl.UTF8Domains; c = m.peek() {
				m.t = append(m.t, c)
				m.i++
			}
		}
		empty := m.i == before
		m.skip()
		switch {
		case empty && m.acl.TrailingDot && !first && m.peek() != '.':
			m.t = m.t[:len(m.t)-1]
			return ""
		case empty:
			return "domain missing or malformed"
		case m.peek() != '.':
			return ""
		}
		m.t = append(m.t, '.')
		m.i++
		m.skip()
	}
}

func alnum(c byte) bool { return c|32 >= 'a' && c|32 <= 'z' || c >= '0' && c <= '9' }

// literal reads "[192.0.2.1]".
func (m *mailboxReader) literal(bare bool) (why string) {
	m.i++
	if tag := m.s[m.i:min(len(m.s), m.i+5)]; strings.EqualFold(tag, "IPv6:") || strings.EqualFold(tag, "IPv4:") {
		m.i += len(tag)
	}
	for c := m.peek(); bare && (c >= 33 && c <= 90 || c >= 94 && c <= 126) || !bare && (c == '.' || c == ':' || c >= '0' && c <= '9' || c|32 >= 'a' && c|32 <= 'f'); c = m.peek() {
		m.i++
	}
	if m.peek() == ']' {
		m.i++
	} else {
		why = "malformed domain literal"
	}
	if !bare && !m.acl.DomainLiterals {
		why = "domain literals not allowed"
	}
	m.skip()
	return why
}

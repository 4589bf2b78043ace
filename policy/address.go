package policy

import (
	"cmp"
	"net/netip"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// addressClass is the kind of domain that an address belongs to.
type addressClass uint8

const (
	classDefault addressClass = iota // not ours
	classLocal
	classVirtualAlias
	classVirtualMailbox
	classRelay
)

// final says that mail for the class ends at the primary.
func (c addressClass) final() bool {
	return c == classLocal || c == classVirtualAlias || c == classVirtualMailbox
}

// address is a mailbox as the restrictions see it: as it was given, and
// resolved as Postfix's trivial-rewrite(8) does.
type address struct {
	raw    string // as given, the local-part without quoting; "" for the null reverse-path
	local  string // resolved and folded
	domain string // likewise; a literal keeps its brackets
	class  addressClass
	routed bool // a routing operator is left in the local-part
	bad    bool // no address that mail could be sent to
}

// key spells the resolved address.
func (a *address) key() string { return a.local + "@" + a.domain }

// domainSet answers whether a domain is listed.
type domainSet struct {
	exact, sub store       // sub holds the names whose subdomains are listed, without the leading dot
	list       []matchItem // an ordered list, which then is all that counts
}

func newDomainSet(domains []string) (d domainSet, dup string, err error) {
	var exact, sub []string
	for _, name := range domains {
		if rest, ok := strings.CutPrefix(fold(name), "."); ok {
			sub = append(sub, rest)
		} else {
			exact = append(exact, fold(name))
		}
	}
	if d.exact, dup, err = newStore(exact); err == nil {
		d.sub, dup, err = newStore(sub)
	}
	return d, dup, err
}

func (d *domainSet) has(domain string) bool {
	if d.exact.find([]byte(domain)) >= 0 {
		return true
	}
	for d.sub.len() > 0 {
		_, rest, ok := strings.Cut(domain, ".")
		if !ok {
			return false
		}
		if domain = rest; d.sub.find([]byte(domain)) >= 0 {
			return true
		}
	}
	return false
}

// resolve finds out which domain an address really goes to, and whether mail
// could be sent there.
func (s *Snapshot) resolve(f *finder, m envelope.Mailbox, utf8 bool) address {
	a := address{raw: m.Local}
	if m.Domain != "" {
		a.raw += "@" + m.Domain
	}
	if isPlain(m) {
		a.local, a.domain = fold(m.Local), fold(s.completed(trimDot(m.Domain)))
	} else {
		all := s.route(f, a.raw)
		at := strings.LastIndexByte(all, '@')
		a.local, a.domain = fold(all[:max(at, 0)]), fold(all[at+1:])
		if at < 0 { // a policy that has no name for its primary
			a.local, a.domain = a.domain, ""
		} else {
			a.bad = a.domain == ""
		}
	}
	if s.spec.Addresses.NumericDomain && validHostaddr(a.domain) {
		a.domain = "[" + a.domain + "]"
	}
	for _, c := range []addressClass{classLocal, classVirtualAlias, classVirtualMailbox, classRelay} {
		if s.inClass(f, c, a.domain) {
			a.class = c
			break
		}
	}
	a.routed = strings.ContainsAny(a.local, "@!%") // operators or not
	a.bad = a.bad || a.domain != "" && !validMailDomain(a.domain, utf8) ||
		strings.HasPrefix(a.local, "-") && !s.spec.Addresses.AllowMinUser
	return a
}

// isPlain says that an address has nothing to route by, as nearly all have.
func isPlain(m envelope.Mailbox) bool {
	if m.Domain == "" || m.Domain[0] == '.' || strings.Contains(m.Domain, "..") || !envelope.IsDotString(m.Local) ||
		strings.ContainsAny(m.Local, "!%") {
		return false
	}
	for i := range len(m.Domain) {
		switch c := m.Domain[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_', c >= 0x80:
		default:
			return false
		}
	}
	return true
}

// completed is a domain with append_dot_mydomain's.
func (s *Snapshot) completed(domain string) string {
	if dot := s.spec.Addresses.AppendDotDomain; dot != "" && !strings.Contains(domain, ".") {
		return domain + "." + dot
	}
	return domain
}

// validMailDomain says that a domain or address literal may follow the "@".
func validMailDomain(d string, utf8 bool) bool {
	if strings.HasPrefix(d, "[") {
		return validLiteral(d)
	}
	if !isASCII(d) && !utf8 {
		return false
	}
	return validHostname(toASCII(d))
}

// literalAddr reads an address literal, RFC 5321 §4.1.3.
func literalAddr(s string) (netip.Addr, bool) {
	s, ok := strings.CutPrefix(s, "[")
	s, ok2 := strings.CutSuffix(s, "]")
	if !ok || !ok2 {
		return netip.Addr{}, false
	}
	return mailhostAddr(s)
}

// mailhostAddr reads an address as it stands inside of a literal.
func mailhostAddr(s string) (netip.Addr, bool) {
	v6 := len(s) > 5 && strings.EqualFold(s[:5], "IPv6:")
	if v6 {
		s = s[5:]
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4() == v6 {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// validHostname is Postfix's test: letters, digits, "-", "_", labels of at
// most 63 octets, not all numeric, no trailing dot.
func validHostname(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	label, numeric := 0, true
	for i := range len(s) {
		c := s[i]
		last := i+1 == len(s)
		switch {
		case c >= '0' && c <= '9':
			label++
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
			label++
			numeric = false
		case c == '.':
			if label == 0 || last {
				return false
			}
			label = 0
			continue
		case c == '-':
			if label == 0 || last || s[i+1] == '.' {
				return false
			}
			label++
			numeric = false
		default:
			return false
		}
		if label > 63 {
			return false
		}
	}
	return !numeric
}

// validHostaddr says that s is a bare IP address.
func validHostaddr(s string) bool { return validIPv4(s) || strings.Contains(s, ":") && validIPv6(s) }

// validLiteral is Postfix's test of an address literal, which takes some that
// are none, as [IPv6:1:2:3].
func validLiteral(s string) bool {
	s, closed := strings.CutSuffix(s[1:], "]")
	switch {
	case !closed:
		return false
	case len(s) >= 5 && strings.EqualFold(s[:5], "IPv6:"):
		return len(s) < 46 && validIPv6(s[5:])
	}
	return len(s) < 46 && validIPv4(s)
}

// validIPv4 is Postfix's test: leading zeros don't matter, and of 0.0.0.0/8
// only 0.0.0.0 is an address.
func validIPv4(s string) bool {
	fields := strings.Split(s, ".")
	for i, f := range fields {
		n := strings.TrimLeft(f, "0")
		if f == "" || len(n) > 3 || len(n) == 3 && n > "255" || strings.Trim(n, "0123456789") != "" || i == 0 && n == "" && strings.Trim(s, "0.") != "" {
			return false
		}
	}
	return len(fields) == 4
}

// validIPv6 is Postfix's test, which doesn't count the fields.
func validIPv6(s string) bool {
	colons, gap, n := 0, 0, 0 // n: digits of the field in hand
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '.':
			return colons >= 2 && colons <= 6 && validIPv4(s[i-n:])
		case c == ':':
			if colons == 0 && n == 0 && i+1 < len(s) && s[i+1] != ':' {
				return false
			}
			if colons++; colons > 7 {
				return false
			}
			i, n = i+1, 0
			if i < len(s) && s[i] == ':' {
				if gap > 0 {
					return false
				}
				gap = colons
			}
		default:
			n = len(s[i:]) - len(strings.TrimLeft(s[i:], "0123456789abcdefABCDEF"))
			if n == 0 || n > 4 {
				return false
			}
			i += n
		}
	}
	return colons >= 2 && (n > 0 || gap == colons-1)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// uts46 is how Postfix converts names: UTS #46, not transitional, without its
// optional checks of ASCII characters, joiners and writing directions.
var uts46 = idna.New(idna.MapForLookup(), idna.StrictDomainName(false), idna.CheckJoiners(false))

// toASCII gives an internationalized name its form in the DNS; a name that has
// none stays as it is, and no look-up will find it.
func toASCII(s string) string {
	if isASCII(s) {
		return s
	}
	a, err := uts46.ToASCII(s)
	if err != nil {
		return s
	}
	u, _ := idna.Punycode.ToUnicode(a)
	for label := range strings.SplitSeq(u, ".") { // what uts46 doesn't check, or by octets
		if r := []rune(label); !isASCII(label) && (unicode.Is(unicode.M, r[0]) || len(r) > 3 && r[2] == '-' && r[3] == '-') {
			return s
		}
	}
	return a
}

// trimDot drops one trailing dot, but not of "." or "..".
func trimDot(s string) string {
	if n := len(s); n > 1 && s[n-1] == '.' && s[n-2] != '.' {
		return s[:n-1]
	}
	return s
}

// doubleBounce is the local-part of the primary's own bounces' sender.
func (s *Snapshot) doubleBounce() string {
	return cmp.Or(fold(s.spec.Addresses.DoubleBounce), "double-bounce")
}

// splitExtension returns the user of a local-part without its address
// extension; ok is false when there is none.
func (s *Snapshot) splitExtension(local string) (user string, ok bool) {
	set := s.spec.Addresses.RecipientDelimiter
	if set == "" {
		return "", false
	}
	switch local {
	case "postmaster", "mailer-daemon", s.doubleBounce():
		return "", false
	}
	if s.spec.Addresses.OwnerRequestSpecial && strings.Contains(set, "-") {
		if strings.HasPrefix(local, "owner-") || len(local) > 8 && strings.HasSuffix(local, "-request") {
			return "", false
		}
	}
	i := strings.IndexAny(local, set)
	if i <= 0 {
		return "", false
	}
	return local[:i], true
}

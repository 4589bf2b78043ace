package policy

import (
	"cmp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
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
	names []string    // sorted; ".example.org" stands for the subdomains
	list  []matchItem // an ordered list, which replaces names
}

func (d *domainSet) has(domain string) bool {
	_, found := slices.BinarySearch(d.names, domain)
	for i := 0; i < len(domain) && !found; i++ {
		if domain[i] == '.' {
			_, found = slices.BinarySearch(d.names, domain[i:])
		}
	}
	return found
}

// resolve finds the domain to which an address is really routed, and whether mail
// could be sent there.
func (s *Snapshot) resolve(f *finder, m envelope.Mailbox, utf8 bool) address {
	a := address{raw: m.Local}
	if m.Domain != "" {
		a.raw += "@" + m.Domain
	}
	if isPlain(m) {
		a.local, a.domain = table.Fold(m.Local), table.Fold(s.completed(trimDot(m.Domain)))
	} else {
		all := s.route(f, a.raw)
		at := strings.LastIndexByte(all, '@')
		a.local, a.domain = table.Fold(all[:max(at, 0)]), table.Fold(all[at+1:])
		if at < 0 { // a policy that has no name for its primary
			a.local, a.domain = a.domain, ""
		} else {
			a.bad = a.domain == ""
		}
	}
	if s.spec.Addresses.NumericDomain && envelope.ValidHostaddr(a.domain) {
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

// isPlain says that an address has no routing operators, as nearly all.
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
	return envelope.ValidHostname(toASCII(d))
}

// validLiteral is Postfix's test of an address literal, which accepts invalid ones
// such as [IPv6:1:2:3].
func validLiteral(s string) bool {
	inner, closed := strings.CutSuffix(s[1:], "]")
	v6 := len(inner) >= 5 && strings.EqualFold(inner[:5], "IPv6:")
	if len(inner) >= 46 || !closed {
		return false
	}
	if v6 {
		inner = inner[5:]
	}
	return strings.Contains(inner, ":") == v6 && envelope.ValidHostaddr(inner)
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

// doubleBounce is the local-part of the sender of the primary's own bounces.
func (s *Snapshot) doubleBounce() string {
	return cmp.Or(table.Fold(s.spec.Addresses.DoubleBounce), "double-bounce")
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

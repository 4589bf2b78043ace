package envelope

import (
	"net/netip"
	"strings"
)

// LiteralAddr reads an address literal, RFC 5321 §4.1.3, of IPv4 or IPv6
// without a zone.
func LiteralAddr(s string) (netip.Addr, bool) {
	s, opened := strings.CutPrefix(s, "[")
	s, closed := strings.CutSuffix(s, "]")
	v6 := len(s) > 5 && strings.EqualFold(s[:5], "IPv6:")
	if v6 {
		s = s[5:]
	}
	a, err := netip.ParseAddr(s)
	if !opened || !closed || err != nil || a.Zone() != "" || a.Is4() == v6 {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

func isLiteral(s string) bool {
	_, is := LiteralAddr(s)
	return is
}

// ValidHostaddr is Postfix's valid_hostaddr: s is a bare IP address.
func ValidHostaddr(s string) bool { return validIPv4(s) || strings.Contains(s, ":") && validIPv6(s) }

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

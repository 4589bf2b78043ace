package filters

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

func sortStable(list []string, rank func(string) int) {
	slices.SortStableFunc(list, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
}

// isName says that an element of a list of hosts is a name.
func isName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return false
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return false
	}
	return strings.ContainsFunc(s, func(r rune) bool { return r >= 'a' && r <= 'z' || r == '.' }) && !strings.ContainsAny(s, "/:")
}

// prefixes reads addresses and networks. Host bits beyond a prefix are an error
// of Python's, at which policyd-spf gives the rest of its list up.
func prefixes(list []string) (out []string, bad string) {
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Masked() != p {
			return out, s
		}
		if !p.Addr().Is4In6() { // Postfix shows no client by such an address
			out = append(out, p.String())
		}
	}
	return out, ""
}

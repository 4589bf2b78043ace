package mailauth

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// spfRecord is a record with its macros expanded.
type spfRecord struct {
	mechanisms []spfMechanism
	redirect   string
	explain    string
}

type spfMechanism struct {
	name         string
	result       Result
	domain       string
	prefix       netip.Prefix // of ip4 and ip6
	bits4, bits6 int          // of a and mx
}

var (
	spfModifier = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.-]*)=(.*)$`)
	spfDualCIDR = regexp.MustCompile(`//(0|[1-9][0-9]*)$`)
	spfCIDR     = regexp.MustCompile(`/(0|[1-9][0-9]*)$`)
	// A domain-spec ends in a top label or in a macro, RFC 7208 §7.1.
	spfDomainEnd = regexp.MustCompile(`(?i)\.(?:[0-9a-z]*[a-z][0-9a-z]*|[0-9a-z]+-[0-9a-z-]*[0-9a-z])\.?$|%(?:%|_|-|\{[^}]*\})`)
	spfMacro     = regexp.MustCompile(`^([A-Za-z])([0-9]*)([rR]?)([-.+,/_=]*)$`)
)

// parse reads the whole record before any of it counts: a mistake after the
// mechanism that matches is one nevertheless, RFC 7208 §4.6.
func (q *spfQuery) parse(record, domain string) (spfRecord, error) {
	var out spfRecord
	var seen []string
	for term := range strings.SplitSeq(record[len("v=spf1"):], " ") {
		if term == "" {
			continue
		}
		mod := spfModifier.FindStringSubmatch(term)
		if mod == nil {
			m, err := q.mechanism(term, domain)
			if err != nil {
				return out, fmt.Errorf("%w: %s", err, term)
			}
			out.mechanisms = append(out.mechanisms, m)
			continue
		}
		// pyspf has the names of modifiers in lower case only, and none twice.
		if slices.Contains(seen, mod[1]) {
			return out, fmt.Errorf("%s= MUST appear at most once: %s", mod[1], term)
		}
		seen = append(seen, mod[1])
		if err := q.modifier(&out, mod[1], mod[2], domain); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (q *spfQuery) modifier(out *spfRecord, name, value, domain string) (err error) {
	switch name {
	case "redirect":
		if err = q.count(); err == nil {
			out.redirect, err = q.domainSpec(value, domain)
		}
	case "exp":
		out.explain, err = q.domainSpec(value, domain)
	default:
		_, err = q.expand(value, domain, false)
	}
	return err
}

func (q *spfQuery) mechanism(term, domain string) (m spfMechanism, err error) {
	m.result = Pass
	bare := term == "exists" // pyspf takes "?exists" for "?exists:" and the domain
	if i := strings.IndexByte("+-~?", term[0]); i >= 0 {
		m.result, term = [...]Result{Pass, Fail, SoftFail, Neutral}[i], term[1:]
	}
	bits6, term, err := cidr(spfDualCIDR, term, 128)
	if err != nil {
		return m, err
	}
	bits4, term, err := cidr(spfCIDR, term, 128)
	if err != nil {
		return m, err
	}
	name, arg, given := strings.Cut(term, ":")
	if m.name = strings.ToLower(name); !given {
		arg = domain
	}
	switch m.name {
	case "ip4", "ip6":
		return m, m.network(arg, bits4, bits6)
	case "a", "mx":
		m.bits4, m.bits6 = 32, 128
		if bits4 > 32 {
			return m, spfMistake("Invalid IP4 CIDR length")
		}
		if bits4 >= 0 {
			m.bits4 = bits4
		}
		if bits6 >= 0 {
			m.bits6 = bits6
		}
	case "all", "include", "exists", "ptr":
		if bits4 >= 0 || bits6 >= 0 {
			return m, spfMistake("CIDR not allowed")
		}
	default:
		return m, spfMistake("Unknown mechanism found")
	}
	switch {
	case m.name == "all" && given:
		return m, spfMistake("Invalid all mechanism format - only qualifier allowed with all")
	case m.name == "all":
		return m, nil
	case !given && (m.name == "include" || bare):
		return m, errors.New("mechanism missing domain")
	}
	if m.domain, err = q.domainSpec(arg, domain); err == nil && m.name == "include" && m.domain == domain {
		err = errors.New("include has trivial recursion")
	}
	return m, err
}

// cidr cuts a prefix length off term; it is -1 where there is none.
func cidr(re *regexp.Regexp, term string, limit int) (int, string, error) {
	loc := re.FindStringSubmatchIndex(term)
	if loc == nil {
		return -1, term, nil
	}
	n, err := strconv.Atoi(term[loc[2]:loc[3]])
	if err != nil || n > limit {
		return 0, "", spfMistake("Invalid CIDR length")
	}
	return n, term[:loc[0]], nil
}

func (m *spfMechanism) network(arg string, bits, dual int) error {
	addr, err := netip.ParseAddr(arg)
	if err != nil || addr.Zone() != "" || addr.Is4() != (m.name == "ip4") {
		return spfMistake(fmt.Sprintf("Invalid %s address", strings.ToUpper(m.name)))
	}
	if dual >= 0 {
		return spfMistake("Dual CIDR not allowed")
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	if m.prefix, err = addr.Prefix(bits); err != nil {
		return spfMistake(fmt.Sprintf("Invalid %s CIDR length", strings.ToUpper(m.name)))
	}
	return nil
}

func (q *spfQuery) domainSpec(spec, domain string) (string, error) {
	ends := spfDomainEnd.FindAllStringIndex(spec, -1)
	if spec != "" && (len(ends) == 0 || ends[len(ends)-1][1] != len(spec)) {
		return "", spfMistake("Invalid domain found (use FQDN)")
	}
	name, err := q.expand(spec, domain, false)
	if err != nil {
		return "", err
	}
	name = strings.TrimSuffix(name, ".")
	for len(name) > 253 {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = rest
	}
	if name == "" {
		return "", errors.New("empty domain")
	}
	return name, nil
}

// expand replaces macros, RFC 7208 §7. Some stand in an explanation only.
func (q *spfQuery) expand(s, domain string, explanation bool) (string, error) {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "%")
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		switch {
		case strings.HasPrefix(rest, "%"):
			b.WriteByte('%')
			s = rest[1:]
		case strings.HasPrefix(rest, "_"):
			b.WriteByte(' ')
			s = rest[1:]
		case strings.HasPrefix(rest, "-"):
			b.WriteString("%20")
			s = rest[1:]
		default:
			macro, after, closed := strings.Cut(rest, "}")
			m := spfMacro.FindStringSubmatch(strings.TrimPrefix(macro, "{"))
			if !closed || m == nil || macro[0] != '{' {
				return "", errors.New("invalid-macro-char")
			}
			value, err := q.macro(m, domain, explanation)
			if err != nil {
				return "", err
			}
			b.WriteString(value)
			s = after
		}
	}
}

func (q *spfQuery) macro(m []string, domain string, explanation bool) (string, error) {
	letter := strings.ToLower(m[1])
	value, err := q.letter(letter, domain, explanation)
	if err != nil {
		return "", err
	}
	delimiters := m[4]
	if delimiters == "" {
		delimiters = "."
	}
	if m[2]+m[3]+m[4] != "" {
		parts := split(value, delimiters)
		if m[3] != "" {
			slices.Reverse(parts)
		}
		if m[2] != "" {
			n, err := strconv.Atoi(m[2])
			if err != nil || n == 0 {
				return "", errors.New("invalid macro transformer")
			}
			parts = parts[max(0, len(parts)-n):]
		}
		value = strings.Join(parts, ".")
	}
	if letter != m[1] {
		value = escape(value)
	}
	return value, nil
}

// split is strings.FieldsFunc that keeps empty fields.
func split(s, delimiters string) []string {
	var out []string
	for {
		i := strings.IndexAny(s, delimiters)
		if i < 0 {
			return append(out, s)
		}
		out, s = append(out, s[:i]), s[i+1:]
	}
}

func (q *spfQuery) letter(letter, domain string, explanation bool) (string, error) {
	switch letter {
	case "s":
		return q.sender, nil
	case "l":
		return q.local, nil
	case "o":
		return q.domain, nil
	case "d":
		return domain, nil
	case "h":
		return q.helo, nil
	case "i":
		return dotted(q.ip), nil
	case "p":
		return q.name(domain)
	case "v":
		if q.ip.Is4() {
			return "in-addr", nil
		}
		return "ip6", nil
	}
	if explanation {
		switch letter {
		case "c":
			return q.ip.String(), nil
		case "r":
			return "unknown", nil
		case "t":
			return "0", nil // we have no clock, and no reply needs one
		}
	}
	return "", spfMistake("Unknown Macro Encountered")
}

// name is the macro p: the client's validated name, that of the domain if it
// has one.
func (q *spfQuery) name(domain string) (string, error) {
	if q.ptr != "" {
		return q.ptr, nil
	}
	names, err := q.validated()
	if err != nil {
		return "", err
	}
	q.ptr = "unknown"
	if len(names) > 0 {
		q.ptr = names[0]
	}
	for _, n := range names {
		if isWithin(n, domain) {
			q.ptr = n
			if strings.EqualFold(n, domain) {
				break
			}
		}
	}
	return q.ptr, nil
}

// dotted is the macro i.
func dotted(ip netip.Addr) string {
	if ip.Is4() {
		return ip.String()
	}
	var b []byte
	for _, octet := range ip.As16() {
		const hex = "0123456789ABCDEF"
		b = append(b, hex[octet>>4], '.', hex[octet&15], '.')
	}
	return string(b[:len(b)-1])
}

// escape is RFC 3986's percent encoding of all but unreserved characters.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

// Postgrey's whitelists. A line of clients is a domain, which stands for the
// names below it as well, an address, a network, or /a pattern/; a line of
// recipients is a domain, user@domain, user@ or /a pattern/:
//
//	debian.org
//	192.0.2
//	/^mx\d+\.example\.com$/
//	postmaster@
//
// Case doesn't matter, and user stands for user+extension, too.

// greyClients says who isn't put off, of clients.
type greyClients struct {
	names    map[string]bool
	nets     []netip.Prefix // all as IPv6: see wide
	patterns *dict          // nil: none
}

// greyRecipients likewise, of recipients. The keys of users are "user@domain" and
// "user@".
type greyRecipients struct {
	domains, users map[string]bool
	patterns       *dict
}

var (
	greyPattern = regexp.MustCompile(`^/(\S+)/$`)
	greyIPv4    = regexp.MustCompile(`^\d{1,3}(\.\d{1,3}){3}(/\d{1,2})?$`)
	greyPart    = regexp.MustCompile(`^\d{1,3}(\.\d{1,3}){1,2}$`)
	greyIPv6    = regexp.MustCompile(`^.*:.*:`)
	greyWord    = regexp.MustCompile(`^\S+$`)
)

// errPassedOver says that postgrey passes a line over.
var errPassedOver = errors.New("postgrey passes it over")

func (w *greyClients) add(line string, patterns *[][2]string) error {
	switch {
	case greyPattern.MatchString(line):
		return addPattern(line, patterns)
	case greyIPv4.MatchString(line):
		return w.addNet(line)
	case greyPart.MatchString(line):
		for strings.Count(line, ".") < 3 {
			line += ".0"
		}
		return w.addNet(line + "/24") // two numbers, too: so postgrey has it
	case greyIPv6.MatchString(line):
		return w.addNet(line)
	case greyWord.MatchString(line):
		w.names[lowerASCII(line)] = true
		return nil
	}
	return errPassedOver
}

// addNet reads an address or network as Perl's NetAddr::IP does, which takes
// numbers with a zero before them for octal.
func (w *greyClients) addNet(s string) error {
	text, length, given := strings.Cut(strings.NewReplacer("[", "", "]", "").Replace(s), "/")
	if !strings.Contains(text, ":") {
		parts := strings.Split(text, ".")
		for i, p := range parts {
			n, err := strconv.ParseUint(p, base(p), 8)
			if err != nil {
				return errPassedOver
			}
			parts[i] = strconv.FormatUint(n, 10)
		}
		text = strings.Join(parts, ".")
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return errPassedOver
	}
	bits := a.BitLen()
	if given {
		if bits, err = strconv.Atoi(length); err != nil || bits < 0 || bits > a.BitLen() {
			return errPassedOver
		}
	}
	p := netip.PrefixFrom(wide(a), bits+128-a.BitLen())
	w.nets = append(w.nets, p.Masked())
	return nil
}

func base(octet string) int {
	if len(octet) > 1 && octet[0] == '0' {
		return 8
	}
	return 10
}

// wide is an address as NetAddr::IP compares it: 192.0.2.1 as ::192.0.2.1.
func wide(a netip.Addr) netip.Addr {
	if !a.Is4() {
		return a
	}
	var b [16]byte
	v4 := a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

func (w *greyRecipients) add(line string, patterns *[][2]string) error {
	switch {
	case greyPattern.MatchString(line):
		return addPattern(line, patterns)
	case !greyWord.MatchString(line):
		return errPassedOver
	case strings.Contains(line, "@"):
		w.users[lowerASCII(line)] = true
	default:
		w.domains[lowerASCII(line)] = true
	}
	return nil
}

func addPattern(line string, patterns *[][2]string) error {
	rule := [2]string{line + "i", "OK"}
	if _, err := table.NewPCRE([][2]string{rule}); err != nil {
		return err
	}
	*patterns = append(*patterns, rule)
	return nil
}

// CheckGreylistLine says whether a line of a whitelist of postgrey's, without
// its comment and the white space around it, can be followed. passedOver is why
// postgrey itself has no use for it.
func CheckGreylistLine(line string, ofRecipients bool) (passedOver bool, err error) {
	var patterns [][2]string
	if ofRecipients {
		err = (&greyRecipients{map[string]bool{}, map[string]bool{}, nil}).add(line, &patterns)
	} else {
		err = (&greyClients{names: map[string]bool{}}).add(line, &patterns)
	}
	return errors.Is(err, errPassedOver), err
}

// greyLists compiles whitelists.
func (c *compiler) greyLists(where string, g *Greylist) (greyClients, greyRecipients) {
	clients := greyClients{names: map[string]bool{}}
	rcpts := greyRecipients{domains: map[string]bool{}, users: map[string]bool{}}
	for _, l := range []struct {
		key   string
		lines []string
		add   func(string, *[][2]string) error
		to    **dict
	}{{"whitelist_clients", g.Clients, clients.add, &clients.patterns}, {"whitelist_recipients", g.Recipients, rcpts.add, &rcpts.patterns}} {
		var patterns [][2]string
		for _, line := range l.lines {
			if err := l.add(line, &patterns); err != nil {
				c.errorf("%s.%s: %.60q: %w", where, l.key, line, err)
			}
		}
		t, err := table.NewPCRE(patterns)
		if err != nil {
			c.errorf("%s.%s: %w", where, l.key, err)
		}
		if len(patterns) > 0 && err == nil {
			*l.to = &dict{Table: t, name: fmt.Sprintf("%s.%s", where, l.key)}
		}
	}
	return clients, rcpts
}

func (w *greyClients) has(f *finder, addr netip.Addr, name string) bool {
	name = lowerASCII(name)
	for rest := name; ; {
		if w.names[rest] {
			return true
		}
		_, after, dot := strings.Cut(rest, ".")
		if rest = after; !dot {
			break
		}
	}
	for _, p := range w.nets {
		if p.Contains(wide(addr)) {
			return true
		}
	}
	return f.matches(w.patterns, name)
}

func (w *greyRecipients) has(f *finder, rcpt string) bool {
	key := lowerASCII(rcpt)
	at := strings.IndexByte(key, '@')
	for i := range len(key) {
		if (key[i] == '@' || key[i] == '.') && w.domains[key[i+1:]] {
			return true
		}
		if i == at || i < at-1 && key[i] == '+' {
			if user := key[:i]; w.users[user+"@"] || w.users[user+key[at:]] {
				return true
			}
		}
	}
	return f.matches(w.patterns, rcpt)
}

// matches says that one of some patterns does.
func (f *finder) matches(patterns *dict, s string) bool {
	return patterns != nil && f.entry(patterns, []byte(s), netip.Addr{}).ok()
}

// lowerASCII folds as Perl does octets: letters outside of ASCII keep their case.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

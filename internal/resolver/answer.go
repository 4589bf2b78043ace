package resolver

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	maxChain    = 8                // CNAMEs from the name asked to the name that answers
	maxTTL      = time.Hour        // whatever a zone says
	maxNegative = 15 * time.Minute // for NXDOMAIN and NODATA
	// failureTTL keeps a failing zone from being asked for every recipient of
	// a burst. RFC 9520 §3.2 wants at least one second, and no more is needed.
	failureTTL = time.Second
)

// status is the outcome of a question.
type status uint8

const (
	ok status = iota
	nxdomain
	nodata
	servfail // every server failed or refused
	timeout  // none answered
	failure  // anything else: unreachable, malformed, endless
)

func (s status) String() string {
	return [...]string{"ok", "nxdomain", "nodata", "servfail", "timeout", "error"}[s]
}

// answer is what the cache keeps and callers share: nobody changes it.
type answer struct {
	status status
	addrs  []netip.Addr // A, AAAA
	hosts  []host       // MX, PTR, NS
	txts   []string     // TXT
	ttl    time.Duration
	server string

	authoritative bool // a nodata that came with its SOA
}

type host struct {
	name string // with its final dot
	pref uint16
}

// err is the answer as an error, for the caller who asked for name.
func (a answer) err(name string) error {
	switch a.status {
	case ok:
		return nil
	case nxdomain, nodata:
		e := notFound(name)
		e.Server = a.server
		return e
	}
	text := map[status]string{servfail: "server failure", timeout: "timeout", failure: "no usable response"}[a.status]
	return &net.DNSError{Err: text, Name: name, Server: a.server, IsTimeout: a.status == timeout, IsTemporary: true}
}

// size estimates the octets that the answer holds on to.
func (a answer) size() int {
	n := len(a.addrs) * 24
	for _, h := range a.hosts {
		n += 24 + len(h.name)
	}
	for _, t := range a.txts {
		n += 16 + len(t)
	}
	return n
}

// chain walks from the name asked to the name that answers, over one response or several.
type chain struct {
	qtype uint16
	name  string // where the walk has come to
	steps int
	ttl   time.Duration // least so far
}

// follow walks through m's answer section and says what it ends in.
func (c *chain) follow(m *dns.Msg) answer {
	for {
		var a answer
		var next string
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, c.name) {
				continue
			}
			if cname, is := rr.(*dns.CNAME); is {
				next = strings.ToLower(cname.Target)
			} else if h.Rrtype != c.qtype {
				continue
			} else {
				a.add(rr)
			}
			c.ttl = min(c.ttl, time.Duration(h.Ttl)*time.Second)
		}
		switch {
		case m.Rcode == dns.RcodeSuccess && a.size() > 0:
			slices.SortStableFunc(a.hosts, func(x, y host) int { return int(x.pref) - int(y.pref) })
			a.ttl = c.ttl
			return a
		case next == "":
			return c.negative(m)
		}
		if c.steps++; c.steps > maxChain {
			return answer{status: failure, ttl: failureTTL}
		}
		c.name = next
	}
}

// negative is the answer that there is nothing. Without an SOA record it is
// not kept (RFC 2308 §5).
func (c *chain) negative(m *dns.Msg) answer {
	a := answer{status: nodata}
	if m.Rcode == dns.RcodeNameError {
		a.status = nxdomain
	}
	for _, rr := range m.Ns {
		if soa, is := rr.(*dns.SOA); is {
			a.authoritative = true
			a.ttl = min(c.ttl, maxNegative, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return a
}

// add takes rr's value. A name that is no host name is dropped: nothing that
// prints or compares names should have to expect one. Mail servers take more for
// an MX: an address, a wildcard.
func (a *answer) add(rr dns.RR) {
	switch rr := rr.(type) {
	case *dns.A:
		if ip, ok := netip.AddrFromSlice(rr.A.To4()); ok {
			a.addrs = append(a.addrs, ip)
		}
	case *dns.AAAA:
		if ip, ok := netip.AddrFromSlice(rr.AAAA.To16()); ok {
			a.addrs = append(a.addrs, ip)
		}
	case *dns.MX:
		_, err := netip.ParseAddr(strings.TrimSuffix(rr.Mx, "."))
		if isHostName(strings.TrimPrefix(rr.Mx, "*.")) || rr.Mx == "." || err == nil {
			a.hosts = append(a.hosts, host{rr.Mx, rr.Preference})
		}
	case *dns.PTR:
		if isHostName(rr.Ptr) {
			a.hosts = append(a.hosts, host{name: rr.Ptr})
		}
	case *dns.NS:
		if isHostName(rr.Ns) {
			a.hosts = append(a.hosts, host{name: rr.Ns})
		}
	case *dns.TXT:
		var b strings.Builder
		for _, s := range rr.Txt {
			unescape(&b, s)
		}
		a.txts = append(a.txts, b.String())
	}
}

// isHostName says that s, as dns.Msg.Unpack spells it, has only letters,
// digits, hyphens and underscores in its labels. Lengths are right already.
func isHostName(s string) bool {
	if s == "." {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// unescape undoes the presentation format that dns.TXT keeps its strings in:
// \" and \\, and \DDD for what is not printable ASCII.
func unescape(b *strings.Builder, s string) {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '\\' || i+1 == len(s) {
			b.WriteByte(c)
			continue
		}
		i++
		if i+2 < len(s) && isDigit(s[i]) && isDigit(s[i+1]) && isDigit(s[i+2]) {
			b.WriteByte((s[i]-'0')*100 + (s[i+1]-'0')*10 + (s[i+2] - '0'))
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// errNone is the answer that a name doesn't exist, or has no such records.
var errNone = errors.New("the DNS has no such record")

// ask puts one question to the servers in turn. It returns the answer's records
// of the type, where a CNAME leads, too; errNone when there are none.
func ask[T dns.RR](ctx context.Context, x *exam, name string, qtype uint16) ([]T, error) {
	return askServers[T](ctx, x.DNS, x.Timeout, name, qtype)
}

func askServers[T dns.RR](ctx context.Context, servers []string, timeout time.Duration, name string, qtype uint16) (records []T, err error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(1232, false)
	err = errors.New("no DNS server is known")
	for _, s := range servers {
		var m *dns.Msg
		m, _, err = (&dns.Client{Timeout: timeout}).ExchangeContext(ctx, q, s)
		if err == nil && m.Truncated {
			m, _, err = (&dns.Client{Net: "tcp", Timeout: timeout}).ExchangeContext(ctx, q, s)
		}
		switch {
		case err != nil:
			continue
		case m.Rcode == dns.RcodeNameError:
			return nil, errNone
		case m.Rcode != dns.RcodeSuccess:
			err = fmt.Errorf("%s answers %s", s, dns.RcodeToString[m.Rcode])
			continue
		}
		for _, rr := range m.Answer {
			if r, ok := rr.(T); ok && rr.Header().Rrtype == qtype {
				records = append(records, r)
			}
		}
		if len(records) == 0 {
			return nil, errNone
		}
		return records, nil
	}
	return nil, fmt.Errorf("look up %s %s: %w", name, dns.TypeToString[qtype], err)
}

// hostAddrs are a host's addresses.
type hostAddrs struct {
	addrs []netip.Addr
	alias string // what a CNAME names
	err   error  // errNone: it has none
}

func (x *exam) addrs(ctx context.Context, host string) hostAddrs {
	if a, err := netip.ParseAddr(host); err == nil {
		return hostAddrs{addrs: []netip.Addr{a.Unmap()}}
	}
	return memo(x, x.hosts, fqdn(host), func() (h hostAddrs) {
		if c, err := ask[*dns.CNAME](ctx, x, host, dns.TypeCNAME); err == nil {
			h.alias = fqdn(c[0].Target)
		}
		a, err4 := ask[*dns.A](ctx, x, host, dns.TypeA)
		for _, r := range a {
			if ip, ok := netip.AddrFromSlice(r.A); ok {
				h.addrs = append(h.addrs, ip.Unmap())
			}
		}
		aaaa, err6 := ask[*dns.AAAA](ctx, x, host, dns.TypeAAAA)
		for _, r := range aaaa {
			if ip, ok := netip.AddrFromSlice(r.AAAA); ok {
				h.addrs = append(h.addrs, ip)
			}
		}
		if len(h.addrs) == 0 {
			h.err = err4
			if errors.Is(err4, errNone) {
				h.err = err6
			}
		}
		return h
	})
}

// ours are the addresses of this machine's host name.
func (x *exam) ours(ctx context.Context) []netip.Addr { return x.addrs(ctx, x.Hostname).addrs }

// theirs are the addresses of all primaries.
func (x *exam) theirs(ctx context.Context) (all []netip.Addr) {
	for _, p := range x.Primaries {
		all = append(all, x.addrs(ctx, hostOf(p.Address)).addrs...)
	}
	return all
}

func shares(a, b []netip.Addr) bool {
	return slices.ContainsFunc(a, func(x netip.Addr) bool { return slices.Contains(b, x) })
}

// resolver: the servers that we ask.
func (x *exam) resolver(ctx context.Context) (looked bool) {
	if len(x.DNS) == 0 {
		x.report(Fault, "no-resolver", "", "No DNS server is known; every look-up fails, and mail is deferred.", "", "name one in /etc/resolv.conf, or in `servers` under [dns]")
	}
	for _, s := range x.DNS {
		if _, err := askServers[*dns.NS](ctx, []string{s}, x.Timeout, ".", dns.TypeNS); err != nil && !errors.Is(err, errNone) {
			x.report(Fault, "resolver-silent", s, "A DNS server doesn't answer: each look-up waits for it first.", err.Error(), "take it out of /etc/resolv.conf or `servers` under [dns], or mend it")
		}
		if a, err := netip.ParseAddr(hostOf(s)); err == nil && len(x.Zones) > 0 && slices.ContainsFunc(publicResolvers, func(p netip.Prefix) bool { return p.Contains(a) }) {
			x.report(Fault, "resolver-public", s, "DNS lists refuse the questions of public resolvers, or answer them wrongly: spam is let in that the primary refuses.",
				fmt.Sprintf("the policy asks %s", listed(x.Zones)), "run a resolver of your own (apt-get install unbound) and name 127.0.0.1 in /etc/resolv.conf")
		}
	}
	return true
}

// publicResolvers are the well-known ones.
var publicResolvers = func() (all []netip.Prefix) {
	for _, s := range strings.Fields(`8.8.8.8/32 8.8.4.4/32 1.1.1.1/32 1.0.0.1/32 1.1.1.2/31 1.0.0.2/31 9.9.9.0/24 149.112.112.0/24 208.67.222.0/24 208.67.220.0/24
		4.2.2.0/29 64.6.64.6/32 64.6.65.6/32 94.140.14.0/23 185.228.168.0/23 76.76.2.0/24 76.76.10.0/24 8.26.56.26/32 8.20.247.20/32
		2001:4860:4860::/48 2606:4700:4700::/48 2620:fe::/48 2620:119:35::/48 2620:119:53::/48 2a10:50c0::/32`) {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}()

// lists: each DNS list as RFC 5782 §5 has it: 127.0.0.2 is always listed,
// 127.0.0.1 never.
func (x *exam) lists(ctx context.Context) (looked bool) {
	for _, zone := range x.Zones {
		test, err := ask[*dns.A](ctx, x, "2.0.0.127."+zone, dns.TypeA)
		if err != nil && !errors.Is(err, errNone) {
			x.report(Fault, "list-silent", zone, "A DNS list doesn't answer: whom it lists is let in, here and at the primary.", err.Error(), "remove it at the primary if it has ceased, or ask it by another resolver")
			continue
		}
		never, _ := ask[*dns.A](ctx, x, "1.0.0.127."+zone, dns.TypeA)
		if refused := slices.IndexFunc(append(slices.Clone(test), never...), isRefusal); refused >= 0 {
			x.report(Fault, "list-refuses", zone, "A DNS list refuses our questions.", "it answers "+append(slices.Clone(test), never...)[refused].A.String()+" for its test address",
				"ask it by a resolver of your own, within its limits, or register with it")
			continue
		}
		switch {
		case len(never) > 0:
			x.report(Fault, "list-lists-all", zone, "A DNS list lists everybody: all mail is refused by it.", "1.0.0.127."+zone+" has the address "+never[0].A.String(), "remove it at the primary; lists that cease are often sold")
		case len(test) == 0 && !x.byName(ctx, zone):
			x.report(Fault, "list-dead", zone, "A DNS list lists nobody, not even its test entry.", "2.0.0.127."+zone+" and test."+zone+" don't exist", "look at its web page: is it still served, under this name?")
		}
	}
	return len(x.Zones) > 0
}

// isRefusal is an answer of 127.255.255.x: an error, no listing.
func isRefusal(a *dns.A) bool {
	return a.A.To4() != nil && a.A.Mask(net.CIDRMask(24, 32)).Equal(net.IPv4(127, 255, 255, 0))
}

// byName tells whether a zone lists names and has their test entry (RFC 5782 §5).
func (x *exam) byName(ctx context.Context, zone string) bool {
	for _, name := range []string{"test.", "dbltest.com.", "test.uribl.com.", "surbl-org-permanent-test-point.com."} {
		if _, err := ask[*dns.A](ctx, x, name+zone, dns.TypeA); !errors.Is(err, errNone) {
			return true
		}
	}
	return false
}

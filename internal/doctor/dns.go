package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/dnslist"
	"github.com/understudy-mx/understudy/internal/resolver"
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
	var zones []string
	for _, l := range x.Zones {
		zones = append(zones, l.Zone)
	}
	for _, s := range x.DNS {
		if _, err := askServers[*dns.NS](ctx, []string{s}, x.Timeout, ".", dns.TypeNS); err != nil && !errors.Is(err, errNone) {
			x.report(Fault, "resolver-silent", s, "A DNS server doesn't answer: each look-up waits for it first.", err.Error(), "take it out of /etc/resolv.conf or `servers` under [dns], or mend it")
		}
		if a, err := netip.ParseAddr(hostOf(s)); err == nil && len(x.Zones) > 0 && slices.ContainsFunc(publicResolvers, func(p netip.Prefix) bool { return p.Contains(a) }) {
			x.report(Fault, "resolver-public", s, "DNS lists refuse the questions of public resolvers, or answer them wrongly: spam is let in that the primary refuses.",
				fmt.Sprintf("the policy asks %s", listed(zones)), "run a resolver of your own (apt-get install unbound) and name 127.0.0.1 in /etc/resolv.conf")
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

// lists: every DNS list is asked for its test entries, as the daemon does all the time.
func (x *exam) lists(ctx context.Context) (looked bool) {
	r := resolver.New(resolver.Options{Servers: x.DNS, Timeout: x.Timeout})
	for _, l := range x.Zones {
		p := dnslist.Ask(ctx, r, l)
		seen := answers(p.Answers)
		switch p.State {
		case dnslist.Silent:
			x.report(Fault, "list-silent", l.Zone, "A DNS list doesn't answer: whom it lists is let in, here and at the primary.", seen, "remove it at the primary if it has ceased, or ask it by another resolver")
		case dnslist.Refuses:
			x.report(Fault, "list-refuses", l.Zone, "A DNS list refuses our questions.", seen, "ask it by a resolver of your own, within its limits, or register with it")
		case dnslist.ListsAll:
			x.report(Fault, "list-lists-all", l.Zone, "A DNS list lists everybody: all mail is refused by it.", seen, "remove it at the primary; lists that cease are often sold")
		case dnslist.Untested:
			x.report(Fault, "list-dead", l.Zone, "A DNS list lists nobody, not even a test entry.", seen, "look at its web page: is it still served, under this name?")
		}
	}
	return len(x.Zones) > 0
}

// answers are those to a probe's questions, on one line.
func answers(all []dnslist.Answer) string {
	var s []string
	for _, a := range all {
		s = append(s, a.Asked+": "+a.Got)
	}
	return strings.Join(s, "; ")
}

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// mxHost is a mail server that a domain's MX records name.
type mxHost struct {
	host string
	pref uint16
	hostAddrs
}

func (m mxHost) String() string { return fmt.Sprintf("%d %s", m.pref, m.host) }

// mx: the MX records of each domain, their order, and servers that are neither
// the primary nor this machine.
func (x *exam) mx(ctx context.Context) (looked bool) {
	if n := len(x.Domains) + len(x.Hosts); n > maxDomains {
		x.report(Warning, "many-domains", "", fmt.Sprintf("Of %d domains the first %d were looked at.", n, maxDomains), "", "look at the others by hand")
	}
	x.each(func(d string) {
		if d == "" || strings.HasPrefix(d, ".") {
			return // local names, or all below a domain: no name to look up
		}
		host := slices.Contains(x.Hosts, d)
		records, err := ask[*dns.MX](ctx, x, d, dns.TypeMX)
		if err != nil && !errors.Is(err, errNone) {
			x.report(Unknown, "mx-unknown", d, "The MX records can't be looked up.", err.Error(), "")
			return
		}
		if err != nil && host {
			return
		}
		if err != nil {
			x.report(Fault, "mx-none", d, "The domain has no MX records: nobody comes here during an outage.", "", x.record(d, 20))
			return
		}
		if records[0].Mx == "." {
			x.report(Fault, "mx-null", d, "The domain says that it takes no mail (RFC 7505).", "MX 0 .", x.record(d, 20))
			return
		}
		var all []mxHost
		for _, r := range records {
			host := fqdn(r.Mx)
			all = append(all, mxHost{host, r.Preference, x.addrs(ctx, host)})
		}
		slices.SortFunc(all, func(a, b mxHost) int { return int(a.pref) - int(b.pref) })
		x.mu.Lock()
		x.domains[d] = all
		x.mu.Unlock()
		x.names(d, all)
		x.order(ctx, d, all)
	})
	x.others(ctx)
	return len(x.domains) > 0
}

// record is the line for the zone file that names this machine.
func (x *exam) record(domain string, pref uint16) string {
	return fmt.Sprintf("put into its zone: %s. MX %d %s.", domain, pref, x.Hostname)
}

// names looks at the names in MX records.
func (x *exam) names(domain string, all []mxHost) {
	for _, m := range all {
		evidence := "MX " + m.String()
		_, literal := netip.ParseAddr(m.host)
		switch {
		case literal == nil:
			x.report(Fault, "mx-address", domain, "An MX record names an address; it must be a host name (RFC 5321 §5.1).", evidence, "give the host a name")
		case m.alias != "":
			x.report(Warning, "mx-cname", domain, "An MX record names an alias; some senders refuse that (RFC 2181 §10.3).", evidence+", which is a CNAME of "+m.alias, "name "+m.alias+" in the MX record")
		case errors.Is(m.err, errNone):
			x.report(Fault, "mx-dangling", domain, "An MX record names a host without an address.", evidence, "add its A record, or take the MX record away")
		case m.err != nil:
			x.report(Unknown, "mx-unknown", domain, "The addresses of an MX host can't be looked up.", m.err.Error(), "")
		}
	}
}

// order looks who comes first.
func (x *exam) order(ctx context.Context, domain string, all []mxHost) {
	ours, theirs := x.ours(ctx), x.theirs(ctx)
	we := slices.IndexFunc(all, func(m mxHost) bool { return m.host == x.Hostname || shares(m.addrs, ours) && !shares(m.addrs, theirs) })
	primary := slices.IndexFunc(all, func(m mxHost) bool { return x.isPrimary(m, theirs) })
	evidence := "MX " + listed(all)
	switch {
	case we < 0:
		pref := uint16(20)
		if primary >= 0 {
			pref = max(pref, all[primary].pref+10)
		}
		x.report(Fault, "mx-missing", domain, "No MX record names this machine: nobody comes here during an outage.", evidence, x.record(domain, pref))
	case primary < 0:
		x.report(Warning, "mx-hidden-primary", domain, "No MX record names the primary: all mail comes through here.", evidence, "right for a hidden primary; otherwise name it with a lower number. A hidden one should let nobody else in: on the primary, "+x.firewall())
	case all[we].pref < all[primary].pref:
		x.report(Fault, "mx-order", domain, "Senders come here first, and to the primary when we are away.", evidence, x.record(domain, all[primary].pref+10))
	case all[we].pref == all[primary].pref:
		x.report(Warning, "mx-equal", domain, "Senders choose between the primary and this machine by chance.", evidence, x.record(domain, all[primary].pref+10))
	}
}

// firewall are the rules that let only this machine talk to a mail server.
func (x *exam) firewall() string {
	var rules []string
	for _, a := range x.ours(context.Background()) {
		family := "ip"
		if a.Is6() {
			family = "ip6"
		}
		rules = append(rules, fmt.Sprintf("nft add rule inet filter input %s saddr %s tcp dport 25 accept", family, a))
	}
	return strings.Join(append(rules, "nft add rule inet filter input tcp dport 25 drop"), "; ")
}

func (x *exam) isPrimary(m mxHost, theirs []netip.Addr) bool {
	return shares(m.addrs, theirs) || slices.ContainsFunc(x.Primaries, func(p Primary) bool { return fqdn(hostOf(p.Address)) == m.host })
}

// others connects to mail servers that are neither the primary nor this
// machine. One that filters less is the back door that spammers look for.
func (x *exam) others(ctx context.Context) {
	ours, theirs := x.ours(ctx), x.theirs(ctx)
	domains := map[string][]string{}
	for d, all := range x.domains {
		for _, m := range all {
			if len(m.addrs) > 0 && m.host != x.Hostname && !shares(m.addrs, ours) && !x.isPrimary(m, theirs) {
				domains[m.host] = append(domains[m.host], d)
			}
		}
	}
	for host, of := range domains {
		slices.Sort(of)
		s := x.server(ctx, net.JoinHostPort(host, x.Port))
		if s.err != nil {
			x.report(Warning, "mx-silent", host, "A mail server of the domain doesn't answer: senders wait for it.", fmt.Sprintf("MX of %s; %v", listed(of), s.err), "take its MX record away, or mend it")
			continue
		}
		x.report(Warning, "back-door", host, "Another server takes mail for the domain. If it filters less than the primary, spammers come in there.",
			fmt.Sprintf("MX of %s; it greets: %s", listed(of), s.greeting), "right if it is another Understudy or filters as the primary does; otherwise take its MX record away, and let only this machine and the filter in: on "+host+", "+x.firewall())
	}
}

// addresses: this machine's name and addresses.
func (x *exam) addresses(ctx context.Context) (looked bool) {
	h := x.addrs(ctx, x.Hostname)
	switch {
	case errors.Is(h.err, errNone):
		x.report(Fault, "hostname-unknown", x.Hostname, "The DNS doesn't know this machine's host name.", h.err.Error(), "add its A record, or set `hostname` to the name that MX records have")
		return true
	case h.err != nil:
		x.report(Unknown, "hostname-unknown", x.Hostname, "This machine's host name can't be looked up.", h.err.Error(), "")
		return true
	}
	for _, a := range h.addrs {
		arpa, err := dns.ReverseAddr(a.String())
		if err != nil {
			continue
		}
		names, err := ask[*dns.PTR](ctx, x, arpa, dns.TypePTR)
		switch {
		case errors.Is(err, errNone):
			x.report(Fault, "ptr-missing", a.String(), "The address has no name: many primaries, and some senders' checks, distrust it.", "no PTR record", fmt.Sprintf("ask whoever gave you the address for the PTR record %s", x.Hostname))
		case err != nil:
			x.report(Unknown, "ptr-unknown", a.String(), "The address's name can't be looked up.", err.Error(), "")
		case !slices.ContainsFunc(names, func(p *dns.PTR) bool { return slices.Contains(x.addrs(ctx, p.Ptr).addrs, a) }):
			x.report(Fault, "ptr-mismatch", a.String(), "The address's name doesn't have this address: many primaries distrust it.", "PTR "+names[0].Ptr, fmt.Sprintf("let the PTR record say %s", x.Hostname))
		case !slices.ContainsFunc(names, func(p *dns.PTR) bool { return fqdn(p.Ptr) == x.Hostname }):
			x.report(Warning, "ptr-other", a.String(), "The address has another name than this machine greets by.", fmt.Sprintf("PTR %s; hostname is %s", names[0].Ptr, x.Hostname), "let the PTR record and `hostname` say the same")
		}
	}
	x.local(h.addrs)
	return true
}

// local looks whether the DNS's addresses are this machine's.
func (x *exam) local(addrs []netip.Addr) {
	mine, err := net.InterfaceAddrs()
	if err != nil {
		x.report(Unknown, "addresses-unknown", "", "This machine's addresses can't be read.", err.Error(), "")
		return
	}
	var public []netip.Addr
	for _, a := range mine {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			if slices.Contains(addrs, p.Addr().Unmap()) || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.IsLoopback() && p.Contains(a) }) {
				return
			}
			if isPublic(p.Addr().Unmap()) {
				public = append(public, p.Addr().Unmap())
			}
		}
	}
	if len(public) > 0 {
		x.report(Fault, "hostname-elsewhere", x.Hostname, "The host name's addresses are another machine's.", fmt.Sprintf("the DNS has %s; this machine has %s", listed(addrs), listed(public)), "correct its A and AAAA records, or `hostname`")
	}
}

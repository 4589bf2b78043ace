package policy

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strings"
)

// allAddrs looks up all addresses of a host. Some will do where the look-up of the
// others fails.
func (l *lookups) allAddrs(name string, onlyIPv4 bool) question {
	networks := []string{"ip6", "ip4"}
	if onlyIPv4 {
		networks = networks[1:]
	}
	return question{"host " + name, func(ctx context.Context, a *answer) {
		a.status = dnsNotFound
		for _, network := range networks {
			addrs, err := l.r.LookupNetIP(ctx, network, name)
			switch st := a.outcome(err); {
			case st == dnsFound:
				for _, x := range addrs {
					a.addrs = append(a.addrs, x.Unmap())
				}
			case st == dnsTemp:
				a.status = dnsTemp
			}
		}
		if len(a.addrs) > 0 {
			a.status = dnsFound
		}
	}}
}

// mailHosts looks up a domain's MX hosts, the best first; without any, whether it has
// addresses. best is 0 then.
func (l *lookups) mailHosts(domain string, onlyIPv4 bool) question {
	return question{"mail hosts " + domain, func(ctx context.Context, a *answer) {
		mxs, err := l.r.LookupMX(ctx, domain)
		if a.status = a.outcome(err); a.status == dnsTemp {
			return
		}
		if a.status == dnsFound && len(mxs) > 0 {
			slices.SortStableFunc(mxs, func(x, y *net.MX) int { return cmp.Compare(x.Pref, y.Pref) })
			if len(mxs) == 1 && (mxs[0].Host == "." || mxs[0].Host == "") {
				a.status = dnsNullMX
				return
			}
			for _, mx := range mxs[:min(len(mxs), maxServers)] {
				a.hosts = append(a.hosts, strings.TrimSuffix(mx.Host, "."))
				if mx.Pref == mxs[0].Pref {
					a.best++
				}
			}
			return
		}
		in := &answer{}
		l.allAddrs(domain, onlyIPv4).ask(ctx, in)
		a.status, a.failed = in.status, a.failed || in.failed
	}}
}

package policy

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

// permitMXBackup permits a recipient at our domains, and one at a domain that has
// the primary among its exchangers but not among the best. A DNS failure makes a
// later refusal temporary.
func permitMXBackup(e *eval, c *check) status {
	switch a := &e.rcpt; {
	case !e.hasRcpt || a.routed && !e.snap.spec.AllowUntrustedRouting:
		return dunno
	case a.class != classDefault:
		return e.permit(e.ruleOf(c))
	case strings.HasPrefix(a.domain, "[") && strings.HasSuffix(a.domain, "]"):
		return dunno
	}
	domain := toASCII(e.rcpt.domain)
	mx := e.lookups.get(e.ctx, e.lookups.exchangers(domain))
	if mx.status == dnsTemp {
		return e.noBackup(c, "Unable to look up mail exchanger information: Host not found, try again")
	}
	best, others := mx.hosts[:mx.best], mx.hosts[mx.best:]
	if len(best) == 0 || e.primaryIn(c, best) || !e.primaryIn(c, others) {
		return dunno
	}
	if len(e.snap.spec.MXBackup.Networks) > 0 && slices.ContainsFunc(best, func(host string) bool { return !e.backupMayServe(c, host) }) {
		return dunno
	}
	if e.snap.spec.DomainsIncomplete { // one of the best may be the primary by a name that isn't known
		return dunno
	}
	return e.permit(e.ruleKey(c, domain))
}

func (e *eval) noBackup(c *check, why string) status {
	return e.deferIfReject(e.ruleKey(c, e.rcpt.domain), 450, "4.4.4", rejectedText(e.rcpt.raw, classRcpt, why))
}

// primaryIn says that one of the hosts is the primary, by its name or else by
// its address.
func (e *eval) primaryIn(c *check, hosts []string) bool {
	if slices.ContainsFunc(hosts, func(host string) bool { return e.snap.inClass(&e.find, classLocal, table.Fold(host)) }) {
		return true
	}
	for _, host := range hosts {
		var addrs []netip.Addr
		if a, err := netip.ParseAddr(host); err == nil {
			addrs = []netip.Addr{a}
		} else {
			found := e.lookups.get(e.ctx, e.lookups.hostAddrs(host))
			if addrs = found.addrs; len(addrs) == 0 {
				why := "Name or service not known"
				if found.status == dnsTemp {
					why = "Temporary failure in name resolution"
				}
				e.noBackup(c, "Unable to look up mail exchanger host "+host+": "+why)
			}
		}
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(e.snap.spec.MXBackup.Addresses, a.Unmap()) }) {
			return true
		}
	}
	return false
}

// backupMayServe says that all addresses of a host are in
// permit_mx_backup_networks.
func (e *eval) backupMayServe(c *check, host string) bool {
	found := e.lookups.get(e.ctx, e.lookups.hostAddrs(host))
	if len(found.addrs) == 0 {
		why := "Host not found"
		if found.status == dnsTemp {
			why += ", try again"
		}
		e.noBackup(c, "Unable to look up host "+host+" as mail exchanger: "+why)
		return false
	}
	return !slices.ContainsFunc(found.addrs, func(a netip.Addr) bool { return !e.snap.backupNetworks.has(&e.find, a.Unmap(), host) })
}

// exchangers looks up a domain's MX hosts, the best first. A null MX has none.
func (l *lookups) exchangers(domain string) question {
	return question{"exchangers " + domain, func(ctx context.Context, a *answer) {
		mxs, err := l.r.LookupMX(ctx, domain)
		a.status = statusOf(err)
		for _, mx := range mxs {
			if host := trimDot(mx.Host); host != "." && host != "" {
				if a.hosts = append(a.hosts, host); mx.Pref == mxs[0].Pref {
					a.best++
				}
			}
		}
	}}
}

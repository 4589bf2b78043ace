package policy

import (
	"context"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// serverType is which servers of a domain an access table is asked about.
type serverType uint8

const (
	serverMX serverType = iota
	serverNS
	serverA
)

// subject is what a restriction checks: the name, its form in a reply and its class.
type subject func(*eval) (name, what, class string)

func named(f func(*eval) (string, string)) subject {
	return func(e *eval) (string, string, string) {
		name, class := f(e)
		return name, name, class
	}
}

func subjectClient(e *eval) (name, what, class string) {
	return known(e.client.Name), e.namaddr(), classClient
}

func subjectReverse(e *eval) (name, what, class string) {
	return known(e.client.ReverseName), e.client.ReverseName, classRevClient
}

// serverAccess asks an access table about the names and addresses of a
// domain's servers. A look-up that fails says nothing; OK is not allowed.
func serverAccess(typ serverType, subj subject) checkFunc {
	return func(e *eval, c *check) status {
		name, what, class := subj(e)
		if name == "" {
			return dunno
		}
		h := e.findServer(typ, c.table, name)
		if !h.ok() {
			return dunno
		}
		return e.forbidOK(c, e.access(c, h, what, class))
	}
}

func (e *eval) findServer(typ serverType, t *dict, name string) hit {
	domain := name[strings.LastIndexByte(name, '@')+1:]
	if strings.HasPrefix(domain, "[") {
		if a, valid := envelope.LiteralAddr(domain); valid && typ != serverNS {
			return e.find.addr(t, a)
		}
		return hit{}
	}
	domain = toASCII(domain)
	hosts := []string{domain}
	switch dotted := strings.HasSuffix(domain, "."); {
	case dotted && typ == serverNS: // no name that Postfix would look records up for
		return hit{}
	case !dotted && typ != serverA:
		hosts = e.lookups.get(e.ctx, e.lookups.servers(typ, domain)).hosts
	}
	seen := 0
	for _, host := range hosts {
		if a, err := netip.ParseAddr(host); err == nil {
			if h := e.find.addr(t, a.Unmap()); h.ok() {
				return h
			}
			continue
		}
		if typ != serverA {
			if h := e.find.domain(t, host); h.ok() {
				return h
			}
		}
		for _, a := range e.lookups.get(e.ctx, e.lookups.hostAddrs(host)).addrs {
			if seen++; seen > maxServers {
				return hit{}
			}
			if h := e.find.addr(t, a.Unmap()); h.ok() {
				return h
			}
		}
	}
	return hit{}
}

// servers looks up a domain's MX hosts, itself when it has none, or its name
// servers, its parents' when it has none. A null MX has no hosts.
func (l *lookups) servers(typ serverType, domain string) question {
	key := "mx " + domain
	if typ == serverNS {
		key = "ns " + domain
	}
	return question{key, func(ctx context.Context, a *answer) {
		if typ == serverMX {
			mxs, err := l.r.LookupMX(ctx, domain)
			a.status = statusOf(err)
			for _, mx := range mxs {
				if host := trimDot(mx.Host); hostLike(host) {
					a.hosts = append(a.hosts, host)
				}
			}
			if a.status == dnsNotFound {
				a.hosts = []string{domain}
			}
			return
		}
		for d := domain; d != ""; _, d, _ = strings.Cut(d, ".") {
			nss, err := l.r.LookupNS(ctx, d)
			if a.status = statusOf(err); a.status == dnsTemp {
				return
			}
			for _, ns := range nss {
				if host := trimDot(ns.Host); hostLike(host) {
					a.hosts = append(a.hosts, host)
				}
			}
			if a.status == dnsFound {
				return
			}
		}
	}}
}

func (l *lookups) hostAddrs(host string) question {
	return question{"host " + host, func(ctx context.Context, a *answer) {
		var err error
		a.addrs, err = l.r.LookupNetIP(ctx, "ip", host)
		a.status = statusOf(err)
	}}
}

package policy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
)

// dnsRoute looks up the exchangers of the domain.
func (r *aclRun) dnsRoute(t *routing, ro *aclRouter) routeResult {
	if strings.HasPrefix(t.domain, "[") || !r.acl.validDomain(t.domain) {
		t.message = "mail domain \"" + t.domain + "\" is syntactically invalid"
		return routeDecline
	}
	a := r.lookups.get(r.ctx, r.lookups.mailHosts(t.domain, r.acl.DisableIPv6))
	switch a.status {
	case dnsTemp:
		return t.unanswered(ro)
	case dnsNullMX:
		t.message, t.pass = "an MX or SRV record indicated no SMTP service", true
		return routeDecline
	case dnsNotFound:
		return routeDecline
	}
	return r.reachable(t, ro, a)
}

// unanswered is what becomes of an address that the DNS doesn't answer about.
func (t *routing) unanswered(ro *aclRouter) routeResult {
	if ro.flag("pass_on_timeout", false) {
		return routePass
	}
	t.message = "host lookup did not complete"
	return routeDefer
}

// reachable judges the exchangers by their addresses.
func (r *aclRun) reachable(t *routing, ro *aclRouter, a *answer) routeResult {
	ignored := func(addr netip.Addr) bool {
		list := ro.Options["ignore_target_hosts"]
		if list == "" {
			return false
		}
		text, err := r.expand(list)
		return err == nil && r.match(listIP, addr.String(), text, nil) == aclOK
	}
	byMX := a.best > 0
	hosts := a.hosts
	if !byMX {
		hosts = []string{t.domain}
	}
	any, temp := false, false
scan:
	for i, h := range hosts {
		addrs, st := r.addresses(h)
		temp = temp || st == dnsTemp
		for _, addr := range addrs {
			if ignored(addr) {
				continue
			}
			if slices.Contains(r.acl.Own, addr.String()) || addr == netip.IPv4Unspecified() {
				if i < max(1, a.best) {
					return r.self(t, ro, byMX)
				}
				break scan // those that are no better than the primary don't count
			}
			any = true
		}
	}
	switch {
	case any:
		return routeDone
	case temp:
		return t.unanswered(ro)
	case byMX:
		t.message, t.pass = "all relevant MX records point to non-existent hosts", true
	}
	return routeDecline
}

// self is what becomes of an address whose exchanger is the primary itself.
func (r *aclRun) self(t *routing, ro *aclRouter, byMX bool) routeResult {
	why := "remote host address is the local host"
	if byMX {
		why = "lowest numbered MX record points to local host"
	}
	switch ro.Options["self"] {
	case "send":
		return routeDone
	case "fail":
		t.message = why
		return routeFail
	case "pass":
		return routePass
	}
	t.message = why
	return routeDefer
}

// manualRoute finds a domain in a list of routes.
func (r *aclRun) manualRoute(t *routing, ro *aclRouter) routeResult {
	if data, given := ro.Options["route_data"]; given {
		v, err := r.expand(data)
		switch {
		case errors.Is(err, expansion.ErrForced):
			return routeDecline
		case err != nil:
			return routeDefer
		case strings.TrimSpace(v) == "":
			return routeDecline
		}
		return routeDone
	}
	for _, pattern := range RoutePatterns(ro.Options["route_list"]) {
		text, err := r.expand(pattern)
		switch {
		case errors.Is(err, expansion.ErrForced):
			continue
		case err != nil:
			return routeDefer
		}
		s := &listSubject{kind: listDomain, as: t.domain, given: t.domain}
		switch r.scan(s, parseItems([]string{text}, listDomain)) {
		case aclOK:
			return routeDone
		case aclDefer:
			return routeDefer
		}
	}
	return routeDecline
}

// RoutePatterns are the domains of a route_list, each of which is expanded by itself.
//
//	*.example.net host.example ; lsearch;/etc/routes host.example
func RoutePatterns(list string) (all []string) {
	sep := ";"
	if strings.HasPrefix(list, "<") && len(list) > 1 {
		sep, list = list[1:2], list[2:]
	}
	for rule := range strings.SplitSeq(list, sep) {
		pattern, _, _ := strings.Cut(strings.TrimSpace(rule), " ")
		if pattern = strings.Trim(pattern, `"`); pattern != "" {
			all = append(all, pattern)
		}
	}
	return all
}

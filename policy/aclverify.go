package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/expansion"
)

// verify evaluates a verify condition, whose argument CheckACLVerify has accepted.
func (r *aclRun) verify(arg string) outcome {
	what, options, _ := strings.Cut(arg, "/")
	has := func(o string) bool {
		for s := range strings.SplitSeq(options, "/") {
			if strings.EqualFold(strings.TrimSpace(s), o) {
				return true
			}
		}
		return false
	}
	rc := aclOK
	switch strings.ToLower(strings.TrimSpace(what)) {
	case "helo":
		return r.verifyHelo()
	case "reverse_host_lookup":
		if _, rc = r.hostName(); rc == aclDefer && has("defer_ok") {
			rc = aclOK
		}
		return rc
	case "certificate":
		r.user = "no verified certificate"
		return aclFail
	case "header_syntax":
		return r.verifyHeader(r.headerSyntax)
	case "header_names_ascii":
		return r.verifyHeader(headerNames)
	case "not_blind":
		return aclOK
	case "sender":
		return r.verifySender(has)
	}
	a := r.routed(r.local+"@"+r.domain, false, has("success_on_redirect"))
	if r.user, r.addressData = a.user, a.data; r.user == "" {
		r.user = a.message
	}
	if a.pass {
		r.details = true
	}
	if i := strings.Index(options, calloutOption); i >= 0 && a.remote {
		r.callout, _, _ = strings.Cut(options[i+len(calloutOption):], "/")
		return aclUnknown
	}
	if rc = a.rc; rc == aclDefer && has("defer_ok") {
		rc = aclOK
	}
	return rc
}

// verifySender verifies the reverse-path, once for a mail transaction.
func (r *aclRun) verifySender(has func(string) bool) outcome {
	sender := r.aclState.sender
	if sender == "" {
		return aclOK
	}
	a := r.aclState.verified[sender]
	if a == nil {
		a = r.routed(sender, true, has("success_on_redirect"))
		r.aclState.verified[sender] = a
		if has("no_details") {
			r.aclState.told[sender] = true
		}
	}
	rc := a.rc
	if rc == aclDefer && has("defer_ok") {
		rc = aclOK
	}
	switch rc {
	case aclOK:
		return rc
	case aclDefer:
		r.user = "Could not complete sender verify"
	default:
		r.user = "Sender verify failed"
	}
	r.failed = a
	return rc
}

// verifyHelo says that the HELO name is the client's: its literal, its name, or a
// name of its address.
func (r *aclRun) verifyHelo() outcome {
	s := &r.aclState
	if !s.heloChecked {
		s.heloChecked, s.heloVerified = true, r.heloFits()
	}
	if s.heloVerified {
		return aclOK
	}
	return aclFail
}

func (r *aclRun) heloFits() bool {
	helo, addr := r.aclState.helo, r.client.Addr.String()
	switch {
	case helo == "":
		return false
	case helo[0] == '[':
		return strings.HasPrefix(helo[1:], addr)
	}
	name, rc := r.nameOnly()
	r.aclState.looked = r.aclState.looked || rc == aclOK
	if rc == aclOK && strings.EqualFold(name, helo) {
		return true
	}
	addrs, st := r.addresses(helo)
	return st == dnsFound && slices.Contains(addrs, r.client.Addr)
}

// addresses looks up a host's addresses.
func (r *aclRun) addresses(name string) ([]netip.Addr, dnsStatus) {
	if !envelope.ValidHostname(strings.TrimSuffix(name, ".")) {
		return nil, dnsNotFound
	}
	a := r.lookups.get(r.ctx, r.lookups.allAddrs(expansion.Lower(name), r.acl.DisableIPv6))
	return a.addrs, a.status
}

// dnsList is an element of dnslists.
type dnsList struct {
	zone, textZone string
	ips            string
	keys           string
	bitmask        bool
	not, all       bool
}

// parseDNSList reads "domain[,domain][[!]=[=]addresses][/keys]".
func parseDNSList(item string) (d dnsList) {
	item, d.keys, _ = strings.Cut(item, "/")
	i := strings.IndexByte(item, '=')
	if i < 0 {
		i, d.bitmask = strings.IndexByte(item, '&'), true
	}
	if i >= 0 {
		d.ips = item[i+1:]
		if item = item[:i]; strings.HasSuffix(item, "!") {
			d.not, item = true, item[:len(item)-1]
		}
		if !d.bitmask && d.ips != "" && (d.ips[0] == '=' || d.ips[0] == '&') {
			d.bitmask, d.all = d.ips[0] == '&', true
			d.ips = d.ips[1:]
		}
		d.ips = strings.TrimSpace(d.ips)
		if d.ips == "" {
			d.ips = ","
		}
	}
	d.zone = strings.TrimSpace(item)
	d.textZone = d.zone
	if text, zone, two := strings.Cut(d.zone, ","); two {
		d.textZone, d.zone = strings.TrimSpace(text), strings.TrimSpace(zone)
	}
	return d
}

// dnslists asks DNS lists until one lists the client, or the keys that it is asked for.
func (r *aclRun) dnslists(list string) outcome {
	usual, names := aclFail, 0
	if r.deferUnanswered {
		usual = aclDefer
	}
	unanswered := usual
	ask := func(d *dnsList, prepend string) outcome {
		if names++; names > maxNames {
			return aclDefer
		}
		return r.dnslist1(d, d.zone, prepend, unanswered)
	}
	for _, item := range expansion.List(list) {
		switch strings.ToLower(item) {
		case "+include_unknown":
			unanswered = aclOK
			continue
		case "+exclude_unknown":
			unanswered = usual
			continue
		case "+defer_unknown":
			unanswered = aclDefer
			continue
		}
		if strings.HasPrefix(item, "+") {
			continue
		}
		d := parseDNSList(item)
		if d.keys == "" && !strings.Contains(item, "/") {
			key := r.client.Addr.String()
			rc := ask(&d, strings.TrimSuffix(reverseAddr(r.client.Addr), "."))
			if rc == aclOK {
				r.dnslist[0], r.dnslist[3] = d.textZone, key
			}
			if rc != aclFail {
				return rc
			}
			continue
		}
		deferred := false
		for _, key := range expansion.List(d.keys) {
			prepend := key
			if a, err := parseAddr(key); err == nil {
				prepend = strings.TrimSuffix(reverseAddr(a), ".")
			}
			switch ask(&d, prepend) {
			case aclOK:
				r.dnslist[0], r.dnslist[3] = d.textZone, key
				return aclOK
			case aclDefer:
				deferred = true
			}
		}
		if deferred {
			return aclDefer
		}
	}
	return aclFail
}

// dnslist1 asks for one name.
func (r *aclRun) dnslist1(d *dnsList, zone, prepend string, unanswered outcome) outcome {
	name := prepend + "." + zone
	if len(name) >= 256 || !envelope.ValidHostname(strings.TrimSuffix(name, ".")) {
		return aclFail
	}
	a := r.lookups.get(r.ctx, r.lookups.listed(name))
	switch a.status {
	case dnsTemp:
		return unanswered
	case dnsFound:
	default:
		return aclFail
	}
	if d.ips != "" && !d.lists(a.addrs) || d.ips == "" && !slices.ContainsFunc(a.addrs, loopback) {
		return aclFail
	}
	if zone != d.textZone {
		return r.dnslist1(&dnsList{textZone: d.textZone}, d.textZone, prepend, unanswered)
	}
	var all []string
	for _, x := range a.addrs {
		all = append(all, x.Unmap().String())
	}
	r.dnslist[1], r.dnslist[2] = strings.Join(all, ", "), first(a.txt)
	return aclOK
}

// first is the first of several texts.
func first(txt string) string {
	txt, _, _ = strings.Cut(txt, " / ")
	return txt
}

func loopback(a netip.Addr) bool { return a.Unmap().Is4() && a.Unmap().As4()[0] == 127 }

// lists says that the answers are those that the element asks for.
func (d *dnsList) lists(addrs []netip.Addr) bool {
	found := false // the loop ended early
	for _, a := range addrs {
		in := d.has(a.Unmap())
		if d.all != in {
			found = true
			break
		}
	}
	only := d.not != d.all
	return only != found
}

func (d *dnsList) has(a netip.Addr) bool {
	for ip := range strings.SplitSeq(d.ips, ",") {
		ip = strings.TrimSpace(ip)
		if !d.bitmask {
			if ip == a.String() {
				return true
			}
			continue
		}
		want, err := netip.ParseAddr(ip)
		if err != nil || !want.Is4() {
			continue
		}
		var mask uint32
		if loopback(a) {
			b := a.As4()
			mask = binary.BigEndian.Uint32(b[:])
		}
		w := want.As4()
		if bits := binary.BigEndian.Uint32(w[:]); bits&mask == bits {
			return true
		}
	}
	return false
}

func parseAddr(s string) (netip.Addr, error) { return netip.ParseAddr(s) }

package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// foreign is a recipient whom no primary serves: example.com is reserved, and
// takes no mail.
const foreign = "understudy-doctor@example.com"

// slowGreeting is a wait before the greeting that was meant: postscreen's is 6 s, or 2
// while it is busy. A busy machine may be slow once.
const slowGreeting = 1900 * time.Millisecond

// primary: every next hop, as this machine meets it.
func (x *exam) primary(ctx context.Context) (looked bool) {
	for _, p := range x.Primaries {
		if x.loop(ctx, p) {
			continue
		}
		preface := ""
		if p.Proxy {
			preface = proxyLocal
		}
		s := x.greet(ctx, p.Address, preface)
		if s.err != nil {
			x.unanswered(p, &s)
			continue
		}
		if s.wait > slowGreeting {
			s.conn.quit()
			if s = x.greet(ctx, p.Address, preface); s.err != nil {
				x.unanswered(p, &s)
				continue
			}
		}
		x.screened(p, &s)
		x.encrypted(p, &s)
		if !p.Proxy { // a header tells it whose mail it gets; this session was for ourselves
			x.identity(p, &s)
		}
		s.conn.quit()
	}
	return len(x.Primaries) > 0
}

// proxyLocal is a PROXY header, version 2, of a connection for nobody else.
const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// loop tells whether a next hop is this machine.
func (x *exam) loop(ctx context.Context, p Primary) bool {
	h := x.addrs(ctx, hostOf(p.Address))
	_, port, _ := net.SplitHostPort(p.Address)
	mine := func(door string) bool {
		host, doorPort, _ := net.SplitHostPort(door)
		if doorPort != port {
			return false
		}
		a, err := netip.ParseAddr(host)
		if err != nil || a.IsUnspecified() {
			return shares(h.addrs, x.ours(ctx)) || slices.ContainsFunc(h.addrs, netip.Addr.IsLoopback)
		}
		return slices.Contains(h.addrs, a.Unmap())
	}
	if !slices.ContainsFunc(x.Doors, mine) {
		return false
	}
	x.report(Fault, "loop", p.Address, "The primary's address is this machine: mail would come back to it.", fmt.Sprintf("%s is %s", hostOf(p.Address), listed(h.addrs)), "set `address` under [primary] to the primary's own")
	return true
}

func (x *exam) unanswered(p Primary, s *server) {
	switch {
	case s.code >= 400:
		x.report(Fault, "primary-refuses", p.Address, "The primary greets this machine with a refusal: nothing can be handed over.", s.err.Error(),
			"let it in at the primary: its postscreen_access_list, its client restrictions, its limits")
	case s.tlsErr != nil:
		x.report(Fault, "primary-tls", p.Address, "TLS with the primary fails.", s.tlsErr.Error(), "mend its certificate, or set `tls = \"off\"` under [primary]")
	case s.code == 220 && p.Proxy:
		x.report(Fault, "primary-no-proxy", p.Address, "The primary greets, and doesn't expect a PROXY header from this machine: nothing can be handed over.", s.err.Error(),
			fmt.Sprintf("on the primary: hosts_proxy = %s in an Exim (docs/primaries/exim.md), smtpd_upstream_proxy_protocol=haproxy at a port of its own in a Postfix; or another `identity` under [primary]", x.address()))
	case s.code == 220 && strings.Contains(strings.ToLower(s.err.Error()), "proxy"):
		x.report(Fault, "primary-wants-proxy", p.Address, "The primary expects a PROXY header from this machine: nothing can be handed over without.", s.err.Error(), "set `identity = \"proxy\"` under [primary]")
	default:
		x.report(Warning, "primary-away", p.Address, "The primary doesn't answer. During an outage that is so; otherwise nothing can be handed over.", s.err.Error(), "look at the address under [primary], the primary's listener and the firewalls between")
	}
}

// screened: tests before the greeting are meant for strangers.
func (x *exam) screened(p Primary, s *server) {
	if s.lines > 1 || s.wait > slowGreeting {
		x.report(Fault, "primary-screens", p.Address, "The primary tests this machine before it greets, as postscreen does with strangers: mail is handed over late, or not at all.",
			fmt.Sprintf("a greeting of %d lines after %.1f s", s.lines, s.wait.Seconds()),
			"on the primary: postconf -e 'postscreen_access_list = permit_mynetworks', with this machine in mynetworks")
	}
}

func (x *exam) encrypted(p Primary, s *server) {
	_, offered := s.plain["STARTTLS"]
	switch {
	case !offered && p.TLS == "require":
		x.report(Fault, "primary-no-tls", p.Address, "The primary offers no STARTTLS, and `tls = \"require\"` asks for it: nothing is handed over.", "", "give it a certificate, or set `tls = \"opportunistic\"` under [primary]")
	case s.tlsErr != nil:
		x.report(Fault, "primary-tls", p.Address, "TLS with the primary fails.", s.tlsErr.Error(), "mend its certificate, or set `tls = \"off\"` under [primary]")
	case p.TLS == "require":
		name := p.TLSName
		if name == "" {
			name = hostOf(p.Address)
		}
		if why := x.untrusted(s.chain, name); why != "" {
			x.report(Fault, "primary-certificate", p.Address, "The primary's certificate is not good, and `tls = \"require\"` asks for a good one.", why, "mend it, or name the one to trust: `tls_name`, `tls_ca` under [primary]")
		}
	}
}

// identity: as whose the primary takes what is handed over.
func (x *exam) identity(p Primary, s *server) {
	_, offered := s.keywords()["XCLIENT"]
	d := s.conn
	relays := false
	code, text, err := d.say("MAIL FROM:<>")
	if err == nil && code == 250 {
		code, text, err = d.say("RCPT TO:<%s>", foreign)
		relays = err == nil && code == 250
	}
	got := fmt.Sprintf("RCPT TO:<%s> got %d %s", foreign, code, text)
	if err != nil {
		got = err.Error()
	}
	allow := fmt.Sprintf("on the primary: postconf -e 'smtpd_authorized_xclient_hosts = %s' && postfix reload (of a suite: docs/PRIMARIES.md)", x.address())
	if strings.Contains(s.greeting, " Exim ") {
		allow = fmt.Sprintf("on the primary: hosts_proxy = %s in Exim's configuration (docs/primaries/exim.md); here: `identity = \"proxy\"` under [primary]", x.address())
	}
	switch {
	case !offered && relays:
		x.report(Fault, "no-client-identity", p.Address,
			"The primary trusts this machine, and isn't told whose mail it hands over: a forged sender of yours counts as local there, is signed by its DKIM signer, and passes what is meant for strangers.",
			"EHLO offers no XCLIENT; "+got, allow)
	case !offered:
		x.report(Warning, "no-client-identity", p.Address, "The primary judges this machine in place of the sender: its blocklists and SPF look at the wrong address.", "EHLO offers no XCLIENT; "+got, allow)
	case !p.XClient:
		x.report(Warning, "client-identity-unused", p.Address, "The primary would take the sender's identity, and isn't told it.", "EHLO offers XCLIENT; `xclient` is false", "set `xclient = true` under [primary]")
	case !strings.Contains(s.keywords()["XCLIENT"], "ADDR"):
		x.report(Fault, "no-client-identity", p.Address, "The primary takes no address by XCLIENT.", "XCLIENT "+s.keywords()["XCLIENT"], "look at smtpd_authorized_xclient_hosts there")
	}
	x.takes(p, d, offered)
}

// takes: what the primary says to a recipient of ours.
func (x *exam) takes(p Primary, d *dialogue, offered bool) {
	if offered || len(x.Domains) == 0 {
		return // it judges the sender; that says nothing about us
	}
	_, _, _ = d.say("RSET")
	if code, _, err := d.say("MAIL FROM:<>"); err != nil || code != 250 {
		return
	}
	rcpt := "postmaster@" + x.Domains[0]
	code, text, err := d.say("RCPT TO:<%s>", rcpt)
	if err == nil && code >= 400 && code < 500 {
		x.report(Warning, "primary-defers", p.Address, "The primary defers mail from this machine, as greylisting does with strangers.", fmt.Sprintf("RCPT TO:<%s> got %d %s", rcpt, code, text), "exempt this machine there: "+x.address())
	}
}

// address is one that the primary sees this machine at.
func (x *exam) address() string {
	if a := x.ours(context.Background()); len(a) > 0 {
		return a[0].String()
	}
	return "this machine's address"
}

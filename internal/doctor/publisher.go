package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Peer is a paired secondary, as the publisher knows it.
type Peer struct {
	Name    string
	Seen    time.Time // zero: not since the publisher started
	Problem string
}

// Publisher is the examination of the primary: whether its Postfix or Exim lets the
// secondaries do their part.
type Publisher struct {
	Away        error                                         // why Postfix or Exim can't be asked, nil when it can
	Exim        *Exim                                         // nil: it is a Postfix
	Set         func(parameter, value string) (remedy string) // how main.cf gets it; nil: by postconf
	Postconf    map[string]string                             // main.cf's values, expanded
	Screened    bool                                          // postscreen stands at port 25
	Lookup      func(ctx context.Context, table, key string) (value string, found bool, err error)
	ReadFile    func(ctx context.Context, name string, max int64) ([]byte, error)
	Secondaries []netip.Addr // where mail is handed over from
	Peers       []Peer
	Running     error  // why the publisher can't be asked, nil when it runs
	Failing     string // what it says of its sources, "" when they are well
	Gaps        []Gap  // what a secondary can't know: items of the import's report
	Guarded     []Gap  // what the import needs, and the publisher's unit may not read
	Unread      error  // why there is no report, nil when there is
}

// Exim is what is to be known of a primary's Exim.
type Exim struct {
	Hostname string
	// Proxied tells whether a PROXY header is expected from an address.
	Proxied func(netip.Addr) (bool, error)
	PerHost string // connections that one address may have, "" for any number
	Set     func(option, value string) (remedy string)
}

// Gap is something of the policy that a secondary lacks.
type Gap struct {
	What   string
	Why    string // "" where What says it
	Remedy string
}

// silence is how long a secondary may stay away: it asks at least once a minute.
const silence = 5 * time.Minute

// publisherChecks are those of a primary.
var publisherChecks = []struct {
	name, healthy string
	run           func(*Publisher, context.Context, *exam) (looked bool)
}{
	{"publisher", "The publisher runs, and every secondary asks it.", (*Publisher).peers},
	{"trust", "The primary takes mail from the secondaries as it would from the sender.", (*Publisher).trust},
	{"reach", "The door of every secondary answers from here.", (*Publisher).reach},
	{"loops", "The primary hands nothing over to a secondary, as far as its settings say.", (*Publisher).loops},
	{"limits", "No limit of the primary's chokes a secondary that empties its queue.", (*Publisher).limits},
	{"policy", "A secondary can know everything that the primary decides by.", (*Publisher).gaps},
}

// RunPublisher examines the primary's side, and those parts of e that both sides
// have: DNS servers, DNS lists, the clock.
func (e Exam) RunPublisher(ctx context.Context, p *Publisher, progress func(check string)) []Finding {
	if p.Exim != nil {
		e.Hostname = cmp.Or(e.Hostname, p.Exim.Hostname)
	}
	if p.Set == nil {
		p.Set = func(parameter, value string) string {
			return "postconf -e '" + parameter + " = " + value + "' && postfix reload"
		}
	}
	e.Hostname = cmp.Or(e.Hostname, p.Postconf["myhostname"], "localhost") // to say EHLO
	x := newExam(e)
	x.progress = progress
	for _, c := range publisherChecks {
		x.part(c.name, c.healthy, func() bool { return c.run(p, ctx, x) })
	}
	for _, c := range checks {
		if slices.Contains([]string{"resolver", "push", "dns-lists", "clock", "disk"}, c.name) {
			x.part(c.name, c.healthy, func() bool { return c.run(x, ctx) })
		}
	}
	order(x.findings)
	return x.findings
}

func (p *Publisher) peers(_ context.Context, x *exam) (looked bool) {
	if p.Running != nil {
		x.report(Fault, "publisher-down", "", "The publisher doesn't answer: the secondaries' policy grows stale.", p.Running.Error(), "systemctl start understudy-publish")
		return true
	}
	if p.Failing != "" && p.Unread == nil { // else whoever examines it can't read them either
		x.report(Fault, "publisher-failing", "", "The publisher can't read the policy, though it can be read from here: the secondaries keep the last one.", p.Failing, "journalctl -u understudy-publish; its unit's user has other rights than you")
	}
	if len(p.Peers) == 0 {
		x.report(Fault, "no-secondary", "", "No secondary is paired.", "", "understudy invite mx2")
	}
	for _, s := range p.Peers {
		switch {
		case s.Seen.IsZero() || x.Now.Sub(s.Seen) > silence:
			seen := "not since the publisher started"
			if !s.Seen.IsZero() {
				seen = "last at " + s.Seen.UTC().Format(time.RFC3339)
			}
			x.report(Fault, "secondary-silent", s.Name, "A secondary doesn't ask for the policy: it decides by an old one.", "seen "+seen, "understudy policy status, on the secondary; let it through the firewall")
		case s.Problem != "":
			x.report(Fault, "secondary-problem", s.Name, "A secondary has a problem.", s.Problem, "understudy policy status, on the secondary")
		}
	}
	return true
}

func (p *Publisher) trust(ctx context.Context, x *exam) (looked bool) {
	if p.Away != nil {
		x.report(Unknown, "primary-unread", "", "The mail server can't be asked whether it trusts the secondaries.", p.Away.Error(), "run understudy publish --check, which asks it in the same way")
		return true
	}
	if len(p.Secondaries) == 0 {
		x.report(Unknown, "secondary-unknown", "", "Where the secondaries hand mail over from isn't known: no MX record names another machine.", "", "name the address: understudy doctor --secondary ADDRESS")
	}
	for _, a := range p.Secondaries {
		if p.Exim != nil {
			p.Exim.trust(x, a)
			continue
		}
		told, err1 := p.Matches(ctx, "smtpd_authorized_xclient_hosts", a)
		trusted, err2 := p.Matches(ctx, "mynetworks", a)
		for _, err := range []error{err1, err2} {
			if err != nil {
				x.report(Unknown, "trust-unknown", a.String(), "A list of Postfix's can't be read.", err.Error(), "")
			}
		}
		allow := p.Set("smtpd_authorized_xclient_hosts", strings.TrimSpace(p.Postconf["smtpd_authorized_xclient_hosts"]+" "+a.String()))
		switch {
		case told || err1 != nil:
		case trusted:
			x.report(Fault, "no-client-identity", a.String(),
				"Postfix trusts the secondary, and isn't told whose mail it hands over: a forged sender of yours counts as local, is signed by the DKIM signer, and passes what is meant for strangers.",
				"it is in mynetworks, and not in smtpd_authorized_xclient_hosts", allow)
		default:
			x.report(Warning, "no-client-identity", a.String(), "Postfix judges the secondary in place of the sender: blocklists and SPF look at the wrong address.", "it isn't in smtpd_authorized_xclient_hosts", allow)
		}
		if p.Screened && !p.exempt(ctx, a, trusted) {
			x.report(Fault, "primary-screens", a.String(), "postscreen tests the secondary as a stranger: mail is handed over late, or not at all.",
				"postscreen_access_list = "+p.Postconf["postscreen_access_list"], p.Set("postscreen_access_list", "permit_mynetworks")+", with the secondary in mynetworks")
		}
	}
	return true
}

// reach looks at port 25 of each secondary from outside, as senders do.
func (p *Publisher) reach(ctx context.Context, x *exam) (looked bool) {
	for _, a := range p.Secondaries {
		addr := net.JoinHostPort(a.String(), x.Port)
		s := x.server(ctx, addr)
		switch {
		case s.err != nil && s.code == 0:
			x.report(Warning, "secondary-unreachable", addr, "Nobody answers at a secondary's door from here: senders find it shut, too, during an outage.", s.err.Error(), "on the secondary: systemctl start understudy.socket; let port 25 through its firewall and its provider's. Behind NAT, where it asks from isn't where it listens")
		case s.err != nil && s.code != 421: // without a policy it puts clients off
			x.report(Warning, "secondary-unreachable", addr, "A secondary's door doesn't work from here.", s.err.Error(), "understudy doctor, on the secondary")
		}
	}
	return len(p.Secondaries) > 0
}

// loops looks for a next hop of Postfix's that is a secondary: mail would go to and
// fro until its hops are too many.
func (p *Publisher) loops(ctx context.Context, x *exam) (looked bool) {
	for _, name := range []string{"relayhost", "smtp_fallback_relay", "relay_transport", "default_transport"} {
		for _, hop := range fields(p.Postconf[name]) {
			host := hop
			if name == "relay_transport" || name == "default_transport" {
				_, host, _ = strings.Cut(hop, ":")
			}
			if open, rest, found := strings.Cut(host, "["); found && open == "" {
				host, _, _ = strings.Cut(rest, "]")
			} else {
				host, _, _ = strings.Cut(host, ":")
			}
			if host == "" || !shares(x.addrs(ctx, host).addrs, p.Secondaries) {
				continue
			}
			x.report(Fault, "loop", name, "Postfix hands mail over to a secondary, which hands it back.", name+" = "+p.Postconf[name], "name another next hop, or none: "+p.Set(name, ""))
		}
	}
	return true
}

// fewConnections is what a secondary opens by default to drain its queue and to ask.
const fewConnections = 20

// exempt tells whether postscreen lets an address pass untested.
func (p *Publisher) exempt(ctx context.Context, a netip.Addr, trusted bool) bool {
	for _, element := range fields(p.Postconf["postscreen_access_list"]) {
		if element == "permit_mynetworks" && trusted {
			return true
		}
		if strings.Contains(element, ":") {
			if v, found, err := p.Lookup(ctx, element, a.String()); err == nil && found {
				return strings.EqualFold(v, "permit")
			}
		}
	}
	return false
}

// choking are Postfix's limits on one client, 0 being none.
var choking = []string{"smtpd_client_connection_rate_limit", "smtpd_client_message_rate_limit", "smtpd_client_recipient_rate_limit", "smtpd_client_new_tls_session_rate_limit"}

func (p *Publisher) limits(ctx context.Context, x *exam) (looked bool) {
	if p.Away != nil {
		return false
	}
	for _, a := range p.Secondaries {
		if p.Exim != nil {
			p.Exim.limits(x, a)
			continue
		}
		if exempt, err := p.Matches(ctx, "smtpd_client_event_limit_exceptions", a); exempt || err != nil {
			continue
		}
		var set []string
		for _, name := range choking {
			if v := p.Postconf[name]; v != "" && v != "0" {
				set = append(set, name+" = "+v)
			}
		}
		if n, err := strconv.Atoi(p.Postconf["smtpd_client_connection_count_limit"]); err == nil && n > 0 && n < fewConnections {
			set = append(set, fmt.Sprintf("smtpd_client_connection_count_limit = %d", n))
		}
		if len(set) > 0 {
			x.report(Warning, "rate-limits", a.String(), "Postfix limits how much one client may send, and doesn't exempt the secondary: a long queue empties slowly.", strings.Join(set, ", "),
				p.Set("smtpd_client_event_limit_exceptions", "$mynetworks")+", with the secondary in mynetworks")
		}
	}
	return len(p.Secondaries) > 0
}

func (p *Publisher) gaps(_ context.Context, x *exam) (looked bool) {
	if p.Unread != nil {
		x.report(Fault, "policy-unread", "", "The policy can't be read: the secondaries keep the last one.", p.Unread.Error(), "understudy publish --check")
		return true
	}
	for _, g := range p.Gaps {
		remedy := "understudy publish --check tells the choices"
		if g.Remedy != "" {
			remedy = g.Remedy + "; " + remedy
		}
		x.report(Warning, "not-replicated", "", "A secondary can't decide this as the primary does.", g.What, remedy)
	}
	for _, g := range p.Guarded {
		x.report(Warning, "publisher-may-not-read", g.What, "The publisher, as systemd runs it, can't read this: the policy lacks it, or can't be read at all.", g.Why, g.Remedy)
	}
	return true
}

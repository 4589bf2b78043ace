// Package handwritten reads a policy that a person wrote, in TOML:
//
//	domains         = ["example.org"]
//	recipients_file = "recipients"
//	[client]
//	block = ["198.51.100.0/24", { match = "spam.example", reply = "550 5.7.1 Go away" }]
//	[[dnsbl]]
//	zone  = "zen.spamhaus.org"
//	codes = "127.0.0.[2..11]"
//
// It becomes a policy.Spec of the same restrictions and tables as an imported
// one. All mistakes are reported at once, with place and remedy:
//
//	policy.toml:4:10: "198.51.100.7/24" has host bits; write 198.51.100.0/24
//
// A list of recipients is read in parallel pieces, and shares memory with the
// policy read before: adding one line to ten million costs little.
package handwritten

import (
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// Keys of the hand-written policy file, by table.
var (
	rootKeys = []string{
		"domains", "recipients", "recipients_file", "recipients_pushed", "recipients_asked", "recipient_delimiter", "delay_reject", "dnsbl_threshold",
		"client", "helo", "sender", "checks", "dnsbl", "limits",
	}
	listKeys  = []string{"allow", "block"}
	entryKeys = []string{"match", "reply"}
	dnsblKeys = []string{"zone", "codes", "weight", "reply"}
	checkKeys = []string{
		"reject_unknown_client_hostname", "reject_unknown_reverse_client_hostname",
		"helo_required", "reject_invalid_helo_hostname", "reject_non_fqdn_helo_hostname", "reject_unknown_helo_hostname",
		"reject_non_fqdn_sender", "reject_unknown_sender_domain", "reject_unlisted_sender",
		"reject_multi_recipient_bounce", "spf", "dmarc",
	}
	limitKeys = []string{
		"message_size", "recipients", "header_size", "line_length", "hops", "soft_errors", "hard_errors", "junk_commands",
	}
)

// file is a policy file that becomes a Spec. Its lists are in this order: allow,
// block, DNS lists, checks. An allowed client skips the client and HELO lists, an
// allowed HELO name or sender its own list. Nobody skips relay control and the
// check that the recipient exists, which are separate lists.
type file struct {
	*document
	spec    *policy.Spec
	open    opener
	before  *policy.Snapshot // shares memory with it, unless nil
	domains map[string]int   // each with a number
	asks    []string         // domains whose recipients only the primary knows
	unsure  map[string]bool  // domains where an unknown recipient is refused for now only
}

// recipientsTable is the name of the table of recipients.
const recipientsTable = "recipients"

// opener opens a file that the policy mentions and says its whole path, also
// when it fails.
type opener func(file string) (path string, r io.ReadCloser, err error)

func (p *file) read(m map[string]any) {
	p.spec.Tables = map[string]*table.Table{}
	p.spec.DNSBL.Replies = map[string]string{}
	p.spec.RelayBeforeRecipient = true
	root := node{p.document, "", m}
	root.known(rootKeys, elsewhere())
	p.addresses(root)
	checks := p.checks(root.table("checks"))
	r := &p.spec.Restrictions
	allow, block := p.accessLists(root.table("client"), "check_client_access", clientEntry)
	r.Client = slices.Concat(allow, block, p.dnsbl(root), checks["client"])
	heloAllow, heloBlock := p.accessLists(root.table("helo"), "check_helo_access", heloEntry)
	r.Helo = slices.Concat(allow, heloAllow, heloBlock, checks["helo"])
	if len(r.Helo) == len(allow) {
		r.Helo = nil
	}
	senderAllow, senderBlock := p.accessLists(root.table("sender"), "check_sender_access", senderEntry)
	r.Sender = slices.Concat(senderAllow, senderBlock, checks["sender"])
	r.Relay = []policy.Restriction{{Kind: "reject_unauth_destination"}}
	r.Data = checks["data"]
	r.Recipient = slices.Concat(checks["recipient"], r.Recipient)
	root.boolean("delay_reject", &p.spec.DelayReject)
	p.limits(root.table("limits"))
}

// elsewhere maps each key to its place in the file.
func elsewhere() map[string]string {
	m := map[string]string{}
	add := func(keys []string, place string) {
		for _, k := range keys {
			m[k] = place
		}
	}
	add(dnsblKeys[:3], "under [[dnsbl]]")
	add(checkKeys, "under [checks]")
	add(limitKeys, "under [limits]")
	add(rootKeys, "at the top of the file, before the first [table]")
	return m
}

func (p *file) addresses(n node) {
	a := &p.spec.Addresses
	a.RecipientDelimiter = n.str("recipient_delimiter")
	if strings.ContainsFunc(a.RecipientDelimiter, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '@' || r == '"' }) {
		n.wrong("recipient_delimiter", "recipient_delimiter must be one or more characters such as \"+\" or \"+-\", without space, quote or @")
	}
	vals, paths := n.strings("domains")
	for i, v := range vals {
		domain := table.Fold(v)
		_, twice := p.domains[domain]
		switch {
		case !envelope.ValidHostname(domain) || !strings.Contains(domain, "."):
			n.wrong(paths[i], "%q is not a domain; write it like \"example.org\", an internationalized one as xn--…", v)
		case twice:
			n.wrong(paths[i], "domain %q is listed twice; remove one", v)
		default:
			p.domains[domain] = len(p.domains)
		}
	}
	if _, given := n.m["domains"].(string); len(vals) == 0 && !given {
		n.wrong("domains", "no domains; list those to accept mail for: domains = [\"example.org\"]")
	}
	p.asked(n)
	p.recipients(n, vals, paths)
	sure := maps.Clone(p.domains)
	for d := range p.unsure {
		delete(sure, d)
	}
	a.VirtualMailbox.Domains = slices.Sorted(maps.Keys(sure))
	a.VirtualMailbox.Recipients = []string{recipientsTable}
	if len(p.unsure) > 0 {
		a.Relay = policy.AddressClass{Domains: slices.Sorted(maps.Keys(p.unsure)), Recipients: []string{recipientsTable}, Incomplete: true}
	}
}

// askedTable is the name of the access table with the domains whose recipients the
// primary is asked about.
const askedTable = "recipients_asked"

// Asked are the domains of a policy file whose recipients the primary is asked about.
func Asked(s *policy.Snapshot) (domains []string) {
	if t := s.Spec().Tables[askedTable]; t != nil {
		for key, value := range t.Entries(0, t.Len()) {
			if value == "verify_recipient" {
				domains = append(domains, string(key))
			}
		}
	}
	return domains
}

// asked reads the domains where nothing lists the recipients: everybody there is let
// in, once the primary has said that it has him.
func (p *file) asked(n node) {
	vals, paths := n.strings(askedTable)
	access := map[string]string{}
	for i, v := range vals {
		domain := table.Fold(v)
		if _, ours := p.domains[domain]; !ours || access[domain] != "" {
			n.wrong(paths[i], "%q is not in domains, or is given twice; add it there, or remove it", v)
			continue
		}
		access[domain] = "verify_recipient"
		p.asks = append(p.asks, domain)
	}
	if len(access) == 0 {
		return
	}
	t, err := table.NewHash(access)
	if err != nil {
		n.wrong(askedTable, "%v", err)
		return
	}
	p.spec.Tables[askedTable] = t
	p.spec.Restrictions.Recipient = []policy.Restriction{{Kind: "check_recipient_access", Arg: askedTable}}
}

// checks sorts the switched-on checks into the lists where they belong.
func (p *file) checks(n node) map[string][]policy.Restriction {
	n.known(checkKeys, elsewhere())
	lists := map[string][]policy.Restriction{}
	for _, k := range checkKeys {
		on := false
		n.boolean(k, &on)
		switch {
		case !on:
		case k == "helo_required":
			p.spec.HeloRequired = true
		case k == "spf":
			p.spf()
			lists["recipient"] = append(lists["recipient"], policy.Restriction{Kind: "check_spf", Arg: "spf"})
		case k == "dmarc":
			p.dmarc()
		case k == "reject_unlisted_sender":
			p.spec.RejectUnlistedSender = true
		case strings.Contains(k, "client"):
			lists["client"] = append(lists["client"], policy.Restriction{Kind: k})
		case strings.Contains(k, "helo"):
			lists["helo"] = append(lists["helo"], policy.Restriction{Kind: k})
		case strings.Contains(k, "sender"):
			lists["sender"] = append(lists["sender"], policy.Restriction{Kind: k})
		default:
			lists["data"] = append(lists["data"], policy.Restriction{Kind: k})
		}
	}
	return lists
}

// spf refuses what SPF fails, as policyd-spf does by default.
func (p *file) spf() {
	p.spec.Filters.SPF = map[string]policy.SPFService{"spf": {HELO: "Fail", MailFrom: "Fail", VoidLookups: 2, Seconds: 20, Header: "SPF",
		Message: "Message {rejectdefer} due to: {spf}. Please see {url}"}}
}

// dmarc refuses what fails under a policy p=reject, by SPF and by DKIM, as opendmarc
// does with RejectFailures.
func (p *file) dmarc() {
	p.spec.Filters.Milters = []policy.Milter{
		{DKIM: &policy.DKIMFilter{BadSignature: policy.MilterAccept, NoSignature: policy.MilterAccept, KeyNotFound: policy.MilterAccept, Security: policy.MilterAccept,
			MaxSignatures: 5, MinKeyBits: 1024, ClockDrift: 300}},
		{DMARC: &policy.DMARCFilter{RejectFailures: true, DKIM: true, SelfSPF: true}},
	}
}

// dnsbl reads the DNS lists. With a threshold their weights add up; without,
// each of them refuses alone.
func (p *file) dnsbl(root node) []policy.Restriction {
	_, scored := root.m["dnsbl_threshold"]
	d := &p.spec.DNSBL
	d.Threshold = int(root.integer("dnsbl_threshold", 1, 1000, 0))
	var list []policy.Restriction
	seen := map[string]bool{}
	reachable, before := 0, len(root.mistakes)
	for _, n := range root.tables("dnsbl") {
		n.known(dnsblKeys, elsewhere())
		name := table.Fold(n.str("zone"))
		if name == "" || strings.Contains(name, "=") {
			n.wrong(n.path, "zone must name a DNS list; write zone = \"zen.spamhaus.org\"")
			continue
		}
		if err := policy.CheckZone(name); err != nil {
			n.wrong(n.at("zone"), "%v; write zone = \"zen.spamhaus.org\"", err)
			continue
		}
		if _, filtered := n.m["codes"]; filtered {
			name += "=" + n.str("codes")
			if err := policy.CheckZone(name); err != nil {
				n.wrong(n.at("codes"), "%v", err)
				continue
			}
		}
		if seen[name] {
			n.wrong(n.at("zone"), "DNS list %q is given twice; remove one", name)
		}
		seen[name] = true
		if reply := n.str("reply"); reply != "" {
			var err error
			if d.Replies[name], err = policy.ReplyTemplate(reply); err != nil {
				n.wrong(n.at("reply"), "%v", err)
			}
		}
		weight := int(n.integer("weight", -1000, 1000, 1))
		if _, weighted := n.m["weight"]; weighted && !scored {
			n.wrong(n.at("weight"), "weight needs dnsbl_threshold, the sum from which a client is refused; add that or remove the weight")
		}
		reachable += max(0, weight)
		d.Sites = append(d.Sites, policy.DNSBLSite{Zone: name, Weight: weight})
		list = append(list, policy.Restriction{Kind: "reject_rbl_client", Arg: name})
	}
	if !scored {
		d.Sites = nil
		return list
	}
	if reachable < d.Threshold && len(root.mistakes) == before {
		root.wrong("dnsbl_threshold", "dnsbl_threshold is %d, but all weights together are %d; lower it", d.Threshold, reachable)
	}
	return []policy.Restriction{{Kind: "reject_dnsbl_score"}}
}

func (p *file) limits(n node) {
	n.known(limitKeys, elsewhere())
	l := &p.spec.Limits
	l.MessageSize = n.integer("message_size", 0, 1<<40, l.MessageSize)
	for _, v := range []struct {
		key string
		to  *int
		min int64
	}{
		{"recipients", &l.Recipients, 1}, {"header_size", &l.HeaderBytes, 1024}, {"line_length", &l.LineLength, 1000},
		{"hops", &l.Hops, 2}, {"soft_errors", &l.SoftErrors, 1}, {"hard_errors", &l.HardErrors, 1},
		{"junk_commands", &l.JunkCommands, 1},
	} {
		*v.to = int(n.integer(v.key, v.min, 1<<30, int64(*v.to)))
	}
}

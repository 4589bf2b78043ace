package policy

import (
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Keys of the hand-written policy file, by table.
var (
	rootKeys = []string{
		"domains", "recipients", "recipients_file", "recipient_delimiter", "delay_reject", "dnsbl_threshold",
		"client", "helo", "sender", "checks", "dnsbl", "limits",
	}
	listKeys  = []string{"allow", "block"}
	entryKeys = []string{"match", "reply"}
	dnsblKeys = []string{"zone", "codes", "weight", "reply"}
	checkKeys = []string{
		"reject_unknown_client_hostname", "reject_unknown_reverse_client_hostname",
		"helo_required", "reject_invalid_helo_hostname", "reject_non_fqdn_helo_hostname", "reject_unknown_helo_hostname",
		"reject_non_fqdn_sender", "reject_unknown_sender_domain", "reject_unlisted_sender",
		"reject_multi_recipient_bounce",
	}
	limitKeys = []string{
		"message_size", "recipients", "header_size", "line_length", "hops", "soft_errors", "hard_errors", "junk_commands",
	}
)

// tomlPolicy compiles a policy file into a Spec. The order of its lists: who
// is allowed, who is blocked, DNS lists, then the checks. An allowed client
// passes the client and HELO lists, an allowed HELO name and sender their own;
// none passes relay control or the check that the recipient exists, which are
// lists of their own.
type tomlPolicy struct {
	*document
	spec    *Spec
	open    opener
	like    *marked        // recipients to share memory with
	domains map[string]int // each with a number
}

// tomlRecipients is the name of the table of recipients.
const tomlRecipients = "recipients"

// opener opens a file that the policy mentions and says its whole path, also
// when it fails.
type opener func(file string) (path string, r io.ReadCloser, err error)

func parseTOML(name string, b []byte, open opener, like *Table) (*Spec, error) {
	d, m, err := readDocument(name, b)
	if err != nil {
		return nil, err
	}
	p := &tomlPolicy{document: d, spec: NewSpec(), open: open, like: newMarked(like), domains: map[string]int{}}
	p.spec.Tables = map[string]*Table{}
	p.spec.DNSBL.Replies = map[string]string{}
	p.spec.RelayBeforeRecipient = true
	root := node{d, "", m}
	root.known(rootKeys, elsewhere(rootKeys))
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
	r.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	r.Data = checks["data"]
	root.boolean("delay_reject", &p.spec.DelayReject)
	p.limits(root.table("limits"))
	return p.spec, d.err()
}

// elsewhere tells for each key where in the file it belongs.
func elsewhere(here []string) map[string]string {
	m := map[string]string{}
	add := func(keys []string, place string) {
		for _, k := range keys {
			m[k] = place
		}
	}
	add(dnsblKeys[:1], "under [[dnsbl]]")
	add(checkKeys, "under [checks]")
	add(limitKeys, "under [limits]")
	add(rootKeys, "at the top of the file, before the first [table]")
	for _, k := range here {
		delete(m, k)
	}
	return m
}

func (p *tomlPolicy) addresses(n node) {
	a := &p.spec.Addresses
	a.RecipientDelimiter = n.str("recipient_delimiter")
	if strings.ContainsFunc(a.RecipientDelimiter, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '@' || r == '"' }) {
		n.wrong("recipient_delimiter", "recipient_delimiter must be one or more characters such as \"+\" or \"+-\", without space, quote or @")
		a.RecipientDelimiter = ""
	}
	vals, paths := n.strings("domains")
	for i, v := range vals {
		domain := fold(v)
		_, twice := p.domains[domain]
		switch {
		case !validHostname(domain) || !strings.Contains(domain, "."):
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
	a.VirtualMailbox.Domains = slices.Sorted(maps.Keys(p.domains))
	a.VirtualMailbox.Recipients = []string{tomlRecipients}
	p.recipients(n, vals, paths)
}

func (p *tomlPolicy) recipients(n node, doms, domPaths []string) {
	here := p.newPiece()
	vals, paths := n.strings("recipients")
	for i, v := range vals {
		if err := here.add(v); err != nil {
			n.wrong(paths[i], "%v", err)
		}
	}
	here.sort()
	all, known := []*piece{here}, true
	if file := n.str("recipients_file"); file != "" {
		more, err := p.list(file)
		if err != nil {
			n.wrong("recipients_file", "%v; name a readable file, relative to this one", err)
			known = false
		}
		all = append(all, more...)
	}
	used := make([]bool, len(p.domains))
	for _, c := range all {
		for i := range used {
			used[i] = used[i] || c.used[i]
		}
	}
	for i, v := range doms {
		if no, ours := p.domains[fold(v)]; ours && known && !used[no] {
			n.wrong(domPaths[i], "domain %q has no recipient; list some, or %q to accept every address", v, "@"+v)
		}
	}
	keys, err := merge(all)
	if err == nil && p.like.len() > 0 {
		keys, err = p.like.revised(&keys)
	}
	if err != nil {
		n.wrong("recipients", "%v; split the file", err)
		return
	}
	p.spec.Tables[tomlRecipients] = &Table{typ: typeSet, keys: keys}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// validLocal says that a local-part is written as it must be in a command:
// quoted where, and only where, it needs it.
func validLocal(s string) bool {
	if plainLocal(s) {
		return true
	}
	if len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return false
	}
	if inner, quoted := strings.CutPrefix(s, `"`); quoted && strings.HasSuffix(inner, `"`) {
		inner = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(inner[:len(inner)-1])
		return inner != "" && (envelope.Mailbox{Local: inner}).String() == s
	}
	return (envelope.Mailbox{Local: s}).String() == s
}

// plainLocal says that s is one of those that nearly all are: letters and digits,
// with "-", "_" and single dots between them.
func plainLocal(s string) bool {
	dot := true
	for i := range len(s) {
		switch c := s[i]; {
		case c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_':
			dot = false
		case c == '.' && !dot:
			dot = true
		default:
			return false
		}
	}
	return !dot && len(s) <= 256
}

// checks sorts the switched-on checks into the lists where they belong.
func (p *tomlPolicy) checks(n node) map[string][]Restriction {
	n.known(checkKeys, elsewhere(checkKeys))
	lists := map[string][]Restriction{}
	for _, k := range checkKeys {
		on := false
		n.boolean(k, &on)
		switch {
		case !on:
		case k == "helo_required":
			p.spec.HeloRequired = true
		case k == "reject_unlisted_sender":
			p.spec.RejectUnlistedSender = true
		case strings.Contains(k, "client"):
			lists["client"] = append(lists["client"], Restriction{Kind: k})
		case strings.Contains(k, "helo"):
			lists["helo"] = append(lists["helo"], Restriction{Kind: k})
		case strings.Contains(k, "sender"):
			lists["sender"] = append(lists["sender"], Restriction{Kind: k})
		default:
			lists["data"] = append(lists["data"], Restriction{Kind: k})
		}
	}
	return lists
}

// dnsbl reads the DNS lists. With a threshold their weights add up; without,
// each of them refuses alone.
func (p *tomlPolicy) dnsbl(root node) []Restriction {
	_, scored := root.m["dnsbl_threshold"]
	d := &p.spec.DNSBL
	d.Threshold = int(root.integer("dnsbl_threshold", 1, 1000, 0))
	var list []Restriction
	seen := map[string]bool{}
	reachable, before := 0, len(root.mistakes)
	for _, n := range root.tables("dnsbl") {
		n.known(dnsblKeys, elsewhere(dnsblKeys))
		name := fold(n.str("zone"))
		if name == "" || strings.Contains(name, "=") {
			n.wrong(n.path, "zone must name a DNS list; write zone = \"zen.spamhaus.org\"")
			continue
		}
		if _, filtered := n.m["codes"]; filtered {
			codes := n.str("codes")
			if _, err := parseCodes(codes); err != nil {
				n.wrong(n.at("codes"), "%v", err)
				continue
			}
			name += "=" + codes
		}
		if _, err := parseZone(name); err != nil {
			n.wrong(n.at("zone"), "%v; write zone = \"zen.spamhaus.org\"", err)
			continue
		}
		if seen[name] {
			n.wrong(n.at("zone"), "DNS list %q is given twice; remove one", name)
		}
		seen[name] = true
		if reply := n.str("reply"); reply != "" {
			d.Replies[name] = n.template(reply)
		}
		weight := int(n.integer("weight", -1000, 1000, 1))
		if _, weighted := n.m["weight"]; weighted && !scored {
			n.wrong(n.at("weight"), "weight needs dnsbl_threshold, the sum from which a client is refused; add that or remove the weight")
		}
		reachable += max(0, weight)
		d.Sites = append(d.Sites, DNSBLSite{name, weight})
		list = append(list, Restriction{"reject_rbl_client", name})
	}
	if !scored {
		d.Sites = nil
		return list
	}
	if reachable < d.Threshold && len(root.mistakes) == before {
		root.wrong("dnsbl_threshold", "dnsbl_threshold is %d, but all weights together are %d; lower it", d.Threshold, reachable)
	}
	return []Restriction{{Kind: "reject_dnsbl_score"}}
}

// template checks a DNS list's reply and puts the code before it.
func (n node) template(reply string) string {
	given := reply
	code, _, _ := strings.Cut(reply, " ")
	if !isReplyCode(code) && code != "$rbl_code" {
		if len(code) == 3 && allDigits(code) {
			n.wrong(n.at("reply"), "reply code %s refuses nothing; use 4xx or 5xx", code)
		}
		reply = "$rbl_code " + reply
	}
	if _, ok := expand(reply, func(string) string { return "" }); !ok || !validText(reply) {
		n.wrong(n.at("reply"), "reply %q can't be read; write text on one line, with names such as $rbl_domain, $rbl_reason, $client_address, and $$ for a dollar sign", given)
	}
	return reply
}

func (p *tomlPolicy) limits(n node) {
	n.known(limitKeys, elsewhere(limitKeys))
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

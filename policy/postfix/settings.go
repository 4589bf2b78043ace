package postfix

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// settings translates switches, limits and reply codes.
func (i *importer) settings() {
	s := i.spec
	for name, to := range map[string]*bool{
		"smtpd_delay_reject":                        &s.DelayReject,
		"smtpd_relay_before_recipient_restrictions": &s.RelayBeforeRecipient,
		"smtpd_helo_required":                       &s.HeloRequired,
		"smtpd_reject_unlisted_sender":              &s.RejectUnlistedSender,
		"smtpd_reject_unlisted_recipient":           &s.RejectUnlistedRcpt,
		"allow_untrusted_routing":                   &s.AllowUntrustedRouting,
	} {
		*to = i.boolean(name)
	}
	s.AccessMatchesSubdomain = i.parentMatch("smtpd_access_maps")
	for name, to := range map[string]*string{
		"unknown_address_tempfail_action":       &s.UnknownAddressTempfail,
		"unknown_helo_hostname_tempfail_action": &s.UnknownHeloTempfail,
	} {
		switch v := strings.ToLower(i.set[name]); v {
		case "defer", "defer_if_permit":
			*to = v
		default:
			i.errorf("%s: Postfix wants defer or defer_if_permit, not %q", name, v)
		}
	}
	s.Limits.MessageSize = i.number("message_size_limit", 0)
	for _, n := range i.numbers() {
		*n.to = int(i.number(n.name, n.lowest))
	}
	if i.boolean("soft_bounce") {
		for _, n := range i.numbers() {
			if n.lowest == 400 {
				temporary(n.to)
			}
		}
	}
}

type number struct {
	name   string
	lowest int64
	to     *int
}

// numbers are the limits and the reply codes; these start at 400.
func (i *importer) numbers() []number {
	l, c := &i.spec.Limits, &i.spec.Codes
	return []number{
		{"smtpd_recipient_limit", 1, &l.Recipients},
		{"header_size_limit", 1, &l.HeaderBytes},
		{"line_length_limit", 512, &l.LineLength},
		{"hopcount_limit", 1, &l.Hops},
		{"smtpd_soft_error_limit", 1, &l.SoftErrors},
		{"smtpd_hard_error_limit", 1, &l.HardErrors},
		{"smtpd_junk_command_limit", 1, &l.JunkCommands},
		{"smtpd_recipient_overshoot_limit", 1, &l.RcptOvershoot},
		{"access_map_defer_code", 400, &c.AccessMapDefer},
		{"access_map_reject_code", 400, &c.AccessMapReject},
		{"defer_code", 400, &c.Defer},
		{"invalid_hostname_reject_code", 400, &c.InvalidHostname},
		{"maps_rbl_reject_code", 400, &c.MapsRBL},
		{"multi_recipient_bounce_reject_code", 400, &c.MultiRecipientBounce},
		{"non_fqdn_reject_code", 400, &c.NonFQDN},
		{"plaintext_reject_code", 400, &c.Plaintext},
		{"reject_code", 400, &c.Reject},
		{"relay_domains_reject_code", 400, &c.RelayDomains},
		{"unknown_address_reject_code", 400, &c.UnknownAddress},
		{"unknown_client_reject_code", 400, &c.UnknownClient},
		{"unknown_hostname_reject_code", 400, &c.UnknownHostname},
		{"unknown_local_recipient_reject_code", 400, &c.UnknownLocalRcpt},
		{"unknown_relay_recipient_reject_code", 400, &c.UnknownRelayRcpt},
		{"unknown_virtual_alias_reject_code", 400, &c.UnknownVirtualAlias},
		{"unknown_virtual_mailbox_reject_code", 400, &c.UnknownVirtualMailbox},
	}
}

func (i *importer) number(name string, lowest int64) int64 {
	n, err := strconv.ParseInt(i.set[name], 10, 64)
	highest := int64(1 << 62)
	switch {
	case lowest == 400:
		highest = 599
	case name != "message_size_limit":
		highest = 1<<31 - 1
	}
	if err != nil || n < lowest || n > highest {
		i.errorf("%s: %q is no number that fits here", name, i.set[name])
	}
	return n
}

func (i *importer) boolean(name string) bool {
	switch strings.ToLower(i.set[name]) {
	case "yes":
		return true
	case "no":
	default:
		i.errorf("%s: Postfix wants yes or no, not %q", name, i.set[name])
	}
	return false
}

// dnsbl translates the reply texts of DNS lists.
func (i *importer) dnsbl() {
	i.spec.DNSBL.DefaultReply = i.set["default_rbl_reply"]
	for _, w := range words(i.set["rbl_reply_maps"]) {
		name, reason := tableName(w)
		var t *Table
		if reason == nil {
			if t, reason = i.table("rbl_reply_maps", name); t == nil && reason == nil {
				continue
			}
		}
		if reason == nil && t.Kind != Indexed {
			reason = fmt.Errorf("%s tables name no single DNS list", t.Type)
		}
		if reason != nil {
			i.item("rbl_reply_maps", name, NotReplicated, reason.Error(), "default_rbl_reply")
			continue
		}
		if i.spec.DNSBL.Replies == nil {
			i.spec.DNSBL.Replies = map[string]string{}
		}
		for k, v := range t.Entries {
			if i.spec.DNSBL.Replies[k] == "" {
				i.spec.DNSBL.Replies[k] = v
			}
		}
		i.item("rbl_reply_maps", name, Exact, "", "")
	}
}

// postscreen translates what stands before smtpd.
func (i *importer) postscreen() {
	ps := i.conf.postscreen
	if ps == nil {
		return
	}
	plain := true
	for _, w := range words(ps["postscreen_access_list"]) {
		if strings.EqualFold(w, "permit_mynetworks") {
			i.item("postscreen_access_list", w, Exact, "", "")
			continue
		}
		plain = false
		name, _ := tableName(w)
		if typ, _, ok := strings.Cut(name, ":"); !ok || typ == "" {
			i.errorf("postscreen_access_list: %q is no table", w)
			continue
		}
		i.table("postscreen_access_list", name) // a missing one fails the import
		i.item("postscreen_access_list", name, NotReplicated, "the engine has no list before the client restrictions", optIgnore)
	}
	action := ps["postscreen_dnsbl_action"]
	sites := i.sites(ps["postscreen_dnsbl_sites"])
	threshold, err := strconv.Atoi(ps["postscreen_dnsbl_threshold"])
	if err != nil {
		i.errorf("postscreen_dnsbl_threshold: %q is no number", ps["postscreen_dnsbl_threshold"])
	}
	for _, s := range sites {
		element := fmt.Sprintf("%s*%d", secretFree(s.Zone), s.Weight)
		switch {
		case action == "ignore":
			i.item("postscreen_dnsbl_sites", element, Exact, "postscreen_dnsbl_action is ignore", "")
		case !plain:
			i.item("postscreen_dnsbl_sites", element, NotReplicated, "clients in postscreen_access_list must not be judged by it", optIgnore)
		default:
			i.item("postscreen_dnsbl_sites", element, Approximated,
				"judged with the client restrictions; what postscreen remembers of a client isn't known", "")
		}
	}
	if action != "ignore" && plain && len(sites) > 0 {
		i.spec.DNSBL.Sites, i.spec.DNSBL.Threshold = sites, threshold
		r := &i.spec.Restrictions
		r.Client = slices.Insert(r.Client, 0, policy.Restriction{Kind: "reject_dnsbl_score"})
	}
}

// sites reads postscreen_dnsbl_sites: zone[=filter][*weight].
func (i *importer) sites(value string) []policy.DNSBLSite {
	var sites []policy.DNSBLSite
	for _, w := range words(value) {
		zone, weight, weighted := strings.Cut(w, "*")
		s := policy.DNSBLSite{Zone: zone, Weight: 1}
		if weighted {
			var err error
			if s.Weight, err = strconv.Atoi(weight); err != nil {
				i.errorf("postscreen_dnsbl_sites: %q has no number after *", w)
			}
		}
		sites = append(sites, s)
	}
	return sites
}

// parameters reports the parameters that the other translations don't.
func (i *importer) parameters() {
	tests := i.conf.postscreen
	for _, p := range Parameters {
		set := i.set
		if strings.HasPrefix(p.Name, "postscreen_") {
			if set = tests; set == nil {
				continue
			}
		}
		v, known := set[p.Name]
		if !known || p.Class == NoDecision || p.Elements || slices.Contains(strings.Split(p.Off, "|"), cmp.Or(v, "-")) {
			continue
		}
		if p.Guard != "" && slices.Contains([]string{"no", "ignore", ""}, set[p.Guard]) {
			continue
		}
		instead := p.Instead
		if p.Class == NotReplicated && instead == "" {
			instead = optIgnore
		}
		if strings.Contains(v, "@") && strings.Contains(v, ":") && p.Class == NotReplicated {
			v = "set" // may hold a password
		}
		i.item(p.Name, v, p.Class, p.Why, instead)
	}
}

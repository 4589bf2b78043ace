package postfix

import (
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/policy/fidelity"
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
		"soft_bounce":                               &s.SoftBounce,
		"strict_rfc821_envelopes":                   &s.Protocol.StrictEnvelopes,
		"disable_vrfy_command":                      &s.Protocol.DisableVRFY,
		"strict_smtputf8":                           &s.Protocol.StrictUTF8,
		"allow_min_user":                            &s.Addresses.AllowMinUser,
		"resolve_numeric_domain":                    &s.Addresses.NumericDomain,
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
	i.pace()
	s.Protocol.ForbidPipelining = i.set["smtpd_forbid_unauth_pipelining"] == "yes" // from Postfix 3.7.6 on
	s.Protocol.NoUTF8 = !i.boolean("smtputf8_enable")
	i.extensions()
	i.bareNewline()
	s.HideTableNames = !i.boolean("show_user_unknown_table_name")
	if s.NullSenderKey = i.set["smtpd_null_access_lookup_key"]; s.NullSenderKey == "<>" {
		s.NullSenderKey = ""
	}
	s.Addresses.NoPercentHack = !i.boolean("allow_percent_hack")
	s.Addresses.NoSwapBangpath = !i.boolean("swap_bangpath")
	s.Addresses.KeepQuoted = !i.boolean("resolve_dequoted_address")
	if i.boolean("append_dot_mydomain") {
		s.Addresses.AppendDotDomain = i.set["mydomain"]
	}
}

// pace translates what Postfix does to clients that make errors, under stress
// too.
func (i *importer) pace() {
	l := &i.spec.Limits
	l.ErrorSleep = i.seconds(i.set, "smtpd_error_sleep_time")
	for n, to := range []struct{ usual, stressed *int }{
		{&l.SoftErrors, &l.Stress.SoftErrors},
		{&l.HardErrors, &l.Stress.HardErrors},
		{&l.JunkCommands, &l.Stress.JunkCommands},
	} {
		if v := int(i.numberOf(i.conf.stressed, stressLimits[n], 1)); v != *to.usual {
			*to.stressed = v
		}
	}
}

const whyConnections = "postscreen counts before it talks, smtpd after; the smaller number counts here"

// clientLimits translates the limits that anvil(8) counts for.
func (i *importer) clientLimits() {
	c := &i.spec.Limits.Client
	for _, n := range []struct {
		name string
		def  int // Postfix's default; what nobody set isn't reported
		to   *int
	}{
		{"smtpd_client_connection_count_limit", 50, &c.Connections},
		{"smtpd_client_connection_rate_limit", 0, &c.ConnectionRate},
		{"smtpd_client_message_rate_limit", 0, &c.MessageRate},
		{"smtpd_client_recipient_rate_limit", 0, &c.RecipientRate},
		{"smtpd_client_new_tls_session_rate_limit", 0, &c.NewTLSRate},
	} {
		if *n.to = int(i.number(n.name, 0)); *n.to != n.def {
			i.item(n.name, i.set[n.name], fidelity.Approximated, whyCounts, "")
		}
	}
	const screen = "postscreen_client_connection_count_limit"
	if v, known := i.conf.postscreen[screen]; known && v != i.set["smtpd_client_connection_count_limit"] {
		if n := int(i.numberOf(i.conf.postscreen, screen, 0)); n > 0 && (c.Connections == 0 || n < c.Connections) {
			c.Connections = n
		}
		i.item(screen, v, fidelity.Approximated, whyConnections, "")
	}
	if max(c.Connections, c.ConnectionRate, c.MessageRate, c.RecipientRate, c.NewTLSRate) == 0 {
		return
	}
	if c.RateTime = i.seconds(i.set, "anvil_rate_time_unit"); c.RateTime == 60 {
		c.RateTime = 0
	}
	for _, n := range []struct {
		name  string
		whole int // what an address has
		to    *int
	}{
		{"smtpd_client_ipv4_prefix_length", 32, &c.IPv4Prefix},
		{"smtpd_client_ipv6_prefix_length", 128, &c.IPv6Prefix},
	} {
		if _, known := i.set[n.name]; known { // from Postfix 3.8 on
			if *n.to = int(i.number(n.name, 0)); *n.to == n.whole {
				*n.to = 0
			}
		}
	}
	const exceptions = "smtpd_client_event_limit_exceptions"
	if c.Exceptions = i.spec.MyNetworks; i.set[exceptions] != i.set["mynetworks"] {
		c.Exceptions = i.networks(exceptions)
	}
	c.MatchSubdomain = len(c.Exceptions) > 0 && i.parentMatch(exceptions)
}

// seconds reads a time of main.cf.
func (i *importer) seconds(set settings, name string) int {
	d, err := parseAge(set[name], "s")
	if err != nil {
		i.errorf("%s: %w", name, err)
	}
	return int(d / time.Second)
}

// whyCRLF is what the secondary does for clients that Postfix is lenient with.
const whyCRLF = "CRLF.CRLF ends a message of the secondary's, nothing else does"

// extensions translates smtpd_discard_ehlo_keywords. Postfix passes over names
// that it doesn't know.
func (i *importer) extensions() {
	const parameter = "smtpd_discard_ehlo_keywords"
	p := &i.spec.Protocol
	for _, w := range words(i.set[parameter]) {
		switch ext := strings.Replace(strings.ToUpper(w), "EHLO_MASK_SMTPUTF8", "SMTPUTF8", 1); ext {
		case "DSN", "SMTPUTF8":
			i.item(parameter, w, fidelity.Exact, "", "")
			if p.Offers(ext) {
				p.Discard = append(p.Discard, ext)
			}
		case "STARTTLS":
			i.item(parameter, w, fidelity.NotReplicated, "the secondary offers TLS by its own configuration", fidelity.Ignore)
		case "8BITMIME", "PIPELINING", "SIZE", "ENHANCEDSTATUSCODES":
			i.item(parameter, w, fidelity.Approximated, "the secondary offers it; no reply depends on that", "")
		}
	}
}

// bareNewline translates what becomes of a line feed without its carriage
// return. Unless it is refused it ends a line, for us too, but no message.
func (i *importer) bareNewline() {
	const parameter = "smtpd_forbid_bare_newline"
	p := &i.spec.Protocol
	p.BareNewline = "normalize"
	switch v := strings.ToLower(i.set[parameter]); v {
	case "no":
		i.item(parameter, v, fidelity.Approximated, whyCRLF, "")
	case "yes", "normalize", "note":
		if i.item(parameter, v, fidelity.Exact, "", ""); i.set[parameter+"_exclusions"] != "" && i.set[parameter+"_exclusions"] != i.set["mynetworks"] {
			i.item(parameter+"_exclusions", i.set[parameter+"_exclusions"], fidelity.Approximated, whyCRLF, "")
		}
	case "reject":
		i.item(parameter, v, fidelity.Exact, "", "")
		p.BareNewline = v
		if p.BareNewlineCode = int(i.number(parameter+"_reject_code", 500)); p.BareNewlineCode == 550 {
			p.BareNewlineCode = 0
		}
		i.item(parameter+"_reject_code", i.set[parameter+"_reject_code"], fidelity.Exact, "", "")
		p.BareNewlineExclusions = i.networks(parameter + "_exclusions")
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

func (i *importer) number(name string, lowest int64) int64 { return i.numberOf(i.set, name, lowest) }

func (i *importer) numberOf(set settings, name string, lowest int64) int64 {
	n, err := strconv.ParseInt(set[name], 10, 64)
	highest := int64(1 << 62)
	switch {
	case lowest == 400 || lowest == 500:
		highest = 599
	case name != "message_size_limit":
		highest = 1<<31 - 1
	}
	if err != nil || n < lowest || n > highest {
		i.errorf("%s: %q is no number from %d to %d", name, set[name], lowest, highest)
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

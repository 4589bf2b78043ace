package postfix

import (
	"slices"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Parameter classifies one of Postfix's parameters.
type Parameter struct {
	Name     string
	Class    fidelity.Class
	Why      string
	Instead  string
	Off      string // values at which it has no part in decisions, "|" between; "-" is the empty one
	Guard    string // parameter without whose "yes" or action this one is off
	Elements bool   // it is a list: the Report classifies its elements one by one
	// Options are what the secondary can do instead, the first unless told
	// otherwise.
	Options []string
}

// Parameters classifies what Postfix's smtpd(8) and postscreen(8) read, and
// the other parameters that decide about inbound mail. docs/PARITY.md is
// generated from it.
var Parameters = slices.Concat(lists, exact, replaced, missing, undecided)

// lists are classified element by element.
var lists = []Parameter{
	{Name: "smtpd_client_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_helo_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_sender_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_relay_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_recipient_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_data_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_end_of_data_restrictions", Class: fidelity.GivenDNS, Elements: true},
	{Name: "smtpd_restriction_classes", Class: fidelity.GivenDNS, Elements: true},
	{Name: "maps_rbl_domains", Class: fidelity.GivenDNS, Elements: true},
	{Name: "rbl_reply_maps", Class: fidelity.Exact, Elements: true},
	{Name: "mynetworks", Class: fidelity.Exact, Elements: true, Why: "client names and their tables: given-dns"},
	{Name: "mydestination", Class: fidelity.Exact, Elements: true},
	{Name: "virtual_alias_domains", Class: fidelity.Exact, Elements: true},
	{Name: "virtual_mailbox_domains", Class: fidelity.Exact, Elements: true},
	{Name: "relay_domains", Class: fidelity.Exact, Elements: true},
	{Name: "local_recipient_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "virtual_mailbox_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "relay_recipient_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "virtual_alias_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "canonical_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "recipient_canonical_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "sender_canonical_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed; others are learned by look-ups"},
	{Name: "inet_interfaces", Class: fidelity.Exact, Elements: true, Why: "mail to user@[address]"},
	{Name: "proxy_interfaces", Class: fidelity.Exact, Elements: true, Why: "mail to user@[address]"},
	{Name: "postscreen_access_list", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed"},
	{Name: "postscreen_denylist_action", Class: fidelity.Exact, Elements: true},
	{Name: "postscreen_blacklist_action", Class: fidelity.Exact, Elements: true, Why: "the older name of postscreen_denylist_action"},
	{Name: "postscreen_dnsbl_sites", Class: fidelity.Approximated, Elements: true, Why: whyMemory},
	{Name: "postscreen_dnsbl_action", Class: fidelity.Exact, Elements: true},
	{Name: "postscreen_dnsbl_threshold", Class: fidelity.Exact, Elements: true},
	{Name: "postscreen_dnsbl_allowlist_threshold", Class: fidelity.Approximated, Elements: true, Why: whyWaived},
	{Name: "postscreen_dnsbl_whitelist_threshold", Class: fidelity.Approximated, Elements: true, Why: "the older name of postscreen_dnsbl_allowlist_threshold"},
	{Name: "postscreen_dnsbl_reply_map", Class: fidelity.Exact, Elements: true, Why: "for a table that can be listed"},
	{Name: "postscreen_greet_action", Class: fidelity.Approximated, Elements: true, Why: whyPassed},
	{Name: "postscreen_greet_wait", Class: fidelity.Exact, Elements: true, Why: "nobody waits unless postscreen_greet_action refuses"},
	{Name: "postscreen_greet_ttl", Class: fidelity.Approximated, Elements: true, Why: whyPassed},
	{Name: "postscreen_greet_banner", Class: fidelity.Exact, Elements: true, Why: "without the primary's name in front"},
	{Name: "relay_transport", Class: fidelity.Exact, Elements: true, Why: "error: and retry: refuse recipients"},
	{Name: "local_transport", Class: fidelity.Exact, Elements: true, Why: "error: and retry: refuse recipients"},
	{Name: "virtual_transport", Class: fidelity.Exact, Elements: true, Why: "error: and retry: refuse recipients"},
	{Name: "default_transport", Class: fidelity.Exact, Elements: true, Why: "error: and retry: refuse recipients"},
	{Name: "recipient_delimiter", Class: fidelity.Exact, Elements: true},
	{Name: "myorigin", Class: fidelity.Exact, Elements: true},
	{Name: "header_checks", Class: fidelity.Exact, Elements: true, Why: "approximated for rules that may match the Received field that the primary adds"},
	{Name: "mime_header_checks", Class: fidelity.Exact, Elements: true},
	{Name: "nested_header_checks", Class: fidelity.Exact, Elements: true},
	{Name: "body_checks", Class: fidelity.Exact, Elements: true},
	{Name: "body_checks_size_limit", Class: fidelity.Exact, Elements: true},
	{Name: "disable_mime_input_processing", Class: fidelity.Exact, Elements: true},
	{Name: "mime_boundary_length_limit", Class: fidelity.Exact, Elements: true},
	{Name: "mime_nesting_limit", Class: fidelity.Exact, Elements: true},
	{Name: "strict_7bit_headers", Class: fidelity.Exact, Elements: true},
	{Name: "strict_8bitmime", Class: fidelity.Exact, Elements: true},
	{Name: "strict_8bitmime_body", Class: fidelity.Exact, Elements: true},
	{Name: "strict_mime_encoding_domain", Class: fidelity.Exact, Elements: true},
	{Name: "message_reject_characters", Class: fidelity.Exact, Elements: true, Why: "approximated for printable characters; " + whyRefused},
	{Name: "message_strip_characters", Class: fidelity.Exact, Elements: true, Why: "approximated for printable characters, NUL and CR; " + whyKept},
	{Name: "smtpd_client_connection_count_limit", Class: fidelity.Approximated, Elements: true, Why: whyCounts},
	{Name: "smtpd_client_connection_rate_limit", Class: fidelity.Approximated, Elements: true, Why: whyCounts},
	{Name: "smtpd_client_message_rate_limit", Class: fidelity.Approximated, Elements: true, Why: whyCounts},
	{Name: "smtpd_client_recipient_rate_limit", Class: fidelity.Approximated, Elements: true, Why: whyCounts},
	{Name: "smtpd_client_new_tls_session_rate_limit", Class: fidelity.Approximated, Elements: true, Why: whyCounts},
	{Name: "smtpd_client_event_limit_exceptions", Class: fidelity.Approximated, Elements: true, Why: "as the limits; client names and their tables: given-dns"},
	{Name: "anvil_rate_time_unit", Class: fidelity.Approximated, Elements: true, Why: whyFollow},
	{Name: "smtpd_client_ipv4_prefix_length", Class: fidelity.Approximated, Elements: true, Why: whyFollow},
	{Name: "smtpd_client_ipv6_prefix_length", Class: fidelity.Approximated, Elements: true, Why: whyFollow},
	{Name: "postscreen_client_connection_count_limit", Class: fidelity.Approximated, Elements: true, Why: "where it isn't smtpd's: " + whyConnections},
	{Name: "receive_override_options", Class: fidelity.Exact, Elements: true},
}

// exact parameters become part of the Spec as they are.
var exact = append(named(fidelity.Exact, "",
	"smtpd_delay_reject", "smtpd_relay_before_recipient_restrictions", "smtpd_helo_required",
	"smtpd_reject_unlisted_sender", "smtpd_reject_unlisted_recipient", "smtpd_recipient_limit", "smtpd_recipient_overshoot_limit",
	"smtpd_hard_error_limit", "smtpd_junk_command_limit",
	"soft_bounce", "allow_percent_hack", "swap_bangpath", "append_dot_mydomain", "strict_rfc821_envelopes", "strict_smtputf8", "disable_vrfy_command",
	"allow_min_user", "append_at_myorigin", "resolve_dequoted_address", "double_bounce_sender", "address_verify_sender",
	"allow_untrusted_routing", "parent_domain_matches_subdomains", "owner_request_special", "default_rbl_reply",
	"header_size_limit", "line_length_limit", "hopcount_limit",
	"unknown_address_tempfail_action", "unknown_helo_hostname_tempfail_action",
	"access_map_defer_code", "access_map_reject_code", "defer_code", "invalid_hostname_reject_code", "maps_rbl_reject_code",
	"multi_recipient_bounce_reject_code", "non_fqdn_reject_code", "plaintext_reject_code", "reject_code",
	"relay_domains_reject_code", "unknown_address_reject_code", "unknown_client_reject_code", "unknown_hostname_reject_code",
	"unknown_local_recipient_reject_code", "unknown_relay_recipient_reject_code",
	"unknown_virtual_alias_reject_code", "unknown_virtual_mailbox_reject_code",
),
	Parameter{Name: "message_size_limit", Class: fidelity.Approximated, Off: "0", Why: whySize},
	Parameter{Name: "non_smtpd_milters", Class: fidelity.Exact, Off: "-", Why: "with any milter header_size_limit is 60000 at most"},
	Parameter{Name: "smtpd_null_access_lookup_key", Class: fidelity.Exact, Off: "<>"},
	Parameter{Name: "smtpd_sasl_auth_enable", Class: fidelity.Exact, Off: "no", Why: "clients that authenticate aren't served by a secondary"},
)

// replaced parameters are followed in another way.
var replaced = []Parameter{
	{Name: "smtpd_dns_reply_filter", Class: fidelity.Approximated, Off: "-", Why: "DNS answers aren't filtered"},
	{Name: "smtpd_error_sleep_time", Class: fidelity.Approximated, Off: "1s|1", Why: whyHurry},
	{Name: "smtpd_soft_error_limit", Class: fidelity.Approximated, Off: "10", Why: whyHurry},
	{Name: "smtpd_peername_lookup", Class: fidelity.Approximated, Off: "yes", Why: "the secondary looks names up"},
	{Name: "smtpd_tls_security_level", Class: fidelity.Approximated, Off: "-|none|may", Why: "the secondary offers TLS and demands it only if told to", Options: refuses},
	{Name: "smtpd_enforce_tls", Class: fidelity.Approximated, Off: "no", Why: "the secondary offers TLS and demands it only if told to", Options: refuses},
	{Name: "smtpd_tls_req_ccert", Class: fidelity.NotReplicated, Off: "no", Why: "the secondary asks for no client certificate"},
	{Name: "smtpd_tls_wrappermode", Class: fidelity.NotReplicated, Off: "no", Why: "TLS from the first octet isn't served"},
	{Name: "smtpd_forbid_bare_newline", Class: fidelity.Exact, Elements: true, Why: "approximated where it is no, and for whom it excludes: " + whyCRLF},
	{Name: "smtpd_forbid_bare_newline_exclusions", Class: fidelity.Exact, Elements: true, Why: "client names and their tables: given-dns"},
	{Name: "smtpd_forbid_bare_newline_reject_code", Class: fidelity.Exact, Elements: true},
	{Name: "smtpd_forbid_unauth_pipelining", Class: fidelity.Approximated, Off: "no", Why: "which octets come together depends on the network"},
	{Name: "address_verify_sender_ttl", Class: fidelity.Approximated, Off: "0s|0", Why: "names that change with the time are no exception to the checks"},
	{Name: "inet_protocols", Class: fidelity.Approximated, Off: "all|ipv4, ipv6|ipv6, ipv4", Why: "the secondary serves and looks up addresses of both families"},
	{Name: "queue_minfree", Class: fidelity.Approximated, Off: "0", Why: "the secondary watches its own disk"},
}

// whySize says what can't be known of the primary's queue file.
const whySize = "what the primary's queue file must hold is counted; it may hold more: some 50 octets of ports, IDs and time, 27 and thrice the address " +
	"for each recipient but one, aliases, remarks about TLS; or less: header fields that it drops"

// whyMemory is what no copy of the configuration holds.
const whyMemory = "every client is tested each time; postscreen remembers for a while who passed"

// whyPassed is what each host finds out by itself.
const whyPassed = "who passed the pregreet test at the primary has passed here, where its postscreen_cache_map can be read (btree, lmdb); what passes here is remembered for postscreen_greet_ttl, until a restart"

// whyCounts is what two hosts know of one client.
const whyCounts = "each host counts what comes to it"

// whyFollow is about what the limits by client count in and by.
const whyFollow = "the limits by client follow it"

// whyHurry is what the secondary does when it is short of sessions.
const whyHurry = "under stress the secondary hangs up in place of waiting"

// whyWaived is a race, which the secondary lets the client win.
const whyWaived = "a client that speaks before its DNS lists have answered is let in here and refused there"

// whyForbidden is what the secondary does by itself.
const whyForbidden = "the secondary also hangs up on every method of HTTP"

// missing parameters decide on the primary and not on the secondary.
var missing = []Parameter{
	{Name: "smtpd_milters", Class: fidelity.NotReplicated, Elements: true, Why: "milters decide live; exact for one that by its configuration refuses nothing; see the filters below"},
	{Name: "smtpd_milter_maps", Class: fidelity.NotReplicated, Elements: true, Why: "milters decide live; filters of the secondary can stand for them"},
	{Name: "smtpd_proxy_filter", Class: fidelity.NotReplicated, Elements: true, Why: "a filter before the queue decides live; exact for one that by its configuration refuses nothing; see the filters below", Options: refuses},
	{Name: "smtpd_sender_login_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed"},
	{Name: "smtpd_etrn_restrictions", Class: fidelity.NotReplicated, Off: "-", Why: "the secondary starts no queue when told to: ETRN for a domain of `fast_flush_domains` gets 250 Queuing started there and 459 here"},
	{Name: "smtpd_command_filter", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed"},
	{Name: "smtpd_forbidden_commands", Class: fidelity.Approximated, Elements: true, Why: whyForbidden},
	{Name: "smtpd_noop_commands", Class: fidelity.Exact, Elements: true},
	{Name: "smtpd_discard_ehlo_keywords", Class: fidelity.Exact, Elements: true, Why: "DSN and SMTPUTF8; STARTTLS not-replicated; nothing is decided by the others. The secondary never offers CHUNKING: BDAT gets 521, as where the primary discards it"},
	{Name: "smtpd_discard_ehlo_keyword_address_maps", Class: fidelity.NotReplicated, Off: "-", Why: "every client is offered the same extensions"},
	{Name: "smtpd_client_auth_rate_limit", Class: fidelity.NotReplicated, Off: "0", Guard: "smtpd_sasl_auth_enable", Why: "nobody authenticates to the secondary"},
	{Name: "smtpd_reject_filter_maps", Class: fidelity.NotReplicated, Off: "-", Why: "replies aren't rewritten; it came with Postfix 3.11, and can turn no refusal into an acceptance"},
	{Name: "transport_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed"},
	{Name: "relocated_maps", Class: fidelity.Exact, Elements: true, Why: "for tables that can be listed"},
	{Name: "resolve_null_domain", Class: fidelity.NotReplicated, Off: "no", Why: "user@ is refused"},
	{Name: "resolve_numeric_domain", Class: fidelity.Approximated, Off: "no", Why: "an IPv6 address without brackets is refused (501)"},
	{Name: "smtputf8_enable", Class: fidelity.Approximated, Off: "yes", Why: "without it, addresses that aren't UTF-8 are refused (501), and tables don't tell capitals outside of ASCII from small letters"},
	{Name: "enable_idna2003_compatibility", Class: fidelity.NotReplicated, Off: "no", Why: "domains follow IDNA2008"},
	{Name: "permit_mx_backup_networks", Class: fidelity.GivenDNS, Elements: true},
	{Name: "postscreen_allowlist_interfaces", Class: fidelity.NotReplicated, Off: "static:all", Why: "connections to other addresses of the primary aren't seen"},
	{Name: "postscreen_whitelist_interfaces", Class: fidelity.NotReplicated, Off: "static:all|-", Why: "the older name of postscreen_allowlist_interfaces"},
	{Name: "postscreen_dnsbl_timeout", Class: fidelity.Approximated, Guard: "postscreen_dnsbl_action", Off: "10s", Why: "the secondary has its own time limit"},
	{Name: "postscreen_bare_newline_enable", Class: fidelity.NotReplicated, Guard: "postscreen_bare_newline_action", Off: "no", Why: "a test after the greeting; a new client gets 450 once"},
	{Name: "postscreen_non_smtp_command_enable", Class: fidelity.NotReplicated, Guard: "postscreen_non_smtp_command_action", Off: "no", Why: "a test after the greeting; a new client gets 450 once"},
	{Name: "postscreen_pipelining_enable", Class: fidelity.NotReplicated, Guard: "postscreen_pipelining_action", Off: "no", Why: "a test after the greeting; a new client gets 450 once"},
	{Name: "postscreen_command_filter", Class: fidelity.NotReplicated, Off: "-", Why: "commands aren't rewritten"},
	{Name: "postscreen_tls_security_level", Class: fidelity.Approximated, Off: "-|none|may", Why: "the secondary offers TLS and demands it only if told to", Options: refuses},
	{Name: "postscreen_enforce_tls", Class: fidelity.Approximated, Off: "no", Why: "the secondary offers TLS and demands it only if told to", Options: refuses},
	{Name: "postscreen_tls_req_ccert", Class: fidelity.NotReplicated, Off: "no", Why: "the secondary asks for no client certificate"},
	{Name: "postscreen_helo_required", Class: fidelity.Approximated, Guard: "postscreen_helo_required", Why: "as smtpd_helo_required"},
}

func named(c fidelity.Class, why string, names ...string) []Parameter {
	var all []Parameter
	for _, n := range names {
		all = append(all, Parameter{Name: n, Class: c, Why: why})
	}
	return all
}

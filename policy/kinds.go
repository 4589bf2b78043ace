package policy

import (
	"slices"
	"strings"
)

// checkFunc evaluates one restriction.
type checkFunc func(*eval, *check) status

// argKind is what a restriction's argument is.
type argKind uint8

const (
	argNone argKind = iota
	argTable
	argZone
	argNumber
	argNote // what it stands for, for the operator; may be absent
	argSPF  // of Filters.SPF
	argGrey // of Filters.Greylists
)

// kind is a restriction that the engine knows. fn is nil for warn_if_reject,
// which isn't one.
type kind struct {
	name string
	arg  argKind
	fn   checkFunc
}

// Kinds of rules that no restriction of the lists names.
const (
	kindNone           = "none"               // nothing objected
	kindListed         = "listed_recipient"   // the recipient is in a table
	kindPostmaster     = "postmaster"         // <postmaster> is always accepted
	kindUnlistedRcpt   = "unlisted_recipient" // the implicit check after the lists
	kindUnlistedSender = "unlisted_sender"
	kindSyntax         = "address_syntax"
	kindStrictUTF8     = "strict_smtputf8"
	kindHeloRequired   = "helo_required"
	kindSize           = "message_size_limit"
	kindRcptLimit      = "recipient_limit"
	kindHops           = "hopcount_limit"
	kindServerError    = "server_error"
	kindForeignDomain  = "foreign_domain" // Snapshot.Confine doesn't allow it
	kindNesting        = "mime_nesting_limit"
	kindHeader8Bit     = "strict_7bit_headers"
	kindBody8Bit       = "strict_8bitmime_body"
	kindEncoding       = "strict_mime_encoding_domain"
	kindOctets         = "message_reject_characters"
	kindHeaderChecks   = "header_checks"
	kindMIMEChecks     = "mime_header_checks"
	kindNestedChecks   = "nested_header_checks"
	kindBodyChecks     = "body_checks"
	kindScreenAccess   = "postscreen_access_list"
	kindScreenDNSBL    = "postscreen_dnsbl"
	kindPregreet       = "postscreen_pregreet"
	kindWarn           = "warn_if_reject"
	kindAsk            = "ask_primary" // see Verdict.Ask
	kindAskElseIgnore  = "ask_primary_else_ignore"
	kindVerify         = "verify_recipient" // see Verdict.MustVerify
	actionDefer        = "defer"
	actionPermit       = "defer_if_permit"
)

// Kinds returns every Kind that a Rule can have, sorted.
func Kinds() []string {
	all := []string{
		kindNone, kindListed, kindPostmaster, kindUnlistedRcpt, kindUnlistedSender, kindSyntax, kindStrictUTF8,
		kindHeloRequired, kindSize, kindRcptLimit, kindHops, kindServerError, kindForeignDomain,
		kindNesting, kindHeader8Bit, kindBody8Bit, kindEncoding, kindOctets,
		kindHeaderChecks, kindMIMEChecks, kindNestedChecks, kindBodyChecks,
		kindScreenAccess, kindScreenDNSBL, kindPregreet, kindDKIM, kindDMARC,
	}
	for _, k := range kinds {
		all = append(all, k.name)
	}
	all = append(all, aclKindNames...)
	slices.Sort(all)
	return all
}

// aliases are older names of restrictions.
var aliases = map[string]string{
	"reject_unknown_client":    "reject_unknown_client_hostname",
	"reject_rbl":               "reject_rbl_client",
	"reject_invalid_hostname":  "reject_invalid_helo_hostname",
	"reject_unknown_hostname":  "reject_unknown_helo_hostname",
	"reject_non_fqdn_hostname": "reject_non_fqdn_helo_hostname",
	"reject_unknown_address":   "reject_unknown_sender_domain",
	"check_recipient_maps":     "reject_unlisted_recipient",
}

// findKind returns the restriction of that name in any case, or nil.
func findKind(name string) *kind {
	name = strings.ToLower(name)
	if a := aliases[name]; a != "" {
		name = a
	}
	i, found := slices.BinarySearchFunc(kinds, name, func(k kind, n string) int { return strings.Compare(k.name, n) })
	if !found {
		return nil
	}
	return &kinds[i]
}

// kinds is sorted by name.
var kinds = sortKinds(slices.Concat(genericKinds, clientKinds, heloKinds, senderKinds, rcptKinds))

func sortKinds(ks []kind) []kind {
	slices.SortFunc(ks, func(a, b kind) int { return strings.Compare(a.name, b.name) })
	return ks
}

var genericKinds = []kind{
	{kindWarn, argNone, nil},
	{"permit", argNone, func(e *eval, c *check) status { return e.permit(e.ruleOf(c)) }},
	{"reject", argNone, func(e *eval, c *check) status {
		return e.reject(e.ruleOf(c), e.snap.spec.Codes.Reject, "5.7.1", e.whatRejected("Access denied"))
	}},
	{"defer", argNone, func(e *eval, c *check) status {
		return e.reject(e.ruleOf(c), e.snap.spec.Codes.Defer, "4.3.2", e.whatRejected("Try again later"))
	}},
	{"defer_if_permit", argNone, func(e *eval, c *check) status {
		return e.deferIfPermit(e.ruleOf(c), 450, "4.7.0", e.whatRejected("defer_if_permit requested"))
	}},
	{"defer_unfiltered", argNone, func(e *eval, c *check) status { // of ours: see Milter.Defer
		if !e.unfiltered(e.ctx) {
			return dunno
		}
		return e.deferIfPermit(e.ruleOf(c), 450, "4.7.0", e.whatRejected("no filter is here to ask"))
	}},
	{"defer_if_reject", argNone, func(e *eval, c *check) status {
		return e.deferIfReject(e.ruleOf(c), 450, "4.7.0", e.whatRejected("defer_if_reject requested"))
	}},
	{"reject_plaintext_session", argNone, func(e *eval, c *check) status {
		if e.client.TLS != "" {
			return dunno
		}
		return e.reject(e.ruleOf(c), e.snap.spec.Codes.Plaintext, "4.7.1", "Session encryption is required")
	}},
	{kindAsk, argNote, askPrimary},
	{kindAskElseIgnore, argNote, askPrimary},
	{kindVerify, argNone, verifyRecipient},
	{kindSPF, argSPF, checkSPF},
	{kindGreylist, argGrey, checkGreylist},
	{"sleep", argNumber, nothing},
	{"reject_unauth_pipelining", argNone, rejectPipelining},
	{"permit_tls_clientcerts", argNone, permitCert},
	{"permit_tls_all_clientcerts", argNone, permitCert},
	// Nobody authenticates to a secondary.
	{"permit_sasl_authenticated", argNone, nothing},
	{"reject_authenticated_sender_login_mismatch", argNone, nothing},
}

func nothing(*eval, *check) status { return dunno }

// permitCert defers a client with a certificate: only the primary knows which
// certificates it permits. It has no opinion on other clients.
func permitCert(e *eval, c *check) status {
	if !e.client.HasCert {
		return dunno
	}
	return e.deferIfReject(e.ruleOf(c), 450, "4.7.0", e.whatRejected("only the primary knows this certificate"))
}

var clientKinds = []kind{
	{"permit_mynetworks", argNone, permitMyNetworks},
	{"reject_unknown_client_hostname", argNone, rejectUnknownClient},
	{"reject_unknown_reverse_client_hostname", argNone, rejectUnknownReverse},
	{"check_client_access", argTable, checkClientAccess},
	{"check_reverse_client_hostname_access", argTable, checkReverseAccess},
	{"reject_rbl_client", argZone, rejectRBLClient},
	{"reject_dnsbl_score", argNone, rejectScore},
	{"permit_dnswl_client", argZone, permitDNSWL},
	{"permit_rhswl_client", argZone, permitRHSWL},
	{"reject_rhsbl_client", argZone, rejectRHSBL(func(e *eval) (string, string) { return known(e.client.Name), classClient })},
	{"reject_rhsbl_reverse_client", argZone, rejectRHSBL(func(e *eval) (string, string) { return known(e.client.ReverseName), classRevClient })},
	{"check_client_ns_access", argTable, serverAccess(serverNS, subjectClient)},
	{"check_client_mx_access", argTable, serverAccess(serverMX, subjectClient)},
	{"check_client_a_access", argTable, serverAccess(serverA, subjectClient)},
	{"check_reverse_client_hostname_ns_access", argTable, serverAccess(serverNS, subjectReverse)},
	{"check_reverse_client_hostname_mx_access", argTable, serverAccess(serverMX, subjectReverse)},
	{"check_reverse_client_hostname_a_access", argTable, serverAccess(serverA, subjectReverse)},
}

var heloKinds = []kind{
	{"check_helo_access", argTable, checkHeloAccess},
	{"permit_naked_ip_address", argNone, permitNakedIP},
	{"reject_invalid_helo_hostname", argNone, rejectHelo(invalidHelo)},
	{"reject_non_fqdn_helo_hostname", argNone, rejectHelo(nonFQDNHelo)},
	{"reject_unknown_helo_hostname", argNone, rejectHelo(unknownHelo)},
	{"reject_rhsbl_helo", argZone, rejectRHSBL(subjectHelo)},
	{"check_helo_ns_access", argTable, serverAccess(serverNS, named(subjectHelo))},
	{"check_helo_mx_access", argTable, serverAccess(serverMX, named(subjectHelo))},
	{"check_helo_a_access", argTable, serverAccess(serverA, named(subjectHelo))},
}

var senderKinds = []kind{
	{"check_sender_access", argTable, checkSenderAccess},
	{"reject_sender_login_mismatch", argNone, rejectLoginMismatch},
	{"reject_known_sender_login_mismatch", argNone, rejectLoginMismatch},
	{"reject_unauthenticated_sender_login_mismatch", argNone, rejectLoginMismatch},
	{"reject_non_fqdn_sender", argNone, nonFQDN(subjectSender)},
	{"reject_unknown_sender_domain", argNone, rejectUnknownSenderDomain},
	{"reject_rhsbl_sender", argZone, rejectRHSBL(subjectSender)},
	{"reject_unlisted_sender", argNone, func(e *eval, c *check) status {
		if e.sender.raw == "" {
			return dunno
		}
		return e.unlisted(&e.sender, classSender, c.kind.name)
	}},
	{"check_sender_ns_access", argTable, serverAccess(serverNS, named(subjectSender))},
	{"check_sender_mx_access", argTable, serverAccess(serverMX, named(subjectSender))},
	{"check_sender_a_access", argTable, serverAccess(serverA, named(subjectSender))},
}

var rcptKinds = []kind{
	{"check_recipient_access", argTable, checkRcptAccess},
	{"permit_auth_destination", argNone, func(e *eval, c *check) status {
		if e.hasRcpt && e.authorized() {
			return e.permit(e.ruleOf(c))
		}
		return dunno
	}},
	{"permit_mx_backup", argNone, permitMXBackup},
	{"reject_unauth_destination", argNone, func(e *eval, c *check) status {
		return e.rejectUnauth(c, e.snap.spec.Codes.RelayDomains, "5.7.1")
	}},
	{"defer_unauth_destination", argNone, func(e *eval, c *check) status {
		return e.rejectUnauth(c, e.snap.spec.Codes.RelayDomains-100, "4.7.1")
	}},
	{"reject_non_fqdn_recipient", argNone, nonFQDN(subjectRcpt)},
	{"reject_unknown_recipient_domain", argNone, rejectUnknownRcptDomain},
	{"reject_rhsbl_recipient", argZone, rejectRHSBL(subjectRcpt)},
	{"reject_unlisted_recipient", argNone, func(e *eval, c *check) status {
		if e.rcpt.raw == "" {
			return dunno
		}
		return e.unlisted(&e.rcpt, classRcpt, c.kind.name)
	}},
	{"reject_multi_recipient_bounce", argNone, rejectMultiBounce},
	{"check_recipient_ns_access", argTable, serverAccess(serverNS, named(subjectRcpt))},
	{"check_recipient_mx_access", argTable, serverAccess(serverMX, named(subjectRcpt))},
	{"check_recipient_a_access", argTable, serverAccess(serverA, named(subjectRcpt))},
}

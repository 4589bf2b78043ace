package meter

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// The classes of a difference.
const (
	Exact         = "exact"          // rules that are followed exactly: a mistake, or a drift
	Late          = "late"           // such ones, but a policy came meanwhile that agrees
	GivenDNS      = "given_dns"      // the DNS answered the two sides differently
	Approximated  = "approximated"   // the snapshot didn't know, or may not
	NotReplicated = "not_replicated" // what docs/PARITY.md calls so decided
)

// Classes are all of them, what needs the operator first.
var Classes = []string{Exact, Approximated, NotReplicated, GivenDNS, Late}

// The causes of a difference, and what to do about each.
var advice = map[string]string{
	"recipient_new":      "The recipient is new at the primary, and no policy has come with it yet. If that lasts, see `understudy policy status` here and `understudy publish --check` on the primary.",
	"recipient_gone":     "The primary doesn't know the recipient any more. If that lasts, look whether its tables were changed without postmap or reload, and see `understudy publish --check` there.",
	"recipient_unsure":   "The policy can't list whoever has this address; it defers until the primary was asked. `understudy publish --check` names the table and the remedy.",
	"domain_not_allowed": "The primary serves a domain that [sync] domains here doesn't name. Add it there.",
	"substitute":         "The policy defers in place of what isn't replicated. `understudy publish --check` lists the choices.",
	"dns":                "The DNS answered the primary and us differently: compare the resolvers, and the access to DNS lists.",
	"greylisting":        "The primary greylists, and remembers others than we do. In live sessions its word counts.",
	"rate_limit":         "The primary limits how often a client comes. Rates aren't replicated.",
	"policy_service":     "A policy service of the primary decided, which isn't replicated. In live sessions its word counts.",
	"milter":             "A milter of the primary decided, which isn't replicated. In live sessions its word counts.",
	"content_filter":     "The primary's content filter decided, which isn't replicated. In live sessions its word counts.",
	"trouble":            "The primary has trouble of its own: look at its log.",
	"rule":               "A rule that is followed exactly decided differently: look whether the primary's configuration or tables were changed without reload or postmap, and compare by `understudy policy explain`.",
	"content":            "A rule about the message decided differently: look whether header_checks, body_checks or message_size_limit were changed without reload.",
	"stale_table":        "A table's source was edited, but its index is older: run postmap (or postalias) on the primary.",
}

// Causes are all of them, sorted.
func Causes() (all []string) {
	for c := range advice {
		all = append(all, c)
	}
	slices.Sort(all)
	return all
}

// byDNS says that a kind of rule depends on answers of the DNS.
func byDNS(kind string) bool {
	for _, part := range []string{"rbl", "rhsbl", "dnsbl", "dnswl", "_unknown_", "_ns_access", "_mx_access", "_a_access", "mx_backup", "spf", "dkim", "dmarc"} {
		if strings.Contains(kind, part) {
			return true
		}
	}
	return false
}

// Texts of Postfix's own replies, in lower case.
var (
	dnsTexts = []string{"blocked using", "domain not found", "cannot find your", "host not found", "service unavailable; client", "nullmx", "malformed dns", "does not resolve",
		"domain of sender address", "spf"}
	ruleTexts = []string{"user unknown", "relay access denied", "access denied", "need fully-qualified", "invalid name", "improper use of smtp", "starttls command first",
		"not logged in", "not owned by user", "send helo", "message size exceeds", "undeliverable address", "unverified address", "bad recipient address", "bad sender address", "domain not allowed"}
	rateTexts = []string{"too many"}
)

func hasAny(text string, parts []string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
}

// explain says of which class a difference is, what caused it, and the item that
// isn't replicated, if that is known. lacks are a policy's NotReplicated.
func explain(d *Decision, lacks []string) (class, cause, item string) {
	kind := d.Ours.Rule.Kind
	refused := d.Ours.Action == policy.Defer || d.Ours.Action == policy.Reject
	text := strings.ToLower(d.Primary.Text)
	if d.Primary.Code < 400 {
		return accepted(d, kind, lacks)
	}
	milters := func() string { return lacking(lacks, d.At, "smtpd_milters") }
	services := func() string { return lacking(lacks, d.At, "check_policy_service") }
	switch {
	case kind == "check_greylist":
		return Approximated, "greylisting", ""
	case strings.Contains(text, "greylist") || strings.Contains(text, "graylist"):
		return NotReplicated, "greylisting", services()
	case d.Primary.Temporary() && hasAny(text, rateTexts):
		return NotReplicated, "rate_limit", ""
	case d.Primary.Temporary() && strings.HasPrefix(d.Primary.Enhanced, "4.3."):
		return NotReplicated, "trouble", ""
	case refused && d.Ours.Unsure != "":
		return Approximated, "recipient_unsure", ""
	case hasAny(text, dnsTexts) || refused && byDNS(kind):
		return GivenDNS, "dns", ""
	case d.At == policy.Rcpt && !refused && d.Primary.UserUnknown():
		return Exact, "recipient_gone", ""
	case hasAny(text, ruleTexts) && d.At < policy.EndOfData:
		return Exact, "rule", ""
	case services() != "":
		return NotReplicated, "policy_service", services()
	case milters() != "":
		return NotReplicated, "milter", milters()
	case d.At == policy.EndOfData && lacking(lacks, d.At, "content_filter", "smtpd_proxy_filter") != "":
		return NotReplicated, "content_filter", lacking(lacks, d.At, "content_filter", "smtpd_proxy_filter")
	case d.At == policy.EndOfData:
		return Exact, "content", ""
	}
	return Exact, "rule", ""
}

// accepted is explain where the primary accepts and the snapshot doesn't.
func accepted(d *Decision, kind string, lacks []string) (class, cause, item string) {
	switch {
	case d.Ours.Unsure != "":
		return Approximated, "recipient_unsure", ""
	case kind == "check_greylist": // each remembers its own
		return Approximated, "greylisting", ""
	case kind == "foreign_domain":
		return Approximated, "domain_not_allowed", ""
	case d.At == policy.Rcpt && strings.HasPrefix(strings.TrimPrefix(kind, "reject_"), "unlisted_recipient"):
		if d.Ours.Action == policy.Defer {
			return Approximated, "recipient_unsure", ""
		}
		return Exact, "recipient_new", ""
	case byDNS(kind):
		return GivenDNS, "dns", ""
	case d.Ours.Action == policy.Defer && len(lacks) > 0 && (strings.HasPrefix(kind, "defer_if_") || strings.HasPrefix(kind, "permit_tls_")):
		return NotReplicated, "substitute", ""
	case d.At == policy.EndOfData:
		return Exact, "content", ""
	}
	return Exact, "rule", ""
}

// lacking returns the first item with one of these words that can decide at a
// stage: a milter at any, a restriction at that of its list or, as most lists wait
// for the recipient, there.
func lacking(items []string, at policy.Stage, words ...string) string {
	stages := map[string]policy.Stage{"smtpd_data_restrictions": policy.Data, "smtpd_end_of_data_restrictions": policy.EndOfData}
	for _, it := range items {
		parameter, _, _ := strings.Cut(it, ":")
		if !hasAny(it, words) {
			continue
		}
		if of, late := stages[parameter]; strings.HasSuffix(parameter, "_restrictions") && (late && of != at || !late && at > policy.Rcpt) {
			continue
		}
		return cut(it)
	}
	return ""
}

package mailauth

import (
	"context"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// DMARC looks policies up and says which one a message meets.
type DMARC struct {
	Resolver   Resolver
	NoSuffixes bool // opendmarc without PublicSuffixList: every domain is its own organization's
}

// DMARCPolicy is what is to be done with a message.
type DMARCPolicy uint8

const (
	DMARCAbsent     DMARCPolicy = iota // the author's domain has no record
	DMARCPass                          // SPF or DKIM vouches for the author
	DMARCNone                          // neither does, and the domain doesn't mind
	DMARCQuarantine                    // neither does
	DMARCReject                        // neither does
	DMARCPermError                     // there is a record, and it can't be read
	DMARCTempError                     // the record couldn't be looked up
)

func (p DMARCPolicy) String() string {
	return [...]string{"none", "pass", "fail, p=none", "fail, p=quarantine", "fail, p=reject", "permerror", "temperror"}[p]
}

// DMARCResult is a verdict.
type DMARCResult struct {
	Policy  DMARCPolicy
	Domain  string // whose record it is
	Percent int    // of the messages to which the policy applies
}

// Check evaluates RFC 7489 §6.6 for the author's domain. spf is the domain for
// which SPF passed, "" if it didn't; dkim those whose signatures are good.
func (d DMARC) Check(ctx context.Context, author, spf string, dkim []string) DMARCResult {
	out := DMARCResult{Domain: author}
	text, found, err := d.lookUp(ctx, author)
	organization := d.organization(author)
	own := found
	if !found {
		out.Domain = organization
		var again error
		if text, found, again = d.lookUp(ctx, organization); again != nil {
			err = again
		}
	}
	switch {
	case !found && err != nil:
		out.Policy = DMARCTempError
		return out
	case !found:
		return out
	}
	r, ok := parseDMARC(text)
	if !ok {
		out.Policy = DMARCPermError
		return out
	}
	out.Percent = r.percent
	switch {
	case d.aligned(author, d.choose(author, dkim), r.strictDKIM), d.aligned(author, spf, r.strictSPF):
		out.Policy = DMARCPass
	case !own && r.subdomains != DMARCAbsent:
		out.Policy = r.subdomains
	default:
		out.Policy = r.policy
	}
	return out
}

func (d DMARC) lookUp(ctx context.Context, domain string) (text string, found bool, err error) {
	if !isDomain("_dmarc." + domain) {
		return "", false, nil
	}
	texts, err := d.Resolver.LookupTXT(ctx, "_dmarc."+domain)
	for _, t := range texts {
		if strings.Contains(t, "v=DMARC") { // libopendmarc takes the first that says so anywhere
			return t, true, nil
		}
	}
	if isNotFound(err) {
		err = nil
	}
	return "", false, err
}

// organization is the organizational domain, RFC 7489 §3.2. As in libopendmarc a
// domain has none but itself where the list doesn't know its last label.
func (d DMARC) organization(domain string) string {
	suffix, managed := publicsuffix.PublicSuffix(domain)
	if !d.NoSuffixes && (managed || strings.Contains(suffix, ".")) {
		if org, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
			return org
		}
	}
	return domain
}

// choose is the one signature that libopendmarc compares: the author's own,
// else the last that is aligned loosely, else the first.
func (d DMARC) choose(author string, dkim []string) string {
	chosen := ""
	for _, s := range dkim {
		switch {
		case strings.EqualFold(s, author):
			return s
		case chosen == "" || d.aligned(s, author, false):
			chosen = s
		}
	}
	return chosen
}

// aligned is libopendmarc's alignment, which is laxer than RFC 7489 §3.1: a
// domain is aligned with whatever is above or below it, and strictly with its
// own subdomain's organization.
func (d DMARC) aligned(author, other string, strict bool) bool {
	if other == "" {
		return false
	}
	for _, o := range []string{other, d.organization(strings.ToLower(other))} {
		if strings.EqualFold(author, o) || !strict && (isWithin(author, o) || isWithin(o, author)) {
			return true
		}
	}
	return false
}

type dmarcRecord struct {
	policy, subdomains    DMARCPolicy
	strictDKIM, strictSPF bool
	percent               int
}

// parseDMARC reads a record as libopendmarc does: values may be cut short.
func parseDMARC(text string) (dmarcRecord, bool) {
	r := dmarcRecord{percent: 100}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ";") {
		name, value, ok := strings.Cut(part, "=")
		name, value = strings.ToLower(collapse(name)), collapse(value)
		if !ok || name == "" || value == "" {
			continue
		}
		if !r.set(name, strings.ToLower(value), seen[name]) {
			return r, false
		}
		seen[name] = true
	}
	return r, r.policy != DMARCAbsent
}

func (r *dmarcRecord) set(name, value string, again bool) (ok bool) {
	switch name {
	case "v":
		return value == "dmarc1"
	case "p":
		r.policy, ok = dmarcPolicy(value)
	case "sp":
		r.subdomains, ok = dmarcPolicy(value)
	case "adkim":
		r.strictDKIM, ok = dmarcStrict(value)
	case "aspf":
		r.strictSPF, ok = dmarcStrict(value)
	case "pct":
		digits := len(value) - len(strings.TrimLeft(value, "0123456789"))
		r.percent, _ = strconv.Atoi(value[:digits])
		return r.percent <= 100 && value[0] != '-' && digits < 10
	case "ri":
		return strings.Trim(value, "0123456789") == "" && len(value) < 19
	case "rua", "ruf":
		return !again && listOf(value, ",", func(string) bool { return true })
	case "rf":
		return listOf(value, ",", func(s string) bool { return strings.HasPrefix("afrf", s) || strings.HasPrefix("iodef", s) })
	case "fo":
		return listOf(value, ":", func(s string) bool { return strings.Contains("01ds", s[:1]) })
	default:
		return true
	}
	return ok
}

func listOf(value, separator string, ok func(string) bool) bool {
	for s := range strings.SplitSeq(strings.TrimSuffix(value, separator), separator) {
		if s == "" || !ok(s) {
			return false
		}
	}
	return true
}

func dmarcPolicy(value string) (DMARCPolicy, bool) {
	for i, name := range []string{"reject", "none", "quarantine"} {
		if strings.HasPrefix(name, value) {
			return [...]DMARCPolicy{DMARCReject, DMARCNone, DMARCQuarantine}[i], true
		}
	}
	return DMARCAbsent, false
}

func dmarcStrict(value string) (strict, ok bool) {
	strict = strings.HasPrefix("strict", value)
	return strict, strict || strings.HasPrefix("relaxed", value)
}

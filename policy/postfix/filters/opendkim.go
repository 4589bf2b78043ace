package filters

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

const (
	whyScript = "a script decides"
	whyDNS    = "what is signed by a key that can't be looked up is deferred where On-KeyNotFound doesn't accept; opendkim accepts it once, and then takes the key for missing"
)

// dkimOptions are what opendkim 2.11.0 of Debian 12 knows.
var dkimOptions = slices.Concat(
	each(fidelity.Exact, "", "Mode", "On-BadSignature", "On-NoSignature", "On-KeyNotFound", "On-Default", "On-Security", "Quarantine",
		"MaximumSignaturesToVerify", "MinimumKeyBits", "MaximumHeaders", "ClockDrift", "AlwaysAddARHeader", "ExemptDomains"),
	each(fidelity.GivenDNS, "", "PeerList"),
	each(fidelity.Approximated, whyDNS, "On-DNSError"),
	each(fidelity.Approximated, "mail from these hosts isn't judged, also where the primary would neither sign nor pass it", "InternalHosts"),
	musts(each(fidelity.NotReplicated, whyScript, "SetupPolicyScript", "ScreenPolicyScript", "FinalPolicyScript")),
	each(fidelity.NotReplicated, "it changes which signatures count", "MustBeSigned", "TrustSignaturesFrom", "FixCRLF", "DomainKeysCompat", "ReplaceRules",
		"ReplaceHeaders", "ATPSDomains", "TestDNSData", "TestPublicKeys", "UnprotectedKey", "BogusKey"),
	offs(each(fidelity.NotReplicated, "it changes which messages are looked at", "RequiredHeaders", "StrictHeaders", "WeakSyntaxChecks", "SenderHeaders", "SenderMacro",
		"IgnoreMalformedMail", "StrictTestMode", "MTA", "MacroList", "POPDBFile"), "no", "false", "n", "f", "0"),
	each(fidelity.NoDecision, "", "AllowSHA1Only", "AuthservID", "AuthservIDWithJobID", "AutoRestart", "AutoRestartCount", "AutoRestartRate", "Background",
		"BaseDirectory", "BodyLengthDB", "CaptureUnknownErrors", "Canonicalization", "ChangeRootDirectory", "Diagnostics", "DiagnosticDirectory",
		"DisableCryptoInit", "DNSConnect", "DNSTimeout", "Domain", "DontSignMailTo", "EnableCoredumps", "ExternalIgnoreList", "IdentityHeader",
		"IdentityHeaderRemove", "Include", "KeepAuthResults", "KeepTemporaryFiles", "KeyFile", "KeyTable", "LDAPAuthMechanism", "LDAPAuthName",
		"LDAPAuthRealm", "LDAPAuthUser", "LDAPBindPassword", "LDAPBindUser", "LDAPDisableCache", "LDAPKeepaliveIdle", "LDAPKeepaliveInterval",
		"LDAPKeepaliveProbes", "LDAPTimeout", "LDAPUseTLS", "LogResults", "LogWhy", "MaximumSignedBytes", "MilterDebug", "Minimum", "MTACommand",
		"MultipleSignatures", "Nameservers", "NoHeaderB", "OmitHeaders", "On-InternalError", "On-SignatureError", "OversignHeaders", "PidFile", "QueryCache", "RedirectFailuresTo",
		"RemoveARAll", "RemoveARFrom", "RemoveOldSignatures", "ReportAddress", "ReportBccAddress", "RequestReports", "RequireSafeKeys", "ResignAll",
		"ResignMailTo", "ResolverConfiguration", "ResolverTracing", "SelectCanonicalizationHeader", "Selector", "SendReports", "SignatureAlgorithm",
		"SignatureTTL", "SignHeaders", "SigningTable", "SMTPURI", "Socket", "SoftStart", "SoftwareHeader", "Statistics", "StatisticsName",
		"StatisticsPolicyScript", "StatisticsPrefix", "SubDomains", "Syslog", "SyslogFacility", "SyslogName", "SyslogSuccess", "TemporaryDirectory",
		"TrustAnchorFile", "UMask", "UserID", "VBR-Certifiers", "VBR-PurgeFields", "VBR-TrustedCertifiers", "VBR-TrustedCertifiersOnly", "VBR-Type"),
)

func each(c fidelity.Class, why string, names ...string) (all []Option) {
	for _, n := range names {
		all = append(all, Option{Name: n, Class: c, Why: why})
	}
	return all
}

func offs(all []Option, values ...string) []Option {
	for i := range all {
		all[i].off = values
	}
	return all
}

// actions of opendkim; each may be cut to its first letter.
var actions = []string{policy.MilterAccept, policy.MilterDiscard, policy.MilterQuarantine, policy.MilterReject, policy.MilterTempfail}

func (f *Filter) openDKIM(r *reader) error {
	settings, err := r.milterConf(f.File, 0)
	if err != nil {
		return err
	}
	v := latest(settings)
	f.ServerID = v.get("AuthservID", "")
	mode := v.get("Mode", "sv")
	if f.Verifies = strings.Contains(mode, "v"); !f.Verifies {
		return nil // it never judges what comes in
	}
	minor := f.judge(settings, true)
	d := &policy.DKIMFilter{
		BadSignature: f.action(v, "On-BadSignature", policy.MilterAccept), NoSignature: f.action(v, "On-NoSignature", policy.MilterAccept),
		KeyNotFound: f.action(v, "On-KeyNotFound", policy.MilterAccept), Security: f.action(v, "On-Security", policy.MilterTempfail),
		Quarantine: v.yes("Quarantine"), MaxSignatures: f.number(v, "MaximumSignaturesToVerify", 3), MinKeyBits: f.number(v, "MinimumKeyBits", 1024),
		MaxHeader: f.number(v, "MaximumHeaders", 65536), ClockDrift: f.number(v, "ClockDrift", 300),
		Signs: strings.Contains(mode, "s"), AlwaysAddsAR: v.yes("AlwaysAddARHeader"),
	}
	hosts := []string{"127.0.0.1"} // it signs for them
	if s, ok := v["internalhosts"]; ok {
		hosts = f.list(r, s)
	}
	if !d.Signs {
		hosts = nil
	}
	if s, ok := v["peerlist"]; ok {
		hosts = append(hosts, f.list(r, s)...)
	}
	d.Peers = hostList(hosts)
	if s, ok := v["exemptdomains"]; ok {
		d.Exempt = f.list(r, s)
	}
	for _, w := range []struct{ action, what string }{
		{d.BadSignature, "a bad signature"}, {d.NoSignature, "no signature"}, {d.KeyNotFound, "a signature without a key"},
	} {
		if w.action != policy.MilterAccept && (w.action != policy.MilterQuarantine || d.Quarantine) {
			f.Refuses = append(f.Refuses, w.what+" ("+w.action+")")
		}
	}
	if len(f.Refuses) > 0 && d.MaxHeader > 0 && d.Security != policy.MilterAccept {
		f.Refuses = append(f.Refuses, fmt.Sprintf("a header of more than %d octets (%s)", d.MaxHeader, d.Security))
	}
	followed := f.settle(minor)
	if followed || len(f.Unsure)+len(minor) == 0 { // opendmarc may go by what it finds
		f.DKIM = d
	}
	if followed {
		if d.KeyNotFound != policy.MilterAccept && !slices.ContainsFunc(f.Notes, func(n string) bool { return strings.HasSuffix(n, whyDNS) }) {
			f.Notes = append(f.Notes, "On-KeyNotFound: "+whyDNS)
		}
	}
	return nil
}

// action reads one of opendkim's On- options.
func (f *Filter) action(v values, name, def string) string {
	s, ok := v[strings.ToLower(name)]
	if !ok {
		if s, ok = v["on-default"]; !ok {
			return def
		}
	}
	for _, a := range actions {
		if s.value != "" && (a == s.value || s.value == a[:1]) {
			return a
		}
	}
	f.unsure(s, "%s: %s is none of %s", s.name, quote(s.value), strings.Join(actions, ", "))
	return def
}

func (f *Filter) number(v values, name string, def int) int {
	s, ok := v[strings.ToLower(name)]
	if !ok {
		return def
	}
	n, err := strconv.Atoi(s.value)
	if err != nil || n < 0 || n > 1<<30 {
		f.unsure(s, "%s: %s is no number", s.name, quote(s.value))
		return def
	}
	return n
}

// list reads a data set; one that can't be read makes the filter one that
// can't be followed.
func (f *Filter) list(r *reader, s setting) []string {
	list, err := r.dataset(s.value)
	if err != nil {
		f.unsure(s, "%s: %v", s.name, err)
	}
	return list
}

package filters

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// dmarcOptions are what opendmarc 1.4.2 of Debian 12 knows.
var dmarcOptions = slices.Concat(
	each(fidelity.Exact, "", "RejectFailures", "RequiredHeaders", "HoldQuarantinedMessages", "RejectMultiValueFrom", "RejectString", "IgnoreMailFrom"),
	each(fidelity.Exact, "nobody authenticates to the secondary", "IgnoreAuthenticatedClients"),
	each(fidelity.GivenDNS, "", "IgnoreHosts"),
	each(fidelity.Approximated, "SPF is checked as policyd-spf does; libspf2 has no limit of void look-ups", "SPFSelfValidate"),
	each(fidelity.Approximated, "the secondary's list is that of its own release", "PublicSuffixList"),
	each(fidelity.Approximated, "only the primary's own filters are trusted; who may write Authentication-Results by another of these names isn't imitated", "TrustedAuthservIDs"),
	each(fidelity.Exact, "results of filters that write another name don't count", "AuthservID", "AuthservIDWithJobID"),
	each(fidelity.Exact, "results in the message's own header never count here", "SPFIgnoreResults"),
	each(fidelity.NotReplicated, "ARC may overrule a failure", "DomainWhitelist", "DomainWhitelistFile", "DomainWhitelistSize"),
	each(fidelity.NotReplicated, "DNS answers from a file", "TestDNSData"),
	each(fidelity.NoDecision, "", "AutoRestart", "AutoRestartCount", "AutoRestartRate", "Background", "BaseDirectory", "ChangeRootDirectory", "CopyFailuresTo",
		"DNSTimeout", "EnableCoredumps", "FailureReports", "FailureReportsBcc", "FailureReportsOnNone", "FailureReportsSentBy", "HistoryFile", "IgnoreMailTo", "Include",
		"MilterDebug", "PidFile", "RecordAllMessages", "ReportCommand", "Socket", "SoftwareHeader", "Syslog", "SyslogFacility", "UMask", "UserID"),
)

func (f *Filter) openDMARC(r *reader) error {
	settings, err := r.milterConf(f.File, 0)
	if err != nil {
		return err
	}
	minor := f.judge(settings, true)
	v := latest(settings)
	d := &policy.DMARCFilter{
		RejectFailures: v.yes("RejectFailures"), RequiredHeaders: v.yes("RequiredHeaders"),
		RejectMultiFrom: v.yes("RejectMultiValueFrom"), RejectString: v.get("RejectString", ""),
		NoSuffixes: v.get("PublicSuffixList", "") == "", SelfSPF: v.yes("SPFSelfValidate"),
		IgnoreDomains: csl(v.get("IgnoreMailFrom", "")),
	}
	d.Quarantine = d.RejectFailures && v.yes("HoldQuarantinedMessages")
	hosts := []string{"127.0.0.1"}
	if s, ok := v["ignorehosts"]; ok {
		hosts = f.list(r, setting{s.name, "file:" + s.value, s.file, s.line})
	}
	d.IgnoreHosts = hostList(hosts)
	f.ServerID = v.get("AuthservID", "")
	f.Trusts = append(csl(v.get("TrustedAuthservIDs", "")), f.ServerID)
	if v.yes("SPFIgnoreResults") {
		d.SPF = ignoredSPF
	}
	if s, ok := v["rejectstring"]; ok && strings.Count(s.value, "%s") != 1 {
		f.unsure(s, "RejectString: opendmarc doesn't start without one %%s in it")
	}
	for _, w := range []struct {
		on   bool
		what string
	}{
		{d.RejectFailures, "what a domain's DMARC policy says to reject"}, {d.Quarantine, "what a domain's DMARC policy says to quarantine (held)"},
		{d.RequiredHeaders, "header fields that RFC 5322 demands or forbids twice"}, {d.RejectMultiFrom, "authors of several domains"},
	} {
		if w.on {
			f.Refuses = append(f.Refuses, w.what)
		}
	}
	if f.settle(minor) {
		f.DMARC = d
	}
	return nil
}

// ignoredSPF marks that opendmarc hears of no policy service.
const ignoredSPF = "-"

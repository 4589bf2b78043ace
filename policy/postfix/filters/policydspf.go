package filters

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// spfOptions are what policyd-spf 3.0.4 of Debian 12 knows.
var spfOptions = slices.Concat(
	each(fidelity.GivenDNS, "", "HELO_reject", "Mail_From_reject", "PermError_reject", "No_Mail", "Reject_Not_Pass_Domains",
		"HELO_Whitelist", "Domain_Whitelist", "Domain_Whitelist_PTR", "Void_Limit"),
	each(fidelity.Exact, "", "skip_addresses", "Whitelist", "TestOnly", "SPF_Enhanced_Status_Codes", "Reason_Message", "Hide_Receiver"),
	each(fidelity.Exact, "policyd-spf reads it and goes by TestOnly alone", "defaultSeedOnly"),
	each(fidelity.GivenDNS, "SERVFAIL defers; with py3dns policyd-spf takes it for an answer", "TempError_Defer"),
	each(fidelity.Exact, "what opendmarc hears", "Header_Type", "Authserv_Id"),
	each(fidelity.Approximated, "the secondary has a limit of its own besides", "Lookup_Time", "Whitelist_Lookup_Time"),
	musts(each(fidelity.NotReplicated, "a restriction of Postfix's decides about who passes", "Mail_From_pass_restriction", "HELO_pass_restriction")),
	each(fidelity.NotReplicated, "another address is checked in place of the client's", "Prospective"),
	each(fidelity.NotReplicated, "recipients have settings of their own", "Per_User"),
	each(fidelity.NotReplicated, "for its own tests", "Mock"),
	each(fidelity.NoDecision, "", "debugLevel", "QueueID"),
	each(fidelity.NoDecision, "of its milter", "Socket", "PidFile", "UserID", "UMask", "InternalHosts", "IntHosts", "MacroList"),
)

// spfDefaults are those of the program; the file of Debian's package says the same.
var spfDefaults = map[string]string{
	"HELO_reject": "Fail", "Mail_From_reject": "Fail", "PermError_reject": "False", "TempError_Defer": "False", "No_Mail": "False",
	"skip_addresses": "127.0.0.0/8,::ffff:127.0.0.0/104,::1", "TestOnly": "1", "SPF_Enhanced_Status_Codes": "Yes", "Header_Type": "SPF",
	"Hide_Receiver": "No", "Lookup_Time": "20", "Void_Limit": "2", "Authserv_Id": "HOSTNAME",
	"Reason_Message": "Message {rejectdefer} due to: {spf}. Please see {url}",
}

func (f *Filter) policySPF(r *reader) error {
	settings, err := f.spfConf(r)
	if err != nil {
		return err
	}
	minor := f.judge(settings, false)
	v := values{}
	for _, s := range settings {
		v[s.name] = s
	}
	get := func(name string) string {
		if s, ok := v[name]; ok {
			return s.value
		}
		return spfDefaults[name]
	}
	number := func(name string) int {
		s := v[name]
		s.name, s.value = name, get(name)
		return f.number(values{strings.ToLower(name): s}, name, 0)
	}
	d := &policy.SPFService{
		HELO: get("HELO_reject"), MailFrom: get("Mail_From_reject"), PermError: get("PermError_reject") == "True",
		TempError: get("TempError_Defer") == "True", NoMail: get("No_Mail") == "True",
		NotPass: comma(get("Reject_Not_Pass_Domains")), AllowHELO: comma(get("HELO_Whitelist")), AllowDomains: comma(get("Domain_Whitelist")),
		AllowPTR: comma(get("Domain_Whitelist_PTR")), VoidLookups: number("Void_Limit"), Seconds: number("Lookup_Time"), Message: get("Reason_Message"),
		OldCodes: get("SPF_Enhanced_Status_Codes") == "No", HideRcpt: get("Hide_Receiver") != "No", Header: get("Header_Type"),
	}
	d.Skip, d.Allow = f.prefixes(v, "skip_addresses", get), f.prefixes(v, "Whitelist", get)
	f.ServerID = get("Authserv_Id")
	if get("TestOnly") != "0" {
		f.spfRefuses(d)
	}
	if f.settle(minor) || f.Harmless() { // opendmarc may go by what it finds
		f.SPF = d
	}
	return nil
}

// spfConf reads "name = value"; the program passes lines over that aren't that,
// and names that it doesn't know.
func (f *Filter) spfConf(r *reader) ([]setting, error) {
	text, err := r.text(f.File)
	if err != nil {
		return nil, err
	}
	var all []setting
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		s := setting{strings.TrimSpace(name), strings.TrimSpace(value), f.File, n}
		if !ok || strings.Contains(value, "=") {
			f.Notes = append(f.Notes, s.at()+": policyd-spf passes this line over: "+quote(line))
			continue
		}
		all = append(all, s)
	}
	return all, nil
}

func comma(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func (f *Filter) prefixes(v values, name string, get func(string) string) []string {
	list, bad := prefixes(comma(get(name)))
	if bad != "" {
		f.Notes = append(f.Notes, v[name].at()+": "+name+": policyd-spf gives this list up at "+quote(bad)+", which is no network")
	}
	return list
}

func (f *Filter) spfRefuses(d *policy.SPFService) {
	for _, w := range []struct{ value, what string }{{d.HELO, "the HELO name"}, {d.MailFrom, "the sender"}} {
		switch w.value {
		case "Fail", "Softfail", "Null":
			f.Refuses = append(f.Refuses, "SPF "+strings.Replace(w.value, "Null", "Fail", 1)+" of "+w.what)
		case "SPF_Not_Pass":
			f.Refuses = append(f.Refuses, "SPF that doesn't pass for "+w.what)
		}
	}
	checked := d.HELO != "No_Check" && d.HELO != "False" || d.MailFrom != "No_Check" && d.MailFrom != "False"
	if d.PermError && checked {
		f.Refuses = append(f.Refuses, "SPF records that can't be read")
	}
	if d.TempError && checked {
		f.Refuses = append(f.Refuses, "SPF records that can't be looked up (deferred)")
	}
	if len(d.NotPass) > 0 {
		f.Refuses = append(f.Refuses, "SPF that doesn't pass for "+strings.Join(d.NotPass, ", "))
	}
}

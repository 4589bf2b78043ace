package postfix

import (
	"cmp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// restriction is how one of smtpd's restrictions is replicated.
type restriction struct {
	canonical string // a newer name of the same
	arg       argument
	class     fidelity.Class
	why       string
	options   []string // when it isn't replicated
}

var (
	refuses = []string{fidelity.Ignore, fidelity.Defer}                  // what can only refuse
	permits = []string{fidelity.Soften, fidelity.Ignore, fidelity.Defer} // what can permit
	// The primary can be asked about what it decides by what RCPT tells it.
	refusesAsk = append(slices.Clone(refuses), fidelity.Ask, fidelity.AskElseIgnore)
	permitsAsk = append(slices.Clone(permits), fidelity.Ask, fidelity.AskElseSoften)
)

// restrictions is the closed list: all that smtpd of Postfix 3.7 to 3.10 knows.
var restrictions = map[string]restriction{
	"permit": {class: fidelity.Exact}, "reject": {class: fidelity.Exact}, "defer": {class: fidelity.Exact},
	"defer_if_permit": {class: fidelity.Exact}, "defer_if_reject": {class: fidelity.Exact},
	"sleep":                                        {arg: argNumber, class: fidelity.Exact, why: "a delay decides nothing; the secondary doesn't wait"},
	"reject_plaintext_session":                     {class: fidelity.Exact, why: "judges the client's TLS to the secondary"},
	"reject_unauth_pipelining":                     {class: fidelity.Exact},
	"check_policy_service":                         {arg: argService, class: fidelity.NotReplicated, why: "a policy service decides live; a postgrey or a policyd-spf that can be followed decides here, too, see the filters below", options: refusesAsk},
	"permit_sasl_authenticated":                    {class: fidelity.Exact, why: "nobody authenticates to the secondary"},
	"permit_mynetworks":                            {class: fidelity.Exact},
	"permit_inet_interfaces":                       {class: fidelity.Exact, why: "Postfix looks at who connects, whomever XCLIENT names"},
	"permit_naked_ip_address":                      {class: fidelity.Exact, why: "withdrawn in Postfix 3.9"},
	"permit_tls_clientcerts":                       {class: fidelity.Approximated, why: whyCert},
	"permit_tls_all_clientcerts":                   {class: fidelity.Approximated, why: whyCert},
	"check_ccert_access":                           {arg: argTable, class: fidelity.Approximated, why: whyCert},
	"check_sasl_access":                            {arg: argTable, class: fidelity.Exact, why: "nobody authenticates to the secondary"},
	"check_etrn_access":                            {arg: argTable, class: fidelity.Exact, why: "the secondary has no ETRN"},
	"reject_unknown_client_hostname":               {class: fidelity.GivenDNS},
	"reject_unknown_client":                        {canonical: "reject_unknown_client_hostname", class: fidelity.GivenDNS},
	"reject_unknown_reverse_client_hostname":       {class: fidelity.GivenDNS},
	"reject_unknown_forward_client_hostname":       {class: fidelity.NotReplicated, why: "the engine doesn't know this restriction", options: refusesAsk},
	"check_client_access":                          {arg: argTable, class: fidelity.GivenDNS},
	"check_reverse_client_hostname_access":         {arg: argTable, class: fidelity.GivenDNS},
	"check_client_mx_access":                       {arg: argTable, class: fidelity.GivenDNS},
	"check_client_ns_access":                       {arg: argTable, class: fidelity.GivenDNS},
	"check_client_a_access":                        {arg: argTable, class: fidelity.GivenDNS},
	"check_reverse_client_hostname_mx_access":      {arg: argTable, class: fidelity.GivenDNS},
	"check_reverse_client_hostname_ns_access":      {arg: argTable, class: fidelity.GivenDNS},
	"check_reverse_client_hostname_a_access":       {arg: argTable, class: fidelity.GivenDNS},
	"reject_rbl_client":                            {arg: argZone, class: fidelity.GivenDNS},
	"reject_rbl":                                   {canonical: "reject_rbl_client", arg: argZone, class: fidelity.GivenDNS},
	"reject_maps_rbl":                              {class: fidelity.GivenDNS},
	"reject_rhsbl_client":                          {arg: argZone, class: fidelity.GivenDNS},
	"reject_rhsbl_reverse_client":                  {arg: argZone, class: fidelity.GivenDNS},
	"reject_rhsbl_helo":                            {arg: argZone, class: fidelity.GivenDNS},
	"reject_rhsbl_sender":                          {arg: argZone, class: fidelity.GivenDNS},
	"reject_rhsbl_recipient":                       {arg: argZone, class: fidelity.GivenDNS},
	"permit_dnswl_client":                          {arg: argZone, class: fidelity.GivenDNS},
	"permit_rhswl_client":                          {arg: argZone, class: fidelity.GivenDNS},
	"reject_invalid_helo_hostname":                 {class: fidelity.Exact},
	"reject_invalid_hostname":                      {canonical: "reject_invalid_helo_hostname", class: fidelity.Exact},
	"reject_non_fqdn_helo_hostname":                {class: fidelity.Exact},
	"reject_non_fqdn_hostname":                     {canonical: "reject_non_fqdn_helo_hostname", class: fidelity.Exact},
	"reject_unknown_helo_hostname":                 {class: fidelity.GivenDNS},
	"reject_unknown_hostname":                      {canonical: "reject_unknown_helo_hostname", class: fidelity.GivenDNS},
	"check_helo_access":                            {arg: argTable, class: fidelity.Exact},
	"check_helo_mx_access":                         {arg: argTable, class: fidelity.GivenDNS},
	"check_helo_ns_access":                         {arg: argTable, class: fidelity.GivenDNS},
	"check_helo_a_access":                          {arg: argTable, class: fidelity.GivenDNS},
	"check_sender_access":                          {arg: argTable, class: fidelity.Exact},
	"check_sender_mx_access":                       {arg: argTable, class: fidelity.GivenDNS},
	"check_sender_ns_access":                       {arg: argTable, class: fidelity.GivenDNS},
	"check_sender_a_access":                        {arg: argTable, class: fidelity.GivenDNS},
	"reject_non_fqdn_sender":                       {class: fidelity.Exact},
	"reject_unknown_sender_domain":                 {class: fidelity.GivenDNS},
	"reject_unknown_address":                       {canonical: "reject_unknown_sender_domain", class: fidelity.GivenDNS},
	"reject_unlisted_sender":                       {class: fidelity.Exact},
	"reject_unverified_sender":                     {class: fidelity.NotReplicated, why: "the primary probes the sender's host", options: refusesAsk},
	"reject_sender_login_mismatch":                 {class: fidelity.Exact},
	"reject_known_sender_login_mismatch":           {class: fidelity.Exact},
	"reject_unauthenticated_sender_login_mismatch": {class: fidelity.Exact},
	"reject_authenticated_sender_login_mismatch":   {class: fidelity.Exact, why: "nobody authenticates to the secondary"},
	"check_recipient_access":                       {arg: argTable, class: fidelity.Exact},
	"check_recipient_mx_access":                    {arg: argTable, class: fidelity.GivenDNS},
	"check_recipient_ns_access":                    {arg: argTable, class: fidelity.GivenDNS},
	"check_recipient_a_access":                     {arg: argTable, class: fidelity.GivenDNS},
	"permit_auth_destination":                      {class: fidelity.Exact},
	"permit_mx_backup":                             {class: fidelity.GivenDNS},
	"reject_unauth_destination":                    {class: fidelity.Exact},
	"defer_unauth_destination":                     {class: fidelity.Exact},
	"check_relay_domains": {class: fidelity.Approximated,
		why: "obsolete; read as permit_auth_destination, reject_unauth_destination: a client named in relay_domains gains nothing by it"},
	"reject_non_fqdn_recipient":       {class: fidelity.Exact},
	"reject_unknown_recipient_domain": {class: fidelity.GivenDNS},
	"reject_unlisted_recipient":       {class: fidelity.Exact},
	"check_recipient_maps":            {canonical: "reject_unlisted_recipient", class: fidelity.Exact},
	"reject_unverified_recipient":     {class: fidelity.NotReplicated, why: "the primary probes the recipient's host", options: refusesAsk},
	"reject_multi_recipient_bounce":   {class: fidelity.Exact},
}

const whyCert = "who shows a certificate is refused for now only; who shows none, exactly as by the primary"

const whyRefusing = "answers in 127.255.255.0/24 (the list refuses the question) don't count"

// inert are restrictions that say nothing about a client of the secondary.
var inert = []string{
	"sleep", "permit_sasl_authenticated", "check_sasl_access", "check_etrn_access", "reject_authenticated_sender_login_mismatch",
}

// restrictions reads the lists of each stage, with what a bare table stands for
// in each.
func (i *importer) restrictions() {
	i.findClasses()
	r := &i.spec.Restrictions
	for _, l := range []struct {
		parameter, implied string
		to                 *[]policy.Restriction
	}{
		{"smtpd_client_restrictions", "check_client_access", &r.Client},
		{"smtpd_helo_restrictions", "check_helo_access", &r.Helo},
		{"smtpd_sender_restrictions", "check_sender_access", &r.Sender},
		{"smtpd_relay_restrictions", "check_recipient_access", &r.Relay},
		{"smtpd_recipient_restrictions", "check_recipient_access", &r.Recipient},
		{"smtpd_data_restrictions", "", &r.Data},
		{"smtpd_end_of_data_restrictions", "", &r.EndOfData},
	} {
		*l.to = i.list(l.parameter, i.set[l.parameter], l.implied)
	}
	if len(i.errs) == 0 && !i.guarded("smtpd_relay_restrictions", 0) && !i.guarded("smtpd_recipient_restrictions", 0) {
		i.errorf("smtpd_relay_restrictions or smtpd_recipient_restrictions: Postfix refuses to run without one of " +
			"reject_unauth_destination, defer_unauth_destination, reject, defer, defer_if_permit or check_relay_domains there")
	}
}

// guarded says that a list can't let everybody relay, by Postfix's own
// condition to start.
func (i *importer) guarded(parameter string, depth int) bool {
	es, err := parseList(i.set[parameter], "check_recipient_access", i.isClass)
	if err != nil || depth > maxDepth {
		return true // reported already
	}
	for _, e := range es {
		switch {
		case e.warn:
		case e.class:
			if i.guarded(e.name, depth+1) {
				return true
			}
		case slices.Contains([]string{
			"reject_unauth_destination", "defer_unauth_destination", "check_relay_domains", "reject", "defer", "defer_if_permit",
		}, e.name):
			return true
		}
	}
	return false
}

// maxDepth bounds restriction classes inside of restriction classes.
const maxDepth = 100

func (i *importer) findClasses() {
	for _, name := range words(i.set["smtpd_restriction_classes"]) {
		if _, defined := i.set[name]; !defined {
			i.errorf("smtpd_restriction_classes: %s isn't defined", name)
		}
		i.classes[name] = true
	}
}

func (i *importer) isClass(name string) bool { return i.classes[name] }

// list translates the list of restrictions that a parameter holds.
func (i *importer) list(parameter, value, implied string) []policy.Restriction {
	es, err := parseList(value, implied, i.isClass)
	if err != nil {
		i.errorf("%s: %w", parameter, err)
		return nil
	}
	var out []policy.Restriction
	for _, e := range es {
		for _, r := range i.element(parameter, e, implied) {
			if e.warn {
				out = append(out, policy.Restriction{Kind: "warn_if_reject"})
			}
			out = append(out, r)
		}
	}
	return out
}

// element translates one restriction and reports it.
func (i *importer) element(parameter string, e element, implied string) []policy.Restriction {
	if e.class {
		return []policy.Restriction{{Kind: i.class(e.name, implied)}}
	}
	r := restrictions[e.name]
	class, why, options := r.class, r.why, r.options
	reason, off := i.idle(e.name)
	if off {
		class, why, options = fidelity.Exact, reason, nil
	}
	var out []policy.Restriction
	switch {
	case e.name == "check_policy_service":
		return i.policyService(parameter, e)
	case off || options != nil || slices.Contains(inert, e.name) || r.class == fidelity.NotReplicated:
	case e.name == "reject_maps_rbl":
		for _, zone := range words(i.set["maps_rbl_domains"]) {
			out = append(out, policy.Restriction{Kind: "reject_rbl_client", Arg: zone})
		}
	case e.name == "permit_inet_interfaces":
		return append(i.ownClients(), i.restriction(parameter, e, class, why, nil)...)
	case e.name == "permit_mx_backup":
		i.mxBackup()
		out = []policy.Restriction{{Kind: e.name}}
	case e.name == "check_ccert_access" || e.name == "permit_tls_clientcerts" || e.name == "permit_tls_all_clientcerts":
		i.spec.Protocol.AskCert = true
		out = []policy.Restriction{{Kind: "permit_tls_clientcerts"}}
	case e.name == "check_relay_domains":
		out = []policy.Restriction{{Kind: "permit_auth_destination"}, {Kind: "reject_unauth_destination"}}
	case r.arg == argTable:
		return i.accessTable(parameter, e, class, implied)
	case !slices.Contains(policy.Kinds(), e.name):
		class, why, options = fidelity.NotReplicated, "the engine doesn't know this restriction", refusesAsk
		if strings.HasPrefix(e.name, "permit_") {
			options = permitsAsk
		}
	default:
		out = []policy.Restriction{{Kind: e.name, Arg: e.arg}}
		if (strings.HasPrefix(e.name, "reject_rbl") || strings.HasPrefix(e.name, "reject_rhsbl")) && !strings.Contains(e.arg, "=") {
			class, why = fidelity.Approximated, whyRefusing
		}
	}
	return append(out, i.restriction(parameter, e, class, why, options)...)
}

// restriction reports an element; of one that isn't replicated it returns what
// takes its place.
func (i *importer) restriction(parameter string, e element, class fidelity.Class, why string, options []string) []policy.Restriction {
	e.arg = secretFree(e.arg)
	if options == nil {
		i.item(parameter, e.text(), class, why, "")
		return nil
	}
	if parameter == "smtpd_data_restrictions" || parameter == "smtpd_end_of_data_restrictions" {
		options = slices.DeleteFunc(slices.Clone(options), func(o string) bool { return strings.HasPrefix(o, fidelity.Ask) })
	}
	choice := i.choose(parameter, e.text(), options...)
	i.item(parameter, e.text(), class, why, choice, options...)
	out := map[string][]policy.Restriction{
		fidelity.Soften:        {{Kind: "defer_if_reject"}},
		fidelity.Defer:         {{Kind: "defer_if_permit"}},
		fidelity.Ask:           {{Kind: "ask_primary", Arg: e.note()}},
		fidelity.AskElseIgnore: {{Kind: "ask_primary_else_ignore", Arg: e.note()}},
		fidelity.AskElseSoften: {{Kind: "ask_primary_else_ignore", Arg: e.note()}},
	}[choice]
	if strings.HasPrefix(choice, fidelity.Ask) && options[0] == fidelity.Soften {
		out = append(out, policy.Restriction{Kind: "defer_if_reject"}) // who is refused here is never asked about
	}
	return out
}

// idle says why a restriction that isn't replicated has nothing to say in this
// configuration.
func (i *importer) idle(name string) (why string, idle bool) {
	switch name {
	case "permit_tls_clientcerts", "permit_tls_all_clientcerts", "check_ccert_access":
		return "the primary asks for no client certificate", i.set["smtpd_tls_ask_ccert"] != "yes" && i.set["smtpd_tls_req_ccert"] != "yes"
	case "reject_sender_login_mismatch", "reject_known_sender_login_mismatch", "reject_unauthenticated_sender_login_mismatch":
		if i.set["smtpd_sasl_auth_enable"] != "yes" {
			return "ignored without SASL", true
		}
		return "no sender has an owner", i.set["smtpd_sender_login_maps"] == ""
	case "reject_unlisted_recipient", "reject_unlisted_sender":
		return "receive_override_options has no_unknown_recipient_checks", i.everybody
	}
	return "", false
}

// class translates a restriction class once for each meaning that a bare table
// has in it, and returns its name in the Spec.
func (i *importer) class(name, implied string) string {
	es, _ := parseList(i.set[name], implied, i.isClass)
	key := name
	if i.hasBare(es, implied, 0) {
		key += "/" + cmp.Or(implied, "none")
	}
	if slices.Contains(policy.Kinds(), key) {
		key += "/class" // the engine has more restrictions than Postfix: check_greylist, check_spf
	}
	if _, done := i.spec.Classes[key]; !done {
		i.spec.Classes[key] = nil // against recursion
		i.spec.Classes[key] = i.list(name, i.set[name], implied)
	}
	return key
}

// hasBare says that a list, or a class in it, holds a table without a
// restriction before it.
func (i *importer) hasBare(es []element, implied string, depth int) bool {
	return slices.ContainsFunc(es, func(e element) bool {
		if !e.class || depth > maxDepth {
			return e.implied
		}
		inner, _ := parseList(i.set[e.name], implied, i.isClass)
		return i.hasBare(inner, implied, depth+1)
	})
}

// accessTable translates a restriction that looks something up.
func (i *importer) accessTable(parameter string, e element, class fidelity.Class, implied string) []policy.Restriction {
	name, reason := tableName(e.arg)
	if reason == nil {
		var t *Table
		if t, reason = i.table(parameter, name); reason == nil && t == nil {
			return nil // the import has failed
		}
		if reason == nil {
			reason = i.useAccess(name, t, implied)
		}
	}
	if fails(reason) {
		i.item(parameter, e.text(), class, reason.Error(), "")
		if name = "static:{" + failed + "}"; i.use(name, &Table{Type: "static", Kind: Constant, Value: failed}, true) == nil {
			return []policy.Restriction{{Kind: e.name, Arg: specName(name)}}
		}
	}
	if reason != nil {
		return i.restriction(parameter, e, fidelity.NotReplicated, reason.Error(), permitsAsk)
	}
	i.item(parameter, e.text(), class, "", "")
	return []policy.Restriction{{Kind: e.name, Arg: specName(name)}}
}

package postfix

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

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
		if reason == nil {
			reason = t.unlisted()
		}
		if reason == nil && t.Kind != Indexed {
			reason = fmt.Errorf("%s tables name no single DNS list", t.Type)
		}
		if reason != nil {
			i.item("rbl_reply_maps", name, fidelity.NotReplicated, reason.Error(), "default_rbl_reply")
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
		i.item("rbl_reply_maps", name, fidelity.Exact, "", "")
	}
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
		if !known || p.Class == fidelity.NoDecision || p.Elements || slices.Contains(strings.Split(p.Off, "|"), cmp.Or(v, "-")) {
			continue
		}
		if p.Name == "postscreen_whitelist_interfaces" && set["postscreen_allowlist_interfaces"] != "" {
			continue // said already
		}
		if p.Guard != "" && slices.Contains([]string{"no", "ignore", ""}, set[p.Guard]) {
			continue
		}
		instead := p.Instead
		if p.Class == fidelity.NotReplicated && instead == "" {
			instead = fidelity.Ignore
		}
		if strings.Contains(v, "@") && strings.Contains(v, ":") && p.Class == fidelity.NotReplicated {
			v = "set" // may hold a password
		}
		if p.Options != nil {
			instead = i.choose(p.Name, v, p.Options...)
		}
		if instead == fidelity.Defer {
			i.deferFor(p.Name)
		}
		i.item(p.Name, v, p.Class, p.Why, instead, p.Options...)
	}
}

// deferFor defers what a parameter might refuse: messages at DATA, or without
// TLS, senders.
func (i *importer) deferFor(parameter string) {
	r := &i.spec.Restrictions
	if strings.Contains(parameter, "_tls") {
		r.Sender = slices.Insert(r.Sender, 0, policy.Restriction{Kind: "reject_plaintext_session"})
		return
	}
	r.Data = slices.Insert(r.Data, 0, policy.Restriction{Kind: "defer_if_permit"})
}

// refusing says that mail for a transport is refused. Without a text Postfix takes the
// domain for one.
func refusing(transport string) bool {
	name, _, _ := strings.Cut(transport, ":")
	return name == "error" || name == "retry"
}

// otherTables reports the tables that decide outside of smtpd's restrictions.
func (i *importer) otherTables() {
	for _, l := range []struct {
		parameter string
		refuses   func(value string) bool
		to        *[]string
		values    bool
	}{
		{"transport_maps", refusing, &i.spec.Addresses.TransportMaps, true},
		{"relocated_maps", nil, &i.spec.Addresses.Relocated, true},
		{"smtpd_command_filter", nil, &i.spec.CommandFilter, true},
		{"smtpd_sender_login_maps", nil, &i.spec.SenderLogin, false},
	} {
		at := slices.IndexFunc(missing, func(p Parameter) bool { return p.Name == l.parameter })
		for _, w := range words(i.set[l.parameter]) {
			name, reason := tableName(w)
			var t *Table
			if reason == nil {
				t, reason = i.table(l.parameter, name)
			}
			if t != nil && (t.Partial != "" || len(t.Unknown) > 0 || l.parameter == "transport_maps") {
				reason = t.unlisted()
			}
			switch {
			case reason == nil && t == nil: // the import has failed
			case reason == nil && l.parameter == "smtpd_command_filter" && t.Kind == Indexed:
				i.item(l.parameter, name, fidelity.NotReplicated, "a "+t.Type+" table holds whole commands only; use regexp or pcre", fidelity.Ignore)
			case l.parameter == "smtpd_sender_login_maps" && i.set["smtpd_sasl_auth_enable"] != "yes":
			case reason == nil && l.refuses != nil && !t.any(l.refuses):
				i.item(l.parameter, name, fidelity.Exact, "nothing in it refuses", "")
				i.keep(l.to, name, t, l.values)
			case reason == nil && l.to != nil && i.keep(l.to, name, t, l.values):
				i.item(l.parameter, name, fidelity.Exact, "", "")
			default:
				why := missing[at].Why
				if reason != nil {
					why = reason.Error()
				}
				i.item(l.parameter, name, fidelity.NotReplicated, why, fidelity.Ignore)
			}
		}
	}
}

// commands translates the lists of commands that are known by their first word.
func (i *importer) commands() {
	p := &i.spec.Protocol
	const forbidden = "smtpd_forbidden_commands"
	switch strings.Join(strings.Fields(i.set[forbidden]), " ") {
	case "CONNECT GET POST", "CONNECT GET POST regexp:{{/^[^A-Z]/ Bogus}}", "": // the secondary's own list has these
	default:
		p.ForbiddenCommands = i.commandList(forbidden, fidelity.Approximated, whyForbidden)
	}
	p.NoopCommands = i.commandList("smtpd_noop_commands", fidelity.Exact, "")
}

func (i *importer) commandList(parameter string, class fidelity.Class, why string) []string {
	ps, reasons := i.patterns(parameter, i.set[parameter], false, 0)
	list := i.ordered(ps, reasons)
	for _, p := range ps {
		if reasons[p.text] == nil {
			i.item(parameter, not(p), class, why, "")
		}
	}
	for _, name := range sortedKeys(reasons) {
		i.item(parameter, name, fidelity.NotReplicated, reasons[name].Error(), fidelity.Ignore)
	}
	return list
}

// keep adds a table to a list of the Spec.
func (i *importer) keep(to *[]string, name string, t *Table, values bool) bool {
	if to == nil || i.use(name, t, values) != nil {
		return false
	}
	*to = append(*to, specName(name))
	return true
}

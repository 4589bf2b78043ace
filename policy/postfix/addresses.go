package postfix

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// addressTables say which addresses exist.
var addressTables = []string{
	"recipient_canonical_maps", "sender_canonical_maps", "canonical_maps", "virtual_alias_maps",
	"local_recipient_maps", "virtual_mailbox_maps", "relay_recipient_maps",
}

// addresses translates the address classes and the tables that say which
// addresses exist.
func (i *importer) addresses() {
	a := &i.spec.Addresses
	a.RecipientDelimiter = i.set["recipient_delimiter"]
	a.OwnerRequestSpecial = i.boolean("owner_request_special")
	a.MyOrigin = i.origin()
	i.bounces()
	i.item("recipient_delimiter", a.RecipientDelimiter, fidelity.Exact, "", "")
	i.item("myorigin", a.MyOrigin, fidelity.Exact, "", "")

	aliases := func() { a.AliasesIncomplete = true }
	a.RecipientCanonical = i.addressTables("recipient_canonical_maps", aliases)
	a.SenderCanonical = i.addressTables("sender_canonical_maps", aliases)
	a.Canonical = i.addressTables("canonical_maps", aliases)
	a.VirtualAlias = i.addressTables("virtual_alias_maps", aliases)
	for _, c := range []struct {
		domains, maps, transport string
		to                       *policy.AddressClass
	}{
		{"mydestination", "local_recipient_maps", "local_transport", &a.Local},
		{"virtual_alias_domains", "", "", &a.VirtualAliases},
		{"virtual_mailbox_domains", "virtual_mailbox_maps", "virtual_transport", &a.VirtualMailbox},
		{"relay_domains", "relay_recipient_maps", "relay_transport", &a.Relay},
	} {
		sub := exactly
		if c.domains == "relay_domains" {
			if sub = dotted; i.parentMatch(c.domains) {
				sub = parents
			}
		}
		if !i.domains(c.domains, sub, c.to) {
			i.spec.DomainsIncomplete = true
		}
		if c.maps != "" {
			c.to.Recipients = i.addressTables(c.maps, func() { c.to.Incomplete = true })
		}
		c.to.Transport = i.transport(c.transport)
	}
	a.DefaultTransport = i.transport("default_transport")
	a.TransportMatchesSubdomain = i.parentMatch("transport_maps")
	own := i.ownLiterals()
	a.Local.Domains = append(a.Local.Domains, own...)
	if a.Local.Match != nil {
		a.Local.Match = append(a.Local.Match, own...)
	}
	sort.Strings(a.Local.Domains)
	a.Local.Domains = slices.Compact(a.Local.Domains)
}

// bounces translates what Postfix calls itself and completes addresses with.
func (i *importer) bounces() {
	a := &i.spec.Addresses
	origin := "@" + a.MyOrigin
	if !i.boolean("append_at_myorigin") {
		a.BareDomain, origin = strings.ToLower(i.set["myhostname"]), ""
	}
	if a.DoubleBounce = i.set["double_bounce_sender"]; a.DoubleBounce == "double-bounce" {
		a.DoubleBounce = ""
	}
	verify := i.set["address_verify_sender"]
	switch {
	case verify == "" || verify == "<>" || strings.Trim(i.set["address_verify_sender_ttl"], "0s") != "":
		a.VerifySender = "<>"
	case verify != i.set["double_bounce_sender"] || origin == "":
		if a.VerifySender = verify; !strings.Contains(verify, "@") {
			a.VerifySender += origin
		}
	}
}

// transport is a parameter's transport where mail for it is refused.
func (i *importer) transport(parameter string) string {
	if v := i.set[parameter]; refusing(v) {
		i.item(parameter, v, fidelity.Exact, "", "")
		name, text, _ := strings.Cut(v, ":")
		return name + ":" + text
	}
	return ""
}

func (i *importer) origin() string {
	v := i.set["myorigin"]
	if strings.HasPrefix(v, "/") {
		text, err := i.readFile(v)
		if err != nil {
			i.errorf("myorigin: %w", err)
		}
		v, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	}
	return strings.ToLower(strings.TrimSpace(v))
}

// addressTables translates tables that say which addresses exist. incomplete
// is called when one can't be replicated; an empty table then stands in for it,
// since no table at all means that every address exists.
func (i *importer) addressTables(parameter string, incomplete func()) (names []string) {
	for _, w := range words(i.set[parameter]) {
		name, reason := tableName(w)
		var t *Table
		if reason == nil {
			t, reason = i.table(parameter, name)
		}
		if t == nil && reason == nil {
			continue // the import has failed
		}
		if reason == nil {
			t, reason = t.filled()
		}
		if reason == nil {
			reason = i.use(name, t, false)
		}
		switch {
		case i.learns(name, t, reason):
			i.learned = append(i.learned, learnedTable{parameter, name, t, reason})
		case reason == nil && t.Partial != "":
			incomplete()
			i.item(parameter, name, fidelity.Approximated, t.Partial, "unknown recipients are refused for now only (4xx)")
		case reason != nil:
			incomplete()
			i.use(name, &Table{Kind: Indexed}, false)
			i.item(parameter, name, fidelity.NotReplicated, reason.Error(), "unknown recipients are refused for now only (4xx)")
		default:
			if t.How.Unlisted {
				i.item(parameter, name, fidelity.Approximated, t.How.missed(), "unknown recipients are refused for good (postfix_unlisted)")
				break
			}
			note := t.Note
			if t.Kind == Indexed && note == "" {
				note = strings.Join(append([]string{fmt.Sprintf("%d entries", len(t.Entries))}, t.How.notes()...), "; ")
			}
			if len(t.Unknown) > 0 {
				i.item(parameter, name, fidelity.Approximated, fmt.Sprintf("look-ups fail for %d keys, such as %q", len(t.Unknown), slices.Min(slices.Collect(maps.Keys(t.Unknown)))),
					"these recipients are refused for now only (4xx)")
				break
			}
			i.item(parameter, name, fidelity.Exact, note, "")
		}
		names = append(names, specName(name))
	}
	return names
}

// ownLiterals are the primary's own addresses as address literals: mail to
// user@[literal] is local.
func (i *importer) ownLiterals() []string {
	var all []string
	for _, a := range i.own("inet_interfaces", "proxy_interfaces") {
		if a.Is4() {
			all = append(all, "["+a.String()+"]")
		} else {
			all = append(all, "[ipv6:"+a.String()+"]")
		}
	}
	return all
}

// own are the primary's own addresses, as far as parameters name them. An address of a
// family that inet_protocols leaves out isn't its own, whatever the machine has.
func (i *importer) own(parameters ...string) (addrs []netip.Addr) {
	for _, parameter := range parameters {
		for _, w := range words(i.set[parameter]) {
			switch a, err := netip.ParseAddr(strings.Trim(w, "[]")); {
			case w == "all":
				addrs = append(addrs, i.src.Host.Addresses(i.ctx)...)
			case w == "loopback-only" || w == "localhost":
				addrs = append(addrs, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
			case err == nil:
				addrs = append(addrs, a.Unmap().WithZone(""))
			default:
				i.item(parameter, w, fidelity.Approximated, "a name; what has its address isn't seen as the primary's own", fidelity.Ignore)
			}
		}
	}
	protocols := words(i.set["inet_protocols"])
	if slices.Contains(protocols, "all") {
		protocols = []string{"ipv4", "ipv6"}
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		family := "ipv6"
		if a.Is4() {
			family = "ipv4"
		}
		return !slices.Contains(protocols, family)
	})
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// mxBackup translates what permit_mx_backup looks at.
func (i *importer) mxBackup() {
	const networks = "permit_mx_backup_networks"
	b := &i.spec.MXBackup
	if b.Addresses != nil {
		return
	}
	b.Addresses = i.own("inet_interfaces", "proxy_interfaces")
	b.Networks = i.networks(networks)
	b.MatchSubdomain = len(b.Networks) > 0 && i.parentMatch(networks)
}

// ownClients permits the clients that permit_inet_interfaces does.
func (i *importer) ownClients() []policy.Restriction {
	const own = "inet_interfaces"
	var rules [][2]string
	for _, a := range i.own(own) {
		rules = append(rules, [2]string{a.String(), "OK"})
	}
	var err error
	if i.spec.Tables[own], err = table.NewCIDR(rules); err != nil {
		i.errorf("%s: %w", own, err)
	}
	return []policy.Restriction{{Kind: "check_client_access", Arg: own}}
}

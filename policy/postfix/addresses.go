package postfix

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// addresses translates the address classes and the tables that say which
// addresses exist.
func (i *importer) addresses() {
	a := &i.spec.Addresses
	a.RecipientDelimiter = i.set["recipient_delimiter"]
	a.OwnerRequestSpecial = i.boolean("owner_request_special")
	a.MyOrigin = i.origin()
	i.item("recipient_delimiter", a.RecipientDelimiter, Exact, "", "")
	i.item("myorigin", a.MyOrigin, Exact, "", "")

	codes := &i.spec.Codes
	a.RecipientCanonical = i.addressTables("recipient_canonical_maps", i.everyone)
	a.SenderCanonical = i.addressTables("sender_canonical_maps", i.everyone)
	a.Canonical = i.addressTables("canonical_maps", i.everyone)
	a.VirtualAlias = i.addressTables("virtual_alias_maps", i.everyone)
	for _, c := range []struct {
		domains, maps string
		to            *policy.AddressClass
		code          *int
	}{
		{"mydestination", "local_recipient_maps", &a.Local, &codes.UnknownLocalRcpt},
		{"virtual_alias_domains", "", &a.VirtualAliases, &codes.UnknownVirtualAlias},
		{"virtual_mailbox_domains", "virtual_mailbox_maps", &a.VirtualMailbox, &codes.UnknownVirtualMailbox},
		{"relay_domains", "relay_recipient_maps", &a.Relay, &codes.UnknownRelayRcpt},
	} {
		sub := exactly
		if c.domains == "relay_domains" {
			if sub = dotted; i.parentMatch(c.domains) {
				sub = parents
			}
		}
		if !i.domains(c.domains, sub, c.to) {
			temporary(&codes.RelayDomains)
		}
		if c.maps != "" {
			c.to.Recipients = i.addressTables(c.maps, func() { temporary(c.code) })
		}
	}
	own := i.ownLiterals()
	a.Local.Domains = append(a.Local.Domains, own...)
	if a.Local.Match != nil {
		a.Local.Match = append(a.Local.Match, own...)
	}
	sort.Strings(a.Local.Domains)
	a.Local.Domains = slices.Compact(a.Local.Domains)
}

// temporary makes a configured refusal a temporary one.
func temporary(code *int) {
	if *code >= 500 {
		*code -= 100
	}
}

// everyone makes unknown recipients of every class temporary: one of them may
// be in a table that we don't have.
func (i *importer) everyone() {
	c := &i.spec.Codes
	for _, code := range []*int{&c.UnknownLocalRcpt, &c.UnknownVirtualAlias, &c.UnknownVirtualMailbox, &c.UnknownRelayRcpt} {
		temporary(code)
	}
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
			reason = i.use(name, t, false)
		}
		switch {
		case reason == nil && t.Partial != "":
			incomplete()
			i.item(parameter, name, Approximated, t.Partial, "unknown recipients are refused for now only (4xx)")
		case reason != nil:
			incomplete()
			i.use(name, &Table{Kind: Indexed}, false)
			i.item(parameter, name, NotReplicated, reason.Error(), "unknown recipients are refused for now only (4xx)")
		default:
			note := ""
			if t.Kind == Indexed {
				note = fmt.Sprintf("%d entries", len(t.Entries))
			}
			i.item(parameter, name, Exact, note, "")
		}
		names = append(names, specName(name))
	}
	return names
}

// ownLiterals are the primary's own addresses as address literals: mail to
// user@[literal] is local.
func (i *importer) ownLiterals() []string {
	seen := map[string]bool{}
	add := func(a netip.Addr) {
		a = a.Unmap().WithZone("")
		if a.Is4() {
			seen["["+a.String()+"]"] = true
		} else {
			seen["[ipv6:"+a.String()+"]"] = true
		}
	}
	for _, parameter := range []string{"inet_interfaces", "proxy_interfaces"} {
		for _, w := range words(i.set[parameter]) {
			switch a, err := netip.ParseAddr(strings.Trim(w, "[]")); {
			case w == "all":
				addrs, _ := net.InterfaceAddrs()
				for _, ifa := range addrs {
					if p, err := netip.ParsePrefix(ifa.String()); err == nil {
						add(p.Addr())
					}
				}
			case w == "loopback-only" || w == "localhost":
				add(netip.MustParseAddr("127.0.0.1"))
				add(netip.IPv6Loopback())
			case err == nil:
				add(a)
			default:
				i.item(parameter, w, Approximated, "a name; mail to its address as a literal isn't seen as local", optIgnore)
			}
		}
	}
	return sortedKeys(seen)
}

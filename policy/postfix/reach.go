package postfix

import (
	"slices"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// domainLists say which domains the primary serves.
var domainLists = []string{"mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains"}

// concern marks the items about domains and recipients that can't be known, and
// says how many addresses each is about.
func (i *importer) concern() {
	a := &i.spec.Addresses
	of := map[string]*policy.AddressClass{
		"local_recipient_maps": &a.Local, "virtual_mailbox_maps": &a.VirtualMailbox, "relay_recipient_maps": &a.Relay,
	}
	for n := range i.report.Items {
		it := &i.report.Items[n]
		if it.Class != fidelity.NotReplicated && it.Class != fidelity.Approximated {
			continue
		}
		if slices.Contains(domainLists, it.Parameter) {
			it.Domains, it.NoMail = true, it.Parameter != "virtual_alias_domains" || !i.aliases(it.Element)
			it.Unknown, it.Concerns = true, "every address in the domains that it holds, whichever these are"
		} else if slices.Contains(addressTables, it.Parameter) {
			it.Concerns = fidelity.Concerned(i.spec, of[it.Parameter])
			it.Unknown = it.Concerns != ""
		}
	}
}

// aliases says that an element is a table of aliases. It is a list of domains, too,
// by default; hardly ever has it one.
func (i *importer) aliases(element string) bool {
	return slices.ContainsFunc(i.report.Items, func(o fidelity.Item) bool {
		return o.Parameter == "virtual_alias_maps" && o.Element == element
	})
}

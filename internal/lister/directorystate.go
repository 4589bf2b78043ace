package lister

import (
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// contentSync is the control of RFC 4533, which the overlay syncprov brings.
const contentSync = "1.3.6.1.4.1.4203.1.9.1.1"

// State is a mark that every change below a base sets anew; "" is all entries.
// It is contextCSN, as OpenLDAP's overlay syncprov keeps it, of each naming
// context that has a part of the base. The mark is "" where the directory can't
// tell: without the overlay there may be such a number, too, that slapadd wrote
// and nobody keeps. Writes that aren't replicated, such as the times of logins,
// don't change it.
func (d *Directory) State(base string) (string, error) {
	root, err := d.Ask(Search{Scope: "base", Filter: "(objectClass=*)", Attributes: []string{"namingContexts", "supportedControl"}}, 0)
	if err != nil || len(root) != 1 || !slices.Contains(root[0].Values("supportedControl"), contentSync) {
		return "", d.noSchema(err)
	}
	state := ""
	for _, context := range root[0].Values("namingContexts") {
		if !related(base, context) {
			continue
		}
		e, err := d.Ask(Search{Base: context, Scope: "base", Filter: "(objectClass=*)", Attributes: []string{"contextCSN"}}, 0)
		if err != nil || len(e) != 1 || len(e[0].Values("contextCSN")) == 0 {
			return "", d.noSchema(err)
		}
		state += context + " " + strings.Join(slices.Sorted(slices.Values(e[0].Values("contextCSN"))), " ") + "\n"
	}
	return state, nil
}

// related says that one name is below the other.
func related(a, b string) bool {
	x, errX := ldap.ParseDN(a)
	y, errY := ldap.ParseDN(b)
	return errX == nil && errY == nil && (x.EqualFold(y) || x.AncestorOfFold(y) || y.AncestorOfFold(x))
}

package fidelity

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// TurnedAway returns the domains, sorted, all of whose recipients the policy answers
// 4xx for now: they can't be known, and none is.
func TurnedAway(spec *policy.Spec) []string {
	var all []string
	for _, c := range addressClasses(spec) {
		k := knownTo(spec, c.tables)
		for _, d := range c.names() {
			if c.unsure(spec) && k.in(d) == 0 {
				all = append(all, d)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// addressClass is a class of domains with all the tables that know recipients
// there.
type addressClass struct {
	*policy.AddressClass
	tables []string
}

func addressClasses(spec *policy.Spec) (all []addressClass) {
	a := &spec.Addresses
	aliases := slices.Concat(a.RecipientCanonical, a.Canonical, a.VirtualAlias)
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		all = append(all, addressClass{c, slices.Concat(c.Recipients, aliases)})
	}
	return all
}

// names are the domains without address literals, and without the second entry of a
// name that includes its subdomains.
func (c *addressClass) names() []string {
	return slices.DeleteFunc(slices.Clone(c.Domains), func(d string) bool {
		return d[0] == '[' || d[0] == '.' && slices.Contains(c.Domains, d[1:])
	})
}

// unsure says that recipients missing from the tables are refused only for now.
func (c *addressClass) unsure(spec *policy.Spec) bool {
	if len(c.Recipients) == 0 && c.AddressClass != &spec.Addresses.VirtualAliases {
		return false // everybody exists
	}
	return c.Incomplete || spec.Addresses.AliasesIncomplete || slices.ContainsFunc(c.tables, func(name string) bool {
		return spec.Learned[name].Absent != ""
	})
}

// known counts the addresses that tables name.
type known struct {
	domain map[string]int
	bare   int  // without a domain: in each of the local ones
	others int  // tables that may name anybody: patterns, constants
	all    bool // one of these names everybody
}

func knownTo(spec *policy.Spec, tables []string) known {
	k := known{domain: map[string]int{}}
	for _, name := range tables {
		t := spec.Tables[name]
		switch {
		case t == nil:
		case !t.Keyed():
			k.others++
			k.all = k.all || t.Type() == "static"
		default:
			for key := range t.Entries(0, t.Len()) {
				if at := bytes.LastIndexByte(key, '@'); at >= 0 {
					k.domain[string(key[at+1:])]++
				} else if strings.HasPrefix(name, "unix:") || slices.Contains(spec.Addresses.Local.Recipients, name) {
					k.bare++
				}
			}
		}
	}
	return k
}

// in is how many addresses of a domain are known, or would be.
func (k *known) in(domain string) int {
	n := k.domain[domain] + k.bare + k.others
	if strings.HasPrefix(domain, ".") {
		for d, more := range k.domain {
			if strings.HasSuffix(d, domain) {
				n += more
			}
		}
	}
	return n
}

// Concerned describes the recipients that a table of the class of can name, nil
// for one that is asked for every class; "" where a constant lets everybody
// exist.
func Concerned(spec *policy.Spec, of *policy.AddressClass) string {
	a := &spec.Addresses
	var domains []string
	total, everybody := 0, false
	for _, c := range addressClasses(spec) {
		if of != nil && of != c.AddressClass {
			continue
		}
		k := knownTo(spec, c.tables)
		if k.all || len(c.Recipients) == 0 && c.AddressClass != &a.VirtualAliases {
			everybody = everybody || len(c.Domains) > 0
			continue
		}
		listed := c.names()
		for _, d := range listed {
			total += k.domain[d]
		}
		if len(listed) > 0 && c.AddressClass == &a.Local {
			total += k.bare
		}
		domains = append(domains, listed...)
	}
	slices.Sort(domains)
	if domains = slices.Compact(domains); len(domains) == 0 && everybody {
		return ""
	}
	if len(domains) == 0 {
		return "recipients of domains that can't be known"
	}
	const most = 5
	names := strings.Join(domains[:min(len(domains), most)], ", ")
	if len(domains) > most {
		names += ", …"
	}
	return fmt.Sprintf("all but the %d known %s of %d %s: %s", total, plural(total, "address"), len(domains), plural(len(domains), "domain"), names)
}

func plural(n int, noun string) string {
	switch {
	case n == 1:
		return noun
	case strings.HasSuffix(noun, "s"):
		return noun + "es"
	}
	return noun + "s"
}

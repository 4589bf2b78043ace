package policy

import (
	"net/netip"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// Lists of networks and of domains whose elements are looked at in order, as
// Postfix's match_list(3) does: "!" excludes, "table:NAME" asks a table of the
// Spec, and the first element that matches decides.

// matchItem is an element of such a list.
type matchItem struct {
	not   bool
	table *dict
	name  string // a domain; ".name" stands for its subdomains
	net   netip.Prefix
}

const tablePrefix = "table:"

// networkList is a list of clients, such as mynetworks: a trie, or, with tables or
// names, the elements in order.
type networkList struct {
	trie       *bart.Table[bool] // false excludes
	items      []matchItem
	subdomains bool // a name stands for its subdomains
}

func (c *compiler) networks(where string, list []string, subdomains bool) networkList {
	l := networkList{trie: new(bart.Table[bool]), subdomains: subdomains}
	ordered := false
	for _, n := range list {
		rest, excluded := strings.CutPrefix(n, "!")
		item := matchItem{not: excluded}
		p, err := table.ParsePrefix(rest)
		switch name, isTable := strings.CutPrefix(rest, tablePrefix); {
		case isTable:
			ordered = true
			if item.table = c.tables[name]; item.table == nil {
				c.errorf("%s: no table is called %q", where, name)
				continue
			}
		case err == nil:
			item.net = p
			if _, covered := l.trie.LookupPrefix(p); !covered { // the first match wins
				l.trie.Insert(p, !excluded)
			}
		case envelope.ValidHostname(strings.TrimPrefix(rest, ".")):
			ordered = true
			item.name = table.Fold(rest)
		default:
			c.errorf("%s: %w", where, err)
			continue
		}
		l.items = append(l.items, item)
	}
	if !ordered {
		l.items = nil
	}
	return l
}

// hasAddr says that an address is in the list, judging without the client's name.
func (l *networkList) hasAddr(a netip.Addr) bool {
	in, found := l.trie.Lookup(a)
	return l.items == nil && found && in
}

// has says that the list holds a host: an address, or the name that goes with it,
// "" when that isn't known.
func (l *networkList) has(f *finder, a netip.Addr, name string) bool {
	if l.items == nil {
		return l.hasAddr(a)
	}
	name = table.Fold(name)
	for i := range l.items {
		m := &l.items[i]
		found := false
		switch {
		case m.table != nil:
			found = f.listed(m.table, name, l.subdomains) || f.query(m.table, append(f.buf[:0], a.String()...), a, true).ok()
		case m.name != "":
			found = matchesDomain(name, m.name, l.subdomains)
		default:
			found = m.net.Contains(a)
		}
		if found {
			return !m.not
		}
	}
	return false
}

func matchesDomain(domain, pattern string, subdomains bool) bool {
	switch {
	case domain == pattern:
		return true
	case subdomains:
		rest, ok := strings.CutSuffix(domain, pattern)
		return ok && strings.HasSuffix(rest, ".") && len(rest) > 1
	}
	return len(domain) > len(pattern) && pattern[0] == '.' && strings.HasSuffix(domain, pattern)
}

// Values of AddressClass.Parents.
const (
	parentsNone = ""      // a domain matches its own name only
	parentsName = "name"  // "example.org" matches its subdomains too
	parentsDot  = ".name" // only ".example.org" does
)

// domainList compiles an ordered list of domains, nil when there is none.
func (c *compiler) domainList(ac *AddressClass) []matchItem {
	if ac.Parents != parentsNone && ac.Parents != parentsName && ac.Parents != parentsDot {
		c.errorf("addresses: parents: %q is none of %q, %q, %q", ac.Parents, parentsNone, parentsName, parentsDot)
	}
	return c.names("addresses: match", ac.Match)
}

// names compiles an ordered list of names and tables.
func (c *compiler) names(where string, elements []string) []matchItem {
	var list []matchItem
	for _, d := range elements {
		rest, not := strings.CutPrefix(d, "!")
		item := matchItem{not: not, name: table.Fold(rest)}
		if name, isTable := strings.CutPrefix(rest, tablePrefix); isTable {
			item.name = ""
			if item.table = c.tables[name]; item.table == nil {
				c.errorf("%s: no table is called %q", where, name)
				continue
			}
		} else if rest == "" {
			c.errorf("%s: an element is empty", where)
			continue
		}
		list = append(list, item)
	}
	return list
}

// inClass says that a folded domain belongs to a class of addresses.
func (s *Snapshot) inClass(f *finder, class addressClass, domain string) bool {
	set := &s.domains[class]
	if set.list == nil {
		return set.has(domain)
	}
	parents := s.spec.Addresses.class(class).Parents
	for i := range set.list {
		m := &set.list[i]
		found := m.name == domain
		switch {
		case m.table != nil && parents == parentsNone:
			f.buf = append(f.buf[:0], domain...)
			found = f.query(m.table, f.buf, netip.Addr{}, true).ok()
		case m.table != nil:
			found = f.listed(m.table, domain, parents == parentsName)
		case parents != parentsNone:
			found = matchesDomain(domain, m.name, parents == parentsName)
		}
		if found {
			return !m.not
		}
	}
	return false
}

func (a *Addresses) class(c addressClass) *AddressClass {
	switch c {
	case classLocal:
		return &a.Local
	case classVirtualAlias:
		return &a.VirtualAliases
	case classVirtualMailbox:
		return &a.VirtualMailbox
	}
	return &a.Relay
}

package postfix

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/understudy-mx/understudy/internal/lister"
)

// resolve looks up how the directory compares, and drops the arms that never
// hold there.
func (se *Search) resolve(dir Directory) (contexts []string, err error) {
	schema, contexts, err := dir.Schema()
	if err != nil {
		return nil, err
	}
	if len(schema) == 0 {
		return nil, errInexact("the directory doesn't let this user read its schema (cn=Subschema)")
	}
	activeDirectory := true
	for _, t := range schema {
		activeDirectory = activeDirectory && t.Equality == ""
	}
	for _, d := range se.dns {
		if err := d.it.resolve(schema, activeDirectory); err != nil {
			return nil, err
		}
		if d.it.rule == ruleUndefined {
			return nil, errInexact(d.it.attr + " in search_base isn't in the directory's schema")
		}
	}
	var alive []*arm
	for _, a := range se.arms {
		defined := true
		for _, it := range slices.Concat(a.must, a.not, a.lacking) {
			if err := it.resolve(schema, activeDirectory); err != nil {
				return nil, err
			}
			defined = defined && it.rule != ruleUndefined
		}
		if defined {
			alive = append(alive, a)
		}
	}
	se.arms = alive
	se.number()
	return contexts, nil
}

// mark identifies an entry in little space.
type mark [16]byte

func markOf(dn string) mark {
	sum := sha256.Sum256([]byte(dn))
	return mark(sum[:])
}

// found are the entries by the arms that find them, nil when there is one.
type found map[mark]uint64

// list enumerates the table: exactly, where the directory's schema lets us tell
// what an entry answers to, else by candidates. What was listed is then checked.
func (se *Search) list(x *expansion, t *Table, hints []string) error {
	var inexact errInexact
	err := se.inexact
	if err == nil {
		if err = se.listExactly(x.dir, x); err != nil && !errors.As(err, &inexact) {
			return err
		}
	}
	if err == nil {
		t.How = Listing{Exact: true, Put: len(x.doubts)}
		t.DomainWide = se.whole
		t.Unsure = " " // a directory squeezes space, and leaves it away at the ends
		err = x.finish(t)
	} else {
		x.behind = nil
		err = x.candidates(err, t, hints)
	}
	if err != nil {
		return err
	}
	return checkListing(x, t, se.db.Unlisted)
}

func (se *Search) listExactly(dir Directory, x *expansion) error {
	contexts, err := se.resolve(dir)
	if err != nil || len(se.arms) == 0 {
		return err
	}
	scope := se.scope
	if len(se.dns) > 0 {
		scope = "sub"
	}
	for _, base := range se.bases(contexts) {
		if err := se.listBelow(dir, lister.Search{Base: base, Scope: scope, Attributes: append(se.attributes(), x.more...)}, x); err != nil {
			return err
		}
	}
	return x.askDoubtful()
}

// bases are where entries lie that keys may lead to.
func (se *Search) bases(contexts []string) []string {
	if len(se.dns) > 0 && se.listBase == "" {
		return contexts
	}
	return []string{se.listBase}
}

// attributes are those that a listing asks for.
func (se *Search) attributes() (all []string) {
	for _, a := range se.arms {
		for _, it := range slices.Concat(a.must, a.not) {
			all = append(all, it.attr)
		}
	}
	all = append(all, se.result.all()...)
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == 0 {
		return []string{"1.1"}
	}
	return all
}

// listBelow lists one base. Where arms ask for different things each is asked
// for names first, so that the entries come once and in the order in which
// Postfix sees them.
func (se *Search) listBelow(dir Directory, search lister.Search, x *expansion) error {
	finds, all := se.finds()
	var by found
	for _, find := range sortedKeys(finds) {
		if len(finds) == 1 {
			break
		}
		if by == nil {
			by = found{}
		}
		filter, names := "(&"+find+")", search
		names.Filter, names.Attributes = filter, []string{"1.1"}
		if err := dir.Search(names, func(e lister.Entry) error {
			by[markOf(e.DN)] |= finds[find]
			return nil
		}); err != nil {
			return err
		}
	}
	search.Filter = all
	return dir.Search(search, func(e lister.Entry) error {
		bits := ^uint64(0)
		if by != nil {
			bits = by[markOf(e.DN)]
		}
		return se.entry(e, bits, x)
	})
}

// finds are what the arms ask for, with their bits, and a filter for all of it.
func (se *Search) finds() (bits map[string]uint64, filter string) {
	bits = map[string]uint64{}
	for _, a := range se.arms {
		bits[a.find] = a.bit
	}
	for _, find := range sortedKeys(bits) {
		filter += "(&" + find + ")"
	}
	return bits, "(|" + filter + ")"
}

// entry notes what an entry answers to.
func (se *Search) entry(e lister.Entry, bits uint64, x *expansion) error {
	keys, err := se.answers(e, bits)
	if err != nil {
		return err
	}
	x.note(e, keys)
	for key, holds := range keys {
		if !key.wide && keys[asked{key.key, true}] == surely {
			continue // it is in already
		}
		switch holds {
		case surely:
			if err := x.add(key, []lister.Entry{e}); err != nil {
				return err
			}
		case maybe:
			x.doubts[key] = true
		}
	}
	return nil
}

// answers are the keys that an entry may answer to, as one that these finds
// found.
func (se *Search) answers(e lister.Entry, bits uint64) (map[asked]certainty, error) {
	rdns, err := se.rdns(e.DN)
	if err != nil {
		return nil, err
	}
	keys := map[asked]certainty{}
	for _, a := range se.arms {
		if a.bit&bits == 0 {
			continue
		}
		if a.always && slices.ContainsFunc(se.result.all(), func(name string) bool { return len(e.Values(name)) > 0 }) {
			return nil, errInexact("query_filter finds entries whatever the key is")
		}
		for _, it := range slices.Concat(a.must, a.not) {
			if len(it.values(e)) == 0 {
				return nil, errInexact("the directory doesn't tell this user " + it.attr + " of every entry")
			}
		}
		for _, key := range se.keys(a, e, rdns) {
			if l, ok := se.admits(key); ok {
				keys[key] = max(keys[key], se.holds(a, l, e, rdns))
			}
		}
	}
	return keys, nil
}

// rdns are the values of an entry's name from the right, beyond listBase.
func (se *Search) rdns(name string) ([]*ldap.RelativeDN, error) {
	if len(se.dns) == 0 {
		return nil, nil
	}
	dn, err := ldap.ParseDN(name)
	if err != nil {
		return nil, fmt.Errorf("the directory names an entry %q: %w", name, err)
	}
	slices.Reverse(dn.RDNs)
	return dn.RDNs, nil
}

// asked is a key, or "@domain" for all addresses of a domain.
type asked struct {
	key  string
	wide bool
}

// admits says whether Postfix asks the directory for a key at all.
func (se *Search) admits(k asked) (lookup, bool) {
	key := k.key
	if k.wide {
		key = "x" + key
	}
	if !se.db.asks(key) {
		return lookup{}, false
	}
	return se.template.lookup(k.key)
}

// keys are what an entry may answer to by an arm.
func (se *Search) keys(a *arm, e lister.Entry, rdns []*ldap.RelativeDN) (all []asked) {
	parts := map[byte][]string{}
	try := func(it *ldapItem, values []string) {
		kind, _ := it.hole()
		if kind == 0 || parts[kind] != nil {
			return
		}
		parts[kind] = []string{}
		for _, v := range values {
			parts[kind] = append(parts[kind], it.solve(v)...)
		}
	}
	for _, it := range a.must {
		try(it, it.values(e))
	}
	for _, d := range se.dns {
		try(d.it, dnValues(d, rdns))
	}
	domains := parts['d']
	if domains == nil {
		domains = se.domains
	}
	switch {
	case parts['s'] != nil:
		for _, s := range parts['s'] {
			all = append(all, asked{s, false})
		}
		return all
	case parts['u'] != nil:
		for _, u := range parts['u'] {
			for _, d := range domains {
				all = append(all, asked{u + "@" + d, false})
			}
		}
		return all
	}
	for _, d := range parts['d'] {
		all = append(all, asked{"@" + d, true})
	}
	return all
}

// dnValues is the value in an entry's name at the place of search_base's.
func dnValues(d dnItem, rdns []*ldap.RelativeDN) []string {
	if d.level >= len(rdns) || len(rdns[d.level].Attributes) != 1 {
		return nil
	}
	if a := rdns[d.level].Attributes[0]; slices.Contains(d.it.names, strings.ToLower(a.Type)) {
		return []string{a.Value}
	}
	return nil
}

// holds says whether an entry that an arm finds answers to a key.
func (se *Search) holds(a *arm, l lookup, e lister.Entry, rdns []*ldap.RelativeDN) certainty {
	result := surely
	for _, it := range a.must {
		result = min(result, it.holds(l, it.values(e)))
	}
	for _, it := range a.not {
		result = min(result, surely-it.holds(l, it.values(e)))
	}
	for _, it := range a.lacking {
		result = min(result, surely-it.holds(l, []string{""})) // a key may be no value of such an attribute
	}
	for _, d := range se.dns {
		result = min(result, d.it.holds(l, dnValues(d, rdns)))
	}
	if len(se.dns) > 0 {
		switch depth := len(rdns) - len(se.dns) - se.above; {
		case depth < 0, se.scope == "base" && depth > 0, se.scope == "one" && depth != 1:
			return surelyNot
		}
	}
	return result
}

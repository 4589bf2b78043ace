package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/understudy-mx/understudy/internal/lister"
)

// Search is how to list what an LDAP table answers to. The key stands in
// query_filter, in search_base or in both; the filter's alternatives are
// looked at one by one: what an entry answers to by one of them must not be
// let in by another.
type Search struct {
	db       *Database
	arms     []*arm
	inexact  error // why the arms don't tell the keys
	base     []piece
	filter   []piece
	scope    string
	template template
	result   resultAttributes
	// listBase is search_base as far as it doesn't depend on the key; dns
	// compare the rest.
	listBase string
	dns      []dnItem
	above    int      // RDNs of listBase
	domains  []string // of the setting, when they can be counted
	whole    bool     // some arms answer to every address of a domain
}

// arm is one alternative of the filter.
type arm struct {
	find      string // what the directory is asked: everything but the key
	must, not []*ldapItem
	lacking   []*ldapItem // not, for entries without the attribute
	bit       uint64      // of its find among those of all arms
	always    bool        // the key isn't in it
}

// dnItem is an RDN of search_base, compared with that of an entry.
type dnItem struct {
	it    *ldapItem
	level int // RDNs to the right of it
}

// search reads the table's settings. What keeps it from being listed exactly
// is noted; what keeps Postfix from starting with it is an error.
func (d *Database) search() (*Search, error) {
	s := d.Settings
	se := &Search{db: d, scope: searchScope(s["scope"]), domains: d.domains(), result: newResultAttributes(s)}
	query := strings.TrimSpace(cmp.Or(s["query_filter"], "(mailacceptinggeneralid=%s)"))
	if !strings.HasPrefix(query, "(") {
		query = "(" + query + ")" // the old form
	}
	query = trivial.Replace(query)
	var err error
	if se.template, err = newTemplate(s["search_base"]+" "+query, d.resultFormat()); err != nil {
		return nil, err
	}
	if se.base, err = cutPieces(s["search_base"]); err != nil {
		return nil, fmt.Errorf("search_base: %w", err)
	}
	if se.filter, err = cutPieces(query); err != nil {
		return nil, fmt.Errorf("query_filter: %w", err)
	}
	se.inexact = cmp.Or(se.splitBase(s["search_base"]), se.splitFilter(query))
	if len(se.dns) > 0 && !slices.Contains([]string{"", "0"}, s["dereference"]) {
		se.inexact = errors.New("aliases below a search_base with the key in it")
	}
	return se, nil
}

// trivial spells the filters that always and never hold, RFC 4526, for those
// that don't know them.
var trivial = strings.NewReplacer("(&)", "(objectClass=*)", "(|)", "(!(objectClass=*))")

// splitFilter makes the arms.
func (se *Search) splitFilter(query string) error {
	f, err := lister.ParseFilter(query)
	if err != nil {
		return fmt.Errorf("query_filter: %w", err)
	}
	all, err := arms(f, false)
	if err != nil {
		return err
	}
	for _, literals := range all {
		if err := se.addArm(literals); err != nil {
			return err
		}
	}
	se.number()
	return nil
}

// searchScope is Postfix's, which takes what it doesn't know for "sub".
func searchScope(s string) string {
	if s = strings.ToLower(s); s == "one" || s == "base" {
		return s
	}
	return "sub"
}

// splitBase finds the part of search_base that all keys have in common.
func (se *Search) splitBase(base string) error {
	if len(placeholders(base)) == 0 {
		se.listBase = strings.ReplaceAll(base, "%%", "%")
		return nil
	}
	dn, err := ldap.ParseDN(base)
	if err != nil {
		return fmt.Errorf("search_base: %w", err)
	}
	keyed := func(r *ldap.RelativeDN) bool {
		return slices.ContainsFunc(r.Attributes, func(a *ldap.AttributeTypeAndValue) bool { return len(placeholders(a.Value)) > 0 })
	}
	first := len(dn.RDNs)
	for first > 0 && !keyed(dn.RDNs[first-1]) {
		first--
	}
	se.above = len(dn.RDNs) - first
	se.listBase = (&ldap.DN{RDNs: dn.RDNs[first:]}).String()
	for n, r := range dn.RDNs[:first] {
		if len(r.Attributes) > 1 || len(placeholders(r.Attributes[0].Type)) > 0 {
			return errors.New("the key in a name of several attributes in search_base")
		}
		ps, err := cutPieces(r.Attributes[0].Value)
		if err != nil {
			return fmt.Errorf("search_base: %w", err)
		}
		it := &ldapItem{attr: strings.ToLower(r.Attributes[0].Type), pattern: [][]piece{ps}}
		se.dns = append(se.dns, dnItem{it, len(dn.RDNs) - 1 - n})
	}
	return nil
}

// addArm makes the arms of a conjunction: an item that must not hold needs
// entries that lack its attribute, and those that have another value.
func (se *Search) addArm(literals []literal) error {
	arms := []*arm{{}}
	for _, l := range literals {
		switch {
		case l.item == nil && l.not:
			l.constant = "(!" + l.constant + ")"
			fallthrough
		case l.item == nil:
			for _, a := range arms {
				a.find += l.constant
			}
		case !l.not:
			for _, a := range arms {
				a.find += "(" + l.item.attr + "=*)"
				a.must = append(a.must, l.item)
			}
		default:
			var more []*arm
			for _, a := range arms {
				more = append(more, &arm{find: a.find + "(!(" + l.item.attr + "=*))", must: a.must, not: a.not, lacking: append(slices.Clone(a.lacking), l.item)},
					&arm{find: a.find + "(" + l.item.attr + "=*)", must: a.must, not: append(slices.Clone(a.not), l.item), lacking: a.lacking})
			}
			arms = more
		}
	}
	for _, a := range arms {
		if a.always = len(a.must)+len(a.not)+len(a.lacking)+len(se.dns) == 0; a.always {
			continue // it matters if there is such an entry
		}
		wide, err := se.determined(a)
		if err != nil {
			return err
		}
		se.whole = se.whole || wide
	}
	if se.arms = append(se.arms, arms...); len(se.arms) > maxArms {
		return fmt.Errorf("query_filter has more than %d alternatives", maxArms)
	}
	return nil
}

// determined says that an arm's entries tell its keys, or domains alone.
func (se *Search) determined(a *arm) (wide bool, err error) {
	have := map[byte]bool{}
	for _, it := range se.sources(a) {
		kind, _ := it.hole()
		have[kind] = true
	}
	switch {
	case have['s'], have['u'] && (have['d'] || len(se.domains) > 0):
		return false, nil
	case have['d'] && se.domainAlone(a):
		return true, nil
	case len(a.must) == 0 && len(se.dns) == 0:
		return false, errors.New("query_filter finds entries whatever the key is")
	}
	return false, errors.New("query_filter doesn't tell the whole key")
}

// domainAlone says that nothing in an arm, nor in its result, is about a key's
// local-part.
func (se *Search) domainAlone(a *arm) bool {
	local := se.template.user || slices.Contains(placeholders(se.db.resultFormat()), "S")
	for _, it := range slices.Concat(se.sources(a), a.not) {
		for _, segment := range it.pattern {
			local = local || slices.ContainsFunc(segment, func(p piece) bool { return p.hole == 's' || p.hole == 'u' })
		}
	}
	return !local
}

// sources are the items of an arm that may tell the key or a part of it.
func (se *Search) sources(a *arm) []*ldapItem {
	all := slices.Clone(a.must)
	for _, d := range se.dns {
		all = append(all, d.it)
	}
	return all
}

// number gives arms that ask the directory the same thing the same bit.
func (se *Search) number() {
	bits := map[string]uint64{}
	for _, a := range se.arms {
		if bits[a.find] == 0 {
			bits[a.find] = 1 << len(bits)
		}
		a.bit = bits[a.find]
	}
}

package postfix

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// pattern is an element of a list of names or addresses: mydestination,
// relay_domains, mynetworks …
type pattern struct {
	not  bool
	text string // literal; what names the table otherwise
	tab  *Table
}

// patterns reads a list with its files and tables. Tables that can't be
// replicated come back by their reasons.
func (i *importer) patterns(parameter, value string, not bool, depth int) (ps []pattern, reasons map[string]error) {
	reasons = map[string]error{}
	for _, w := range words(value) {
		p := pattern{not: not}
		p.text = strings.TrimLeft(w, "!")
		p.not = not != ((len(w)-len(p.text))%2 == 1)
		switch {
		case p.text == "":
			i.errorf("%s: no pattern after !", parameter)
		case p.text[0] == '/':
			text, err := i.readFile(p.text)
			if err != nil || depth > maxDepth {
				i.errorf("%s: file %s: %w", parameter, p.text, orError(err, errNesting))
				continue
			}
			logicalLines(text, func(_ int, line string) {
				more, why := i.patterns(parameter, line, p.not, depth+1)
				ps = append(ps, more...)
				for k, v := range why {
					reasons[k] = v
				}
			})
		case p.text[0] != '[' && strings.Contains(p.text, ":") && !isIPv6(p.text):
			name, reason := tableName(p.text)
			if reason == nil {
				p.text = name
				p.tab, reason = i.table(parameter, name)
			}
			if reason == nil && p.tab != nil && (p.tab.Partial != "" || len(p.tab.Unknown) > 0) {
				reason = p.tab.unlisted()
			}
			if reason != nil {
				reasons[name] = reason
			} else if p.tab != nil {
				ps = append(ps, p)
			}
		default:
			p.text = strings.ToLower(p.text)
			ps = append(ps, p)
		}
	}
	return ps, reasons
}

var errNesting = fmt.Errorf("files inside of files, %d deep", maxDepth)

func orError(err, def error) error {
	if err == nil {
		return def
	}
	return err
}

// isIPv6 tells an address or prefix from a table; Postfix itself wants
// brackets around it.
func isIPv6(s string) bool {
	_, err := parsePrefix(s)
	return err == nil
}

// parentMatch says whether a list matches subdomains of its names.
func (i *importer) parentMatch(parameter string) bool {
	ps, _ := i.patterns("parent_domain_matches_subdomains", i.set["parent_domain_matches_subdomains"], false, 0)
	for _, p := range ps {
		if p.text == parameter {
			return !p.not
		}
	}
	return false
}

// domains translates a list of domains into a class. complete is false when
// some of the list can't be told.
func (i *importer) domains(parameter string, sub subdomains, to *policy.AddressClass) (complete bool) {
	ps, reasons := i.patterns(parameter, i.set[parameter], false, 0)
	d := domainList{sub: sub, in: map[string]bool{}}
	for _, p := range ps {
		why := d.add(p)
		if why == "" && p.tab != nil && (p.tab.Kind == Patterns || p.tab.Kind == Combined) {
			d.ordered = true
			if err := i.use(p.text, p.tab, false); err != nil {
				why = err.Error()
			}
		}
		if why != "" {
			reasons[p.text] = errors.New(why)
			continue
		}
		i.item(parameter, not(p), fidelity.Exact, d.note(p), "")
	}
	if d.ordered {
		to.Match, to.Parents = i.ordered(ps, reasons), [...]string{"", ".name", "name"}[sub]
	}
	for _, name := range sortedKeys(reasons) {
		i.item(parameter, name, fidelity.NotReplicated, reasons[name].Error(), "what its domains could be is refused for now only (4xx)")
	}
	for name, in := range d.in {
		if in {
			to.Domains = append(to.Domains, name)
		}
	}
	sort.Strings(to.Domains)
	return len(reasons) == 0
}

// ordered spells a list whose order decides for the engine.
func (i *importer) ordered(ps []pattern, reasons map[string]error) (match []string) {
	for _, p := range ps {
		if reasons[p.text] != nil || p.tab != nil && p.tab.Kind == Networks {
			continue
		}
		name := p.text
		if p.tab != nil {
			if err := i.use(name, p.tab, false); err != nil {
				reasons[name] = err
				continue
			}
			name = "table:" + specName(name)
		}
		if p.not {
			name = "!" + name
		}
		match = append(match, name)
	}
	return match
}

func not(p pattern) string {
	if p.not {
		return "!" + p.text
	}
	return p.text
}

// subdomains says what a list makes of them.
type subdomains uint8

const (
	exactly subdomains = iota // nothing: mydestination, virtual_*_domains
	dotted                    // ".name" stands for the subdomains of name
	parents                   // name stands for its subdomains, too
)

// domainList decides names by the first pattern that matches: in says for a
// name, ".name" standing for all its subdomains, whether it is in the list.
type domainList struct {
	sub subdomains
	in  map[string]bool
	cut []string // excluded with subdomains
	// ordered lists can't be told by names alone: patterns, or subdomains
	// that are left out.
	ordered bool
}

func (d *domainList) add(p pattern) (why string) {
	switch {
	case p.tab == nil:
		d.name(p.text, p.not)
		return ""
	case p.tab.Kind == Patterns || p.tab.Kind == Networks || p.tab.Kind == Combined:
		return "" // those aren't names
	case p.tab.Kind == Constant:
		return "takes every domain there is; the secondary is no open relay"
	}
	for k := range p.tab.Entries {
		if strings.Contains(k, "@") {
			continue
		}
		d.name(k, p.not)
	}
	return ""
}

// name adds one name, unless an earlier pattern has decided about it.
func (d *domainList) name(name string, not bool) {
	name = strings.ToLower(name)
	keys := []string{name}
	if d.sub != dotted && strings.HasPrefix(name, ".") {
		return // Postfix never finds such a name there
	}
	if d.sub == parents {
		keys = append(keys, "."+name)
	}
	for _, k := range keys {
		suffix := strings.HasPrefix(k, ".")
		if !not && suffix && slices.ContainsFunc(d.cut, func(c string) bool { return strings.HasSuffix(c, k) }) {
			d.ordered = true
		}
		if _, decided := d.in[k]; decided || d.excluded(k) {
			continue
		}
		d.in[k] = !not
		if not && strings.HasPrefix(k, ".") || not && !suffix {
			d.cut = append(d.cut, k)
		}
	}
}

// excluded says that an earlier exclusion covers k with its subdomains.
func (d *domainList) excluded(k string) bool {
	return slices.ContainsFunc(d.cut, func(c string) bool {
		return strings.HasPrefix(c, ".") && strings.HasSuffix(k, c)
	})
}

func (d *domainList) note(p pattern) string {
	if p.tab != nil && p.tab.Kind == Indexed {
		return fmt.Sprintf("%d entries", len(p.tab.Entries))
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// networks translates mynetworks or another list of clients: addresses and
// prefixes, and where those don't say it all, client names and tables.
func (i *importer) networks(parameter string) (list []string) {
	ps, reasons := i.patterns(parameter, i.set[parameter], false, 0)
	for _, p := range ps {
		names, class, why := i.network(p)
		if f := (fatal{}); errors.As(why, &f) {
			i.errorf("%s: %w", parameter, why)
			continue
		}
		if why != nil {
			reasons[not(p)] = why
			continue
		}
		for _, n := range names {
			if p.not {
				n = "!" + n
			}
			list = append(list, n)
		}
		i.item(parameter, not(p), class, "", "")
	}
	for _, name := range sortedKeys(reasons) {
		i.item(parameter, name, fidelity.NotReplicated, reasons[name].Error(), "its clients get no privilege")
	}
	return list
}

// fatal is an error that makes Postfix itself fail.
type fatal struct{ error }

// isMasked tells a network from names, as Postfix does.
func isMasked(s string) bool {
	return strings.Contains(s, "/") && strings.Trim(s, "0123456789abcdef.:[]/") == ""
}

// network spells a pattern for the engine.
func (i *importer) network(p pattern) (names []string, class fidelity.Class, why error) {
	prefixes, ok := p.prefixes()
	if !ok && p.tab == nil && isMasked(p.text) {
		_, err := parsePrefix(p.text)
		return nil, "", fatal{fmt.Errorf("%w; every client from outside gets 451 4.3.0", err)}
	}
	switch {
	case p.tab != nil && p.tab.Kind == Constant:
		return nil, "", errors.New("takes every client there is; the secondary is no open relay")
	case !ok && p.tab == nil:
		return []string{p.text}, fidelity.GivenDNS, nil
	case !ok:
		return []string{"table:" + specName(p.text)}, fidelity.GivenDNS, i.use(p.text, p.tab, false)
	}
	for _, n := range prefixes {
		s := n.String()
		if n.IsSingleIP() {
			s = n.Addr().String()
		}
		if !n.Addr().Is4In6() { // Postfix writes such a client's address as IPv4
			names = append(names, s)
		}
	}
	return names, fidelity.Exact, nil
}

// prefixes are the addresses that a pattern stands for. ok is false when it
// stands for anything else.
func (p pattern) prefixes() (list []netip.Prefix, ok bool) {
	var keys []string
	switch {
	case p.tab == nil:
		keys = []string{p.text}
	case p.tab.Kind == Indexed:
		keys = sortedKeys(p.tab.Entries)
	case p.tab.Kind == Networks:
		rules, err := flatten(p.tab.Rules)
		if err != nil {
			return nil, false
		}
		for _, r := range rules {
			keys = append(keys, r[0])
		}
	default:
		return nil, false
	}
	for _, k := range keys {
		n, err := parsePrefix(k)
		if err != nil || p.tab != nil && p.tab.Kind == Indexed && !n.IsSingleIP() {
			return nil, false
		}
		list = append(list, n)
	}
	return list, true
}

package exim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// namedLists translates domainlist and its like.
func (i *importer) namedLists() {
	for kind, to := range map[string]*map[string]string{
		"domainlist": &i.acl.Domains, "hostlist": &i.acl.Hosts, "addresslist": &i.acl.Addresses, "localpartlist": &i.acl.LocalParts,
	} {
		for _, name := range slices.Sorted(maps.Keys(i.conf.lists[kind])) {
			text := i.conf.lists[kind][name]
			i.here = i.conf.where(kind + " " + name)
			got, err := i.listString(text, kind)
			if err != nil {
				choice := i.choose(kind+" "+name, text, fidelity.Defer)
				i.item(kind+" "+name, text, fidelity.NotReplicated, fmt.Sprintf("%s: %v", i.conf.where(kind+" "+name), err), choice, fidelity.Defer)
				i.markUnknown(kind)
				got = unknownList
			} else {
				i.item(kind+" "+name, text, fidelity.Exact, "", "")
			}
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[name] = got
		}
	}
}

// unknownList defers whoever is looked for in it: no named list is called so.
const unknownList = "+a list that can't be read"

func (i *importer) markUnknown(kind string) {
	if kind != "domainlist" {
		return
	}
	it := &i.report.Items[len(i.report.Items)-1]
	it.Domains, it.NoMail, it.Unknown = true, true, true
	it.Concerns = "every address in the domains that it holds, whichever these are"
}

// listString checks a list likewise, with the files and tables that its elements name.
func (i *importer) listString(s, kind string) (string, error) {
	s, err := i.rewriteItems(s, kind)
	if err != nil {
		return "", err
	}
	if s, err = i.str(s); err != nil {
		return "", err
	}
	p, err := expansion.Parse(s)
	if err != nil {
		return "", err
	}
	return s, i.items(p, kind)
}

// items lists what the elements of a list refer to, in each of its branches.
func (i *importer) items(p *expansion.String, kind string) error {
	err := i.elements(p, kind)
	p.Walk(&expansion.Visitor{Branch: func(b *expansion.String) {
		if e := i.elements(b, kind); err == nil {
			err = e
		}
	}})
	return err
}

func (i *importer) elements(p *expansion.String, kind string) error {
	glob, _ := p.Pattern()
	for _, e := range expansion.List(glob) {
		e = strings.TrimLeft(strings.TrimPrefix(e, "!"), " \t")
		if kind == "addresslist" && !policy.WholeAddress(e) {
			if at := strings.LastIndexByte(e, '@'); at > 0 && !strings.HasPrefix(e, "@@") && !strings.Contains(e[:at], ";") && e[0] != '^' && e[0] != '/' {
				e = e[at+1:]
			}
		}
		if _, file, ok := strings.Cut(e, ";"); ok && strings.HasPrefix(file, "/") && strings.Contains(file, "*") && i.ofClients(p) {
			return errors.New(whyTainted)
		}
		if err := i.element(e, kind); err != nil {
			return err
		}
	}
	return nil
}

// element lists what one refers to.
func (i *importer) element(e, kind string) error {
	switch {
	case strings.HasPrefix(e, "/"):
		return i.lines(e, kind)
	case strings.HasPrefix(e, "^"):
		return nil
	case strings.HasPrefix(e, "@@") && kind == "addresslist":
		return i.splitLookup(e[2:])
	case strings.HasPrefix(e, "@mx_"):
		return fmt.Errorf("%q asks the DNS about the primary itself, or isn't known", e)
	case strings.HasPrefix(e, "+"):
		name := e[1:]
		if slices.Contains([]string{"caseful", "include_unknown", "ignore_unknown", "include_defer", "ignore_defer"}, name) {
			return nil
		}
		lists := i.conf.lists[kind]
		if kind == "addresslist" {
			lists = maps.Clone(lists)
			maps.Copy(lists, i.conf.lists["domainlist"])
		}
		if _, ok := lists[name]; !ok && kind != "" && !strings.Contains(name, "*") {
			i.item(kind, e, fidelity.Exact, fmt.Sprintf("%s: no %s is called %q: Exim defers whoever is looked for in it", i.here, kind, name), "")
		}
		return nil
	}
	typ, file, ok := strings.Cut(e, ";")
	if !ok || !expansion.Keyed(typ) && strings.ContainsAny(typ, " /.") {
		return nil
	}
	if expansion.BaseType(typ) == "table" {
		return nil
	}
	if !expansion.Keyed(typ) {
		return fmt.Errorf("%q: look-ups of type %s aren't listed", e, typ)
	}
	return i.tables(typ, strings.TrimSpace(file))
}

// splitLookup lists what says which local-parts of a domain are meant, and what these
// refer to.
func (i *importer) splitLookup(e string) error {
	if err := i.element(e, "localpartlist"); err != nil {
		return err
	}
	typ, file, ok := strings.Cut(e, ";")
	t := i.spec.Tables[expansion.TableType(typ)+";"+strings.TrimSpace(file)]
	if !ok || t == nil {
		return fmt.Errorf("@@%s: only tables are followed", e)
	}
	for n := range t.Len() {
		_, list := t.Entry(n)
		for _, l := range expansion.List(list) {
			if l = strings.TrimLeft(strings.TrimPrefix(l, "!"), " \t"); !strings.HasPrefix(l, "+") && !strings.HasPrefix(l, "/") {
				if err := i.element(l, "localpartlist"); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// domains are what is known of the domains that the primary serves, for statistics and
// guards.
func (i *importer) domains() {
	seen := map[string]bool{}
	add := func(list string) { i.domainsOf(list, seen, 0) }
	for _, s := range i.acl.Lists[i.acl.Stages["rcpt"]] {
		for _, it := range s.Items {
			if it.Kind == "domains" && (s.Verb == "accept" || s.Verb == "require") {
				add(it.Arg)
			}
		}
	}
	for _, r := range i.acl.Routers {
		if r.Driver != "dnslookup" {
			add(r.Options["domains"])
		}
	}
	i.spec.Addresses.Relay.Domains = slices.Sorted(maps.Keys(seen))
}

func (i *importer) domainsOf(list string, seen map[string]bool, depth int) {
	p, err := expansion.Parse(list)
	if err != nil || depth > 10 {
		return
	}
	add := func(d string) {
		d = strings.ToLower(strings.TrimSpace(d))
		if rest, wild := strings.CutPrefix(d, "*"); wild {
			d = rest
		}
		if name := strings.TrimPrefix(d, "."); policy.CheckDomain(name) {
			seen[d] = true
		}
	}
	keysOf := func(t *table.Table) {
		if t == nil || !t.Keyed() {
			return
		}
		for k := range t.Entries(0, t.Len()) {
			add(strings.TrimSuffix(string(k), "\n"+constantKey))
		}
	}
	take := func(p *expansion.String) {
		glob, _ := p.Pattern()
		for _, e := range expansion.List(glob) {
			typ, file, lookup := strings.Cut(e, ";")
			switch {
			case e == "" || e[0] == '!' || e[0] == '^':
			case e == "@":
				add(i.acl.Hostname)
			case e[0] == '+':
				i.domainsOf(i.acl.Domains[e[1:]], seen, depth+1)
			case e[0] == '/':
				for _, l := range i.acl.Files[e] {
					l, _, _ = strings.Cut(l, "#")
					if l = strings.TrimSpace(l); l != "" && l[0] != '!' {
						add(l)
					}
				}
			case lookup:
				keysOf(i.spec.Tables[expansion.TableName(typ, file)])
			default:
				add(e)
			}
		}
	}
	take(p)
	p.Walk(&expansion.Visitor{Branch: take, Lookup: func(typ string, file, key *expansion.String) {
		if expansion.BaseType(typ) != "table" || strings.Replace(key.Source(), "{domain}", "domain", 1) != "$domain\n"+constantKey {
			return
		}
		if name, constant := file.Constant(); constant {
			keysOf(i.spec.Tables[name])
		}
	}})
}

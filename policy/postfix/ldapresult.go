package postfix

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/understudy-mx/understudy/internal/lister"
)

// resultAttributes are a table's, in the order in which Postfix looks for
// them; attributes that lead to other entries stand last.
type resultAttributes struct {
	terminal, leaf, ordinary, special []string
	entries, values, depth            int // size_limit, expansion_limit, recursion_limit
}

func newResultAttributes(s map[string]string) resultAttributes {
	number := func(name string, fallback int) int {
		if n, err := strconv.Atoi(s[name]); err == nil {
			return n
		}
		return fallback
	}
	ordinary, given := s["result_attribute"]
	if !given {
		ordinary = "maildrop"
	}
	r := resultAttributes{terminal: words(s["terminal_result_attribute"]), leaf: words(s["leaf_result_attribute"]), ordinary: words(ordinary),
		special: words(s["special_result_attribute"]), depth: number("recursion_limit", 1000), values: number("expansion_limit", 0)}
	r.entries = number("size_limit", r.values)
	return r
}

func (r resultAttributes) all() []string {
	return slices.Concat(r.terminal, r.leaf, r.ordinary, r.special)
}

// answer is what a key leads to.
type answer struct {
	text            []byte
	entries, values int
	followed        int
	terminal, stem  bool // as the entries before have it
	failed          bool // the primary answers with an error
}

// expansion collects the answers of a listing, as dict_ldap(3) does for each
// look-up.
type expansion struct {
	dir     Directory
	se      *Search
	answers map[string]*answer
	doubts  map[asked]bool      // keys that the directory itself is to be asked for
	memo    map[string]referred // entries that others lead to

	behind map[lister.UUID][]asked // which entries answers come from, nil: it isn't noted
	more   []string                // attributes for that
}

// referred is what a name or URL leads to.
type referred struct {
	entries []lister.Entry
	err     error // lister.ErrNoObject, lister.ErrRefused or nil
}

func newExpansion(dir Directory, se *Search) *expansion {
	return &expansion{dir: dir, se: se, answers: map[string]*answer{}, doubts: map[asked]bool{}, memo: map[string]referred{}}
}

// add appends what entries yield to a key's answer.
func (x *expansion) add(key asked, entries []lister.Entry) error {
	a := x.answers[key.key]
	if a == nil {
		if len(x.answers) >= maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		a = &answer{}
		x.answers[key.key] = a
	}
	a.entries += len(entries)
	if limit := x.se.result.entries; limit > 0 && a.entries > limit {
		a.failed = true
	}
	l, ok := x.se.admits(key)
	if !ok || a.failed {
		return nil
	}
	return x.values(a, l, entries, 1, &a.terminal, &a.stem)
}

// values appends the values of entries. That one entry is terminal, or leads
// to others, holds for those after it, too, unless they say otherwise: so it
// is in Postfix.
func (x *expansion) values(a *answer, l lookup, entries []lister.Entry, depth int, terminal, stem *bool) error {
	r := x.se.result
	for _, e := range entries {
		for _, name := range r.terminal {
			if present(e, name) {
				*terminal = true
				break
			}
		}
		if !*terminal && len(r.leaf) > 0 {
			for _, name := range r.special {
				if present(e, name) {
					*stem = true
					break
				}
			}
		}
		for _, attr := range e.Attributes {
			if len(attr.Values) == 0 {
				continue
			}
			if err := x.attribute(a, l, attr, depth, *terminal, *stem); err != nil || a.failed {
				return err
			}
		}
	}
	return nil
}

// present is ldap_get_values(3): the name as it stands.
func present(e lister.Entry, name string) bool {
	return slices.ContainsFunc(e.Attributes, func(a lister.Attribute) bool { return strings.EqualFold(a.Name, name) && len(a.Values) > 0 })
}

// attribute appends or follows the values of one attribute.
func (x *expansion) attribute(a *answer, l lookup, attr lister.Attribute, depth int, terminal, stem bool) error {
	r := x.se.result
	is := func(list []string) bool {
		return slices.ContainsFunc(list, func(name string) bool { return subtype(name, attr.Name) > 0 })
	}
	switch {
	case is(r.terminal):
		if stem {
			return nil
		}
	case terminal:
		return nil
	case is(r.leaf):
		if stem {
			return nil
		}
	case is(r.ordinary):
	case !is(r.special):
		return nil
	case depth >= r.depth:
		a.failed = true
		return nil
	default:
		for _, v := range attr.Values {
			if err := x.follow(a, l, cString(v), depth); err != nil || a.failed {
				return err
			}
		}
		return nil
	}
	for _, v := range attr.Values {
		s, ok := expand(x.se.db.resultFormat(), l.key, cString(v))
		if !ok {
			continue
		}
		if len(a.text) > 0 {
			a.text = append(a.text, ',')
		}
		a.text = append(a.text, s...)
		if a.values++; r.values > 0 && a.values > r.values {
			a.failed = true
			return nil
		}
	}
	return nil
}

// cString is a value as C reads it.
func cString(value string) string {
	s, _, _ := strings.Cut(value, "\x00")
	return s
}

// follow appends what a name or URL leads to.
func (x *expansion) follow(a *answer, l lookup, value string, depth int) error {
	const most = 1_000_000 // a group of groups of groups may lead to itself by many ways
	if a.followed++; a.followed > most {
		a.failed = true
		return nil
	}
	to, known := x.memo[value]
	if !known {
		search, ok, err := x.referral(value)
		switch {
		case err != nil:
			to.err = lister.ErrRefused
		case ok:
			to.entries, to.err = x.dir.Ask(search, x.se.result.entries)
		}
		if to.err != nil && !errors.Is(to.err, lister.ErrNoObject) && !errors.Is(to.err, lister.ErrRefused) {
			return to.err
		}
		x.memo[value] = to
	}
	if errors.Is(to.err, lister.ErrRefused) {
		a.failed = true
		return nil
	}
	var terminal, stem bool
	return x.values(a, l, to.entries, depth+1, &terminal, &stem)
}

// referral is the search that a value stands for. None is made for a URL that
// names attributes none of which is a result.
func (x *expansion) referral(value string) (search lister.Search, ok bool, err error) {
	all := x.se.result.all()
	scheme, rest, found := strings.Cut(strings.TrimPrefix(strings.Trim(value, "<>"), "URL:"), "://")
	if !found || !slices.Contains([]string{"ldap", "ldaps", "ldapi", "cldap"}, strings.ToLower(scheme)) {
		return lister.Search{Base: value, Scope: "base", Filter: "(objectClass=*)", Attributes: all}, true, nil
	}
	_, rest, _ = strings.Cut(rest, "/")
	parts := append(strings.Split(rest, "?"), "", "", "", "")[:4]
	for n := range parts {
		if parts[n], err = url.PathUnescape(parts[n]); err != nil {
			return search, false, err
		}
	}
	search = lister.Search{Base: parts[0], Scope: "base", Filter: "(objectClass=*)", Attributes: all}
	if parts[1] != "" {
		search.Attributes = nil
		for _, theirs := range strings.Split(parts[1], ",") {
			for _, ours := range all {
				if rel := subtype(theirs, ours); rel > 0 {
					search.Attributes = append(search.Attributes, ours)
				} else if rel < 0 {
					search.Attributes = append(search.Attributes, theirs)
				}
			}
		}
	}
	switch scope := strings.ToLower(parts[2]); scope {
	case "sub", "subtree":
		search.Scope = "sub"
	case "one", "onelevel":
		search.Scope = "one"
	case "", "base":
	default:
		return search, false, fmt.Errorf("scope %q", scope)
	}
	if parts[3] != "" {
		search.Filter = parts[3]
	}
	_, err = ldap.CompileFilter(search.Filter)
	return search, len(search.Attributes) > 0, err
}

// subtype compares attribute names: 1 when b is a, with or without options of
// its own; -1 when a is b with options.
func subtype(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	switch {
	case a == b || strings.HasPrefix(b, a+";"):
		return 1
	case strings.HasPrefix(a, b+";"):
		return -1
	}
	return 0
}

// askDoubtful puts the doubtful keys to the directory.
func (x *expansion) askDoubtful() error {
	for key := range x.doubts {
		delete(x.answers, key.key)
		if err := x.ask(key); err != nil {
			return err
		}
	}
	return nil
}

// ask looks a key up as Postfix does.
func (x *expansion) ask(key asked) error {
	l, ok := x.se.admits(key)
	if !ok {
		return nil
	}
	search := lister.Search{Base: l.fill(x.se.base, quoteDN), Scope: x.se.scope, Filter: l.fill(x.se.filter, quoteFilter), Attributes: x.se.result.all()}
	if _, err := ldap.CompileFilter(search.Filter); err != nil {
		x.answers[key.key] = &answer{failed: true}
		return nil
	}
	entries, err := x.dir.Ask(search, x.se.result.entries)
	switch {
	case errors.Is(err, lister.ErrNoObject) && len(placeholders(x.se.db.Settings["search_base"])) > 0:
		return nil
	case errors.Is(err, lister.ErrRefused):
		x.answers[key.key] = &answer{failed: true}
		return nil
	case err != nil:
		return err
	case len(entries) == 0:
		return nil
	}
	return x.add(key, entries)
}

// look puts keys to the table, for the check of a listing.
func (x *expansion) look(keys []string, found func(key, value string), failed func(key string, err error)) error {
	again := &expansion{dir: x.dir, se: x.se, answers: map[string]*answer{}, memo: x.memo}
	began := time.Now()
	for _, k := range keys {
		if time.Since(began) > checkPatience {
			failed(k, errLate)
			continue
		}
		if err := again.ask(asked{k, false}); err != nil {
			return err
		}
		switch a := again.answers[k]; {
		case a == nil:
		case a.failed:
			failed(k, lister.ErrRefused)
		case len(a.text) > 0:
			found(k, string(a.text))
		}
		delete(again.answers, k)
	}
	return nil
}

func (x *expansion) takes(key string) bool {
	_, ok := x.se.admits(asked{key, false})
	return ok
}

// finish puts the answers into a table.
func (x *expansion) finish(t *Table) error {
	failed := map[string]bool{} // for a limit, a loop or a name that leads nowhere
	for key, a := range x.answers {
		switch {
		case a.failed:
			failed[key] = true
		case len(a.text) > 0:
			if err := t.add(key, string(a.text)); err != nil {
				return err
			}
		}
	}
	t.unknown(failed)
	return nil
}

// candidates asks about whatever looks like a key in the entries below
// search_base.
func (x *expansion) candidates(why error, t *Table, hints []string) error {
	se := x.se
	x.answers = map[string]*answer{}
	bases, c, err := x.entriesBelow()
	if err != nil {
		return err
	}
	for _, h := range hints {
		if err := c.add(h); err != nil {
			return err
		}
	}
	if err := c.domainSetting(se.domains); err != nil {
		return err
	}
	wide := se.template.domain && !se.template.whole && !se.template.user && se.template.labels == 0
	as := func(key string) asked { return asked{key, wide && key[0] == '@'} }
	keys, left := c.keys(se.template, func(key string) bool {
		_, ok := se.admits(as(key))
		return ok
	})
	for _, k := range keys {
		if err := x.ask(as(k)); err != nil {
			return err
		}
	}
	t.DomainWide = wide
	t.How = Listing{Put: len(keys), Why: why.Error(), Tables: bases, Left: left}
	return x.finish(t)
}

// entriesBelow collects candidates from all entries that the table is made of.
func (x *expansion) entriesBelow() (bases []string, c *candidates, err error) {
	bases = []string{x.se.listBase}
	if x.se.listBase == "" {
		if _, bases, err = x.dir.Schema(); err != nil {
			return nil, nil, err
		}
	}
	c = newCandidates()
	for _, base := range bases {
		search := lister.Search{Base: base, Scope: "sub", Filter: "(objectClass=*)", Attributes: []string{"*"}}
		if err := x.dir.Search(search, func(e lister.Entry) error {
			for _, a := range e.Attributes {
				for _, v := range a.Values {
					if err := c.add(v); err != nil {
						return err
					}
				}
			}
			return nil
		}); err != nil {
			return nil, nil, err
		}
	}
	return bases, c, nil
}

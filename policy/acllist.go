package policy

import (
	"errors"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/pattern"
)

// listKind is what a list is of.
type listKind uint8

const (
	listString listKind = iota
	listDomain
	listLocal
	listAddress
	listHost
	listIP // a host list without names, of match_ip
)

// listItem is an element of a list.
type listItem struct {
	text    string
	negated bool
}

// listSubject is what is matched with a list.
type listSubject struct {
	kind    listKind
	as      string // in small letters, until +caseful
	given   string
	caseful bool    // from there on
	value   *string // where the data of a look-up goes; may be nil
	depth   int
	listFlags
}

// listFlags are what items of a host list ask for. A list within it has its own.
type listFlags struct {
	ignoreUnknown, includeUnknown, ignoreDefer, includeDefer bool
}

// listResult is an item's: found, not, or what the DNS or a look-up failed to tell.
type listResult uint8

const (
	itemNo listResult = iota
	itemYes
	itemDefer
	itemUnknown // a host's name or address doesn't exist
)

// matches evaluates a condition that asks a list.
func (r *aclRun) matches(kind listKind, what, list string, value *string) outcome {
	text, err := r.expandFor(kind, what, list)
	switch {
	case errors.Is(err, expansion.ErrForced):
		return aclFail
	case err != nil:
		return aclDefer
	}
	return r.match(kind, what, text, value)
}

// expandFor expands a list. $domain is what is looked for in a list of domains, where
// there is no other.
func (r *aclRun) expandFor(kind listKind, what, list string) (string, error) {
	if kind == listDomain && r.domain == "" && r.route == nil {
		r.domain = what
		defer func() { r.domain = "" }()
	}
	return r.expand(list)
}

// match matches with an expanded list.
func (r *aclRun) match(kind listKind, what, list string, value *string) outcome {
	s := &listSubject{kind: kind, as: expansion.Lower(what), given: what, value: value}
	if value != nil {
		*value = ""
	}
	return r.scan(s, r.acl.parsed(kind, list))
}

// parsed splits a list; constant ones once.
func (a *acl) parsed(kind listKind, list string) []listItem {
	return parseItems(expansion.List(list), kind)
}

func parseItems(texts []string, kind listKind) []listItem {
	items := make([]listItem, 0, len(texts))
	for _, t := range texts {
		it := listItem{text: t}
		if rest, negated := strings.CutPrefix(t, "!"); negated {
			it.negated, it.text = true, strings.TrimLeft(rest, " \t")
		}
		items = append(items, it)
	}
	return items
}

// scan asks each item until one matches. After the last one the answer is "no", or
// "yes" if that was negated.
func (r *aclRun) scan(s *listSubject, items []listItem) outcome {
	if s.depth++; s.depth > 20 {
		return aclDefer
	}
	flags := s.listFlags
	s.listFlags = listFlags{}
	defer func() { s.depth, s.listFlags = s.depth-1, flags }()
	last := false
	for i := range items {
		it := &items[i]
		if !it.negated && s.option(it.text) {
			continue
		}
		last = it.negated
		if rc, decided := r.item(s, it, &last); decided {
			return rc
		}
	}
	if last {
		return aclOK
	}
	return aclFail
}

// option takes an item that changes how the rest is matched.
func (s *listSubject) option(text string) bool {
	switch {
	case text == "+caseful" && (s.kind == listLocal || s.kind == listAddress):
		s.as, s.caseful = s.given, true
		if at := strings.LastIndexByte(s.as, '@'); at >= 0 && s.kind == listAddress {
			s.as = s.as[:at] + expansion.Lower(s.as[at:])
		}
	case s.kind != listHost && s.kind != listIP:
		return false
	case text == "+include_unknown":
		s.includeUnknown, s.ignoreUnknown = true, false
	case text == "+ignore_unknown":
		s.includeUnknown, s.ignoreUnknown = false, true
	case text == "+include_defer":
		s.includeDefer, s.ignoreDefer = true, false
	case text == "+ignore_defer":
		s.includeDefer, s.ignoreDefer = false, true
	default:
		return false
	}
	return true
}

// item asks one. last becomes whether the last line of a file is negated.
func (r *aclRun) item(s *listSubject, it *listItem, last *bool) (rc outcome, decided bool) {
	switch {
	case strings.HasPrefix(it.text, "/"):
		lines, there := r.acl.Files[it.text]
		if !there {
			return aclDefer, true
		}
		for _, in := range fileItems(lines, s.kind) {
			*last = in.negated != it.negated
			if rc, decided = r.answered(s, in.text, *last); decided {
				if s.value != nil && *s.value != "" {
					*s.value = in.text
				}
				return rc, true
			}
		}
		return 0, false
	case strings.HasPrefix(it.text, "+") && s.kind != listString:
		text, there := r.acl.named(s.kind)[it.text[1:]]
		if !there {
			return aclDefer, true
		}
		expanded, err := r.expandFor(s.kind, s.as, text)
		if errors.Is(err, expansion.ErrForced) {
			return 0, false
		}
		if err != nil {
			return aclDefer, true
		}
		switch r.scan(s, r.acl.parsed(s.kind, expanded)) {
		case aclOK:
			return matched(it.negated), true
		case aclDefer:
			return aclDefer, true
		}
		return 0, false
	}
	return r.answered(s, it.text, it.negated)
}

func matched(negated bool) outcome {
	if negated {
		return aclFail
	}
	return aclOK
}

// answered asks an item that is neither a file nor a named list.
func (r *aclRun) answered(s *listSubject, item string, negated bool) (rc outcome, decided bool) {
	if s.value != nil {
		*s.value = ""
	}
	switch r.single(s, item) {
	case itemYes:
		return matched(negated), true
	case itemDefer:
		if s.ignoreDefer {
			return 0, false
		}
		if s.includeDefer {
			return aclOK, true
		}
		return aclDefer, true
	case itemUnknown:
		if s.ignoreUnknown {
			return 0, false
		}
		if s.includeUnknown {
			return aclOK, true
		}
		return aclFail, true
	}
	return 0, false
}

// fileItems are a file's lines without their comments.
func fileItems(lines []string, kind listKind) []listItem {
	var texts []string
	for _, l := range lines {
		for i := 0; i < len(l); i++ {
			if l[i] == '#' && (kind != listAddress && kind != listLocal || i == 0 || l[i-1] == ' ' || l[i-1] == '\t') {
				l = l[:i]
			}
		}
		if l = strings.TrimSpace(l); l != "" {
			texts = append(texts, l)
		}
	}
	return parseItems(texts, kind)
}

func (a *acl) named(kind listKind) map[string]string {
	switch kind {
	case listDomain:
		return a.Domains
	case listHost, listIP:
		return a.Hosts
	case listAddress:
		return a.ACL.Addresses
	case listLocal:
		return a.LocalParts
	}
	return nil
}

// single matches one item that is neither a file nor a named list.
func (r *aclRun) single(s *listSubject, item string) listResult {
	switch s.kind {
	case listAddress:
		return r.address(s, item)
	case listHost, listIP:
		return r.host(s, item)
	}
	return r.str(s.as, item, s.kind, !s.caseful, true, s.value)
}

// str is Exim's general comparison of a string with a pattern.
func (r *aclRun) str(what, item string, kind listKind, caseless, partial bool, value *string) listResult {
	found := func(v string) listResult {
		if value != nil {
			*value = v
		}
		return itemYes
	}
	switch {
	case strings.HasPrefix(item, "^"):
		if rc := r.regex(what, item, caseless); rc != itemYes {
			return rc
		}
		return found(item)
	case strings.HasPrefix(item, "*"):
		suffix := item[1:]
		if len(what) < len(suffix) || !equal(what[len(what)-len(suffix):], suffix, caseless) {
			return itemNo
		}
		return found(item)
	case kind == listDomain && strings.HasPrefix(item, "@"):
		switch item {
		case "@":
			item = r.acl.Hostname
		case "@[]":
			if a, ok := envelope.LiteralAddr(what); ok && slices.Contains(r.acl.Own, a.String()) {
				return found(what)
			}
			return itemNo
		}
	}
	if typ, file, ok := strings.Cut(item, ";"); ok && lookupType(typ) {
		if !partial {
			typ = strings.TrimPrefix(typ, "partial-")
		}
		var v string
		var there bool
		var err error
		if strings.HasPrefix(typ, "table,") {
			v, there, err = r.inTables(typ, file, what+"\n.")
		} else {
			v, there, err = r.search(typ, file, what)
		}
		switch {
		case err != nil:
			return itemDefer
		case !there:
			return itemNo
		}
		return found(v)
	}
	if equal(what, item, caseless) {
		return found(item)
	}
	return itemNo
}

func equal(a, b string, caseless bool) bool {
	return a == b || caseless && strings.EqualFold(a, b)
}

func (r *aclRun) regex(what, re string, caseless bool) listResult {
	flags := ""
	if caseless {
		flags = "i"
	}
	p, err := r.snap.patterns.compile(re, flags)
	if err != nil {
		return itemDefer
	}
	var sub pattern.Subject
	sub.Set([]byte(what))
	ok, err := p.Match(&sub)
	switch {
	case err != nil:
		return itemDefer
	case ok:
		return itemYes
	}
	return itemNo
}

// lookupType says that a word before ";" is a look-up's type.
func lookupType(typ string) bool {
	base := expansion.BaseType(typ)
	return base == "table" || expansion.Keyed(typ)
}

// address matches an address with an item of an address list.
func (r *aclRun) address(s *listSubject, item string) listResult {
	what := s.as
	if what != "" && !strings.Contains(what, "@") {
		return itemNo
	}
	caseless := !s.caseful
	if strings.HasPrefix(item, "^") {
		return r.regex(what, item, caseless)
	}
	if WholeAddress(item) {
		return r.str(what, item, listAddress, caseless, false, s.value)
	}
	if what == "" {
		if item == "" {
			return itemYes
		}
		return itemNo
	}
	at := strings.LastIndexByte(what, '@')
	local, domain := what[:max(0, at)], what[at+1:]
	if split, ok := strings.CutPrefix(item, "@@"); ok {
		return r.split(s, split, local, domain, caseless)
	}
	pattern, rest, value := "", item, ""
	if i := strings.LastIndexByte(item, '@'); i >= 0 {
		if pattern, rest = item[:i], item[i+1:]; strings.HasSuffix(pattern, "@") && (rest == "" || rest == "[]") {
			pattern, rest = pattern[:i-1], "@"+rest
		}
		if suffix, wild := strings.CutPrefix(pattern, "*"); wild {
			if len(local) < len(suffix) || !equal(local[len(local)-len(suffix):], suffix, caseless) {
				return itemNo
			}
		} else if !equal(local, pattern, caseless) {
			return itemNo
		}
		value = item[:min(len(item), len(local))]
	}
	data := ""
	inner := &listSubject{kind: listDomain, as: expansion.Lower(domain), given: domain, caseful: s.caseful, depth: s.depth, value: &data}
	rc := r.scan(inner, parseItems([]string{rest}, listDomain))
	if s.value != nil && value+data != "" {
		*s.value = value + "@" + data
	}
	switch rc {
	case aclOK:
		return itemYes
	case aclDefer:
		return itemDefer
	}
	return itemNo
}

// WholeAddress says that an item of an address list is a look-up of the whole address.
func WholeAddress(item string) bool {
	rest := strings.TrimLeft(item, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
	rest = strings.TrimPrefix(strings.TrimPrefix(rest, "*"), "@")
	return strings.HasPrefix(rest, ";")
}

// split looks a domain up for a list of local-parts, whose last item may be ">" with
// another key.
func (r *aclRun) split(s *listSubject, lookup, local, domain string, caseless bool) listResult {
	for range 50 {
		list := ""
		if rc := r.str(domain, lookup, listString, true, true, &list); rc != itemYes {
			return rc
		}
		next, chained := "", false
		last := strings.LastIndexByte(list, ':') + 1
		if rest, ok := strings.CutPrefix(strings.TrimLeft(list[last:], cSpace), ">"); ok {
			list, next, chained = list[:last], strings.TrimLeft(rest, cSpace), true
		}
		for _, it := range parseItems(expansion.List(list), listLocal) {
			switch r.str(local, it.text, listLocal, caseless, true, s.value) {
			case itemYes:
				return yesNo(!it.negated)
			case itemDefer:
				return itemDefer
			}
		}
		if !chained {
			return itemNo
		}
		domain = next
	}
	return itemDefer
}

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
	kind  listKind
	as    string // in small letters, until +caseful
	given string
	value *string // where the data of a look-up goes; may be nil
	depth int

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
	text, err := r.expand(list)
	switch {
	case errors.Is(err, expansion.ErrForced):
		return aclFail
	case err != nil:
		return aclDefer
	}
	return r.match(kind, what, text, value)
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
	defer func() { s.depth-- }()
	last := false
	for i := range items {
		it := &items[i]
		if !it.negated && s.option(it.text) {
			continue
		}
		last = it.negated
		rc, decided := r.item(s, it)
		if decided {
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
		s.as = s.given
		if at := strings.LastIndexByte(s.as, '@'); at >= 0 && s.kind == listAddress {
			s.as = s.as[:at] + expansion.Lower(s.as[at:])
		}
	case s.kind != listHost:
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

// item asks one.
func (r *aclRun) item(s *listSubject, it *listItem) (rc outcome, decided bool) {
	yes := aclOK
	if it.negated {
		yes = aclFail
	}
	switch {
	case strings.HasPrefix(it.text, "/"):
		return r.fileItem(s, it)
	case strings.HasPrefix(it.text, "+") && s.kind != listString && s.kind != listIP:
		text, there := r.acl.named(s.kind)[it.text[1:]]
		if !there {
			return aclDefer, true
		}
		expanded, err := r.expand(text)
		if errors.Is(err, expansion.ErrForced) {
			return 0, false
		}
		if err != nil {
			return aclDefer, true
		}
		switch r.scan(s, r.acl.parsed(s.kind, expanded)) {
		case aclOK:
			return yes, true
		case aclDefer:
			return aclDefer, true
		}
		return 0, false
	}
	switch r.single(s, it.text) {
	case itemYes:
		return yes, true
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

// fileItem asks the items of a file.
func (r *aclRun) fileItem(s *listSubject, it *listItem) (rc outcome, decided bool) {
	lines, there := r.acl.Files[it.text]
	if !there {
		return aclDefer, true
	}
	for _, in := range fileItems(lines, s.kind) {
		switch r.single(s, in.text) {
		case itemYes:
			if in.negated != it.negated {
				return aclFail, true
			}
			return aclOK, true
		case itemDefer:
			return aclDefer, true
		}
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
	case listHost:
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
	return r.str(s.as, item, s.kind, s.as != s.given, true, s.value)
}

// str is Exim's general comparison of a string with a pattern.
func (r *aclRun) str(what, item string, kind listKind, caseless, partial bool, value *string) listResult {
	found := func(v string) listResult {
		if value != nil {
			*value = v
		}
		return itemYes
	}
	caseless = caseless || kind != listLocal && kind != listAddress || what == expansion.Lower(what)
	switch {
	case strings.HasPrefix(item, "^"):
		return r.regex(what, item, caseless)
	case strings.HasPrefix(item, "*"):
		suffix := item[1:]
		if len(what) < len(suffix) || !equal(what[len(what)-len(suffix):], suffix, caseless) {
			return itemNo
		}
		return found(suffix)
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
		v, there, err := r.search(typ, file, what)
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
	caseless := what != s.given || what == expansion.Lower(what)
	if strings.HasPrefix(item, "^") {
		return r.regex(what, item, caseless)
	}
	if typ, _, ok := strings.Cut(item, ";"); ok && lookupType(typ) {
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
	pattern, rest := "", item
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
	}
	inner := &listSubject{kind: listDomain, as: expansion.Lower(domain), given: domain, depth: s.depth}
	switch r.scan(inner, parseItems([]string{rest}, listDomain)) {
	case aclOK:
		return itemYes
	case aclDefer:
		return itemDefer
	}
	return itemNo
}

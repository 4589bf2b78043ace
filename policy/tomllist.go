package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/locate"
)

// entry is one line of an allow- or blocklist: the value of an access table
// for a key, or for a network.
type entry struct {
	key string
	net netip.Prefix // valid instead of key
}

// entryKind reads what a list may hold.
type entryKind func(s string) (entry, error)

func clientEntry(s string) (entry, error) {
	if strings.ContainsAny(s, ":/") || validHostaddr(s) {
		p, err := parsePrefix(s)
		if err != nil {
			return entry{}, err
		}
		return entry{net: p}, nil
	}
	return domainEntry(s, "an address, a network or a host name")
}

func heloEntry(s string) (entry, error) {
	if _, literal := literalAddr(s); literal || validHostaddr(s) {
		return entry{key: fold(s)}, nil
	}
	return domainEntry(s, "a host name or an address literal")
}

func senderEntry(s string) (entry, error) {
	local, domain, found := cutLast(s, "@")
	switch {
	case s == "<>":
		return entry{}, fmt.Errorf("the null sender <> can't be listed: DSNs come from it; remove it")
	case !found:
		return domainEntry(s, "an address or a domain")
	case !validLocal(local) || local == "" || domain != "" && !validHostname(domain):
		return entry{}, fmt.Errorf("%q is not a sender; write user@example.org, user@ or example.org", s)
	}
	return entry{key: fold(s)}, nil
}

// domainEntry reads a name, which stands for its subdomains as well.
func domainEntry(s, want string) (entry, error) {
	if name, dot := strings.CutPrefix(s, "."); dot && validHostname(name) {
		return entry{}, fmt.Errorf("%q: write %q, which covers its subdomains too", s, name)
	}
	if !validHostname(s) {
		return entry{}, fmt.Errorf("%q is not %s; correct it", s, want)
	}
	return entry{key: fold(s)}, nil
}

// accessLists reads allow and block of one table of the file into access
// tables and the restrictions that ask them.
func (p *tomlPolicy) accessLists(n node, kind string, read entryKind) (allow, block []Restriction) {
	n.known(listKeys, elsewhere(listKeys))
	allowed := map[string]bool{}
	allow = p.accessList(n, "allow", kind, read, allowed, nil)
	block = p.accessList(n, "block", kind, read, map[string]bool{}, allowed)
	return allow, block
}

func (p *tomlPolicy) accessList(n node, key, kind string, read entryKind, seen, other map[string]bool) []Restriction {
	names := map[string]string{}
	var nets [][2]string
	for i, v := range n.array(key) {
		path := locate.Index(n.at(key), i)
		e, value, ok := p.entry(node{n.document, path, nil}, v, key == "block", read)
		if !ok {
			continue
		}
		id := e.key
		if e.net.IsValid() {
			id = prefixString(e.net)
		}
		switch {
		case seen[id]:
			n.wrong(path, "%q is listed twice; remove one", id)
		case other[id]:
			n.wrong(path, "%q is in allow too, which wins; remove one", id)
		case e.net.IsValid():
			nets = append(nets, [2]string{id, value})
		default:
			names[e.key] = value
		}
		seen[id] = true
	}
	return p.accessTables(n, key, kind, nets, names)
}

// entry reads one element: a string, or { match = …, reply = … }.
func (p *tomlPolicy) entry(n node, v any, block bool, read entryKind) (e entry, value string, ok bool) {
	match, reply, path := "", "", n.path
	switch v := v.(type) {
	case string:
		match = v
	case map[string]any:
		n.m = v
		n.known(entryKeys, nil)
		match, reply, path = n.str("match"), n.str("reply"), n.at("match")
		if v["match"] == nil {
			n.wrong(n.path, "match is missing; write { match = \"…\", reply = \"…\" }")
			return e, "", false
		}
	default:
		n.wrong(n.path, "this must be a string, or { match = \"…\", reply = \"…\" }")
		return e, "", false
	}
	e, err := read(match)
	if err != nil {
		n.wrong(path, "%v", err)
		return e, "", false
	}
	switch {
	case !block && reply != "":
		n.wrong(n.at("reply"), "an allowed entry has no reply; remove it")
	case !block:
		value = "OK"
	default:
		value = n.blockReply(reply)
	}
	return e, value, true
}

// blockReply is the access(5) action for a reply: a code with text, or text.
func (n node) blockReply(reply string) string {
	code, text, _ := strings.Cut(reply, " ")
	switch {
	case reply == "":
		return "REJECT"
	case !validText(reply):
		n.wrong(n.at("reply"), "reply must be one line of at most 400 characters, without control characters")
	case isReplyCode(code) && strings.TrimSpace(text) != "":
		return reply
	case len(code) == 3 && allDigits(code):
		n.wrong(n.at("reply"), "reply %q needs a code from 400 to 599 and a text; write \"550 5.7.1 Go away\" or only the text", reply)
	}
	return "REJECT " + reply
}

// moreSpecific sorts a network before those around it, since a cidr table's
// first match wins.
func moreSpecific(a, b [2]string) int {
	p, _ := parsePrefix(a[0])
	q, _ := parsePrefix(b[0])
	return cmp.Compare(q.Bits(), p.Bits())
}

func validText(s string) bool {
	return len(s) <= 400 && printable(s, true) == s
}

func (p *tomlPolicy) accessTables(n node, key, kind string, nets [][2]string, names map[string]string) []Restriction {
	var list []Restriction
	name := n.at(key)
	if len(nets) > 0 {
		slices.SortStableFunc(nets, moreSpecific)
		t, err := NewCIDR(nets)
		if err != nil {
			n.wrong(name, "%v", err)
		}
		p.spec.Tables[name+".networks"] = t
		list = append(list, Restriction{kind, name + ".networks"})
	}
	if len(names) > 0 {
		t, err := NewHash(names)
		if err != nil {
			n.wrong(name, "%v", err)
		}
		p.spec.Tables[name+".names"] = t
		list = append(list, Restriction{kind, name + ".names"})
	}
	return list
}

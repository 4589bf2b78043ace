package handwritten

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/locate"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
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
	if strings.ContainsAny(s, ":/") || envelope.ValidHostaddr(s) {
		p, err := table.ParsePrefix(s)
		if err != nil {
			return entry{}, err
		}
		return entry{net: p}, nil
	}
	return domainEntry(s, "an address, a network or a host name")
}

func heloEntry(s string) (entry, error) {
	if _, literal := envelope.LiteralAddr(s); literal || envelope.ValidHostaddr(s) {
		return entry{key: table.Fold(s)}, nil
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
	case !validLocal(local) || local == "" || domain != "" && !envelope.ValidHostname(domain):
		return entry{}, fmt.Errorf("%q is not a sender; write user@example.org, user@ or example.org", s)
	}
	return entry{key: table.Fold(s)}, nil
}

// domainEntry reads a name, which stands for its subdomains as well.
func domainEntry(s, want string) (entry, error) {
	if name, dot := strings.CutPrefix(s, "."); dot && envelope.ValidHostname(name) {
		return entry{}, fmt.Errorf("%q: write %q, which covers its subdomains too", s, name)
	}
	if !envelope.ValidHostname(s) {
		return entry{}, fmt.Errorf("%q is not %s; correct it", s, want)
	}
	return entry{key: table.Fold(s)}, nil
}

// accessLists reads allow and block of one table of the file into access
// tables and the restrictions that ask them.
func (p *file) accessLists(n node, kind string, read entryKind) (allow, block []policy.Restriction) {
	n.known(listKeys, elsewhere())
	allowed := map[string]bool{}
	allow = p.accessList(n, "allow", kind, read, allowed, nil)
	block = p.accessList(n, "block", kind, read, map[string]bool{}, allowed)
	return allow, block
}

func (p *file) accessList(n node, key, kind string, read entryKind, seen, other map[string]bool) []policy.Restriction {
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
			id = table.PrefixString(e.net)
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
func (p *file) entry(n node, v any, block bool, read entryKind) (e entry, value string, ok bool) {
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
		if value, err = policy.BlockAction(reply); err != nil {
			n.wrong(n.at("reply"), "%v", err)
		}
	}
	return e, value, true
}

// moreSpecific sorts a network before those around it, since a cidr table's
// first match wins.
func moreSpecific(a, b [2]string) int {
	p, _ := table.ParsePrefix(a[0])
	q, _ := table.ParsePrefix(b[0])
	return cmp.Compare(q.Bits(), p.Bits())
}

func (p *file) accessTables(n node, key, kind string, nets [][2]string, names map[string]string) []policy.Restriction {
	var list []policy.Restriction
	name := n.at(key)
	if len(nets) > 0 {
		slices.SortStableFunc(nets, moreSpecific)
		t, err := table.NewCIDR(nets)
		if err != nil {
			n.wrong(name, "%v", err)
		}
		p.spec.Tables[name+".networks"] = t
		list = append(list, policy.Restriction{Kind: kind, Arg: name + ".networks"})
	}
	if len(names) > 0 {
		t, err := table.NewHash(names)
		if err != nil {
			n.wrong(name, "%v", err)
		}
		p.spec.Tables[name+".names"] = t
		list = append(list, policy.Restriction{Kind: kind, Arg: name + ".names"})
	}
	return list
}

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/expansion"
)

// host matches the client with an item of a host list.
func (r *aclRun) host(s *listSubject, item string) listResult {
	addr, err := netip.ParseAddr(s.as)
	if err != nil {
		return itemNo
	}
	addr = addr.Unmap()
	switch item {
	case "*":
		return itemYes
	case "":
		return itemNo
	case "@[]":
		return yesNo(slices.Contains(r.acl.Own, addr.String()))
	case "@":
		if s.kind == listIP {
			return itemUnknown
		}
		item = r.acl.Hostname
	}
	if in, is := inNetwork(addr, item); is {
		return yesNo(in)
	}
	if t := strings.TrimLeft(item, "0123456789."); t == "" || t[0] == '/' && t != item {
		return itemUnknown // a malformed address
	}
	typ, file, lookup := strings.Cut(item, ";")
	if lookup && (s.kind == listIP || strings.HasPrefix(typ, "net") || expansion.BaseType(typ) == "iplsearch") {
		return r.network(s, addr, typ, file)
	}
	if s.kind == listIP {
		return itemUnknown
	}
	if !lookup && strings.Trim(expansion.Lower(item), "abcdefghijklmnopqrstuvwxyz0123456789.-_") == "" {
		return r.hasAddress(item, addr)
	}
	name, rc := r.hostName()
	if rc != aclOK {
		return itemUnknown
	}
	return r.str(name, item, listHost, true, true, s.value)
}

func yesNo(b bool) listResult {
	if b {
		return itemYes
	}
	return itemNo
}

// inNetwork says whether item is an address or a network, and has addr in it.
func inNetwork(addr netip.Addr, item string) (in, is bool) {
	if a, err := netip.ParseAddr(item); err == nil {
		return a.Unmap() == addr, true
	}
	ip, bits, ok := strings.Cut(item, "/")
	if !ok {
		return false, false
	}
	if _, err := netip.ParseAddr(ip); err != nil || !allDigits(bits) {
		return false, false
	}
	p, err := netip.ParsePrefix(item)
	if err != nil {
		return false, true
	}
	return p.Masked().Contains(addr), true
}

// network looks an address up in a table of addresses.
func (r *aclRun) network(s *listSubject, addr netip.Addr, typ, file string) listResult {
	sep := "."
	if expansion.BaseType(typ) == "iplsearch" {
		sep = ":"
	}
	key := keyOf(addr, sep)
	if rest, ok := strings.CutPrefix(typ, "net"); ok {
		bits, base, dashed := strings.Cut(rest, "-")
		if dashed {
			typ = base
		}
		if n := len(bits); n > 0 && allDigits(bits) && n < 4 {
			b := 0
			for _, c := range bits {
				b = b*10 + int(c-'0')
			}
			p, err := addr.Prefix(b)
			if err != nil {
				return itemNo
			}
			key = fmt.Sprint(keyOf(p.Addr(), sep), "/", b)
		}
	}
	v, found, err := r.search(typ, file, key)
	switch {
	case err != nil:
		return itemDefer
	case found && s.value != nil:
		*s.value = v
	}
	return yesNo(found)
}

// keyOf is an address as keys of tables have it: IPv6 in full.
func keyOf(addr netip.Addr, sep string) string {
	if addr.Is4() {
		return addr.String()
	}
	return strings.ReplaceAll(addr.StringExpanded(), ":", sep)
}

// hasAddress says that a host's name has the client's address. The DNS isn't asked for
// localhost (RFC 6761 §6.3): whoever answers could let anybody relay.
func (r *aclRun) hasAddress(name string, addr netip.Addr) listResult {
	name = expansion.Lower(name)
	if there, ok := r.acl.HostsFile[name]; ok {
		return yesNo(slices.Contains(there, addr.String()))
	}
	if name == "localhost" {
		return yesNo(addr.IsLoopback())
	}
	addrs, st := r.addresses(name)
	switch st {
	case dnsTemp:
		return itemDefer
	case dnsFound:
		return yesNo(slices.Contains(addrs, addr))
	}
	return itemUnknown
}

// hostName is the client's verified name, in small letters. The first who asks for it
// makes it part of $sender_fullhost.
func (r *aclRun) hostName() (string, outcome) {
	name, rc := r.nameOnly()
	st := &r.aclState
	if rc == aclOK && !st.looked {
		st.looked, st.nameShown = true, true
	}
	return name, rc
}

// nameOnly is the name for verify = helo, which changes nothing that is shown.
func (r *aclRun) nameOnly() (string, outcome) {
	r.names(r.ctx)
	switch {
	case r.client.NameStatus == envelope.NameOK:
		return expansion.Lower(r.client.Name), aclOK
	case r.client.NameStatus == envelope.NameTemp:
		return "", aclDefer
	}
	return "", aclFail
}

// errNoFile is a look-up's in a file that isn't there.
var errNoFile = errors.New("no such table")

// search looks a key up in a table as Exim does: whole, then by its parents for
// "partial", then "*@domain" and "*".
func (r *aclRun) search(typ, file, key string) (string, bool, error) {
	base := expansion.BaseType(typ)
	get := r.getter(base, expansion.TableName(typ, file))
	if get == nil {
		return "", false, errNoFile
	}
	if optioned(typ, "ret=key") {
		plain := get
		get = func(k string) (string, bool, error) {
			_, found, err := plain(k)
			return key, found, err
		}
	}
	if base == "dsearch" && optioned(typ, "ret=full") {
		plain := get
		get = func(k string) (string, bool, error) {
			v, found, err := plain(k)
			return strings.TrimSpace(file) + "/" + v, found, err
		}
	}
	if v, ok, err := get(key); ok || err != nil {
		return v, ok, err
	}
	if rest, partial := strings.CutPrefix(typ, "partial"); partial {
		if v, ok, err := searchParents(get, rest, key); ok || err != nil {
			return v, ok, err
		}
	}
	word, _, _ := strings.Cut(typ, ",")
	if at := strings.LastIndexByte(key, '@'); strings.HasSuffix(word, "*@") && at >= 0 {
		if v, ok, err := get("*" + key[at:]); ok || err != nil {
			return v, ok, err
		}
	}
	if strings.HasSuffix(word, "*") || strings.HasSuffix(word, "*@") {
		return get("*")
	}
	return "", false, nil
}

// getter asks a table, or the patterns of a file; nil where there is none.
func (r *aclRun) getter(base, name string) func(key string) (string, bool, error) {
	if t := r.acl.tables[name]; t != nil {
		return func(key string) (string, bool, error) {
			if base == "dsearch" && strings.Contains(key, "/") {
				return "", false, expansion.ErrDefer
			}
			if (base == "cdb" || base == "dbm" || base == "dbmnz" || base == "dsearch") && key != expansion.Lower(key) {
				return "", false, nil
			}
			if base == "iplsearch" && key != "*" {
				if host, _, _ := strings.Cut(key, "/"); !isAddr(host) {
					return "", false, expansion.ErrDefer
				}
			}
			return r.get(t, key)
		}
	}
	if lines, there := r.acl.Files[name]; there && (base == "wildlsearch" || base == "nwildlsearch") {
		return func(key string) (string, bool, error) { return r.wild(lines, key, base == "wildlsearch") }
	}
	return nil
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// optioned says that a look-up's type has an option.
func optioned(typ, option string) bool {
	_, options, _ := strings.Cut(typ, ",")
	for o := range strings.SplitSeq(options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// wild finds the first of a file's patterns that matches: lines are a pattern and its
// data, in turn.
func (r *aclRun) wild(lines []string, key string, expanded bool) (string, bool, error) {
	for i := 0; i+1 < len(lines); i += 2 {
		pattern := lines[i]
		if expanded {
			var err error
			if pattern, err = r.expand(pattern); errors.Is(err, expansion.ErrForced) {
				continue
			} else if err != nil {
				return "", false, expansion.ErrDefer
			}
		}
		s := &listSubject{kind: listString, as: expansion.Lower(key), given: key}
		switch r.scan(s, parseItems([]string{pattern}, listString)) {
		case aclOK:
			return lines[i+1], true, nil
		case aclDefer:
			return "", false, expansion.ErrDefer
		}
	}
	return "", false, nil
}

// searchParents is the "partial-" of a look-up: rest is what follows that word.
func searchParents(get func(string) (string, bool, error), rest, key string) (string, bool, error) {
	least, affix := 2, "*."
	if n := strings.TrimLeft(rest, "0123456789"); n != rest {
		least = 0
		for _, c := range rest[:len(rest)-len(n)] {
			least = least*10 + int(c-'0')
		}
		rest = n
	}
	if inner, ok := strings.CutPrefix(rest, "("); ok {
		affix, _, _ = strings.Cut(inner, ")")
	}
	for k := key; ; {
		if k != key && strings.Count(k, ".")+1 < least {
			return "", false, nil
		}
		if v, ok, err := get(affix + k); ok || err != nil {
			return v, ok, err
		}
		_, after, ok := strings.Cut(k, ".")
		if !ok {
			break
		}
		k = after
	}
	if least > 0 {
		return "", false, nil
	}
	return get(strings.TrimSuffix(affix, "."))
}

func (r *aclRun) get(t *dict, key string) (string, bool, error) {
	if key == "" {
		return "", false, nil
	}
	addr, _ := netip.ParseAddr(key)
	r.find.buf = append(r.find.buf[:0], expansion.Lower(key)...)
	h := r.find.query(t, r.find.buf, addr, true)
	if r.find.failed {
		r.find.failed = false
		return "", false, expansion.ErrDefer
	}
	if !h.ok() {
		return "", false, nil
	}
	if t.Is("set") {
		return key, true, nil
	}
	v, err := r.find.reader.Value(t.Table, h.entry, []byte(expansion.Lower(key)))
	if err != nil {
		return "", false, expansion.ErrDefer
	}
	return v, true, nil
}

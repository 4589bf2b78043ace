package policy

import (
	"bytes"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// dict is a Table that a Snapshot uses, under the name it goes by.
type dict struct {
	*table.Table
	name    string
	actions []access // when an access restriction uses the table
	action  [][]int  // for each of the table's values, by part, its index in actions
	members []*dict  // union, pipe
	absent  *dict    // learned: the keys that it is known not to have
	wholes  bool     // learned: asked whole keys only
	unsure  string   // learned: characters of keys that it may have without listing them
	unless  string   // learned: characters of local-parts that "@domain" doesn't cover
	unknown *dict    // learned: keys that it may have without listing them
	except  *dict    // learned: keys that "@domain" doesn't cover
}

// whole says that the table is asked about whole keys only, not about their
// parents and parts. A union or pipe is what its first member is.
func (d *dict) whole() bool {
	for len(d.members) > 0 {
		d = d.members[0]
	}
	return d.Whole()
}

// hit is an entry of a table, or none.
type hit struct {
	t      *dict
	entry  int
	joined string // of a union or pipe: the value
	hashed string // the key that was looked for, where the table has only its digest
}

func (h hit) ok() bool { return h.t != nil }

// key spells the entry's key.
func (h hit) key() string {
	if h.t.Secret() != nil {
		return h.hashed
	}
	key, _ := h.t.Entry(h.entry)
	return string(key)
}

// access is what the entry asks for, nil when its value depends on the key.
func (h hit) access() *access {
	if len(h.t.members) > 0 {
		return nil
	}
	part, value := h.t.ValueAt(h.entry)
	if a := &h.t.actions[h.t.action[part][value]]; a.op != opTemplate {
		return a
	}
	return nil
}

// finder looks keys up. Its buffer belongs to one session and is overwritten
// by each key, so that a look-up allocates nothing.
type finder struct {
	snap   *Snapshot
	buf    []byte
	reader table.Reader
	failed bool                           // a look-up took too long; the owner asks and clears it
	unsure bool                           // a learned table doesn't know a key; the owner asks and clears it
	ask    func(table string, key []byte) // told of each such key, unless nil
}

// query looks up a folded key. addr is the key as an address, if it is one; whole
// says that it is the whole key, not a part of it.
func (f *finder) query(d *dict, key []byte, addr netip.Addr, whole bool) hit {
	switch {
	case !whole && d.whole():
		return hit{}
	case len(d.members) > 0:
		return f.combined(d, string(key), addr)
	case d.unless == "" && d.except == nil:
		return f.entry(d, key, addr)
	}
	at := bytes.LastIndexByte(key, '@')
	if at == 0 {
		return hit{}
	}
	h := f.entry(d, key, addr)
	if at > 0 && !h.ok() && !mayHold(d.unless, key[:at]) && (d.except == nil || !f.entry(d.except, key, netip.Addr{}).ok()) {
		return f.entry(d, key[at:], addr)
	}
	return h
}

func (f *finder) entry(d *dict, key []byte, addr netip.Addr) hit {
	i, err := f.reader.Find(d.Table, key, addr)
	if err != nil {
		f.failed = true
	}
	if i < 0 {
		return hit{}
	}
	h := hit{t: d, entry: i}
	if d.Secret() != nil {
		h.hashed = string(key)
	}
	return h
}

// combined asks the members of a union or pipe.
func (f *finder) combined(d *dict, key string, addr netip.Addr) hit {
	ask := func(m *dict) (string, bool) {
		f.buf = append(f.buf[:0], key...)
		if !m.Whole() {
			f.buf = append(f.buf[:0], table.Fold(key)...)
		}
		h := f.query(m, f.buf, addr, true)
		if !h.ok() {
			return "", false
		}
		return f.value(h), true
	}
	h := hit{t: d}
	var values []string
	for _, m := range d.members {
		v, found := ask(m)
		switch {
		case d.Is(table.TypeUnion) && found:
			values = append(values, v)
		case d.Is(table.TypePipe) && !found:
			return hit{}
		case d.Is(table.TypePipe):
			key = v
			addr, _ = netip.ParseAddr(v)
		}
	}
	if d.Is(table.TypePipe) {
		h.joined = key
		return h
	}
	if len(values) == 0 {
		return hit{}
	}
	h.joined = strings.Join(values, ",")
	return h
}

// value is an entry's value, its groups filled in from the key looked up last.
func (f *finder) value(h hit) string {
	if len(h.t.members) > 0 {
		return h.joined
	}
	v, err := f.reader.Value(h.t.Table, h.entry, f.buf)
	if err != nil {
		f.failed = true
	}
	return v
}

// one asks the tables for one key made of two parts. whole says that it is the whole
// key: patterns and networks are asked about nothing less.
func (f *finder) one(tables []*dict, a, b string, addr netip.Addr, whole bool) hit {
	f.buf = append(append(f.buf[:0], a...), b...)
	for _, t := range tables {
		if t.wholes && !whole {
			continue
		}
		if h := f.query(t, f.buf, addr, whole); h.ok() {
			return h
		}
		if t.unsure != "" && mayHold(t.unsure, f.buf) || t.unknown != nil && f.entry(t.unknown, f.buf, netip.Addr{}).ok() {
			f.unsure = true
		}
		if t.absent != nil && !f.query(t.absent, f.buf, netip.Addr{}, true).ok() {
			f.unsure = true
			if f.ask != nil {
				f.ask(t.name, f.buf)
			}
		}
	}
	return hit{}
}

// mayHold says that a key has one of the characters of Learned.Unsure.
func mayHold(unsure string, key []byte) bool {
	for _, c := range key {
		if c >= utf8.RuneSelf && strings.Contains(unsure, anyLetter) || c < utf8.RuneSelf && strings.IndexByte(unsure, c) >= 0 {
			return true
		}
	}
	return false
}

// anyLetter represents all that isn't ASCII in Learned.Unsure.
const anyLetter = "é"

// mailbox asks for local+rest with the local-part quoted where it needs it,
// then without.
func (f *finder) mailbox(tables []*dict, local, rest string, whole bool) hit {
	if q := (envelope.Mailbox{Local: local}).String(); q != local {
		if h := f.one(tables, q, rest, netip.Addr{}, whole); h.ok() {
			return h
		}
	}
	return f.one(tables, local, rest, netip.Addr{}, whole)
}

// at is "@"+domain without an allocation where the domain is the folded end of
// the raw address.
func (a *address) at() string {
	if n := len(a.raw) - len(a.domain) - 1; n >= 0 && a.raw[n] == '@' && a.raw[n+1:] == a.domain {
		return a.raw[n:]
	}
	return "@" + a.domain
}

// recipient looks an address up as in a recipient or alias table: the
// address, without its extension, the bare local-part where the domain is
// local, the domain.
func (f *finder) recipient(tables []*dict, a *address) hit {
	if len(tables) == 0 {
		return hit{}
	}
	at := a.at()
	user, extended := f.snap.splitExtension(a.local)
	h := f.mailbox(tables, a.local, at, true)
	if !h.ok() && extended {
		h = f.mailbox(tables, user, at, false)
	}
	if !h.ok() && (a.class == classLocal || f.snap.isOrigin(a.domain)) {
		h = f.mailbox(tables, a.local, "", false)
		if !h.ok() && extended {
			h = f.mailbox(tables, user, "", false)
		}
	}
	if !h.ok() {
		h = f.one(tables, at, "", netip.Addr{}, false)
	}
	return h
}

// mailAccess looks an address up as in a sender or recipient access table:
// the address, without its extension, the domain and its parents, the
// local-part with "@".
func (f *finder) mailAccess(t *dict, a *address) hit {
	tables := []*dict{t}
	h := f.addressOrDomain(tables, a, f.snap.spec.AccessMatchesSubdomain)
	if !h.ok() {
		h = f.mailbox(tables, a.local, "@", false)
		if user, extended := f.snap.splitExtension(a.local); !h.ok() && extended {
			h = f.mailbox(tables, user, "@", false)
		}
	}
	return h
}

// addressOrDomain asks for the address, without its extension, the domain and
// its parents.
func (f *finder) addressOrDomain(tables []*dict, a *address, subdomains bool) hit {
	at := a.at()
	h := f.mailbox(tables, a.local, at, true)
	if user, extended := f.snap.splitExtension(a.local); !h.ok() && extended {
		h = f.mailbox(tables, user, at, false)
	}
	if !h.ok() {
		h = f.parents(tables, at[1:], false, subdomains)
	}
	return h
}

// domain looks a host name up with its parents. A bare address has none.
func (f *finder) domain(t *dict, name string) hit {
	tables := []*dict{t}
	if a, err := netip.ParseAddr(name); err == nil {
		return f.one(tables, name, "", a.Unmap(), true)
	}
	if t.whole() { // a pattern sees the name as it was given
		return f.one(tables, name, "", netip.Addr{}, true)
	}
	return f.parents(tables, table.Fold(name), true, f.snap.spec.AccessMatchesSubdomain)
}

// parents asks for a name and its parent domains; these as ".parent" when
// names of domains don't match subdomains by themselves.
func (f *finder) parents(tables []*dict, name string, whole, subdomains bool) hit {
	for name != "" {
		if h := f.one(tables, name, "", netip.Addr{}, whole); h.ok() {
			return h
		}
		whole = false
		i := strings.IndexByte(name[1:], '.')
		if i < 0 {
			break
		}
		name = name[i+1:]
		if subdomains {
			name = name[1:]
		}
	}
	return hit{}
}

// addr looks an address up with the networks above it, cut at its dots or
// colons.
func (f *finder) addr(t *dict, a netip.Addr) hit {
	tables := []*dict{t}
	s, delim, full := a.String(), ".", a
	if a.Is6() {
		delim = ":"
	}
	for {
		if h := f.one(tables, s, "", full, full.IsValid()); h.ok() {
			return h
		}
		i := strings.LastIndex(s, delim)
		if i < 0 {
			return hit{}
		}
		s, full = s[:i], netip.Addr{}
	}
}

// transport looks an address up as in transport_maps: the address, without its
// extension, the domain and its parents, "*".
func (f *finder) transport(tables []*dict, a *address) hit {
	if len(tables) == 0 {
		return hit{}
	}
	h := f.addressOrDomain(tables, a, f.snap.spec.Addresses.TransportMatchesSubdomain)
	if !h.ok() {
		h = f.one(tables, "*", "", netip.Addr{}, true)
	}
	return h
}

// listed asks a table about a domain, and where it is indexed about the
// domain's parents: by their names, or by ".name".
func (f *finder) listed(t *dict, domain string, subdomains bool) bool {
	for whole := true; domain != ""; whole = false {
		f.buf = append(f.buf[:0], domain...)
		if f.query(t, f.buf, netip.Addr{}, whole).ok() {
			return true
		}
		i := strings.IndexByte(domain[1:], '.')
		if i < 0 {
			break
		}
		domain = domain[i+1:]
		if subdomains {
			domain = domain[1:]
		}
	}
	return false
}

// lookup asks tables for a whole key in the case that it has.
func (f *finder) lookup(tables []*dict, key []byte) hit {
	for _, t := range tables {
		f.buf = append(f.buf[:0], key...)
		if h := f.query(t, f.buf, netip.Addr{}, true); h.ok() {
			return h
		}
	}
	return hit{}
}

func (s *Snapshot) isOrigin(domain string) bool {
	return s.spec.Addresses.MyOrigin != "" && domain == table.Fold(s.spec.Addresses.MyOrigin)
}

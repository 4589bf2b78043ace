package policy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// Types of look-up tables.
const (
	typeSet    = "set"    // keys without values: recipients
	typeHash   = "hash"   // keys with values, equal but for case
	typeCIDR   = "cidr"   // networks with values, the first that matches wins
	typeRegexp = "regexp" // POSIX extended regular expressions with values
	typePCRE   = "pcre"   // likewise, Perl's
	typeStatic = "static" // one value for every key
	typeUnion  = "union"  // other tables: all their values, joined with commas
	typePipe   = "pipe"   // other tables: the value of one is the key of the next
)

// Table is an immutable look-up table. Keys are folded to lower case, as
// Postfix does for its indexed tables.
type Table struct {
	typ    string
	secret *Secret  // set, hash: keys are digests under it; nil: they are plain
	keys   segments // set, hash: with the values of a hash
	values []string // cidr, regexp, pcre, static: the distinct values
	rules  []rule   // cidr, regexp, pcre
	tables []string // union, pipe: the names of the members
}

// NewSet returns a table of keys without values. It takes keys over.
func NewSet(keys []string) (*Table, error) {
	for i := range keys {
		keys[i] = fold(keys[i])
	}
	x, err := sorted(keys, nil)
	if err != nil {
		return nil, err
	}
	return &Table{typ: typeSet, keys: x}, nil
}

// NewHash returns a table of keys with values.
func NewHash(entries map[string]string) (*Table, error) {
	folded := make(map[string]string, len(entries))
	for k, v := range entries {
		f := fold(k)
		if _, dup := folded[f]; dup {
			return nil, fmt.Errorf("key %q appears twice", f)
		}
		folded[f] = v
	}
	x, err := sorted(slices.Collect(maps.Keys(folded)), func(key string) string { return folded[key] })
	if err != nil {
		return nil, err
	}
	return &Table{typ: typeHash, keys: x}, nil
}

// NewCIDR returns a table of networks, each a [prefix, value] pair: the first
// that matches wins. "!" negates a prefix; "if PREFIX" and "endif" put a
// condition on the rules between them, and have no value.
func NewCIDR(rules [][2]string) (*Table, error) { return newRules(typeCIDR, rules) }

// NewRegexp returns a table of POSIX extended regular expressions, each a
// ["/pattern/flags", value] pair; "!", "if" and "endif" as for NewCIDR. The
// pattern has no escapes but its own. The flags are those in force: "i" ignores
// case, "m" is REG_NEWLINE, "x" (which must be there) means extended. Patterns
// are asked the whole key only.
func NewRegexp(rules [][2]string) (*Table, error) { return newRules(typeRegexp, rules) }

// NewPCRE is NewRegexp for patterns of PCRE, with the flags "imsxAEUX".
func NewPCRE(rules [][2]string) (*Table, error) { return newRules(typePCRE, rules) }

func newRules(typ string, rules [][2]string) (*Table, error) {
	t := &Table{typ: typ, rules: make([]rule, 0, len(rules))}
	intern := map[string]uint32{}
	for _, r := range rules {
		if err := t.addRule(r[0], r[1], func(v string) uint32 { return t.intern(intern, v) }); err != nil {
			return nil, err
		}
	}
	return t, t.link()
}

// NewUnion returns a table that asks other tables, by their names in the Spec,
// and joins what they say with commas.
func NewUnion(tables []string) *Table { return &Table{typ: typeUnion, tables: tables} }

// NewPipe returns a table that asks the first of other tables, the second with
// what the first says, and so on.
func NewPipe(tables []string) *Table { return &Table{typ: typePipe, tables: tables} }

// NewStatic returns a table that has one value for every key.
func NewStatic(value string) *Table { return &Table{typ: typeStatic, values: []string{value}} }

func (t *Table) intern(m map[string]uint32, v string) uint32 {
	i, ok := m[v]
	if !ok {
		i = uint32(len(t.values))
		t.values = append(t.values, v)
		m[v] = i
	}
	return i
}

// Len returns the number of entries.
func (t *Table) Len() int {
	if hasRules(t.typ) {
		return len(t.rules)
	}
	if len(t.tables) > 0 {
		return len(t.tables)
	}
	return max(t.keys.len(), len(t.values[:min(1, len(t.values))]))
}

// parsePrefix reads an address or a prefix without host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address; write 192.0.2.1 or 2001:db8::1", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an IP prefix; write 192.0.2.0/24 or 2001:db8::/32", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has host bits; write %s", s, p.Masked())
	}
	return p, nil
}

type tableJSON struct {
	Type    string            `json:"type"`
	Secret  *Secret           `json:"secret,omitempty"` // then keys are digests in hexadecimal
	Keys    []string          `json:"keys,omitempty"`
	Entries map[string]string `json:"entries,omitempty"`
	Rules   [][2]string       `json:"rules,omitempty"`
	Value   string            `json:"value,omitempty"`
	Tables  []string          `json:"tables,omitempty"`
}

// MarshalJSON writes the table with its keys sorted, or its rules in order.
func (t *Table) MarshalJSON() ([]byte, error) {
	j := tableJSON{Type: t.typ, Secret: t.secret}
	spell := func(key []byte) string { return string(key) }
	if t.secret != nil {
		spell = hex.EncodeToString
	}
	switch t.typ {
	case typeSet:
		j.Keys = make([]string, 0, t.Len())
		for key := range t.Entries(0, t.Len()) {
			j.Keys = append(j.Keys, spell(key))
		}
	case typeHash:
		j.Entries = make(map[string]string, t.Len())
		for key, value := range t.Entries(0, t.Len()) {
			j.Entries[spell(key)] = value
		}
	case typeCIDR, typeRegexp, typePCRE:
		for i := range t.rules {
			k, v := t.Entry(i)
			j.Rules = append(j.Rules, [2]string{string(k), v})
		}
	case typeUnion, typePipe:
		j.Tables = t.tables
	case typeStatic:
		j.Value = t.values[0]
	}
	return marshalJSON(j)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Table) UnmarshalJSON(b []byte) error {
	var j tableJSON
	if err := strictJSON(b, &j); err != nil {
		return err
	}
	var n *Table
	var err error
	if j.Secret != nil {
		if n, err = unmarshalDigests(&j); err == nil {
			*t = *n
		}
		return err
	}
	switch j.Type {
	case typeSet:
		n, err = NewSet(j.Keys)
	case typeHash:
		n, err = NewHash(j.Entries)
	case typeCIDR, typeRegexp, typePCRE:
		n, err = newRules(j.Type, j.Rules)
	case typeStatic:
		n = NewStatic(j.Value)
	case typeUnion:
		n = NewUnion(j.Tables)
	case typePipe:
		n = NewPipe(j.Tables)
	default:
		err = fmt.Errorf("unknown table type %q", j.Type)
	}
	if err == nil {
		*t = *n
	}
	return err
}

func prefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// table is a Table that a Snapshot uses, under the name it goes by.
type table struct {
	*Table
	name    string
	nets    *bart.Table[uint32] // cidr without conditions: index in rules
	actions []access            // for each of values, when an access restriction uses the table
	action  [][]uint32          // hash: for each distinct value of each segment its index in actions
	members []*table            // union, pipe
	absent  *table              // learned: the keys that it is known not to have
	wholes  bool                // learned: asked whole keys only
	unsure  string              // learned: characters of keys that it may have though it doesn't hold them
	unless  string              // learned: characters of local-parts that "@domain" doesn't stand for
}

func newTable(name string, t *Table) *table {
	c := &table{Table: t, name: name}
	if t.typ != typeCIDR || !t.plain() {
		return c
	}
	c.nets = new(bart.Table[uint32])
	for i, r := range t.rules {
		// The first match wins in Postfix, the longest here: a later rule
		// inside an earlier one can never match and is left out.
		if _, covered := c.nets.LookupPrefix(r.net); !covered {
			c.nets.Insert(r.net, uint32(i))
		}
	}
	return c
}

// whole says that the table is asked about whole keys only, not about their
// parents and parts. A union or pipe is what its first member is.
func (t *table) whole() bool {
	for len(t.members) > 0 {
		t = t.members[0]
	}
	return hasRules(t.typ)
}

// hit is an entry of a table, or none.
type hit struct {
	t      *table
	entry  int
	joined string // of a union or pipe: the value
	hashed string // the key that was looked for, where the table knows its digest only
}

func (h hit) ok() bool { return h.t != nil }

// key spells the entry's key.
func (h hit) key() string {
	switch h.t.typ {
	case typeCIDR, typeRegexp, typePCRE:
		return h.t.rules[h.entry].key()
	case typeStatic, typeUnion, typePipe:
		return ""
	}
	if h.t.secret != nil {
		return h.hashed
	}
	key, _ := h.t.Entry(h.entry)
	return string(key)
}

// access is what the entry asks for, nil when its value depends on the key.
func (h hit) access() *access {
	i := 0
	switch h.t.typ {
	case typeUnion, typePipe:
		return nil
	case typeCIDR, typeRegexp, typePCRE:
		i = int(h.t.rules[h.entry].val)
	case typeHash:
		seg, at := h.t.keys.at(h.entry)
		i = int(h.t.action[seg][h.t.keys.segs[seg].vals[at]])
	}
	if a := &h.t.actions[i]; a.op != opTemplate {
		return a
	}
	return nil
}

// query looks a folded key up. addr is the key as an address, when it is one;
// whole says that it isn't a part of what is looked for.
func (f *finder) query(t *table, key []byte, addr netip.Addr, whole bool) hit {
	switch t.typ {
	case typeStatic:
		return hit{t: t}
	case typeUnion, typePipe:
		if whole || !t.whole() {
			return f.combined(t, string(key), addr)
		}
		return hit{}
	case typeCIDR, typeRegexp, typePCRE:
		if !whole {
			return hit{}
		}
		if t.nets != nil {
			if addr.IsValid() {
				if i, ok := t.nets.Lookup(addr); ok {
					return hit{t: t, entry: int(i)}
				}
			}
		} else if i := f.findRule(t, key, addr); i >= 0 {
			return hit{t: t, entry: i}
		}
		return hit{}
	}
	at := -1
	if t.unless != "" {
		at = bytes.LastIndexByte(key, '@')
	}
	if at == 0 {
		return hit{}
	}
	h := f.entry(t, key)
	if at > 0 && !h.ok() && !mayHold(t.unless, key[:at]) {
		return f.entry(t, key[at:])
	}
	return h
}

// entry looks a folded key up in a set or hash.
func (f *finder) entry(t *table, key []byte) hit {
	if t.secret == nil {
		if i, found := t.keys.search(key); found {
			return hit{t: t, entry: i}
		}
		return hit{}
	}
	if f.hasher == nil || f.hasher.secret != *t.secret {
		f.hasher = NewHasher(t.secret)
	}
	if i, found := t.keys.search(f.hasher.Digest(key)); found {
		return hit{t: t, entry: i, hashed: string(key)}
	}
	return hit{}
}

// combined asks the members of a union or pipe.
func (f *finder) combined(t *table, key string, addr netip.Addr) hit {
	ask := func(m *table) (string, bool) {
		f.buf = append(f.buf[:0], key...)
		if !hasRules(m.typ) {
			f.buf = append(f.buf[:0], fold(key)...)
		}
		h := f.query(m, f.buf, addr, true)
		if !h.ok() {
			return "", false
		}
		return f.value(h), true
	}
	h := hit{t: t}
	var values []string
	for _, m := range t.members {
		v, found := ask(m)
		switch {
		case t.typ == typeUnion && found:
			values = append(values, v)
		case t.typ == typePipe && !found:
			return hit{}
		case t.typ == typePipe:
			key = v
			addr, _ = netip.ParseAddr(v)
		}
	}
	if t.typ == typePipe {
		h.joined = key
		return h
	}
	if len(values) == 0 {
		return hit{}
	}
	h.joined = strings.Join(values, ",")
	return h
}

// fold brings a key to the case in which tables hold it. It returns s itself
// when there is nothing to fold.
func fold(s string) string { return strings.ToLower(s) }

// strictJSON refuses fields that v doesn't know and anything after the value.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
